"""Results on the terminal: a sentence with the verdict where there is one, a table as wide as there is room for, and
where what was made lies.

Values stand with the digits that their intervals support (layout.py).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import beside
from snrkit.experiment.run import Run
from snrkit.experiment.sources import FittedEstimator
from snrkit.experiment.stored import stored_experiment
from snrkit.fitting.guard import Guard, guard_says
from snrkit.metrics.paired import Difference
from snrkit.metrics.records import PairScores, SamplerScores, ScoreCurve
from snrkit.metrics.scores import PRIMARY, Entry, ScoreDefinition, by_key, columns, summarise
from snrkit.reports.blocks import Table, grid_of, short, spread
from snrkit.reports.comparison import contradictions, times
from snrkit.reports.layout import abreast, digits_of, measured, table, width_of, wrapped
from snrkit.reports.model_card import FILE
from snrkit.reports.records import (
    Audited,
    Checked,
    Comparison,
    ComparisonRow,
    Designed,
    EncodedFile,
    Exported,
    FitMade,
    Initialised,
    OverSeeds,
    Packing,
    Pushed,
    SizeChange,
    SweepArm,
    SweepTable,
    Swept,
    TunedNow,
    WithNull,
)
from snrkit.reports.run_figures import opposed
from snrkit.reports.run_report import write_report
from snrkit.reports.runs_report import shown_experiment, write_runs_report
from snrkit.reports.spectrum_table import spectrum_rows
from snrkit.sampling.sampler import Sampler
from snrkit.shift.audit import PairsReading
from snrkit.shift.bootstrap import Number, signed
from snrkit.shift.files import ShiftRecord, warnings_of
from snrkit.shift.telling import Walked
from snrkit.shift.verdict import Side

out = Console()
PRECISE = 6  # digits of single scores
NATS = 4  # digits of shifts without an interval
POOR = 0.05  # relative error of a rebuilt profile above which its width is not what was asked for
LAST = ("solver", "grid", "corrections")  # columns that say how a sampler was defined


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, or its rows one by one where it is wider than the console."""
    _lines(table(header, rows, width_of(out)))


def _say(text: str) -> None:
    """Sentences, broken at words; a longer word, such as a path, stands whole."""
    _lines(wrapped(text, width_of(out), whole=True))


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def show_made(what: str, where: str | Path, then: str = "") -> None:
    """What was made, and where it lies; and the command that comes next. Both stand whole, to be copied."""
    _lines([f"{what}: {Path(where).absolute()}", *([f"next: {then}"] if then else [])])


def show_shift(records: Mapping[str, ShiftRecord]) -> None:
    """One row a sampler, with nulls, those of norm gaps first."""
    _say(_sorted_out({name: record.side for name, record in records.items()}))
    rows = []
    for name, record in records.items():
        readings = record.shift.headline()
        beyond_nulls = [_less_null(reading, null) for reading, null in zip(readings[::2], readings[1::2], strict=True)]
        rows.append([name, str(record.facts.nfe), *beyond_nulls, *map(_number, readings)])
    less = ("norm gap less its null, nats", "ln variance ratio less its null")
    _print(("sampler", "NFE", *less, "norm gap", "its null", "ln variance ratio", "its null"), rows)
    for name, record in records.items():
        for warning in warnings_of(record.probes):
            _say(f"warning: {name}: {warning}")
    if said := opposed(records):
        _say(said)


def _number(number: Number) -> str:
    """A reading with its interval, signed."""
    return measured(number.value, number.low, number.high, signed=True, digits=NATS)


def _plain(number: Number) -> str:
    """A reading with its interval, of what has no sign."""
    return measured(number.value, number.low, number.high, digits=NATS)


def _less_null(reading: Number, null: Number) -> str:
    """A reading less its null, with the digits that the reading's interval supports."""
    return measured(reading.value - null.value, None, None, True, _digits(reading))


