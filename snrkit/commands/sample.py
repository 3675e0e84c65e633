"""`snrkit sample`: images per seed, written one by one, so that an interrupted run goes on with the missing seeds.

A batch is encoded and written by threads, whole or not at all, while the next one is sampled.
"""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snrkit.base.ahead import ahead, threads
from snrkit.base.background import Background
from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError, SnrkitError, Stopped
from snrkit.base.faults import suggestion
from snrkit.base.files import disk_errors, remove_folder, write_bytes, write_text
from snrkit.base.numerics import NUMERICS
from snrkit.base.signals import ending, stoppable
from snrkit.base.transfer import Arriving
from snrkit.commands.opening import open_aloud, open_model_aloud
from snrkit.commands.progress import EVALUATIONS, bar, log
from snrkit.data.dataset import chunks, to_bytes
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import locked
from snrkit.experiment.loggers import check_loggers, open_loggers
from snrkit.experiment.opening import Setting
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder, image_path
from snrkit.experiment.sources import RunNames
from snrkit.experiment.stored import trained_run, write_config
from snrkit.experiment.trajectories import Trajectories, trajectories
from snrkit.sampling.sampler import Sampler, parse_seeds, takes_fit
from snrkit.spectral.grid import UNTOLD, SpectralGrid
from snrkit.training.randomness import ImageStreams

SHOWN = 100  # images of the picture grid
TOGETHER = 16  # images that a thread encodes before it hands them over


def run_sampling(
    experiment: Experiment,
    runs: Path,
    world: World,
    names: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
) -> Run:
    """Make the images of the chosen samplers (all by default) that are not there yet."""
    chosen = choose(experiment, names)
    check_loggers(experiment)
    opened = open_aloud(experiment, world, quiet)
    e = opened.experiment
    check_images(opened.setting)
    check_samplers(opened.setting, {name: e.samplers[name] for name in chosen})
    run = trained_run(runs, e, opened.data.dataset.fingerprint)
    with locked(run) if world.leads else ending():
        samples = trajectories(opened, open_model_aloud(opened, run))
        for name in chosen:
            check_claim(SampleFolder(run.samples(name)), manifest(samples.sources.names, e.samplers[name]), overwrite)
            check_fitted(samples, name, e.samplers[name])
        world.barrier()
        if world.leads:
            write_config(run, e)
        world.barrier()
        with open_loggers(e, run, world) as loggers:
            for name in chosen:
                folder = SampleFolder(run.samples(name))
                make_images(samples, name, folder, e.samplers[name], overwrite, quiet)
                loggers.picture(name, samples.sources.names.weights.images, path_beside(folder.path, ".png"))
    return run


def choose(experiment: Experiment, names: Sequence[str]) -> list[str]:
    """The names of samplers asked for, all by default. ConfigError for an unknown one or when there are none."""
    known = list(experiment.samplers)
    if not known:
        raise ConfigError("samplers: this experiment has none; add one, such as heun: {grid: ..., solver: ...}.")
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown sampler '{name}'.{suggestion(name, known)} Known: {', '.join(known)}")
    return list(names) or known


def with_texture(experiment: Experiment, names: Sequence[str], scale: float) -> tuple[Experiment, list[str]]:
    """(The experiment with `<name>-scale-<scale>` beside every chosen sampler with a spectral grid, these names)."""
    made: dict[str, Sampler] = {}
    for name in choose(experiment, names):
        sampler = experiment.samplers[name]
        if isinstance(sampler.grid, SpectralGrid):
            grid = sampler.grid.model_copy(update={"scale": scale})
            scaled = f"{name}-scale-{scale:g}"
            made[scaled] = sampler.model_copy(update={"grid": grid})
            if experiment.samplers.get(scaled, made[scaled]) != made[scaled]:
                raise ConfigError(f"--spectrum-scale: the experiment has another sampler {scaled}; rename that.")
        elif names:
            raise ConfigError(f"--spectrum-scale: samplers.{name} has a grid {sampler.grid.kind}; it needs spectral.")
    if not made:
        raise ConfigError("--spectrum-scale: no sampler here has a grid of kind spectral.")
    if not experiment.network.conditioning.scalars:
        raise ConfigError(f"--spectrum-scale: {UNTOLD}.")
    return experiment.model_copy(update={"samplers": {**experiment.samplers, **made}}), list(made)


