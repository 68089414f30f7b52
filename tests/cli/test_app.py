"""How soon a command begins: what it needs is imported when it needs it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from ipcnn_ray.cli.app import main

HEAVY = ("torch", "ray", "mlflow", "matplotlib", "scipy", "optuna", "numpy", "boto3", "torchvision", "pydantic", "yaml")


def imported_by(statement: str) -> set[str]:
    """Which of HEAVY a fresh Python has imported after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_command_starts_without_what_it_may_not_need():
    assert imported_by("import ipcnn_ray.cli.app") == set()
    assert "numpy" in imported_by("import ipcnn_ray.report.style")  # the look itself


def test_a_process_that_crashes_leaves_no_file_with_its_memory():
    code = (
        "import resource\nfrom ipcnn_ray.cli.app import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    unlimited = ["bash", "-c", 'ulimit -S -c "$(ulimit -H -c)"; exec "$@"', "bash", sys.executable, "-c", code]
    done = subprocess.run(unlimited, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str((0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@pytest.mark.parametrize("uri", ["ftp://bob:secret@h/x", "http://bob:secret@h:port", "http://bob:secret@127.0.0.1:9"])
def test_no_password_is_shown_even_with_the_traceback(uri, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["list", "--debug"])
    shown = capsys.readouterr()
    assert "Traceback" in shown.err and "secret" not in shown.err + shown.out


@pytest.mark.slow
def test_a_network_of_the_table_is_built_without_torchvision():
    assert "torchvision" not in imported_by("import ipcnn_ray.models.build")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ipcnn sub", "submit"),
        ("ipcnn submit --fr", "--fresh"),
        ("ipcnn logs first", "first-1a2b3c4d"),
        ("ipcnn status s", "second-1a2b3c4d"),
        ("ipcnn validate specs/co", ""),  # the shell completes files where nothing is offered
    ],
)
def test_the_shell_completes_commands_options_and_experiments(words, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "logs").mkdir()
    for name in ("first", "second"):
        (tmp_path / "logs" / f"{name}-1a2b3c4d.log").touch()
    last = str(len(words.split()) - 1)
    settings = {"IPCNN_HOME": str(tmp_path), "_IPCNN_COMPLETE": "complete_bash", "COMP_WORDS": words}
    for name, value in {**settings, "COMP_CWORD": last}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=r"^0$"):
        main([])
    assert capsys.readouterr().out.strip() == expected
