"""The image: Dockerfile, pinned versions, the scripts in it. test_image_runs.py builds and runs it."""

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
BASE_PYTHONS = ("3.11", "3.12", "3.13")
"""Pythons of the bases that the image may be built on."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pin_files(torch: str = "cuda") -> list[str]:
    return [(ROOT / "cluster" / name).read_text() for name in ("constraints.txt", f"constraints-{torch}.txt")]


def environment(python: str) -> dict[str, str]:
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}
    return {**default_environment(), **linux, "python_version": python, "python_full_version": f"{python}.5"}


def pins(python: str = "3.13", torch: str = "cuda") -> dict[str, str]:
    """Name -> version of all packages that the image installs on this Python."""
    lines = [line.split("#")[0].rstrip("\\ ") for text in pin_files(torch) for line in text.splitlines()]
    found = [Requirement(line) for line in lines if "==" in line]
    here = [one for one in found if one.marker is None or one.marker.evaluate(environment(python))]
    assert len({one.name for one in here}) == len(here)
    return {one.name: str(one.specifier).removeprefix("==") for one in here}


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
    given = dict(arguments.split("=") for name, arguments in said if name == "ARG")
    assert re.fullmatch(r"debian:\d+\.\d+-slim", given["BASE"])
    assert given["TORCH"] == "cuda"
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
    for source in [source.replace("${TORCH}", torch) for source in sources for torch in ("cuda", "cpu")]:
        assert (ROOT / source).exists(), source
        assert not ignored(source, rules), source
    for left_out in (".git/config", ".venv/bin/python", "tests/x.py", "ipcnn_ray/__pycache__/a.pyc", "specs/LOG.md"):
        assert ignored(left_out, rules), left_out


@pytest.mark.parametrize("python", BASE_PYTHONS)
@pytest.mark.parametrize("torch", ["cuda", "cpu"])
def test_the_pins_are_within_the_ranges_and_cover_them(python, torch):
    pinned = pins(python, torch)
    server = [Requirement(one) for one in PROJECT["optional-dependencies"]["server"]]
    for wanted in [*map(Requirement, PROJECT["dependencies"]), *server]:
        assert pinned[wanted.name.lower()] in wanted.specifier, wanted
    assert len(pinned) > 100
    if torch == "cpu":
        for name in ("torch", "torchvision"):
            assert pinned[name] == f"{pins(python)[name]}+cpu"


def test_every_pin_from_pypi_has_hashes():
    for text in pin_files():
        blocks = re.split(r"^(?=\w)", text, flags=re.M)[1:]
        assert [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)] == []
    assert [line for text in pin_files("cpu") for line in text.splitlines() if "://" in line] == [
        "--index-url https://download.pytorch.org/whl/cpu"
    ]


@pytest.mark.parametrize("python", BASE_PYTHONS)
def test_the_pins_are_one_closed_set(python):
    """Where a package of the image is installed here in the same version, all that it needs is pinned."""
    from importlib import metadata

    pinned, seen = pins(python), 0
    left_out = {"triton"}  # see constraints.py
    for name, version in pinned.items():
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if there.version != version:
            continue
        seen += 1
        for wanted in map(Requirement, there.requires or []):
            if wanted.marker is None or wanted.marker.evaluate(environment(python)):
                needed = wanted.name.lower().replace("_", "-").replace(".", "-")
                fits = needed in pinned and wanted.specifier.contains(pinned[needed], prereleases=True)
                assert fits or needed in left_out, (name, str(wanted))
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
def test_the_pins_with_hashes_resolve(tmp_path):
    """The `pip install` of the Dockerfile that has hashes, from an index, for the Python of the base."""
    commands = [
        words
        for name, arguments in instructions(DOCKERFILE)
        if name == "RUN"
        for words in (part.split() for part in arguments.split("&&"))
        if words[:2] == ["pip", "install"]
    ]
    hashed = [words for words in commands if "--require-hashes" in words]
    assert len(commands) == 3 and len(hashed) == 1
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "iniconfig"]
    if subprocess.run(probe, capture_output=True, cwd=ROOT).returncode:
        pytest.skip("needs a package index")
    target = ["--python-version", "3.13", "--target", str(tmp_path / "t"), "--ignore-installed"]
    command = [sys.executable, "-m", *hashed[0], "--quiet", "--dry-run", *target]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "cluster")
    assert done.returncode == 0, done.stderr
