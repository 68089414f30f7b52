"""The `ipcnn` command in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipcnn_ray.cli.app import main


@pytest.fixture
def ipcnn(capsys) -> Callable[..., tuple[object, str, str]]:
    """Runs `ipcnn ARGUMENTS`; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        streams = capsys.readouterr()
        return ended.value.code or 0, streams.out, streams.err

    return run
