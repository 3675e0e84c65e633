"""`snrkit design`: a grid of as many steps as a number of evaluations allows, and steps fitted on it.

Candidates are the levels of the sampler's own grid with those between them. The paths that dynamic programming finds on
the recorded flow (fitting/design.py), and the sampler's own grid, are each given fitted steps; the one that is nearest
to the flow on other first states is kept, and the guard sets it beside the sampler without anything fitted, on others
still. What is found is a YAML with a listed grid, and its coefficients in the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.files import disk_errors, write_text
from snrkit.base.records import to_json
from snrkit.base.sealed import write_json
from snrkit.base.signals import ending
from snrkit.commands.compare_rows import with_nfe
from snrkit.commands.opening import open_aloud, open_model_aloud
from snrkit.commands.progress import EVALUATIONS, bar, log
from snrkit.commands.sample import check_samplers, choose
from snrkit.commands.tune_flow import FlowTools, check_disjoint, fit_table, follow_flow, guarded_fit, tuning_seeds
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.experiment.experiment import Experiment, dump_yaml
from snrkit.experiment.fits import StoredFit, write_fit
from snrkit.experiment.flows import FirstStates, check_flows_fit, first_states
from snrkit.experiment.lock import locked
from snrkit.experiment.run import Run
from snrkit.experiment.stored import trained_run
from snrkit.experiment.trajectories import trajectories
from snrkit.fitting.design import AtLevels, amplifications, best_paths, record_flow, step_costs
from snrkit.fitting.guard import guarded
from snrkit.fitting.published import gits_costs, gits_path, oss_path
from snrkit.fitting.steps import FittedTable
from snrkit.reports.records import Designed
from snrkit.sampling.flow import fine_flow, rms
from snrkit.sampling.grid import ImageGrid, Listed
from snrkit.sampling.refine import Refined, parts_of, refined
from snrkit.sampling.sampler import Sampler, guided_alone
from snrkit.sampling.solvers import AnySolver, Bns, Fitted
from snrkit.sampling.solvers.fitted import LONGEST_HISTORY

WAYS = ("fitted", "gits", "oss")  # to find a grid
CANDIDATES = 64  # steps between them, at least, where a table has as many levels


@dataclass(frozen=True, slots=True)
class Tried:
    """A grid with steps fitted on it, and how near it comes to the flow on first states that it was not fitted on."""

    sampler: Sampler
    table: FittedTable
    distance: float


def run_design(
    experiment: Experiment,
    runs: Path,
    world: World,
    names: Sequence[str],
    nfe: int,
    quiet: bool = False,
    by: str = "fitted",
) -> dict[str, Designed]:
    """Design a grid for each of the samplers, all by default; returns what was found by sampler.

    `by` gits or oss: as those papers have it, for the sampler's own steps.
    """
    world.check_alone("design")
    if by not in WAYS:
        raise SnrkitError(f"--by {by} is no way to design; choose {', '.join(WAYS)}.")
    cost = experiment.model.parts.cost
    chosen = {name: _asked(experiment, name, nfe) for name in choose(experiment, names)}
    tuning_seeds(experiment.tune.seeds, experiment.tune.noises, 3)
    check_disjoint(experiment)
    opened = open_aloud(experiment, world, quiet)
    check_samplers(opened.setting, {name: plain for name, (plain, _) in chosen.items()})
    states = max(design_states(shape, opened.setting.parts.process) for _, shape in chosen.values())
    check_flows_fit(opened.setting, experiment.tune.noises, states)
    run = trained_run(runs, opened.experiment, opened.data.dataset.fingerprint)
    with locked(run), ending("every design so far"), torch.no_grad():
        tools = FlowTools(opened.experiment, trajectories(opened, open_model_aloud(opened, run)))
        found = {}
        with bar("designing", len(chosen), not quiet, "grids") as progress:
            for name, (plain, shape) in chosen.items():
                with bar(f"designing {name}", None, not quiet, EVALUATIONS):
                    if by == "fitted":
                        found[name] = _design(tools, run, f"{name}-designed-{cost(plain)}", plain, shape)
                    else:
                        found[name] = _published(tools, run, name, plain, by)
                progress.advance(1, f"{name}: rms to the flow {found[name].distance:.4f}")
        return found


def _asked(experiment: Experiment, name: str, nfe: int) -> tuple[Sampler, Sampler]:
    """(The sampler with its guidance alone, what is fitted beside it), both of `nfe` evaluations, or ConfigError."""
    sampler, cost = experiment.samplers[name], experiment.model.parts.cost
    if isinstance(sampler.grid, ImageGrid):
        raise ConfigError(f"samplers.{name}.grid: {sampler.grid.kind} follows the images; design another sampler.")
    solver = _fitted_as(sampler.solver)
    plain = with_nfe(guided_alone(sampler), nfe, cost)
    shape = with_nfe(guided_alone(sampler).model_copy(update={"solver": solver}), nfe, cost)
    if plain is None or shape is None:
        raise ConfigError(
            f"--nfe {nfe}: samplers.{name} cannot have as many with its grid and solver; give another number."
        )
    return plain, shape


def _fitted_as(solver: AnySolver) -> Fitted:
    """Steps fitted in turn: as configured, or of the base and bands of a bns with as much of its history, or plain."""
    if isinstance(solver, Bns):
        return Fitted(base=solver.base, bands=solver.bands, history=min(solver.history, LONGEST_HISTORY))
    return solver if isinstance(solver, Fitted) else Fitted()


def _design(tools: FlowTools, run: Run, label: str, plain: Sampler, shape: Sampler) -> Designed:
    tune = tools.experiment.tune
    of_fit, of_choice, of_check = tuning_seeds(tune.seeds, tune.noises, 3)
    checked = first_states(tools.samples, plain, of_check, label).at_the_end()  # first: it may have no flow
    fitted, chosen_on = (first_states(tools.samples, shape, seeds, label) for seeds in (of_fit, of_choice))
    chosen_on = chosen_on.at_the_end()
    for states, what in ((checked, "to check on"), (chosen_on, "to choose on")):
        follow_flow(states, f"{label}, {what}")
    tried = designs(fitted, chosen_on, shape)
    best = min(tried, key=lambda one: one.distance)
    stored = guarded_fit(tools, label, best.sampler, best.table, chosen_on.flow.evaluations, checked, plain)
    return _write(tools.experiment, run, label, best, stored, tried[0].distance, plain)


def _published(tools: FlowTools, run: Run, name: str, plain: Sampler, by: str) -> Designed:
    """A grid as a paper has it, for the sampler's own steps; set beside its own grid on first states of their own.

    It is named by what it costs, which may be less than was asked for. The run keeps which seeds it was chosen on.
    """
    tune, cost = tools.experiment.tune, tools.experiment.model.parts.cost
    of_path, _, of_check = tuning_seeds(tune.seeds, tune.noises, 3)
    states, checked = (first_states(tools.samples, plain, seeds, name) for seeds in (of_path, of_check))
    checked = checked.at_the_end()
    follow_flow(checked, f"{name}, to check on")
    sampler = plain.model_copy(update={"grid": published_grid(states, by)})
    label = f"{name}-{by}-{cost(sampler)}"
    if cost(sampler) < cost(plain):
        log.warning(f"{by} finds nothing nearer with more than {cost(sampler)} evaluations, of {cost(plain)} allowed")
    ends = [checked.walked(checked.opened(one)) for one in (plain, sampler)]
    guard = guarded(ends[0], ends[1], checked.flow.states[-1], checked.flow.error)
    grid = sampler.grid.model_dump(mode="json")
    written = _written(tools.experiment, run, label, sampler)
    found = Designed(label, str(written), grid, guard.base.value, guard.fitted.value, guard, by, tune.seeds)
    write_json(written.with_suffix(".json"), to_json(found))
    return found


def published_grid(states: FirstStates, by: str) -> Listed:
    """The grid that gits or oss finds, of as many steps as that of first states, or of fewer where oss takes fewer."""
    process, steps = states.denoise.process, len(states.levels) - 1
    levels = candidates(states.levels, process).levels
    flow = fine_flow(states.denoise, levels, states.x, states.cond, states.guidance, batch=states.batch).states
    network = AtLevels(states.denoise, levels, states.cond, states.guidance)
    path = (
        oss_path(network, flow, steps, states.batch)
        if by == "oss"
        else gits_path(gits_costs(network, flow, states.batch), steps)
    )
    return _listed(process, [levels[place] for place in path])


def candidates(levels: Sequence[Level], process: Process) -> Refined:
    """The levels among which grids are designed: those of a sampler's own with those between them."""
    return refined(levels, process, parts_of(levels, process, CANDIDATES, multiple=2))


