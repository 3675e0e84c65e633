"""What people see of a command while it works: bars on a terminal, elsewhere a plain line from time to time.

A bar says how many of how many, how fast, how long it may still take, and the newest loss or score. Bars inside a bar
stand below it. Nothing below the commands knows of them: loops yield their steps, and work that is Gradual says how far
it has come (`follow`). A bar of EVALUATIONS or READINGS is moved by the resources that commands open (opening.py): what
the network evaluates, or what is read of the images, is counted by the innermost bar that counts such.

Messages go to Python's logger `snrkit`, which `hear` prints above the bars: warnings always, others but for `--quiet`,
and with `--verbose` also what every part took. All of it goes to stderr.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from snrkit.base.gradual import Done, Gradual
from snrkit.reports.layout import width_of

T = TypeVar("T")
EVALUATIONS = "evaluations"  # of the network, one for each image that it is shown
READINGS = "images read"
COUNTED = (EVALUATIONS, READINGS)
OFTEN = 0.1  # seconds between two updates of what is shown
LOOKED = 0.1  # seconds between two looks at what is imported
DRAWN = 4  # times a second that bars are drawn
WINDOW = 30.0  # seconds that a rate is taken over
BRIEF = 2.0  # seconds, below which nothing is left of a bar
EVERY = 30.0  # seconds between two plain lines
BEAT = 1.0  # seconds after which it is looked whether a plain line is due, where nothing else looks
log = logging.getLogger("snrkit")


class SteadyConsole(Console):
    """stderr, with the cursor left as it is: a signal may end the process where it is, and would leave it hidden."""

    def show_cursor(self, show: bool = True) -> bool:
        """Nothing."""
        return False


console = SteadyConsole(stderr=True)


class Bar:
    """What a part of a command counts, and how fast."""

    def __init__(
        self, what: str, total: int | None, unit: str, done: int, clock: Callable[[], float], display: "Display"
    ) -> None:
        self.what, self.total, self.unit, self.done, self.note = what, total, unit, done, ""
        self.until: float | None = None  # when it breaks off, by its clock, however much is left
        self.begun = clock()
        self._clock, self._display = clock, display
        self._shown = self.begun
        self._known = deque([(self.begun, done)])  # counts of the last WINDOW seconds
        self._turn = threading.Lock()

    def update(self, done: int, note: str | None = None) -> None:
        """So many are done; `note` stands behind, such as the newest loss."""
        with self._turn:
            self.done = done
            self._changed(note)

    def advance(self, count: int, note: str | None = None) -> None:
        """So many more are done."""
        with self._turn:
            self.done += count
            self._changed(note)

    def say(self, note: str) -> None:
        """Have a note stand behind."""
        with self._turn:
            self._changed(note)

    def _changed(self, note: str | None) -> None:
        self.note = self.note if note is None else note
        self.total = None if self.total is None else max(self.total, self.done)
        now = self._clock()
        if now - self._shown < OFTEN:
            return
        self._shown = now
        self._known.append((now, self.done))
        while len(self._known) > 2 and now - self._known[1][0] > WINDOW:
            self._known.popleft()
        self._display.changed(self)

    def close(self) -> None:
        """All is done: what resources have counted was all that there was."""
        with self._turn:
            if self.unit in COUNTED and self.total is not None:
                self.total = self.done

    def rate(self, now: float) -> float:
        """How many a second; 0 before it is known."""
        since, before = self._known[0]
        return (self.done - before) / (now - since) if now > since else 0.0

    def told(self, now: float) -> str:
        """How far it is, how fast, how long it may take, and the note."""
        rate, rest = self.rate(now), None if self.total is None else self.total - self.done
        parts = []
        if self.total is not None:
            parts.append(f"{self.done:,} of {self.total:,} {self.unit}")
        elif self.done:
            parts.append(f"{self.done:,} {self.unit}")
        parts += [_a_second(rate)] if rate else []
        if rate and rest:
            left = rest / rate if self.until is None else min(rest / rate, max(0.0, self.until - now))
            parts.append(f"{_time(left)} left")
        else:
            parts.append(_time(now - self.begun))
        return ", ".join([*parts, *([self.note] if self.note else [])])


def _a_second(rate: float) -> str:
    if rate < 1:
        return f"{1 / rate:.1f} s each"
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display(Protocol):
    """Where bars are shown."""

    def begin(self, bar: Bar) -> None:
        """Show one more, inside those that are shown."""

    def changed(self, bar: Bar) -> None:
        """It has another count or note."""

    def end(self, bar: Bar) -> None:
        """It is done with, or broken off."""


class Nowhere:
    """Shows nothing."""

    def begin(self, bar: Bar) -> None:
        """Nothing."""

    def changed(self, bar: Bar) -> None:
        """Nothing."""

    def end(self, bar: Bar) -> None:
        """Nothing."""


NOWHERE = Nowhere()


class _Told(ProgressColumn):
    """What a bar says of itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._clock = clock

    def render(self, task: Task) -> Text:
        found: Bar = task.fields["bar"]
        return Text(found.told(self._clock()))


