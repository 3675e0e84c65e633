"""A small experiment that trains in a second, and ways to run the tool on it as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

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

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def write_config(folder: Path, **changes) -> Path:
    """The small experiment as a file, with top-level changes."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return path


def command(folder: Path, *arguments, config="small.yaml", processes=1):
    """The command line of `snrkit ARGUMENTS` on a config of `folder`, with runs and cache inside it."""
    launch = [sys.executable, "-m", "snrkit"]
    if processes > 1:
        launch = [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0",
            "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "snrkit",
        ]  # fmt: skip
    return [*launch, *arguments, "--config", str(folder / config), "--runs", str(folder / "runs")]


def environment(folder: Path):
    """The environment of a command: one thread, its own cache."""
    return {**ENVIRONMENT, "SNRKIT_CACHE": str(folder / "cache")}


def snrkit(folder: Path, *arguments, config="small.yaml", processes=1, check=True, plain=False):
    """Run the tool to its end and return what it printed. `plain`: without --config and --runs."""
    line = command(folder, *arguments, config=config, processes=processes)
    line = line[: len(line) - 4] if plain else line
    done = subprocess.run(line, capture_output=True, text=True, env=environment(folder), timeout=300, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def written(folder: Path):
    """Every file below a folder with its content, to see that nothing was written."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
