"""A disk that counts what is done to it and fails where it is told to, and what a command leaves of a fault there.

An event is an opening, for reading or for writing, a write, a flush to the disk, a new name, a deletion, a new folder
or a lock, of anything below one folder. It may fail with an error of the system, a write when half is written, or be
the moment at which the process is killed: then it and all that comes after, cleaning up too, does not happen. (A kill
before a reading leaves what a kill before the next event of another kind does.) All runs in this process, in which
torch is imported already.
"""

import builtins
import errno
import fcntl
import io
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
import yaml

from tests.small import SMALL, Done, call, coarse_flows

KILL = "SIGKILL"
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
GONE = 2**30  # the number of a process that is no more: no system counts so far
TIMES = {"seconds", "images_per_second", "checksum"}  # of records: what may differ between two runs


class Killed(BaseException):
    """The process was killed."""


Event = tuple[str, str, int]  # what happens to which path for the n-th time, whatever happens beside it


@dataclass
class Disk:
    """What happens below `root`, in all threads. `at`: the event that fails, `how`: with an errno, or KILL."""

    root: Path
    at: Event | None = None
    how: int | str = KILL
    events: list[Event] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    turn: Any = field(default_factory=threading.Lock)  # of the threads
    dead: bool = False

    def fault(self, what: str, path: str, name: object = None) -> BaseException | None:
        """Count an event; what it meets, if it is to fail: an error of the system, with the name that it was given."""
        if not f"{path}/".startswith(f"{self.root}/"):
            return None
        with self.turn:
            if self.dead:
                return Killed()
            place = re.sub(r"\.\d+\.tmp", ".tmp", os.path.relpath(path, self.root))  # without the process's number
            self.counts[what, place] += 1
            self.events.append((what, place, self.counts[what, place]))
            if self.events[-1] != self.at:
                return None
            if self.how == KILL:
                self.dead = True
                return Killed(what, path)
        code = errno.ENOLCK if what == "lock" else int(self.how)
        return OSError(code, os.strerror(code), *(() if name is None else (str(name),)))

    def meet(self, what: str, path: str, name: object = None) -> None:
        """Count an event, and fail if it is to."""
        if (error := self.fault(what, path, name)) is not None:
            raise error


