"""`snrkit tune`: coefficients of a sampler's corrections, chosen on seeds that are never scored.

    predicted   the Gaussian control on the data's own band variances: no fitting, no network (shift/control.py)
    gap         the closed-form least-squares step on the measured norm gap, lambda = neutral - pinv(S) g, with S the
                finite differences of the gap g (levels) in each coefficient
    fd          the paper's two-stage search: one coefficient after the other, a coarse sweep from its neutral value
                until the score turns, then a fine one round the best
    optuna      tree-structured Parzen estimator on the same score (needs the extra `optuna`)

Every evaluation is kept in runs/<name>/tune/<sampler>.jsonl, so that the same command goes on where it stopped. The
result is a YAML that `sample` takes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from snrkit.config import Experiment, apply_settings, dump_yaml, parse_experiment
from snrkit.data.dataset import memory_dataset, to_bytes
from snrkit.distributed import World
from snrkit.errors import ConfigError, SnrkitError
from snrkit.files import disk_errors, read_json, write_json, write_text
from snrkit.jobs.measuring import Instrument, check_held_out
from snrkit.jobs.opening import Opened, open_experiment, open_model
from snrkit.jobs.progress import console
from snrkit.jobs.sampling import choose, generate
from snrkit.jobs.scoring import open_reference
from snrkit.metrics.scores import extract
from snrkit.metrics.statistics import frechet
from snrkit.run import Run, locked, trained_run
from snrkit.sample import start
from snrkit.sampler import Sampler, make_ready, parse_seeds
from snrkit.shift.control import BandDenoiser, band_ratios, solve_for
from snrkit.step import Range

Method = Literal["predicted", "gap", "fd", "optuna"]
METHODS: tuple[Method, ...] = ("predicted", "gap", "fd", "optuna")
LINEAR = ("dcw", "epsilon_scaling")  # corrections that the Gaussian control follows exactly
FAR = 40  # coarse steps either way
PATIENCE = 2  # coarse steps without improvement that end a sweep


@dataclass(frozen=True, slots=True)
class Knob:
    """One coefficient of one correction."""

    index: int
    name: str
    range: Range

    @property
    def path(self) -> str:
        """As --set writes it, below the sampler."""
        return f"corrections.{self.index}.{self.name}"


Values = tuple[float, ...]


def knobs(sampler: Sampler, chosen: Sequence[str]) -> list[Knob]:
    """The coefficients named as index.name, by default all that the sampler's file gives a value other than neutral."""
    known = {
        f"{index}.{name}": Knob(index, name, span)
        for index, correction in enumerate(sampler.corrections)
        for name, span in getattr(correction, "tunable", {}).items()
    }
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--parameter {name}: this sampler has {', '.join(known) or 'no coefficient to tune'}.")
    moved = [n for n, k in known.items() if getattr(sampler.corrections[k.index], k.name) != k.range.neutral]
    names = list(chosen) or moved
    if not names:
        raise ConfigError(f"name the coefficients with --parameter; this sampler has {', '.join(known) or 'none'}.")
    return [known[name] for name in names]


def with_values(sampler: Sampler, chosen: Sequence[Knob], values: Values) -> Sampler:
    """The sampler with these coefficients, validated."""
    content: Any = sampler.model_dump(mode="json")
    for knob, value in zip(chosen, values, strict=True):
        content = apply_settings(content, [f"{knob.path}={value!r}"])
    return Sampler.model_validate(content)


