"""Imports only go down. The tables below are the architecture: edit them in review, not in passing."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1] / "ipcnn_ray"
# room -> rooms it may import
MAY: dict[str, set[str]] = {
    "errors": set(),
    "utils": {"errors"},
    "spec": {"errors", "utils"},
    "core": {"utils"},
    "tracking": {"errors", "utils"},
    "report": {"errors", "utils", "spec", "core", "tracking"},
    "models": {"errors", "utils", "spec", "core"},
    "data": {"errors", "utils", "spec", "core"},
    "train": {"errors", "utils", "spec", "core", "models", "data", "tracking"},
    "on_ray": {"errors", "utils", "spec", "core", "models", "data", "tracking", "report", "train"},
    "cli": {"errors", "utils", "spec", "core", "models", "data", "tracking", "train", "report", "on_ray"},
}
# room -> third-party packages it may import
THIRD: dict[str, set[str]] = {
    "errors": set(),
    "utils": {"filelock", "numpy", "scipy", "h5py"},
    "spec": {"pydantic", "pydantic_core", "yaml"},
    "core": {"torch", "scipy"},
    "tracking": set(),
    "report": {"numpy", "matplotlib", "scipy", "pydantic", "pandas", "PIL"},
    "models": {"torch", "torchvision", "numpy", "safetensors"},
    "data": {"torch", "numpy", "PIL", "pydantic"},
    "train": {"torch", "numpy", "safetensors", "psutil"},
    "on_ray": {"torch", "optuna", "pyarrow"},
    "cli": {"typer", "rich", "pydantic", "pandas"},
}
# vendor -> the only place that may import it
ONLY = {
    "ray": "on_ray/",
    "mlflow": "tracking/mlflow_tracker.py",
    "bokeh": "report/interactive.py",
    "boto3": "tracking/s3_storage.py",
    "botocore": "tracking/s3_storage.py",
    "timm": "models/timm_networks.py",
}


def broken_imports(root: Path) -> list[str]:
    bad = []
    for file in sorted(root.rglob("*.py")):
        rel = file.relative_to(root).as_posix()
        room = rel.split("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level:
                bad.append(f"{rel}:{node.lineno} relative import")
                continue
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [f"{module}.{a.name}" for a in node.names] if module == "ipcnn_ray" else [module]
            else:
                continue
            for name in dict.fromkeys(names):
                top, *rest = name.split(".")
                here = f"{rel}:{node.lineno} imports {name}"
                if top == "ipcnn_ray":
                    if rest and rest[0] not in {room, "__version__"} and rest[0] not in MAY[room]:
                        bad.append(f"{here}: {room}/ may import only {sorted(MAY[room])}")
                elif top in ONLY:
                    if not rel.startswith(ONLY[top]):
                        bad.append(f"{here}: only {ONLY[top]} may")
                elif top not in sys.stdlib_module_names and top not in THIRD[room]:
                    bad.append(f"{here}: not allowed in {room}/")
    return bad


def prints(root: Path) -> list[str]:
    """Calls of print outside cli/."""
    return [
        f"{file.relative_to(root).as_posix()}:{node.lineno}"
        for file in sorted(root.rglob("*.py"))
        if file.relative_to(root).parts[0] != "cli"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def repeated_names(root: Path) -> list[str]:
    """Module names that occur twice."""
    names = Counter(file.name for file in root.rglob("*.py") if file.name != "__init__.py")
    return sorted(name for name, count in names.items() if count > 1)


def cycles(root: Path) -> list[str]:
    """Pairs of modules that import each other, directly or not, also inside functions or for type checks only."""
    files = {".".join(file.relative_to(root).with_suffix("").parts): file for file in root.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for module, file in files.items():
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{name}" for node in nodes for name in ("", *(alias.name for alias in node.names))}
        imports[module] = {name.rstrip(".").removeprefix("ipcnn_ray.") for name in names} & files.keys()

    def reachable(module: str) -> set[str]:
        found, open_ = set(), [module]
        while open_:
            new = imports[open_.pop()] - found
            found |= new
            open_ += new
        return found

    reach = {module: reachable(module) for module in files}
    return sorted(f"{a} <-> {b}" for a in files for b in reach[a] if a < b and a in reach[b])


def private_names_of_ray(root: Path) -> set[tuple[str, str]]:
    """Names of Ray that a file imports, reads or has in a text, and that Ray neither annotates as an interface nor
    exports by an `__all__`, as (module, dotted name)."""
    found: set[tuple[str, str]] = set()
    for file in root.rglob("*.py"):
        tree = ast.parse(file.read_text())
        names, aliases = set[str](), {"ray": "ray"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ray":
                for alias in node.names:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "ray"}
            elif isinstance(node, ast.Constant) and re.fullmatch(r"ray(\.\w+)*\._\w+(\.\w+)*", str(node.value)):
                names.add(str(node.value))
        for node in ast.walk(tree) if names else ():
            if isinstance(node, ast.Attribute):
                head, *rest = ast.unparse(node).split(".")
                if all(map(str.isidentifier, rest)) and head in aliases:
                    names.add(".".join([aliases[head], *rest]))
        whole = (name for name in names if not any(other.startswith(f"{name}.") for other in names))
        found |= {(file.stem, name) for name in whole if not (name.endswith("__") or is_public(name))}
    return found


def is_public(name: str) -> bool:
    """Whether a name of Ray is a package, or what Ray annotates as an interface or lists in `__all__`, or in such."""
    value: Any = None
    parts = name.split(".")
    for end, part in enumerate(parts, start=1):
        if part.startswith("_"):
            return False
        above, value = value, pkgutil.resolve_name(".".join(parts[:end]))
        if not inspect.ismodule(value):
            return hasattr(value, "_annotated_type") or part in getattr(above, "__all__", ())
    return hasattr(value, "__path__")


def listed_private_names() -> dict[str, list[str]]:
    """Names in the table of ray_session, by module."""
    text = (ROOT / "on_ray/ray_session.py").read_text()
    listed: dict[str, list[str]] = {}
    for names, modules, replacement in re.findall(r"^\| (\S.*?) \| (\w.*?) \| (\w.*?) \|$", text, re.MULTILINE)[1:]:
        assert replacement
        for module in modules.split(", "):
            listed.setdefault(module, []).extend(names.split(", "))
    return listed


def test_private_names_of_ray_are_in_the_table():
    listed, found = listed_private_names(), private_names_of_ray(ROOT)
    for module, name in found:
        ends = (entry.rpartition(".")[2] for entry in listed.get(module, ()))
        known = any(f".{end}." in f".{name}." for end in ends)
        assert known, f"{name} in {module}: list it with what would replace it in on_ray/ray_session.py"
    for module, names in listed.items():
        text = (ROOT / f"on_ray/{module}.py").read_text().rpartition('|\n"""')[2]
        assert [name for name in names if name.rpartition(".")[2] not in text] == [], f"{module} uses them no more"


