"""The errors that a person can do something about. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

from dataclasses import dataclass


class IpcnnError(Exception):
    """Something a person asked for cannot be done; the text says where, what, and what to do."""


@dataclass(frozen=True)
class Issue:
    """One wrong thing in one place."""

    where: str
    """`file:line` of a spec, or the path of a data file."""
    what: str
    """The fact with its offending value, such as `train.epochs = 0`."""
    advice: str
    """What is allowed, and the ways out."""

    def __str__(self) -> str:
        return f"{self.where}  {self.what}\n       {self.advice}"


class InvalidInputError(IpcnnError):
    """Issues of a file or folder, all of them at once."""

    def __init__(self, issues: list[Issue]) -> None:
        self.issues = issues
        super().__init__("\n".join(map(str, issues)))


class SpecError(InvalidInputError):
    """The experiment spec is wrong. Nothing was started."""


class DataError(InvalidInputError):
    """A dataset or a weight file on disk is not what it should be. Nothing was written."""


class ResourceError(IpcnnError):
    """The cluster can never satisfy what a run asks for."""


class TrackingError(IpcnnError):
    """The record of the runs (MLflow) or the storage cannot be reached or written."""


class UnreachableError(TrackingError):
    """The record or the storage does not answer now; asked again later, it may."""


class TrainingError(IpcnnError):
    """A run cannot go on: for example its loss is not finite."""
