"""`snrkit sweep`: one table over many trainings, each a list of --set values on one experiment, several seeds each.

    base: digits.yaml            the experiment that all arms change
    settings: [train.images=100000]
    seeds: [0, 1, 2]             of training
    arms:                        the first is what the others are compared with, seed by seed
      edm: []
      eps: [target.kind=eps, "precondition={kind: none}", weighting.kind=simple]

Every training has a run directory of its own, runs/<sweep>-<arm>-<seed>; arms that differ only in sampling or scoring
share one. Nothing is made twice: the same command goes on where it stopped, and several at once share the work. An arm
whose training breaks off is a row that says so. Averages that are made afterwards (sample.average: posthoc-0.1,
snapshots-0.9) are made.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from snrkit.base.distributed import World
from snrkit.base.errors import BusyError, ConfigError, DivergedError, RunError, SnrkitError, shown
from snrkit.base.faults import told
from snrkit.base.files import disk_errors, remove_abandoned, write_text
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import write_json
from snrkit.base.value import FileText, Name, Place, Seed, Value, different
from snrkit.checkpoints.ours import newest_checkpoint
from snrkit.commands.average import run_averaging
from snrkit.commands.opening import open_aloud, open_model_aloud, open_scorer_aloud
from snrkit.commands.progress import EVALUATIONS, READINGS, bar, follow, log
from snrkit.commands.sample import check_images, check_samplers, choose, manifest
from snrkit.commands.train import prune_checkpoints, run_training
from snrkit.data.dataset import Dataset, chunks, fingerprint, memory_dataset, to_unit
from snrkit.experiment.experiment import MOST_FAULTS, Experiment, load_experiment
from snrkit.experiment.lock import locked
from snrkit.experiment.log import HeldOutLine, log_of
from snrkit.experiment.models import without_later
from snrkit.experiment.opening import Opened, open_network
from snrkit.experiment.run import Run
from snrkit.experiment.stored import trained_run
from snrkit.experiment.trajectories import trajectories
from snrkit.experiment.yaml_files import read_mapping
from snrkit.metrics.appearance import Appearance, Looks, appearance, looks
from snrkit.metrics.extractors import check_features
from snrkit.metrics.paired import Difference, against
from snrkit.metrics.scores import PRIMARY, Entry, differing, keys, shifted, summarise, titles_on
from snrkit.reports.blocks import document
from snrkit.reports.page import page
from snrkit.reports.records import OverSeeds, SweepArm, SweepTable, Swept
from snrkit.reports.sweep_table import sweep_page
from snrkit.sampling.sampler import parse_seeds
from snrkit.training.clipping import Groups
from snrkit.training.ema import Power, afterwards, made_afterwards

FORMAT = 3  # of stored rows
AFTERWARDS = {"name", "samplers", "sample", "shift", "metrics", "tune", "compare", "log"}  # of no effect on training
DATA_IMAGES = 20_000  # at most, that the data's own appearance is taken from
READ = 1024
MOST_TRIALS = 1000
WORDED = ("value_error", "too_long", "string_too_long", "less_than_equal", "greater_than_equal")  # clear as they are
Changes = Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=1000)]


class Sweep(Value):
    """What to train: `arms` by name, each a list of path=value settings."""

    base: Place
    settings: Changes = ()
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, max_length=1000)
    arms: dict[Name, Changes] = Field(min_length=1, max_length=1000)

    @field_validator("arms")
    @classmethod
    def _plain_names(cls, arms: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        different(arms)
        return arms

    @model_validator(mode="after")
    def _few_enough(self) -> "Sweep":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them is given twice")
        if (count := len(self.seeds) * len(self.arms)) > MOST_TRIALS:
            raise ValueError(f"arms: with as many seeds they are {count:,} trainings, more than {MOST_TRIALS:,}")
        return self


@dataclass(frozen=True, slots=True)
class Trial:
    """One arm with one seed."""

    arm: str
    seed: int
    experiment: Experiment  # named after the first arm that trains alike


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What the log says of a training."""

    skipped: int
    grad_norm: float | None  # means over the steps that were not skipped
    clipped_share: float | None
    held_out: HeldOutLine | None  # the last of its kind


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """The scores and looks of one sampler's images of one trial."""

    summary: Mapping[str, Entry]
    names: Mapping[str, str]  # titles that depend on the features
    looks: Looks
    made: Mapping[str, Any]
    nfe: int
    decided_by: str = PRIMARY.key  # the key of the score that metrics.decide names
    biased: tuple[str, ...] = ()  # keys of scores that too few images shift


