"""`snrkit tune`: coefficients of a sampler's corrections, chosen on seeds that are never scored.

    predicted   the Gaussian control on the data's own covariance: no fitting, no network (shift/control.py)
    gap         the closed-form least-squares step on the measured norm gap, lambda = neutral - pinv(S) g, with S the
                finite differences of the gap g (levels) in each coefficient, halved while the gap does not shrink; g is
                taken against the held-out images that measure-shift and compare use too
    fd          the paper's two-stage search: one coefficient after the other, a coarse sweep from its neutral value
                until the score turns, then a fine one round the best
    optuna      tree-structured Parzen estimator on the same score (needs the extra `optuna`)
    flow        least squares to the network's own fine trajectories, which also fits `fitted` steps (tune_flow.py)

Every evaluation is kept in runs/<name>/tune/<sampler>.jsonl, so that the same command goes on where it stopped; what
another sampler's file holds already is not made again. The result is a YAML that `sample` takes.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.files import disk_errors, write_text
from snrkit.base.records import from_json, read_record, to_json
from snrkit.base.sealed import append_line, read_lines, write_json, write_lines
from snrkit.base.signals import ending
from snrkit.commands.knobs import WIDER, Knob, Values, coefficients, knobs, moved, neutral, with_values
from snrkit.commands.opening import open_aloud, open_model_aloud
from snrkit.commands.progress import EVALUATIONS, Bar, bar, follow, log
from snrkit.commands.sample import check_samplers, choose, manifest
from snrkit.commands.tune_flow import (
    FlowTools,
    check_disjoint,
    check_knobs,
    coefficients_by_flow,
    depends_on,
    fit_sampler,
    kept_fit,
    tuning_seeds,
    tuning_states,
)
from snrkit.data.dataset import fingerprint, memory_dataset
from snrkit.experiment.experiment import Experiment, dump_yaml
from snrkit.experiment.fits import write_fit
from snrkit.experiment.flows import check_flows_fit, flow_key
from snrkit.experiment.instrument import Instrument, check_held_out
from snrkit.experiment.lock import locked
from snrkit.experiment.opening import Model, Opened, Setting
from snrkit.experiment.run import Run
from snrkit.experiment.scorer import Scorer, opening_scorer
from snrkit.experiment.stored import trained_run
from snrkit.experiment.trajectories import Trajectories, trajectories
from snrkit.metrics.statistics import frechet, too_few
from snrkit.reports.records import FitMade, FlowFound, Tuned, TunedNow, TunedValues
from snrkit.sampling.corrections import Dcw
from snrkit.sampling.sample import start
from snrkit.sampling.sampler import Sampler, Seeds, first_variance, open_with, parse_seeds, takes_fit
from snrkit.sampling.step import Range
from snrkit.shift.control import ModeDenoiser, mode_powers, of_bands, of_covariance, solve_near

Method = Literal["flow", "predicted", "gap", "fd", "optuna"]
METHODS: tuple[Method, ...] = ("flow", "predicted", "gap", "fd", "optuna")
LINEAR = ("dcw", "epsilon_scaling", "gain")  # corrections that the Gaussian control follows exactly
FAR = 40  # coarse steps either way
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)  # of the least-squares step, which trusts a slope far from where it was taken
PATIENCE = 2  # coarse steps without improvement that end a sweep


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found of one set of values, under a key of all that it depends on."""

    key: str
    what: str
    values: Sequence[float]
    result: Sequence[float]


def evaluations(path: Path) -> list[Evaluation]:
    """The evaluations that a file holds, without a torn last line. SnrkitError names a line that is damaged."""
    lines = enumerate(read_lines(path)[0], 1)
    return [from_json(Evaluation, record, f"line {place} of {path}") for place, record in lines]


