"""The page of a certificate, and the sentence that it comes down to."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from snrkit.base.files import write_text
from snrkit.experiment.certificate import AS_IT_IS, Certificate, TriedCandidate
from snrkit.experiment.run import Run
from snrkit.fitting.guard import Guard, guard_warns
from snrkit.metrics.scores import by_key
from snrkit.reports.blocks import (
    Block,
    Code,
    Heading,
    InText,
    OnPage,
    Paragraph,
    Table,
    Verdict,
    document,
    interval,
    pictures,
    short,
)
from snrkit.reports.citing import citation
from snrkit.reports.page import page
from snrkit.reports.plots import Forest, ForestRow
from snrkit.reports.run_figures import forest_row, same_seeds
from snrkit.sampling.sampler import Sampler
from snrkit.shift.bootstrap import Number


def sentence(record: Certificate) -> str:
    """What is wrong with the sampler, and what to do."""
    shift, solver = record.shift, record.recipe.definition["solver"]["kind"]
    null = f"null {shift.null.value:+.3f} [{shift.null.low:+.3f}, {shift.null.high:+.3f}]"
    said = (
        f"{record.sampler} at {record.nfe} evaluations: the norm gap of its states is {shift.norm_gap.value:+.3f} nats "
        f"({null}), of it {shift.network.value:+.3f} the network's and {shift.solver.value:+.3f} the solver's."
    )
    if shift.warning:
        said = f"{said} Mind that {shift.warning}."
    guard, warning = record.guard, guard_warns(record.guard)
    warned = "" if warning is None else f" Mind that {warning}."
    tried, left = len(record.candidates), len(record.not_tried)
    more = f" {tried} of {tried + left} candidates were tried; the same command goes on." if left else ""
    if record.advice == "leave it as it is":
        return f"{said} Leave it as it is: {_why_left(record)}.{warned}{more}"
    return (
        f"{said} Use the recipe {record.winner} ({solver}): rms to the flow {guard.fitted.value:.4f} against "
        f"{guard.base.value:.4f}{_scored(record)}.{warned}{more}"
    )


def _confirmed_on(guard: Guard) -> str:
    """What the distances of the winner are of, and how much of the change lies with one state."""
    return "; ".join(filter(None, ("on first states on which no candidate was chosen", guard_warns(guard))))


def _why_left(record: Certificate) -> str:
    if record.guard.base.value <= record.rounding:
        return "it follows the network's own flow more closely than rounding to 8 bits moves an image"
    if record.winner == AS_IT_IS and len(record.candidates) == 1 and record.not_tried:
        return "there was no time to try anything else"
    if record.winner == AS_IT_IS:
        return "nothing that was tried comes nearer to the network's own flow"
    if not record.guard.helps:
        return f"{record.winner} is not shown to come nearer to the network's own flow on fresh first states"
    if record.score is not None and record.score.verdict == "too few images":
        more = "make more images (sample.seeds), or let kid decide (metrics.decide)"
        return f"{record.winner} comes nearer to the flow, and its images are too few for {record.score.title}: {more}"
    return f"{record.winner} comes nearer to the flow{_scored(record)}, which is worse"


def _scored(record: Certificate) -> str:
    score = record.score
    return "" if score is None else f", change of {score.title} {interval(score.difference, by_key(score.key).digits)}"


def certificate_page(run: Run, record: Certificate, card: bool) -> None:
    """Write the certificate as Markdown and as HTML, and as a card of the Hub if it is asked for."""
    names = (record.sampler, certified_row(record.sampler)) if record.score is not None else ()
    sheets = pictures([run.compared_samples(f"{name}.png") for name in names], run.path, samples=True)
    blocks = [*_verdict(record, same_seeds(sheets, record.scored_seeds)), *_tried(record), *_repeat(record)]
    base = run.certificate(record.sampler, ".md")
    write_text(base, document(blocks, run.path))
    if card:
        write_text(run.certificate(record.sampler, ".card.md"), evaluation_card(record))
    title = f"{record.experiment}: {record.sampler}"
    write_text(run.certificate(record.sampler, ".html"), page(title, blocks))


def certified_row(sampler: str) -> str:
    """What the winner of a sampler is called where its images are scored."""
    return f"{sampler}-certified"


def _verdict(record: Certificate, sheets: Sequence[Block]) -> list[Block]:
    guard, shift = record.guard, record.shift
    rows = [
        ("norm gap, nats", shift.norm_gap.signed(), f"null {shift.null.signed()}"),
        ("of it the network's, nats", shift.network.signed(), "what a fine sampler of the same network keeps"),
        ("of it the solver's, nats", shift.solver.signed(), ""),
        ("rms to the flow, as it is", guard.base.plain(), f"error of the flow itself {guard.reference:.1g}"),
        (f"rms to the flow, {record.winner}", guard.fitted.plain(), _confirmed_on(guard)),
    ]
    if record.score is not None:
        score = record.score
        digits = by_key(score.key).digits
        change = f"{score.base:.{digits}f} to {score.winner:.{digits}f}, {interval(score.difference, digits)}"
        rows.append((score.title, change, f"{score.verdict}; seeds {record.scored_seeds}"))
    return [
        Heading(f"{record.experiment}: certificate of {record.sampler}", 1),
        Verdict(record.sentence),
        *[Paragraph(f"Warning: {warning}.") for warning in record.warnings],
        OnPage([Heading("At a glance"), *_figures(record)]),
        *sheets,
        Heading("Readings"),
        Table(("reading", "value", "beside it"), rows, "Readings"),
        Paragraph(record.rule),
        Paragraph(
            "Samples and the flow are a coupling, so that in the norm of the images W2(samples, data) is at most "
            "W2(flow, data) plus the root of the numbers of an image times the rms distance. It is no promise that a "
            "Frechet distance falls: this one can prefer samples of too little variance."
        ),
    ]


def _figures(record: Certificate) -> list[Block]:
    """The norm gap and its shares, how the score changed, and distances to the flow."""
    shift, score = record.shift, record.score
    gap, null = shift.norm_gap, (shift.null.low, shift.null.high)
    shares = _rows({"the network's share": shift.network, "the solver's share": shift.solver})
    gaps = (ForestRow("norm gap", gap.value, gap.low, gap.high, null=null), *shares)
    tried = {one.name: one.distance for one in record.candidates if one.distance is not None}
    figures: list[Block] = [
        Forest("Norm gap", "Means over levels with intervals; grey: the null.", "norm gap, nats", gaps)
    ]
    if score is not None:
        row = forest_row(f"{record.winner} less {record.sampler}", score.difference, score.verdict)
        says = f"Paired over ranges of equal fresh seeds: {score.verdict}."
        figures.append(Forest(f"Difference of {score.title}", says, f"{score.title}, winner less sampler", (row,)))
    says = f"Of all that was tried; the nearest, {record.winner}, was chosen."
    near = _rows(dict(sorted(tried.items(), key=lambda item: item[1].value)))
    return [*figures, Forest("Distance to the flow", says, "rms to the flow", near, None)]


def _rows(numbers: Mapping[str, Number]) -> tuple[ForestRow, ...]:
    return tuple(ForestRow(name, number.value, number.low, number.high) for name, number in numbers.items())


def _again(record: Certificate) -> str:
    """That the seeds were asked before, of another winner."""
    if record.confirmed <= 1:
        return ""
    return (
        f" This is winner number {record.confirmed} that the same first states and scored seeds were asked about, so "
        "that errors of the confirmation add up; give other tune.seeds and sample.seeds for a clean one."
    )


def _tried(record: Certificate) -> list[Block]:
    tried = sorted(record.candidates, key=lambda one: one.nearness)
    rows = [(one.name, one.distance.plain() if one.distance else "-", _as_said(one)) for one in tried]
    left = f" Time did not allow {', '.join(record.not_tried)}." if record.not_tried else ""
    return [
        Heading("What was tried"),
        Paragraph(
            f"Each was fitted on {record.noises} first states and is shown on {record.noises} others, which chose the "
            f"winner.{left}{_again(record)}"
        ),
        Table(("candidate", "rms to the flow", "as"), rows, "What was tried"),
    ]


def _as_said(one: TriedCandidate) -> str:
    if one.distance is None:
        return one.why
    sampler = Sampler.model_validate(one.definition)
    fitted = "" if one.rows is None else f", {len(one.rows) * len(one.rows[0])} coefficients"
    coefficients = "".join(f", {short(correction)}" for correction in sampler.corrections)
    return f"{sampler.solver.kind}, {sampler.grid.kind} of {sampler.grid.steps} steps{coefficients}{fitted}"


def _repeat(record: Certificate) -> list[Block]:
    of = record.of
    facts = (
        f"Weights {of.weights} at {of.checkpoint_images:,} images ({of.weights_checksum}), training and images "
        f"{of.training}, tuning seeds {record.tuning_seeds}, numerics {of.numerics}; "
        + ", ".join(f"{name} {version}" for name, version in record.made_with.items())
        + "."
    )
    named = f"samplers: {{mine: {{certificate: RUN/certify/{record.sampler}.json}}}}"
    use = f"As a sampler of this run's files, where RUN is its directory: {named}."
    return [
        Heading("To use it"),
        Paragraph(f"{use} In a pipeline that has its solver and levels: snrkit.certified(pipeline, path)."),
        Heading("To repeat it"),
        InText([Paragraph(record.command)]),
        OnPage([Code(record.command, "command")]),
        Paragraph(facts),
        *citation(""),
    ]


def evaluation_card(record: Certificate) -> str:
    """The certificate as a model card of the Hugging Face Hub: its `model-index`, and what it says in words."""
    guard, score = record.guard, record.score
    used = record.advice == "use the recipe"
    shown = guard.fitted if used else guard.base
    metrics = [
        {"type": "rms_to_flow", "name": "rms distance to the network's own flow", "value": shown.value},
        {"type": "norm_gap", "name": "norm gap of the sampler as it is, nats", "value": record.shift.norm_gap.value},
        {"type": "norm_gap_null", "name": "its null, nats", "value": record.shift.null.value},
    ]
    if score is not None:
        metrics.append({"type": score.key, "name": score.title, "value": score.winner if used else score.base})
    result = {
        "task": {"type": "unconditional-image-generation"},
        "dataset": {"type": record.of.training, "name": record.experiment},
        "metrics": metrics,
    }
    head = {"library_name": "snrkit", "model-index": [{"name": record.experiment, "results": [result]}]}
    facts = (
        f"Sampler {record.sampler}, {record.nfe} evaluations; weights {record.of.weights}, parameters "
        f"{record.network}; scored on seeds {record.scored_seeds}."
    )
    front = yaml.safe_dump(head, sort_keys=False, width=120)
    said = "\n\n".join([record.sentence, *(f"Warning: {each}." for each in record.warnings), record.rule, facts])
    return f"---\n{front}---\n\n{said}\n\n    {_without_folders(record.command)}\n"


def _without_folders(command: str) -> str:
    """A command with the names of files alone, for readers who have other folders."""
    return shlex.join(Path(word).name if "/" in word else word for word in shlex.split(command))