def check_samplers(setting: Setting, samplers: Mapping[str, Sampler]) -> None:
    """Refuse samplers that cannot run on images of this shape, before anything is written: ConfigError."""
    for name, sampler in samplers.items():
        try:
            setting.cost(sampler)
        except SnrkitError as error:
            raise ConfigError(f"samplers.{name}: {error}") from None


def check_fitted(samples: Trajectories, name: str, sampler: Sampler) -> None:
    """Refuse a sampler whose fit cannot be had, before images of any are made: SnrkitError."""
    try:
        if takes_fit(sampler):
            samples.open(sampler)
    except SnrkitError as error:
        raise type(error)(f"samplers.{name}: {error}") from None


def check_images(setting: Setting) -> None:
    """Refuse images that no PNG can hold, before anything is trained or made for them: ConfigError."""
    channels = setting.data.labelled.shape[0]
    if channels not in (1, 3):
        raise ConfigError(f"data: images of {channels} channels cannot be saved as PNG; give images of 1 or 3.")


def make_images(
    samples: Trajectories, name: str, folder: SampleFolder, sampler: Sampler, overwrite: bool, quiet: bool
) -> None:
    """Make and save what is missing in `folder`. Raises Stopped when asked to stop."""
    world, config = samples.setting.world, samples.config
    names = samples.sources.names
    record, warning = manifest(names, sampler), names.spectra.beyond(sampler.grid)
    if world.leads:
        _claim(name, folder, record, overwrite)
        if warning:
            log.warning(f"{name}: {warning}")
    world.barrier()
    seeds = parse_seeds(config.seeds)
    missing = folder.missing(seeds)
    world.barrier()  # all processes have listed what is missing before any of them writes
    mine = list(chunks(missing, config.batch))[world.rank :: world.size]
    total = sum(len(batch) for batch in mine)
    done, cost, visible = 0, samples.setting.cost(sampler), world.leads and not quiet and total > 0
    shown = bar(f"sampling {name}", cost * total, visible, EVALUATIONS)
    with stoppable() as stop, Background() as writer, shown as progress:
        for batch in samples.generate(sampler, mine):
            pixels = Arriving(to_bytes(samples.setting.data.images(batch.x0)))
            writer.do(partial(_save, folder, record, batch.seeds, pixels, world))
            done += len(batch.seeds)
            progress.update(cost * done, f"{done:,} of {total:,} images")
            if stop.asked:
                world.ask_to_stop()
            if stop.asked or world.asked_to_stop:
                break
    stopped = world.any(done < total or stop.asked)
    world.barrier()
    if world.leads:
        _finish(samples, folder, seeds, record, stopped)
    world.barrier()  # the manifest says what all have made
    if stopped:
        made = len(seeds) - len(folder.missing(seeds))
        text = f"stopped with {made} of {len(seeds)} images in {folder.path}; run the same command to go on."
        raise Stopped(text if world.leads else "", stop.code)


def _save(
    folder: SampleFolder, record: Mapping[str, Any], seeds: Sequence[int], pixels: Arriving, world: World
) -> None:
    """Encode and write the images (n, C, H, W) of a batch."""
    arrived = pixels.wait()

    def encode_all(places: Sequence[int]) -> list[bytes]:
        return [encode(arrived[place]) for place in places]

    parts = ahead(encode_all, chunks(range(len(seeds)), TOGETHER), threads(world.size))
    images = dict(zip(seeds, chain.from_iterable(parts), strict=True))
    with disk_errors(f"saving images in {folder.path}", "free space and run the same command again"):
        folder.add(record, images, world.rank)