@dataclass(frozen=True)
class Tools:
    """What the evaluations of all samplers of a run share."""

    opened: Opened
    run: Run
    quiet: bool = False

    @property
    def experiment(self) -> Experiment:
        """As resolved."""
        return self.opened.experiment

    @cached_property
    def seeds(self) -> Seeds:
        """The tuning seeds."""
        return parse_seeds(self.experiment.tune.seeds)

    @cached_property
    def samples(self) -> Trajectories:
        """What samplers make of the run's model."""
        return trajectories(self.opened, open_model_aloud(self.opened, self.run))

    @cached_property
    def instrument(self) -> Instrument:
        """What measures norm gaps and knows the data's covariance."""
        plain = self.experiment.shift.model_copy(update={"probes": ()})
        return Instrument(self.samples, plain, self.seeds)

    @cached_property
    def scorer(self) -> Scorer:
        """What the Frechet distance is taken with."""
        found = follow(opening_scorer(self.opened.setting, self.experiment.metrics), not self.quiet)
        reference = found.reference.gaussian
        if too_few(len(self.seeds), reference):
            log.warning(
                f"{len(self.seeds)} images of tune.seeds against {reference.count} are too few for {reference.dim} "
                "features, so that the FD that chooses is shifted; use more than there are features, or --by flow"
            )
        return found

    @cached_property
    def controls(self) -> dict[bool, ModeDenoiser]:
        """The Gaussian controls by whether bands are apart; large covariances take minutes to solve."""
        return {}

    @cached_property
    def flows(self) -> FlowTools:
        """What is fitted to the network's flow."""
        return FlowTools(self.experiment, self.samples)

    @cached_property
    def known(self) -> dict[str, Evaluation]:
        """All evaluations of the run by key: samplers that are alike share them."""
        files = sorted(self.run.tuned("", ".jsonl").parent.glob("*.jsonl"))
        return {record.key: record for path in files for record in evaluations(path)}