def _digits(number: Number) -> int:
    return digits_of((number.high - number.low) / 2, NATS)


def _sorted_out(found: Mapping[str, Side]) -> str:
    """A sentence that names the samplers for which a shift is shown, on either side, and those for which it is not."""
    words: Mapping[Side, str] = {
        "noisier": "states look noisier than told",
        "cleaner": "states look cleaner than told",
        "none": "no shift is shown",
        "hidden": "the network hardly sees how large states are",
        "unread": "not read",
    }
    named = {text: [name for name, side in found.items() if side == one] for one, text in words.items()}
    parts = [f"{text}: {', '.join(names)}" for text, names in named.items() if names]
    return f"Norm gap: {'; '.join(parts)}."


def show_audit(record: Audited) -> None:
    """What lies beyond the tolerance; every call of one sampler, or one row a sampler; and training."""
    for words in record.beyond:
        _say(f"beyond {record.tolerance:g} nats: {words}")
    if not record.beyond:
        _say(f"{record.what}: every level told is that of the state, to {record.tolerance:g} nats")
    if len(record.walks) == 1:
        _show_calls(record.walks[0])
    else:
        _print(("sampler", "calls", "begins, nats", "farthest, nats", "at call", "size, nats"), [
            _walked_row(walked) for walked in record.walks
        ])  # fmt: skip
    if record.training is not None:
        _say(
            f"{record.training.name}: {len(record.training.calls)} times are told, the state's level is farthest by "
            f"{signed(record.training.worst)} nats"
        )
    if record.pairs is not None:
        _show_pairs(record.pairs)


def _show_calls(walked: Walked) -> None:
    if walked.begun is not None:
        _say(f"{walked.name} begins with noise {signed(walked.begun)} nats away from the first level told")
    header = ("call", "time told", "its logsnr", "logsnr of the state", "difference, nats", "size, nats")
    rows = [
        [str(number + 1), f"{call.time:.6g}", *(f"{value:.4f}" for value in (call.told, call.state)),
         *(signed(value) for value in (call.difference, call.scale))]
        for number, call in enumerate(walked.calls)
    ]  # fmt: skip
    _print(header, rows)
    _say(f"its last state has logsnr {walked.end:.4f}")


def _walked_row(walked: Walked) -> list[str]:
    calls = walked.calls
    worst = max(range(len(calls)), key=lambda i: abs(calls[i].difference), default=0)
    size = max((call.scale for call in calls), key=abs, default=0.0)
    begun = "-" if walked.begun is None else signed(walked.begun)
    return [walked.name, str(len(calls)), begun, signed(walked.worst), str(worst + 1), signed(size)]


def _show_pairs(pairs: PairsReading) -> None:
    header = ("told logsnr", "state less told, nats", "alpha over nominal", "sigma over nominal")
    curves = (pairs.alpha, pairs.sigma, pairs.difference)
    rows = [
        [f"{logsnr:.3f}", measured(value, low, high, True), f"{alpha:.4f}", f"{sigma:.4f}"]
        for logsnr, alpha, sigma, value, low, high in zip(
            pairs.logsnr, *(curve.value for curve in curves), pairs.difference.low, pairs.difference.high, strict=True
        )
    ]
    _print(header, rows)
    _say(f"{pairs.pairs} training pairs")
    if pairs.left_out is not None:
        _say(pairs.left_out)


def show_calibration(record: FittedEstimator) -> None:
    """How good the estimator is on held-out images."""
    _say(
        f"on held-out images the estimator misses the level by {record.error:.3f} nats (root mean square); its "
        f"central 90 % holds {record.coverage:.1%} of them"
    )