def test_imports_only_go_down():
    assert broken_imports(ROOT) == []


def test_no_module_name_twice_and_no_cycles():
    assert repeated_names(ROOT) == []
    assert cycles(ROOT) == []


def test_only_the_cli_prints():
    assert prints(ROOT) == []


def test_every_room_is_in_the_tables():
    rooms = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if path.name not in {"__init__.py", "__pycache__", "py.typed"}
    }
    assert rooms == set(MAY) == set(THIRD)


def test_these_checks_can_fail(tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "core/x.py").write_text(
        "import ray\nfrom ipcnn_ray import cli\nimport numpy\nfrom . import y\nprint(1)\n"
    )
    uses = "import ray\nfrom ray.tune import Tuner as T\nray.util._a.b()\nT.x()\nx = 'ray.tune._log'\n"
    (tmp_path / "core/z.py").write_text(f"{uses}from ray.tune.execution import class_cache\n")
    private = {"ray.util._a.b", "ray.tune._log", "ray.tune.execution.class_cache"}
    assert private_names_of_ray(tmp_path) == {("z", name) for name in private}
    (tmp_path / "core/z.py").unlink()
    assert len(broken_imports(tmp_path)) == 4
    assert prints(tmp_path) == ["core/x.py:5"]
    assert repeated_names(tmp_path) == [] == cycles(tmp_path)
    (tmp_path / "x.py").write_text("def f():\n    from ipcnn_ray.core import x\n")
    (tmp_path / "core/x.py").write_text("from ipcnn_ray.y import z\n")
    (tmp_path / "y.py").write_text("from ipcnn_ray.x import f\n")
    assert repeated_names(tmp_path) == ["x.py"]
    assert cycles(tmp_path) == ["core.x <-> x", "core.x <-> y", "x <-> y"]


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("ipcnn_ray.core", {"ray", "mlflow", "boto3", "pydantic", "typer"}),
        ("ipcnn_ray.on_ray.trainables", {"mlflow", "boto3", "matplotlib", "scipy", "torchvision", "h5py"}),
    ],
)
def test_it_loads_without(modules: str, heavy: set[str]):
    """core/ needs no vendor; a worker imports at its start only what it needs there: each second delays every run."""
    code = (
        "import sys, pkgutil\n"
        f"module = pkgutil.resolve_name({modules!r})\n"
        "for inner in pkgutil.iter_modules(getattr(module, '__path__', [])):\n"
        f"    pkgutil.resolve_name({modules!r} + '.' + inner.name)\n"
        f"sys.exit(' '.join({heavy!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
