"""The run directory: one experiment's configuration, environment, log, checkpoints, samples, measurements and scores.

Every write is a temporary file, then a rename. One process group at a time may write: an OS lock, which a killed
process cannot leave behind. To resume anything, run the same command again.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snrkit import __version__
from snrkit.base.errors import BusyError, RunError
from snrkit.base.files import disk_errors, finite, read_json, remove_leftovers, write_json, write_text
from snrkit.checkpoints.ours import newest_checkpoint
from snrkit.experiment.experiment import Experiment, dump_yaml, parse_experiment
from snrkit.experiment.yaml_files import read_yaml


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


def check_data(run: Run, fingerprint: str) -> None:
    """Refuse to go on with other images than the run was trained on: RunError."""
    path = run.path / "environment.json"
    if path.exists() and read_json(path).get("dataset_fingerprint") != fingerprint:
        raise RunError(f"the images differ from those {run.path} was trained on; bring them back or name a new run.")


def check_fits(run: Run, experiment: Experiment) -> None:
    """Refuse a directory that holds another model: RunError names the first keys that differ."""
    if not run.config.exists():
        return
    stored = parse_experiment(read_yaml(run.config), str(run.config))
    differing = list(_differences(stored.training_part(), experiment.training_part()))
    if differing:
        shown = "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
        raise RunError(
            f"{run.path} holds another experiment ({shown}); "
            "give this one another name, or delete the folder to begin anew."
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path} is {old!r} there and {new!r} here"


def trained_run(runs: Path, experiment: Experiment, fingerprint: str) -> Run:
    """The run directory of a resolved experiment that was trained, or of a model from elsewhere, which may be empty.

    RunError when absent or of another experiment.
    """
    run = Run(runs / experiment.name)
    check_fits(run, experiment)
    check_data(run, fingerprint)
    if experiment.model is None and newest_checkpoint(run.checkpoints) is None:
        raise RunError(f"{run.path} has no checkpoint; run snrkit train with the same file first.")
    return run


def write_config(run: Run, experiment: Experiment) -> None:
    """Have config.yaml hold the resolved experiment, which may have gained samplers."""
    with disk_errors(f"writing {run.config}", "free space or choose another --runs folder"):
        remove_leftovers(run.path)
        write_text(run.config, dump_yaml(experiment))


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


def describe_environment(device: torch.device, experiment: Experiment, fingerprint: str) -> dict[str, Any]:
    """What a number from this run depends on beside its configuration."""
    packages = ("torch", "torchvision", "numpy", "torch_fidelity", "pywt", "safetensors", "pydantic")
    return {
        "snrkit": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " cpu",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "deterministic": experiment.compute.deterministic,
        "tf32": experiment.compute.tf32,
        "precision": experiment.compute.precision,
        "dataset_fingerprint": fingerprint,
        "command": sys.argv[1:],
    }


def _version(name: str) -> str:
    from importlib import metadata

    names = {"torch_fidelity": "torch-fidelity", "pywt": "PyWavelets"}
    try:
        return metadata.version(names.get(name, name))
    except metadata.PackageNotFoundError:
        return "absent"


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def write_environment(run: Run, record: Mapping[str, Any]) -> None:
    """Write environment.json."""
    write_json(run.path / "environment.json", dict(record))


def stored_experiment(path: Path) -> Experiment:
    """The experiment of an existing run directory."""
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} is not a run directory (it has no config.yaml); train one first.")
    return parse_experiment(read_yaml(path / "config.yaml"), str(path / "config.yaml"))


def read_all(paths: Sequence[Path]) -> dict[str, Any]:
    """JSON files by name without .json, those that exist."""
    return {path.name.removesuffix(".json"): read_json(path) for path in paths if path.exists()}