def manifest(names: RunNames, sampler: Sampler) -> dict[str, Any]:
    """What decides the images of a seed, beside the seed: the key of all that is made of a sampler."""
    e, data = names.experiment, names.setting.data
    return {
        "numerics": NUMERICS,
        "sampler": sampler.model_dump(mode="json"),
        "training": e.training_part(),
        "data": data.dataset.fingerprint,
        "checkpoint_images": names.weights.images,
        "weights": names.weights.name,
        "weights_checksum": names.weights.checksum,
        "labels": e.sample.labels,
        "precision": e.compute.precision,
        "tf32": e.compute.tf32,
        "named": names.facts(sampler),
    }


def check_claim(folder: SampleFolder, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether `folder` holds images to be deleted first. RunError when they are another sampler's and may not be."""
    stored = folder.manifest()
    if stored is None:
        return False
    differing = [key for key in record if stored.made.get(key) != record[key]]
    if differing and not overwrite:
        raise RunError(
            f"{folder.path} holds images of another sampler or checkpoint ({', '.join(differing)} differ); "
            "add --overwrite to make them anew, or rename the sampler."
        )
    return overwrite


def _claim(name: str, folder: SampleFolder, record: dict[str, Any], overwrite: bool) -> None:
    with disk_errors(f"writing {folder.path}", "free space and run the same command again"):
        if check_claim(folder, record, overwrite):
            remove_folder(folder.path)
        if lost := folder.gather(record):
            log.warning(f"{name}: {len(lost)} images were damaged or gone; those of sample.seeds are made again")


def encode(pixels: Tensor) -> bytes:
    """uint8 (C, H, W) as PNG; other than one or three channels are refused."""
    if pixels.shape[0] not in (1, 3):
        raise RunError(f"images of {pixels.shape[0]} channels cannot be saved as PNG.")
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def _finish(
    samples: Trajectories, folder: SampleFolder, seeds: Sequence[int], record: dict[str, Any], stopped: bool
) -> None:
    with disk_errors(f"writing {folder.path}", "free space and run the same command again"):
        folder.gather(record, verify=False)  # these were just written
        if stopped:
            return
        stored, shape = folder.manifest(), samples.setting.data.labelled.shape
        finished = sorted({} if stored is None else stored.sums)
        labels = samples.labels(ImageStreams(finished))
        if labels is not None:
            listed = [[image_path(seed), label] for seed, label in zip(finished, labels.tolist(), strict=True)]
            write_text(folder.path / "dataset.json", json.dumps({"labels": listed}) + "\n")  # as EDM's tools read it
        write_bytes(path_beside(folder.path, ".png"), encode(picture(folder.load(seeds[:SHOWN], shape))))
        if samples.config.npz:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, arr_0=folder.load(seeds, shape).permute(0, 2, 3, 1).numpy())
            write_bytes(path_beside(folder.path, ".npz"), buffer.getvalue())


def path_beside(folder: Path, suffix: str) -> Path:
    """The file next to a sampler's folder; its name may hold dots."""
    return folder.parent / f"{folder.name}{suffix}"


def picture(images: Tensor, smallest: int = 32) -> Tensor:
    """uint8 images (n, C, H, W) as one picture (C, h, w), tiles at least `smallest` pixels high, one pixel apart."""
    factor = -(-smallest // images.shape[2])
    large = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    columns = max(1, round((len(large) * large.shape[2] / large.shape[3]) ** 0.5))
    rows = -(-len(large) // columns)
    height, width = large.shape[2] + 1, large.shape[3] + 1
    out = torch.full((images.shape[1], rows * height - 1, columns * width - 1), 128, dtype=torch.uint8)
    for i, image in enumerate(large):
        top, left = (i // columns) * height, (i % columns) * width
        out[:, top : top + height - 1, left : left + width - 1] = image
    return out
