"""The report of a run: one table of samplers, curves and pictures, as Markdown and as one self-contained HTML page.

Everything is read back from the run directory; a missing part is named with the command that makes it.
"""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snrkit.base.charts import png_of
from snrkit.base.errors import SnrkitError
from snrkit.base.files import disk_errors, write_bytes, write_text
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import from_json, read_record
from snrkit.base.sealed import read_json
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.log import Log, log_of
from snrkit.experiment.models import FromElsewhere
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_environment
from snrkit.metrics.records import SamplerScores, ScoreCurve
from snrkit.metrics.scores import PRIMARY, by_key, columns
from snrkit.reports.blocks import (
    Block,
    Details,
    Heading,
    InText,
    OnPage,
    Paragraph,
    Picture,
    Table,
    cell,
    document,
    full,
    grid_of,
    leading,
    pictures,
    short,
    weights_at,
)
from snrkit.reports.citing import citation, repeated
from snrkit.reports.page import page
from snrkit.reports.records import Tuned
from snrkit.reports.run_figures import (
    band_figures,
    comparable,
    differences,
    glance,
    of_one_measure,
    same_seeds,
    verdict,
)
from snrkit.sampling.sampler import Sampler
from snrkit.shift.config import every_probe
from snrkit.shift.files import ShiftRecord, shift_record, warnings_of
from snrkit.shift.probe import Probe


def write_report(run: Run, experiment: Experiment) -> tuple[Path, Table]:
    """Write report.md and report.html; returns the HTML's path and the table of samplers."""
    found = find(run, experiment)
    table = sampler_table(found, experiment.samplers)
    samples = pictures([run.samples(f"{name}.png") for name in experiment.samplers], run.path, samples=True)
    definitions = {name: sampler.model_dump(mode="json") for name, sampler in experiment.samplers.items()}
    blocks = [
        Heading(f"{experiment.name}: report", 1),
        OnPage([verdict(found.metrics, found.shifts)]),
        *what_to_do(run, experiment),
        *warned(found, {"": (run, experiment)}),
        *glance(found.metrics, found.shifts),
        *same_seeds(samples, experiment.sample.seeds),
        *band_figures(found.shifts),
        Heading("Samplers"),
        Paragraph(facts(run, experiment)),
        table,
        *[Paragraph(text) for text in (*others(found), *remarks(found, experiment.samplers))],
        OnPage(differences("How the samplers differ", definitions)),
        *readings(found),
        *_tuned(run, experiment),
        *_curves(found),
        *_pictures(run, experiment),
        *([InText([Heading("Samples"), *samples])] if samples else []),
        Details("How to read this page", [Paragraph(text) for text in guide()]),
        *citation(repeated("run", run), made_with(run)),
    ]
    with disk_errors(f"writing the report of {run.path}", "free space and run snrkit report again"):
        write_text(run.report(".md"), document(blocks, run.path))
        write_text(run.report(".html"), page(experiment.name, blocks))
    return run.report(".html"), table


def what_to_do(run: Run, experiment: Experiment) -> list[Block]:
    """The answers of certificates of samplers and weights as they are now, or else the command that gives one."""
    found = [_certificate(run, name, experiment) for name in experiment.samplers]
    said = [record.sentence for record in found if record is not None]
    if not said:
        said = [
            "Neither a shift nor a score says what would help: a sampler with a larger shift may make the better "
            f"images. snrkit certify {shlex.quote(run.path.name)}, in the folder that holds the run, tries other "
            "samplers and corrections at equal cost, and says which of them, if any, to use."
        ]
    return [Heading("What to do"), *map(Paragraph, said)]


def _certificate(run: Run, name: str, experiment: Experiment) -> Certificate | None:
    """That of a sampler and of weights as they are now; None where there is none, or none that can be read."""
    path, trained = run.certificate(name), list_checkpoints(run.checkpoints)
    try:
        record = read_record(Certificate, path) if path.exists() else None
    except SnrkitError:
        return None
    if record is None or not record.is_of(experiment.samplers[name]) or record.of.numerics != NUMERICS:
        return None
    seen = experiment.sample.checkpoint or (int(trained[-1].name) if trained else record.of.checkpoint_images)
    return record if record.of.checkpoint_images == seen else None