def show_checked(checked: Checked) -> None:
    """What is wrong, a line each, or that nothing is."""
    alike: dict[tuple[Path, str, str], list[str]] = {}
    for finding in checked.findings:
        place = Path(finding.path).parent
        alike.setdefault((place, finding.what, finding.remedy), []).append(finding.path)
    for (_, what, remedy), paths in alike.items():
        more = f" and {len(paths) - 1} more beside it" if len(paths) > 1 else ""
        _lines([f"{paths[0]}{more}: {what}; {remedy}"])
    if not checked.findings:
        left = f"{checked.others} more, such as pages and pictures, carry no checksum"
        aside = f"; {checked.aside} lie put aside in damaged" if checked.aside else ""
        _lines([f"{checked.run}: {checked.verified} files are as they were written; {left}{aside}"])


def show_analysis(record: Mapping[str, Any]) -> None:
    """Where the page lies, and the prior term of every beta table."""
    rows = [[name, f"{bits:.3g}"] for name, bits in record["prior_bits"].items()]
    _print(("beta table", "prior term, bits per dimension"), rows)
    if record["facts"]:
        _print(("this run", ""), list(record["facts"].items()))
    show_made(f"{len(record['charts'])} charts, each with a CSV beside it", record["page"])


def show_spectrum(record: Mapping[str, Any]) -> None:
    """Slopes and bounds, and where the page lies."""
    _print(("spectrum", "median (99 % of the images)"), spectrum_rows(dict(record)))
    show_made("spectra", record["page"])


def show_sweep(swept: Swept) -> None:
    """What the first arm is beside the others, the table, and where it lies."""
    record = swept.table
    if record.arms:
        lead = by_key(record.decided_by)
        if said := _beside_first(record, lead):
            _say(said)
        _print(*_arms(record, lead))
    for name, why in record.failed.items():
        _say(f"broken off: {name}: {why}")
    show_made("table of the sweep", swept.written)


def _beside_first(record: SweepTable, lead: ScoreDefinition) -> str:
    """Which arms differ from the first in the score that decides; nothing where none stands beside it."""
    said: dict[str, list[str]] = {}
    for label, arm in record.arms.items():
        if (words := arm.said(lead)) is not None:
            said.setdefault(words, []).append(label)
    if not said:
        return ""
    parts = "; ".join(f"{words}: {', '.join(labels)}" for words, labels in said.items())
    return f"By {lead.head(record.names)} beside {record.reference} on equal seeds, {parts}."


def _arms(record: SweepTable, lead: ScoreDefinition) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(header, rows): an arm and sampler each; its scores over seeds, and what they are less the first arm's."""
    names = record.names
    scores = columns("sweep", [arm.scores for arm in record.arms.values()], lead).every
    beside = [s for s in (lead, *scores) if any(s.key in (arm.less_first or {}) for arm in record.arms.values())]
    header = (
        *("arm", "NFE", f"{lead.head(names)} (min, max)"),
        *(f"{score.head(names)} less {record.reference}'s [95 %]" for score in beside),
        *(score.head(names) for score in scores),
        *("power by ring", "spread of brightness", "skipped steps", "seeds", "weights"),
    )
    rows: list[Sequence[str]] = [
        (
            *(label, str(arm.nfe), _over_seeds(arm, lead)),
            *(_change((arm.less_first or {}).get(score.key), score.digits) for score in beside),
            *(_over_seeds(arm, score) for score in scores),
            *(" ".join(f"{ring:.2f}" for ring in arm.power), f"{arm.brightness:.2f}", str(arm.skipped)),
            *(", ".join(map(str, arm.seeds)), arm.weights),
        )
        for label, arm in record.arms.items()
    ]
    return header, rows


def _over_seeds(arm: SweepArm, score: ScoreDefinition) -> str:
    found: OverSeeds | None = arm.scores.get(score.key)
    if found is not None and len(arm.seeds) == 1:
        return measured(found.mean, None, None, digits=score.digits)
    return spread(found, score.digits)


def show_pushed(record: Pushed) -> None:
    """Where it lies, and how others name it."""
    _lines(
        [
            f"{record.weights} at {record.images:,} images: {record.place}"
            + (f", commit {record.commit}" if record.commit else ""),
            f"name it in an experiment as model: {{kind: snrkit, path: {record.place}/{FILE}}}",
        ]
    )


