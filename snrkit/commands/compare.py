"""`snrkit compare`: samplers, their bases and stronger solvers in one table, equal cost against equal cost.

Which rows there are is for compare_rows.py to say. All make the same seeds, so that scores differ range by range: a
row's difference from its base has a paired t-interval over the ranges, and the row says whether it clears 0. The sizes
of a row's shift and of its base's are compared by resamples that both share.
"""

import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.base.files import disk_errors
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import write_json
from snrkit.base.signals import ending
from snrkit.commands.compare_rows import Row, comparison_layout
from snrkit.commands.eval_fid import newest, provenance, score_folder
from snrkit.commands.opening import open_aloud, open_model_aloud, open_scorer_aloud
from snrkit.commands.pace import duration, evaluation_seconds, sampling_takes
from snrkit.commands.progress import EVALUATIONS, Bar, bar, follow, log
from snrkit.commands.sample import check_images, check_samplers, choose, make_images, manifest
from snrkit.data.dataset import fingerprint
from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.fits import StoredFit
from snrkit.experiment.instrument import Instrument, check_arms_fit, check_beside, measured_seeds
from snrkit.experiment.lock import locked
from snrkit.experiment.opening import Model, Opened
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.experiment.stored import trained_run, write_config
from snrkit.experiment.trajectories import Trajectories, sample_steps, trajectories
from snrkit.metrics.paired import Difference, Verdict, against, verdict
from snrkit.metrics.records import SamplerScores
from snrkit.metrics.scores import by_key, differing, keys
from snrkit.reports.comparison import comparison_page
from snrkit.reports.records import Beside, Comparison, ComparisonRow, Designed, SizeChange, Tuned, WithNull
from snrkit.sampling.grid import scope_of
from snrkit.sampling.sampler import CompareConfig, Sampler, parse_seeds
from snrkit.shift.bootstrap import bounds
from snrkit.shift.measure import Shift
from snrkit.shift.response import RESPONSE_IMAGES, SCALES, ResponseProbe

