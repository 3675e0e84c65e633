"""The run directory: one experiment's configuration, environment, log, checkpoints, samples, measurements and scores.

Every write is a temporary file, then a rename. One process group at a time may write: an OS lock, which a killed
process cannot leave behind. To resume anything, run the same command again.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snrkit.base.errors import BusyError
from snrkit.base.files import disk_errors, write_text
from snrkit.base.sealed import finite


@dataclass(frozen=True, slots=True)
class Run:
    """Where things lie below `path`."""

    path: Path

    @property
    def config(self) -> Path:
        """The experiment as resolved."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.path / "train.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Weights and averages alone, kept for averaging."""
        return self.path / "snapshots"

    def averages(self, name: str) -> Path:
        """What average made under a name, by images seen."""
        return self.path / "averages" / name

    def samples(self, sampler: str) -> Path:
        """Folder of the images of a sampler."""
        return self.path / "samples" / sampler

    def shift(self, sampler: str, suffix: str = ".json") -> Path:
        """What measure-shift wrote for a sampler."""
        return self.path / "shift" / f"{sampler}{suffix}"

    @property
    def estimator(self) -> Path:
        """The estimator of levels."""
        return self.path / "estimator"

    def tuned(self, sampler: str, suffix: str = ".json") -> Path:
        """What tune wrote for a sampler."""
        return self.path / "tune" / f"{sampler}{suffix}"

    def comparison(self, suffix: str = ".json") -> Path:
        """What compare wrote."""
        return self.path / f"compare{suffix}"

    def compared(self, sampler: str) -> Path:
        """What compare keeps of one row, to go on from."""
        return self.path / "compare" / f"{sampler}.json"

    def compared_samples(self, sampler: str) -> Path:
        """The images of one row."""
        return self.path / "compare" / "samples" / sampler

    def metrics(self, sampler: str) -> Path:
        """What eval-fid wrote for a sampler."""
        return self.path / "metrics" / f"{sampler}.json"

    def report(self, suffix: str) -> Path:
        """The report."""
        return self.path / f"report{suffix}"


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run's lock. RunError when another process has it."""
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / ".lock").open("w") as file:
        try:
            _lock(file.fileno())
        except OSError:
            raise BusyError(
                f"another process is working in {run.path}; wait until it ends, or give this run another name."
            ) from None
        yield


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def append_log(run: Run, record: Mapping[str, Any]) -> None:
    """Add one line to the log."""
    with disk_errors(f"writing {run.log}", "free space and run the command again"), run.log.open("a") as file:
        file.write(json.dumps(finite(record), allow_nan=False) + "\n")


def read_log(run: Run) -> list[dict[str, Any]]:
    """The lines of the log; a torn last line is left out."""
    records: list[dict[str, Any]] = []
    if run.log.exists():
        for line in run.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def rewind_log(run: Run, images: int) -> None:
    """Drop what was logged after `images`, as training goes on from there."""
    kept = [record for record in read_log(run) if record["images"] <= images]
    if run.log.exists():
        write_text(run.log, "".join(json.dumps(record) + "\n" for record in kept))
