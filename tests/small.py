"""A small experiment that trains in a second, and ways to run the tool on it as a user would."""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image

from snrkit.base.sealed import read_json, write_json
from snrkit.commands.cli import main
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.sampling import flow
from tests.warm import Warm

SMALL = {
    "name": "small",
    "data": {"kind": "mixture", "shape": [1, 8, 8], "count": 400, "components": 4},
    "process": {"kind": "edm"},
    "target": {"kind": "x0"},
    "precondition": {"kind": "edm"},
    "levels": {"kind": "lognormal"},
    "weighting": {"kind": "edm"},
    "network": {
        "kind": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "groups": 4, "classes": 4, "dropout": 0.1,
        "augment": True,
    },
    "train": {
        "images": 1920, "batch": 64, "warmup": 500, "save_every": 320, "log_every": 320, "holdout_every": 960,
        "label_dropout": 0.1, "noise_dropout": 0.1, "augment": {"kind": "edm"},
        "averages": [{"half_life": 500}, {"half_life": 1000, "ramp": None}],
    },
    "samplers": {
        "euler": {"grid": {"kind": "karras", "steps": 4}, "solver": {"kind": "euler"}},
        "ancestral": {"grid": {"kind": "karras", "steps": 4}, "solver": {"kind": "ancestral"}},
    },
    "sample": {"seeds": "0-63", "batch": 32},
    "shift": {
        "images": 32, "batch": 32, "bootstrap": 100, "window_images": 16, "horizon_images": 16,
        "amplification_images": 2, "audit_pairs": 256,
    },
    "metrics": {"features": "pixels", "pixel_components": 4, "ranges": 2},
}  # fmt: skip

SAVEFIG = Figure.savefig
SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def write_config(folder: Path, **changes) -> Path:
    """The small experiment as a file, with top-level changes."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return path


def options(folder: Path, config: str) -> list[str]:
    """What makes a command read a config of `folder` and keep its runs inside it."""
    return ["--config", str(folder / config), "--runs", str(folder / "runs")]


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process: one thread, its own cache."""
    return {**os.environ, **SETTINGS, "SNRKIT_CACHE": str(folder / "cache")}


@dataclass(frozen=True)
class Done:
    """What a command printed, named as `subprocess` names it."""

    returncode: int
    stdout: str
    stderr: str


def snrkit(folder: Path, *arguments, config="small.yaml", processes=1, check=True, plain=False) -> Done:
    """Run the tool to its end and return what it printed. `plain`: without --config and --runs.

    One process is this one, which has imported torch already; more are a group of forked ones.
    """
    line = [*map(str, arguments), *([] if plain else options(folder, config))]
    done = together(line, environment(folder), processes) if processes > 1 else call(*line)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def group(line: list[str], surroundings: dict[str, str], processes: int) -> list[Warm]:
    """A command in so many processes, in the environment that torchrun gives each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {**surroundings, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Warm(line, {**own, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]


def together(line: list[str], surroundings: dict[str, str], processes: int) -> Done:
    """What a group of processes printed, one after the other, and the first exit code that is not 0."""
    started = group(line, surroundings, processes)
    said = [each.communicate() for each in started]
    code = next((code for each in started if (code := each.returncode)), 0)
    return Done(code, *("".join(parts) for parts in zip(*said, strict=True)))


def call(*arguments: str) -> Done:
    """The console script's `main` on a command line, leaving the interpreter as a process of its own would."""
    out, err = StringIO(), StringIO()
    with (
        patch.dict(os.environ, SETTINGS), patch.object(sys, "argv", ["snrkit", *arguments]),
        patch.object(sys, "excepthook", sys.excepthook), as_torch_was(), redirect_stdout(out), redirect_stderr(err),
    ):  # fmt: skip
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def as_torch_was() -> Iterator[None]:
    """Gradients as at the start of a process; global random state and switches are put back afterwards."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = switches
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def command(folder: Path, *arguments, config="small.yaml", processes=1) -> list[str]:
    """The line that starts `snrkit ARGUMENTS` as a process of its own, or as several by torchrun."""
    launch = [sys.executable, "-m", "snrkit"]
    if processes > 1:
        launch = [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0",
            "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "snrkit",
        ]  # fmt: skip
    return [*launch, *arguments, *options(folder, config)]


def started(folder: Path, *arguments, config="small.yaml") -> Warm:
    """`snrkit ARGUMENTS` at work in a process of its own, to be signalled."""
    return Warm([*map(str, arguments), *options(folder, config)], environment(folder))


def process(folder: Path, *arguments, config="small.yaml", processes=1, check=True) -> Done:
    """As `snrkit`, for tests of what only a process of its own shows: it imports torch anew, which takes seconds."""
    line = command(folder, *arguments, config=config, processes=processes)
    ran = subprocess.run(line, capture_output=True, text=True, env=environment(folder), timeout=300, check=False)
    if check:
        assert ran.returncode == 0, ran.stderr
    return Done(ran.returncode, ran.stdout, ran.stderr)


@contextmanager
def drawing() -> Iterator[None]:
    """Within the block figures of matplotlib are saved as they are, where tests have them be one dot otherwise."""
    with patch.object(Figure, "savefig", SAVEFIG):
        yield


@contextmanager
def coarse_flows(steps=48) -> Iterator[None]:
    """Within the block flows are followed in a fifth of their steps, and say so by their error as ever.

    For tests of what is made of a flow, whatever its error; how near it comes is shown in tests/fitting.
    """
    with ExitStack() as stack:
        for follow in (flow.fine_flow, flow.flow_evaluations):
            given = tuple(steps if value == flow.FLOW_STEPS else value for value in follow.__defaults__)
            stack.enter_context(patch.object(follow, "__defaults__", given))
        yield


def written(folder: Path):
    """Every file below a folder with its content, to see that nothing was written but who held the lock."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder): p.read_bytes() for p in files}


def edit(path, **changes):
    """Give keys of a record other values, under a checksum that fits."""
    write_json(path, {**read_json(path), **changes})


def load_images(folder, seeds):
    """The images that snrkit sample made of these seeds, uint8 (n, C, H, W)."""
    folder = SampleFolder(folder)
    with Image.open(folder.image(seeds[0])) as first:
        shape = (len(first.getbands()), first.height, first.width)
    return folder.load(seeds, shape)
