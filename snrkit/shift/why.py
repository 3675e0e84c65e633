"""Why: the solver or the network?

The sampler's grid is refined, every step cut into equal parts in logsnr, and walked from the same first states without
corrections but what guides the network, in the steps that the sampler guides: what is left of the shift there, at the
sampler's own levels, is the (guided) network's, the rest the solver's and its other corrections'.

A solver that draws no noise is held against the network's flow: UniPC with p = 3, or Heun where guidance sets in or
ends, as it remembers nothing of the network before, on n steps and on n/2. A solver that draws noise is held against
the process that it approximates: its own steps on the refined grid, likewise.

A reading r is the one of n steps, extrapolated where both share their levels,

    r* = r_n + (r_n - r_(n/2)) / (2^order - 1),

with order 1, of the distribution, where noise is drawn. The intervals of both shares are widened by what is to be
expected of its error: |r_n - r_(n/2)| / (2^2 - 1), or |r_n - r_(n/2)| where noise is drawn, and twice as much on a
table, whose levels are not cut evenly and whose readings are not extrapolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.sampling.corrections.guidance import OfSteps
from snrkit.sampling.flow import FLOW_STEPS, STATED
from snrkit.sampling.refine import parts_of, refined
from snrkit.sampling.sampler import OpenedSampler, Sampler, guidance_of
from snrkit.sampling.solvers import Heun, Unipc
from snrkit.sampling.step import Solver
from snrkit.shift.arms import Arm
from snrkit.shift.bootstrap import OF_FORWARD, OF_REVERSE, Bootstrap, Curve, Number
from snrkit.shift.measure import Reference, pixel_ratio
from snrkit.shift.probe import Circumstances, ProbeValue, Specimen


@dataclass(frozen=True, slots=True)
class Shares:
    """One reading, split in two; nats."""

    network: Curve
    solver: Curve
    mean_network: Number
    mean_solver: Number
    error: float  # of the mean of the reference, by which the intervals of both are wider


@dataclass(frozen=True, slots=True)
class Why:
    """The norm gap and ln of the variance ratio, of the refined reference and of the sampler beyond it."""

    substeps: int
    steps: int  # of the reference; a second one has half as many
    norm_gap: Shares
    log_variance_ratio: Shares


@dataclass(frozen=True, slots=True)
class Refining:
    """How a sampler's steps are refined: by which solver on which parts, and what two such walks say together."""

    parts: int
    order: int | None  # by which they are extrapolated; None: not
    stated: float  # error that is to be expected, over their difference


