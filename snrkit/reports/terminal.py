"""Results as tables on the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import beside
from snrkit.experiment.run import Run
from snrkit.experiment.sources import FittedEstimator
from snrkit.experiment.stored import stored_experiment
from snrkit.fitting.guard import Guard, guard_says
from snrkit.metrics.records import PairScores, SamplerScores, ScoreCurve
from snrkit.metrics.scores import PRIMARY, by_key, columns, summarise
from snrkit.reports.blocks import cell, leading, mean_of, with_interval
from snrkit.reports.comparison import comparison_rows
from snrkit.reports.records import (
    Audited,
    Checked,
    Comparison,
    Designed,
    EncodedFile,
    FitMade,
    Packing,
    Swept,
    TunedNow,
)
from snrkit.reports.run_report import write_report
from snrkit.reports.runs_report import shown_experiment, write_runs_report
from snrkit.reports.spectrum_table import spectrum_rows
from snrkit.reports.sweep_table import arm_table
from snrkit.shift.audit import PairsReading
from snrkit.shift.bootstrap import signed
from snrkit.shift.files import ShiftRecord, warnings_of
from snrkit.shift.telling import Walked

out = Console(soft_wrap=True)
PRECISE = 6  # digits of single scores
POOR = 0.05  # relative error of a rebuilt profile above which its width is not what was asked for


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    (Console(width=200) if not out.is_terminal else Console()).print(table)


def show_shift(records: Mapping[str, ShiftRecord]) -> None:
    """One row a sampler, with nulls."""
    rows = [
        [name, str(record.facts.nfe), *(number.signed() for number in record.shift.headline())]
        for name, record in records.items()
    ]
    _print(("sampler", "NFE", "norm gap, nats", "its null", "ln variance ratio", "its null"), rows)
    for name, record in records.items():
        for warning in warnings_of(record.probes):
            out.print(f"warning: {name}: {warning}", markup=False, highlight=False)
    if any(found is not None for record in records.values() for found in record.probes.values()):
        out.print("what the probes found stands in the report: snrkit report with the same file")


def show_audit(record: Audited) -> None:
    """Every call of one sampler, or one row a sampler; training; and what lies beyond the tolerance."""
    if len(record.walks) == 1:
        _show_calls(record.walks[0])
    else:
        _print(("sampler", "calls", "begins, nats", "farthest, nats", "at call", "size, nats"), [
            _walked_row(walked) for walked in record.walks
        ])  # fmt: skip
    if record.training is not None:
        out.print(
            f"{record.training.name}: {len(record.training.calls)} times are told, the state's level is farthest by "
            f"{signed(record.training.worst)} nats"
        )
    if record.pairs is not None:
        _show_pairs(record.pairs)
    for words in record.beyond:
        out.print(f"beyond {record.tolerance:g} nats: {words}", markup=False, highlight=False)
    if not record.beyond:
        out.print(f"{record.what}: what is told is what is, to {record.tolerance:g} nats", markup=False)


def _show_calls(walked: Walked) -> None:
    if walked.begun is not None:
        out.print(f"{walked.name} begins with noise that is {signed(walked.begun)} nats of the first level told")
    header = ("call", "time told", "its logsnr", "logsnr of the state", "difference, nats", "size, nats")
    rows = [
        [str(number + 1), f"{call.time:.6g}", *(f"{value:.4f}" for value in (call.told, call.state)),
         *(signed(value) for value in (call.difference, call.scale))]
        for number, call in enumerate(walked.calls)
    ]  # fmt: skip
    _print(header, rows)
    out.print(f"its last state has logsnr {walked.end:.4f}")


def _walked_row(walked: Walked) -> list[str]:
    calls = walked.calls
    worst = max(range(len(calls)), key=lambda i: abs(calls[i].difference), default=0)
    size = max((call.scale for call in calls), key=abs, default=0.0)
    begun = "-" if walked.begun is None else signed(walked.begun)
    return [walked.name, str(len(calls)), begun, signed(walked.worst), str(worst + 1), signed(size)]


def _show_pairs(pairs: PairsReading) -> None:
    header = ("told logsnr", "alpha over nominal", "sigma over nominal", "state less told, nats", "interval")
    curves = (pairs.alpha, pairs.sigma, pairs.difference)
    rows = [
        [f"{logsnr:.3f}", f"{alpha:.4f}", f"{sigma:.4f}", signed(value), f"[{signed(low)}, {signed(high)}]"]
        for logsnr, alpha, sigma, value, low, high in zip(
            pairs.logsnr, *(curve.value for curve in curves), pairs.difference.low, pairs.difference.high, strict=True
        )
    ]
    _print(header, rows)
    out.print(f"{pairs.pairs} training pairs")
    if pairs.left_out is not None:
        out.print(pairs.left_out)


def show_calibration(record: FittedEstimator) -> None:
    """How good the estimator is on held-out images."""
    out.print(
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
        out.print(f"{paths[0]}{more}: {what}; {remedy}", markup=False, highlight=False)
    if not checked.findings:
        left = f"{checked.others} more, such as pages and pictures, carry no checksum"
        aside = f"; {checked.aside} lie put aside in damaged" if checked.aside else ""
        text = f"{checked.run}: {checked.verified} files are as they were written; {left}{aside}"
        out.print(text, markup=False, highlight=False)


def show_analysis(record: Mapping[str, Any]) -> None:
    """Where the page lies, and the prior term of every beta table."""
    rows = [[name, f"{bits:.3g}"] for name, bits in record["prior_bits"].items()]
    _print(("beta table", "prior term, bits per dimension"), rows)
    if record["facts"]:
        _print(("this run", ""), list(record["facts"].items()))
    out.print(f"{len(record['charts'])} charts, each with a CSV beside it: {record['page']}")


def show_spectrum(record: Mapping[str, Any]) -> None:
    """Slopes and bounds, and where the page lies."""
    _print(("spectrum", "median (99 % of the images)"), spectrum_rows(dict(record)))
    out.print(f"written to {record['page']}")


def show_sweep(swept: Swept) -> None:
    """The table, and where it lies."""
    if swept.table.arms:
        _print(*arm_table(swept.table))
    for name, why in swept.table.failed.items():
        out.print(f"broken off: {name}: {why}")
    out.print(f"written to {swept.written}")


def show_export(record: Mapping[str, Any]) -> None:
    """Where it is, of what, and how diffusers loads it."""
    out.print(f"{record['weights']} at {record['images']} images: {record['path']}")
    call = "DDIMPipeline.from_pretrained" if record["pipeline"] else "UNet2DModel.from_pretrained"
    rest = "" if record["pipeline"] else ", subfolder='unet'; its scheduler is beside it"
    out.print(f"load it with diffusers.{call}({record['path']!r}{rest})")


def show_pack(record: Packing) -> None:
    """What was packed, what was changed for that, and how an experiment names it."""
    kind = "grey" if record.channels == 1 else "RGB"
    classes = f" of {record.classes:,} classes" if record.classes else ""
    out.print(f"{record.images:,} {kind} images{classes}, {record.size}x{record.size}: {record.path}", markup=False)
    if record.changes:
        changes = ", ".join(f"{count:,} {words}" for words, count in record.changes.items())
        out.print(f"of the images, {changes}")
    out.print(f"name it in an experiment as data: {{kind: zip, path: {record.path}}}", soft_wrap=True, markup=False)


def show_encoded(record: EncodedFile) -> None:
    """What was made, of how much, and how to train on it."""
    shape, kept = "x".join(map(str, record.shape)), "means and deviations" if record.posterior else "no deviations"
    out.print(f"{record.images} latents of {shape}, {kept}, {record.numbers}, sigma_data {record.sigma_data:.4f}")
    data = yaml.safe_dump(dict(record.data), default_flow_style=True, sort_keys=False, width=math.inf).strip()
    out.print(f"train on them with data: {data}", soft_wrap=True, markup=False, highlight=False)


def show_average(record: Mapping[str, Any]) -> None:
    """What was made, of how much, and how to sample it."""
    error = record.get("profile_error")
    off = "" if error is None else f"; its profile is off by {error:.1%} (L2)"
    out.print(f"{record['name']} at {record['images']} images, of {record['snapshots']} snapshots{off}")
    if error is not None and error > POOR:
        out.print(
            "that is not the width asked for: keep snapshots more often (train.snapshot_every), or ask for another"
        )
    at = record["images"]
    out.print(f"sample it with --set sample.average={record['name']} (--set sample.checkpoint={at}, if not the newest)")


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
        out.print(f"{name}: {record.written}")
    for path in {record.yaml for record in by_sampler.values()}:
        out.print(f"see whether they help: snrkit compare --config {path} (sample and the other commands take it too)")


def show_designed(records: Mapping[str, Designed]) -> None:
    """How near each designed grid comes to the flow, and where its YAML lies."""
    _show_guards({record.sampler: record.guard for record in records.values()})
    for record in records.values():
        out.print(
            f"{record.sampler}: steps fitted on the sampler's own grid come to {record.own_grid:.4f}, on this one to "
            f"{record.distance:.4f}; sample it: snrkit sample --config {record.written} --sampler {record.sampler}"
        )


def show_certificates(records: Mapping[str, Certificate]) -> None:
    """The sentence of each, and where its page lies."""
    for record in records.values():
        out.print(record.sentence)
        if record.not_tried:
            out.print(f"time did not allow {', '.join(record.not_tried)}; run the same command to go on")


def _show_guards(guards: Mapping[str, Guard]) -> None:
    rows = [
        [name, guard.base.plain(), guard.fitted.plain(), f"{guard.reference:.1g}", guard_says(guard)]
        for name, guard in guards.items()
    ]
    _print(("sampler", "rms to the flow, without", "with", "of the flow itself", "on first states not fitted on"), rows)


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
    header = (
        "sampler",
        "by",
        "coefficients",
        "score on the tuning seeds",
        "norm gap, nats (rms)",
        "at the end of its range",
    )
    _print(header, rows)


def show_comparison(record: Comparison) -> None:
    """The table of snrkit compare, by NFE."""
    _print(*comparison_rows(record))
    for warning in record.warnings:
        out.print(f"warning: {warning}")


def show_scores(records: Mapping[str, SamplerScores]) -> None:
    """One row a sampler: means over ranges, and the spread of the distance."""
    names, lead = next((record.names, by_key(record.decided_by)) for record in records.values())
    scores = columns("scores", [record.summary for record in records.values()], lead).every
    rows = [
        [
            name,
            str(record.nfe),
            leading(record.summary.get(lead.key), lead),
            *(cell(record.summary.get(score.key), score) for score in scores),
        ]
        for name, record in records.items()
    ]
    _print(("sampler", "NFE", lead.lead(names), *(score.head(names) for score in scores)), rows)
    for warning in sorted({warning for record in records.values() for warning in record.warnings}):
        out.print(f"warning: {warning}")


def show_curves(records: Mapping[str, ScoreCurve]) -> None:
    """One row a checkpoint; the best is marked as selected, since choosing by the score biases it downwards."""
    points = [(name, record, point) for name, record in records.items() for point in record.points]
    lead = next((by_key(record.selected_by) for record in records.values()), PRIMARY)
    scores = columns("checkpoints", [point.summary for _, _, point in points], lead).every
    rows = [
        [
            name,
            str(point.checkpoint_images),
            lead.head(point.names),
            mean_of(point.summary.get(lead.key), lead.digits),
            "selected by this score" if point.checkpoint_images == record.selected_images else "",
            *(cell(point.summary.get(score.key), score) for score in scores),
        ]
        for name, record, point in points
    ]
    names = points[0][2].names if points else {}
    _print(("sampler", "images trained", "score", "mean", "", *(score.head(names) for score in scores)), rows)


def show_pair(record: PairScores) -> None:
    """The scores of two sets of images."""
    found = summarise([record.scores])
    known = [score for score in (PRIMARY, *columns("scores", [found]).every) if score.key in found]
    rows = [(score.head(record.names), with_interval(found[score.key], PRECISE)) for score in known]
    _print(("score", "value [95 %]"), rows)
    for warning in record.scores.warnings:
        out.print(f"warning: {warning}")


def show_report(experiment: Experiment, runs: Path) -> None:
    """Write the report, print its table and where it is."""
    run = Run(runs / experiment.name)
    stored = stored_experiment(run.path)
    with beside(run, run.path):
        path, table = write_report(run, stored.model_copy(update={"samplers": experiment.samplers}))
    _print(table.header, table.rows)
    out.print(f"report: {path}")


def show_runs_report(paths: Sequence[Path], out_path: Path | None) -> None:
    """Write one report of several run directories, or of one its own; print its table and where it is."""
    if len(paths) == 1 and out_path is None:
        show_report(shown_experiment(paths[0]), paths[0].resolve().parent)
        return
    path, table = write_runs_report(paths, out_path)
    _print(table.header, table.rows)
    out.print(f"report: {path}")
