"""Exit codes of the `ipcnn` command."""

from __future__ import annotations

RUN_FAILED = 1
"""A run failed, or `doctor` found something wrong."""
WRONG_REQUEST = 2
"""The request was wrong: a spec, an argument or a setting of the environment."""
STOPPED = 130
"""Stopped by a person; the code that shells give to Ctrl-C."""
