"""`snrkit measure-shift`: the three arms of snrkit.shift for every sampler, written to the run directory."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrkit.config import Experiment
from snrkit.data.dataset import Dataset, chunks, moments
from snrkit.distributed import World
from snrkit.errors import ConfigError, SnrkitError
from snrkit.files import disk_errors, write_bytes, write_json, write_text
from snrkit.jobs.opening import Model, Opened, open_experiment, open_model
from snrkit.jobs.progress import bar
from snrkit.jobs.sampling import choose, chosen_labels, sample_steps, starting_point
from snrkit.level import Level
from snrkit.prediction import Denoiser
from snrkit.randomness import ImageStreams
from snrkit.run import Run, locked, trained_run, write_config
from snrkit.sampler import Sampler, parse_seeds, rehearse
from snrkit.shift.files import as_csv, as_png, as_record
from snrkit.shift.measure import Arm, Shift, compare, forward_arm, reverse_arm
from snrkit.step import Step
from snrkit.streams import FORWARD, SUBSET, stream


def run_measuring(
    experiment: Experiment, runs: Path, world: World, names: Sequence[str] = (), quiet: bool = False
) -> dict[str, Any]:
    """Measure the chosen samplers (all by default); returns the records by sampler."""
    if world.size > 1:
        raise SnrkitError("measure-shift runs in one process; start it without torchrun.")
    chosen = choose(experiment, names)
    opened = open_experiment(experiment, world)
    check_held_out(opened)
    records: dict[str, Any] = {}
    run = trained_run(runs, opened.experiment, opened.dataset.fingerprint)
    with locked(run):
        model = open_model(opened, run)
        write_config(run, opened.experiment)
        seeds = measured_seeds(opened)
        variance = label_mix_variance(opened.dataset, opened.split.train, chosen_labels(opened, ImageStreams(seeds)))
        arms: dict[tuple[float, ...], tuple[Arm, Arm]] = {}
        with bar("measuring shift", len(chosen) * len(seeds), not quiet) as progress:
            for index, name in enumerate(chosen):
                sampler = opened.experiment.samplers[name]
                shift = measure(opened, model, sampler, seeds, variance, arms)
                progress.update((index + 1) * len(seeds), name)
                records[name] = _write(opened, model, run, name, sampler, shift)
    return records


def check_held_out(opened: Opened) -> None:
    """Refuse to measure without at least two held-out images for the null."""
    held, share = len(opened.split.held), opened.experiment.data.holdout
    if held < 2:
        raise ConfigError(
            f"data.holdout: measure-shift needs held-out images for its null, and a share of {share} holds out {held} "
            f"of {opened.dataset.count}; raise it or use more images."
        )


def measured_seeds(opened: Opened) -> list[int]:
    """The seeds of the trajectories: the first `shift.images` of `sample.seeds`, and those that follow if too few."""
    seeds = parse_seeds(opened.experiment.sample.seeds)
    wanted = opened.experiment.shift.images
    return [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + wanted)][:wanted]


def measure(
    opened: Opened,
    model: Model,
    sampler: Sampler,
    seeds: Sequence[int],
    variance: float,
    arms: dict[tuple[float, ...], tuple[Arm, Arm]],
) -> Shift:
    """The measurement of one sampler; `variance` is Var[x0]; samplers of the same levels share forward arms."""
    e = opened.experiment
    levels = sampler.grid.levels(e.process)

    def trajectory(batch: Sequence[int]) -> Callable[[Denoiser], Iterable[Step]]:
        def steps(denoise: Denoiser) -> Iterable[Step]:
            x, cond, noise = starting_point(opened, sampler, levels, batch)
            recorded = Model(denoise, model.weights, model.images)
            return sample_steps(recorded, sampler, levels, x, noise, cond)

        return steps

    with torch.no_grad():
        reverse, visited = reverse_arm(model.denoiser, (trajectory(batch) for batch in chunks(seeds, e.shift.batch)))
    key = tuple(float(level.logsnr) for level in visited)
    if key not in arms:
        arms[key] = _forward_arms(opened, model, visited, seeds)
    forward, train = arms[key]
    return compare(reverse, forward, train, visited, variance, e.shift, e.seed)


def label_mix_variance(dataset: Dataset, pool: Sequence[int], labels: Tensor | None) -> float:
    """Var[x0] over images, averaged over pixels, of the images in `pool` mixed as `labels` (n,) mixes their classes."""
    if labels is None or dataset.labels is None:
        return moments(dataset, pool).pixel_variance
    own = dataset.labels[torch.as_tensor(pool)]
    mean = torch.zeros(dataset.shape, dtype=torch.float64)
    square = torch.zeros(dataset.shape, dtype=torch.float64)
    for label, count in zip(*torch.unique(labels, return_counts=True), strict=True):
        same = moments(dataset, [pool[i] for i in (own == label).nonzero().flatten().tolist()])
        mean += float(count) / len(labels) * same.mean
        square += float(count) / len(labels) * same.square
    return float((square - mean**2).mean())


def _forward_arms(opened: Opened, model: Model, levels: Sequence[Level], seeds: Sequence[int]) -> tuple[Arm, Arm]:
    labels = chosen_labels(opened, ImageStreams(seeds))
    e, made = opened.experiment, []
    for number, pool in enumerate((opened.split.held, opened.split.train)):
        rows = matching(opened.dataset.labels, pool, labels, len(seeds))
        x0 = opened.dataset.x0(rows.tolist())
        key = (FORWARD, e.seed, number)
        arm = forward_arm(
            model.denoiser, levels, x0, rows, labels, key=key, batch=e.shift.batch, device=opened.world.device
        )
        made.append(arm)
    return made[0], made[1]


def matching(known: Tensor | None, pool: Sequence[int], labels: Tensor | None, count: int) -> Tensor:
    """(count,) indices from `pool` in an order of their own, cycled; with `labels`, the j-th has the j-th label.

    The order is shuffled, as files often lie sorted by class or origin. SnrkitError where no image has a label.
    """
    images = stream(SUBSET, len(pool)).permutation(np.asarray(pool))
    if labels is None or known is None:
        return torch.from_numpy(images[np.arange(count) % len(images)])
    own = known.numpy()[images]
    chosen = np.zeros(count, dtype=np.int64)
    for label in np.unique(labels.numpy()):
        places, same = np.flatnonzero(labels.numpy() == label), images[own == label]
        if len(same) == 0:
            raise SnrkitError(
                f"no image of one side of the split has label {label}; change data.holdout or set sample.labels."
            )
        chosen[places] = same[np.arange(len(places)) % len(same)]
    return torch.from_numpy(chosen)


def _write(opened: Opened, model: Model, run: Run, name: str, sampler: Sampler, shift: Shift) -> dict[str, Any]:
    e = opened.experiment
    nfe = rehearse(sampler, e.process, e.target, opened.dataset.shape)
    record = as_record(
        shift, sampler=name, definition=sampler.model_dump(mode="json"), nfe=nfe, weights=model.weights,
        checkpoint_images=model.images, held_out_images=len(opened.split.held), confidence=e.shift.confidence,
    )  # fmt: skip
    with disk_errors(f"writing {run.shift(name)}", "free space and run the same command again"):
        write_json(run.shift(name), record)
        write_text(run.shift(name, ".csv"), as_csv(shift))
        title = f"{e.name}/{name}: {nfe} evaluations, {shift.images} images, {model.weights} at {model.images} images"
        write_bytes(run.shift(name, ".png"), as_png(shift, title))
    return record
