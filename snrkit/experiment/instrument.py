"""Measures samplers of one model: the arms and probes of snrkit.shift on an experiment."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError
from snrkit.base.frequency import views
from snrkit.base.streams import FORWARD_HELD, FORWARD_TRAIN, RESPONSE, WINDOW
from snrkit.data.dataset import chunks
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.opening import Model, Opened, open_task
from snrkit.experiment.reference import by_part, class_shares, matching, part_moments
from snrkit.experiment.sources import open_estimator, open_sampler
from snrkit.experiment.trajectories import chosen_labels, sample_steps, starting_point
from snrkit.sampling.sampler import OpenedSampler, Sampler, parse_seeds
from snrkit.sampling.step import Step
from snrkit.shift.amplification import Amplification, Modes, Nudge, gaussian_gain, measure_gain, modes, read_gain
from snrkit.shift.arms import Arm, forward_arm, reverse_arm
from snrkit.shift.audit import Audit, audit
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.estimator import Reading, read_estimator, respond
from snrkit.shift.horizon import Horizon, horizon_arm, read_horizon
from snrkit.shift.measure import Reference, Shift, read, summarise
from snrkit.shift.nearest import Spectrum
from snrkit.shift.why import Why, read_why, refined
from snrkit.shift.window import Window, WindowArm, read_window, window_arm
from snrkit.spectral.schedule import power_spectra
from snrkit.training.holdout import training_pairs
from snrkit.training.randomness import ImageStreams

AUDIT_BINS = 10


LARGEST_COVARIANCE = 4096  # dimensions


FEWEST = 20  # below it a bootstrap's interval covers far less than it says


REFERENCE_STEPS = 60  # at least, of the sampler that splits the network's share from the solver's


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that was measured of one sampler; None where a probe was not asked for."""

    shift: Shift
    sizes: Mapping[str, Tensor]  # mean squares over levels of what is beyond the nulls, resampled
    window: Window | None = None
    horizon: Horizon | None = None
    amplification: Amplification | None = None
    audit: Audit | None = None
    estimator: Reading | None = None
    why: Why | None = None


def check_held_out(opened: Opened) -> None:
    """Refuse to measure without enough held-out images for a null with an interval."""
    held, share = len(opened.split.held), opened.experiment.data.holdout
    if held < FEWEST:
        raise ConfigError(
            f"data.holdout: measure-shift needs held-out images for its null, at least {FEWEST}, and a share of "
            f"{share} holds out {held} of {opened.dataset.count}; raise it or use more images."
        )


def measured_seeds(opened: Opened) -> list[int]:
    """The seeds of the trajectories: the first `shift.images` of `sample.seeds`, and those that follow if too few.

    Never one that `tune` has looked at.
    """
    seeds, tuned = parse_seeds(opened.experiment.sample.seeds), set(parse_seeds(opened.experiment.tune.seeds))
    wanted = opened.experiment.shift.images
    further = range(max(seeds) + 1, max(seeds) + 1 + wanted + len(tuned))
    return [*seeds, *(seed for seed in further if seed not in tuned)][:wanted]


