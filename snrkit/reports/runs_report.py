"""Several runs on one page: the curves and scores of all their samplers on shared axes, and how the runs differ."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from snrkit.base.errors import SnrkitError
from snrkit.base.files import check_out, disk_errors, remove_abandoned, write_text
from snrkit.base.signals import ending
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import check_links
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_experiment
from snrkit.reports.blocks import Block, Details, Heading, OnPage, Paragraph, Picture, Table, document, pictures
from snrkit.reports.citing import citation
from snrkit.reports.page import page
from snrkit.reports.run_figures import band_figures, differences, glance, listed, same_seeds, verdict
from snrkit.reports.run_report import RunFindings, facts, find, guide, others, readings, remarks, sampler_table, warned

T = TypeVar("T")
Stored = Mapping[str, tuple[Run, Experiment]]  # by the name of the run


def write_runs_report(paths: Sequence[Path], out: Path | None) -> tuple[Path, Table]:
    """Write one page of several run directories, and its Markdown beside it.

    `out`: the HTML file, by default report.html beside the first run. Returns its path and the table of samplers.
    SnrkitError where a run is given twice, or `out` cannot be written.
    """
    out = paths[0].absolute().parent / "report.html" if out is None else out
    check_out(out, ".html", overwrite=True)
    runs = {name: (Run(path), shown_experiment(path)) for name, path in _named(paths).items()}
    with ending():
        for run, _ in runs.values():
            check_links(run)
        remove_abandoned(out.parent, out.stem)
        findings = {name: find(run, experiment) for name, (run, experiment) in runs.items()}
        table, blocks = _blocks(runs, findings, out.parent)
        with disk_errors(f"writing {out}", "free space and run snrkit report again"):
            write_text(out.with_suffix(".md"), document(blocks, out.parent))
            write_text(out, page(f"{listed(list(runs))}: report", blocks))
    return out, table


def shown_experiment(path: Path) -> Experiment:
    """The stored experiment of a run directory with the samplers of which it holds something, named as its folder."""
    run, stored = Run(path), stored_experiment(path)
    held = {
        name: sampler
        for name, sampler in stored.samplers.items()
        if any(place.exists() for place in (run.metrics(name), run.shift(name), run.samples(name)))
    }
    return stored.model_copy(update={"name": path.resolve().name, "samplers": held or stored.samplers})


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Runs by their folders' names, or by their paths where two have one name."""
    places = [path.resolve() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise SnrkitError(f"{place} is given twice; name each run once.")
    count = Counter(place.name for place in places)
    return {
        place.name if count[place.name] == 1 else str(path): path for path, place in zip(paths, places, strict=True)
    }


def _blocks(runs: Stored, findings: Mapping[str, RunFindings], base: Path) -> tuple[Table, list[Block]]:
    found = RunFindings(
        _merged({name: each.metrics for name, each in findings.items()}),
        _merged({name: each.curves for name, each in findings.items()}),
        _merged({name: each.shifts for name, each in findings.items()}),
        _merged({name: each.left_out for name, each in findings.items()}),
    )
    samplers = _merged({name: experiment.samplers for name, (_, experiment) in runs.items()})
    table = sampler_table(found, samplers)
    settings = {n: e.model_dump(mode="json", exclude={"samplers", "name", "log"}) for n, (_, e) in runs.items()}
    definitions = {name: sampler.model_dump(mode="json") for name, sampler in samplers.items()}
    blocks: list[Block] = [
        Heading(f"{listed(list(runs))}: report", 1),
        OnPage([verdict(found.metrics, found.shifts)]),
        *warned(found, runs),
        *[Paragraph(f"{name}: {facts(run, experiment)}") for name, (run, experiment) in runs.items()],
        *glance(found.metrics, found.shifts),
        *_samples(runs, base),
        *band_figures(found.shifts),
        Heading("Samplers"),
        table,
        *[Paragraph(text) for text in [*others(found), *remarks(found, samplers)]],
        OnPage(differences("How the runs differ", settings)),
        OnPage(differences("How the samplers differ", definitions)),
        *readings(found),
        Details("How to read this page", [Paragraph(text) for text in guide()]),
        *citation(shlex.join(["snrkit", "report", *runs]), where="in the folder that holds the runs"),
    ]
    return table, blocks


def _merged(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """What is known of every sampler, by the names of its run and of its own."""
    return {f"{run}: {name}": value for run, part in parts.items() for name, value in part.items()}


def _samples(runs: Stored, base: Path) -> list[Block]:
    """The same seeds under all samplers, of the runs that make the first run's seeds."""
    seeds = next(iter(runs.values()))[1].sample.seeds
    found: list[Block] = []
    for name, (run, experiment) in runs.items():
        if experiment.sample.seeds == seeds:
            there = pictures([run.samples(f"{sampler}.png") for sampler in experiment.samplers], base, samples=True)
            found += [replace(b, caption=f"{name}: {b.caption}") if isinstance(b, Picture) else b for b in there]
    return same_seeds(found, seeds)
