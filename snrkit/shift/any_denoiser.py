"""The shift of any denoiser on any images, without an experiment: `snrkit.measure`.

With seed 0 its trajectories are those of seeds 0 to n - 1, and every number is what `snrkit measure-shift` reads of the
same model on the same split.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.streams import FORWARD_STATISTICS, STATISTICS
from snrkit.data.dataset import Dataset, chunks, moments
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.grid import Grid, ImageGrid, Placement
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import OpenedSampler, Sampler, first_variance, open_with
from snrkit.sampling.step import ForwardStatistics, LevelPosterior, NamedEstimator, NamedWeights, Step
from snrkit.shift.arms import FORWARD_IMAGES, forward_arm
from snrkit.shift.bootstrap import FEWEST, Bootstrap
from snrkit.shift.examine import Side, Walk, examine, real_arms
from snrkit.shift.reading import ShiftReading
from snrkit.shift.reference import READ_AT_ONCE, Weighted, even_shares, make_reference, matching, shares_by_class
from snrkit.training.randomness import ImageStreams

ROUNDING = 1e-3  # by which images may leave [-1, 1]
STATE_BYTES = 4  # of a number in an arm


class ImageSet(Protocol):
    """Images by their index, such as a snrkit.data.dataset.Dataset."""

    @property
    def count(self) -> int:
        """How many there are."""

    def x0(self, indices: Sequence[int], /) -> Tensor:
        """Clean images (n, C, H, W), floats in [-1, 1]."""


def measure(
    denoise: Denoiser,
    sampler: Sampler | OpenedSampler,
    *,
    trained: Tensor | ImageSet,
    held: Tensor | ImageSet,
    labels: Tensor | None = None,
    images: int = 1000,
    seed: int = 0,
    batch: int = 500,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    device: torch.device | str = "cpu",
) -> ShiftReading:
    """How far a sampler's states are from the levels that the denoiser is told: the reading of snrkit measure-shift.

    `trained` are images that the denoiser was trained on and `held` such as it was not, (N, C, H, W) in [-1, 1] or by
    index; the latter are real images of the same kind, with which `images` trajectories are compared, and the former
    say what the same comparison reads where there is no sampler: the null of the norm gap (that of the other readings
    is the latter's own). Fewer than `images` are repeated with other noise. `labels` (images,) int64 are told to the
    network, with real images that have them; both sets are then `snrkit.memory_dataset(name, images, labels)` or the
    like. The network lies on `device`, in eval mode.

    SnrkitError for fewer than 20 of either, for images of other shapes or outside [-1, 1], and for samplers that name
    what only a run has (autoguidance, noise_awareness_classifier, a grid that follows each image).
    """
    seen, real = _data_set("trained", trained), _data_set("held", held)
    if seen.shape != real.shape:
        raise SnrkitError(f"images in `trained` are {seen.shape} and in `held` {real.shape}; give images of one shape.")
    _check_labels(labels, images, (seen, real))
    _check_numbers(images, batch, bootstrap, confidence)
    labels = None if labels is None else labels.cpu()
    bench = _Bench(denoise, seen, real, labels, images, seed, batch, torch.device(device))
    opened = sampler if isinstance(sampler, OpenedSampler) else open_with(sampler, denoise.process, bench)
    levels = opened.typical[:-1]
    _check_memory(images, len(levels), math.prod(seen.shape))
    held_side, trained_side = bench.side(real, levels), bench.side(seen, levels)
    reference = make_reference(denoise.process, bench.weighted, held_side.x0)
    found = examine(
        denoise,
        bench.walks(opened, bench.first_variance(sampler)),
        real_arms(denoise, held_side, trained_side, seed, batch, bench.device),
        levels,
        reference,
        Bootstrap(bootstrap, confidence, seed),
    )
    return ShiftReading(found.shift, confidence)


@dataclass(frozen=True, slots=True)
class _Bench:
    """A denoiser with images, as the source of what samplers ask for, of walks and of real images."""

    denoise: Denoiser
    trained: Dataset
    held: Dataset
    labels: Tensor | None
    images: int
    seed: int
    batch: int
    device: torch.device

    def cond(self, rows: slice) -> Cond:
        """What the network is told of some of the trajectories."""
        return Cond(None if self.labels is None else self.labels[rows])

    def side(self, data: Dataset, levels: Sequence[Level]) -> Side:
        """Images of a set, with the labels of the trajectories."""
        rows = matching(data.labels, range(data.count), self.labels, self.images)
        return Side(data.x0(rows.tolist()), rows, levels, self.cond(slice(None)))

    def weighted(self) -> Weighted:
        """All trained images, with weights that mix classes as the trajectories do."""
        data, known, labels = self.trained, self.trained.labels, self.labels
        share = even_shares(data.count) if known is None or labels is None else shares_by_class(known, labels)
        for part in torch.split(torch.arange(data.count), READ_AT_ONCE):
            yield data.x0(part.tolist()), share[part]

    def walks(self, opened: OpenedSampler, variance: float | None) -> Iterator[Walk]:
        """The trajectories, batch by batch; `variance` as `start` takes it."""
        for rows in chunks(range(self.images), self.batch):
            yield partial(self._walk, opened, variance, rows)

    def _walk(
        self, opened: OpenedSampler, variance: float | None, rows: Sequence[int], denoise: Denoiser
    ) -> Iterable[Step]:
        noise = ImageStreams([self.seed * self.images + row for row in rows], self.device)
        x = start(denoise.process, noise.normal(self.held.shape), opened.levels[0], variance)
        cond = self.cond(slice(rows[0], rows[-1] + 1)).to(self.device)
        return sample(denoise, opened.solver, opened.levels, x, corrections=opened.corrections, noise=noise, cond=cond)

    def first_variance(self, sampler: Sampler | OpenedSampler) -> float | None:
        """What `start` takes for the variance of the data."""
        if isinstance(sampler, OpenedSampler):
            return None
        exact = sampler.start == "exact"
        return first_variance(sampler, moments(self.trained, range(self.trained.count)).variance if exact else None)

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """On up to FORWARD_IMAGES trained images, with their own labels."""
        rows = STATISTICS.open().permutation(self.trained.count)[:FORWARD_IMAGES]
        known = None if self.labels is None else self.trained.labels
        arm = forward_arm(
            self.denoise,
            levels,
            self.trained.x0(rows.tolist()),
            torch.from_numpy(rows),
            Cond(None if known is None else known[torch.from_numpy(rows)]),
            key=FORWARD_STATISTICS.key(self.seed),
            batch=self.batch,
            device=self.device,
        )
        return ForwardStatistics(arm.eps_square.mean(1), arm.x0_variance.mean(1))

    def denoiser(self, named: NamedWeights) -> Denoiser:
        raise ConfigError("names other weights of a run, and there is none here; measure it with snrkit measure-shift.")

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        raise ConfigError("names a run's estimator, and there is no run here; measure it with snrkit measure-shift.")

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        if isinstance(grid, ImageGrid):
            raise ConfigError("a grid that follows each image needs a run; measure it with snrkit measure-shift.")
        return None


def _data_set(name: str, given: Tensor | ImageSet) -> Dataset:
    """The images by index, checked as they are read. SnrkitError for what are no images, or too few."""
    count = len(given) if isinstance(given, Tensor) else given.count
    read = partial(_rows, given) if isinstance(given, Tensor) else given.x0
    if count < FEWEST:
        raise SnrkitError(f"`{name}` holds {count} images, and an interval needs at least {FEWEST}.")
    first = read([0])
    if first.ndim != 4 or not first.is_floating_point():
        raise SnrkitError(
            f"`{name}` holds {first.dtype} of shape {tuple(first.shape[1:])}; give images (N, C, H, W) of floats in "
            "[-1, 1], bytes as x / 127.5 - 1."
        )
    shape = (first.shape[1], first.shape[2], first.shape[3])

    def checked(rows: Sequence[int]) -> Tensor:
        x0 = read(rows)
        if not bool(x0.abs().max() <= 1 + ROUNDING):
            raise SnrkitError(
                f"`{name}` holds {float(x0.abs().max()):g}, and images lie in [-1, 1]; scale them as in training."
            )
        return x0.float().cpu()

    return Dataset(name, shape, count, checked, "", given.labels if isinstance(given, Dataset) else None)


def _rows(images: Tensor, rows: Sequence[int]) -> Tensor:
    return images[torch.as_tensor(rows, device=images.device)]


def _check_labels(labels: Tensor | None, images: int, sets: Sequence[Dataset]) -> None:
    """SnrkitError where trajectories have labels that real images do not have."""
    if labels is None:
        return
    if labels.shape != (images,) or labels.is_floating_point():
        raise SnrkitError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give ({images},) of int64.")
    for one in sets:
        if one.labels is None:
            raise SnrkitError(
                f"`{one.name}` has no labels; give snrkit.memory_dataset(name, images, labels), or leave out `labels`."
            )
        absent = sorted(set(labels.tolist()) - set(one.labels.tolist()))
        if absent:
            raise SnrkitError(f"`{one.name}` has no images of the labels {absent}, which trajectories have.")


def _check_numbers(images: int, batch: int, bootstrap: int, confidence: float) -> None:
    """SnrkitError for numbers with which nothing can be measured."""
    for name, value, least in (("images", images, FEWEST), ("batch", batch, 1), ("bootstrap", bootstrap, 100)):
        if value < least:
            raise SnrkitError(f"{name} is {value}; give {least} at least.")
    if not 0.5 < confidence < 1:
        raise SnrkitError(f"confidence is {confidence}; give a number between 0.5 and 1, such as 0.95.")


def _check_memory(images: int, levels: int, dimensions: int) -> None:
    """SnrkitError where the states of three arms, and of one while it is joined, are more than this machine holds."""
    needed = 4 * STATE_BYTES * images * levels * dimensions
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise SnrkitError(
            f"the states of {images} images at {levels} levels need {needed / 2**30:.0f} GiB and this machine has "
            f"{there / 2**30:.0f}; give fewer images."
        )