FORMAT = 5  # of what is kept of a row


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a row, and what it depends on."""

    facts: Mapping[str, Any]
    score: SamplerScores
    shift: Shift
    sizes: Mapping[str, Sequence[float | None]]  # mean squares of the shift under resamples, the sample's own first
    warnings: Sequence[str]  # of what the shift may hide


@dataclass(frozen=True, slots=True)
class Timed:
    """Rounds of timing that are over, and what they depend on."""

    facts: Mapping[str, Any]
    seconds: Sequence[Mapping[str, float]]  # per image, of every row, by round


def announced(experiment: Experiment, rows: Mapping[str, Row]) -> str:
    """Which rows there are, of them those that nobody asked for, and what they cost before scoring and timing."""
    own, seeds = experiment.samplers, len(parse_seeds(experiment.sample.seeds))
    added = [name for name in rows if name not in own]
    beside = f", beside yours {', '.join(added)} (fewer by compare.solvers)" if added else ""
    return (
        f"{len(rows)} rows of {seeds:,} images{beside}: {evaluations(experiment, rows):,} evaluations of an image, the "
        f"shifts of {experiment.shift.images} trajectories included"
    )


def evaluations(experiment: Experiment, rows: Mapping[str, Row]) -> int:
    """Of one image each, that rows take together: to sample, and to measure their shifts as `Instrument` does.

    Those are the trajectories of a row, held-out and training images at the levels of every grid, and how the network
    answers to two scales of states.
    """
    sampled, measured = len(parse_seeds(experiment.sample.seeds)), experiment.shift.images
    walks = (sampled + measured) * sum(row.nfe for row in rows.values())
    scaled = len(SCALES) * min(RESPONSE_IMAGES, measured) * sum(row.sampler.grid.steps for row in rows.values())
    samplers = [row.sampler for row in rows.values()]
    grids = {(each.grid, each.start, each.told_spectrum): each.grid.steps for each in samplers}
    return walks + scaled + 2 * measured * sum(grids.values())


def comparison_plan(experiment: Experiment, world: World) -> str:
    """What `--dry-run` says: every row with its NFE and its base, and what all cost together."""
    choose(experiment, ())
    rows = comparison_layout(experiment)
    opened = open_aloud(experiment, world)
    lines = [
        f"{name}: {row.nfe} evaluations per image, {'no base' if row.base is None else f'beside {row.base}'}"
        for name, row in rows.items()
    ]
    takes = sampling_takes(opened, evaluations(experiment, rows))
    return "\n".join([announced(experiment, rows), *lines, takes])


def run_comparing(experiment: Experiment, runs: Path, world: World, quiet: bool = False) -> Comparison:
    """Sample, score, measure and time every row; returns the record of the table."""
    world.check_alone("compare")
    choose(experiment, ())
    rows = comparison_layout(experiment)
    log.info(announced(experiment, rows))
    shift = experiment.shift.model_copy(update={"probes": ()})
    everything = experiment.model_copy(
        update={"samplers": {name: row.sampler for name, row in rows.items()}, "shift": shift}
    )
    opened = open_aloud(everything, world, quiet)
    e, samplers = opened.experiment, {name: row.sampler for name, row in rows.items()}
    check_beside(opened.setting, e)
    check_images(opened.setting)
    check_samplers(opened.setting, samplers)
    check_arms_fit(opened.setting, shift)
    check_untuned(Run(runs / experiment.name), e)
    run = trained_run(runs, e, opened.data.dataset.fingerprint)
    with locked(run), ending("every row so far"):
        _warn_of_margin(run, e.compare.margin)
        model = open_model_aloud(opened, run)
        write_config(run, e.model_copy(update={"shift": experiment.shift}))
        samples = trajectories(opened, model)
        found = find_rows(opened, model, rows, quiet)
        times = time_rows(samples, rows, e.compare, measured_seeds(e), quiet)
        record = make_record(e, model, rows, found, times, world)
        _write(run, record)
    return record


def _warn_of_margin(run: Run, margin: float | None) -> None:
    """Say where rows that are there were made before the margin was chosen."""
    if margin is None or not run.comparison().exists():
        return
    before = read_record(Comparison, run.comparison()).margin
    if before != margin:
        log.warning(
            f"compare.margin: {margin:g}, where an earlier comparison of this run had "
            f"{'none' if before is None else f'{before:g}'}: one that is chosen after scores were seen shows nothing"
        )


def find_rows(opened: Opened, model: Model, rows: Mapping[str, Row], quiet: bool) -> dict[str, Kept]:
    """Scores and shifts of every row; what an earlier, interrupted command found is kept where nothing differs."""
    e, samples = opened.experiment, trajectories(opened, model)
    scorer = open_scorer_aloud(opened.setting, e.metrics, not quiet)
    instrument = Instrument(samples, e.shift, measured_seeds(e))
    made = {name: manifest(samples.sources.names, row.sampler) for name, row in rows.items()}
    facts = {name: row_facts(e, made[name], scorer.extractor.key) for name in rows}
    left = {name: row for name, row in rows.items() if not _is_kept(model.run.compared(name), facts[name])}
    if left:
        log.info(_takes(samples, e, left))
    found: dict[str, Kept] = {}
    with bar("comparing", len(rows), not quiet, "rows") as progress:
        for index, (name, row) in enumerate(rows.items()):
            stored = model.run.compared(name)
            folder = SampleFolder(model.run.compared_samples(name))  # images of snrkit sample are never deleted here
            if name in left or folder.is_damaged(parse_seeds(e.sample.seeds)):
                make_images(samples, name, folder, row.sampler, differs(folder, made[name]), quiet)
            if name in left:
                score = score_folder(opened, model.run, name, folder, scorer, model.images, quiet)
                write_json(stored, to_json(_measured(instrument, row.sampler, facts[name], score, quiet)))
            found[name] = read_record(Kept, stored)
            progress.update(index + 1, f"{name}: {newest(found[name].score)}")
    return found


def _is_kept(stored: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a row is there as it would be made."""
    return stored.exists() and read_record(Kept, stored).facts == facts


def _measured(
    instrument: Instrument, sampler: Sampler, facts: Mapping[str, Any], score: SamplerScores, quiet: bool
) -> Kept:
    """What is kept of a row whose images are scored: with its shift."""
    measured = follow(instrument.measuring(sampler), not quiet)
    sizes = {key: values.tolist() for key, values in measured.sizes.items()}
    with bar("response", None, not quiet, EVALUATIONS):
        hidden = ResponseProbe().warning(instrument.response(sampler))
    return Kept(facts, score, measured.shift, sizes, () if hidden is None else (hidden,))


def check_untuned(run: Run, experiment: Experiment) -> None:
    """Refuse to score seeds that chose coefficients of the run or of certificates that samplers name: ConfigError."""
    scored = parse_seeds(experiment.sample.seeds)
    tuned = [(path, read_record(Tuned, path).seeds) for path in sorted((run.path / "tune").glob("*.json"))]
    fits = [(path, read_record(StoredFit, path).seeds) for path in sorted((run.path / "fits").glob("*.json"))]
    grids = [(path, read_record(Designed, path).seeds) for path in sorted((run.path / "design").glob("*.json"))]
    named = sorted({sampler.certificate for sampler in experiment.samplers.values() if sampler.certificate is not None})
    certified = [(path, read_record(Certificate, path).tuning_seeds) for path in named]
    for path, seeds in (*tuned, *fits, *grids, *certified):
        shared = scored.shared(parse_seeds(seeds))
        if shared:
            raise ConfigError(
                f"sample.seeds: {shared} of these seeds chose what {path.stem} is ({path}); score others."
            )


