"""Measures samplers of one model: the arms and probes of snrkit.shift on an experiment."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, count, islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import ConfigError
from snrkit.base.frequency import views
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.data.dataset import chunks
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.flows import flow_key
from snrkit.experiment.images import OpenedData
from snrkit.experiment.models import TrainedHere
from snrkit.experiment.opening import Model, Setting, open_task
from snrkit.experiment.reference import class_shares, weighted_images
from snrkit.experiment.run import Run
from snrkit.experiment.sources import open_estimator
from snrkit.experiment.trajectories import Trajectories, labels_of, sample_steps
from snrkit.sampling.grid import scope_of
from snrkit.sampling.sampler import OpenedSampler, Sampler, opened_solver, parse_seeds
from snrkit.sampling.step import Noise, Solver, Step
from snrkit.shift.amplification import LARGEST_COVARIANCE
from snrkit.shift.arms import HELD_BYTES, Arm, reverse_arm
from snrkit.shift.bootstrap import FEWEST, Bootstrap
from snrkit.shift.config import ShiftConfig
from snrkit.shift.estimator import Estimator
from snrkit.shift.examine import Examined, Side, Walk, examine, real_arms
from snrkit.shift.measure import Reference, Shift
from snrkit.shift.probe import Circumstances, Probe, Sizes, Specimen
from snrkit.shift.reference import make_reference, matching, scarce
from snrkit.shift.response import RESPONSE_IMAGES, Response, measure_response
from snrkit.shift.states import StateReader
from snrkit.training.holdout import Pairs, training_pairs
from snrkit.training.randomness import ImageStreams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that was measured of one sampler."""

    shift: Shift
    sizes: Mapping[str, Tensor]  # mean squares over levels of what is beyond the nulls, resampled
    probes: Mapping[str, object]  # the record of every probe that was asked for, by kind; None where it has none


def check_held_out(data: OpenedData) -> None:
    """Refuse to measure without enough held-out images for a null with an interval."""
    held, share, count = len(data.split.held), data.source.holdout, data.dataset.count
    if count < 2 * FEWEST:
        raise ConfigError(
            f"data: {count} images are too few to measure with: {FEWEST} are held out for the null, and as many "
            "remain to train on; use more images."
        )
    if held < FEWEST:
        raise ConfigError(
            f"data.holdout: measure-shift needs held-out images for its null, at least {FEWEST}, and a share of "
            f"{share} holds out {held} of {count}; raise it or use more images."
        )


def check_beside(setting: Setting, experiment: Experiment) -> None:
    """Refuse to measure trajectories beside which too few images stand, of either side of the split: ConfigError."""
    data, seeds = setting.data, measured_seeds(experiment)
    check_held_out(data)
    labels = labels_of(setting, experiment.sample, ImageStreams(seeds, setting.world.device))
    labels = None if labels is None else labels.cpu()
    for name, pool in (("held-out images", data.split.held), ("training split", data.split.train)):
        why = scarce(matching(data.dataset.labels, pool, labels, len(seeds)), labels)
        if why is not None:
            raise ConfigError(f"data: {name}: {why}; use more images, another data.holdout or another sample.labels.")


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
    setting: Setting, shift: ShiftConfig, memory: int | None = None, samplers: Iterable[Sampler] = ()
) -> None:
    """Refuse to begin what cannot be held, by estimate: ConfigError.

    The trajectories of one sampler, with the states of the level that they have come to, and what probes hold beside
    of all `samplers` that are measured. `memory`: bytes; default: all that is free on the device.
    """
    data, device = setting.data, setting.world.device
    dims = math.prod(data.dataset.shape)
    levels = sum({flow_key(sampler): sampler.grid.steps + 1 for sampler in samplers}.values())
    sizes = Sizes(len(data.split.train) * len(data.ways), shift.images, dims, levels)
    needed = HELD_BYTES * shift.images * dims + sum(probe.memory(sizes) for probe in shift.probes)
    there = free_memory(device) if memory is None else memory
    if needed > there:
        raise ConfigError(
            f"shift.images: {shift.images} trajectories and their states at one level need {in_bytes(needed)} and "
            f"{'this machine' if device.type == 'cpu' else 'the device'} has {in_bytes(there)} free; give fewer images."
        )


