"""Whether a run directory fits an experiment, and what it keeps of one."""

import contextlib
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
from snrkit.base.errors import ConfigError, DamagedError, RunError, unreadable
from snrkit.base.files import checksum, disk_errors, write_text
from snrkit.base.records import read_record, to_json
from snrkit.base.regular import read_regular
from snrkit.base.sealed import write_json
from snrkit.checkpoints.ours import list_checkpoints, newest_checkpoint, numbers_of
from snrkit.data.dataset import Dataset
from snrkit.experiment.experiment import Experiment, dump_yaml, parse_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.yaml_files import alone

CHECKSUM = "# checksum: "  # of all that stands before it in config.yaml, whose last line it begins
LARGEST_CONFIG = 2**22  # bytes


def check_data(run: Run, fingerprint: str) -> None:
    """Refuse to go on with other images than the run was trained on: RunError."""
    found = stored_environment(run)
    if found is not None and found.dataset_fingerprint != fingerprint:
        raise RunError(f"the images differ from those {run.path} was trained on; bring them back or name a new run.")


def check_fits(run: Run, experiment: Experiment) -> None:
    """Refuse a directory that holds another model: RunError names the first keys that differ."""
    if not run.config.exists():
        return
    stored = stored_experiment(run.path)
    differing = list(_differences(stored.training_part(), experiment.training_part()))
    if differing:
        raise RunError(
            f"{run.path} holds another experiment ({_some(differing)}); give the same settings by --set as before, or "
            "another name to this one."
        )


def training_of(experiment: Experiment, fingerprint: str) -> dict[str, Any]:
    """What a training is of, as its checkpoints keep it."""
    return {"experiment": experiment.training_part(), "images": fingerprint}


def check_trained(run: Run, experiment: Experiment, fingerprint: str) -> None:
    """Refuse checkpoints of another training, whatever the files beside them say: RunError. Damaged ones pass."""
    for path in list_checkpoints(run.checkpoints):
        with contextlib.suppress(DamagedError):  # which is refused where it is asked for
            check_of(path, numbers_of(path).get("of"), experiment, fingerprint)


def check_own(run: Run, paths: Sequence[Path]) -> None:
    """Refuse checkpoints, snapshots or averages of another training than their run directory says: RunError."""
    experiment, fingerprint = stored_training(run)
    for path in paths:
        check_of(path, numbers_of(path).get("of"), experiment, fingerprint)


def stored_training(run: Run) -> tuple[Experiment, str | None]:
    """The experiment of a run directory, and the fingerprint of its images where it says that. RunError: see both."""
    environment = stored_environment(run)
    return stored_experiment(run.path), None if environment is None else environment.dataset_fingerprint


def check_of(path: Path, found: object, experiment: Experiment, fingerprint: str | None) -> None:
    """Refuse a checkpoint that says of itself that it is of another training: RunError names the first keys.

    `fingerprint`: of the images; None where it is not known.
    """
    of = found if isinstance(found, Mapping) else {}
    part, ours = of.get("experiment"), experiment.training_part()
    differing = [] if part == ours else list(_differences(_completed(part, experiment, path), ours))
    if fingerprint is not None and of.get("images") != fingerprint:
        differing.append("its images are others")
    if differing:
        raise RunError(
            f"{path} is of another training ({_some(differing)}); put the one that belongs here in its place, or give "
            "this experiment another name."
        )


def _completed(part: object, experiment: Experiment, path: Path) -> dict[str, Any]:
    """The training part that a checkpoint keeps, with the defaults of keys that its version had not."""
    whole, ours = experiment.model_dump(mode="json"), experiment.training_part()
    if not isinstance(part, Mapping):
        raise RunError(f"{path} does not say which training it is of; restore it, or delete it.")
    content = whole | dict(part)
    for section in ("data", "train"):
        if isinstance(content[section], Mapping):
            free = {key: value for key, value in whole[section].items() if key not in ours.get(section, {})}
            content[section] = free | dict(content[section])
    try:
        return parse_experiment(content, str(path)).training_part()
    except ConfigError as error:
        line = str(error).splitlines()[0]
        raise RunError(f"{path} is of a training that this version does not know ({line}); restore it.") from None


