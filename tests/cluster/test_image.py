"""The image: Dockerfile, pinned versions, the scripts in it. No container engine is needed, so none is proven here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCRIPTS = [ROOT / "cluster" / "ipcnn-mlflow", ROOT / "cluster" / "ipcnn-healthy"]
PINS = dict(
    line.split("==") for line in (ROOT / "cluster" / "constraints.txt").read_text().splitlines() if "==" in line
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in whole.splitlines()]


def ignored(path: str, rules: list[str]) -> bool:
    """Whether the builder leaves a file out: the last rule that fits it decides."""
    out = False
    for rule in rules:
        keep, pattern = rule.startswith("!"), rule.removeprefix("!")
        fits = pattern == "*" or path == pattern or path.startswith(f"{pattern}/")
        fits |= pattern.startswith("**/") and any(Path(part).match(pattern[3:]) for part in path.split("/"))
        out = not keep if fits else out
    return out


@pytest.fixture
def hadolint() -> str:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("needs hadolint: pip install -e .[dev]")
    return found


def test_hadolint_finds_nothing_and_can_find_something(hadolint, tmp_path):
    def lint(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([hadolint, str(file)], capture_output=True, text=True)

    done = lint(ROOT / "Dockerfile")
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM ubuntu\nRUN cd /tmp && sudo apt-get install python3\n")
    done = lint(tmp_path / "Dockerfile")
    assert done.returncode == 1
    assert {"DL3006", "DL3004"} <= set(re.findall(r"DL\d+", done.stdout))


def test_one_pinned_base_a_user_and_a_health_check():
    said = instructions(DOCKERFILE)
    (base,) = [arguments.partition("=")[2] for name, arguments in said if name == "ARG"]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)
    assert {arguments.split()[0] for name, arguments in said if name == "FROM"} == {"${BASE}"}
    after = [arguments for name, arguments in said if name == "USER"]
    assert after == ["1000"]
    assert [name for name, _ in said].index("USER") > [name for name, _ in said].index("COPY")
    assert any(name == "HEALTHCHECK" and "ipcnn-healthy" in arguments for name, arguments in said)
    assert any(name == "ENV" and "RAY_AUTH_MODE=token" in arguments for name, arguments in said)


def test_what_is_copied_is_there_and_is_sent_to_the_builder():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    sources = [
        source
        for name, arguments in instructions(DOCKERFILE)
        if name == "COPY" and "--from" not in arguments
        for source in [word for word in arguments.split() if not word.startswith("--")][:-1]
    ]
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source, rules), source
    for left_out in (".git/config", ".venv/bin/python", "tests/x.py", "ipcnn_ray/__pycache__/a.pyc", "specs/LOG.md"):
        assert ignored(left_out, rules), left_out


def test_the_pins_are_within_the_ranges_and_cover_them():
    server = [Requirement(one) for one in PROJECT["optional-dependencies"]["server"]]
    for wanted in [*map(Requirement, PROJECT["dependencies"]), *server]:
        assert PINS[wanted.name.lower()] in wanted.specifier, wanted
    assert len(PINS) > 100


def test_the_pins_are_one_closed_set():
    """Where a package of the image is installed here in the same version, all that it needs is pinned."""
    from importlib import metadata

    environment = {**default_environment(), "python_version": "3.12", "python_full_version": "3.12.3", "extra": ""}
    seen = 0
    for name, version in PINS.items():
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if there.version != version:
            continue
        seen += 1
        for wanted in map(Requirement, there.requires or []):
            if wanted.marker is None or wanted.marker.evaluate(environment):
                pinned = PINS.get(wanted.name.lower().replace("_", "-").replace(".", "-"))
                assert pinned is not None and wanted.specifier.contains(pinned, prereleases=True), (name, str(wanted))
    assert seen > 0


def test_the_sudo_of_the_image_is_for_the_two_files_of_the_launcher():
    (command,) = [
        found
        for name, arguments in instructions(DOCKERFILE)
        if name == "RUN"
        for found in re.findall(r"(printf 'ray ALL.*?) > /etc/sudoers\.d/ray", arguments)
    ]
    rules = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    allowed = "ray ALL=(root) NOPASSWD: /usr/bin/chown 1000\\:1000 /home/ray/ray_bootstrap_"
    assert rules == [f"{allowed}config.yaml", f"{allowed}key.pem"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("linter", ["bash -n", "shellcheck"])
def test_scripts_parse_and_shellcheck_finds_nothing(script, linter):
    assert os.access(script, os.X_OK)
    if shutil.which(linter.split()[0]) is None:
        pytest.skip(f"needs {linter}")
    done = subprocess.run([*linter.split(), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "credentials is not there"),
        ("[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = short\n", "at least 16 characters"),
        ("[mlflow]\nmlflow_tracking_password = long-enough-but-no-name\n", "a name, and a password"),
    ],
)
def test_mlflow_does_not_start_without_a_password(tmp_path, content, told):
    if content:
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text(content)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([str(SCRIPTS[0]), "serve"], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "mlflow").exists()


def test_the_credentials_file_is_the_one_that_mlflow_reads(tmp_path):
    """AWS mounts it there, and MLflow's clients read the two names that the server's script reads."""
    mounts = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())["file_mounts"]
    assert {"/home/ray/.mlflow/credentials", "/home/ray/.ray/auth_token"} <= set(mounts)
    (tmp_path / ".mlflow").mkdir()
    file = tmp_path / ".mlflow" / "credentials"
    file.write_text("[mlflow]\nmlflow_tracking_username = ipcnn\nmlflow_tracking_password = a b=c\n")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    code = "from mlflow.utils.credentials import read_mlflow_creds as read; c = read(); print(c.username, c.password)"
    client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert client.stdout.strip() == "ipcnn a b=c"
    function = re.search(r"^credential\(\) \{.*?^\}", SCRIPTS[0].read_text(), re.S | re.M)
    assert function
    ask = f"credentials={file}\n{function[0]}\necho $(credential username) $(credential password)"
    server = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=env)
    assert server.stdout == client.stdout


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_installs_of_the_image_resolve(tmp_path):
    """Every `pip install` of the Dockerfile from an index, for the image's Python, with the versions pinned."""
    commands = [
        words
        for name, arguments in instructions(DOCKERFILE)
        if name == "RUN"
        for words in (part.split() for part in arguments.split("&&"))
        if words[:2] == ["pip", "install"]
    ]
    assert [words[2] for words in commands] == ["--constraint"]
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "iniconfig"]
    if subprocess.run(probe, capture_output=True, cwd=ROOT).returncode:
        pytest.skip("needs a package index")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]
    target = ["--python-version", "3.12", "--only-binary=:all:", "--target", str(tmp_path / "t"), "--ignore-installed"]
    for words in commands:
        place = [one for word in words[2:] for one in (wanted if word.strip('"') == ".[server]" else [word])]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", *target, *place]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