def show_initialised(record: Initialised) -> None:
    """Where it lies, and the commands that come next, in order."""
    show_made(record.what, record.path)
    _lines([*([f"first: {record.before}"] if record.before else []), f"next: {record.then}"])


def show_export(record: Exported) -> None:
    """Where it is, of what, and how it is loaded."""
    show_made(f"{record.weights} at {record.images:,} images", record.path)
    if record.format == "snrkit":
        _lines([f"name it in an experiment as model: {{kind: snrkit, path: {record.path}}}"])
        return
    call = "DDIMPipeline.from_pretrained" if record.pipeline else "UNet2DModel.from_pretrained"
    rest = "" if record.pipeline else ", subfolder='unet'; its scheduler is beside it"
    _lines([f"load it with diffusers.{call}({record.path!r}{rest})"])


def show_pack(record: Packing) -> None:
    """What was packed, what was changed for that, and how an experiment names it."""
    kind = "grey" if record.channels == 1 else "RGB"
    classes = f" of {record.classes:,} classes" if record.classes else ""
    show_made(f"{record.images:,} {kind} images{classes}, {record.size}x{record.size}", record.path)
    if record.changes:
        changes = ", ".join(f"{count:,} {words}" for words, count in record.changes.items())
        _say(f"of the images, {changes}")
    _lines([f"name it in an experiment as data: {{kind: zip, path: {record.path}}}"])


def show_encoded(record: EncodedFile) -> None:
    """What was made, of how much, and how to train on it."""
    shape, kept = "x".join(map(str, record.shape)), "means and deviations" if record.posterior else "no deviations"
    found = f"{record.images} latents of {shape}, {kept}, {record.numbers}, sigma_data {record.sigma_data:.4f}"
    show_made(found, record.path)
    data = yaml.safe_dump(dict(record.data), default_flow_style=True, sort_keys=False, width=math.inf).strip()
    _lines([f"train on them with data: {data}"])


def show_average(record: Mapping[str, Any]) -> None:
    """What was made, of how much, and how to sample it."""
    error = record.get("profile_error")
    off = "" if error is None else f"; its profile is off by {error:.1%} (L2)"
    _say(f"{record['name']} at {record['images']} images, of {record['snapshots']} snapshots{off}")
    if error is not None and error > POOR:
        _say("that is not the width asked for: keep snapshots more often (train.snapshot_every), or ask for another")
    at = record["images"]
    how = f"--set sample.average={record['name']}"
    _say(f"sample it with snrkit sample {how} (--set sample.checkpoint={at}, if not the newest)")


def show_tuned(records: Mapping[str, TunedNow | FitMade]) -> None:
    """What each method found, what the guard says of what was fitted to the flow, and where it lies."""
    by_sampler = {name: record for name, record in records.items() if isinstance(record, TunedNow)}
    fits = {name: record for name, record in records.items() if isinstance(record, FitMade)}
    if by_sampler:
        _show_coefficients(by_sampler)
    by_flow = {name: record.tuned.found.get("flow") for name, record in by_sampler.items()}
    guards = {name: found.flow.guard for name, found in by_flow.items() if found is not None and found.flow is not None}
    if guards or fits:
        _show_guards({**guards, **{name: record.guard for name, record in fits.items()}})
    for name, record in fits.items():
        show_made(f"coefficients of {name}", record.written)
    for path in {record.yaml for record in by_sampler.values()}:
        show_made("samplers with them", path, f"snrkit compare {path}")


def show_designed(records: Mapping[str, Designed]) -> None:
    """How near each designed grid comes to the flow, and where its YAML lies."""
    _show_guards({record.sampler: record.guard for record in records.values() if record.by == "fitted"})
    for record in records.values():
        _say(_how_designed(record))
        then = f"snrkit sample {record.written} --sampler {record.sampler}"
        show_made(f"grid of {record.sampler}", record.written, then)


