"""`snrkit tune --by flow`: fitted to the network's own fine trajectories, and checked on others (docs/fitted.md).

A sampler with coefficients of corrections gets those that bring it nearest to the flow; one whose solver or correction
takes a fit, a table of them by step, which the run keeps. Either is used only if it comes nearer to the flow than
without, on first states that it was not fitted on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError
from snrkit.base.records import read_record, to_json
from snrkit.commands.knobs import WIDER, Knob, Values, neutral, with_values
from snrkit.commands.progress import EVALUATIONS, bar
from snrkit.data.dataset import fingerprint
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.fits import StoredFit, fit_path
from snrkit.experiment.flows import FirstStates, first_states, flow_key, opened_to_follow
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import Trajectories
from snrkit.fitting.coefficients import ByFlow, by_flow
from snrkit.fitting.guard import guarded
from snrkit.fitting.learned import learn
from snrkit.fitting.steps import FittedTable, FittingSteps, fit_steps
from snrkit.reports.records import FlowFound
from snrkit.sampling.corrections.guidance import Guidance
from snrkit.sampling.flow import flow_evaluations
from snrkit.sampling.sampler import Sampler, named_fit, parse_seeds
from snrkit.sampling.solvers import Bns
from snrkit.sampling.step import Fit, Range
from snrkit.shift.bootstrap import Bootstrap

WIDENED = ("dcw", "epsilon_scaling", "gain")  # corrections that take any coefficient


@dataclass(frozen=True, slots=True)
class FlowTools:
    """What is walked for the samplers of a run; samplers of the same grid, start and guidance share their flow.

    One flow is held at a time, so that samplers which share theirs are to follow one another.
    """

    experiment: Experiment
    samples: Trajectories
    _known: dict[str, tuple[FirstStates, FirstStates]] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[Sequence[int], ...]:
        """Those that are fitted on, and as many others."""
        tune = self.experiment.tune
        return tuning_seeds(tune.seeds, tune.noises)

    @property
    def bootstrap(self) -> Bootstrap:
        """The resampling of intervals."""
        shift = self.experiment.shift
        return Bootstrap(shift.bootstrap, shift.confidence, self.experiment.seed)

    def states(self, name: str, sampler: Sampler) -> tuple[FirstStates, FirstStates]:
        """The first states that are fitted on and those that are not."""
        opened_to_follow(self.samples, sampler, name)  # a flow that is known already is that of other solvers too
        key = flow_key(sampler)
        if key not in self._known:
            self._known.clear()
            fitted, checked = (first_states(self.samples, sampler, part, name) for part in self.seeds)
            self._known[key] = fitted, checked.at_the_end()
            for part, what in zip(self._known[key], ("", ", to check on"), strict=True):
                follow_flow(part, f"{name}{what}")
        return self._known[key]


def follow_flow(states: FirstStates, name: str) -> None:
    """Follow the flow from first states, which takes hundreds of evaluations each, with a bar."""
    each = (1 + len(states.guidance)) * flow_evaluations(states.levels, states.denoise.process, states.guidance)
    with bar(f"flow of {name}", len(states.x) * each, unit=EVALUATIONS):
        _ = states.flow


def tuning_states(sampler: Sampler, coefficients: int) -> int:
    """How many states of each first state are kept while a sampler is tuned.

    The flow at its levels, first states and clean ones to check on, and derivatives, new and old, of coefficients.
    """
    return sampler.grid.steps + 1 + 2 + 2 * coefficients


def tuning_seeds(text: str, noises: int, parts: int = 2) -> tuple[Sequence[int], ...]:
    """The first `noises` seeds, and as many after them for each further part. ConfigError for fewer."""
    seeds = parse_seeds(text)
    if len(seeds) < parts * noises:
        raise ConfigError(
            f"tune.seeds: there are {len(seeds)}, and {parts} times tune.noises ({noises}) are needed to fit and to "
            f"check; give {parts * noises} at least, or fewer noises."
        )
    return tuple(seeds[part * noises : (part + 1) * noises] for part in range(parts))


def check_disjoint(experiment: Experiment) -> None:
    """Refuse seeds that would both choose and be scored: ConfigError."""
    shared = parse_seeds(experiment.tune.seeds).shared(parse_seeds(experiment.sample.seeds))
    if shared:
        raise ConfigError(
            f"tune.seeds: {shared} of these seeds are scored by sample.seeds too; tune on others, such as "
            "100000-100999."
        )


def check_knobs(name: str, sampler: Sampler, chosen: Sequence[Knob]) -> None:
    """Refuse coefficients that change the flow itself: ConfigError."""
    for knob in chosen:
        correction = sampler.corrections[knob.index]
        if isinstance(correction, Guidance):
            raise ConfigError(
                f"samplers.{name}.{knob.path}: {correction.kind} changes the flow itself, so that no weight is nearer "
                "to it; tune it by fd."
            )


def depends_on(tools: FlowTools, sampler: Sampler, chosen: Sequence[Knob]) -> str:
    """A fingerprint of all that coefficients by flow depend on: what they are of, weights, first states, intervals."""
    blank = with_values(sampler, chosen, neutral(chosen))
    of, tune = tools.samples.sources.names.fit_of(named_fit(blank)), tools.experiment.tune
    facts = [to_json(of), [knob.path for knob in chosen], tune.seeds, tune.noises, str(tools.bootstrap)]
    return fingerprint(json.dumps(facts, sort_keys=True))


def kept_fit(tools: FlowTools, run: Run, sampler: Sampler) -> StoredFit | None:
    """The fit of a sampler that the run keeps, if it is of these weights and first states."""
    named, tune = named_fit(sampler), tools.experiment.tune
    path = fit_path(run, named.sampler)
    stored = read_record(StoredFit, path) if path.exists() else None
    if stored is None or (stored.seeds, stored.noises) != (tune.seeds, tune.noises):
        return None
    return stored if stored.of == tools.samples.sources.names.fit_of(named) else None


@torch.no_grad()
def fit_sampler(tools: FlowTools, name: str, sampler: Sampler) -> StoredFit:
    """The coefficients of a sampler that takes a fit, with what the guard says of them beside the sampler without."""
    fitted, checked = tools.states(name, sampler)
    table = fit_table(fitted, sampler)
    return guarded_fit(tools, name, sampler, table, fitted.flow.evaluations, checked, sampler)


def fit_table(fitted: FirstStates, sampler: Sampler) -> FittedTable:
    """The coefficients of each step: by least squares to the flow, or as its solver asks."""
    if isinstance(sampler.solver, Bns):
        return learned_table(fitted, sampler, sampler.solver.rounds)
    fitting, terms = FittingSteps(fitted.flow), named_fit(sampler).terms
    return fit_steps(fitted.denoise, fitted.opened(sampler, fitting), fitting, fitted.x, terms, fitted.cond)


def learned_table(fitted: FirstStates, sampler: Sampler, rounds: int) -> FittedTable:
    """The coefficients of all steps at once, nearest to the flow at its end."""
    named = named_fit(sampler)

    def walk(fit: Fit, rows: slice) -> Tensor:
        return fitted.at(rows).walked(fitted.opened(sampler, fit))

    with bar("learning all steps", None, unit=EVALUATIONS):
        return learn(walk, fitted.flow.states[-1], named.steps, named.terms, rounds, fitted.batch)


def guarded_fit(
    tools: FlowTools,
    name: str,
    sampler: Sampler,
    table: FittedTable,
    evaluations: int,
    checked: FirstStates,
    base: Sampler,
) -> StoredFit:
    """A table as it is kept: beside a base without a fit, on first states that it was not fitted on."""
    ends = checked.walked(checked.opened(base)), checked.walked(checked.opened(sampler, table.fit))
    tune = tools.experiment.tune
    return StoredFit(
        of=tools.samples.sources.names.fit_of(named_fit(sampler)),
        name=name,
        rows=table.rows,
        shares=table.shares,
        noises=tune.noises,
        seeds=tune.seeds,
        evaluations=evaluations,
        guard=guarded(*ends, checked.flow.states[-1], checked.flow.error),
    )


@torch.no_grad()
def coefficients_by_flow(
    tools: FlowTools, name: str, sampler: Sampler, chosen: Sequence[Knob]
) -> tuple[Values, FlowFound]:
    """(The coefficients to take, which are neutral where the guard says so; what was found)."""
    fitted, checked = tools.states(name, sampler)
    found = nearest_to_flow(fitted, sampler, chosen, tools.bootstrap)
    values = tuple(number.value for number in found.values)
    base, moved = (checked.walked(checked.opened(with_values(sampler, chosen, v))) for v in (neutral(chosen), values))
    guard = guarded(base, moved, checked.flow.states[-1], checked.flow.error)
    taken = values if guard.helps else neutral(chosen)
    noises, cost = tools.experiment.tune.noises, fitted.flow.evaluations
    of = depends_on(tools, sampler, chosen)
    return taken, FlowFound(found.values, found.curves, found.flat, guard, noises, cost, of)


def nearest_to_flow(fitted: FirstStates, sampler: Sampler, chosen: Sequence[Knob], bootstrap: Bootstrap) -> ByFlow:
    """The coefficients with which a sampler comes nearest to the flow."""

    def walk(values: Values) -> Tensor:
        return fitted.walked(fitted.opened(with_values(sampler, chosen, values)))

    ranges = [_wide(sampler, knob) for knob in chosen]
    return by_flow(walk, fitted.flow.states[-1], ranges, bootstrap, fitted.flow.error)


def _wide(sampler: Sampler, knob: Knob) -> Range:
    """Where a coefficient is searched: a correction that takes any may need far more than a sweep looks at."""
    return knob.range.wider(WIDER) if sampler.corrections[knob.index].kind in WIDENED else knob.range
