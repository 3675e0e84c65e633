"""What a logger is: a Value that names a place, and that place opened, which takes what a run makes.

All that is logged stands at a number of images that training has seen, which is the axis of every chart. Names are
paths of two or three parts, as `train/loss` or `scores/euler/fd`. What a logger raises reaches nobody but its sender
(sending.py): an opened logger may fail at any time.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from snrkit.base.errors import ConfigError

Columns = Mapping[str, Sequence[float | None]]  # of equal length; None: there is no number, or none that is finite


@dataclass(frozen=True, slots=True)
class Source:
    """Whose log is opened, and how far it goes already."""

    name: str  # of the run
    folder: Path  # the run directory
    key: str | None  # of the log that an earlier command opened at the same place; None: there is none
    images: int | None  # of the checkpoint that training goes on from, 0 at its beginning; None: nothing is made again


class OpenedLogger(Protocol):
    """A log that takes numbers, tables and pictures, each at a number of images seen."""

    @property
    def key(self) -> str:
        """What tells its log from others at the same place, for the next command to go on in it."""

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Log finite numbers by name."""

    def table(self, images: int, name: str, columns: Columns) -> None:
        """Log a table, whose rows are in order."""

    def picture(self, images: int, name: str, path: Path) -> None:
        """Log the PNG of a file."""

    def close(self, failed: bool) -> None:
        """Send what is left; `failed`: whether the command ended in an error."""


class Logger(Protocol):
    """A place that a run can be logged to."""

    purges: ClassVar[bool]  # whether, opened at a checkpoint, it drops what was logged of training after it

    @property
    def kind(self) -> str:
        """Its name in files."""

    @property
    def place(self) -> str:
        """What a key belongs to: another place has another log."""

    def check(self) -> None:
        """ConfigError where it cannot be opened on this machine, whatever the network gives."""

    def open(self, source: Source) -> OpenedLogger:
        """Begin a log, or go on in the one that `source` names."""


def package(name: str, extra: str) -> Any:
    """A module of an optional package. ConfigError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"the package {extra} is not installed; pip install 'snrkit[{extra}]'.") from None
