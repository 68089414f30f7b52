"""Plausible recorded experiments, without training: for tests of reports."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from ipcnn_ray.tracking.tracker import RecordedRun, RunRecord

TAGS = {
    "data.kind": "drawn_animals",
    "data.drawn": "true",
    "data.digest": "1cd79a379665c979",
    "model.weights": "none",
    "model.partial_weights": "false",
    "code.version": "0.2.0",
    "code.commit": "94bb8e8a6ebb7c51ac0f675a18578975ac15099b",
    "code.dirty": "false",
    "env.torch": "2.15.0",
    "ipcnn.device": "cpu",
    "ipcnn.workers": "1",
    "ipcnn.compute.cpus_per_worker": "1",
    "ipcnn.attempts_lost": "0",
}
PARAMS = {
    "data.kind": "drawn_animals",
    "data.category": "cow",
    "model.network": "compact",
    "train.epochs": "12",
    "eval.convergence_share": "0.9",
}
PLAIN = {"template.shape": "none"}
SEARCH = {
    "kind": "space",
    "algorithm": "tpe",
    "trials": 60,
    "space": {
        "template.norm": {"choice": ["l1", "l2"]},
        "template.beta": {"log_uniform": [1, 8]},
        "template.gamma": {"log_uniform": [0.5, 4]},
    },
}
FAILED = "TrainingError: the loss is not finite in epoch 3"


def gradient(norm: str, beta: float = 2.0) -> dict[str, str]:
    return {"template.shape": "gradient", "template.norm": norm, "template.beta": str(beta)}


def uniform(norm: str, beta: float = 2.0, gamma: float = 2.0) -> dict[str, str]:
    return {**gradient(norm, beta), "template.shape": "uniform", "template.gamma": str(gamma)}


def curve(epochs: int, end: float, speed: float, noise: random.Random) -> list[tuple[int, float]]:
    """Validation error by epoch: falls from 0.4 towards `end`."""
    return [
        (epoch, max(0.0, end + (0.4 - end) * math.exp(-speed * epoch) + noise.gauss(0, 0.006)))
        for epoch in range(1, epochs + 1) or [0]
    ]


class FakeTracker:
    """A record in memory: what reports read of the protocol, and the files that they store."""

    uri = "memory"

    def __init__(self) -> None:
        self.runs: dict[str, list[RecordedRun]] = {}
        self.histories: dict[tuple[str, str], list[tuple[int, float]]] = {}
        self.texts: dict[tuple[str, str], str] = {}
        self.stored: dict[str, list[str]] = {}

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        return [run for run in reversed(self.runs.get(experiment, [])) if run_id in (None, run.run_id)]

    def experiments(self) -> list[str]:
        return list(self.runs)

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        return self.histories.get((handle, metric), [])

    def read(self, handle: str, path: str) -> str | None:
        return self.texts.get((handle, path))

    def attach(self, handle: str) -> _Stored:
        return _Stored(self, handle)

    def parent(self, name: str, *, spec: Mapping[str, object] | None = None, goals: str = "combined") -> str:
        """Opens an experiment; its handle."""
        run_id = f"{name}-12345678"
        tags = {**TAGS, "ipcnn.goals": goals, "ipcnn.control": "plain"}
        self.runs[name] = [
            RecordedRun.from_tags(run_id, "succeeded", "", tags, {}, handle=run_id, started=0.0, ended=7200.0)
        ]
        if spec is not None:
            self.texts[run_id, "spec.yaml"] = yaml.safe_dump({"name": name, **spec})
        return run_id

    def child(
        self,
        name: str,
        label: str,
        params: Mapping[str, str],
        *,
        instability: float = 0.13,
        error: float = 0.1,
        epochs: int = 12,
        speed: float = 0.5,
        state: str = "succeeded",
        why: str = "",
        origin: str = "named",
        seed: int = 0,
        tags: Mapping[str, str] | None = None,
        more: Mapping[str, float] | None = None,
    ) -> None:
        """One run of an experiment with a plausible history; of a failed one nothing but its params."""
        run_id = f"{name}-12345678-{label}"
        group = label.partition(".")[0]
        all_tags = {**TAGS, "ipcnn.label": label, "ipcnn.group": group, "ipcnn.origin": origin, "ipcnn.seed": str(seed)}
        all_tags |= tags or {}
        metrics: dict[str, float] = {}
        if state != "failed":
            errors = curve(epochs, error, speed, random.Random(run_id))
            errors[-1] = (epochs, error)
            self.histories[run_id, "val_error"] = errors
            self.histories[run_id, "seconds"] = [(epoch, 4.0) for epoch in range(1, epochs + 1)]
            converged = next(epoch for epoch, one in errors if one <= min(e for _, e in errors) / 0.9)
            metrics = {"epoch": float(epochs), "val_error": error, "instability": instability, "seconds": 4.0}
            metrics |= {
                "images_per_second": 280.0,
                "combined": (instability / 0.14 * error / 0.1) ** 0.5,
                **(more or {}),
            }
            if state == "succeeded":
                metrics |= {"best_val_error": min(e for _, e in errors)}
                metrics |= {"epochs_to_converge": float(converged)} if epochs else {}
                metrics |= {"area_under_error": 0.15, "cpu_hours": epochs * 4 / 3600}
        number = len(self.runs[name])
        times = {"started": 60.0 * number, "ended": 60.0 * number + 48}
        facts = {"handle": run_id, "parent": f"{name}-12345678", "metrics": metrics, **times}
        self.runs[name].append(RecordedRun.from_tags(run_id, state, why, all_tags, {**PARAMS, **params}, **facts))


class _Stored:
    """A run that files are stored with."""

    def __init__(self, tracker: FakeTracker, handle: str) -> None:
        self.tracker, self.handle = tracker, handle

    def log_file(self, local: Path, folder: str) -> None:
        self.tracker.stored.setdefault(self.handle, []).append(f"{folder}/{local.name}")


def half_failed_search(trials: int = 60) -> FakeTracker:
    """Five named runs, and a search in which every second trial failed and some others were stopped early."""
    tracker, noise = FakeTracker(), random.Random(0)
    tracker.parent("sweep", spec={"search": {**SEARCH, "trials": trials}})
    named = {"plain": PLAIN, "l1": gradient("l1"), "l2": gradient("l2"), "uniform_l1": uniform("l1")}
    for index, (label, params) in enumerate(named.items()):
        values = {"instability": 0.14 - 0.004 * index, "error": 0.1 + 0.006 * index, "speed": 0.3 + 0.2 * (index == 3)}
        tracker.child("sweep", label, params, **values)
    for number in range(trials):
        label = f"r{number:08x}"
        beta, gamma = math.exp(noise.uniform(0, math.log(8))), math.exp(noise.uniform(-0.69, math.log(4)))
        params = {**uniform(noise.choice(["l1", "l2"]), beta, gamma), "template.tau": "0.1"}
        radius = min(gamma / beta, 1.5)
        values = {"instability": 0.125 + 0.011 * radius + noise.gauss(0, 0.002)}
        values |= {"error": max(0.03, 0.16 - 0.05 * radius + noise.gauss(0, 0.01))}
        values["origin"] = "sampled"
        if number % 2:
            tracker.child("sweep", label, params, state="failed", why=FAILED, origin="sampled")
        elif number % 6 == 0:
            why = "early stopping at epoch 4 of 12"
            tracker.child("sweep", label, params, epochs=4, state="pruned", why=why, speed=0.2, **values)
        else:
            tracker.child("sweep", label, params, **values)
    return tracker


def many_runs(count: int = 1000) -> FakeTracker:
    """A random search: the control, and uniform templates of all radii."""
    tracker, noise = FakeTracker(), random.Random(1)
    space = {"template.beta": {"log_uniform": [1, 8]}, "template.gamma": {"log_uniform": [0.5, 4]}}
    tracker.parent(
        "many", spec={"search": {"kind": "space", "algorithm": "random", "trials": count - 1, "space": space}}
    )
    tracker.child("many", "plain", PLAIN)
    for number in range(count - 1):
        values = {"instability": noise.gauss(0.13, 0.01), "error": noise.uniform(0.05, 0.2)}
        tracker.child(
            "many",
            f"r{number:08x}",
            uniform("l1", noise.uniform(1, 8), noise.uniform(0.5, 4)),
            origin="sampled",
            **values,
        )
    return tracker


def repeated_templates(
    seeds: int = 6, categories: Sequence[str] = ("cow",), network: str = "compact", name: str = "templates"
) -> FakeTracker:
    """Plain and the paper's four templates over several seeds, an experiment for each category."""
    tracker = FakeTracker()
    for category in categories:
        experiment = name if len(categories) == 1 else f"{name}_{category}"
        tracker.parent(experiment, spec={"search": {"kind": "named", "repeats": seeds}})
        for seed in range(seeds):
            for label, params in _templates():
                noise = random.Random(f"{category} {label} {seed}")
                kind = label.partition("_")[0]
                tracker.child(
                    experiment,
                    f"{label}.seed{seed}",
                    {**params, "data.category": category, "model.network": network},
                    instability={"plain": 0.14, "uniform": 0.134}.get(kind, 0.122) + noise.gauss(0, 0.002),
                    error={"plain": 0.08, "uniform": 0.09}.get(kind, 0.12) + noise.gauss(0, 0.008),
                    speed=0.7 if kind == "uniform" else 0.3,
                    seed=seed,
                )
    return tracker


def _templates() -> Iterator[tuple[str, dict[str, str]]]:
    yield "plain", PLAIN
    for norm in ("l1", "l2"):
        yield norm, gradient(norm)
        yield f"uniform_{norm}", uniform(norm)


def written(tracker: FakeTracker, real: object) -> None:
    """The same record in a real tracker, metric by metric."""
    for name, runs in tracker.runs.items():
        real.prepare(name)  # type: ignore[attr-defined]
        for run in runs:
            if run.parent:
                (parent,) = real.find(name, run.parent)  # type: ignore[attr-defined]
                record: RunRecord = real.open_child(name, run.run_id, parent.handle)  # type: ignore[attr-defined]
            else:
                record = real.open_parent(name, run.run_id)  # type: ignore[attr-defined]
            for (handle, path), text in tracker.texts.items():
                if handle == run.handle:
                    record.log_text(text, path)
            record.set_tags(run.tags)
            record.log_params(run.params)
            errors = tracker.histories.get((run.handle, "val_error"), [])
            history = [{"epoch": float(epoch), "val_error": error, "seconds": 4.0} for epoch, error in errors]
            if history:
                history[-1] |= run.metrics
            record.log_metrics(history)
            record.set_state(run.state, run.cause)
