"""Runs from a spec to weights: what is tracked, and that an interrupted run ends as an uninterrupted one."""

import json
import pickle
import signal
from pathlib import Path

import pytest
import torch
import torchvision
from fakes.killed_run import killed_run
from fakes.training import MemoryRecord, MemoryTracker, OnReport, Runtime, as_threads, timeless, tiny
from safetensors.torch import load

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.tracking.lineage import host
from ipcnn_ray.tracking.storage import LocalStorage, open_storage
from ipcnn_ray.train import checkpoint, trainer
from ipcnn_ray.train.final_model import final_model
from ipcnn_ray.train.run_dir import MEAN_KEY, Attempts, RunTakenOver
from ipcnn_ray.train.run_metadata import ControlReference
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.files import sha256_of

BUCKET = "s3://bucket/runs/a"
EVERY_EPOCH = {"epoch", "train_loss", "filter_loss", "train_error", "learning_rate", "images_per_second", "seconds"}
EVALUATED = {
    "val_error",
    "val_loss",
    "val_images",
    *(f"{name}{layer}" for name in EVERY_RUN for layer in ("", "_conv4", "_conv5")),
    *(f"following_{name}" for name in ("head", "neck", "torso")),
    *(f"{name}_dropped" for name in EVERY_RUN if not METRICS.load(name).one_per_layer),
}
AT_THE_END = {"best_val_error", "epochs_to_converge", "area_under_error", "cpu_hours"}


def test_every_metric_is_there_under_its_name(bench):
    runtime, control = OnReport(), ControlReference(0.1, error=0.5, instability_weight=0.25)
    result = bench.run(tiny(eval={"every": 2}), runtime=runtime, references=control)
    epochs = bench.record.epochs
    assert set(epochs[1]) == EVERY_EPOCH
    assert set(epochs[2]) == EVERY_EPOCH | EVALUATED | {"combined"}
    assert set(epochs[3]) == EVERY_EPOCH | EVALUATED | {"combined"} | AT_THE_END
    assert [metrics["epoch"] for metrics in runtime.reported] == [1, 2, 3]
    assert runtime.reported[2] == epochs[3] == result.metrics
    last = epochs[3]
    assert last["instability"] == last["instability_conv5"] != last["instability_conv4"]
    # Six validation items: the standard error of the control's error is sqrt(0.25 / 6), more than one item.
    expected = 0.25 * last["instability"] / 0.1 + 0.75 * max(last["val_error"], (0.25 / 6) ** 0.5) / 0.5
    assert last["val_images"] == 6
    assert last["combined"] == pytest.approx(expected)
    assert last["filter_loss"] < 0


def test_what_is_tracked_and_that_a_run_that_has_ended_is_not_trained_again(bench):
    of_driver = {"code.commit": "abc", "host.cpu": "of another machine", "host.gpu": "8 x of another machine"}
    result = bench.run(tiny(train={"precision": "float32"}), tags=of_driver)
    record = bench.record
    assert (result.state, result.cause, result.metrics["epoch"]) == ("succeeded", "", 3)
    assert record.states == [("running", ""), ("succeeded", "")]
    assert record.params["template.beta"] == "2.0"
    assert record.params["data.landmarks"] == "head, neck, torso"
    expected = {"code.commit": "abc", "data.drawn": "true", "model.partial_weights": "false", "ipcnn.workers": "1"}
    expected |= {"ipcnn.precision": "float32", "ipcnn.attempts_lost": "0", "ipcnn.seed": "0"}
    assert (expected | host()).items() <= record.tags.items()
    assert record.files == {"weights/weights.safetensors": bench.weights()}
    assert bench.run(tiny(train={"precision": "float32"})) == result
    assert bench.record.states == []


def test_what_each_filter_follows_is_stored(bench):
    bench.run(tiny(eval={"every": 2, "layer": "conv4"}))
    text = bench.record.texts["filters.json"]
    assert (bench.root / "runs" / "run" / "filters.json").read_text() == text
    stored, last = json.loads(text), bench.record.epochs[3]
    assert stored["epoch"] == 3 and list(stored["layers"]) == ["conv4", "conv5"]
    for layer, filters in stored["layers"].items():
        assert [row["filter"] for row in filters] == list(range(32))
        assert {row["category"] for row in filters} == {"cow"}
        known = [row for row in filters if row["tracking"] is not None]
        assert sum(row["tracking"] for row in known) / len(known) == pytest.approx(last[f"landmark_tracking_{layer}"])
        assert all((row["landmark"] is not None) == (row["tracking"] > 0.3) for row in known)
        followed = [row["landmark"] for row in known if row["landmark"]]
        assert len(followed) / len(known) == pytest.approx(last[f"following_share_{layer}"])
        assert len(set(followed)) == last[f"landmarks_followed_{layer}"]
        if layer == "conv4":
            counts = {name: followed.count(name) for name in ("head", "neck", "torso")}
            assert counts == {name: last[f"following_{name}"] for name in counts} and sum(counts.values())
        measured = [row["instability"] for row in filters if row["instability"] is not None]
        assert sum(measured) / len(measured) == pytest.approx(last[f"instability_{layer}"])


