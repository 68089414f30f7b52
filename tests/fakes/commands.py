"""The `ipcnn` command in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from ipcnn_ray.cli.app import app


def run_command(*words: object, code: int = 0) -> Result:
    """Run `ipcnn WORDS`; its errors are raised, not printed."""
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done