class Bars:
    """Bars on a terminal, drawn by a thread."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._progress: Progress | None = None
        self._tasks: dict[Bar, TaskID] = {}
        self._turn = threading.RLock()

    def begin(self, bar: Bar) -> None:
        """Draw it, below those that are drawn."""
        if self._progress is None:
            columns = (
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
                BarColumn(bar_width=16),
                _Told(self._clock),
            )
            caught = sys.stdout.isatty()  # what goes to a file or to another program stays there
            self._progress = Progress(*columns, console=self._console, redirect_stdout=caught, refresh_per_second=DRAWN)
            self._progress.start()
        self._tasks[bar] = self._progress.add_task(bar.what, total=bar.total, completed=bar.done, bar=bar)

    def changed(self, bar: Bar) -> None:
        """Draw it as it is now, when the thread comes to it; who reads ahead may come when it has ended."""
        with self._turn:
            if self._progress is not None and bar in self._tasks:
                self._progress.update(self._tasks[bar], completed=bar.done, total=bar.total)

    def end(self, bar: Bar) -> None:
        """Take it away; the outermost one stays as it is, but where it was brief."""
        assert self._progress is not None
        self.changed(bar)
        with self._turn:
            task = self._tasks.pop(bar)
            if self._tasks:
                self._progress.remove_task(task)
                return
        self._progress.live.transient = self._clock() - bar.begun < BRIEF
        self._progress.stop()
        self._progress = None


class Lines:
    """A plain line about all bars, every so many seconds. A thread looks whether it is due, where `beat` is above 0."""

    def __init__(self, console: Console, every: float, clock: Callable[[], float], beat: float = BEAT) -> None:
        self._console, self._every, self._clock, self._beat = console, every, clock, beat
        self._bars: list[Bar] = []
        self._early = min(beat, every / 20)  # so that what is looked at by then is not late
        self._due = clock() + every
        self._turn = threading.RLock()
        self._over = threading.Event()

    def begin(self, bar: Bar) -> None:
        """Have lines tell of it too."""
        with self._turn:
            self._bars.append(bar)
        if len(self._bars) == 1 and self._beat:
            self._over = threading.Event()
            threading.Thread(target=self._watch, args=(self._over,), name="snrkit-lines", daemon=True).start()

    def changed(self, bar: Bar) -> None:
        """Print a line, if it is due."""
        self.look()

    def end(self, bar: Bar) -> None:
        """Have no line tell of it any more."""
        with self._turn:
            self._bars.remove(bar)
            if not self._bars:
                self._over.set()

    def look(self) -> None:
        """Print a line, if it is due."""
        with self._turn:
            now = self._clock()
            if now < self._due - self._early or not self._bars:
                return
            self._due = now + self._every
            line = Text("; ".join(f"{bar.what}: {bar.told(now)}" for bar in self._bars))
            if "COLUMNS" in os.environ:  # else whole, as nobody says how wide a file is
                line.truncate(width_of(self._console), overflow="ellipsis")
            self._console.print(line, soft_wrap=True, highlight=False)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(self._beat):
            self.look()


@dataclass
class Settings:
    """What was asked for on the command line."""

    quiet: bool = False
    verbose: bool = False
    every: float = EVERY
    clock: Callable[[], float] = time.monotonic
    display: Display | None = None  # where bars are shown; None: to be chosen when the first one is

    def shows(self) -> Display:
        """Where bars are shown: nowhere if quiet, and in processes that do not lead."""
        if self.display is None:
            if self.quiet or int(os.environ.get("RANK", "0")) > 0:
                self.display = NOWHERE
            else:
                lines = Lines(console, self.every, self.clock)
                self.display = Bars(console, self.clock) if console.is_terminal else lines
        return self.display


@dataclass
class _Now:
    """What this process shows."""

    settings: Settings
    process: int  # its number, which those that are forked off for reading do not have
    bars: list[Bar]  # those that are shown, the innermost last


_now = _Now(Settings(), os.getpid(), [])


@contextmanager
def shown_as(chosen: Settings) -> Iterator[None]:
    """Within the block bars and messages are shown as `chosen` says."""
    before = _now.settings
    _now.settings, _now.process = chosen, os.getpid()
    try:
        yield
    finally:
        _now.settings = before


def ask(quiet: bool | None = None, verbose: bool | None = None, every: float | None = None) -> None:
    """Take over what the command line says, each when it is known."""
    settings = _now.settings
    settings.quiet = settings.quiet if quiet is None else quiet
    settings.verbose = settings.verbose if verbose is None else verbose
    settings.every = settings.every if every is None else every
    log.setLevel(logging.DEBUG if settings.verbose else logging.WARNING if settings.quiet else logging.INFO)


class _Spoken(logging.Handler):
    """Prints messages to stderr, above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def hear() -> Iterator[None]:
    """Within the block messages of the logger `snrkit` are printed."""
    handler, level = _Spoken(), log.level
    log.addHandler(handler)
    try:
        with shown_as(Settings()):
            ask()
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def bar(what: str, total: int | None = None, shown: bool = True, unit: str = "images", done: int = 0) -> Iterator[Bar]:
    """A bar titled `what` over `total`, or without an end that is known, of which `done` are done before."""
    display = _now.settings.shows() if shown else NOWHERE
    made = Bar(what, total, unit, done, _now.settings.clock, display)
    if display is not NOWHERE:
        _now.bars.append(made)
    display.begin(made)
    try:
        yield made
    finally:
        if display is not NOWHERE:
            _now.bars.remove(made)
        display.end(made)
        if display is not NOWHERE:
            log.debug("%s: %s", what, made.told(_now.settings.clock()))