def test_a_run_that_crashed_after_its_last_checkpoint_stores_what_its_filters_follow(bench, monkeypatch):
    bench.run(tiny(), "whole")
    expected = bench.record.texts
    monkeypatch.setattr(trainer.Trainer, "store_weights", crash_once(1, then=trainer.Trainer.store_weights))
    with pytest.raises(Crash):
        bench.run(tiny())
    assert bench.record.texts == {}
    bench.run(tiny())
    assert bench.record.texts == expected


def test_partial_weights_are_tagged(bench):
    bench.pretrained(["conv1"])
    bench.run(tiny(model={"weights": {"file": "w.npz", "layers": ["conv1"]}}, train={"epochs": 1}))
    assert bench.record.tags["model.partial_weights"] == "true"
    assert bench.record.tags["model.weights"] == "conv1"


def test_the_same_seed_gives_the_same_bits_and_another_does_not(bench, whole):
    torch.manual_seed(123)  # nothing is drawn from the global generators
    bench.run(tiny(), "again")
    assert bench.weights("again") == whole[0]
    bench.run(tiny().model_copy(update={"seed": 1}), "other")
    assert bench.weights("other") != whole[0]


class Crash(RuntimeError):
    pass


def crash_once(call, first=lambda *args, **kwargs: None, then=lambda *args, **kwargs: None):
    """Return a function that calls `first` and `then`, and raises Crash between them in its n-th call."""
    calls = 0

    def crashing(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = first(*args, **kwargs)
        if calls == call:
            raise Crash("pulled the plug")
        later = then(*args, **kwargs)
        return result if later is None else later

    return crashing


def in_report(monkeypatch, record):
    return OnReport(crash_once(2))


def between_checkpoint_and_metrics(monkeypatch, record):
    crash = crash_once(3)  # the first is what a resumed run repeats, then one per epoch
    record.fails = lambda method: crash() if method == "metrics" else None


def before_the_checkpoint(monkeypatch, record):
    monkeypatch.setattr(checkpoint, "save", crash_once(2, then=checkpoint.save))


def in_the_middle_of_the_checkpoint(monkeypatch, record):
    monkeypatch.setattr(checkpoint, "sha256_of", crash_once(4, checkpoint.sha256_of))


def in_the_evaluation(monkeypatch, record):
    monkeypatch.setattr(trainer, "evaluate", crash_once(2, trainer.evaluate))


def in_a_step(monkeypatch, record):
    monkeypatch.setattr(torch.optim.SGD, "step", crash_once(5, torch.optim.SGD.step))


def after_the_last_epoch(monkeypatch, record):
    record.fails = lambda method: crash_once(1)() if method == "file" else None


@pytest.mark.parametrize(
    "crash",
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
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(bench, whole, monkeypatch, crash):
    record = MemoryRecord()
    with monkeypatch.context() as patch:
        runtime = crash(patch, record)
        with pytest.raises(Crash, match="pulled the plug"):
            bench.run(tiny(), runtime=runtime, record=record)
    assert record.states[-1] == ("failed", "Crash: pulled the plug")
    record.fails = lambda method: None
    torch.manual_seed(99)
    result = bench.run(tiny(), record=record)
    assert (result.state, result.metrics["epoch"]) == ("succeeded", 3)
    assert (bench.weights(), record.history) == whole
    assert Attempts.read(bench.request(tiny()).folder) == Attempts(error=1)
    assert record.tags["ipcnn.attempts_error"] == "1"


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(bench, whole, fork_server):
    """A real SIGKILL."""
    for when in ("5", "checkpoint"):
        killed = fork_server.Process(target=killed_run, args=(bench.root, bench.cache, when))
        killed.start()
        killed.join(120)
        assert killed.exitcode == -signal.SIGKILL
        folder = bench.request(tiny(), f"killed-{when}").folder
        assert [path.name for path in (Path(folder) / "checkpoints").glob("epoch-*")] == ["epoch-0001"]
        bench.run(tiny(), f"killed-{when}")
        assert (bench.weights(f"killed-{when}"), bench.record.history) == whole
        assert Attempts.read(folder) == Attempts(lost=1)
        assert bench.record.tags["ipcnn.attempts_lost"] == "1"


def test_a_run_in_a_bucket_is_bit_for_bit_that_of_a_folder(bench, whole, fake_s3):
    def lost(epoch):
        if epoch == 2:
            raise KeyboardInterrupt  # nothing is written any more, as when a process is killed

    record = MemoryRecord()
    with pytest.raises(KeyboardInterrupt):
        bench.run(tiny(), runtime=OnReport(lost), record=record, folder=BUCKET)
    assert json.loads(open_storage(BUCKET).get("attempts.json"))["open"]
    bench.run(tiny(), record=record, folder=BUCKET)
    weights = open_storage(BUCKET).get("weights.safetensors")
    assert (weights, record.history) == whole
    assert record.files == {"weights/weights.safetensors": weights}
    assert record.tags["ipcnn.attempts_lost"] == "1"
    assert final_model(bench.request(tiny(), folder=BUCKET))[1].shape == (2, 3, 64, 64)


def test_a_process_that_was_taken_for_lost_writes_no_more(bench, fake_s3):
    elsewhere = OnReport(lambda epoch: Attempts.begin(BUCKET) if epoch == 1 else None)
    with pytest.raises(RunTakenOver, match="taken over"):
        bench.run(tiny(), runtime=elsewhere, folder=BUCKET)
    assert sorted(bench.record.epochs) == [1]
    assert bench.record.states == [("running", "")]
    assert Attempts.read(BUCKET).open


def test_a_process_that_is_taken_for_lost_while_its_storage_does_not_answer_records_no_epoch(
    bench, fake_s3, monkeypatch
):
    """Its checkpoint is stored when the network is back, and another process trains the epoch meanwhile."""

    def waits(folder, origin, history, state, real=checkpoint.save):
        real(folder, origin, history, state)
        if len(history) == 2:
            Attempts.begin(BUCKET)

    monkeypatch.setattr(checkpoint, "save", waits)
    with pytest.raises(RunTakenOver, match="taken over"):
        bench.run(tiny(), folder=BUCKET)
    assert sorted(bench.record.epochs) == [1]
    assert Attempts.read(BUCKET).open


def test_a_torn_checkpoint_is_named_in_the_record(bench, whole):
    record = MemoryRecord()
    with pytest.raises(Crash, match="pulled"):
        bench.run(tiny(), runtime=OnReport(crash_once(2)), record=record)
    torn = bench.root / "runs" / "run" / "checkpoints" / "epoch-0002" / "training.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    bench.run(tiny(), record=record)
    assert record.tags["ipcnn.damaged_checkpoints"].startswith("epoch-0002 (training.pt has")
    assert (bench.weights(), record.history) == whole


def test_a_checkpoint_of_another_experiment_or_network_is_refused(bench, monkeypatch):
    with pytest.raises(Crash, match="pulled"):
        bench.run(tiny(), runtime=OnReport(crash_once(1)))
    with pytest.raises(TrainingError, match=r"epoch-0001 was made with other experiment: digest .*--fresh"):
        bench.run(tiny(train={"weight_decay": 0.1}))
    state, cause = bench.record.states[-1]
    assert state == "failed" and "made with other experiment" in cause
    newest = checkpoint.newest

    def renamed(*args):
        restored = newest(*args)
        restored.state["model"]["another.name"] = restored.state["model"].pop("body.conv1.weight")
        return restored

    monkeypatch.setattr(checkpoint, "newest", renamed)
    with pytest.raises(TrainingError, match=r"checkpoint of epoch 1 does not fit the network. It is of another"):
        bench.run(tiny())


def stop_after(epoch, **how):
    def on_report(now):
        if now == epoch:
            raise StopRun("early stopping", **how)

    return OnReport(on_report)


def test_a_run_that_has_ended_keeps_no_state_of_training(bench, monkeypatch):
    """Killed while it deletes it, the run has ended all the same, and the next submission deletes the rest."""
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", crash_once(2, LocalStorage.delete))
        with pytest.raises(Crash, match="pulled"):
            bench.run(tiny())
    folder = Path(bench.request(tiny()).folder)
    assert len(list((folder / "checkpoints").rglob("*.*"))) == 4
    result, weights = bench.run(tiny()), bench.weights()
    assert result.state == "succeeded"
    for _ in range(2):
        checkpoint.drop_training_states(str(folder.parent), {folder.name, "another"})
        assert [path.name for path in (folder / "checkpoints").rglob("*.*")] == ["meta.json"]
    assert bench.run(tiny()) == result and bench.weights() == weights
    assert final_model(bench.request(tiny()))[1].shape == (2, 3, 64, 64)


def test_a_pruned_run_has_ended(bench):
    result = bench.run(tiny(), runtime=stop_after(2))
    assert (result.state, result.cause, result.metrics["epoch"]) == ("pruned", "early stopping", 2)
    assert bench.record.states[-1] == ("pruned", "early stopping")
    assert set(bench.record.epochs[2]) >= AT_THE_END
    assert Attempts.read(bench.request(tiny()).folder) == Attempts()
    assert bench.run(tiny()) == result


def test_an_interrupted_run_goes_on(bench, whole):
    record = MemoryRecord()
    result = bench.run(tiny(), runtime=stop_after(1, resumable=True), record=record)
    assert (result.state, result.metrics["epoch"]) == ("stopped", 1)
    # A stop after the last epoch comes too late.
    assert bench.run(tiny(), runtime=stop_after(3), record=record).state == "succeeded"
    assert record.states == [("running", ""), ("stopped", "early stopping"), ("running", ""), ("succeeded", "")]
    assert (bench.weights(), record.history) == whole


def test_published_weights_bring_their_mean(bench, monkeypatch):
    """The network, the cache of its frozen layers and the final model all subtract it, not that of the data."""
    published = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value
    torch.manual_seed(0)
    (bench.root / "weights").mkdir()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), new := bench.root / "weights" / "new.pth")
    file = new.rename(new.with_name(f"squeezenet-{sha256_of(new)[:8]}.pth"))
    monkeypatch.setattr(published, "url", f"https://127.0.0.1:1/{file.name}")
    model = {"network": "squeezenet1_1", "cut": "features.3", "image_size": 64, "dropout": 0.0}
    model["weights"] = {"torchvision": "DEFAULT"}
    train = {"epochs": 1, "freeze_through": "features.0"}
    cached = tiny(model=model, train=train)
    uncached = tiny(model=model, train=train, compute={"cache_frozen": False})
    results = [bench.run(spec, str(number)).metrics for number, spec in enumerate((cached, uncached))]
    first, second = timeless(results)
    assert first == second
    assert bench.record.tags["model.weights_digest"] == sha256_of(file)
    assert load(bench.weights("0"))[MEAN_KEY][:, 5, 7].tolist() == pytest.approx([123.675, 116.28, 103.53])
    final, example = final_model(bench.request(cached, "0"))
    shifted = final.net((example - torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)) / 64)
    assert torch.equal(final(example), shifted)