def measured_seeds(experiment: Experiment) -> list[int]:
    """The seeds of the trajectories: the first `shift.images` of `sample.seeds`, and those that follow if too few.

    Never one that `tune` has looked at.
    """
    seeds, tuned = parse_seeds(experiment.sample.seeds), parse_seeds(experiment.tune.seeds)
    further = (seed for seed in count(max(part.stop for part in seeds.ranges)) if seed not in tuned)
    return list(islice(chain(seeds, further), experiment.shift.images))


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
        trained = partial(weighted_images, self.setting.data, self.labels)
        return make_reference(self.setting.parts.process, trained, self.shown(self.held_rows))

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

    def measure(self, sampler: Sampler) -> Measurement:
        """All that the config asks for, of one sampler."""
        return finished(self.measuring(sampler))

    @torch.no_grad()
    def measuring(self, sampler: Sampler) -> Gradual[Measurement]:
        """As `measure`, saying which part comes next; of its states also how many evaluations they take."""
        yield Done("opening the sampler", unit="evaluations")
        ready = self.samples.open(sampler)
        data = self.setting.data
        often = len(views(data.dataset.shape)) * len(data.ways)
        yield Done("reading the training split", 0, often * len(data.split.train), "images read")
        _ = self.reference
        yield Done("states", 0, self._evaluations(sampler, ready), "evaluations")
        found = self._examined(sampler, ready)
        specimen = self.specimen(sampler, ready, found)
        asked: Sequence[Probe[Any]] = self.config.probes
        readings: dict[str, object] = {}
        for probe in asked:
            yield Done(f"probe {probe.kind}", 0, probe.evaluations(specimen), "evaluations")
            readings[probe.kind] = probe.read(specimen)
        return Measurement(found.shift, found.sizes, readings)

    def _evaluations(self, sampler: Sampler, ready: OpenedSampler) -> int:
        """Of the sampler's trajectories, and of both forward arms where no other sampler has had these levels."""
        images = len(self.seeds)
        arms = 0 if ("forward", _key(ready)) in self._kept else 2 * (len(ready.levels) - 1)
        return images * (self.setting.cost(sampler) + arms)

    def examined(self, sampler: Sampler) -> tuple[OpenedSampler, Examined]:
        """A sampler with all that it names, and what is always read of it."""
        ready = self.samples.open(sampler)
        return ready, self._examined(sampler, ready)

    def _examined(self, sampler: Sampler, ready: OpenedSampler) -> Examined:
        walks, real, reader = self.walks(sampler, ready), self.forward(ready), self.reader(ready)
        return examine(self.model.denoiser, walks, len(self.seeds), real, reader, self.reference, self.bootstrap)

    def reader(self, ready: OpenedSampler) -> StateReader:
        """What is read of the states of a sampler and of held-out images."""
        asked: Sequence[Probe[Any]] = self.config.probes
        watches = {probe.kind: self.once(("watch", probe.kind), partial(probe.watch, self)) for probe in asked}
        return self.reference.reader(
            ready.typical[:-1], {k: watch for k, watch in watches.items() if watch is not None}
        )

    def specimen(self, sampler: Sampler, ready: OpenedSampler, found: Examined) -> Specimen:
        """A sampler with its arms, as probes read it."""
        setting = self.setting
        return Specimen(
            sampler=sampler,
            ready=ready,
            denoise=self.model.denoiser,
            sigma_data=setting.data.sigma_data,
            reverse=found.reverse,
            forward=found.forward,
            train=found.train,
            reference=self.reference,
            bootstrap=self.bootstrap,
            seeds=self.seeds,
            seed=setting.seed,
            batch=self.config.batch,
            device=setting.world.device,
            levels_key=_key(ready),
            equipment=self,
        )

    @torch.no_grad()
    def response(self, sampler: Sampler) -> Response:
        """How the network answers to the scale of states at the levels of a sampler, of which none is sampled."""
        ready, setting = self.samples.open(sampler), self.setting
        held = self._side(ready, self.held_rows[:RESPONSE_IMAGES])
        return measure_response(
            self.model.denoiser, held, self.forward(ready)[0], self.bootstrap, seed=setting.seed,
            batch=self.config.batch, device=setting.world.device,
        )  # fmt: skip

    def walk(self, sampler: Sampler, ready: OpenedSampler, visited: Sequence[int], reader: StateReader) -> Arm:
        """The reverse arm of a sampler at its levels `visited`."""
        with torch.no_grad():
            return reverse_arm(self.model.denoiser, self.walks(sampler, ready), visited, len(self.seeds), reader)

    def walks(self, sampler: Sampler, ready: OpenedSampler) -> Iterator[Walk]:
        """The trajectories of a sampler, batch by batch.

        Where the grid differs from image to image, they follow the images of the forward arm.
        """
        number = {seed: k for k, seed in enumerate(self.seeds)}

        def trajectory(batch: Sequence[int]) -> Walk:
            def steps(denoise: Denoiser) -> Iterable[Step]:
                rows = self.held_rows[[number[seed] for seed in batch]]
                own, x, cond, noise = self.samples.begin(sampler, ready, batch, self.followed(ready, rows))
                return sample_steps(denoise, own, x, noise, cond)

            return steps

        return (trajectory(batch) for batch in chunks(self.seeds, self.config.batch))

    def placed(self, ready: OpenedSampler, rows: Tensor) -> tuple[OpenedSampler, Cond]:
        """The sampler as it would be for images of the data set (n,), and what the network is told of them.

        They have the labels of the trajectories; where the grid follows images it follows these.
        """
        labels = None if self.labels is None else self.labels[: len(rows)]
        own, told = ready.of_images(rows.tolist(), labels, self.followed(ready, rows))
        takes = self.setting.parts.network.conditioning
        return own, Cond(labels, told, takes.unaugmented(len(rows)))

    def followed(self, ready: OpenedSampler, rows: Tensor) -> Tensor | None:
        """What the levels, or what the network is told, follow of images of the data set (n,)."""
        if ready.placement is None:
            return None
        return ready.placement.follows(self.shown(rows))

    def forward(self, ready: OpenedSampler) -> tuple[Arm, Arm]:
        """The forward arms of held-out and of training images at the levels of a sampler."""
        return self.once(("forward", _key(ready)), lambda: self._forward(ready))

    def _forward(self, ready: OpenedSampler) -> tuple[Arm, Arm]:
        setting, o = self.setting, self.setting.data
        train = matching(o.dataset.labels, o.split.train, self.labels, len(self.seeds))
        held, trained = (self._side(ready, rows) for rows in (self.held_rows, train))
        reader, batch, device = self.reader(ready), self.config.batch, setting.world.device
        return real_arms(self.model.denoiser, held, trained, reader, setting.seed, batch, device)

    def _side(self, ready: OpenedSampler, rows: Tensor) -> Side:
        own, cond = self.placed(ready, rows)
        return Side(partial(self.shown, rows), rows, own.levels[:-1], cond)

    def solver_on(self, sampler: Sampler, levels: Sequence[Level]) -> Solver:
        """The sampler's solver, opened for other levels than its grid's."""
        return opened_solver(sampler, self.samples.sources, levels)

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
        model = self.samples.sources.names.experiment.model
        return training_pairs(open_task(model, self.setting), count) if isinstance(model, TrainedHere) else None

    def estimator(self) -> Estimator:
        """The run's fitted estimator of levels."""
        return open_estimator(self.setting, self.model.run)


def _key(ready: OpenedSampler) -> tuple[object, ...]:
    """What the forward arms of a sampler depend on."""
    own = None if ready.placement is None else ready.placement.key
    return (own, *(float(level.logsnr) for level in ready.typical[:-1]))