@dataclass(frozen=True, slots=True)
class Bench:
    """Evaluates a sampler's coefficients on the tuning seeds, remembering every evaluation on disk."""

    tools: Tools
    name: str
    chosen: Sequence[Knob]

    def __post_init__(self) -> None:
        path = self.run.tuned(self.name, ".jsonl")
        if path.exists():  # a torn last line is dropped, so that the next one does not join it
            write_lines(path, map(to_json, evaluations(path)))

    @property
    def experiment(self) -> Experiment:
        """As resolved."""
        return self.tools.experiment

    @property
    def setting(self) -> Setting:
        """Of the model that is sampled."""
        return self.tools.opened.setting

    @property
    def run(self) -> Run:
        """Where evaluations are kept."""
        return self.tools.run

    @property
    def model(self) -> Model:
        """What is sampled."""
        return self.tools.samples.model

    @property
    def sampler(self) -> Sampler:
        """As the experiment defines it."""
        return self.experiment.samplers[self.name]

    def fd(self, values: Values) -> float:
        """The Frechet distance of the tuning seeds' images to the training split."""

        def measure(sampler: Sampler) -> list[float]:
            tools = self.tools
            scorer, cost = tools.scorer, self.setting.cost(sampler) * len(tools.seeds)
            with bar("images of the tuning seeds", cost, not tools.quiet, EVALUATIONS):
                images = memory_dataset("tuning", tools.samples.images(sampler, tools.seeds))
            found = follow(scorer.extracting(images, range(images.count)), not tools.quiet)
            return [float(frechet(found.gaussian, scorer.reference.gaussian))]

        (found,) = self._remember("fd", values, measure)
        return found if math.isfinite(found) else math.inf

    def gap(self, values: Values) -> list[float]:
        """The norm gap at every level but pure noise, nats; 0 where the states are like held-out images."""

        def measure(sampler: Sampler) -> list[float]:
            shift = follow(self.tools.instrument.measuring(sampler), not self.tools.quiet).shift
            return [gap for gap, level in zip(shift.norm_gap.value, shift.logsnr, strict=True) if math.isfinite(level)]

        return list(self._remember("norm gap", values, measure))

    def _remember(self, what: str, values: Values, measure: Callable[[Sampler], list[float]]) -> Sequence[float]:
        sampler = with_values(self.sampler, self.chosen, values)
        e = self.experiment
        more = e.metrics if what == "fd" else e.shift
        facts = [
            what,
            manifest(self.tools.samples.sources.names, sampler),
            e.tune.seeds,
            more.model_dump(mode="json"),
        ]
        key = fingerprint(json.dumps(facts, sort_keys=True))
        if key not in self.tools.known:
            record = Evaluation(key, what, list(values), measure(sampler))
            path = self.run.tuned(self.name, ".jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk_errors(f"writing {path}", "free space and run the same command again"):
                append_line(path, to_json(record), sync=True)
            self.tools.known[key] = record
        return self.tools.known[key].result


def run_tuning(
    experiment: Experiment,
    runs: Path,
    world: World,
    names: Sequence[str],
    method: Method,
    parameters: Sequence[str],
    quiet: bool = False,
) -> dict[str, TunedNow | FitMade]:
    """Choose the coefficients of samplers by one method; writes records and a YAML, returns the records by sampler.

    Without names, of all samplers that have coefficients other than neutral, and by flow of those that take a fit.
    """
    world.check_alone("tune")
    wanted = _wanted(experiment, names, method, parameters)
    check_disjoint(experiment)
    if method == "flow":
        tuning_seeds(experiment.tune.seeds, experiment.tune.noises)
    opened = open_aloud(experiment, world, quiet)
    if method != "flow":
        check_held_out(opened.data)
    check_samplers(opened.setting, {name: experiment.samplers[name] for name in wanted})
    if method == "flow":
        states = (tuning_states(experiment.samplers[name], len(chosen)) for name, chosen in wanted.items())
        check_flows_fit(opened.setting, experiment.tune.noises, max(states))
    run = trained_run(runs, opened.experiment, opened.data.dataset.fingerprint)
    records: dict[str, TunedNow | FitMade] = {}
    idle = [] if names or quiet else _idle(experiment, wanted)
    if idle:
        log.info(f"not tuned, as all of its coefficients are neutral: {', '.join(idle)} (--sampler, --parameter)")
    with locked(run), ending("every evaluation so far"):
        tools = Tools(opened, run, quiet)
        with bar(f"tuning by {method}", len(wanted), not quiet, "samplers") as progress:
            for name, chosen in sorted(wanted.items(), key=lambda one: flow_key(experiment.samplers[one[0]])):
                progress.say(name)
                bench = Bench(tools, name, chosen)
                known = _found_before(bench) if method == "flow" else None
                if known is not None:
                    progress.say(f"{name} was found before")
                    records[name] = _write(bench, method, *known)
                else:
                    records[name] = _write(bench, method, *find(bench, method)) if chosen else _write_fit(bench)
                progress.advance(1)
    return {name: records[name] for name in wanted}


def _wanted(
    experiment: Experiment, names: Sequence[str], method: Method, parameters: Sequence[str]
) -> dict[str, list[Knob]]:
    """The coefficients of each sampler that is to be tuned; none for one that takes a fit by flow."""
    fits = {n for n, sampler in experiment.samplers.items() if takes_fit(sampler)} if method == "flow" else set()
    tunable = [name for name, sampler in experiment.samplers.items() if name in fits or moved(sampler)]
    found: dict[str, list[Knob]] = {}
    for name in choose(experiment, names or tunable):
        sampler = experiment.samplers[name]
        if takes_fit(sampler) and name not in fits:
            raise ConfigError(f"samplers.{name}: its coefficients are fitted by flow alone; give --by flow.")
        if name in fits and parameters:
            raise ConfigError(f"--parameter: samplers.{name} takes a fit of every step; leave it out.")
        found[name] = [] if name in fits else knobs(sampler, parameters)
        if method == "flow":
            check_knobs(name, sampler, found[name])
        _blank(sampler, found[name])
    return found


def _idle(experiment: Experiment, wanted: Collection[str]) -> list[str]:
    """Samplers that have coefficients, all of them neutral, and are not asked for."""
    return [n for n, sampler in experiment.samplers.items() if n not in wanted and coefficients(sampler)]


def find(bench: Bench, method: Method) -> tuple[Values, FlowFound | None]:
    """(The coefficients that a method chooses, what was found by flow)."""
    shown, trials = not bench.tools.quiet, bench.experiment.tune.trials
    if method == "flow":
        with bar(f"fitting {bench.name}", None, shown, EVALUATIONS):
            return coefficients_by_flow(bench.tools.flows, bench.name, bench.sampler, bench.chosen)
    with bar(bench.name, trials if method == "optuna" else None, shown, "values tried") as progress:
        if method == "predicted":
            return predict(bench, progress), None
        if method == "gap":
            check_seen(bench)
            return by_gap(bench, progress), None
        if method == "fd":
            return by_fd(bench, progress), None
        return by_optuna(bench, trials, progress), None


def predict(bench: Bench, progress: Bar) -> Values:
    """The coefficients at which a perfect network on Gaussian data of the same covariance has the right variance.

    A coefficient of the low or the high bands is solved for these, any other for all pixels. One after the other, so
    that what a correction does to bands it is not named for is counted once.
    """
    corrections = bench.sampler.corrections
    if not {c.kind for c in corrections} <= set(LINEAR):
        raise SnrkitError(f"--by predicted follows only {', '.join(LINEAR)}; tune this sampler by gap or fd.")
    if any(isinstance(c, Dcw) and c.wavelet not in ("haar", "db1") for c in corrections):
        raise SnrkitError("--by predicted follows the Haar bands only; tune another wavelet by gap or fd.")
    progress.say("the Gaussian control")
    values, apart = list(neutral(bench.chosen)), any(isinstance(c, Dcw) and (c.low or c.high) for c in corrections)
    if apart not in bench.tools.controls:
        bench.tools.controls[apart] = _control(bench, apart)
    control = bench.tools.controls[apart]
    variance = first_variance(bench.sampler, bench.setting.data.variance)

    def ratio(place: int, value: float) -> float:
        tried = tuple(value if i == place else v for i, v in enumerate(values))
        ready = open_with(with_values(bench.sampler, bench.chosen, tried), control.process, control)
        powers = mode_powers(ready, control, lambda n: start(control.process, n, ready.levels[0], variance))
        every = torch.ones_like(control.low)
        share = {"low": control.low, "high": ~control.low}.get(bench.chosen[place].name, every)
        progress.advance(1, f"{bench.chosen[place].path} {value:.4g}")
        return float(powers[share].sum() / control.variances[share].sum())

    for place, knob in enumerate(bench.chosen):
        span = knob.range.wider(WIDER)
        low, high = span.low, span.high
        solved = solve_near(partial(ratio, place), span.neutral, low, high, span.coarse)
        if solved is None:
            raise SnrkitError(
                f"--by predicted: no {knob.path} between {low:g} and {high:g} brings the Gaussian control's variance "
                "to the data's; tune by gap or fd."
            )
        values[place] = solved
    return tuple(values)


def _control(bench: Bench, apart: bool) -> ModeDenoiser:
    """Gaussian data as the training split: by its covariance, or for large or odd images by its bands.

    Modes are taken within the low and the high bands only where a coefficient of bands is at work, `apart`. The
    covariance is within classes, where the network knows them; the bands are those of all images together.
    """
    process, shape = bench.setting.parts.process, bench.setting.data.dataset.shape
    covariance = bench.tools.instrument.covariance
    if covariance is not None and (not apart or shape[1] % 2 == shape[2] % 2 == 0):
        return of_covariance(process, covariance, shape, apart)
    bands = next((known for view, known in bench.tools.instrument.reference.views if "ll" in view.names), None)
    if bands is None:
        raise SnrkitError("images of one pixel have no bands to predict from; tune by gap or fd.")
    return of_bands(process, bands)


def check_seen(bench: Bench) -> None:
    """Refuse to tune by a gap that a network blind to the scale of its states does not show: SnrkitError."""
    response = bench.tools.instrument.response(bench.sampler)
    if response.blind:
        raise SnrkitError(
            f"--by gap: the network hardly sees how large the states of {bench.name} are ({response.said()}), so a "
            "norm gap of 0 would not say that they are right; tune by fd or predicted."
        )


def by_gap(bench: Bench, progress: Bar) -> Values:
    """neutral - pinv(S) g, clipped to the ranges; halved while it does not make the gap smaller."""
    start_values = neutral(bench.chosen)
    base = torch.tensor(bench.gap(start_values), dtype=torch.float64)
    columns = []
    for place, knob in enumerate(bench.chosen):
        moved = tuple(v + knob.range.coarse * (i == place) for i, v in enumerate(start_values))
        columns.append((torch.tensor(bench.gap(moved), dtype=torch.float64) - base) / knob.range.coarse)
        progress.advance(1)
        log.info(f"{knob.path}: the norm gap moves by {float(columns[-1].mean()):+.3g} nats per unit")
    step = -torch.linalg.lstsq(torch.stack(columns, 1), base[:, None]).solution[:, 0]
    for share in SHARES:
        found = zip(start_values, (share * step).tolist(), bench.chosen, strict=True)
        values = tuple(k.range.allowed(v + s) for v, s, k in found)
        if not works(bench, values):
            continue
        before, after = root_mean_square(base.tolist()), root_mean_square(bench.gap(values))
        progress.advance(1, f"root mean square of the gap {after:.4f}")
        log.info(f"root mean square of the gap: {before:.4f} nats, {after:.4f} after {share:g} of the step")
        if after < before:
            return values
    log.info("no part of the step makes the gap smaller; the coefficients stay neutral")
    return start_values


def root_mean_square(gap: Sequence[float]) -> float:
    """The root mean square of a gap over levels, nats."""
    return math.sqrt(sum(g**2 for g in gap) / len(gap))


def by_fd(bench: Bench, progress: Bar) -> Values:
    """One coefficient after the other: coarse from neutral until the score turns, then fine round the best."""
    values = list(neutral(bench.chosen))
    for place, knob in enumerate(bench.chosen):

        def score(value: float, p: int = place, k: Knob = knob) -> float:
            tried = tuple(value if i == p else v for i, v in enumerate(values))
            if not works(bench, tried):
                return math.inf
            found = bench.fd(tried)
            progress.advance(1, f"{k.path} {value:g}: {found:.4f}")
            log.info(f"{k.path} {value:g}: {found:.4f}")
            return found

        values[place] = sweep(score, knob.range)
    return tuple(values)


def works(bench: Bench, values: Values) -> bool:
    """Whether a sampler with these coefficients can run at all; a window, say, may be too wide for the grid."""
    try:
        tried = with_values(bench.sampler, bench.chosen, values)
        bench.setting.cost(tried)
    except SnrkitError:
        return False
    return True


def sweep(score: Callable[[float], float], span: Range) -> float:
    """The best value of a coarse sweep both ways from neutral, each until the score turns, and a fine one round it."""
    seen: dict[float, float] = {}

    def at(value: float) -> float:
        value = round(value, 10)
        if value not in seen:
            seen[value] = score(value)
        return seen[value]

    at(span.neutral)
    for way in (1, -1):
        best, waited = seen[round(span.neutral, 10)], 0
        for step in range(1, FAR + 1):
            value = span.neutral + way * step * span.coarse
            if not span.low <= value <= span.high or waited >= PATIENCE:
                break
            found = at(value)
            best, waited = (found, 0) if found < best else (best, waited + 1)
    centre = min(seen, key=lambda v: seen[v])
    reach = round(span.coarse / span.fine)
    for step in range(-reach + 1, reach):
        if span.low <= centre + step * span.fine <= span.high:
            at(centre + step * span.fine)
    return min(seen, key=lambda v: seen[v])


def by_optuna(bench: Bench, trials: int, progress: Bar) -> Values:
    """The best of `trials` trials of optuna's TPE, the first at the neutral values; evaluations are remembered."""
    try:
        import optuna
    except ImportError:
        raise SnrkitError("--by optuna needs the extra: pip install 'snrkit[optuna]'; or tune by fd.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=bench.experiment.seed))
    study.enqueue_trial({knob.path: knob.range.neutral for knob in bench.chosen})

    def objective(trial: Any) -> float:
        tried = tuple(k.range.allowed(trial.suggest_float(k.path, k.range.low, k.range.high)) for k in bench.chosen)
        found = bench.fd(tried) if works(bench, tried) else math.inf
        progress.advance(1, f"{found:.4f}")
        return found

    study.optimize(objective, n_trials=trials)
    return tuple(knob.range.allowed(float(study.best_params[knob.path])) for knob in bench.chosen)


def _found_before(bench: Bench) -> tuple[Values, FlowFound] | None:
    """What was found by flow of the same: coefficients, weights and first states; None where there is none."""
    path = bench.run.tuned(bench.name)
    if not bench.chosen or not path.exists():
        return None
    found = read_record(Tuned, path).found.get("flow")
    if found is None or found.flow is None:
        return None
    wanted = depends_on(bench.tools.flows, bench.sampler, bench.chosen)
    return (found.values, found.flow) if found.flow.of == wanted else None


def _write_fit(bench: Bench) -> FitMade:
    """Fit the steps of a sampler and keep their coefficients in the run, unless it keeps them already."""
    flows = bench.tools.flows
    stored = kept_fit(flows, bench.run, bench.sampler)
    if stored is None:
        with bar(f"fitting {bench.name}", None, not bench.tools.quiet, EVALUATIONS):
            stored = fit_sampler(flows, bench.name, bench.sampler)
    return FitMade(str(write_fit(bench.run, stored)), bench.setting.cost(bench.sampler), stored.guard, stored.noises)


def _write(bench: Bench, method: str, values: Values, flow: FlowFound | None) -> TunedNow:
    path, written = bench.run.tuned(bench.name), bench.run.tuned("tuned", ".yaml")
    record = Tuned(
        sampler=bench.name,
        parameters=tuple(knob.path for knob in bench.chosen),
        seeds=bench.experiment.tune.seeds,
        chosen=method,
        checkpoint_images=bench.model.images,
        weights=bench.model.weights,
        of=_blank(bench.sampler, bench.chosen),
        corrections=with_values(bench.sampler, bench.chosen, values).model_dump(mode="json")["corrections"],
        found={method: _found(bench, method, values, flow)},
    )
    before = read_record(Tuned, path) if path.exists() else record
    if (before.parameters, before.of) == (record.parameters, record.of):
        record = replace(record, found={**before.found, **record.found})
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_json(path, to_json(record))
        write_text(written, tuned_yaml(bench.run, bench.experiment))
    return TunedNow(record, values, str(written))


def _found(bench: Bench, method: str, values: Values, flow: FlowFound | None) -> TunedValues:
    gaps = [root_mean_square(bench.gap(v)) for v in (neutral(bench.chosen), values)] if method == "gap" else None
    return TunedValues(
        values=values,
        fd_on_tuning_seeds=bench.fd(values) if method in ("fd", "optuna") else None,
        gap_before_and_after=None if gaps is None else tuple(gaps),
        seeds=bench.experiment.tune.seeds,
        checkpoint_images=bench.model.images,
        at_the_end_of_its_range=tuple(
            k.path for k, v in zip(bench.chosen, values, strict=True) if v in (k.range.low, k.range.high)
        ),
        flow=flow,
    )


def _blank(sampler: Sampler, chosen: Sequence[Knob]) -> dict[str, Any]:
    """The sampler with the coefficients that are tuned at their neutral values: what they were tuned for."""
    return with_values(sampler, chosen, neutral(chosen)).model_dump(mode="json")


def tuned_yaml(run: Run, experiment: Experiment) -> str:
    """The experiment with the coefficients that were last chosen for each of its samplers."""
    samplers, notes = dict(experiment.samplers), []
    for name, sampler in experiment.samplers.items():
        path = run.tuned(name)
        record = read_record(Tuned, path) if path.exists() else None
        if record is None:
            continue
        chosen = [name.removeprefix("corrections.") for name in record.parameters]
        if record.of != _blank(sampler, knobs(sampler, chosen)):
            continue  # another sampler has this name now
        samplers[name] = Sampler.model_validate({**sampler.model_dump(mode="json"), "corrections": record.corrections})
        notes.append(f"# {name}: {', '.join(record.parameters)} by {record.chosen} on seeds {record.seeds}")
    return "\n".join([*notes, dump_yaml(experiment.model_copy(update={"samplers": samplers}))])