UNTRAINED = {"epochs": 0, "warmup_epochs": 2, "decay_epochs": 9}


def test_a_run_of_no_epochs_measures_the_initial_weights(bench):
    runtime, control = OnReport(), ControlReference(0.1, error=0.5, instability_weight=0.25)
    spec = tiny(train=UNTRAINED, eval={"every": 2})
    result = bench.run(spec, runtime=runtime, references=control)
    assert (result.state, result.cause, result.metrics["epoch"]) == ("succeeded", "", 0)
    metrics = {"epoch", "seconds", "combined", *EVALUATED, *AT_THE_END} - {"epochs_to_converge"}
    assert set(result.metrics) == metrics
    assert bench.record.epochs == {0: result.metrics} and runtime.reported == [result.metrics]
    assert result.metrics["val_error"] == result.metrics["best_val_error"] == result.metrics["area_under_error"]
    tensors = load(bench.weights())
    del tensors[MEAN_KEY]
    initial = bench.inputs(spec).net.state_dict()
    assert tensors.keys() == initial.keys()
    assert all(torch.equal(tensors[name], initial[name]) for name in initial)
    assert bench.record.files == {"weights/weights.safetensors": bench.weights()}
    assert final_model(bench.request(spec))[1].shape == (2, 3, 64, 64)
    assert bench.run(spec) == result
    assert bench.record.states == []


