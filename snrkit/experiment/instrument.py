"""Measures samplers of one model: the arms and probes of snrkit.shift on an experiment."""

import math
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError
from snrkit.base.frequency import views
from snrkit.base.streams import FORWARD_HELD, FORWARD_TRAIN
from snrkit.data.dataset import chunks
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.images import OpenedData
from snrkit.experiment.models import TrainedHere
from snrkit.experiment.opening import Model, Setting, open_task
from snrkit.experiment.reference import by_part, class_shares, matching, part_moments
from snrkit.experiment.run import Run
from snrkit.experiment.sources import open_estimator
from snrkit.experiment.trajectories import Trajectories, sample_steps
from snrkit.sampling.grid import scope_of
from snrkit.sampling.sampler import OpenedSampler, Sampler, parse_seeds
from snrkit.sampling.step import Noise, Step
from snrkit.shift.amplification import LARGEST_COVARIANCE
from snrkit.shift.arms import Arm, forward_arm, reverse_arm
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.config import ShiftConfig
from snrkit.shift.estimator import Estimator
from snrkit.shift.measure import Reference, Shift, read, summarise
from snrkit.shift.nearest import GaussianFit
from snrkit.shift.probe import Circumstances, Probe, Specimen
from snrkit.training.holdout import Pairs, training_pairs
from snrkit.training.randomness import ImageStreams

