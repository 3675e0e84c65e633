"""`snrkit average`: weights averaged after training, from what a run kept.

    --width   the power-function average of that relative width, rebuilt from snapshots of the power averages that were
              kept in training: post-hoc EMA (Karras et al. 2024)
    --decay   raw weights of the snapshots in proportion to decay^(N - i): for runs that kept no average, and no EMA

What is made lies in runs/<name>/averages/<its name> and is sampled with `sample.average: <its name>`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snrkit.base.errors import RunError, SnrkitError
from snrkit.checkpoints.ours import Checkpoint, list_checkpoints, load_checkpoint, numbers_of, save_checkpoint
from snrkit.experiment.lock import locked
from snrkit.experiment.run import Run
from snrkit.experiment.stored import check_own, stored_experiment
from snrkit.training.ema import WIDEST, Power, Snapshot, combine, distance, geometric, posthoc


def run_averaging(path: Path, width: float | None, decay: float | None, at: int | None) -> dict[str, Any]:
    """Make one average of a run, by exactly one of width and decay, as of `at` images or of the last snapshot."""
    if (width is None) == (decay is None):
        raise SnrkitError("give either --width (post-hoc EMA) or --decay (average of snapshots).")
    run = Run(path)
    experiment = stored_experiment(path)
    folders = snapshots_until(run, at)
    check_own(run, folders)
    with locked(run):
        if width is not None:
            return _posthoc(run, [a for a in experiment.train.averages if isinstance(a, Power)], folders, width)
        assert decay is not None
        return _geometric(run, folders, decay)


def snapshots_until(run: Run, at: int | None) -> list[Path]:
    """Folders of snapshots, else of checkpoints, oldest first; RunError where there are none until `at` images."""
    folders = list_checkpoints(run.snapshots) or list_checkpoints(run.checkpoints)
    found = [folder for folder in folders if at is None or int(folder.name) <= at]
    if not found:
        raise RunError(f"{run.path} has no snapshot or checkpoint" + (f" up to {at} images." if at else "; train it."))
    return found


def _posthoc(run: Run, kept: Sequence[Power], folders: Sequence[Path], width: float) -> dict[str, Any]:
    if not kept:
        raise SnrkitError(
            f"{run.path} kept no power average, which post-hoc EMA is made of; train with train.averages: "
            "[{kind: power, width: 0.05}, {kind: power, width: 0.1}], or use --decay."
        )
    if not 0 < width < WIDEST:
        raise SnrkitError(f"--width {width:g} must lie between 0 and {WIDEST}.")
    sources = [(power.name, folder) for folder in folders for power in kept]
    profiles = [Snapshot(power.gamma, int(folder.name)) for folder in folders for power in kept]
    images = int(folders[-1].name)
    wanted = Snapshot(Power(width=width).gamma, images)
    coefficients = posthoc(profiles, wanted)
    tensors = combine(coefficients, (load_checkpoint(f, only=name).tensors[name] for name, f in sources))
    return _keep(
        run,
        f"posthoc-{width:g}",
        images,
        tensors,
        {
            "snapshots": len(folders),
            "profile_error": distance(coefficients, profiles, wanted),
            "coefficients": coefficients.tolist(),
        },
    )


def _geometric(run: Run, folders: Sequence[Path], decay: float) -> dict[str, Any]:
    if len(folders) < 2:
        raise RunError(
            f"{run.path} has one set of weights, {folders[0].name}, and its average is itself; keep more with "
            "train.snapshot_every or train.keep_every."
        )
    if not 0 < decay <= 1:
        raise SnrkitError(f"--decay {decay:g} must lie in (0, 1]; 1 weighs all snapshots alike.")
    coefficients = geometric(len(folders), decay)
    tensors = combine(coefficients, (load_checkpoint(f, only="network").tensors["network"] for f in folders))
    return _keep(
        run,
        f"snapshots-{decay:g}",
        int(folders[-1].name),
        tensors,
        {
            "snapshots": len(folders),
            "coefficients": coefficients.tolist(),
        },
    )


def _keep(run: Run, name: str, images: int, tensors: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    record = {"name": name, "images": images, **facts}
    of = numbers_of(snapshots_until(run, images)[-1])["of"]
    save_checkpoint(run.averages(name), Checkpoint(images, {name: tensors}, {**record, "of": of}))
    return record