def refining(sampler: Sampler, ready: OpenedSampler, process: Process, substeps: int) -> Refining:
    """The reference of a sampler, with as many parts of each step and FLOW_STEPS steps in all at least."""
    parts = max(2 * -(-substeps // 2), parts_of(ready.levels, process, FLOW_STEPS, multiple=2))
    if not refined(ready.levels, process, parts).even:
        return Refining(parts, None, 2.0)
    if ready.solver.renews != 0:
        return Refining(parts, 1, 1.0)
    return Refining(parts, reference_solver(sampler, ready).order, 1 / (2**STATED - 1))


def reference_solver(sampler: Sampler, ready: OpenedSampler) -> Unipc | Heun:
    """What walks the flow of a sampler that draws no noise; UniPC's order is its corrector's."""
    jumps = any(each.jumps for each in guidance_of(sampler, ready) if isinstance(each, OfSteps))
    return Heun() if jumps else Unipc(p=3)


def fine_reference(
    sampler: Sampler, ready: OpenedSampler, process: Process, parts: int, solver: Solver
) -> tuple[OpenedSampler, tuple[int, ...]]:
    """(What walks the refined grid, guided as the sampler is; where the sampler's levels are in it)."""
    fine = refined(ready.levels, process, parts)
    own = replace(ready, levels=fine.levels, solver=solver, corrections=guidance_of(sampler, ready))
    return own, fine.visited[:-1]


def read_why(
    reverse: Arm,
    ideals: tuple[Arm, Arm],
    forward: Arm,
    levels: Sequence[Level],
    reference: Reference,
    bootstrap: Bootstrap,
    how: Refining,
    steps: int,
) -> Why:
    """The split; `ideals`: the arms of the reference and of half its steps.

    All begin at the same states, so images are resampled together.
    """
    weights, of_forward = bootstrap.weights(reverse.groups, OF_REVERSE), bootstrap.weights(forward.groups, OF_FORWARD)
    expected = forward.eps_square @ of_forward.T
    arms = (reverse, *ideals)
    gap = _shares([((arm.eps_square @ weights.T) / expected).log() for arm in arms], how, bootstrap)
    ratio = _shares([pixel_ratio(arm, levels, reference, weights).log() for arm in arms], how, bootstrap)
    return Why(how.parts, steps, gap, ratio)


def _shares(readings: Sequence[Tensor], how: Refining, bootstrap: Bootstrap) -> Shares:
    whole, fine, half = readings
    network = fine if how.order is None else fine + (fine - half) / (2**how.order - 1)
    moved, rest = fine[:, 0] - half[:, 0], whole - network
    errors, error = (how.stated * moved).abs(), how.stated * abs(float(moved.mean()))
    return Shares(
        bootstrap.curve(network).widened(errors.tolist()),
        bootstrap.curve(rest).widened(errors.tolist()),
        bootstrap.number(network.mean(0)).widened(error),
        bootstrap.number(rest.mean(0)).widened(error),
        error,
    )


class WhyProbe(ProbeValue):
    """The network's share of the shift and the solver's."""

    kind: Literal["why"] = "why"
    substeps: int = Field(
        default=4, ge=2, le=1000, description="steps of the reference for each step of the sampler, at least"
    )

    record: ClassVar[type[Why]] = Why
    columns: ClassVar[tuple[str, ...]] = (
        "norm gap of the network",
        "of solver and corrections",
        "ln variance ratio of the network",
        "of solver and corrections",
    )
    guide: ClassVar[str] = (
        "Network, and solver and corrections: the sampler's grid, refined and walked without corrections but its "
        "guidance, keeps the network's share; what the sampler has beyond it is the rest. A sampler that draws noise "
        "is refined as it is, any other by a solver of higher order. Intervals hold the error of the reference, as "
        "one of half as many steps shows it."
    )

    def missing(self, given: Circumstances) -> str | None:
        """One grid for all images, as its steps are cut."""
        if given.one_grid:
            return None
        return f"cuts the steps of one grid for all images; give samplers.{given.sampler}.grid scope: dataset"

    def evaluations(self, specimen: Specimen) -> int | None:
        """Those of both references, where they are UniPC's: one a step for the network and each guidance beside it."""
        s, process = specimen, specimen.denoise.process
        if s.ready.solver.renews != 0 or not isinstance(reference_solver(s.sampler, s.ready), Unipc):
            return None
        parts = refining(s.sampler, s.ready, process, self.substeps).parts
        steps = sum(len(refined(s.ready.levels, process, each).levels) - 1 for each in (parts, parts // 2))
        return len(s.seeds) * (1 + len(guidance_of(s.sampler, s.ready))) * steps

    def read(self, specimen: Specimen) -> Why:
        """Walks the refined grid from the same first states."""
        s, process = specimen, specimen.denoise.process
        how = refining(s.sampler, s.ready, process, self.substeps)
        arms, steps = list[Arm](), list[int]()
        for parts in (how.parts, how.parts // 2):
            levels = refined(s.ready.levels, process, parts).levels
            drawn = s.ready.solver.renews != 0
            solver = s.equipment.solver_on(s.sampler, levels) if drawn else reference_solver(s.sampler, s.ready)
            ideal, visited = fine_reference(s.sampler, s.ready, process, parts, solver)
            arms.append(s.equipment.walk(s.sampler, ideal, visited, s.reference.pixel_reader(s.levels)))
            steps.append(len(levels) - 1)
        fine, half = arms
        return read_why(s.reverse, (fine, half), s.forward, s.levels, s.reference, s.bootstrap, how, steps[0])

    def cells(self, record: Why) -> tuple[str, ...]:
        numbers = [
            number
            for shares in (record.norm_gap, record.log_variance_ratio)
            for number in (shares.mean_network, shares.mean_solver)
        ]
        return tuple(number.signed() for number in numbers)
