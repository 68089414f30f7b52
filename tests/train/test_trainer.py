import pickle

import pytest
import torch
from fakes.training import InProcess, MemoryRecord, MemoryTracker, Saying, timeless, tiny, train_run
from safetensors.torch import load

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.tracking.lineage import host
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train import trainer as run
from ipcnn_ray.train.final_model import final_model
from ipcnn_ray.train.run_dir import MEAN_KEY, Attempts
from ipcnn_ray.train.run_metadata import ControlReference, run_description, run_title
from ipcnn_ray.train.runtime import StopRun

EVERY_EPOCH = {"epoch", "train_loss", "filter_loss", "train_error", "learning_rate", "images_per_second", "seconds"}
EVALUATED = {
    "val_error",
    "val_loss",
    "val_images",
    "instability",
    "instability_conv4",
    "instability_dropped",
    "instability_conv5",
}
AT_THE_END = {"best_val_error", "epochs_to_converge", "area_under_error", "cpu_hours"}


@pytest.fixture
def whole(bench):
    """Weights and history of a run that nothing interrupted."""
    tracker = MemoryTracker()
    train_run(bench.request(tiny(), "whole"), InProcess(), tracker)
    return bench.weights("whole"), timeless(tracker.record.epochs.values())


def test_every_metric_is_there_under_its_name(bench):
    tracker, runtime = MemoryTracker(), InProcess()
    spec = tiny(eval={"every": 2})
    control = ControlReference(instability=0.1, error=0.5, instability_weight=0.25)
    result = train_run(bench.request(spec, references=control), runtime, tracker)
    epochs = tracker.record.epochs
    assert set(epochs[1]) == EVERY_EPOCH
    assert set(epochs[2]) == EVERY_EPOCH | EVALUATED | {"combined"}
    assert set(epochs[3]) == EVERY_EPOCH | EVALUATED | {"combined"} | AT_THE_END
    assert [metrics["epoch"] for metrics in runtime.reported] == [1, 2, 3]
    assert runtime.reported[2] == epochs[3] == result.metrics
    last = epochs[3]
    assert last["instability"] == last["instability_conv5"] != last["instability_conv4"]
    # Six validation items, so no error counts as less than a sixth.
    expected = 0.25 * last["instability"] / 0.1 + 0.75 * max(last["val_error"], 1 / 6) / 0.5
    assert last["val_images"] == 6
    assert last["combined"] == pytest.approx(expected)
    assert last["filter_loss"] < 0


def test_the_record_tells_the_whole_story(bench):
    tracker = MemoryTracker()
    of_driver = {"code.commit": "abc", "host.cpu": "of another machine", "host.gpu": "8 x of another machine"}
    result = train_run(bench.request(tiny(), tags=of_driver), InProcess(), tracker)
    record = tracker.record
    assert (result.state, result.cause, result.metrics["epoch"]) == ("succeeded", "", 3)
    assert record.states == [("running", ""), ("succeeded", "")]
    assert record.said_params["template.beta"] == "2.0"
    assert record.said_params["data.landmarks"] == "head, neck, torso"
    expected = {"code.commit": "abc", "data.drawn": "true", "model.partial_weights": "false", "ipcnn.workers": "1"}
    expected |= {"ipcnn.precision": "float32", "ipcnn.attempts_lost": "0", "ipcnn.seed": "0"}
    assert (expected | host()).items() <= record.said_tags.items()
    assert record.files == {"weights/weights.safetensors": bench.weights()}


def test_partial_weights_are_tagged(bench):
    bench.pretrained(["conv1"])
    tracker = MemoryTracker()
    spec = tiny(model={"weights": {"file": "w.npz", "layers": ["conv1"]}})
    train_run(bench.request(spec), InProcess(), tracker)
    assert tracker.record.said_tags["model.partial_weights"] == "true"
    assert tracker.record.said_tags["model.weights"] == "conv1"


def test_a_run_that_has_ended_is_not_trained_again(bench):
    first = bench.run(tiny())
    again = MemoryTracker()
    assert train_run(bench.request(tiny()), InProcess(), again) == first
    assert again.attached == 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not(bench, whole):
    torch.manual_seed(123)  # nothing is drawn from the global generators
    bench.run(tiny(), "again")
    assert bench.weights("again") == whole[0]
    raw = tiny().model_dump(mode="json")
    bench.run(type(tiny()).model_validate({**raw, "seed": 1}), "other")
    assert bench.weights("other") != whole[0]