def design_states(shape: Sampler, process: Process) -> int:
    """How many states of each first state are kept while a grid is designed, of as many steps as that of `shape`.

    The flow at all candidates, and first and clean states of those that choose and of those that check.
    """
    assert not isinstance(shape.grid, ImageGrid)
    return len(candidates(shape.grid.levels(process), process).levels) + 4


def designs(fitted: FirstStates, chosen_on: FirstStates, shape: Sampler) -> list[Tried]:
    """The grid of `shape`, then those of the best paths, with its steps fitted on each. Both are on its own grid.

    States are held at the levels of paths that are still to be tried alone.
    """
    fine = candidates(fitted.levels, fitted.denoise.process)
    recorded = record_flow(fitted.denoise, fine.levels, fitted.x, fitted.cond, fitted.guidance, fitted.batch)
    own = fine.visited
    gains = amplifications(fitted.denoise, recorded, own, fitted.cond, fitted.guidance, fitted.batch)
    paths = [own, *(path.places for path in best_paths(*step_costs(recorded), gains, len(own) - 1))]
    flows = {places: recorded.flow.at(places) for places in paths}
    del recorded
    return [
        _tried(
            replace(fitted, recorded=flows.pop(places)),
            chosen_on,
            shape.model_copy(update={"grid": _listed(fitted.denoise.process, [fine.levels[p] for p in places])}),
        )
        for places in list(flows)
    ]


