"""A small experiment that trains in a second, and ways to run the tool on it as a user would."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from PIL import Image

from snrkit.base.sealed import read_json, write_json
from snrkit.commands.cli import main
from snrkit.experiment.sample_folder import SampleFolder

SMALL = {
    "name": "small",
    "data": {"kind": "mixture", "shape": [1, 8, 8], "count": 400, "components": 4},
    "process": {"kind": "edm"},
    "target": {"kind": "x0"},
    "precondition": {"kind": "edm"},
    "levels": {"kind": "lognormal"},
    "weighting": {"kind": "edm"},
    "network": {
        "kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "classes": 4, "dropout": 0.1,
        "augment": True,
    },
    "train": {
        "images": 3840, "batch": 64, "warmup": 500, "save_every": 320, "log_every": 320, "holdout_every": 960,
        "label_dropout": 0.1, "noise_dropout": 0.1, "augment": {"kind": "edm"},
        "averages": [{"half_life": 500}, {"half_life": 1000, "ramp": None}],
    },
    "samplers": {
        "euler": {"grid": {"kind": "karras", "steps": 4}, "solver": {"kind": "euler"}},
        "ancestral": {"grid": {"kind": "karras", "steps": 4}, "solver": {"kind": "ancestral"}},
    },
    "sample": {"seeds": "0-63", "batch": 16},
    "shift": {"images": 32, "batch": 16, "bootstrap": 100},
    "metrics": {"features": "pixels", "pixel_components": 4, "ranges": 2},
}  # fmt: skip

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

    One process is this one, which has imported torch already; more are started by torchrun.
    """
    if processes > 1:
        return process(folder, *arguments, config=config, processes=processes, check=check)
    line = [*arguments, *([] if plain else options(folder, config))]
    done = call(*map(str, line))
    if check:
        assert done.returncode == 0, done.stderr
    return done


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


def process(folder: Path, *arguments, config="small.yaml", processes=1, check=True) -> Done:
    """As `snrkit`, for tests of what only a process of its own shows: it imports torch anew, which takes seconds."""
    line = command(folder, *arguments, config=config, processes=processes)
    ran = subprocess.run(line, capture_output=True, text=True, env=environment(folder), timeout=300, check=False)
    if check:
        assert ran.returncode == 0, ran.stderr
    return Done(ran.returncode, ran.stdout, ran.stderr)


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