def _how_designed(record: Designed) -> str:
    """How the grid did where it was chosen, or, of one that no distance chose, where it was checked."""
    own, here = f"{record.own_grid:.4f}", f"{record.distance:.4f}"
    if record.by != "fitted":
        return f"{record.sampler}: the sampler comes to {own} on its own grid, to {here} on this one"
    left = "" if record.guard.helps else "; as this is not confirmed, the file holds the sampler as it is"
    chosen = f"fitted steps come to {own} on the sampler's own, to {here} on it"
    return f"{record.sampler}: on the first states that chose the grid, {chosen}{left}"


def show_certificates(records: Mapping[str, Certificate], run: Path | None = None) -> None:
    """The sentence of each, and where it lies in the run."""
    for name, record in records.items():
        _say(record.sentence)
        if record.not_tried:
            _say(f"time did not allow {', '.join(record.not_tried)}; run the same command to go on")
        if run is not None:
            path = Run(run).certificate(name)
            show_made(f"certificate of {name}, with a page beside it", path)
            _lines([f"to use it: samplers: {{mine: {{certificate: {path}}}}}"])


def _show_guards(guards: Mapping[str, Guard]) -> None:
    rows = [
        [name, guard_says(guard), _plain(guard.fitted), _plain(guard.base), f"{guard.reference:.1g}"]
        for name, guard in guards.items()
    ]
    header = ("sampler", "on first states not fitted on", "rms to the flow, with", "without", "of the flow itself")
    _print(header, rows)


def _show_coefficients(records: Mapping[str, TunedNow]) -> None:
    rows = [
        [
            name,
            method,
            ", ".join(f"{p} {v:g}" for p, v in zip(record.tuned.parameters, found.values, strict=True)),
            "-" if found.fd_on_tuning_seeds is None else f"{found.fd_on_tuning_seeds:.4f}",
            " to ".join(f"{gap:.4f}" for gap in found.gap_before_and_after or ()) or "-",
            ", ".join(found.at_the_end_of_its_range) or "-",
        ]
        for name, record in records.items()
        for method, found in record.tuned.found.items()
    ]
    header = ("sampler", "by", "coefficients", "score on the tuning seeds", "norm gap, nats (rms)",
              "at the end of its range")  # fmt: skip
    _print(header, rows)


def show_comparison(record: Comparison, every: bool = False) -> None:
    """What differs from its base by the score that decides, and the columns that say so; `every`: all of them."""
    lead = by_key(record.decided_by)
    for warning in record.warnings:
        _say(f"warning: {warning}")
    for said in (_against_bases(record, lead), contradictions(record)):
        if said:
            _say(said)
    header, rows = _compared(record, lead)
    if every:
        _print(header, rows)
        return
    most = max(DECIDING, abreast(header, rows, width_of(out)))
    _print(header[:most], [row[:most] for row in rows])
    if most < len(header):
        _say("All columns: -v.")


DECIDING = 7  # columns of a comparison, up to the norm gap less its null


def _against_bases(record: Comparison, lead: ScoreDefinition) -> str:
    """Which rows differ from their bases; nothing where none has one."""
    said: dict[str, list[str]] = {}
    for row in record.rows:
        if row.beside is not None:
            said.setdefault(row.beside.verdict, []).append(row.name)
    order = sorted(said, key=lambda words: VERDICTS.index(words) if words in VERDICTS else len(VERDICTS))
    parts = "; ".join(f"{words}: {', '.join(said[words])}" for words in order)
    return f"By {lead.head(record.names)} beside their bases, {parts}. {record.together}".rstrip() if parts else ""