T = TypeVar("T")
FEWEST = 20  # below it a bootstrap's interval covers far less than it says
STATE_BYTES = 4  # of a number in an arm


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that was measured of one sampler."""

    shift: Shift
    sizes: Mapping[str, Tensor]  # mean squares over levels of what is beyond the nulls, resampled
    probes: Mapping[str, object]  # the record of every probe that was asked for, by kind; None where it has none


def check_held_out(data: OpenedData) -> None:
    """Refuse to measure without enough held-out images for a null with an interval."""
    held, share = len(data.split.held), data.source.holdout
    if held < FEWEST:
        raise ConfigError(
            f"data.holdout: measure-shift needs held-out images for its null, at least {FEWEST}, and a share of "
            f"{share} holds out {held} of {data.dataset.count}; raise it or use more images."
        )


def check_probes(e: Experiment, run: Run, names: Sequence[str]) -> None:
    """Refuse probes that ask for what is not there, of these samplers: ConfigError."""
    fitted = (run.estimator / "estimator.json").exists()
    for name in names:
        given = Circumstances(name, scope_of(e.samplers[name].grid, e.model.parts.levels) == "dataset", fitted)
        for probe in e.shift.probes:
            why = probe.missing(given)
            if why is not None:
                raise ConfigError(f"shift.probes: {probe.kind} {why}, or leave the probe out.")


def check_arms_fit(
    data: OpenedData, shift: ShiftConfig, samplers: Iterable[Sampler], memory: int | None = None
) -> None:
    """Refuse to begin what cannot be held, by estimate: ConfigError. Every level keeps its states until it is read.

    Two forward arms a grid, two reverse arms at most and room to join them, and what probes hold beside them.

    `memory`: bytes; default: all that this machine has.
    """
    dims = math.prod(data.dataset.shape)
    grids = {sampler.grid for sampler in samplers}
    kept = 2 * sum(grid.steps for grid in grids) + 4 * max(grid.steps for grid in grids)
    needed = STATE_BYTES * shift.images * dims * kept
    needed += sum(probe.memory(len(data.split.train) * len(data.ways), dims) for probe in shift.probes)
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > memory:
        raise ConfigError(
            f"shift.images: the states of {shift.images} images at every level need {needed / 2**30:.0f} GiB and "
            f"this machine has {memory / 2**30:.0f}; give fewer images, or measure fewer samplers at a time."
        )


def measured_seeds(experiment: Experiment) -> list[int]:
    """The seeds of the trajectories: the first `shift.images` of `sample.seeds`, and those that follow if too few.

    Never one that `tune` has looked at.
    """
    seeds, tuned = parse_seeds(experiment.sample.seeds), set(parse_seeds(experiment.tune.seeds))
    wanted = experiment.shift.images
    further = range(max(seeds) + 1, max(seeds) + 1 + wanted + len(tuned))
    return [*seeds, *(seed for seed in further if seed not in tuned)][:wanted]


@dataclass
class Instrument:
    """Measures samplers of one model; samplers of the same levels share forward arms and matrices."""

    samples: Trajectories
    config: ShiftConfig
    seeds: Sequence[int]
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def setting(self) -> Setting:
        """Of the model that is measured."""
        return self.samples.setting

    @property
    def model(self) -> Model:
        """What is measured."""
        return self.samples.model

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resampling of every interval."""
        return Bootstrap(self.config.bootstrap, self.config.confidence, self.setting.seed)

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of the trajectories, which all arms share."""
        labels = self.samples.labels(ImageStreams(self.seeds))
        return None if labels is None else labels.cpu()

    @cached_property
    def held_rows(self) -> Tensor:
        """Indices of the held-out images of the forward arm."""
        data = self.setting.data
        return matching(data.dataset.labels, data.split.held, self.labels, len(self.seeds))

    @cached_property
    def reference(self) -> Reference:
        """Var[x0] by part, the spectrum of the training split, and the true x0 of the forward arm."""
        o = self.setting.data
        found = [(v, *part_moments(o, self.labels, v)) for v in views(o.dataset.shape)]
        known = [(view, by_part(view, spread)) for view, _, spread in found]
        _, mean, spread = found[-1]  # the rings' coordinates, or pixels where there are none
        square = self.shown(self.held_rows).double().square().flatten(1).mean(1)
        return Reference(known, GaussianFit(self.setting.parts.process, mean, spread), square)

    @cached_property
    def covariance(self) -> Tensor | None:
        """(D, D) of the training split, within classes where the network knows them; None for large images."""
        o = self.setting.data
        if math.prod(o.dataset.shape) > LARGEST_COVARIANCE:
            return None
        ways = len(o.ways)
        x0 = torch.cat([o.shown(o.split.train, mirrored) for mirrored in o.ways]).double().flatten(1)
        share = class_shares(o, self.labels).repeat(ways) / ways
        own = torch.zeros(len(x0), dtype=torch.int64)
        if self.labels is not None and o.dataset.labels is not None:
            own = o.dataset.labels[torch.as_tensor(o.split.train)].repeat(ways)
        for label in own.unique():  # type: ignore[no-untyped-call]
            x0[own == label] -= x0[own == label].mean(0)
        return x0.T @ (share[:, None] * x0)

    @torch.no_grad()
    def measure(self, sampler: Sampler) -> Measurement:
        """All that the config asks for, of one sampler."""
        s = self.specimen(sampler)
        found = read(s.reverse, s.forward, s.train, s.levels, s.reference, s.bootstrap)
        shift = summarise(found, (s.reverse, s.forward), s.levels, s.bootstrap)
        asked: Sequence[Probe[Any]] = self.config.probes
        return Measurement(shift, found.sizes(), {probe.kind: probe.read(s) for probe in asked})

    def specimen(self, sampler: Sampler) -> Specimen:
        """A sampler with its arms, as probes read it."""
        ready, setting = self.samples.open(sampler), self.setting
        reverse, (forward, train) = self.walk(sampler, ready), self.forward(ready)
        return Specimen(
            sampler=sampler,
            ready=ready,
            denoise=self.model.denoiser,
            sigma_data=setting.data.sigma_data,
            reverse=reverse,
            forward=forward,
            train=train,
            reference=self.reference,
            bootstrap=self.bootstrap,
            seeds=self.seeds,
            seed=setting.seed,
            batch=self.config.batch,
            device=setting.world.device,
            levels_key=_key(ready),
            equipment=self,
        )

    def walk(self, sampler: Sampler, ready: OpenedSampler, visited: Sequence[int] | None = None) -> Arm:
        """The reverse arm of a sampler, at all its levels or at those `visited`.

        Where the grid differs from image to image, trajectories follow the images of the forward arm.
        """
        number = {seed: k for k, seed in enumerate(self.seeds)}

        def trajectory(batch: Sequence[int]) -> Callable[[Denoiser], Iterable[Step]]:
            def steps(denoise: Denoiser) -> Iterable[Step]:
                rows = self.held_rows[[number[seed] for seed in batch]]
                own, x, cond, noise = self.samples.begin(sampler, ready, batch, self.followed(ready, rows))
                return sample_steps(denoise, own, x, noise, cond)

            return steps

        places = range(len(ready.levels) - 1) if visited is None else visited
        with torch.no_grad():
            return reverse_arm(
                self.model.denoiser, (trajectory(batch) for batch in chunks(self.seeds, self.config.batch)), places
            )

    def placed(self, ready: OpenedSampler, rows: Tensor) -> tuple[OpenedSampler, Cond]:
        """The sampler as it would be for images of the data set (n,), and what the network is told of them.

        They have the labels of the trajectories; where the grid follows images it follows these.
        """
        labels = None if self.labels is None else self.labels[: len(rows)]
        own, told = ready.of_images(rows.tolist(), labels, self.followed(ready, rows))
        takes = self.setting.parts.network.conditioning
        return own, Cond(labels, told, takes.unaugmented(len(rows)))

    def followed(self, ready: OpenedSampler, rows: Tensor) -> Tensor | None:
        """What levels follow of images of the data set (n,), where the grid differs from image to image."""
        if ready.placement is None or not ready.varies:
            return None
        return ready.placement.follows(self.shown(rows))

    def forward(self, ready: OpenedSampler) -> tuple[Arm, Arm]:
        """The forward arms of held-out and of training images at the levels of a sampler."""
        return self.once(("forward", _key(ready)), lambda: self._forward(ready))

    def _forward(self, ready: OpenedSampler) -> tuple[Arm, Arm]:
        setting, o = self.setting, self.setting.data
        train = matching(o.dataset.labels, o.split.train, self.labels, len(self.seeds))
        arms = []
        for noise, rows in ((FORWARD_HELD, self.held_rows), (FORWARD_TRAIN, train)):
            own, cond = self.placed(ready, rows)
            arms.append(forward_arm(
                self.model.denoiser, own.levels[:-1], self.shown(rows), rows, cond, key=noise.key(setting.seed),
                batch=self.config.batch, device=setting.world.device,
            ))  # fmt: skip
        return arms[0], arms[1]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made for the first sampler that asks for `key`."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def shown(self, rows: Tensor) -> Tensor:
        """Images of the data set (n,), as training shows them."""
        return self.setting.data.shown(rows.tolist())

    def begin(
        self, sampler: Sampler, ready: OpenedSampler, seeds: Sequence[int]
    ) -> tuple[OpenedSampler, Tensor, Cond, Noise]:
        """As sampling begins the images of `seeds`."""
        return self.samples.begin(sampler, ready, seeds)

    def pairs(self, count: int) -> Pairs | None:
        """Training pairs; None for a model from elsewhere."""
        model = self.samples.sources.experiment.model
        return training_pairs(open_task(model, self.setting), count) if isinstance(model, TrainedHere) else None

    def estimator(self) -> Estimator:
        """The run's fitted estimator of levels."""
        return open_estimator(self.setting, self.model.run)


def _key(ready: OpenedSampler) -> tuple[object, ...]:
    """What the forward arms of a sampler depend on."""
    own = None if ready.placement is None else ready.placement.key
    return (own, *(float(level.logsnr) for level in ready.typical[:-1]))