def test_a_run_of_no_epochs_has_the_numbers_of_the_network_before_training(bench):
    """A learning rate of almost 0 trains nothing."""
    untrained = bench.run(tiny(train={"epochs": 0}), "untrained").metrics
    frozen = {"epochs": 1, "learning_rate": 1.0e-30, "final_learning_rate": None, "momentum": 0.0}
    trained = bench.run(tiny(train=frozen), "trained").metrics
    expected = {name: trained[name] for name in EVALUATED}
    assert {name: untrained[name] for name in EVALUATED} == pytest.approx(expected, rel=1e-6)


def test_a_run_of_no_epochs_is_not_measured_again_when_it_is_resumed(bench, monkeypatch):
    spec, record = tiny(train={"epochs": 0}), MemoryRecord()
    record.fails = lambda method: crash_once(1)() if method == "file" else None
    with pytest.raises(Crash, match="pulled the plug"):
        bench.run(spec, record=record)
    record.fails = lambda method: None
    monkeypatch.setattr(trainer, "evaluate", None)
    result = bench.run(spec, record=record)
    assert (result.state, result.metrics) == ("succeeded", record.epochs[0])
    net = bench.inputs(spec).net.state_dict()
    assert torch.equal(load(bench.weights())["body.conv5.weight"], net["body.conv5.weight"])


