"""What `snrkit certify` tries for one sampler, each at no more evaluations than the sampler has.

In this order, so that what costs a walk alone is tried where time is short, and then what is likely to be nearest: the
sampler as it is, other solvers, steps fitted to the flow, designed grids with fitted steps, and the published
corrections and a constant gain on the sampler's own solver with the coefficients that are nearest to the flow.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from snrkit.base.errors import ConfigError
from snrkit.commands.compare_rows import with_nfe
from snrkit.commands.design import design_states, designs
from snrkit.commands.knobs import coefficients, with_values
from snrkit.commands.tune_flow import fit_table, nearest_to_flow
from snrkit.data.dataset import fingerprint
from snrkit.diffusion.process import Process
from snrkit.experiment.certificate import AS_IT_IS
from snrkit.experiment.flows import FirstStates
from snrkit.sampling.corrections import AnyCorrection, Dcw, EpsilonScaling, Gain
from snrkit.sampling.corrections.dcw import Table
from snrkit.sampling.grid import ImageGrid
from snrkit.sampling.sampler import Sampler, guided_alone, takes_fit
from snrkit.sampling.solvers import AnySolver, Fitted, Ipndm
from snrkit.sampling.solvers.fitted import Base
from snrkit.sampling.step import GivenFit
from snrkit.shift.bootstrap import Bootstrap

PUBLISHED: dict[str, tuple[AnyCorrection, tuple[str, ...]]] = {  # with the coefficients that are found by flow
    "dcw-pixel": (Dcw(), ("pixel",)),
    "dcw-bands": (Dcw(), ("low", "high")),
    "epsilon-scaling": (EpsilonScaling(), ("scale",)),
    "constant-gain": (Gain(), ("gain",)),
}


def certify_states(sampler: Sampler, process: Process, cost: Callable[[Sampler], int]) -> int:
    """How many states of each first state are kept while a sampler is certified: three flows beside a design."""
    beside, plain = 3 * (sampler.grid.steps + 1), guided_alone(sampler)
    shape = with_nfe(plain.model_copy(update={"solver": Fitted()}), cost(sampler), cost)
    if shape is None or isinstance(shape.grid, ImageGrid):
        return beside
    return beside + design_states(shape, process)


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate with its coefficients."""

    sampler: Sampler
    rows: tuple[tuple[float, ...], ...] | None = None  # (steps, terms), of steps that were fitted

    def walked(self, states: FirstStates) -> Tensor:
        """Its clean states (M, *) from these first states."""
        fit = None if self.rows is None else GivenFit(self.rows)
        return states.walked(states.opened(self.sampler, fit))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to try, and how it is made of first states that are fitted on and others that choose."""

    name: str
    shape: Sampler  # but for coefficients
    make: Callable[[], Made]

    def asked(self, seeds: Sequence[Sequence[int]]) -> str:
        """Fingerprint of what is to be made, and of the seeds that it is fitted and shown on."""
        shape = self.shape.model_dump(mode="json")
        return fingerprint(json.dumps([self.name, shape, [list(part) for part in seeds]], sort_keys=True))


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is tried in the place of one sampler, and what it is made with."""

    given: Sampler
    plain: Sampler  # with its guidance and nothing else
    nfe: int
    cost: Callable[[Sampler], int]
    solvers: Sequence[AnySolver]
    fitted: FirstStates
    chosen_on: FirstStates
    bootstrap: Bootstrap
    pipeline: bool = False  # whether only what a pipeline can have is tried: the sampler's own solver and levels

    def every(self) -> Iterator[Candidate]:
        """In order."""
        yield Candidate(AS_IT_IS, self.given, partial(Made, self.given))
        if self.plain != self.given:
            yield Candidate("without-corrections", self.plain, partial(Made, self.plain))
        if not self.pipeline:
            yield from self._solvers()
        yield from self._fitted()
        if not self.pipeline:
            yield self._at_cost("designed", Fitted(), self._designed)
        for name, (correction, names) in PUBLISHED.items():
            shape = self._with(correction)
            yield Candidate(name, shape, partial(self._corrected, shape, names))

    def _fitted(self) -> Iterator[Candidate]:
        own = self.plain.solver
        if not self.pipeline:
            yield self._at_cost("fitted", Fitted(), self._with_table)
        if isinstance(own, Base) and (self.pipeline or own != Fitted().base):
            on_own = self.plain.model_copy(update={"solver": Fitted(base=own)})
            yield Candidate("fitted-on-own", on_own, partial(self._with_table, on_own))
        if min(self.fitted.x.shape[-2:]) < 2:
            return
        if not self.pipeline:
            yield self._at_cost("fitted-by-band", Fitted(bands="haar", history=1), self._with_table)
        table = self._with(Dcw(schedule=Table()))
        yield Candidate("dcw-table", table, partial(self._with_table, table))

    def _solvers(self) -> Iterator[Candidate]:
        """Each by its kind, and those of one kind by a number too."""
        solvers = [s for s in dict.fromkeys((Ipndm(), *self.solvers)) if s != self.plain.solver]
        kinds = Counter[str]()
        for solver in solvers:
            kinds[solver.kind] += 1
            number = "" if kinds[solver.kind] == 1 else f"-{kinds[solver.kind]}"
            found = self._at_cost(solver.kind.replace("_", "-") + number, solver, Made)
            if not takes_fit(found.shape):
                yield found

    def _at_cost(self, name: str, solver: AnySolver, make: Callable[[Sampler], Made]) -> Candidate:
        """With another solver, at as many evaluations or one fewer; one that cannot be had says so when it is made."""
        other = self.plain.model_copy(update={"solver": solver})
        found = with_nfe(other, self.nfe, self.cost) or with_nfe(other, self.nfe - 1, self.cost)
        if found is None:
            return Candidate(name, other, self._impossible)
        return Candidate(name, found, partial(make, found))

    def _impossible(self) -> Made:
        raise ConfigError(f"its grid, {self.plain.grid.kind}, has no {self.nfe} evaluations with this solver.")

    def _with(self, correction: AnyCorrection) -> Sampler:
        return self.plain.model_copy(update={"corrections": (*self.plain.corrections, correction)})

    def _with_table(self, sampler: Sampler) -> Made:
        states = self.fitted.on_grid_of(sampler)
        return Made(sampler, fit_table(states, sampler).rows)

    def _designed(self, shape: Sampler) -> Made:
        fitted, chosen_on = (part.on_grid_of(shape) for part in (self.fitted, self.chosen_on))
        found = min(designs(fitted, chosen_on, shape), key=lambda one: one.distance)
        return Made(found.sampler, found.table.rows)

    def _corrected(self, sampler: Sampler, names: Sequence[str]) -> Made:
        known = coefficients(sampler)
        chosen = [known[f"{len(self.plain.corrections)}.{name}"] for name in names]
        found = nearest_to_flow(self.fitted, sampler, chosen, self.bootstrap)
        values = tuple(number.value for number in found.values)
        return Made(with_values(sampler, chosen, values))