def _tried(fitted: FirstStates, chosen_on: FirstStates, sampler: Sampler) -> Tried:
    """A sampler with steps fitted to the flow at its levels."""
    table = fit_table(fitted, sampler)
    ends = chosen_on.walked(chosen_on.opened(sampler, table.fit))
    found = rms(ends - chosen_on.flow.states[-1])
    return Tried(sampler, table, found if math.isfinite(found) else math.inf)


def _listed(process: Process, levels: Sequence[Level]) -> Listed:
    """Levels as a list that a file can hold, without the clean one: times, where it begins at pure noise."""
    logsnr = torch.stack([level.logsnr for level in levels[:-1]])
    if bool(logsnr.isinf().any()):
        return Listed(time=tuple(process.time(logsnr).tolist()))
    return Listed(logsnr=tuple(logsnr.tolist()))


def _written(e: Experiment, run: Run, label: str, sampler: Sampler) -> Path:
    """Where a YAML with one sampler more lies."""
    written = run.designed(label)
    with disk_errors(f"writing {written}", "free space and run the same command again"):
        write_text(written, dump_yaml(e.model_copy(update={"samplers": {**e.samplers, label: sampler}})))
    return written


def _write(e: Experiment, run: Run, label: str, best: Tried, stored: StoredFit, own: float, plain: Sampler) -> Designed:
    """The design, or the sampler as it is where the guard does not let it pass: a grid is chosen with its steps."""
    with disk_errors(f"writing the fit of {label}", "free space and run the same command again"):
        write_fit(run, stored)
    sampler = best.sampler if stored.guard.helps else plain
    written = _written(e, run, label, sampler)
    return Designed(label, str(written), sampler.grid.model_dump(mode="json"), own, best.distance, stored.guard)
