"""The card of a run on the Hugging Face Hub: what it is, how it is used, and what was measured of it."""

from collections.abc import Mapping
from typing import Any

import yaml

from snrkit.base.records import read_record
from snrkit.base.sealed import read_json
from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.run import Run
from snrkit.metrics.records import SamplerScores
from snrkit.reports.blocks import short
from snrkit.reports.citing import BIBTEX
from snrkit.reports.records import Exported
from snrkit.shift.files import shift_record

FILE = "snrkit.safetensors"


def model_card(experiment: Experiment, run: Run, made: Exported, name: str) -> str:
    """README.md of the repository `name`."""
    scores = {n: read_record(SamplerScores, run.metrics(n)) for n in experiment.samplers if run.metrics(n).exists()}
    head: dict[str, Any] = {"library_name": "snrkit", "tags": ["diffusion", "image-generation"]}
    if scores:
        head["model-index"] = [{"name": experiment.name, "results": [_result(experiment, scores)]}]
    front = yaml.safe_dump(head, sort_keys=False, width=120)
    parts = [
        f"---\n{front}---\n\n# {experiment.name}",
        _facts(experiment, made),
        f"```yaml\nname: {experiment.name}\nmodel: {{kind: snrkit, path: hf:{name}/{FILE}}}\n"
        "data: ...  # the images that it is to make, for the null and the scores\nsamplers: ...\n```",
        _table(experiment, run, scores),
        *[f"> {certificate.sentence}" for certificate in _certificates(experiment, run)],
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
            "type": record.decided_by,
            "name": f"{record.names.get(key, key)} of {name}, {record.nfe} evaluations",
            "value": entry.mean,
        }
        for name, record in scores.items()
        for key, entry in record.summary.items()
        if key == record.decided_by
    ]
    task = {"type": "image-generation"}
    return {"task": task, "dataset": {"type": e.data.kind, "name": e.data.kind}, "metrics": metrics}


def _table(e: Experiment, run: Run, scores: Mapping[str, SamplerScores]) -> str:
    """Samplers, what they cost, their scores and their shifts, as far as they are known."""
    rows = []
    for name in e.samplers:
        shift = shift_record(read_json(run.shift(name)), run.shift(name)).shift if run.shift(name).exists() else None
        record = scores.get(name)
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


def _certificates(e: Experiment, run: Run) -> list[Certificate]:
    paths = [run.certificate(name) for name in e.samplers]
    return [read_record(Certificate, path) for path in paths if path.exists()]