@dataclass
class Bench:
    """Evaluates a sampler's coefficients on the tuning seeds, remembering every evaluation on disk."""

    opened: Opened
    run: Run
    name: str
    chosen: Sequence[Knob]
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.run.tuned(self.name, ".jsonl")
        for line in path.read_text().splitlines() if path.exists() else []:
            record = json.loads(line)
            self._known[record["key"]] = record
        self.model = open_model(self.opened, self.run)
        self.seeds = parse_seeds(self.opened.experiment.tune.seeds)
        plain = self.opened.experiment.shift.model_copy(update={"probes": ()})
        experiment = self.opened.experiment.model_copy(update={"shift": plain})
        self.instrument = Instrument(replace(self.opened, experiment=experiment), self.model, self.seeds)
        self._scorer: Any = None

    @property
    def sampler(self) -> Sampler:
        """As the experiment defines it."""
        return self.opened.experiment.samplers[self.name]

    def fd(self, values: Values) -> float:
        """The Frechet distance of the tuning seeds' images to the training split."""

        def measure(sampler: Sampler) -> float:
            if self._scorer is None:
                self._scorer = open_reference(self.opened)
            extractor, reference = self._scorer
            size = self.opened.experiment.sample.batch
            batches = [self.seeds[i : i + size] for i in range(0, len(self.seeds), size)]
            made = [to_bytes(b.x0.cpu()) for b in generate(self.opened, self.model, sampler, batches)]
            images = memory_dataset("tuning", torch.cat(made))
            found = extract(extractor, images, range(images.count), self.opened.experiment.metrics.batch,
                            self.opened.world)  # fmt: skip
            return frechet(found.gaussian, reference.gaussian)

        return float(self._remember("fd", values, measure))

    def gap(self, values: Values) -> list[float]:
        """The norm gap at every level but pure noise, nats."""

        def measure(sampler: Sampler) -> list[float]:
            shift = self.instrument.measure(sampler).shift
            return [g for g, level in zip(shift.norm_gap.value, shift.logsnr, strict=True) if level > -1e9]

        return list(self._remember("gap", values, measure))

    def _remember(self, what: str, values: Values, measure: Callable[[Sampler], Any]) -> Any:
        sampler = with_values(self.sampler, self.chosen, values)
        e = self.opened.experiment
        facts = [what, sampler.model_dump(mode="json"), self.model.images, self.model.weights, e.tune.seeds,
                 e.metrics.model_dump(mode="json") if what == "fd" else None]  # fmt: skip
        key = json.dumps(facts, sort_keys=True)
        if key not in self._known:
            result = measure(sampler)
            record = {"key": key, "what": what, "values": list(values), "result": result}
            path = self.run.tuned(self.name, ".jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk_errors(f"writing {path}", "free space and run the same command again"), path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._known[key] = record
        return self._known[key]["result"]


def run_tuning(
    experiment: Experiment, runs: Path, world: World, name: str, method: Method, parameters: Sequence[str],
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Choose the coefficients of one sampler by one method; writes the record and a YAML, returns the record."""
    if world.size > 1:
        raise SnrkitError("tune runs in one process; start it without torchrun.")
    choose(experiment, [name])
    chosen = knobs(experiment.samplers[name], parameters)
    _check_disjoint(experiment)
    neutral = tuple(knob.range.neutral for knob in chosen)
    with_values(experiment.samplers[name], chosen, neutral)
    opened = open_experiment(experiment, world)
    check_held_out(opened)
    run = trained_run(runs, opened.experiment, opened.dataset.fingerprint)
    say = (lambda text: None) if quiet else console.print
    with locked(run):
        bench = Bench(opened, run, name, chosen)
        found = {
            "predicted": lambda: predict(bench),
            "gap": lambda: by_gap(bench, say),
            "fd": lambda: by_fd(bench, say),
            "optuna": lambda: by_optuna(bench, experiment.tune.trials),
        }[method]()
        return _write(bench, experiment, method, found)


def _check_disjoint(experiment: Experiment) -> None:
    shared = set(parse_seeds(experiment.tune.seeds)) & set(parse_seeds(experiment.sample.seeds))
    if shared:
        raise ConfigError(
            f"tune.seeds: {len(shared)} of these seeds are scored by sample.seeds too; tune on others, such as "
            "100000-100999."
        )


def predict(bench: Bench) -> Values:
    """The coefficients at which a perfect network on Gaussian data of the same band variances has the right variance.

    A coefficient of one band is solved for that band; any other for all pixels. One after the other, so that what a
    correction does to bands it is not named for is counted once.
    """
    kinds = {c.kind for c in bench.sampler.corrections}
    if not kinds <= set(LINEAR):
        raise SnrkitError(f"--by predicted follows only {' and '.join(LINEAR)}; tune this sampler by gap or fd.")
    bands = next((known for view, known in bench.instrument.reference.views if "ll" in view.names), None)
    if bands is None:
        raise SnrkitError("images of one pixel have no bands to predict from; tune by gap or fd.")
    process, values = bench.opened.experiment.process, [knob.range.neutral for knob in bench.chosen]

    def ratio(place: int, value: float) -> float:
        tried = tuple(value if i == place else v for i, v in enumerate(values))
        sampler = with_values(bench.sampler, bench.chosen, tried)
        denoise = BandDenoiser(process, bands)
        ready = make_ready(sampler, process, denoise)
        variance = bench.instrument.reference.spectrum.variance.mean() if sampler.start == "exact" else None
        found = band_ratios(
            ready, denoise, lambda n: start(process, n, ready.levels[0], None if variance is None else float(variance))
        )
        share = {"low": [0], "high": [1, 2, 3]}.get(bench.chosen[place].name, [0, 1, 2, 3])
        return float((found[share] * bands[share]).sum() / bands[share].sum())

    for place, knob in enumerate(bench.chosen):
        solved = solve_for(lambda v, p=place: ratio(p, v), knob.range.low, knob.range.high)  # type: ignore[misc]
        if solved is None:
            raise SnrkitError(
                f"--by predicted: no {knob.path} between {knob.range.low:g} and {knob.range.high:g} brings the "
                f"Gaussian "
                "control's variance to the data's; tune by gap or fd."
            )
        values[place] = solved
    return tuple(values)


def by_gap(bench: Bench, say: Callable[[str], None]) -> Values:
    """neutral - pinv(S) g, clipped to the ranges."""
    neutral = tuple(knob.range.neutral for knob in bench.chosen)
    base = torch.tensor(bench.gap(neutral), dtype=torch.float64)
    columns = []
    for place, knob in enumerate(bench.chosen):
        moved = tuple(v + knob.range.coarse * (i == place) for i, v in enumerate(neutral))
        columns.append((torch.tensor(bench.gap(moved), dtype=torch.float64) - base) / knob.range.coarse)
        say(f"{knob.path}: the norm gap moves by {float(columns[-1].mean()):+.3g} nats per unit")
    step = -torch.linalg.lstsq(torch.stack(columns, 1), base[:, None]).solution[:, 0]
    found = zip(neutral, step.tolist(), bench.chosen, strict=True)
    return tuple(min(max(v + s, k.range.low), k.range.high) for v, s, k in found)


def by_fd(bench: Bench, say: Callable[[str], None]) -> Values:
    """One coefficient after the other: coarse from neutral until the score turns, then fine round the best."""
    values = [knob.range.neutral for knob in bench.chosen]
    for place, knob in enumerate(bench.chosen):

        def score(value: float, p: int = place, k: Knob = knob) -> float:
            found = bench.fd(tuple(value if i == p else v for i, v in enumerate(values)))
            say(f"{k.path} {value:g}: {found:.4f}")
            return found

        values[place] = sweep(score, knob.range)
    return tuple(values)


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


def by_optuna(bench: Bench, trials: int) -> Values:
    """The best of `trials` trials of optuna's TPE, the first at the neutral values; evaluations are remembered."""
    try:
        import optuna
    except ImportError:
        raise SnrkitError("--by optuna needs the extra: pip install 'snrkit[optuna]'; or tune by fd.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=bench.opened.experiment.seed))
    study.enqueue_trial({knob.path: knob.range.neutral for knob in bench.chosen})

    def objective(trial: Any) -> float:
        return bench.fd(tuple(trial.suggest_float(k.path, k.range.low, k.range.high) for k in bench.chosen))

    study.optimize(objective, n_trials=trials)
    return tuple(float(study.best_params[knob.path]) for knob in bench.chosen)


def _write(bench: Bench, experiment: Experiment, method: str, values: Values) -> dict[str, Any]:
    run, name = bench.run, bench.name
    path = run.tuned(name)
    tuned = with_values(bench.sampler, bench.chosen, values)
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    if record.get("parameters") != [knob.path for knob in bench.chosen]:
        record = {}
    record |= {
        "sampler": name, "parameters": [knob.path for knob in bench.chosen], "seeds": experiment.tune.seeds,
        "checkpoint_images": bench.model.images, "weights": bench.model.weights,
    }  # fmt: skip
    fd = bench.fd(values) if method in ("fd", "optuna") else None
    record.setdefault("found", {})[method] = {"values": list(values), "fd_on_tuning_seeds": fd}
    changed = experiment.model_copy(update={"samplers": {**experiment.samplers, name: tuned}})
    text = f"# {name}: {', '.join(record['parameters'])} by {method} on seeds {experiment.tune.seeds}.\n"
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_json(path, record)
        written = run.tuned(name, f"-{method}.yaml")
        write_text(written, text + dump_yaml(changed))
    parse_experiment(changed.model_dump(mode="json"), str(written))
    return {**record, "method": method, "values": list(values), "yaml": str(written)}


def best_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The coefficients found by each method, by parameter path."""
    return {
        method: dict(zip(record["parameters"], found["values"], strict=True))
        for method, found in record["found"].items()
    }
