"""Optuna's journal in a bucket: a file for everything that is added to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from ipcnn_ray.tracking.storage import Storage


class JournalOfFiles(BaseJournalBackend):
    """Written by one process at a time, the experiment's driver, which reads what is there once."""

    def __init__(self, files: Storage) -> None:
        self.files = files
        self._logs: list[dict[str, Any]] | None = None
        self._next = 0

    def _read(self) -> list[dict[str, Any]]:
        if self._logs is None:
            keys = self.files.list()
            self._logs = [one for key in keys for one in json.loads(self.files.get(key))]
            self._next = int(keys[-1].removesuffix(".json")) + 1 if keys else 0
        return self._logs

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._read()[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        known = self._read()
        self.files.put_bytes(json.dumps(logs).encode(), f"{self._next:08}.json")
        self._next += 1
        known.extend(json.loads(json.dumps(logs)))
