"""From seeds to images: labels, first states and the steps of the samplers of one model.

What is random is keyed by the seed of an image, so that a thread may draw it before it is asked for: the noise of the
next step, and the first states of the next batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.ahead import ahead
from snrkit.data.dataset import chunks, to_bytes
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.certificate import certified_fit
from snrkit.experiment.opening import Model, Opened, Setting
from snrkit.experiment.sources import RunNames, RunSources
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import OpenedSampler, SampleConfig, Sampler, first_variance, named_fit, open_with
from snrkit.sampling.step import Noise, Step
from snrkit.training.randomness import ImageStreams


@dataclass(frozen=True, slots=True)
class Batch:
    """Finished images (B, C, H, W) float64 with their seeds."""

    seeds: Sequence[int]
    x0: Tensor


class NoiseAhead:
    """The noise of a batch: its next `draws` of `drawn`, and beyond these what its streams draw when they are asked."""

    def __init__(self, drawn: Iterator[Tensor], draws: int, streams: Noise) -> None:
        self._drawn, self._left, self._streams = drawn, draws, streams

    def __call__(self, x: Tensor) -> Tensor:
        """Noise shaped and typed as x."""
        if not self._left:
            return self._streams(x)
        self._left -= 1
        return next(self._drawn).to(x)

    def skip(self) -> None:
        """Pass over what was never asked for."""
        for _ in range(self._left):
            next(self._drawn)
        self._left = 0


@dataclass(frozen=True, slots=True)
class Trajectories:
    """What samplers make of a model in its setting."""

    setting: Setting
    model: Model
    sources: RunSources
    config: SampleConfig

    def open(self, sampler: Sampler) -> OpenedSampler:
        """A sampler with all that it names. RunError for a certificate of other weights."""
        if sampler.certificate is not None:
            certified_fit(sampler.certificate, self.sources.names.fit_of(named_fit(sampler)))
        return open_with(sampler, self.setting.parts.process, self.sources)

    def labels(self, streams: ImageStreams) -> Tensor | None:
        """The labels (B,) of images, as `labels_of` has them."""
        return labels_of(self.setting, self.config, streams)

    def begin(
        self, sampler: Sampler, ready: OpenedSampler, seeds: Sequence[int], own: Tensor | None = None
    ) -> tuple[OpenedSampler, Tensor, Cond, ImageStreams]:
        """(the sampler, first state, condition, noise streams) of the images of `seeds`, on the device.

        `own`: what their grids are to follow, as in `Placement`.
        """
        parts, data, device = self.setting.parts, self.setting.data, self.setting.world.device
        streams = ImageStreams(seeds, device)
        labels = self.labels(streams)
        ready, told = ready.of_images(seeds, labels, own)
        variance = first_variance(sampler, data.variance)
        x = start(parts.process, streams.normal(data.dataset.shape), ready.levels[0], variance)
        augment = parts.network.conditioning.unaugmented(len(seeds))
        return ready, x, Cond(labels, told, augment).to(device), streams

    def generate(self, sampler: Sampler, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The clean states of each batch of seeds. One thread draws up to two draws of noise ahead."""
        ready = self.open(sampler)
        draws = 0 if ready.solver.renews == 0 else len(ready.levels) - 1
        begun: deque[tuple[OpenedSampler, Cond, ImageStreams]] = deque()

        def in_order() -> Iterator[Tensor]:
            for seeds in batches:
                own, first, cond, streams = self.begin(sampler, ready, seeds)
                begun.append((own, cond, streams))
                alike = first.new_empty((0, *first.shape[1:]))
                yield first
                del first  # a whole batch, which who asked for it has by now
                for _ in range(draws):
                    yield streams(alike)

        made = in_order()
        with closing(ahead(lambda _: next(made), range(len(batches) * (1 + draws)), 1)) as drawn:
            for seeds in batches:
                x = next(drawn)
                own, cond, streams = begun.popleft()
                noise = NoiseAhead(drawn, draws, streams)
                for step in sample_steps(self.model.denoiser, own, x, noise, cond):
                    x = step.x_next
                noise.skip()
                yield Batch(seeds, x)

    def images(self, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
        """The images (n, C, H, W) uint8 of seeds, in batches of sample.batch, kept nowhere."""
        made = self.generate(sampler, list(chunks(seeds, self.config.batch)))
        return torch.cat([to_bytes(self.setting.data.images(batch.x0)).cpu() for batch in made])


def labels_of(setting: Setting, config: SampleConfig, streams: ImageStreams) -> Tensor | None:
    """The labels (B,) of images: their own streams' or the fixed one; None for a network without classes."""
    data, fixed = setting.data, config.labels
    if not data.dataset.classes:
        return None
    if fixed is not None:
        return torch.full_like(streams.labels(1), fixed)
    if data.source.only is None:
        return streams.labels(data.dataset.classes)
    return torch.tensor(data.source.only, device=setting.world.device)[streams.labels(len(data.source.only))]


def trajectories(opened: Opened, model: Model) -> Trajectories:
    """What the samplers of an experiment make of its model, or of another checkpoint of it."""
    e = opened.experiment
    return Trajectories(
        opened.setting, model, RunSources(RunNames(e, opened.setting, model.run, model.made_of), model), e.sample
    )


def sample_steps(denoise: Denoiser, ready: OpenedSampler, x: Tensor, noise: Noise, cond: Cond) -> Iterator[Step]:
    """The steps of one sampler from state `x`."""
    return sample(denoise, ready.solver, ready.levels, x, corrections=ready.corrections, noise=noise, cond=cond)
