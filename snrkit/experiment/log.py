"""The log of a training: sealed lines of three kinds, of which a checkpoint says how many there were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snrkit.base.errors import RunError, SnrkitError
from snrkit.base.files import disk_errors
from snrkit.base.records import from_json
from snrkit.base.sealed import append_line, read_lines, sync_lines, write_lines
from snrkit.checkpoints.ours import newest_checkpoint, numbers_of
from snrkit.experiment.run import Run


@dataclass(frozen=True, slots=True)
class TrainLine:
    """Means over the steps since the line before, of those that were not skipped; None where all were."""

    kind: Literal["train"]
    step: int
    images: int
    loss: float | None
    grad_norm: float | None
    clipped_norm: float | None
    clipped_share: float | None
    lr: float
    skipped: int
    seconds: float
    images_per_second: float
    clip_cosine: float | None = None
    largest_gradient: str | None = None
    its_share: float | None = None
    largest_logit: float | None = None


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A step that was skipped: the range of its levels, and the images, (index, logsnr), whose loss was not finite."""

    kind: Literal["skipped"]
    step: int
    images: int
    logsnr: Sequence[float]
    culprits: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class HeldOutLine:
    """As training.holdout's HeldOutLoss."""

    kind: Literal["held_out"]
    step: int
    images: int
    logsnr: Sequence[float]
    loss: Sequence[float]
    eps_error: Sequence[float]
    held_images: int


Line = TrainLine | SkippedLine | HeldOutLine
KINDS: Mapping[str, type[Line]] = {"train": TrainLine, "skipped": SkippedLine, "held_out": HeldOutLine}


@dataclass(frozen=True, slots=True)
class Log:
    """What a log holds. `torn`: whether its last line is, as a kill leaves it, and was left out."""

    lines: tuple[Line, ...]
    torn: bool

    @property
    def train(self) -> list[TrainLine]:
        """Its lines of training."""
        return [line for line in self.lines if isinstance(line, TrainLine)]

    @property
    def held_out(self) -> list[HeldOutLine]:
        """Its lines of held-out losses."""
        return [line for line in self.lines if isinstance(line, HeldOutLine)]


def read_log(path: Path) -> Log:
    """The log in a file, empty where there is none. SnrkitError names the line that is damaged."""
    records, torn = read_lines(path)
    return Log(tuple(_line(record, f"line {place} of {path}") for place, record in enumerate(records, 1)), torn)


def log_of(run: Run) -> Log:
    """The log of a run. RunError where it has fewer lines than there were at the newest checkpoint."""
    log = read_log(run.log)
    check_lines(run, log)
    return log


def check_lines(run: Run, log: Log) -> None:
    """RunError where a run's log has fewer lines than there were at the newest checkpoint."""
    path = newest_checkpoint(run.checkpoints)
    wanted = 0 if path is None or not run.log.exists() else numbers_of(path).get("log_lines", 0)
    if isinstance(wanted, int) and len(log.lines) < wanted:
        raise _lost(run.log, len(log.lines), wanted)


def _lost(path: Path, found: int, wanted: int) -> RunError:
    return RunError(
        f"{path} has {found} whole lines, and its checkpoint was saved after {wanted}; restore the file, or delete it "
        "to go on without what it said."
    )


def _line(record: Mapping[str, Any], where: str) -> Line:
    try:
        return from_json(KINDS.get(str(record.get("kind")), TrainLine), record, where)
    except SnrkitError as error:
        what = str(error).partition("; ")[0]
        raise RunError(f"{what}; restore the file, or delete it to go on without what it said.") from None


class LogWriter:
    """Adds lines to a log, and knows how many it has; `writes` is False in all processes but one."""

    def __init__(self, path: Path, lines: int, writes: bool) -> None:
        """Begin a log anew that had `lines` lines at the checkpoint that is gone on from: what came later is dropped.

        RunError where they are not there any more, unless the whole file is gone.
        """
        self._path, self.writes, self.lines = path, writes, 0
        if not writes or not path.exists():
            return
        records, _ = read_lines(path, lines)
        if len(records) < lines:
            raise _lost(path, len(records), lines)
        write_lines(path, records)
        self.lines = lines

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        if self.writes:
            with disk_errors(f"writing {self._path}", "free space and run the command again"):
                append_line(self._path, record)
            self.lines += 1

    def sync(self) -> None:
        """Have its lines outlast a loss of power."""
        if self.writes:
            with disk_errors(f"writing {self._path}", "free space and run the command again"):
                sync_lines(self._path)