def _compared(record: Comparison, lead: ScoreDefinition) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(header, rows): what decides, the shift less its null, the other scores, and how a sampler is defined."""
    names = record.names
    scores = columns("compare", [row.summary for row in record.rows], lead).every
    beside = [row.beside for row in record.rows if row.beside is not None]
    bases = {str(row.base) for row in record.rows if row.beside is not None}
    one = bases.pop() if len(bases) == 1 else None  # whose name then stands in the heads alone
    whose = one or "base"
    less = [score for score in scores if any(score.key in each.difference for each in beside)]
    sizes = dict.fromkeys(key for each in beside for key in each.shift_change)
    header = (
        *("sampler", "NFE", lead.lead(names), f"{lead.head(names)} less {whose}'s [95 %]", "verdict", "base"),
        *(f"{shift} less its null" for shift in SHIFTS.values()),
        *(head for shift in SHIFTS.values() for head in (shift, "its null")),
        *(score.head(names) for score in scores),
        *(f"{score.head(names)} less {whose}'s [95 %]" for score in less),
        *(f"size of {SHIFTS.get(key, key)}, from {whose}'s" for key in sizes),
        *("ms/image", "overhead", *LAST),
    )
    rows = [
        (
            *_decided(row, lead, one),
            *(_less_null(each.reading, each.null) for each in _shifts(row)),
            *(_number(number) for each in _shifts(row) for number in (each.reading, each.null)),
            *(_cell(row.summary.get(score.key), score) for score in scores),
            *(_change(_difference(row, score), score.digits) for score in less),
            *(_size(None if row.beside is None else row.beside.shift_change.get(key)) for key in sizes),
            *times(row),
            *_defined(row.definition),
        )
        for row in record.rows
    ]
    return header, list[Sequence[str]](rows)


VERDICTS = ("better", "worse", "equal within the margin", "no difference shown", "too few images")
SHIFTS = {"norm_gap": "norm gap", "log_variance_ratio": "ln variance ratio", "nearest": "nearest level"}


def _decided(row: ComparisonRow, lead: ScoreDefinition, one: str | None) -> tuple[str, ...]:
    """Name, cost, the score that decides, what it says beside the base, and the base's name but for that of `one`."""
    said, base = ("-", "-") if row.beside is None else (row.beside.verdict, str(row.base))
    base = "-" if base == one else base
    difference = _change(_difference(row, lead), lead.digits)
    return (row.name, str(row.nfe), _lead(row.summary.get(lead.key), lead), difference, said, base)


def _difference(row: ComparisonRow, score: ScoreDefinition) -> Difference | None:
    return None if row.beside is None else row.beside.difference.get(score.key)


def _change(found: Difference | None, digits: int) -> str:
    """A difference with its interval; a dash for none."""
    return "-" if found is None else measured(found.mean, found.low, found.high, signed=True, digits=digits)


def _shifts(row: ComparisonRow) -> tuple[WithNull, ...]:
    """The readings of a shift, in the order of SHIFTS."""
    return row.mean_norm_gap, row.mean_log_variance_ratio, row.mean_nearest


def _size(change: SizeChange | None) -> str:
    """From the size of the base's shift to the row's, and the difference of their mean squares."""
    if change is None:
        return "-"
    return f"{change.base:.3f} to {change.row:.3f}, {change.verdict} (mean square {_change(change.mean_square, NATS)})"


def _defined(definition: Mapping[str, Any]) -> tuple[str, str, str]:
    """Solver, grid and corrections of a sampler, in the order of LAST."""
    sampler = Sampler.model_validate(definition)
    corrections = ", ".join(short(correction) for correction in sampler.corrections)
    return short(sampler.solver), grid_of(sampler), corrections or "-"


def _cell(entry: Entry | None, score: ScoreDefinition) -> str:
    """A score beside the first: its mean, with its interval where it has one."""
    return "-" if entry is None else _entry(entry, score.digits)


def _entry(entry: Entry, digits: int) -> str:
    """A mean, with its interval where it has one."""
    low, high = entry.interval or (None, None)
    return measured(entry.mean, low, high, digits=digits)