class File:
    """A file that is written to, each write at once."""

    def __init__(self, disk: Disk, file: Any, path: str) -> None:
        self._disk, self._file, self._path = disk, file, path

    def write(self, content: Any) -> int:
        error = self._disk.fault("write", self._path)
        written = content if error is None else content[: len(content) // 2]
        count = self._file.write(written if not isinstance(error, Killed) or error.args else content[:0])
        self._file.flush()
        if error is not None:
            raise error
        return count

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _where(path: Any, folder: int | None = None) -> str:
    """The absolute path of what a call of the system names, by a path or by the number of an open file."""
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    base = Path.cwd() if folder is None else Path(f"/proc/self/fd/{folder}").readlink()
    return os.path.normpath(base / os.fsdecode(path))


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Within the block every event below the disk's root is counted, and fails where it is to."""
    plain_open, plain_os_open, plain_write, plain_save = io.open, os.open, os.write, safetensors.torch.save_file

    def opens(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        writing = set(mode) & set("wax+")
        if not writing:
            if not isinstance(file, int):
                disk.meet("read", _where(file), file)
            return plain_open(file, mode, *rest, **named)
        if not isinstance(file, int):
            disk.meet("open", _where(file), file)
        return File(disk, plain_open(file, mode, *rest, **named), _where(file))

    def os_opens(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if not flags & os.O_DIRECTORY:
            disk.meet("open" if flags & WRITING else "read", _where(path, dir_fd), path)
        return plain_os_open(path, flags, mode, dir_fd=dir_fd)

    def writes(handle: int, content: bytes) -> int:
        error = disk.fault("write", _where(handle))
        count = plain_write(handle, content if error is None else content[: len(content) // 2])
        if error is not None:
            raise error
        return count

    def saves(tensors: Any, path: Any, *rest: Any, **named: Any) -> None:  # written by a library in another language
        disk.meet("write", _where(path))
        plain_save(tensors, path, *rest, **named)

    def counted(what: str, call: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        def counts(*given: Any, **named: Any) -> Any:
            name = given[place]
            disk.meet(what, _where(name, named.get("dir_fd")), None if isinstance(name, int) else name)
            return call(*given, **named)

        return counts

    named = {
        "replace": ("rename", 1), "rename": ("rename", 1), "unlink": ("delete", 0), "remove": ("delete", 0),
        "rmdir": ("delete", 0), "mkdir": ("mkdir", 0), "fsync": ("sync", 0), "ftruncate": ("truncate", 0),
    }  # fmt: skip
    with ExitStack() as stack:
        for name, (what, place) in named.items():
            stack.enter_context(patch.object(os, name, counted(what, getattr(os, name), place)))
        for owner, name, other in (
            (io, "open", opens), (builtins, "open", opens), (os, "open", os_opens), (os, "write", writes),
            (safetensors.torch, "save_file", saves), (fcntl, "flock", counted("lock", fcntl.flock)),
        ):  # fmt: skip
            stack.enter_context(patch.object(owner, name, other))
        yield


SEEDS = "0-7"
TINY = {
    **SMALL,
    "data": {"kind": "mixture", "shape": [1, 8, 8], "count": 80, "components": 2, "holdout": 0.5},
    "network": {"kind": "mlp", "dim": 8, "depth": 1},
    "train": {
        "images": 128, "batch": 32, "save_every": 32, "log_every": 32, "holdout_every": 64, "snapshot_every": 64,
        "averages": [{"kind": "power", "width": 0.05}, {"kind": "power", "width": 0.1}],
    },
    "samplers": {
        "euler": {
            "grid": {"kind": "karras", "steps": 4}, "solver": {"kind": "euler"},
            "corrections": [{"kind": "epsilon_scaling", "scale": 1.01}],
        },
    },
    "sample": {"seeds": SEEDS, "batch": 4, "npz": True},
    "shift": {
        "images": 20, "batch": 20, "bootstrap": 100, "probes": ["horizon"], "estimator": {"images": 128},
    },
    "metrics": {"features": "pixels", "pixel_components": 2, "ranges": 2},
    "compare": {"timed_images": 2, "rounds": 1}, "tune": {"seeds": "100-107"},
}  # fmt: skip
SWEEP = {"base": "small.yaml", "seeds": [0], "arms": {"edm": [], "slow": ["train.lr=1e-4"]}}
UNET = '{"kind":"unet","channels":4,"multipliers":[1],"blocks":1,"groups":2}'  # which alone can be exported
NOTHING: tuple[str, ...] = ()
TRAINED = ("train",)
SAMPLED = (*TRAINED, "sample")
FULL = (*SAMPLED, "measure-shift", "eval-fid", "eval-fid --checkpoints all", "tune --by predicted", "compare")
COMMANDS: dict[str, tuple[str, ...]] = {  # each with the commands that go before it
    "train": NOTHING,
    "train --fall-back": TRAINED,
    "sample": TRAINED,
    "sample --overwrite": SAMPLED,
    "measure-shift": TRAINED,
    "fit-estimator": TRAINED,
    "eval-fid": SAMPLED,
    "eval-fid --checkpoints all": TRAINED,
    "tune --by predicted": TRAINED,
    "tune --by fd": TRAINED,
    "tune --by flow --sampler euler": TRAINED,
    "design --sampler euler --nfe 4": TRAINED,
    "certify --sampler euler": TRAINED,
    "compare": TRAINED,
    "average RUN --width 0.2": TRAINED,
    "average RUN --decay 0.9": TRAINED,
    "export RUN": (f"train --set network={UNET}",),
    "export RUN --to snrkit": TRAINED,
    "init OUT": NOTHING,
    "audit RUN": TRAINED,
    "analyze": TRAINED,
    "analyze --spectrum": TRAINED,
    "report": FULL,
    "report RUN -o PAGE": FULL,
    "check RUN --repair": SAMPLED,
    "sweep FILE": NOTHING,
    "run": NOTHING,
    "data pack IMAGES -o ZIP --size 4 --overwrite": SAMPLED,
    "data encode --vae VAE -o LATENTS --overwrite": NOTHING,
}
NO_BARS = {
    "train",
    "sample",
    "measure-shift",
    "fit-estimator",
    "eval-fid",
    "tune",
    "compare",
    "sweep",
    "run",
    "data",
    "certify",
}
NOISES = ("--set", "tune.noises=20", "--set", "tune.seeds=100-159")
MORE = {
    "sample --overwrite": ("--set", "samplers.euler.grid.steps=3"),
    "tune --by flow --sampler euler": NOISES,
    "design --sampler euler --nfe 4": NOISES,
    "certify --sampler euler": (*NOISES, "--set", "sample.seeds=0-9"),
}


def line(command: str, folder: Path) -> list[str]:
    """The words of a command in a folder."""
    runs, first = folder / "runs", command.split(maxsplit=1)[0]
    places = {
        "RUN": runs / "small", "FILE": folder / "sweep.yaml", "IMAGES": runs / "small/samples/euler",
        "ZIP": folder / "packed.zip", "PAGE": folder / "page.html", "VAE": folder / "vae",
        "LATENTS": folder / "latents.npz", "OUT": folder / "mine.yaml",
    }  # fmt: skip
    words = [str(places.get(word, word)) for word in command.split()]
    quiet = ["-q"] if first in NO_BARS else []
    if {"RUN", "IMAGES", "OUT"} & set(command.split()):
        return [*words, *quiet]
    config = [] if "FILE" in command else ["--config", str(folder / "small.yaml")]
    where = [] if first == "data" else ["--runs", str(runs)]
    return [*words, *config, *where, *MORE.get(command, ()), *quiet]


def start(folder: Path, **changes: Any) -> None:
    """A folder with files of a tiny experiment, with top-level changes, and of a sweep of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    save_autoencoder(folder / "vae", image_channels=1)


def save_autoencoder(folder: Path, image_channels: int) -> None:
    """A small AutoencoderKL that halves sides, seeded; nothing where diffusers is not installed."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoencoderKL(
            in_channels=image_channels, out_channels=image_channels, latent_channels=4, block_out_channels=(8, 8),
            norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=0.5, shift_factor=0.1,
        )  # fmt: skip
    made.save_pretrained(folder)


def spoil(command: str, folder: Path) -> None:
    """What is wrong before a command that mends it."""
    if "--fall-back" in command:
        newest = max((folder / "runs/small/checkpoints").glob("[0-9]*")) / "network.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])
    if "--repair" in command:
        image = folder / "runs/small/samples/euler/000000/000003.png"
        image.write_bytes(image.read_bytes()[:-1])


def contents(folder: Path) -> dict[str, Any]:
    """All that lies below a folder, by its path; of records all but times and checksums of them."""
    paths = (path for path in sorted(folder.rglob("*")) if path.name != ".lock")
    return {str(path.relative_to(folder)): _content(path) for path in paths}


def _content(path: Path) -> Any:
    if path.is_dir():
        return "a folder"
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text()
        return [_timeless(json.loads(part)) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    return path.read_bytes()


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in TIMES}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


CHARTS = ("target_charts", "time_charts", "weighting_charts", "schedule_charts")
MEASURES = ("x0_errors", "level_gradients", "_bound_facts")


@contextmanager
def quick(known: dict[str, Any]) -> Iterator[None]:
    """Within the block pictures are one byte, clocks tick evenly, and what takes long to compute is computed once.

    Nothing of that reads or writes. The memory that a training takes is not computed either. A candidate of certify is
    tried once, by its name, as a run that goes on does not try it again.
    """
    from snrkit.commands import analyze, analyze_run, certify, compare, design, train
    from snrkit.commands.candidates import Candidate
    from snrkit.experiment import flows

    calls: Counter[str] = Counter()

    def once(plain: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any, **further: Any) -> Any:
            calls[name] += 1
            key = next((f"{name} {one.name}" for one in given if isinstance(one, Candidate)), f"{name} {calls[name]}")
            return known[key] if key in known else known.setdefault(key, plain(*given, **further))

        return call

    computing = (
        (analyze, CHARTS), (analyze_run, MEASURES), (certify, ("_try",)), (design, ("designs",)),
        (flows, ("fine_flow",)),
    )  # fmt: skip
    ticks = iter(range(10**9))
    with ExitStack() as stack:
        stack.enter_context(coarse_flows())
        for module, names in computing:
            for name in names:
                stack.enter_context(patch.object(module, name, once(getattr(module, name), name)))
        stack.enter_context(patch.object(analyze, "draw", lambda _: b"1"))
        stack.enter_context(patch.object(train, "check_memory", lambda *_: None))
        clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
        stack.enter_context(patch.object(compare, "time", clock))
        stack.enter_context(patch("matplotlib.figure.Figure.savefig", lambda self, file, *_, **__: file.write(b"1")))
        yield


@dataclass
class Outcome:
    """What a fault made of a command, and the same command, undisturbed, of that."""

    event: Event
    how: str
    wrong: str | None  # why this is not what it should be

    def __str__(self) -> str:
        what, path, _ = self.event
        return f"{self.how} at {what} {path}: {self.wrong}"


class Trial:
    """One command on one folder that is brought back to the same state before every run."""

    def __init__(self, command: str, states: dict[tuple[str, ...], Path], home: Path) -> None:
        self.command, self.work, self._known = command, home / "work", {}
        self._state = prepared(COMMANDS[command], states, home, self._known)
        self.restore()
        disk = Disk(self.work)
        with self.ready(), watched(disk):
            done = call(*line(command, self.work))
        assert done.returncode == 0, done.stderr
        self.events, self.wanted = disk.events, contents(self.work)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The surroundings of a run."""
        with quick(self._known), patch.dict(os.environ, SNRKIT_CACHE=str(self.work / "cache")):
            yield

    def restore(self) -> None:
        """Bring the folder to the state before the command."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self._state, self.work)
        spoil(self.command, self.work)

    def ways(self, at: Event) -> tuple[int | str, ...]:
        """How an event may fail."""
        few = {"lock": (errno.ENOLCK, KILL), "read": (errno.EIO, errno.EACCES)}
        return few.get(at[0], (*ERRORS, KILL))

    def fail(self, at: Event, how: int | str) -> Outcome:
        """Run the command with one event failing, then again without."""
        self.restore()
        disk, done = Disk(self.work, at, how), None
        with self.ready(), patch.object(os, "getpid", lambda: GONE), watched(disk):
            try:
                done = call(*line(self.command, self.work))
            except Killed:
                assert how == KILL
        said = how if isinstance(how, str) else errno.errorcode[how]
        happened = None if at in disk.events else "it did not happen"
        return Outcome(at, said, happened or self._wrong(done, at[1]) or self._again())

    def _wrong(self, done: Done | None, path: str) -> str | None:
        """What is wrong with how the command ended, of which an event of this path failed."""
        if done is None:
            return None
        if done.returncode == 0:
            return self._unlike("it ended well, and", skip="cache")
        if self.command.startswith("check") and not done.stderr:  # a line for each file that it did not repair
            named = [part for part in done.stdout.splitlines() if "put aside in" not in part]
            place, _, name = path.removeprefix("runs/small/").rpartition("/")  # or its checkpoint, and what of it
            found = any(place in part and name in part for part in named)
            return None if found else f"it names no file: {done.stdout}"
        said = [part for part in done.stderr.splitlines() if part.startswith("snrkit: ")]
        if done.returncode != 1 or len(said) != 1 or "Traceback" in done.stderr:
            return f"it ended in {done.returncode}: {done.stderr[-1500:]}"
        if str(self.work) not in said[0] or ";" not in said[0]:
            return f"it names no file or no remedy: {said[0]}"
        return None

    def _again(self) -> str | None:
        """What is wrong with the same command, undisturbed."""
        exported = self.work / "runs/small/export/diffusers"
        if not exported.exists():
            with self.ready():
                done = call(*line(self.command, self.work))
            if done.returncode != 0:
                return f"the same command again ended in {done.returncode}: {done.stderr[-1500:]}"
        return self._unlike("the same command again")

    def _unlike(self, when: str, skip: str = "") -> str | None:
        try:
            found = contents(self.work)
        except ValueError as error:
            return f"{when} left a damaged record: {error}"
        wanted = self.wanted
        paths = [path for path in sorted(found.keys() | wanted.keys()) if not skip or path.split("/")[0] != skip]
        differing = [
            f"{path} ({'more' if path not in wanted else 'less' if path not in found else 'other'})"
            for path in paths
            if path not in found or path not in wanted or found[path] != wanted[path]
        ]
        return f"{when} left another folder: {', '.join(differing[:6])}" if differing else None


def prepared(commands: tuple[str, ...], states: dict[tuple[str, ...], Path], home: Path, known: dict[str, Any]) -> Path:
    """A folder on which these commands ran, made once; all ran at `home`/work, whose name some records hold."""
    if commands not in states:
        before = prepared(commands[:-1], states, home, known) if commands else None
        work, made = home / "work", home / f"state-{len(states)}"
        shutil.rmtree(work, ignore_errors=True)
        if before is None:
            start(work)
        else:
            shutil.copytree(before, work)
            with quick(known), patch.dict(os.environ, SNRKIT_CACHE=str(work / "cache")):
                done = call(*line(commands[-1], work))
            assert done.returncode == 0, done.stderr
        shutil.copytree(work, made)
        states[commands] = made
    return states[commands]


def tally(trial: Trial) -> str:
    """How many events of which kind a command has."""
    counted = Counter(what for what, *_ in trial.events)
    return ", ".join(f"{count} {what}" for what, count in sorted(counted.items()))
