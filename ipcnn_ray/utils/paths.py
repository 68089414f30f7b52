"""Locations of data, weights, caches, storage and record, from environment variables; never from a spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Absolute locations; all workers of a machine may share them."""

    home: Path
    """IPCNN_HOME, default ~/.ipcnn: the embedded tracking database, runs and caches."""
    data: Path | None
    """IPCNN_DATA: folder of real datasets (holds `voc/`), or an s3:// URL of one."""
    weights: Path | None
    """IPCNN_WEIGHTS: folder of pretrained weight files."""
    cache: Path
    """IPCNN_CACHE, default <home>/cache: decoded crops and cached features; may be deleted."""
    storage: str
    """IPCNN_STORAGE, default <home>/runs: checkpoints and search state; a path or an s3:// URL."""
    tracking_uri: str
    """MLFLOW_TRACKING_URI, default sqlite:///<home>/mlflow.db."""
    artifacts: str
    """Artifact root of new MLflow experiments: <storage>/artifacts if the storage is a URL, else <home>/artifacts.
    A tracking server uses its own root instead of a folder."""
    data_url: str = ""
    """IPCNN_DATA if it is an s3:// URL; train/data_sync.py sets `data` to a local copy."""
    weights_url: str = ""
    """IPCNN_WEIGHTS if it is an s3:// URL."""

    def make_home(self) -> None:
        """Create IPCNN_HOME, which nobody else can enter. A folder that exists keeps its permissions."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> Paths:
        """Return the paths that environment variables name. env: in place of those of this process."""
        env = os.environ if env is None else env
        home = Path(env.get("IPCNN_HOME") or Path.home() / ".ipcnn").expanduser().absolute()

        def folder(name: str) -> Path | None:
            return Path(env[name]).expanduser().absolute() if env.get(name) and not url(name) else None

        def url(name: str) -> str:
            return env[name] if "://" in env.get(name, "") else ""

        storage = env.get("IPCNN_STORAGE") or str(home / "runs")
        if "://" not in storage:
            storage = str(Path(storage).expanduser().absolute())
        return cls(
            home=home,
            data=folder("IPCNN_DATA"),
            weights=folder("IPCNN_WEIGHTS"),
            cache=folder("IPCNN_CACHE") or home / "cache",
            storage=storage,
            data_url=url("IPCNN_DATA"),
            weights_url=url("IPCNN_WEIGHTS"),
            tracking_uri=env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db",
            artifacts=f"{storage.rstrip('/')}/artifacts" if "://" in storage else str(home / "artifacts"),
        )