@dataclass
class Instrument:
    """Measures samplers of one model; samplers of the same levels share forward arms and matrices."""

    opened: Opened
    model: Model
    seeds: Sequence[int]
    _arms: dict[tuple[object, ...], tuple[Arm, Arm]] = field(default_factory=dict)
    _windows: dict[tuple[object, ...], WindowArm] = field(default_factory=dict)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resampling of every interval."""
        e = self.opened.experiment
        return Bootstrap(e.shift.bootstrap, e.shift.confidence, e.seed)

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of the trajectories, which all arms share."""
        labels = chosen_labels(self.opened, ImageStreams(self.seeds))
        return None if labels is None else labels.cpu()

    @cached_property
    def held_rows(self) -> Tensor:
        """Indices of the held-out images of the forward arm."""
        return matching(self.opened.dataset.labels, self.opened.split.held, self.labels, len(self.seeds))

    @cached_property
    def reference(self) -> Reference:
        """Var[x0] by part, the spectrum of the training split, and the true x0 of the forward arm."""
        o = self.opened
        found = [(v, *part_moments(o, self.labels, v)) for v in views(o.dataset.shape)]
        known = [(view, by_part(view, spread)) for view, _, spread in found]
        _, mean, spread = found[-1]  # the rings' coordinates, or pixels where there are none
        square = o.shown(self.held_rows.tolist()).double().square().flatten(1).mean(1)
        return Reference(known, Spectrum(o.experiment.process, mean, spread), square)

    @cached_property
    def covariance(self) -> Tensor | None:
        """(D, D) of the training split, within classes where the network knows them; None for large images."""
        o = self.opened
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

    @cached_property
    def modes(self) -> Modes | None:
        """The principal directions of the training split."""
        return None if self.covariance is None else modes(self.covariance, self.opened.dataset.shape)

    @cached_property
    def audited(self) -> Audit:
        """The training audit, the same for all samplers."""
        o, config = self.opened, self.opened.experiment.shift
        return audit(training_pairs(open_task(o), config.audit_pairs), o.sigma_data, AUDIT_BINS, self.bootstrap)

    @torch.no_grad()
    def measure(self, sampler: Sampler) -> Measurement:
        """All that the config asks for, of one sampler."""
        config = self.opened.experiment.shift
        ready = open_sampler(self.opened, self.model, sampler)
        levels = ready.typical[:-1]
        reverse = self.walk(sampler, ready)
        forward, train = self.forward(ready)
        found = read(reverse, forward, train, levels, self.reference, self.bootstrap)
        asked = set(config.probes)
        return Measurement(
            summarise(found, (reverse, forward), levels, self.bootstrap),
            found.sizes(),
            self.window(ready, reverse, forward, train) if "window" in asked else None,
            self.horizon(ready, forward) if "horizon" in asked and len(levels) > config.horizon_steps else None,
            self.amplification(sampler, ready) if "amplification" in asked else None,
            self.audited if "audit" in asked and self.opened.experiment.model.trains else None,
            self.estimator(reverse, forward, levels) if "estimator" in asked else None,
            self.why(sampler, ready, reverse, forward) if "why" in asked else None,
        )

    def walk(self, sampler: Sampler, ready: OpenedSampler, visited: Sequence[int] | None = None) -> Arm:
        """The reverse arm of a sampler, at all its levels or at those `visited`.

        Where the grid differs from image to image, trajectories follow the spectra of the forward arm's images.
        """
        e, number = self.opened.experiment, {seed: k for k, seed in enumerate(self.seeds)}

        def trajectory(batch: Sequence[int]) -> Callable[[Denoiser], Iterable[Step]]:
            def steps(denoise: Denoiser) -> Iterable[Step]:
                rows = self.held_rows[[number[seed] for seed in batch]]
                own, x, cond, noise = starting_point(self.opened, sampler, ready, batch, self.spectra(ready, rows))
                return sample_steps(denoise, own, x, noise, cond)

            return steps

        places = range(len(ready.levels) - 1) if visited is None else visited
        with torch.no_grad():
            return reverse_arm(
                self.model.denoiser, (trajectory(batch) for batch in chunks(self.seeds, e.shift.batch)), places
            )

    def placed(self, ready: OpenedSampler, rows: Tensor) -> tuple[OpenedSampler, Cond]:
        """The sampler as it would be for images of the data set (n,), and what the network is told of them.

        They have the labels of the trajectories; where the grid follows spectra it follows theirs.
        """
        labels = None if self.labels is None else self.labels[: len(rows)]
        own, ends = ready.of_images(self.opened.experiment.process, rows.tolist(), labels, self.spectra(ready, rows))
        return own, Cond(labels, ends)

    def spectra(self, ready: OpenedSampler, rows: Tensor) -> Tensor | None:
        """Of images of the data set (n,), where the grid differs from image to image."""
        return power_spectra(self.opened.shown(rows.tolist())) if ready.varies else None

    def forward(self, ready: OpenedSampler) -> tuple[Arm, Arm]:
        """The forward arms of held-out and of training images at the levels of a sampler."""
        key = _key(ready)
        if key not in self._arms:
            o, e = self.opened, self.opened.experiment
            train = matching(o.dataset.labels, o.split.train, self.labels, len(self.seeds))
            arms = []
            for noise, rows in ((FORWARD_HELD, self.held_rows), (FORWARD_TRAIN, train)):
                own, cond = self.placed(ready, rows)
                arms.append(forward_arm(
                    self.model.denoiser, own.levels[:-1], o.shown(rows.tolist()), rows, cond,
                    key=noise.key(e.seed), batch=e.shift.batch, device=o.world.device,
                ))  # fmt: skip
            self._arms[key] = arms[0], arms[1]
        return self._arms[key]

    def window(self, ready: OpenedSampler, reverse: Arm, forward: Arm, train: Arm) -> Window:
        """What wrong levels do, and the shift that the sampler's norm gap is equivalent to."""
        key, o, e, levels = _key(ready), self.opened, self.opened.experiment, ready.typical[:-1]
        if key not in self._windows:
            rows = self.held_rows[: e.shift.window_images]
            own, cond = self.placed(ready, rows)
            self._windows[key] = window_arm(
                self.model.denoiser, own.levels[:-1], o.shown(rows.tolist()), rows, cond,
                key=WINDOW.key(e.seed), batch=e.shift.batch, device=o.world.device,
            )  # fmt: skip
        b = self.bootstrap
        arms = (reverse, forward, train)
        mine, held, seen = (arm.eps_square @ b.weights(arm.groups, number).T for number, arm in enumerate(arms))
        return read_window(self._windows[key], levels, (mine / held).log(), (seen / held).log(), b)

    def horizon(self, ready: OpenedSampler, forward: Arm) -> Horizon:
        """What a few steps do to states that are right."""
        e, steps = self.opened.experiment, self.opened.experiment.shift.horizon_steps
        count = min(e.shift.horizon_images, len(self.seeds))
        forward = forward.first(count)
        own, cond = self.placed(ready, self.held_rows[:count])
        arm = horizon_arm(
            self.model.denoiser, own, forward, cond, steps, self.seeds,
            batch=e.shift.batch, device=self.opened.world.device,
        )  # fmt: skip
        return read_horizon(arm, forward, ready, steps, self.reference, self.bootstrap)

    def amplification(self, sampler: Sampler, ready: OpenedSampler) -> Amplification:
        """How much of a small error is left in the image; without autocast, as bf16 would round the error away."""
        o, seeds = self.opened, self.seeds[: self.opened.experiment.shift.amplification_images]
        levels, precise = ready.typical[:-1], without_autocast(self.model.denoiser)

        def walk(error: Tensor, nudges: Sequence[Nudge]) -> Iterable[Step]:
            own, x, cond, noise = starting_point(o, sampler, ready, seeds)
            nudged = replace(own, corrections=(*own.corrections, *nudges))
            return sample_steps(precise, nudged, x + error, noise, cond)

        spectrum, share = self.reference.spectrum.variance, ready.solver.renews
        known = self.modes if share in (0.0, 1.0) else None
        gaussian = {} if known is None else gaussian_gain(known, levels, share == 1.0)
        spread = torch.stack([(level.alpha**2 * spectrum.mean() + level.sigma**2).sqrt() for level in levels])
        found = measure_gain(walk, levels, (len(seeds), *o.dataset.shape), spread, o.experiment.seed, o.world.device)
        return read_gain(found, levels, gaussian, self.bootstrap)

    def estimator(self, reverse: Arm, forward: Arm, levels: Sequence[Level]) -> Reading:
        """The shift that the fitted estimator of levels sees."""
        estimator, e = open_estimator(self.opened, self.model.run), self.opened.experiment
        x0 = self.opened.shown(self.held_rows.tolist())
        response = respond(estimator, e.process, levels, x0, RESPONSE.key(e.seed))
        return read_estimator(estimator, reverse, forward, levels, response, self.bootstrap)

    def why(self, sampler: Sampler, ready: OpenedSampler, reverse: Arm, forward: Arm) -> Why:
        """The network's share of the shift and the solver's."""
        e = self.opened.experiment
        substeps = max(e.shift.why_substeps, -(-REFERENCE_STEPS // (len(ready.levels) - 1)))
        ideal, visited = refined(ready, e.process, substeps)
        arm = self.walk(sampler, ideal, visited)
        return read_why(reverse, arm, forward, ready.typical[:-1], self.reference, self.bootstrap, ideal, substeps)


def without_autocast(denoise: Denoiser) -> Denoiser:
    """The model without autocast."""
    return replace(denoise, autocast=None) if isinstance(denoise, NetworkDenoiser) else denoise


def _key(ready: OpenedSampler) -> tuple[object, ...]:
    """What the forward arms of a sampler depend on."""
    return (ready.grid if ready.spectral else None, *(float(level.logsnr) for level in ready.typical[:-1]))