@dataclass(frozen=True, slots=True)
class TrialRow:
    """What is kept of a trial; of a training that broke off there are no samplers."""

    facts: Mapping[str, Any]
    training: TrainingFacts
    failed: str | None = None  # why it broke off
    samplers: Mapping[str, SamplerRow] = field(default_factory=dict)


def load_sweep(path: Path) -> Sweep:
    """The sweep of a YAML file. ConfigError names every fault."""
    content = read_mapping(path)
    if "arms" not in content and content.keys() & Experiment.model_fields.keys():
        raise ConfigError(
            f"{path} is an experiment and no sweep, as it has no arms; a sweep names it: base: {path.name}, with seeds "
            "and arms."
        )
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        faults = [shown(f"{path}: {_at(f['loc'])}{_wording(dict(f))}", 400) for f in told(error.errors())[:MOST_FAULTS]]
        raise ConfigError("\n".join(faults)) from None
    folder = path.parent.absolute()
    arms = {name: tuple(FileText(change, folder) for change in changes) for name, changes in sweep.arms.items()}
    return sweep.model_copy(update={"settings": tuple(FileText(s, folder) for s in sweep.settings), "arms": arms})


def _at(loc: Sequence[str | int]) -> str:
    return "".join(f"{shown(str(part), 40)}." for part in loc if part != "[key]")[:-1] + ": " if loc else ""


def _wording(fault: Mapping[str, Any]) -> str:
    """A fault of a sweep's file in its users' words."""
    place = str(fault["loc"][0]) if fault["loc"] else ""
    shapes = {
        "seeds": "a list such as [0, 1, 2]",
        "settings": "a list of path=value",
        "arms": "a mapping from names to lists of path=value, such as {edm: [], p2: [weighting.kind=p2]}",
    }
    if fault["type"] == "extra_forbidden":
        return f"unknown key. Known keys: {', '.join(Sweep.model_fields)}"
    if fault["type"] in WORDED or place not in shapes:
        said = str(fault["msg"]).removeprefix("Value error, ")
        return said[0].lower() + said[1:]
    return f"it needs {shapes[place]}, not {shown(repr(fault['input']), 60)}"


def check_file(path: Path) -> list[Experiment]:
    """The experiments of a file, which is a sweep where it has arms. ConfigError with all its faults."""
    if {"arms", "arm", "seeds"} & set(read_mapping(path)):  # what no experiment has
        return [trial.experiment for trial in sweep_trials(load_sweep(path), path.stem)]
    return [load_experiment(path)]


def sweep_trials(sweep: Sweep, name: str, settings: Sequence[str] = ()) -> list[Trial]:
    """All trials, seed by seed. ConfigError lists the faults of every arm."""
    trials, faults = [], []
    for seed in sweep.seeds:
        first: list[tuple[str, str]] = []  # what was trained before, and its arm
        for arm, changes in sweep.arms.items():
            try:
                e = load_experiment(sweep.base, [*sweep.settings, *changes, *settings, f"seed={seed}"])
            except ConfigError as error:
                faults += [f"arm {arm}: {line}" for line in str(error).splitlines()]
                continue
            faults += _own_words(arm, changes)
            trained = json.dumps(e.model_dump(mode="json", exclude=AFTERWARDS))  # in order: rules are tried in order
            owner = next((owner for known, owner in first if known == trained), arm)
            first.append((trained, owner))
            trials.append(Trial(arm, seed, e.model_copy(update={"name": f"{name}-{owner}-{seed}"})))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return trials


def _own_words(arm: str, changes: Sequence[str]) -> list[str]:
    """Faults of an arm that sets what the sweep itself sets."""
    own = [change for change in changes if change.split("=")[0] in ("seed", "name")]
    return [f"arm {arm}: {change}: seeds and names are the sweep's own; drop it" for change in own]