def test_a_run_of_no_epochs_reads_frozen_layers_from_the_cache(bench):
    bench.pretrained(["conv1", "conv2"])
    model = {"weights": {"file": "w.npz", "layers": ["conv1", "conv2"]}}
    cached, computed = (
        bench.run(tiny(model=model, train={"epochs": 0, "freeze_through": "conv2"}, compute={"cache_frozen": on}), name)
        for on, name in ((True, "cached"), (False, "computed"))
    )
    assert timeless([cached.metrics]) == timeless([computed.metrics])


def test_two_workers_measure_the_initial_weights_as_one(bench):
    spec, record = tiny(train={"epochs": 0}), MemoryRecord()
    alone = bench.run(spec, "alone").metrics

    def work(runtime):
        return train_run(bench.request(spec, "two"), runtime, MemoryTracker(record)).metrics

    first, second = as_threads(2, work)
    assert timeless([first]) == timeless([second]) == record.history
    assert timeless([first])[0] == pytest.approx(timeless([alone])[0], rel=1e-6)


def test_the_plain_network_has_no_filter_loss_but_an_instability(bench):
    result = bench.run(tiny(template={"shape": "none"}, train={"epochs": 1}))
    assert result.metrics["filter_loss"] == 0
    assert 0 < result.metrics["instability"] < 1


def test_diverging_fails_with_the_reason_on_record(bench):
    spec = tiny(train={"learning_rate": 1e30, "final_learning_rate": 1e30})
    with pytest.raises(TrainingError, match="not finite in epoch 1, step 2 of 3"):
        bench.run(spec)
    state, cause = bench.record.states[-1]
    assert state == "failed"
    assert cause.startswith("TrainingError: the loss is not finite in epoch 1")
    assert not (bench.root / "runs" / "run" / "result.json").exists()


def test_progress_of_steps_and_of_the_evaluation(bench):
    class Listening(Runtime):
        def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
            updates.setdefault(what, []).append((done, total, unit))

    updates = {}
    bench.run(tiny(train={"epochs": 1}), runtime=Listening())
    assert updates["training epoch 1"] == [(step, 3, "steps") for step in range(3)]
    evaluated = updates["evaluating epoch 1"]
    assert evaluated[0][0] == 0 and all(done < total for done, total, _ in evaluated)


def test_a_run_with_a_pooled_head_trains_and_its_model_is_read_back(bench):
    spec = tiny(model={"head": "max_pool"}, train={"epochs": 1})
    bench.run(spec)
    model, example = final_model(bench.request(spec))
    assert model(example).shape == (2,)
    initial = bench.inputs(spec).net.head["fc6"].weight
    assert initial.shape == (1, 32) and not torch.equal(model.net.head["fc6"].weight, initial)


def test_a_request_pickles(bench):
    request = bench.request(tiny(), tags={"a": "b"})
    assert pickle.loads(pickle.dumps(request)) == request


def test_the_final_model_takes_photographs(bench):
    with pytest.raises(TrainingError, match=r"run run has no weights.safetensors in .*: it has not ended yet"):
        final_model(bench.request(tiny()))
    spec = tiny(train={"epochs": 1})
    bench.run(spec)
    model, example = final_model(bench.request(spec))
    assert not model.training and example.shape == (2, 3, 64, 64)
    inputs = bench.inputs(spec)
    inputs.net.load_state_dict({k: v for k, v in load(bench.weights()).items() if k != MEAN_KEY})
    inputs.net.eval()
    with inputs.loader([inputs.store.val_items]) as loader:
        for batch in loader:
            crops = torch.where(batch.mirrored[:, None, None, None], batch.rows.flip(3), batch.rows).float()
            torch.testing.assert_close(model(crops), inputs.net(inputs.net_input(batch)))