def _some(differing: Sequence[str]) -> str:
    return "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path} is {old!r} there and {new!r} here"


def network_differences(there: Experiment, here: Experiment) -> str:
    """The first keys by which two networks differ, in words: by which states they are shown, then their own.

    Where all are alike, their images are of other shapes.
    """
    pair = (there, here)
    latents = "latents" in {e.data.kind for e in pair}
    encoding = len({e.training.latents is None for e in pair}) > 1
    old, new = (_shown(e, latents, encoding) for e in pair)
    networks = [{"network": e.network.model_dump(mode="json")} for e in pair]
    found = [*_differences(old, new), *_differences(networks[0], networks[1])]
    return _some(found) or "its images have other channels or another size"


def _shown(e: Experiment, kind: bool, encoding: bool) -> dict[str, Any]:
    """Which states of images a network is shown; with the kind of the data, and with the autoencoder of the model."""
    data: dict[str, Any] = {"representation": e.data.representation.model_dump(mode="json")}
    asked = e.training.latents
    return {
        "data": {**data, "kind": e.data.kind} if kind else data,
        "latents": str(asked.path) if encoding and asked is not None else None,
    }


def trained_run(runs: Path, experiment: Experiment, fingerprint: str) -> Run:
    """The run directory of a resolved experiment that was trained, or of a model from elsewhere, which may be empty.

    RunError when absent or of another experiment.
    """
    run = Run(runs / experiment.name)
    check_fits(run, experiment)
    check_data(run, fingerprint)
    if experiment.model.trains and newest_checkpoint(run.checkpoints) is None:
        raise RunError(f"{run.path} has no checkpoint; run snrkit train with the same file first.")
    if experiment.model.trains:
        check_trained(run, experiment, fingerprint)
    return run


def write_config(run: Run, experiment: Experiment) -> None:
    """Have config.yaml hold the resolved experiment, which may have gained samplers."""
    with disk_errors(f"writing {run.config}", "free space or choose another --runs folder"):
        text = dump_yaml(experiment)
        write_text(run.config, f"{text}{CHECKSUM}{checksum(text.encode())}\n")


@dataclass(frozen=True, slots=True)
class Environment:
    """What a number from a run depends on beside its configuration."""

    snrkit: str
    git_commit: str | None
    python: str
    platform: str
    packages: Mapping[str, str]
    device: str
    processes: int
    threads: int
    deterministic: bool
    tf32: bool
    precision: str
    dataset_fingerprint: str
    data_conversions: Mapping[str, int]  # how many images were changed on being read, by what was done
    command: tuple[str, ...]


def describe_environment(device: torch.device, experiment: Experiment, dataset: Dataset) -> Environment:
    """Of this process."""
    packages = ("torch", "torchvision", "numpy", "torch_fidelity", "pywt", "safetensors", "pydantic")
    return Environment(
        snrkit=__version__,
        git_commit=_git_commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in packages},
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " cpu",
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        threads=torch.get_num_threads(),
        deterministic=experiment.compute.deterministic,
        tf32=experiment.compute.tf32,
        precision=experiment.compute.precision,
        dataset_fingerprint=dataset.fingerprint,
        data_conversions=dict(dataset.conversions),
        command=tuple(sys.argv[1:]),
    )


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
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def write_environment(run: Run, environment: Environment) -> None:
    """Write environment.json."""
    write_json(run.environment, to_json(environment))


def stored_environment(run: Run) -> Environment | None:
    """What environment.json says; None where it is absent."""
    return read_record(Environment, run.environment) if run.environment.exists() else None


def stored_experiment(path: Path) -> Experiment:
    """The experiment of an existing run directory. RunError where there is none, or config.yaml is not as written."""
    config = Run(path).config
    try:
        text = read_regular(config, LARGEST_CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is not a run directory (it has no config.yaml); train one first.") from None
    except OSError as error:
        raise unreadable(config, error) from None
    body, mark, found = text.rpartition(CHECKSUM.encode())
    if not mark or found.strip() != checksum(body).encode():
        raise RunError(
            f"{config} cannot be believed: it was damaged, or changed after snrkit wrote it (its checksum does not "
            "fit); delete it and run the command that you ran before, which writes it anew."
        )
    return parse_experiment(alone(body, config), str(config))