class Crash(RuntimeError):
    pass


def crash_once(*at):
    """Raises Crash the n-th time it is called, for n in `at`."""
    calls = []

    def fails(*anything):
        calls.append(anything)
        if len(calls) in at:
            raise Crash("pulled the plug")

    return fails


def in_report(monkeypatch, record):
    return Saying(crash_once(2))


def between_checkpoint_and_metrics(monkeypatch, record):
    fails = crash_once(3)  # the first is what a resumed run repeats, then one per epoch
    record.fails = lambda method: fails() if method == "metrics" else None
    return InProcess()


def before_the_checkpoint(monkeypatch, record):
    real, fails = checkpoint.save, crash_once(2)
    monkeypatch.setattr(checkpoint, "save", lambda *all_: (fails(), real(*all_)))
    return InProcess()


def in_the_middle_of_the_checkpoint(monkeypatch, record):
    real, fails = checkpoint.sha256_of, crash_once(2)
    monkeypatch.setattr(checkpoint, "sha256_of", lambda path: (real(path), fails())[0])
    return InProcess()


def in_the_evaluation(monkeypatch, record):
    real, fails = run.evaluate, crash_once(2)
    monkeypatch.setattr(run, "evaluate", lambda *all_, **named: (real(*all_, **named), fails())[0])
    return InProcess()


def in_a_step(monkeypatch, record):
    real, fails = torch.optim.SGD.step, crash_once(5)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *more: (real(self, *more), fails())[0])
    return InProcess()


def after_the_last_epoch(monkeypatch, record):
    record.fails = lambda method: crash_once(1)() if method == "file" else None
    return InProcess()


