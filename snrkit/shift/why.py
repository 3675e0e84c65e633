"""Why: the solver or the network?

The sampler's grid is refined, every step cut into equal parts in logsnr, and walked by Heun from the same first states
without corrections but what guides the network, in the steps that the sampler guides: what is left of the shift there,
at the sampler's own levels, is the (guided) network's, the rest the solver's and its other corrections'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.sampling.refine import refined
from snrkit.sampling.sampler import OpenedSampler, Sampler, guidance_of
from snrkit.sampling.solvers import Heun
from snrkit.shift.arms import Arm
from snrkit.shift.bootstrap import OF_FORWARD, OF_REVERSE, Bootstrap, Curve, Number
from snrkit.shift.measure import Reference, pixel_ratio
from snrkit.shift.probe import Circumstances, ProbeValue, Specimen

REFERENCE_STEPS = 60  # at least, of the sampler that splits the network's share from the solver's


@dataclass(frozen=True, slots=True)
class Shares:
    """One reading, split in two; nats."""

    network: Curve
    solver: Curve
    mean_network: Number
    mean_solver: Number


@dataclass(frozen=True, slots=True)
class Why:
    """The norm gap and ln of the variance ratio, of the refined reference and of the sampler beyond it."""

    substeps: int
    nfe: int  # of the reference; what a guided network takes counts as one
    norm_gap: Shares
    log_variance_ratio: Shares


def fine_reference(
    sampler: Sampler, ready: OpenedSampler, process: Process, substeps: int
) -> tuple[OpenedSampler, tuple[int, ...]]:
    """(What walks the network's own trajectories, guided as the sampler is; where the sampler's levels are in it)."""
    fine = refined(ready.levels, process, substeps)
    own = replace(ready, levels=fine.levels, solver=Heun(), corrections=guidance_of(sampler, ready))
    return own, fine.visited[:-1]


def read_why(
    reverse: Arm,
    ideal: Arm,
    forward: Arm,
    levels: Sequence[Level],
    reference: Reference,
    bootstrap: Bootstrap,
    ready: OpenedSampler,
    substeps: int,
) -> Why:
    """The split; both arms of trajectories begin at the same states, so images are resampled together."""
    weights, of_forward = bootstrap.weights(reverse.groups, OF_REVERSE), bootstrap.weights(forward.groups, OF_FORWARD)
    expected = forward.eps_square @ of_forward.T
    gaps = [((arm.eps_square @ weights.T) / expected).log() for arm in (reverse, ideal)]
    ratios = [pixel_ratio(arm, levels, reference, weights).log() for arm in (reverse, ideal)]
    gap, ratio = _shares(gaps[0], gaps[1], bootstrap), _shares(ratios[0], ratios[1], bootstrap)
    return Why(substeps, 2 * (len(ready.levels) - 1) - 1, gap, ratio)


def _shares(whole: Tensor, network: Tensor, bootstrap: Bootstrap) -> Shares:
    rest = whole - network
    return Shares(
        bootstrap.curve(network),
        bootstrap.curve(rest),
        bootstrap.number(network.mean(0)),
        bootstrap.number(rest.mean(0)),
    )


class WhyProbe(ProbeValue):
    """The network's share of the shift and the solver's."""

    kind: Literal["why"] = "why"
    substeps: int = Field(
        default=4, ge=2, le=1000, description="steps of the reference sampler for each step of the sampler"
    )

    record: ClassVar[type[Why]] = Why
    columns: ClassVar[tuple[str, ...]] = (
        "norm gap of the network",
        "of solver and corrections",
        "ln variance ratio of the network",
        "of solver and corrections",
    )
    guide: ClassVar[str] = (
        "Network, and solver and corrections: the sampler's grid, refined and walked by Heun without corrections but "
        "its guidance, keeps the network's share; what the sampler has beyond it is the rest."
    )

    def missing(self, given: Circumstances) -> str | None:
        """One grid for all images, as its steps are cut."""
        if given.one_grid:
            return None
        return f"cuts the steps of one grid for all images; give samplers.{given.sampler}.grid scope: dataset"

    def read(self, specimen: Specimen) -> Why:
        """Walks the refined grid from the same first states."""
        s = specimen
        substeps = max(self.substeps, -(-REFERENCE_STEPS // len(s.levels)))
        ideal, visited = fine_reference(s.sampler, s.ready, s.denoise.process, substeps)
        arm = s.equipment.walk(s.sampler, ideal, visited, s.reference.pixel_reader(s.levels))
        return read_why(s.reverse, arm, s.forward, s.levels, s.reference, s.bootstrap, ideal, substeps)

    def cells(self, record: Why) -> tuple[str, ...]:
        numbers = [
            number
            for shares in (record.norm_gap, record.log_variance_ratio)
            for number in (shares.mean_network, shares.mean_solver)
        ]
        return tuple(number.signed() for number in numbers)
