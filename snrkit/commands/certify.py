"""`snrkit certify`: does a sampler of this model suffer, and what should be done? One answer, confirmed once.

What is tried (candidates.py) is fitted on some first states and chosen on others, by its distance to the flow.
One winner is confirmed beside the sampler as it is: by the guard on first states on which no candidate was chosen, and
by the score that decides on seeds that tuned nothing. The rule is RULE, whatever the numbers are. Everything that was
tried is kept, so that the same command goes on where it stopped; a certificate counts the winners that its first states
and seeds were asked about.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError, reason_of
from snrkit.base.files import disk_errors, write_text
from snrkit.base.memory import is_out_of_memory
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import write_json
from snrkit.base.signals import ending
from snrkit.base.tensors import values_checksum
from snrkit.commands.candidates import Candidate, Candidates, Made, certify_states
from snrkit.commands.certify_cost import cost_of, foreseen
from snrkit.commands.compare import check_untuned, difference, find_rows, told_apart
from snrkit.commands.compare_rows import Row
from snrkit.commands.eval_fid import provenance
from snrkit.commands.opening import open_aloud, open_model_aloud
from snrkit.commands.pace import evaluation_seconds, runs_code
from snrkit.commands.progress import EVALUATIONS, bar, follow, log
from snrkit.commands.sample import check_images, check_samplers, choose
from snrkit.commands.tune_flow import FlowTools, check_disjoint, follow_flow, tuning_seeds
from snrkit.data.representation import PIXELS
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.level import ROUNDING_VARIANCE
from snrkit.experiment.certificate import AS_IT_IS, Advice, Certificate, Recipe, ScoreChange, ShiftSplit, TriedCandidate
from snrkit.experiment.experiment import Experiment, dump_yaml
from snrkit.experiment.fits import FitOf, StoredFit, WithFit
from snrkit.experiment.flows import FirstStates, blank, check_flows_fit, first_states
from snrkit.experiment.instrument import Instrument, check_arms_fit, check_beside, measured_seeds
from snrkit.experiment.lock import locked
from snrkit.experiment.opening import Model, Opened
from snrkit.experiment.run import Run
from snrkit.experiment.scorer import disjoint
from snrkit.experiment.stored import trained_run, write_config
from snrkit.experiment.trajectories import Trajectories, trajectories
from snrkit.fitting.guard import Guard, guarded
from snrkit.metrics.scores import by_key
from snrkit.reports.certificate import certificate_page, certified_row, sentence
from snrkit.sampling.flow import Flow
from snrkit.sampling.sampler import Sampler, guided_alone, named_fit, open_with, parse_seeds, takes_fit
from snrkit.shift.flow_distance import distance, per_state
from snrkit.shift.response import Response, ResponseProbe
from snrkit.shift.why import Why, WhyProbe

ROUNDING = ROUNDING_VARIANCE**0.5
RANGES = 5  # of seeds, at least: with fewer an interval hardly shows what is worse
RULE = (
    "The recipe is used if the sampler is farther from the flow than rounding to 8 bits moves an image (rms "
    f"{ROUNDING:.4f}; 0 where states are no pixels), if on first states on which no candidate was chosen the upper 95 "
    "% bound of the paired change of squared distance to the flow, widened by the flow's own error and for skewness, "
    "lies below 0, and if the 95 % interval of the paired difference of the score that decides, over "
    f"{RANGES} ranges or more of seeds that tuned nothing and of enough images, does not show it to be worse."
)


@dataclass(frozen=True, slots=True)
class Certifier:
    """One model whose samplers are certified."""

    opened: Opened
    model: Model
    samples: Trajectories
    until: float | None  # of time.monotonic, for what is tried
    card: bool
    pipeline: bool  # whether the recipe is for a pipeline

    @property
    def experiment(self) -> Experiment:
        """As resolved."""
        return self.opened.experiment

    @property
    def run(self) -> Run:
        """Where what is found is kept."""
        return self.model.run

    @property
    def rounding(self) -> float:
        """By how much rounding to 8 bits moves states; 0 where they are no pixels."""
        return ROUNDING if self.opened.data.representation == PIXELS else 0.0

    def of(self, sampler: Sampler) -> FitOf:
        """What is certified: a sampler of these weights."""
        return self.samples.sources.names.fit_of(named_fit(sampler))


def run_certify(
    experiment: Experiment,
    runs: Path,
    world: World,
    names: Sequence[str],
    minutes: float | None,
    card: bool = False,
    pipeline: bool = False,
    quiet: bool = False,
) -> dict[str, Certificate]:
    """Certify samplers, all by default; writes a certificate and a page for each, and returns them by sampler.

    `pipeline`: only what a pipeline of diffusers can have is tried.
    """
    world.check_alone("certify")
    began = time.monotonic()
    chosen = choose(experiment, names)
    opened, run = _checked(experiment, runs, world, chosen, quiet)
    with locked(run), ending("every candidate that was finished"), torch.no_grad():
        model = open_model_aloud(opened, run)
        write_config(run, opened.experiment)
        until = None if minutes is None else began + 60 * minutes
        certifier = Certifier(opened, model, trajectories(opened, model), until, card, pipeline)
        log.info(_foreseen(certifier.samples, opened.experiment, chosen, minutes))
        for text in opened.experiment.cautions(model.images):
            log.warning(text)
        found = {name: _certify(certifier, name, world, quiet) for name in chosen}
    return found


def certify_plan(
    experiment: Experiment,
    runs: Path,
    world: World,
    names: Sequence[str],
    minutes: float | None,
    pipeline: bool = False,
) -> str:
    """What is tried, and how long it takes here; nothing is written, and no code that a model brings is run."""
    chosen = choose(experiment, names)
    opened, run = _checked(experiment, runs, world, chosen, quiet=False)
    if untried := runs_code(opened.experiment):
        cost = cost_of(opened.experiment, [opened.experiment.samplers[name] for name in chosen])
        return f"about {cost.sure + cost.tried:,} evaluations of an image; {untried}"
    samples = trajectories(opened, open_model_aloud(opened, run))
    lines = [_foreseen(samples, opened.experiment, chosen, minutes)]
    for name in chosen:
        tries, _ = _tries(opened.experiment, samples, name, pipeline)
        lines.append(f"tried in the place of {name}: {', '.join(each.name for each in tries.every())}")
    return "\n".join(lines)


def _foreseen(samples: Trajectories, e: Experiment, names: Sequence[str], minutes: float | None) -> str:
    samplers, seeds = {name: e.samplers[name] for name in names}, parse_seeds(e.sample.seeds)
    each = evaluation_seconds(samples, samplers[names[0]], seeds[: e.sample.batch])
    return foreseen(e, samplers, each, minutes)


def _tries(e: Experiment, samples: Trajectories, name: str, pipeline: bool) -> tuple[Candidates, FirstStates]:
    """What is tried in the place of a sampler, and the first states that confirm; no flow is followed yet."""
    sampler, cost = e.samplers[name], e.model.parts.cost
    parts = tuning_seeds(e.tune.seeds, e.tune.noises, 3)
    fitted, chosen_on, confirmed_on = (first_states(samples, sampler, part, name) for part in parts)
    plain, solvers, boot = guided_alone(sampler), e.compare.solvers, FlowTools(e, samples).bootstrap
    tries = Candidates(sampler, plain, cost(sampler), cost, solvers, fitted, chosen_on.at_the_end(), boot, pipeline)
    return tries, confirmed_on.at_the_end()


def _checked(experiment: Experiment, runs: Path, world: World, names: Sequence[str], quiet: bool) -> tuple[Opened, Run]:
    """(The experiment, opened; its run): what cannot be certified is refused."""
    check_seeds(experiment)
    for name in names:
        if takes_fit(experiment.samplers[name]):
            why = "takes a fit, which certify makes by itself; certify the sampler without."
            raise ConfigError(f"samplers.{name} {why}")
    opened = open_aloud(experiment, world, quiet)
    e = opened.experiment
    check_beside(opened.setting, e)
    check_images(opened.setting)
    check_samplers(opened.setting, {name: e.samplers[name] for name in names})
    check_arms_fit(opened.setting, e.shift)
    states = max(certify_states(e.samplers[n], opened.setting.parts.process, e.model.parts.cost) for n in names)
    check_flows_fit(opened.setting, e.tune.noises, states)
    check_untuned(Run(runs / experiment.name), e)
    return opened, trained_run(runs, e, opened.data.dataset.fingerprint)


def check_seeds(experiment: Experiment) -> None:
    """Refuse seeds that would both choose and confirm: ConfigError."""
    tuning_seeds(experiment.tune.seeds, experiment.tune.noises, 3)
    check_disjoint(experiment)
    disjoint(len(parse_seeds(experiment.sample.seeds)), ranges_of(experiment))


def ranges_of(experiment: Experiment) -> int:
    """Of the seeds that are scored: metrics.ranges, or RANGES if those are fewer."""
    return max(experiment.metrics.ranges, RANGES)


def _certify(certifier: Certifier, name: str, world: World, quiet: bool) -> Certificate:
    e = certifier.experiment
    sampler = e.samplers[name]
    tries, confirmed_on = _tries(e, certifier.samples, name, certifier.pipeline)
    follow_flow(confirmed_on, name)  # of one that cannot be followed nothing is tried
    flow = confirmed_on.flow
    tried, skipped = _try_all(certifier, name, tries, quiet)
    if tried[0].distance is None:
        raise ConfigError(f"samplers.{name}: {tried[0].why} Nothing can be set beside it; certify another sampler.")
    best = min(tried, key=lambda one: one.nearness)
    made = made_of(best)
    with bar(f"confirming {best.name}", unit=EVALUATIONS, shown=not quiet):
        base, moved = (each.walked(confirmed_on) for each in (Made(sampler), made))
    guard = guarded(base, moved, flow.states[-1], flow.error)
    recipe = _recipe(certifier, name, best, made, guard, flow)
    record = _record(certifier, name, recipe, guard, world)
    record = replace(record, winner=best.name, candidates=tuple(tried), not_tried=tuple(skipped))
    record = replace(record, confirmed=_confirmations(certifier, record))
    if guard.helps:
        record = replace(record, score=_score(certifier, record, made, quiet))
    return _answered(certifier, record)


def _confirmations(certifier: Certifier, record: Certificate) -> int:
    """How many winners the same first states and seeds were asked about, with this one."""
    path, asks = certifier.run.certificate(record.sampler), record.winner != AS_IT_IS  # which is set beside itself
    try:
        before = read_record(Certificate, path) if path.exists() else None
    except SnrkitError:  # damaged, or of another version: it is written anew
        before = None
    if before is None or _asked(before) != _asked(record):
        return int(asks)
    return before.confirmed + (asks and before.winner != record.winner)


def _asked(record: Certificate) -> tuple[object, ...]:
    return record.of, record.noises, record.tuning_seeds, record.scored_seeds


def _answered(certifier: Certifier, record: Certificate) -> Certificate:
    """The certificate with what the rule says, which is written."""
    guard, score, sampler = record.guard, record.score, certifier.experiment.samplers[record.sampler]
    allowed = score is not None and score.verdict not in ("worse", "too few images")
    use = guard.helps and guard.base.value > record.rounding and allowed
    left = Recipe(sampler.model_dump(mode="json"), certifier.of(sampler), None)
    advice: Advice = "use the recipe" if use else "leave it as it is"
    recipe = record.recipe if use else left
    record = replace(record, advice=advice, recipe=recipe, logsnr=_levels(certifier, recipe))
    record = replace(record, sentence=sentence(record))
    _write(certifier, record)
    return record


def _record(certifier: Certifier, name: str, recipe: Recipe, guard: Guard, world: World) -> Certificate:
    """A certificate before anything was scored, and without what was tried."""
    e, sampler = certifier.experiment, certifier.experiment.samplers[name]
    return Certificate(
        experiment=e.name,
        sampler=name,
        advice="leave it as it is",
        sentence="This is not confirmed yet.",
        nfe=e.model.parts.cost(sampler),
        of=certifier.of(sampler),
        network=values_checksum(_parameters(certifier.model)),
        logsnr=(),
        rule=RULE,
        rounding=certifier.rounding,
        winner="",
        recipe=recipe,
        guard=guard,
        score=None,
        shift=_shift(certifier, sampler),
        candidates=(),
        not_tried=(),
        noises=e.tune.noises,
        tuning_seeds=e.tune.seeds,
        scored_seeds=e.sample.seeds,
        command=_command(certifier, name),
        made_with=provenance(world),
        warnings=e.cautions(certifier.model.images),
    )


def _command(certifier: Certifier, name: str) -> str:
    """What makes the certificate again, of an experiment that later commands leave as it is."""
    run = certifier.run
    words = [str(run.certificate(name, ".yaml")), "--runs", str(run.path.parent), "--sampler", name]
    return shlex.join(["snrkit", "certify", *words, *(["--pipeline"] if certifier.pipeline else [])])


def _parameters(model: Model) -> dict[str, Tensor]:
    network = model.denoiser.network if isinstance(model.denoiser, NetworkDenoiser) else None
    return dict(network.named_parameters()) if isinstance(network, nn.Module) else {}


def _levels(certifier: Certifier, recipe: Recipe) -> tuple[float, ...]:
    sampler, samples = Sampler.model_validate(recipe.definition), certifier.samples
    opened = open_with(sampler, samples.setting.parts.process, WithFit(samples.sources, blank(sampler)))
    return tuple(float(level.logsnr) for level in opened.typical[:-1])


def _try_all(certifier: Certifier, name: str, tries: Candidates, quiet: bool) -> tuple[list[TriedCandidate], list[str]]:
    """(What was tried, now or before; the names of what time did not allow)."""
    tune, candidates = certifier.experiment.tune, list(tries.every())
    of, seeds = certifier.of(tries.given), tuning_seeds(tune.seeds, tune.noises, 3)[:2]
    tried, skipped = list[TriedCandidate](), list[str]()
    with bar(f"certifying {name}", len(candidates), not quiet, "candidates") as progress:
        progress.until = certifier.until
        for index, candidate in enumerate(candidates):
            path, asked = certifier.run.candidate(name, candidate.name), candidate.asked(seeds)
            known = _kept(path)
            if known is not None and (known.of, known.asked) == (of, asked):
                tried.append(known)
            elif tried and certifier.until is not None and time.monotonic() > certifier.until:
                skipped.append(candidate.name)
            else:
                with bar(candidate.name, None, not quiet, EVALUATIONS):
                    tried.append(_try(of, asked, candidate, tries.chosen_on))
                with disk_errors(f"writing {path}", "free space and run the same command again"):
                    write_json(path, to_json(tried[-1]))
            near = (
                "" if not tried or tried[-1].distance is None else f": rms to the flow {tried[-1].distance.value:.4f}"
            )
            progress.update(index + 1, f"{candidate.name}{near}")
    return tried, skipped


def _kept(path: Path) -> TriedCandidate | None:
    """What was found of a candidate before; None, so that it is tried again, if it was not or the file is damaged."""
    try:
        known = read_record(TriedCandidate, path) if path.exists() else None
    except SnrkitError:
        return None
    return None if known is None or known.distance is None else known


def _try(of: FitOf, asked: str, candidate: Candidate, chosen_on: FirstStates) -> TriedCandidate:
    try:
        made = candidate.make()
        squares = per_state(made.walked(chosen_on) - chosen_on.flow.states[-1])
        if not bool(squares.isfinite().all()):
            raise SnrkitError("its states do not stay finite.")
    except (SnrkitError, RuntimeError, MemoryError) as error:
        if not isinstance(error, SnrkitError) and not is_out_of_memory(error):
            raise
        why = reason_of(error) if isinstance(error, SnrkitError) else "it takes more memory than there is."
        return TriedCandidate(of, asked, candidate.name, {}, None, None, why)
    near = distance(squares, chosen_on.flow.error)
    return TriedCandidate(of, asked, candidate.name, made.sampler.model_dump(mode="json"), made.rows, near, "")


def made_of(one: TriedCandidate) -> Made:
    """A candidate as it was made."""
    return Made(Sampler.model_validate(one.definition), one.rows)


def _recipe(certifier: Certifier, name: str, best: TriedCandidate, made: Made, guard: Guard, flow: Flow) -> Recipe:
    """The winner as samplers take it, with the coefficients of its steps."""
    definition, of = made.sampler.model_dump(mode="json"), certifier.of(made.sampler)
    if made.rows is None:
        return Recipe(definition, of, None)
    tune, label = certifier.experiment.tune, f"{name}: {best.name}"
    stored = StoredFit(of, label, made.rows, (), tune.noises, tune.seeds, flow.evaluations, guard)
    return Recipe(definition, of, stored)


def _score(certifier: Certifier, record: Certificate, made: Made, quiet: bool) -> ScoreChange:
    """The score that decides, of images of sample.seeds, which tuned nothing; kept as compare keeps its rows.

    A winner with coefficients is sampled as any certificate is: from the one that is not confirmed yet.
    """
    e, name, winner = certifier.experiment, record.sampler, made.sampler
    cost, label = e.model.parts.cost, certified_row(record.sampler)
    if made.rows is not None:
        path = _unconfirmed(certifier, name)
        with disk_errors(f"writing {path}", "free space and run the same command again"):
            write_json(path, to_json(record))
        winner = winner.model_copy(update={"certificate": path})
    rows = {name: Row(e.samplers[name], cost(e.samplers[name]), None), label: Row(winner, cost(winner), name)}
    changes = {
        "shift": e.shift.model_copy(update={"probes": ()}),
        "metrics": e.metrics.model_copy(update={"ranges": ranges_of(e)}),
        "samplers": {n: row.sampler for n, row in rows.items()},
    }
    plain = e.model_copy(update=changes)
    found = find_rows(replace(certifier.opened, experiment=plain), certifier.model, rows, quiet)
    base, other = found[name].score, found[label].score
    decisive = by_key(base.decided_by)
    changed = difference(other, base, decisive.key)
    assert changed is not None  # the score that every set of images has
    was, is_now = (each.summary[decisive.key].mean for each in (base, other))
    said = told_apart(other, base, changed)
    return ScoreChange(decisive.key, decisive.head(base.names), was, is_now, changed, said)


def _shift(certifier: Certifier, sampler: Sampler) -> ShiftSplit:
    """The mean norm gap of the sampler as it is, with its null, and what of it is the network's and the solver's."""
    probes = (WhyProbe(), ResponseProbe())
    config = certifier.experiment.shift.model_copy(update={"probes": probes})
    instrument = Instrument(certifier.samples, config, measured_seeds(certifier.experiment))
    measured = follow(instrument.measuring(sampler))
    why, response = (measured.probes[probe.kind] for probe in probes)
    assert isinstance(why, Why)
    assert isinstance(response, Response)
    shift, split = measured.shift, why.norm_gap
    warning = ResponseProbe().warning(response) or ""
    return ShiftSplit(shift.mean_norm_gap, shift.mean_norm_gap_null, split.mean_network, split.mean_solver, warning)


def _write(certifier: Certifier, record: Certificate) -> None:
    path = certifier.run.certificate(record.sampler)
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_text(certifier.run.certificate(record.sampler, ".yaml"), dump_yaml(certifier.experiment))
        write_json(path, to_json(record))
        certificate_page(certifier.run, record, certifier.card)
        _unconfirmed(certifier, record.sampler).unlink(missing_ok=True)


def _unconfirmed(certifier: Certifier, name: str) -> Path:
    """Where a certificate stands until it is confirmed."""
    return certifier.run.certificate(name, ".unconfirmed.json")
