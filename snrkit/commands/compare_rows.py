"""The rows of `snrkit compare`: the experiment's samplers, and what is set beside them at equal cost.

To every sampler with corrections comes, where it is missing, its base - its solver and grid without them, with as many
steps as the same NFE allows, or one evaluation more where none has the same (guided Heun costs an even number, Heun an
odd one); `compare.bases` may name another row. To every NFE come the solvers of `compare.solvers`, or, where they
cannot have that NFE, with one evaluation less. So a base is never cheaper than its row, and a rival never dearer.
Rows without corrections have the first of them at their NFE as their base; a rival that has none there, the row whose
rival it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.experiment.experiment import Experiment
from snrkit.sampling.sampler import Sampler, bare

MOST_STEPS = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """A sampler of the table, and the name of the row it is compared with."""

    sampler: Sampler
    nfe: int
    base: str | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The samplers of the table with their NFE, by name; rows are added while it is laid out."""

    cost: Callable[[Sampler], int]
    found: dict[str, tuple[Sampler, int]]

    def row(self, plain: Sampler, *costs: int) -> str | None:
        """The row of `plain` at the first of these costs that it can have, added where it is missing; else None."""
        for cost in costs:
            for name, (sampler, nfe) in self.found.items():
                if nfe == cost and _same_but_steps(sampler, plain):
                    return name
            fitted = with_nfe(plain, cost, self.cost)
            if fitted is not None:
                name = f"{fitted.solver.kind}-{cost}"
                while name in self.found:
                    name += "-plain"
                self.found[name] = (fitted, cost)
                return name
        return None

    def plain(self, nfe: int) -> str | None:
        """The first row without corrections at this cost; None if there is none."""
        return next((name for name, (s, cost) in self.found.items() if cost == nfe and s == bare(s)), None)


def comparison_layout(experiment: Experiment) -> dict[str, Row]:
    """All rows. ConfigError where a sampler has no base, or `compare.bases` names none."""
    cost = experiment.model.parts.cost
    given = {name: (sampler, cost(sampler)) for name, sampler in experiment.samplers.items()}
    named = experiment.compare.bases
    _check_named(named, given)
    layout, bases, rivals = Layout(cost, dict(given)), dict(named), dict[str, str]()
    for name, (sampler, nfe) in given.items():
        plain = bare(sampler)
        if plain != sampler and name not in bases:
            base = layout.row(plain, nfe, nfe + 1)
            if base is None:
                raise ConfigError(
                    f"samplers.{name}: no {plain.solver.kind} on a {plain.grid.kind} grid has {nfe} or {nfe + 1} "
                    "evaluations without corrections, so it has no base of equal cost; change its steps."
                )
            bases[name] = base
        for solver in experiment.compare.solvers:
            rival, beside = layout.row(plain.model_copy(update={"solver": solver}), nfe, nfe - 1), bases.get(name, name)
            if rival is not None and rival != beside:
                rivals.setdefault(rival, beside)
    for name, (sampler, nfe) in layout.found.items():
        first = layout.plain(nfe)
        base = rivals.get(name) if first == name else first
        if sampler == bare(sampler) and base is not None:
            bases.setdefault(name, base)
    return {name: Row(sampler, nfe, bases.get(name)) for name, (sampler, nfe) in layout.found.items()}


def _check_named(named: Mapping[str, str], given: Mapping[str, tuple[Sampler, int]]) -> None:
    for row, base in named.items():
        for name in (row, base):
            if name not in given:
                raise ConfigError(f"compare.bases: no sampler is named {name}; there are {', '.join(given)}.")
        if row == base or given[row][1] > given[base][1]:
            raise ConfigError(
                f"compare.bases.{row}: {base} costs {given[base][1]} evaluations and {row} {given[row][1]}; name "
                "another row that costs as much."
            )


def _same_but_steps(candidate: Sampler, plain: Sampler) -> bool:
    grids = [value.grid.model_copy(update={"steps": 1}) for value in (candidate, plain)]
    same = candidate.solver == plain.solver and grids[0] == grids[1] and candidate.told_spectrum == plain.told_spectrum
    return not candidate.corrections and same and candidate.start == plain.start


def with_nfe(sampler: Sampler, nfe: int, cost: Callable[[Sampler], int]) -> Sampler | None:
    """The sampler with the number of steps that costs exactly `nfe` evaluations; None if no number does."""
    low, high = 1, min(nfe, MOST_STEPS)
    while low <= high:
        steps = (low + high) // 2
        tried = sampler.model_copy(update={"grid": sampler.grid.model_copy(update={"steps": steps})})
        try:
            calls = cost(tried)
        except SnrkitError:  # more steps than the table has
            calls = nfe + 1
        if calls == nfe:
            return tried
        low, high = (steps + 1, high) if calls < nfe else (low, steps - 1)
    return None