GUIDE = (
    "FD is the Frechet distance between features of samples and of the training split: smaller is nearer; its floor is "
    "what as many real images score against the same reference. It is called FID only when the features are "
    "Inception's; compare it only at equal image counts and equal features. Mean over disjoint seed ranges, then the "
    "smallest and the largest of them. NFE counts network calls per image.",
    "Norm gap: ln of the mean square of predicted noise on the sampler's own states over that on held-out images "
    "noised to the same levels, averaged over levels. Above 0 the network finds more noise in the sampler's states "
    "than in real ones of the same level. Its null is the same of training over held-out images. Variance ratio: "
    "variance of the states over its nominal value alpha^2 Var[x0] + sigma^2; ln of it, averaged over levels; its "
    "null is that of held-out images. Both are means over the levels of the sampler's own grid: compare them between "
    "samplers of one grid, otherwise each with its null. Brackets hold bootstrap intervals. A shift whose interval "
    "overlaps its null's is not shown to exist. Spectral grids differ from image to image: axes and tables then name "
    "the levels of the mean spectrum's grid, readings are means over images at levels of their own, held-out images at "
    "the same, and only differences to the null count.",
    "Nearer-than-held-out is the share of pairs in which a sample lies nearer to a training image than a held-out "
    "image does: 0.5 when samples are as new as held-out images, near 1 when the model repeats its training set, "
    "near 0 when samples lie farther from every image than real ones do.",
)
PROBES_GUIDE = (
    "Probes, all negative where states are noisier than told if in nats of logsnr. Nearest level: the forward level at "
    "which a Gaussian fit of the data finds the states most likely, less the nominal one, over the levels where "
    "held-out images are found at their own."
)
SCORES_GUIDE = (
    "IS, KID, precision and recall are means over the same ranges, on the same features: KID over random subsets of at "
    "most 1,000 images, unbiased and so at times below 0; precision is the share of samples among the training images' "
    "3-nearest-neighbour balls, recall the reverse (metrics.neighborhood, metrics.kid_subsets change both). If asked "
    "for (metrics.more, metrics.decide): FD∞ is FD extrapolated to infinitely many images on both sides, with a 95 % "
    "interval of the mean over ranges; SW2^2 is the sliced Wasserstein-2 distance, extrapolated likewise. Both can "
    "fall below 0. An interval holds the "
    "noise of the reference too, which all rows share: compare rows by paired differences."
)


def guide() -> tuple[str, ...]:
    """How to read the page, a paragraph each."""
    probes = every_probe()
    texts = (PROBES_GUIDE, *(probe.guide for probe in probes), *(probe.picture_guide for probe in probes))
    return (*GUIDE, " ".join(text for text in texts if text), SCORES_GUIDE)


@dataclass(frozen=True, slots=True)
class RunFindings:
    """What a run holds of the samplers of an experiment as they are now, and what is left out, by the reason."""

    metrics: Mapping[str, SamplerScores]
    curves: Mapping[str, ScoreCurve]
    shifts: Mapping[str, ShiftRecord]
    left_out: Mapping[str, Sequence[str]]


def find(run: Run, experiment: Experiment) -> RunFindings:
    """The stored scores and measurements of the samplers as they are defined now, by the numerics of this version."""
    places = {
        "scores": {name: run.metrics(name) for name in experiment.samplers},
        "curve": {name: run.curve(name) for name in experiment.samplers},
        "shift": {name: run.shift(name) for name in experiment.samplers},
    }
    stored = {what: _stored(paths, experiment) for what, paths in places.items()}
    left_out: dict[str, list[str]] = {}
    for what, (_, reasons) in stored.items():
        for name, reason in reasons.items():
            left_out.setdefault(reason, []).append(f"{what} of {name}")
    scores, curves, shifts = (stored[what][0] for what in places)
    return RunFindings(
        {name: from_json(SamplerScores, record, places["scores"][name]) for name, record in scores.items()},
        {name: from_json(ScoreCurve, record, places["curve"][name]) for name, record in curves.items()},
        {name: shift_record(record, places["shift"][name]) for name, record in shifts.items()},
        left_out,
    )


