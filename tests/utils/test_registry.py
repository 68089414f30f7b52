"""Implementations of this package and of others."""

from __future__ import annotations

import sys

import pytest

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.utils.registry import Registry

BUILT_IN = {"zero": "builtins:int", "decode": "json:loads", "absent": "no_such_module:x"}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one entry point of the group `some.group`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_module.py").write_text("class Theirs: pass\n")

    def install(package: str, name: str, value: str = "their_module:Theirs") -> None:
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[some.group]\n{name} = {value}\n")

    yield install
    sys.modules.pop("their_module", None)


def test_names_are_ours_in_their_order_then_others_sorted(install):
    install("pkg_b", "beta")
    install("pkg_a", "alpha")
    registry = Registry("some.group", BUILT_IN)
    assert registry.names() == ("zero", "decode", "absent", "alpha", "beta")
    assert [registry.provider(name) for name in ("zero", "alpha")] == ["", "pkg_a 1.2"]


def test_implementations_are_imported_when_they_are_loaded(install):
    install("pkg", "theirs")
    registry = Registry("some.group", BUILT_IN)
    assert "theirs" in registry.names() and "their_module" not in sys.modules
    assert registry.load("theirs").__name__ == "Theirs"
    assert registry.load("zero") is int
    with pytest.raises(IpcnnError, match="no_such_module:x cannot be imported: ModuleNotFoundError"):
        registry.load("absent")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ("pkg_b", "theirs", "json:dumps"),
            r"'theirs' of pkg_a 1.2 is already taken by pkg_b 1.2",
        ),
        (("pkg_b", "zero"), "'zero' of pkg_b 1.2 is already taken by ipcnn itself"),
        (("pkg_b", "other"), r"some.group has no 'their'\nIt has .*, theirs. Did you mean 'theirs'\?"),
    ],
)
def test_conflicts_and_unknown_names_are_errors(install, other, message):
    install("pkg_a", "theirs")
    install(*other)
    with pytest.raises(IpcnnError, match=message):
        Registry("some.group", BUILT_IN).load("their")


def test_two_packages_may_name_the_same_implementation(install):
    install("pkg_a", "theirs")
    install("pkg_b", "theirs")
    assert Registry("some.group", {}).names() == ("theirs",)
