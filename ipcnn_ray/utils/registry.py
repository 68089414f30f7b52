"""Named implementations: the package's own, and those that other installed packages add through entry points."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.utils.text import did_you_mean


def import_object(path: str) -> Any:
    """Import and return the object at ``module:attribute``. Raises IpcnnError if there is none."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        advice = "Update or uninstall the package that names it."
        raise IpcnnError(f"{path} cannot be imported: {type(error).__name__}: {error}\n{advice}") from error


class Registry:
    """Implementations by name, of this package and of the entry points of others. Each is imported when it is used."""

    def __init__(self, group: str, built_in: Mapping[str, str], *, base: str = "") -> None:
        """
        Args:
            group: Name of the entry-point group, such as ``ipcnn.metrics``.
            built_in: Name of each implementation of this package, and where it is, as ``module:attribute``.
            base: Class that implementations are subclasses of, as ``module:attribute``; their attribute ``name`` is
                then the name in the registry.
        """
        self.group = group
        self.built_in = dict(built_in)
        self.base = base

    @cached_property
    def _external(self) -> dict[str, EntryPoint]:
        external: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
            if point.name in self.built_in or (point.name in external and external[point.name].value != point.value):
                taken = "ipcnn itself" if point.name in self.built_in else _package(external[point.name])
                raise IpcnnError(
                    f"the entry point {self.group} {point.name!r} of {_package(point)} is already taken by {taken}\n"
                    "Uninstall one of the two packages, or rename its entry point."
                )
            external[point.name] = point
        return external

    def names(self) -> tuple[str, ...]:
        """Return all names: those of this package in their order, then the others sorted."""
        return (*self.built_in, *self._external)

    def load(self, name: str) -> Any:
        """Import and return the implementation of this name. Raises IpcnnError if there is none, or if that of another
        package cannot be imported or is not a subclass of the base."""
        if name in self.built_in:
            return import_object(self.built_in[name])
        if name not in self._external:
            known = ", ".join(self.names())
            raise IpcnnError(f"{self.group} has no {name!r}\nIt has {known}.{did_you_mean(name, list(self.names()))}")
        entry = f"the entry point {self.group} {name!r} of {_package(self._external[name])}"
        try:
            implementation = self._external[name].load()
        except Exception as error:
            raise IpcnnError(
                f"{entry} cannot be imported: {type(error).__name__}: {error}\nUpdate or uninstall that package."
            ) from error
        if self.base and not (inspect.isclass(implementation) and issubclass(implementation, import_object(self.base))):
            raise IpcnnError(f"{entry} is {implementation!r}\nIt must be a subclass of {self.base}.")
        if self.base and (own_name := getattr(implementation, "name", None)) != name:
            raise IpcnnError(f"{entry} is a class with the name {own_name!r}\nThe two names must be the same.")
        return implementation

    def provider(self, name: str) -> str:
        """Return the name and version of the package that adds this name; empty for those of this package."""
        return _package(self._external[name]) if name in self._external else ""


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