def _stored(paths: Mapping[str, Path], experiment: Experiment) -> tuple[dict[str, Any], dict[str, str]]:
    """(what files say of samplers as they are now, why others say nothing of them), both by the sampler's name."""
    found = {name: read_json(path) for name, path in paths.items() if path.exists()}
    why = {name: _outdated(record, experiment.samplers[name]) for name, record in found.items()}
    reasons = {name: reason for name, reason in why.items() if reason is not None}
    return {name: record for name, record in found.items() if name not in reasons}, reasons


def _outdated(record: Mapping[str, Any], sampler: Sampler) -> str | None:
    """Why a record, or one of a curve's points, says nothing of a sampler as it is now; None where all do."""
    points = record.get("points", [record])
    if any(point.get("definition") != sampler.model_dump(mode="json") for point in points):
        return "the sampler has been redefined since"
    if any(point.get("numerics") != NUMERICS for point in points):
        return "another version of the numerics made them"
    return None


def sampler_table(found: RunFindings, samplers: Mapping[str, Sampler]) -> Table:
    """One row a sampler, in their order; without scores by another measure than the first row's."""
    first = next(iter(found.metrics.values()), None)
    scored = {name: record.summary for name, record in of_one_measure(found.metrics).items()}
    names, lead = ({}, PRIMARY) if first is None else (first.names, by_key(first.decided_by))
    scores = columns("scores", scored.values(), lead)
    header = (
        *("sampler", "solver", "grid", "corrections", "NFE", lead.lead(names)),
        *(score.head(names) for score in scores.standing),
        *("norm gap, nats", "its null", "ln variance ratio", "its null"),
        *(score.head(names) for score in scores.others),
    )
    rows = []
    for name, sampler in samplers.items():
        shift, summary = found.shifts.get(name), scored.get(name, {})
        corrections = ", ".join(short(c) for c in sampler.corrections) or "none"
        row = (
            *(name, short(sampler.solver), grid_of(sampler), corrections, _nfe(found, name)),
            leading(summary.get(lead.key), lead),
            *(cell(summary.get(score.key), score) for score in scores.standing),
            *(("-",) * 4 if shift is None else (number.signed() for number in shift.shift.headline())),
            *(cell(summary.get(score.key), score) for score in scores.others),
        )
        rows.append(row)
    return full(Table(header, rows, "Samplers"))


def _nfe(found: RunFindings, name: str) -> str:
    if name in found.metrics:
        return str(found.metrics[name].nfe)
    return str(found.shifts[name].facts.nfe) if name in found.shifts else "?"


def facts(run: Run, experiment: Experiment) -> str:
    """What was trained, on what, and with what."""
    found, e = stored_environment(run), experiment
    if isinstance(e.model, FromElsewhere):
        notes = "".join(f" Note: {note}." for note in e.model.described.network.notes)
        return (
            f"Data {e.data.kind}; a model from elsewhere, {e.model.source.kind} at {e.model.source.path}: "
            f"process {short(e.process)}, target {e.target.kind}, precondition {e.precondition.kind}.{notes} "
            "Which images it was trained on is not known here; nulls and the memorisation check take the held-out ones "
            "for new."
        )
    origin = e.train.resume_from
    model = (
        f"Data {e.data.kind} (sigma_data {e.data.sigma_data}), process {e.process.kind}, target {e.target.kind}, "
        f"precondition {e.precondition.kind}, levels {short(e.levels)}, weighting {short(e.weighting)}, "
        f"network {e.network.kind}, seed {e.seed}, trained on {_trained(run):,} images"
        f"{'' if origin is None else f', from the weights of {origin.place}'}."
    )
    if found is None:
        return model
    return (
        f"{model} snrkit {found.snrkit}, torch {found.packages.get('torch', '?')}, {found.device}, "
        f"precision {found.precision}, commit {found.git_commit}."
    )


def warned(found: RunFindings, runs: Mapping[str, tuple[Run, Experiment]]) -> list[Block]:
    """What takes from a verdict: networks that have hardly learned, few images, what a shift may hide."""
    texts = [
        f"{name}: {text}" if name else text for name, (run, e) in runs.items() for text in e.cautions(_trained(run))
    ]
    texts += sorted({warning for record in found.metrics.values() for warning in record.warnings})
    texts += [f"{name}: {text}." for name, shift in found.shifts.items() for text in warnings_of(shift.probes)]
    return [Paragraph(f"Warning: {text}") for text in texts]


