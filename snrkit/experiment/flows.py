"""The flow of an experiment's network from the first states of seeds, and samplers walked beside it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import ConfigError
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.fits import WithFit
from snrkit.experiment.opening import Setting
from snrkit.experiment.trajectories import Trajectories
from snrkit.fitting.least_squares import HELD_AT_ONCE
from snrkit.sampling.corrections.guidance import Guidance
from snrkit.sampling.flow import Flow, fine_flow, in_parts, in_rows
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler, Sampler, guidance_of, named_fit, open_with, takes_fit
from snrkit.sampling.step import BeliefCorrection, Fit, check_one_grid, no_fit

FITTED_STATES = 30  # of each first state, while steps are fitted: what a solver, its terms and their bands hold


@dataclass(frozen=True)
class FirstStates:
    """First states of seeds with the flow from them: what samplers of the same grid and guidance are fitted to.

    The flow takes hundreds of evaluations of the network, and is followed when it is first asked for.
    """

    samples: Trajectories
    denoise: Denoiser  # asked in batches
    x: Tensor
    cond: Cond
    guidance: tuple[BeliefCorrection, ...]  # what guides the network
    levels: tuple[Level, ...]
    recorded: Flow | None = None  # the flow, where it is known
    ends_alone: bool = False  # whether the flow is kept at the clean level alone

    @property
    def batch(self) -> int:
        """How many states are walked at a time."""
        return self.samples.config.batch

    @cached_property
    def flow(self) -> Flow:
        """The flow at the levels, or at the clean one."""
        if self.recorded is not None:
            return self.recorded
        places = (len(self.levels) - 1,) if self.ends_alone else None
        with torch.no_grad():
            return fine_flow(
                self.denoise, self.levels, self.x, self.cond, self.guidance, batch=self.batch, places=places
            )

    def at_the_end(self) -> "FirstStates":
        """The same first states for what asks how far from their flow samplers end: it is kept there alone."""
        return replace(self, ends_alone=True, recorded=None)

    def at(self, rows: slice) -> "FirstStates":
        """Some of them; without their flow."""
        return replace(self, x=self.x[rows], cond=self.cond.at(rows), recorded=None)

    def walked(self, ready: OpenedSampler) -> Tensor:
        """The clean states (M, *) of a sampler."""
        clean = torch.empty_like(self.x)
        for rows in in_rows(len(self.x), self.batch):
            x, cond = self.x[rows], self.cond.at(rows)
            for step in sample(self.denoise, ready.solver, ready.levels, x, corrections=ready.corrections, cond=cond):
                x = step.x_next
            clean[rows] = x
        return clean

    def on_grid_of(self, sampler: Sampler) -> "FirstStates":
        """The same first states, with the flow at the levels of another sampler. ConfigError: it begins elsewhere."""
        levels = self.opened(sampler).levels
        if [float(level.logsnr) for level in levels] == [float(level.logsnr) for level in self.levels]:
            return self
        if float(levels[0].logsnr) != float(self.levels[0].logsnr):
            raise ConfigError("its grid begins at another level, from other first states.")
        return replace(self, levels=levels, recorded=None)

    def opened(self, sampler: Sampler, fit: Fit | None = None) -> OpenedSampler:
        """The sampler with coefficients that are given, none by default."""
        samples = self.samples
        given = WithFit(samples.sources, fit or blank(sampler))
        return open_with(sampler, samples.setting.parts.process, given)


def flow_key(sampler: Sampler) -> str:
    """What the first states of seeds and the flow from them depend on, of a sampler."""
    guidance = [c.model_dump(mode="json") for c in sampler.corrections if isinstance(c, Guidance)]
    told = [] if sampler.told_spectrum is None else [sampler.told_spectrum]
    return json.dumps([sampler.grid.model_dump(mode="json"), sampler.start, guidance, *told], sort_keys=True)


def check_flows_fit(setting: Setting, noises: int, states: int, memory: float | None = None) -> None:
    """Refuse to follow flows that cannot be held, by estimate: ConfigError.

    `states`: how many are kept of each of `noises` first states; beside them stands what fitting steps to these holds.
    `memory`: bytes; default: all that is free on the device.
    """
    device, dims = setting.world.device, math.prod(setting.data.dataset.shape)
    needed = 8 * dims * noises * (states + FITTED_STATES) + HELD_AT_ONCE
    there = free_memory(device) if memory is None else memory
    if needed > there:
        raise ConfigError(
            f"tune.noises: the flows from {noises} first states need {in_bytes(needed)} and "
            f"{'this machine' if device.type == 'cpu' else 'the device'} has {in_bytes(there)} free; give fewer noises."
        )


def blank(sampler: Sampler) -> Fit:
    """Coefficients of 0 for a sampler that takes a fit."""
    if not takes_fit(sampler):
        return no_fit(0, 0)
    named = named_fit(sampler)
    return no_fit(named.steps, named.terms)


def opened_to_follow(samples: Trajectories, sampler: Sampler, name: str) -> OpenedSampler:
    """The sampler, opened. ConfigError where its states do not follow the flow of the network, on one grid."""
    ready = open_with(sampler, samples.setting.parts.process, WithFit(samples.sources, blank(sampler)))
    check_one_grid(ready.levels)
    if ready.solver.renews != 0:
        raise ConfigError(
            f"samplers.{name}.solver: {sampler.solver.kind} draws noise, so that its states do not follow the flow of "
            "the network; tune it by gap or fd."
        )
    return ready


def first_states(samples: Trajectories, sampler: Sampler, seeds: Sequence[int], name: str) -> FirstStates:
    """The first states of seeds, for the grid of a sampler. ConfigError where it has no flow to follow."""
    denoise = in_parts(samples.model.denoiser, samples.config.batch)
    ready = opened_to_follow(samples, sampler, name)
    own, x, cond, _ = samples.begin(sampler, ready, seeds)
    return FirstStates(samples, denoise, x, cond, guidance_of(sampler, own), own.levels)