@pytest.mark.parametrize(
    "plan",
    [
        in_report,
        between_checkpoint_and_metrics,
        before_the_checkpoint,
        in_the_middle_of_the_checkpoint,
        in_the_evaluation,
        in_a_step,
        after_the_last_epoch,
    ],
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(bench, whole, monkeypatch, plan):
    record = MemoryRecord()
    with monkeypatch.context() as patch:
        runtime = plan(patch, record)
        with pytest.raises(Crash, match="pulled the plug"):
            train_run(bench.request(tiny()), runtime, MemoryTracker(record))
    assert record.states[-1] == ("failed", "Crash: pulled the plug")
    record.fails = lambda method: None
    torch.manual_seed(99)
    result = train_run(bench.request(tiny()), InProcess(), MemoryTracker(record))
    assert (result.state, result.metrics["epoch"]) == ("succeeded", 3)
    assert bench.weights() == whole[0]
    assert timeless(record.epochs.values()) == whole[1]
    assert Attempts.read(bench.request(tiny()).folder) == Attempts(error=1)
    assert record.said_tags["ipcnn.attempts_error"] == "1"


def test_a_torn_checkpoint_is_named_in_the_record(bench, whole):
    record = MemoryRecord()
    with pytest.raises(Crash, match="pulled"):
        train_run(bench.request(tiny()), Saying(crash_once(2)), MemoryTracker(record))
    torn = bench.root / "runs" / "run" / "checkpoints" / "epoch-0002" / "state.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    train_run(bench.request(tiny()), InProcess(), MemoryTracker(record))
    assert record.said_tags["ipcnn.damaged_checkpoints"].startswith("epoch-0002 (state.pt has")
    assert bench.weights() == whole[0]
    assert timeless(record.epochs.values()) == whole[1]


def test_a_checkpoint_of_another_experiment_is_refused(bench):
    with pytest.raises(Crash, match="pulled"):
        train_run(bench.request(tiny()), Saying(crash_once(1)), MemoryTracker())
    tracker = MemoryTracker()
    with pytest.raises(TrainingError, match=r"epoch-0001 was made with other experiment: digest .*--fresh"):
        train_run(bench.request(tiny(train={"weight_decay": 0.1})), InProcess(), tracker)
    assert tracker.record.states[-1][0] == "failed"
    assert "made with other experiment" in tracker.record.states[-1][1]


def test_a_checkpoint_that_does_not_fit_the_network_is_refused(bench, monkeypatch):
    with pytest.raises(Crash, match="pulled"):
        train_run(bench.request(tiny()), Saying(crash_once(1)), MemoryTracker())
    real = checkpoint.newest

    def renamed(*all_):
        found = real(*all_)
        found.state["model"]["another.name"] = found.state["model"].pop("body.conv1.weight")
        return found

    monkeypatch.setattr(checkpoint, "newest", renamed)
    with pytest.raises(TrainingError, match=r"checkpoint of epoch 1 does not fit the network. It is of another"):
        train_run(bench.request(tiny()), InProcess(), MemoryTracker())


def stop_after(epoch, **how):
    def on_report(now):
        if now == epoch:
            raise StopRun("early stopping", **how)

    return Saying(on_report)


def test_a_pruned_run_has_ended(bench):
    tracker = MemoryTracker()
    result = train_run(bench.request(tiny()), stop_after(2), tracker)
    assert (result.state, result.cause, result.metrics["epoch"]) == ("pruned", "early stopping", 2)
    assert tracker.record.states[-1] == ("pruned", "early stopping")
    assert set(tracker.record.epochs[2]) >= AT_THE_END
    assert Attempts.read(bench.request(tiny()).folder) == Attempts()
    assert bench.run(tiny()) == result


def test_an_interrupted_run_goes_on(bench, whole):
    tracker = MemoryTracker()
    result = train_run(bench.request(tiny()), stop_after(1, resumable=True), tracker)
    assert (result.state, result.metrics["epoch"]) == ("stopped", 1)
    assert train_run(bench.request(tiny()), InProcess(), tracker).state == "succeeded"
    assert tracker.record.states == [("running", ""), ("stopped", "early stopping"), ("running", ""), ("succeeded", "")]
    assert bench.weights() == whole[0]
    assert timeless(tracker.record.epochs.values()) == whole[1]


def test_a_stop_after_the_last_epoch_comes_too_late(bench, whole):
    result = train_run(bench.request(tiny()), stop_after(3), MemoryTracker())
    assert result.state == "succeeded"
    assert bench.weights() == whole[0]


def test_the_plain_network_has_no_filter_loss_but_an_instability(bench):
    tracker = MemoryTracker()
    result = train_run(bench.request(tiny(template={"shape": "none"})), InProcess(), tracker)
    assert result.metrics["filter_loss"] == 0
    assert 0 < result.metrics["instability"] < 1


def test_diverging_fails_with_the_reason_on_record(bench):
    tracker = MemoryTracker()
    spec = tiny(train={"learning_rate": 1e30, "final_learning_rate": 1e30})
    with pytest.raises(TrainingError, match="not finite in epoch 1, step 2 of 3"):
        train_run(bench.request(spec), InProcess(), tracker)
    state, why = tracker.record.states[-1]
    assert state == "failed"
    assert why.startswith("TrainingError: the loss is not finite in epoch 1")
    assert not (bench.root / "runs" / "run" / "result.json").exists()


def test_a_request_pickles(bench):
    request = bench.request(tiny(), tags={"a": "b"})
    assert pickle.loads(pickle.dumps(request)) == request


def test_the_final_model_takes_photographs(bench):
    with pytest.raises(TrainingError, match=r"run run has no weights.safetensors in .*: it has not ended yet"):
        final_model(bench.request(tiny()))
    bench.run(tiny())
    model, example = final_model(bench.request(tiny()))
    assert not model.training and example.shape == (2, 3, 64, 64)
    inputs = bench.inputs(tiny())
    inputs.net.load_state_dict({k: v for k, v in load(bench.weights()).items() if k != MEAN_KEY})
    inputs.net.eval()
    with inputs.loader([inputs.store.val_items]) as loader:
        for batch in loader:
            crops = torch.where(batch.mirrored[:, None, None, None], batch.rows.flip(3), batch.rows).float()
            torch.testing.assert_close(model(crops), inputs.net(inputs.net_input(batch)))


def test_a_run_says_what_it_is_and_what_came_of_it(bench):
    request = bench.request(tiny())
    assert run_title(request) == f"{request.run.label}: L1 β2"
    metrics = {"epoch": 3.0, "val_error": 0.0625, "instability": 0.12346}
    first, second = run_description(request, metrics).split("\n\n")
    assert first == f"**L1 β2**: `compact` on cow (`drawn_animals`, drawn), seed 0. Run `{request.run_id}`."
    assert second.startswith(
        f"After epoch 3 of {request.spec.train.epochs}: validation error **6.2 %** of images, location"
    )
    assert "**0.1235**" in second
    assert run_description(request, {}) == first