def others(found: RunFindings) -> list[str]:
    """Whose scores are by another measure than the first's, and so not set beside them."""
    alike, _ = comparable(found.metrics)
    apart = [name for name in found.metrics if name not in alike]
    text = "Warning: scored on other features, against another reference or of other counts than the first"
    return [f"{text}: {', '.join(apart)}."] if apart else []


def remarks(found: RunFindings, samplers: Mapping[str, Sampler]) -> list[str]:
    """What the numbers were made from, and what is missing."""
    texts = _sources(found)
    near = {name: record.memorisation for name, record in found.metrics.items() if record.memorisation is not None}
    if near:
        shares = ", ".join(f"{name} {entry.nearer:.3f}" for name, entry in near.items())
        texts.append(f"Memorisation check, nearer-than-held-out (0.5: as new as held-out images): {shares}.")
    for reason, what in found.left_out.items():
        texts.append(f"Left out, as {reason}: {', '.join(sorted(what))}; run them again.")
    missing = [name for name in samplers if name not in found.metrics]
    if missing:
        texts.append(f"Not scored yet: {', '.join(missing)}; run snrkit sample and snrkit eval-fid.")
    unmeasured = [name for name in samplers if name not in found.shifts]
    if unmeasured:
        texts.append(f"Shift not measured yet: {', '.join(unmeasured)}; run snrkit measure-shift.")
    return texts


def _sources(found: RunFindings) -> list[str]:
    """One sentence a distinct origin of scores and of measurements; two sentences mean that rows do not compare."""
    scored: dict[str, list[str]] = {}
    for name, record in found.metrics.items():
        text = (
            f"{len(record.ranges)} ranges of {record.ranges[0].images} images each (seeds {record.seeds}), "
            f"weights {weights_at(record.weights, record.checkpoint_images)}; features: "
            f"{record.features_note or record.features}; reference: {record.reference}."
        )
        scored.setdefault(text, []).append(name)
    measured: dict[str, list[str]] = {}
    for name, shift in found.shifts.items():
        facts = shift.facts
        text = (
            f"{shift.shift.images} trajectories, of the first seeds and those that follow, and as many forward samples "
            f"of {facts.held_out_images} held-out images; {facts.confidence:.0%} intervals; weights "
            f"{weights_at(facts.weights, facts.checkpoint_images)}."
        )
        measured.setdefault(text, []).append(name)
    texts = [f"Scores of {', '.join(names)}: {text}" for text, names in scored.items()]
    texts += [f"Shift of {', '.join(names)}: {text}" for text, names in measured.items()]
    for name in found.metrics.keys() & found.shifts.keys():
        made, seen = found.metrics[name].checkpoint_images, found.shifts[name].facts.checkpoint_images
        if made != seen:
            texts.append(
                f"Warning: {name} was scored at {made:,} images and its shift measured at {seen:,}; run both again."
            )
    if len(scored) > 1 or len(measured) > 1:
        texts.append("Warning: rows of different origin stand in one table; compare only those named together.")
    return texts


def readings(found: RunFindings) -> list[Block]:
    """What the probes found, one row a sampler: means over levels with their nulls."""
    if not found.shifts:
        return []
    probes, shifts = every_probe(), found.shifts
    header = ("sampler", "nearest level, nats", "its null", *(column for probe in probes for column in probe.columns))
    rows = [
        (
            name,
            record.shift.mean_nearest.signed(),
            record.shift.mean_nearest_null.signed(),
            *(cell for probe in probes for cell in _cells(probe, record.probes[probe.kind])),
        )
        for name, record in shifts.items()
    ]
    of_each = {p: [r.probes[p.kind] for r in shifts.values() if r.probes[p.kind] is not None] for p in probes}
    remarks = [probe.remark(records) for probe, records in of_each.items() if records]
    return [
        Heading("Probes"),
        full(Table(header, rows, "Probes")),
        *(Paragraph(text) for text in remarks if text is not None),
    ]


def _cells(probe: Probe[Any], record: object) -> tuple[str, ...]:
    return ("-",) * len(probe.columns) if record is None else probe.cells(record)