def run_sweep(
    path: Path, runs: Path, world: World, settings: Sequence[str] = (), arms: Sequence[str] = (), quiet: bool = False
) -> Swept:
    """Train and score what is missing; returns the table, which also lies in runs/<sweep>.json."""
    world.check_alone("sweep")
    sweep = load_sweep(path)
    unknown = [arm for arm in arms if arm not in sweep.arms]
    if unknown:
        raise ConfigError(f"--arm {unknown[0]}: this sweep has {', '.join(sweep.arms)}.")
    trials = sweep_trials(sweep, path.stem, settings)
    images = {}
    with bar("checking the arms", len(sweep.arms), not quiet, "arms") as progress:
        for trial in trials[: len(sweep.arms)]:  # of one seed
            images[trial.arm] = _check(trial, world, quiet)
            progress.advance(1)
    _check_rows(trials, images, runs)
    wanted = [trial for trial in trials if not arms or trial.arm in arms]
    busy = _work(wanted, runs, world, quiet)
    busy = _work(busy, runs, world, quiet)  # another process may be done with them now
    if busy:
        names = ", ".join(f"{trial.arm} (seed {trial.seed})" for trial in busy)
        log.warning(f"other processes work on {names}; run the same command again for the whole table")
    rows = [(trial, row) for trial in trials if (row := stored_row(trial, runs)) is not None]
    table = make_table(sweep, rows, [*sweep.settings, *settings])
    name = path.stem if not settings else f"{path.stem}-{fingerprint(json.dumps(list(settings)))[:8]}"
    out = runs / f"{name}.json"  # a quick look with other settings leaves the page of the file alone
    remove_abandoned(runs, name)
    with disk_errors(f"writing {out}", "free space and run the same command again"):
        write_json(out, to_json(table))
        blocks = sweep_page(path.stem, table)
        write_text(out.with_suffix(".md"), document(blocks, runs))
        write_text(out.with_suffix(".html"), page(f"sweep {path.stem}", blocks))
    return Swept(table, str(out.with_suffix(".md")))


def _check(trial: Trial, world: World, quiet: bool) -> str:
    """Refuse what could not be trained or scored, before anything is: ConfigError with the arm's name.

    Returns the fingerprint of its images.
    """
    try:
        choose(trial.experiment, ())
        opened = open_aloud(trial.experiment, world, quiet)
        check_images(opened.setting)
        check_features(opened.experiment.metrics, opened.data.labelled)
        _check_average(trial.experiment)
        if isinstance(rule := trial.experiment.train.clip, Groups):
            rule.split(list(open_network(trial.experiment.training, opened.setting).named_parameters()))
    except SnrkitError as error:
        raise ConfigError(f"arm {trial.arm}: {error}") from None
    return opened.data.dataset.fingerprint


def _check_rows(trials: Sequence[Trial], images: Mapping[str, str], runs: Path) -> None:
    """Refuse rows that earlier commands made of other images: RunError."""
    for trial in trials:
        row = stored_row(trial, runs)
        if row is not None and any(found.made.get("data") != images[trial.arm] for found in row.samplers.values()):
            path = row_path(trial, runs)
            raise RunError(f"{path} was made of other images; bring them back, or delete it and the run it lies in.")


def _check_average(e: Experiment) -> None:
    """ConfigError where training keeps nothing that the average to be sampled could be made of."""
    name, train = e.sample.average, e.train
    if name is None or not made_afterwards(name):
        return
    if train.snapshot_every is None:
        raise ConfigError(f"sample.average: {name} is made of snapshots; set train.snapshot_every.")
    if afterwards(name)[0] == "posthoc" and not any(isinstance(a, Power) for a in train.averages):
        raise ConfigError(f"sample.average: {name} is made of power averages; add {{kind: power}} to train.averages.")


def _work(trials: Sequence[Trial], runs: Path, world: World, quiet: bool) -> list[Trial]:
    """Make the rows that are missing; returns the trials that other processes are at."""
    busy = []
    with bar("sweeping", len(trials), not quiet and bool(trials), "trials") as progress:
        for trial in trials:
            progress.say(f"{trial.arm}, seed {trial.seed}")
            try:
                make_row(trial, runs, world, quiet)
            except BusyError:
                busy.append(trial)
            except SnrkitError as error:
                raise SnrkitError(f"arm {trial.arm}, seed {trial.seed}: {error}") from None
            progress.advance(1)
    return busy


