"""The card of a run on the Hugging Face Hub: what it is, how it is used, and what was measured of it."""

from collections.abc import Mapping
from typing import Any

import yaml

from snrkit.base.numerics import NUMERICS
from snrkit.base.records import read_record
from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.run import Run
from snrkit.metrics.records import SamplerScores
from snrkit.reports.blocks import short
from snrkit.reports.citing import BIBTEX
from snrkit.reports.records import Exported
from snrkit.reports.run_report import find
from snrkit.sampling.sampler import named_fit
from snrkit.shift.measure import Shift

FILE = "snrkit.safetensors"


def model_card(experiment: Experiment, run: Run, made: Exported, place: str) -> str:
    """README.md of a repository, hf:owner/name: what the run holds of these weights, of samplers as they are now."""
    found, of = find(run, experiment), (made.weights, made.images)
    scores = {n: record for n, record in found.metrics.items() if (record.weights, record.checkpoint_images) == of}
    facts = {n: record.facts for n, record in found.shifts.items()}
    shifts = {n: found.shifts[n].shift for n, fact in facts.items() if (fact.weights, fact.checkpoint_images) == of}
    head: dict[str, Any] = {"library_name": "snrkit", "tags": ["diffusion", "image-generation"]}
    if scores:
        head["model-index"] = [{"name": experiment.name, "results": [_result(experiment, scores)]}]
    front = yaml.safe_dump(head, sort_keys=False, width=120)
    parts = [
        f"---\n{front}---\n\n# {experiment.name}",
        _facts(experiment, made),
        f"```yaml\nname: {experiment.name}\nmodel: {{kind: snrkit, path: {place}/{FILE}}}\n"
        "data: ...  # the images that it is to make, for the null and the scores\nsamplers: ...\n```",
        _table(experiment, scores, shifts),
        *[f"> {certificate.sentence}" for certificate in _certificates(experiment, run, made)],
        f"```bibtex\n{BIBTEX}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(e: Experiment, made: Exported) -> str:
    return (
        f"A diffusion model that snrkit trained on {made.images:,} images: process {short(e.process)}, target "
        f"{e.target.kind}, preconditioning {e.precondition.kind}, network {short(e.network)}; weights {made.weights}."
    )


def _result(e: Experiment, scores: Mapping[str, SamplerScores]) -> dict[str, Any]:
    """The scores as the Hub reads them."""
    metrics = [
        {
            "type": key,
            "name": f"{record.names.get(key, key)} of {name}, {record.nfe} evaluations",
            "value": record.summary[key].mean,
        }
        for name, record in scores.items()
        for key in [record.decided_by]
    ]
    task = {"type": "image-generation"}
    return {"task": task, "dataset": {"type": e.data.kind, "name": e.data.kind}, "metrics": metrics}


def _table(e: Experiment, scores: Mapping[str, SamplerScores], shifts: Mapping[str, Shift]) -> str:
    """Samplers, what they cost, their scores and their shifts, as far as they are known."""
    rows = []
    for name in e.samplers:
        shift, record = shifts.get(name), scores.get(name)
        if shift is None and record is None:
            continue
        gap = "" if shift is None else f"{shift.mean_norm_gap.value:+.3f} ({shift.mean_norm_gap_null.value:+.3f})"
        score = "" if record is None else f"{record.summary[record.decided_by].mean:.4g}"
        title = "" if record is None else record.names.get(record.decided_by, record.decided_by)
        rows.append(f"| {name} | {'' if record is None else record.nfe} | {title} {score} | {gap} |")
    if not rows:
        return ""
    head = ["| sampler | evaluations | score | norm gap, nats (its null) |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _certificates(e: Experiment, run: Run, made: Exported) -> list[Certificate]:
    """Those of the weights, and of the samplers as they are."""
    paths = {name: run.certificate(name) for name in e.samplers}
    found = [(name, read_record(Certificate, path).of, path) for name, path in paths.items() if path.exists()]
    return [
        read_record(Certificate, path)
        for name, of, path in found
        if (of.sampler, of.numerics) == (named_fit(e.samplers[name]).sampler, NUMERICS)
        and (of.weights, of.checkpoint_images) == (made.weights, made.images)
    ]