@contextmanager
def loading(what: str, shown: bool = True) -> Iterator[None]:
    """A bar while modules are imported, which says how many there are: those of torch take seconds."""
    over = threading.Event()
    with bar(what, unit="modules", shown=shown) as here:

        def watch() -> None:
            while not over.wait(LOOKED):
                here.update(len(sys.modules))

        watching = threading.Thread(target=watch, name="snrkit-loading", daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()


def count(unit: str, number: int) -> None:
    """So many more were evaluated or read, which the innermost bar that counts such takes down.

    In a process that was forked off for reading nobody sees bars, and nothing is counted.
    """
    if os.getpid() != _now.process:
        return
    for each in reversed(_now.bars):
        if each.unit == unit:
            each.advance(number)
            return


def follow(work: Gradual[T], shown: bool = True, of: str = "") -> T:
    """What some work makes, with a bar for each of its parts; `of`: whose, to stand before."""
    done = _next(work)
    while isinstance(done, Done):
        part = done
        with bar(f"{of}{part.what}", part.total, shown, part.unit) as here:
            while isinstance(done, Done) and done.what == part.what:
                if done.unit not in COUNTED:
                    here.update(done.count, done.note)
                done = _next(work)
            here.close()
    return done.made


@dataclass(frozen=True, slots=True)
class _End(Generic[T]):
    """What some work has made."""

    made: T


def _next(work: Gradual[T]) -> Done | _End[T]:
    try:
        return next(work)
    except StopIteration as end:
        return _End(end.value)
