"""Errors that a user can do something about. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from dataclasses import dataclass


class IpcnnError(Exception):
    """A request that cannot be fulfilled. The message says where, what, and what to do."""


@dataclass(frozen=True)
class Issue:
    """One wrong value or file."""

    where: str
    """`file:line` of a spec, or the path of a data file."""
    what: str
    """The fact with its offending value, such as `train.epochs = -1`."""
    advice: str
    """What is allowed, and the ways out."""

    def __str__(self) -> str:
        return f"{self.where}  {self.what}\n       {self.advice}"


class InvalidInputError(IpcnnError):
    """All issues of a file or folder at once."""

    def __init__(self, issues: list[Issue]) -> None:
        self.issues = issues
        super().__init__("\n".join(map(str, issues)))


class SpecError(InvalidInputError):
    """An experiment spec is wrong. Nothing was started."""


class DataError(InvalidInputError):
    """A dataset or a weight file is wrong. Nothing was written."""


class ResourceError(IpcnnError):
    """The cluster can never provide the resources of a run."""


class TrackingError(IpcnnError):
    """The tracking store (MLflow) or the storage cannot be reached or written."""


class UnreachableError(TrackingError):
    """The tracking store or the storage does not answer; a retry can succeed."""


class TrainingError(IpcnnError):
    """A run cannot continue, for example because its loss is not finite."""
