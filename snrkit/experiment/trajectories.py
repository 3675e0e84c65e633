"""From seeds to images: labels, first states and the steps of one sampler of an experiment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.data.dataset import chunks, to_bytes
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.opening import Model, Opened
from snrkit.experiment.sources import open_sampler
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import OpenedSampler, Sampler, first_variance
from snrkit.sampling.step import Noise, Step
from snrkit.training.randomness import ImageStreams


@dataclass(frozen=True, slots=True)
class Batch:
    """Finished images (B, C, H, W) float64 with their seeds."""

    seeds: Sequence[int]
    x0: Tensor


def chosen_labels(opened: Opened, streams: ImageStreams) -> Tensor | None:
    """The labels (B,) of images: their own streams' or the fixed one; None for a network without classes."""
    if not opened.dataset.classes:
        return None
    fixed, only = opened.experiment.sample.labels, opened.experiment.data.only
    if fixed is not None:
        return torch.full_like(streams.labels(1), fixed)
    if only is None:
        return streams.labels(opened.dataset.classes)
    return torch.tensor(only, device=opened.world.device)[streams.labels(len(only))]


def starting_point(
    opened: Opened, sampler: Sampler, ready: OpenedSampler, seeds: Sequence[int], own: Tensor | None = None
) -> tuple[OpenedSampler, Tensor, Cond, ImageStreams]:
    """(the sampler, first state, condition, noise streams) of the images of `seeds`, on the device.

    `own`: what their grids are to follow, as in `Placement`.
    """
    streams = ImageStreams(seeds, opened.world.device)
    labels = chosen_labels(opened, streams)
    variance = first_variance(sampler, opened.moments.variance if opened.moments else None)
    ready, told = ready.of_images(seeds, labels, own)
    x = start(opened.experiment.process, streams.normal(opened.dataset.shape), ready.levels[0], variance)
    augment = opened.experiment.network.conditioning.unaugmented(len(seeds))
    return ready, x, Cond(labels, told, augment).to(opened.world.device), streams


def generate(opened: Opened, model: Model, sampler: Sampler, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """The images of each batch of seeds."""
    ready = open_sampler(opened, model, sampler)
    for seeds in batches:
        own, x, cond, noise = starting_point(opened, sampler, ready, seeds)
        for step in sample_steps(model.denoiser, own, x, noise, cond):
            x = step.x_next
        yield Batch(seeds, x)


def images_of(opened: Opened, model: Model, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
    """The images (n, C, H, W) uint8 of seeds, in batches of sample.batch, kept nowhere."""
    batches = list(chunks(seeds, opened.experiment.sample.batch))
    return torch.cat([to_bytes(opened.images(b.x0).cpu()) for b in generate(opened, model, sampler, batches)])


def sample_steps(denoise: Denoiser, ready: OpenedSampler, x: Tensor, noise: Noise, cond: Cond) -> Iterator[Step]:
    """The steps of one sampler from state `x`."""
    return sample(denoise, ready.solver, ready.levels, x, corrections=ready.corrections, noise=noise, cond=cond)