def row_path(trial: Trial, runs: Path) -> Path:
    """Where the row of a trial lies; other samplers, seeds or metrics of the arm lie beside it."""
    key = fingerprint(json.dumps(_facts(trial)))[:12]
    return Run(runs / trial.experiment.name).path / "sweep" / f"{trial.arm}-{key}.json"


def stored_row(trial: Trial, runs: Path) -> TrialRow | None:
    """The row that an earlier command made of exactly this trial."""
    path = row_path(trial, runs)
    return read_record(TrialRow, path) if path.exists() else None


def _facts(trial: Trial) -> dict[str, Any]:
    content = trial.experiment.model_dump(mode="json", exclude={"shift", "tune", "compare", "log"})
    return {
        "format": FORMAT,
        "numerics": NUMERICS,
        "scores": keys(),
        **content,
        "train": without_later(content["train"]),
    }


def make_row(trial: Trial, runs: Path, world: World, quiet: bool) -> None:
    """Train, unless that is done, and score every sampler. What breaks off is a row with its reason."""
    if stored_row(trial, runs) is not None:
        return
    e, run = trial.experiment, Run(runs / trial.experiment.name)
    end = -(-e.train.images // e.train.batch) * e.train.batch
    newest = newest_checkpoint(run.checkpoints)
    if newest is None or int(newest.name) < end:
        try:
            run_training(e, runs, world, quiet)
        except DivergedError as error:  # what can be put right, and tried again, is no result
            _keep(trial, runs, TrialRow(_facts(trial), training_facts(run, end), failed=str(error)))
            return
    opened = open_aloud(e, world, quiet)
    check_samplers(opened.setting, e.samplers)
    trained_run(runs, opened.experiment, opened.data.dataset.fingerprint)
    _make_average(run, e.sample.average, end)
    with locked(run):
        prune_checkpoints(run, e.train)  # a training that was killed at its end may not have come to it
        if stored_row(trial, runs) is None:  # another process may have made it in between
            found = score_samplers(opened, run, e.sample.checkpoint or end, quiet)
            _keep(trial, runs, TrialRow(_facts(trial), training_facts(run, end), samplers=found))


def _keep(trial: Trial, runs: Path, row: TrialRow) -> None:
    path = row_path(trial, runs)
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_json(path, to_json(row))


def _make_average(run: Run, name: str | None, end: int) -> None:
    """Weights that are made after training, as of its end."""
    if name is not None and made_afterwards(name) and not (run.averages(name) / f"{end:09d}").is_dir():
        kind, value = afterwards(name)
        width, decay = (value, None) if kind == "posthoc" else (None, value)
        run_averaging(run.path, width, decay, end)


def training_facts(run: Run, until: int) -> TrainingFacts:
    """What the log says of a training until `until` images: means over the steps that were not skipped."""
    log = log_of(run)
    lines = [line for line in log.train if line.images <= until]
    held = [line for line in log.held_out if line.images <= until]
    steps = [line.step for line in lines]
    made = [here - before - line.skipped for line, here, before in zip(lines, steps, [0, *steps][:-1], strict=True)]
    counted = sum(made)

    def mean(values: Iterable[float | None]) -> float | None:
        total = sum(count * value for count, value in zip(made, values, strict=True) if count and value is not None)
        return total / counted if counted else None

    return TrainingFacts(
        skipped=sum(line.skipped for line in lines),
        grad_norm=mean(line.grad_norm for line in lines),
        clipped_share=mean(line.clipped_share for line in lines),
        held_out=held[-1] if held else None,
    )


def score_samplers(opened: Opened, run: Run, at: int, quiet: bool = False) -> dict[str, SamplerRow]:
    """Scores and looks of every sampler's images, which are not kept, with the weights as of `at` images."""
    sample = opened.experiment.sample.model_copy(update={"checkpoint": at})
    e = opened.experiment.model_copy(update={"sample": sample})
    opened = replace(opened, experiment=e)
    samples = trajectories(opened, open_model_aloud(opened, run))
    scorer = open_scorer_aloud(opened.setting, e.metrics, not quiet)
    dataset, seeds = opened.data.labelled, parse_seeds(e.sample.seeds)
    with bar("looks of the data", unit=READINGS, shown=not quiet):
        data = data_appearance(dataset, opened.data.split.train)
    found = {}
    for name, sampler in e.samplers.items():
        with bar(f"sampling {name}", len(seeds) * samples.setting.cost(sampler), not quiet, EVALUATIONS):
            images = samples.images(sampler, seeds)
        each = follow(scorer.scoring(memory_dataset(name, images)), not quiet)
        found[name] = SamplerRow(
            summary=summarise(each),
            names=titles_on(scorer.extractor.name),
            looks=looks(appearance([to_unit(images)], dataset.shape), data),
            made=manifest(samples.sources.names, sampler),
            nfe=e.model.parts.cost(sampler),
            decided_by=e.metrics.decide,
            biased=shifted(each),
        )
    return found


def data_appearance(dataset: Dataset, indices: Sequence[int]) -> Appearance:
    """Of the training split, or of as many of its images as suffice."""
    step = max(1, len(indices) // DATA_IMAGES)
    return appearance(map(dataset.x0, chunks(list(indices)[::step], READ)), dataset.shape)


@dataclass(frozen=True, slots=True)
class Scored:
    """One sampler of one trial."""

    sampler: str
    row: SamplerRow
    training: TrainingFacts


def make_table(sweep: Sweep, rows: Sequence[tuple[Trial, TrialRow]], everywhere: Sequence[str] = ()) -> SweepTable:
    """Every arm and sampler over seeds, and beside the first arm on equal seeds."""
    table: dict[str, dict[int, Scored]] = {}
    names: Mapping[str, str] = {}
    decided_by = PRIMARY.key
    for trial, row in rows:
        for sampler, found in row.samplers.items():
            label = f"{trial.arm} {sampler}" if len(row.samplers) > 1 else trial.arm
            table.setdefault(label, {})[trial.seed] = Scored(sampler, found, row.training)
            names, decided_by = found.names, found.decided_by
    first = next(iter(sweep.arms))
    return SweepTable(
        names=names,
        seeds=sweep.seeds,
        reference=first,
        failed={f"{trial.arm}, seed {trial.seed}": row.failed for trial, row in rows if row.failed is not None},
        arms={label: over_seeds(by_seed, table, first) for label, by_seed in table.items()},
        settings=sweep.arms,
        everywhere=tuple(everywhere),
        decided_by=decided_by,
    )


def over_seeds(by_seed: Mapping[int, Scored], table: Mapping[str, Mapping[int, Scored]], first: str) -> SweepArm:
    """One row of the table."""
    seeds = sorted(by_seed)
    found = [by_seed[seed] for seed in seeds]
    beside = table.get(first) or table.get(f"{first} {found[0].sampler}") or {}
    shared = [seed for seed in seeds if seed in beside]
    of_looks = [each.row.looks for each in found]
    scores = {key: means for key in keys() if (means := _means(found, key)) is not None}
    return SweepArm(
        seeds=tuple(seeds),
        nfe=found[0].row.nfe,
        weights=found[0].row.made["weights"],
        scores={key: OverSeeds(statistics.fmean(v), min(v), max(v), tuple(v)) for key, v in scores.items()},
        less_first=None if beside is by_seed or not shared else _less(by_seed, beside, shared),
        power=tuple(statistics.fmean(ring) for ring in zip(*(each.power for each in of_looks), strict=True)),
        brightness=statistics.fmean(each.brightness for each in of_looks),
        skipped=sum(each.training.skipped for each in found),
        grad_norm=tuple(each.training.grad_norm for each in found),
        clipped_share=tuple(each.training.clipped_share for each in found),
        biased=tuple(sorted({key for each in (*found, *beside.values()) for key in each.row.biased})),
    )


def _means(rows: Sequence[Scored], key: str) -> list[float] | None:
    """The means of a score, row by row; None where a row has none."""
    found = [each.row.summary[key].mean for each in rows if key in each.row.summary]
    return found if len(found) == len(rows) else None


def _less(arm: Mapping[int, Scored], first: Mapping[int, Scored], shared: Sequence[int]) -> dict[str, Difference]:
    """The differences over shared seeds of all scores that both have."""
    pairs = {key: [_means([of[seed] for seed in shared], key) for of in (arm, first)] for key in differing()}
    return {key: against(a, b) for key, (a, b) in pairs.items() if a is not None and b is not None}