def row_facts(e: Experiment, made: Mapping[str, Any], features: str) -> dict[str, Any]:
    """What a row's numbers depend on: how its images were `made`, and how they are scored and measured."""
    return {
        "format": FORMAT,
        "scores": keys(),
        "measured": fingerprint(repr(measured_seeds(e))),
        **made,
        "seeds": e.sample.seeds,
        "features": features,
        "metrics": e.metrics.model_dump(mode="json"),
        "shift": e.shift.model_dump(mode="json"),
    }


def differs(folder: SampleFolder, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder of samples holds images that were made otherwise."""
    stored = folder.manifest()
    return stored is not None and any(stored.made.get(key) != value for key, value in wanted.items())


def _takes(samples: Trajectories, e: Experiment, left: Mapping[str, Row]) -> str:
    """How long the rows that are not there yet may take."""
    seeds = list(parse_seeds(e.sample.seeds))[: e.sample.batch]
    one = evaluation_seconds(samples, next(iter(left.values())).sampler, seeds)
    rows = f"{len(left)} of them {'is' if len(left) == 1 else 'are'} to be made, in"
    return f"{rows} about {duration(one * evaluations(e, left))} here; scoring and timing are not counted"


def time_rows(
    samples: Trajectories, rows: Mapping[str, Row], config: CompareConfig, seeds: Sequence[int], quiet: bool = False
) -> dict[str, float]:
    """Median seconds per image of every row over interleaved rounds, the first of which warms up and is not counted.

    Rounds that an interrupted command has finished are kept. Empty where `compare.rounds` is 0.
    """
    stored, seeds = samples.model.run.compared_times, seeds[: config.timed_images]
    timed = Timed(_timed_facts(samples, rows, seeds), ())
    if stored.exists() and (before := read_record(Timed, stored)).facts == timed.facts:
        timed = before
        log.info(f"timing: {len(timed.seconds)} rounds of before are kept; delete {stored} to time anew")
    if len(timed.seconds) < config.rounds:
        with bar("timing", (config.rounds - len(timed.seconds) + 1) * len(rows), not quiet, "walks") as progress:
            for number, seconds in enumerate(_rounds(samples, rows, seeds, progress)):
                if number:
                    timed = Timed(timed.facts, (*timed.seconds, seconds))
                    write_json(stored, to_json(timed))
                if len(timed.seconds) == config.rounds:
                    break
    kept = timed.seconds[: config.rounds]
    return {name: statistics.median(seconds[name] for seconds in kept) for name in rows} if kept else {}


def _timed_facts(samples: Trajectories, rows: Mapping[str, Row], seeds: Sequence[int]) -> dict[str, Any]:
    """What times depend on."""
    device = samples.setting.world.device
    return {
        "machine": [platform.node(), platform.machine(), platform.processor()],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "made_with": provenance(samples.setting.world),
        "compute": samples.setting.compute.model_dump(mode="json"),
        "seeds": fingerprint(repr(list(seeds))),
        "made": {name: manifest(samples.sources.names, row.sampler) for name, row in rows.items()},
    }


def _rounds(
    samples: Trajectories, rows: Mapping[str, Row], seeds: Sequence[int], progress: Bar
) -> Iterator[dict[str, float]]:
    """Seconds per image of a walk of every row, one after the other, without end."""
    ready = {name: samples.open(row.sampler) for name, row in rows.items()}
    while True:
        seconds = {}
        for name, row in rows.items():
            own, x, cond, noise = samples.begin(row.sampler, ready[name], seeds)
            before = time.perf_counter()
            with torch.no_grad():
                for step in sample_steps(samples.model.denoiser, own, x, noise, cond):
                    x = step.x_next
            float(x.sum())  # waits for the device
            seconds[name] = (time.perf_counter() - before) / len(seeds)
            progress.advance(1, name)
        yield seconds


def make_record(
    e: Experiment,
    model: Model,
    rows: Mapping[str, Row],
    found: Mapping[str, Kept],
    times: Mapping[str, float],
    world: World,
) -> Comparison:
    """The table: rows by NFE and then in the order of the file."""
    first, beside = next(iter(found.values())).score, _beside_bases(e, rows, found, times)
    return Comparison(
        rows=tuple(
            table_row(name, row, found[name], times.get(name), beside.get(name))
            for name, row in sorted(rows.items(), key=lambda item: item[1].nfe)
        ),
        names=first.names,
        features=first.features,
        reference=first.reference,
        images_a_range=first.ranges[0].images,
        ranges=len(first.ranges),
        seeds=first.seeds,
        checkpoint_images=model.images,
        weights=model.weights,
        warnings=(
            *e.cautions(model.images),
            *sorted({warning for row in found.values() for warning in row.score.warnings}),
            *(f"{name}: {warning}." for name, row in found.items() for warning in row.warnings),
        ),
        confidence=e.shift.confidence,
        timed_images=e.compare.timed_images,
        made_with=provenance(world),
        decided_by=first.decided_by,
        margin=e.compare.margin,
    )


def _beside_bases(
    e: Experiment, rows: Mapping[str, Row], found: Mapping[str, Kept], times: Mapping[str, float]
) -> dict[str, Beside]:
    """Every row that has a base, beside it."""
    beside = {}
    for name, row in rows.items():
        if row.base is not None:
            scopes = {scope_of(each.grid, e.model.parts.levels) for each in (row.sampler, rows[row.base].sampler)}
            overhead = times[name] / times[row.base] - 1 if times else None
            beside[name] = set_beside(
                found[name], found[row.base], len(scopes) == 1, overhead, e.shift.confidence, e.compare.margin
            )
    return beside


def table_row(name: str, row: Row, kept: Kept, seconds: float | None, beside: Beside | None) -> ComparisonRow:
    """One row of the table."""
    shift = kept.shift
    return ComparisonRow(
        name=name,
        nfe=row.nfe,
        base=row.base,
        definition=row.sampler.model_dump(mode="json"),
        summary=kept.score.summary,
        ranges=kept.score.ranges,
        seconds_per_image=seconds,
        mean_norm_gap=WithNull(shift.mean_norm_gap, shift.mean_norm_gap_null),
        mean_log_variance_ratio=WithNull(shift.mean_log_variance_ratio, shift.mean_log_variance_ratio_null),
        mean_nearest=WithNull(shift.mean_nearest, shift.mean_nearest_null),
        beside=beside,
    )


def set_beside(
    row: Kept, base: Kept, one_scope: bool, overhead: float | None, confidence: float, margin: float | None = None
) -> Beside:
    """How a row's scores and its shift differ from those of its base. `one_scope`: their grids follow the same."""
    found = {key: difference(row.score, base.score, key) for key in differing()}
    known = {key: each for key, each in found.items() if each is not None}
    same = one_scope and to_json(row.shift.logsnr) == to_json(base.shift.logsnr)  # pure noise is read as NaN
    sizes, others = row.sizes, base.sizes
    shift = {key: size_change(sizes[key], others[key], confidence) if same else None for key in sizes}
    decisive = row.score.decided_by
    said, biased = told_apart(row.score, base.score, known[decisive], margin), row.score.biased | base.score.biased
    return Beside(overhead, known, said, shift, tuple(sorted(biased)))


def told_apart(row: SamplerScores, base: SamplerScores, found: Difference, margin: float | None = None) -> Verdict:
    """What the difference of the score that decides says of a row; nothing where too few images shift the score."""
    decisive = by_key(row.decided_by)
    return verdict(found, decisive.better, margin, decisive.key in row.biased | base.biased)


def difference(row: SamplerScores, base: SamplerScores, key: str) -> Difference | None:
    """Of a score over ranges of equal seeds; None where a range has none."""
    values, others = ([part.values.get(key) for part in of.ranges] for of in (row, base))
    known = [(a, b) for a, b in zip(values, others, strict=True) if a is not None and b is not None]
    return against([a for a, _ in known], [b for _, b in known]) if len(known) == len(values) else None


def size_change(row: Sequence[float | None], base: Sequence[float | None], confidence: float) -> SizeChange | None:
    """Root mean squares of a shift in a row and in its base, and the interval of the difference of mean squares.

    Both are mean squares under the same resamples, the sample's own first. None where one has no reading.
    """
    if None in row or None in base:
        return None
    squares = [torch.tensor(of, dtype=torch.float64) for of in (row, base)]
    change = squares[0] - squares[1]
    low, high = (float(bound) for bound in bounds(change[1:], confidence))
    sizes = [float(of[0].clamp(min=0).sqrt()) for of in squares]
    return SizeChange(
        row=sizes[0],
        base=sizes[1],
        mean_square=Difference(float(change[0]), low, high),
        verdict="smaller" if high < 0 else "larger" if low > 0 else "no difference shown",
    )


def _write(run: Run, record: Comparison) -> None:
    with disk_errors(f"writing {run.comparison()}", "free space and run the same command again"):
        write_json(run.comparison(), to_json(record))
        comparison_page(run, record)
