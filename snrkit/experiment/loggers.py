"""The loggers of a run: what its commands make, under the names that it has there.

    train/<field>                 a line of the training log; train/step and train/lr among them
    held_out/loss, eps_error      means over the bins of a held-out line
    scores/<sampler>/<score>      means over ranges, with <score>_std and <score>_error where there are any
    shift/<sampler>               the columns of a measurement's CSV with `step` before them, one row a level
    shift/<sampler>/<mean>        its means over levels
    samples/<sampler>             the picture of the first images

Everything stands at the images that the weights have seen. The lines of a training that was killed are made again from
its last checkpoint on, to the same numbers: a logger that can drop what it has of them does, and the others are handed
only what they have not taken.
"""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, Stopped
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import write_json
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.log import LogWriter
from snrkit.experiment.run import Run
from snrkit.loggers.logger import Logger, OpenedLogger, Source
from snrkit.loggers.sending import Job, Sender
from snrkit.metrics.records import SamplerScores
from snrkit.shift.bootstrap import Number
from snrkit.shift.files import ShiftRecord, columns, vars_of

EVERY = 10.0  # seconds, at least, between two times that it is written how far a logger has come


@dataclass(frozen=True, slots=True)
class Logged:
    """What a run keeps of one logger, to go on in the same log."""

    place: str
    key: str
    had: int = 0  # images of the last line of training that it took


class Keeper:
    """Keeps what a run knows of a logger; all but the making is done in the thread that sends to it."""

    def __init__(self, path: Path, place: str) -> None:
        found = read_record(Logged, path) if path.exists() else None
        self._path, self._place = path, place
        self.logged = self._written = found if found is not None and found.place == place else None
        self._due = 0.0

    def begin(self, key: str) -> None:
        """Its log is open under a key."""
        if self.logged is None or self.logged.key != key:
            self.logged = Logged(self._place, key)
        self.write()

    def line(self, images: int, values: Mapping[str, float], log: OpenedLogger) -> None:
        """Log a line of training, and keep that it was taken, EVERY seconds at most."""
        log.numbers(images, values)
        assert self.logged is not None
        self.logged = replace(self.logged, had=images)
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Keep how far it has come."""
        if self.logged != self._written:
            write_json(self._path, to_json(self.logged))
            self._written = self.logged
        self._due = time.monotonic() + EVERY


@dataclass(frozen=True, slots=True)
class Following:
    """A logger at work, and up to how many images it has had what training makes again."""

    sender: Sender
    keeper: Keeper
    had: int


@dataclass(frozen=True, slots=True)
class Loggers:
    """The loggers of a run at work, none in processes that do not lead. A context, whose end waits for what is left."""

    each: tuple[Following, ...] = field(default=())

    def line(self, record: Mapping[str, Any]) -> None:
        """Log a line of the training log."""
        images, values = int(record["images"]), numbers_of(record)
        for logger in self.each:
            if images > logger.had:
                logger.sender.do(partial(logger.keeper.line, images, values))

    def scores(self, record: SamplerScores) -> None:
        """Log the scores of a sampler."""
        values: dict[str, float | None] = {}
        for key, entry in record.summary.items():
            name = f"scores/{record.sampler}/{key}"
            error = None if entry.error is None else entry.error.whole
            values |= {name: entry.mean, f"{name}_std": entry.std, f"{name}_error": error}
        found = finite_of(values)
        self._do(lambda log: log.numbers(record.checkpoint_images, found))

    def shift(self, record: ShiftRecord) -> None:
        """Log the measurement of a sampler: its curves as a table, and its means."""
        name, images = f"shift/{record.facts.sampler}", record.facts.checkpoint_images
        found = columns(record.shift)
        table = {
            "step": range(len(record.shift.logsnr)),
            **{key: [value if math.isfinite(value) else None for value in column] for key, column in found.items()},
        }
        means = {f"{name}/{key}": v.value for key, v in vars_of(record.shift).items() if isinstance(v, Number)}
        values = finite_of(means)
        self._do(lambda log: log.table(images, name, table))
        self._do(lambda log: log.numbers(images, values))

    def picture(self, sampler: str, images: int, path: Path) -> None:
        """Log the picture of a sampler's first images."""
        self._do(lambda log: log.picture(images, f"samples/{sampler}", path))

    def _do(self, job: Job) -> None:
        for logger in self.each:
            logger.sender.do(job)

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for logger in self.each:
            logger.sender.close(error is not None and not isinstance(error, Stopped))


@dataclass(frozen=True, slots=True)
class Journal:
    """The log of a training, and the loggers that are told its lines."""

    log: LogWriter
    loggers: Loggers

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a line to both."""
        self.log.add(record)
        self.loggers.line(record)


def finite_of(values: Mapping[str, object]) -> dict[str, float]:
    """Those values that are finite numbers."""
    found = {name: v for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the training log, by the names that loggers know them under."""
    if record["kind"] == "held_out":
        return finite_of({f"held_out/{key}": statistics.fmean(record[key]) for key in ("loss", "eps_error")})
    return finite_of({f"train/{key}": value for key, value in record.items() if key not in ("kind", "images")})


def check_loggers(experiment: Experiment) -> None:
    """Refuse loggers that cannot be opened here, before anything is written: ConfigError."""
    for index, logger in enumerate(experiment.log):
        try:
            logger.check()
        except ConfigError as error:
            raise ConfigError(f"log.{index} ({logger.kind}): {error}") from None


def open_loggers(experiment: Experiment, run: Run, world: World, images: int | None = None) -> Loggers:
    """Begin to log what a command makes of a run, whose lock it holds; `images`: of the checkpoint that training is at.

    None where it does not train.
    """
    if not world.leads:
        return Loggers()
    return Loggers(tuple(_follow(logger, run, images) for logger in experiment.log))


def _follow(logger: Logger, run: Run, images: int | None) -> Following:
    keeper = Keeper(run.logger(logger.kind), logger.place)
    key, had = (None, 0) if keeper.logged is None else (keeper.logged.key, keeper.logged.had)
    source = Source(run.path.name, run.path, key, images)

    def begin() -> OpenedLogger:
        opened = logger.open(source)
        keeper.begin(opened.key)
        return opened

    return Following(Sender(logger.kind, begin, keeper.write), keeper, 0 if logger.purges else had)