def _tuned(run: Run, experiment: Experiment) -> list[Block]:
    """Predicted, fitted and best-score coefficients side by side, where snrkit tune found them."""
    rows = []
    for name in experiment.samplers:
        path = run.tuned(name)
        record = read_record(Tuned, path) if path.exists() else None
        if record is None:
            continue
        for place, parameter in enumerate(record.parameters):
            cells = [record.found.get(method) for method in ("predicted", "gap", "fd", "optuna")]
            by_flow = record.found.get("flow")
            nearest = "-" if by_flow is None or by_flow.flow is None else by_flow.flow.shown(place)
            shown = ("-" if cell is None else f"{cell.values[place]:.4g}" for cell in cells)
            rows.append((name, parameter, nearest, *shown))
    header = (
        "sampler", "coefficient", "nearest to the flow", "predicted (Gaussian control)", "fitted (norm gap)",
        "best score", "optuna",
    )  # fmt: skip
    return [Heading("Coefficients"), Table(header, rows, "Coefficients")] if rows else []


def _curves(found: RunFindings) -> list[Block]:
    """Scores over checkpoints, where eval-fid --checkpoints made them."""
    curves = found.curves.values()
    lead = next((by_key(curve.selected_by) for curve in curves), PRIMARY)
    scores = columns("checkpoints", [point.summary for curve in curves for point in curve.points], lead).every
    rows = [
        (
            curve.sampler,
            f"{point.checkpoint_images:,}",
            lead.head(point.names),
            leading(point.summary.get(lead.key), lead),
            "selected by this score" if point.checkpoint_images == curve.selected_images else "",
            *(cell(point.summary.get(score.key), score) for score in scores),
        )
        for curve in curves
        for point in curve.points
    ]
    names = next((point.names for curve in curves for point in curve.points), {})
    header = (
        "sampler",
        "images trained",
        "score",
        f"mean {lead.brackets}",
        "",
        *(score.head(names) for score in scores),
    )
    return [Heading("Over training"), Table(header, rows, "Over training")] if rows else []


def made_with(run: Run) -> str:
    """What the numbers of a run depend on beside its configuration."""
    found = stored_environment(run)
    if found is None:
        return "config.yaml in the run directory is the experiment as resolved."
    packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    return (
        f"The run was begun by snrkit {found.snrkit}, commit {found.git_commit}, Python {found.python}, {packages}, on "
        f"{found.device}; images {found.dataset_fingerprint}. config.yaml in the run directory is the experiment as "
        "resolved: in another --runs folder it is made anew."
    )


def _trained(run: Run) -> int:
    return max((int(path.name) for path in list_checkpoints(run.checkpoints)), default=0)


def _pictures(run: Run, experiment: Experiment) -> list[Block]:
    blocks: list[Block] = []
    log = log_of(run)
    if log.lines:
        write_bytes(run.path / "loss.png", loss_curve(log))
        blocks += [
            Details("Training", [
                *([Paragraph("The last line of train.jsonl is torn, and left out.")] if log.torn else ()),
                Picture(run.path / "loss.png", "Loss of the raw weights while training, and on held-out images."),
            ])
        ]  # fmt: skip
    drawn = (".png", *(f"@{probe.kind}.png" for probe in every_probe()))
    shifts = pictures([run.shift(name, suffix) for name in experiment.samplers for suffix in drawn], run.path)
    return [*blocks, Details("Shift", shifts)] if shifts else blocks


def loss_curve(log: Log) -> bytes:
    """PNG of the training loss and of the held-out loss per logsnr bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines, held = log.train, log.held_out
    left.plot([r.images for r in lines], [_number(r.loss) for r in lines], linewidth=1, label="training")
    left.plot([r.images for r in held], [statistics.fmean(r.loss) for r in held], marker=".", label="held-out")
    left.set(xlabel="images", ylabel="loss")
    left.legend(fontsize=8)
    for index, record in enumerate(held):
        shade = min(1.0, 0.2 + 0.8 * (index + 1) / len(held))
        right.plot(record.logsnr, record.loss, color="C1", alpha=shade, linewidth=1)
    right.set(xlabel="logsnr, nats", ylabel="held-out loss (darker: later)")
    return png_of(figure, 100)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
