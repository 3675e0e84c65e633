"""The shift of any denoiser on any images, without an experiment: `snrkit.measure`.

The trajectories of seed s are those of seeds s * 2^32 to s * 2^32 + n - 1 of an experiment, so that no two s share any.
With seed 0 every number is what `snrkit measure-shift` reads of the same model on the same split.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.streams import FORWARD_STATISTICS, STATISTICS
from snrkit.data.dataset import Dataset, chunks, moments
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.grid import Grid, ImageGrid, Placement, Told
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import OpenedSampler, Sampler, first_variance, open_with
from snrkit.sampling.step import (
    Fit,
    ForwardStatistics,
    LevelPosterior,
    NamedEstimator,
    NamedFit,
    NamedWeights,
    Sources,
    Step,
)
from snrkit.shift.arms import FORWARD_IMAGES, Arm, forward_arm
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.examine import Examined, Side, Walk, examine, real_arms
from snrkit.shift.given import (
    SEEDS,
    ImageSet,
    check_kinds,
    check_labels,
    check_memory,
    check_network,
    check_numbers,
    check_opened,
    data_set,
    open_device,
)
from snrkit.shift.reading import ShiftReading
from snrkit.shift.reference import (
    Weighted,
    even_shares,
    make_reference,
    matching,
    scarce,
    shares_by_class,
)
from snrkit.shift.response import RESPONSE_IMAGES, Response, measure_response
from snrkit.shift.spread import at_once
from snrkit.training.randomness import ImageStreams


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
    like. The network lies on `device`, cpu or cuda, in eval mode; images may lie elsewhere. `seed` is below 2^32.

    Images are the unit of the bootstrap, which draws them over all labels at once. So at least 20 of either side must
    stand beside trajectories, and none beside more than a twentieth of them, rounded up: a label that half of the
    trajectories have needs ten images of either side.

    SnrkitError for fewer, for images of other shapes or outside [-1, 1], for a network in train mode or on another
    device (as far as the denoiser shows its module, as that of snrkit.wrap does), for samplers that name what
    only a run has (autoguidance, noise_awareness_classifier, a grid that follows each image), and for opened ones with
    a placement, without a step, with levels of other shapes than (), or with parts that are not opened.
    """
    check_kinds(denoise, sampler)
    seen, real = data_set("trained", trained), data_set("held", held)
    if seen.shape != real.shape:
        raise SnrkitError(f"images in `trained` are {seen.shape} and in `held` {real.shape}; give images of one shape.")
    check_numbers(images, seed, batch, bootstrap, confidence)
    check_labels(labels, images, (seen, real))
    place = open_device(device)
    check_network(denoise, place)
    if isinstance(sampler, OpenedSampler):
        check_opened(sampler)
    labels = None if labels is None else labels.cpu()
    bench = _Bench(denoise, seen, real, labels, images, seed, batch, place)
    opened = sampler if isinstance(sampler, OpenedSampler) else open_with(sampler, denoise.process, bench)
    check_memory(images, math.prod(seen.shape), place)
    walks = bench.walks(opened, bench.first_variance(sampler))
    levels, resampled = opened.typical[:-1], Bootstrap(bootstrap, confidence, seed)
    found = bench.examined(walks, levels, resampled)
    return ShiftReading(found.shift, confidence, bench.response(levels, found.forward, resampled))


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

    def _rows(self, data: Dataset) -> Tensor:
        """(images,) which of a set stand beside the trajectories."""
        rows = matching(data.labels, range(data.count), self.labels, self.images)
        why = scarce(rows, self.labels)
        if why is not None:
            raise SnrkitError(f"`{data.name}`: {why}; give more images, of the labels that trajectories have.")
        return rows

    def side(self, data: Dataset, levels: Sequence[Level]) -> Side:
        """Images of a set, with the labels of the trajectories. SnrkitError where they are too few for intervals."""
        rows = self._rows(data)
        return Side(partial(data.x0, rows.tolist()), rows, levels, self.cond(slice(None)))

    def weighted(self) -> Weighted:
        """All trained images, with weights that mix classes as the trajectories do."""
        data, known, labels = self.trained, self.trained.labels, self.labels
        share = even_shares(data.count) if known is None or labels is None else shares_by_class(known, labels)
        for part in torch.split(torch.arange(data.count), at_once(data.shape)):
            yield data.x0(part.tolist()), share[part]

    def examined(self, walks: Iterable[Walk], levels: Sequence[Level], bootstrap: Bootstrap) -> Examined:
        """The arms of the walks and of real images at nominal `levels`, and what they say."""
        held, trained = self.side(self.held, levels), self.side(self.trained, levels)
        reference = make_reference(self.denoise.process, self.weighted, held.x0())
        reader = reference.reader(levels, {})
        real = real_arms(self.denoise, held, trained, reader, self.seed, self.batch, self.device)
        return examine(self.denoise, walks, self.images, real, reader, reference, bootstrap)

    def response(self, levels: Sequence[Level], forward: Arm, bootstrap: Bootstrap) -> Response:
        """On the first held-out images of the forward arm."""
        rows = forward.groups[:RESPONSE_IMAGES]
        held = Side(partial(self.held.x0, rows.tolist()), rows, levels, self.cond(slice(RESPONSE_IMAGES)))
        return measure_response(
            self.denoise, held, forward, bootstrap, seed=self.seed, batch=self.batch, device=self.device
        )

    def walks(self, opened: OpenedSampler, variance: float | None) -> Iterator[Walk]:
        """The trajectories, batch by batch; `variance` as `start` takes it."""
        for rows in chunks(range(self.images), self.batch):
            yield partial(self._walk, opened, variance, rows)

    def _walk(
        self, opened: OpenedSampler, variance: float | None, rows: Sequence[int], denoise: Denoiser
    ) -> Iterable[Step]:
        noise = ImageStreams([self.seed * SEEDS + row for row in rows], self.device)
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

    def fit(self, named: NamedFit) -> Fit:
        raise ConfigError("takes a run's fit to its network, and there is no run here; measure it with measure-shift.")

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        if isinstance(grid, ImageGrid):
            raise ConfigError("a grid that follows each image needs a run; measure it with snrkit measure-shift.")
        return None

    def telling(self, told: Told) -> Sources:
        raise ConfigError("told_spectrum needs a run; measure it with snrkit measure-shift.")