def _lead(entry: Entry | None, score: ScoreDefinition) -> str:
    """The score that decides, as `score.lead` heads it: with its interval, or with its spread."""
    return _cell(entry, score) if score.interval else spread(entry, score.digits)


def show_scores(records: Mapping[str, SamplerScores]) -> None:
    """One row a sampler: means over ranges, and the spread of the score that decides."""
    names, lead = next((record.names, by_key(record.decided_by)) for record in records.values())
    scores = columns("scores", [record.summary for record in records.values()], lead).every
    for warning in sorted({warning for record in records.values() for warning in record.warnings}):
        _say(f"warning: {warning}")
    unbiased = [name for name, record in records.items() if lead.key not in record.biased]
    if len(unbiased) > 1:
        best = min(unbiased, key=lambda name: records[name].summary[lead.key].mean)  # a distance
        _say(f"{best} has the lowest {lead.head(names)}; whether by more than chance, snrkit compare says.")
    rows = [
        [
            *(name, str(record.nfe), _lead(record.summary.get(lead.key), lead)),
            *(_cell(record.summary.get(score.key), score) for score in scores),
        ]
        for name, record in records.items()
    ]
    _print(("sampler", "NFE", lead.lead(names), *(score.head(names) for score in scores)), rows)


def show_curves(records: Mapping[str, ScoreCurve]) -> None:
    """One row a checkpoint; the best is marked as selected, since choosing by the score biases it downwards."""
    points = [(name, record, point) for name, record in records.items() for point in record.points]
    lead = next((by_key(record.selected_by) for record in records.values()), PRIMARY)
    scores = columns("checkpoints", [point.summary for _, _, point in points], lead).every
    names = points[0][2].names if points else {}
    for name, record in records.items():
        _say(f"{name}: {lead.head(names)} is lowest at {record.selected_images:,} images, selected by this score.")
    rows = [
        [
            *(name, f"{point.checkpoint_images:,}", _lead(point.summary.get(lead.key), lead)),
            "selected" if point.checkpoint_images == record.selected_images else "",
            *(_cell(point.summary.get(score.key), score) for score in scores),
        ]
        for name, record, point in points
    ]
    header = ("sampler", "images trained", lead.lead(names), "by this score", *(s.head(names) for s in scores))
    _print(header, rows)


def show_pair(record: PairScores) -> None:
    """The scores of two sets of images."""
    found = summarise([record.scores])
    known = [score for score in (PRIMARY, *columns("scores", [found]).every) if score.key in found]
    rows = [(score.head(record.names), _entry(found[score.key], PRECISE)) for score in known]
    _print(("score", "value [95 %]"), rows)
    for warning in record.scores.warnings:
        _say(f"warning: {warning}")


def make_report(experiment: Experiment, runs: Path) -> tuple[Path, Table]:
    """Write the report; returns its path and its table."""
    run = Run(runs / experiment.name)
    stored = stored_experiment(run.path)
    with beside(run, run.path):
        return write_report(run, stored.model_copy(update={"samplers": experiment.samplers}))


def make_runs_report(paths: Sequence[Path], out_path: Path | None) -> tuple[Path, Table]:
    """Write one report of several run directories, or of one its own: (where it is, its table)."""
    if len(paths) == 1 and out_path is None:
        return make_report(shown_experiment(paths[0]), paths[0].resolve().parent)
    return write_runs_report(paths, out_path)


def show_report(path: Path, found: Table, then: str = "") -> None:
    """The table of the report, where it lies, and the command that comes next."""
    _print(*_definitions_last(found.header, found.rows))
    show_made("report", path, then)


def _definitions_last(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table, with those that define samplers after what was found of them."""
    places = sorted(range(len(header)), key=lambda place: header[place] in LAST)
    return [header[place] for place in places], [[row[place] for place in places] for row in rows]
