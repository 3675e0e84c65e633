"""`snrkit compare`: samplers, their bases and stronger solvers in one table, equal cost against equal cost.

Rows are the experiment's samplers, grouped by NFE. To every group come, where they are missing, the base of each
sampler that has corrections - its solver and grid without them, with as many steps as the same NFE allows, or one
evaluation more where none has the same (guided Heun costs an even number, Heun an odd one) - and the solvers of
`compare.solvers`. All make the same seeds, so that scores differ range by range: a row's difference from its base has a
paired t-interval over the ranges, and the row says whether it clears 0.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from snrkit import __version__
from snrkit.comparison import comparison_page
from snrkit.config import Experiment
from snrkit.distributed import World
from snrkit.errors import ConfigError, SnrkitError
from snrkit.files import disk_errors, read_json, write_json
from snrkit.jobs.measuring import Instrument, check_held_out, check_memory, measured_seeds
from snrkit.jobs.opening import Model, Opened, open_experiment, open_model
from snrkit.jobs.progress import bar
from snrkit.jobs.sampling import check_samplers, choose, make_images, manifest, sample_steps, starting_point
from snrkit.jobs.scoring import SCORED, open_reference, provenance, score_folder
from snrkit.jobs.sources import open_sampler
from snrkit.prediction import Target
from snrkit.process import Process
from snrkit.run import Run, locked, trained_run, write_config
from snrkit.sampler import Sampler, parse_seeds, rehearse
from snrkit.value import Value

SHAPE = (1, 2, 2)
MOST_STEPS = 2000
T_95 = (12.7062, 4.3027, 3.1824)  # Student's t, two-sided 95 %, for 1, 2 and 3 degrees of freedom
NORMAL_95 = 1.959964
SHIFTS = ("mean_norm_gap", "mean_log_variance_ratio", "mean_nearest")
LESS_IS_BETTER = ("fd", "kid")


@dataclass(frozen=True, slots=True)
class Row:
    """A sampler of the table, and the name of the row it is compared with."""

    sampler: Sampler
    nfe: int
    base: str | None


def lay_out(experiment: Experiment) -> dict[str, Row]:
    """All rows: the experiment's samplers, and what is added to them. ConfigError where no base has the same NFE."""
    process, target = experiment.process, experiment.target
    found = {name: (s, rehearse(s, process, target, SHAPE)) for name, s in experiment.samplers.items()}
    for name, (sampler, nfe) in list(found.items()):
        if sampler.corrections:
            _ensure(found, sampler.solver, sampler, nfe, process, target, name)
        for solver in experiment.compare.solvers:
            _ensure(found, solver, sampler, nfe, process, target, None)
    return {name: Row(sampler, nfe, _base(found, name)) for name, (sampler, nfe) in found.items()}


def _base(found: Mapping[str, tuple[Sampler, int]], name: str) -> str | None:
    """The row that a row with corrections is compared with: that of its NFE, else that of one evaluation more."""
    sampler, nfe = found[name]
    costs = {n: cost for n, (s, cost) in found.items() if n != name and _is_base(s, sampler)}
    near = [n for wanted in (nfe, nfe + 1) for n, cost in costs.items() if cost == wanted]
    return near[0] if sampler.corrections and near else None


def _is_base(candidate: Sampler, sampler: Sampler) -> bool:
    grids = [value.grid.model_copy(update={"steps": 1}) for value in (candidate, sampler)]
    same = candidate.solver == sampler.solver and grids[0] == grids[1]
    return not candidate.corrections and same and candidate.start == sampler.start


def _ensure(
    found: dict[str, tuple[Sampler, int]], solver: Value, like: Sampler, nfe: int, process: Process, target: Target,
    needed_by: str | None,
) -> None:  # fmt: skip
    """Add `solver` without corrections at `nfe` evaluations on the grid of `like`, unless such a row is there."""
    plain = like.model_copy(update={"solver": solver, "corrections": ()})
    costs = (nfe,) if needed_by is None else (nfe, nfe + 1)
    if any(_is_base(s, plain) and cost in costs for s, cost in found.values()):
        return
    fitted, cost = next(
        ((s, cost) for cost in costs if (s := with_nfe(plain, cost, process, target)) is not None), (None, 0)
    )
    if fitted is None:
        if needed_by is not None:
            raise ConfigError(
                f"samplers.{needed_by}: no {plain.solver.kind} on a {plain.grid.kind} grid has {nfe} or {nfe + 1} "
                "evaluations without corrections, so it has no base of equal cost; change its steps."
            )
        return
    name = f"{fitted.solver.kind}-{cost}"
    while name in found:
        name += "-plain"
    found[name] = (fitted, cost)


def with_nfe(sampler: Sampler, nfe: int, process: Process, target: Target) -> Sampler | None:
    """The sampler with the number of steps that costs exactly `nfe` evaluations; None if no number does."""
    low, high = 1, min(nfe, MOST_STEPS)
    while low <= high:
        steps = (low + high) // 2
        tried = sampler.model_copy(update={"grid": sampler.grid.model_copy(update={"steps": steps})})
        try:
            cost = rehearse(tried, process, target, SHAPE)
        except SnrkitError:  # more steps than the table has
            cost = nfe + 1
        if cost == nfe:
            return tried
        low, high = (steps + 1, high) if cost < nfe else (low, steps - 1)
    return None


def run_comparing(experiment: Experiment, runs: Path, world: World, quiet: bool = False) -> dict[str, Any]:
    """Sample, score, measure and time every row; returns the record of the table."""
    if world.size > 1:
        raise SnrkitError("compare runs in one process; start it without torchrun.")
    choose(experiment, ())
    rows = lay_out(experiment)
    shift = experiment.shift.model_copy(update={"probes": ()})
    everything = experiment.model_copy(
        update={"samplers": {name: row.sampler for name, row in rows.items()}, "shift": shift}
    )
    opened = open_experiment(everything, world)
    check_held_out(opened)
    check_samplers(opened, list(rows))
    check_memory(opened, [row.sampler for row in rows.values()])
    check_untuned(Run(runs / experiment.name), opened.experiment)
    run = trained_run(runs, opened.experiment, opened.dataset.fingerprint)
    with locked(run):
        model = open_model(opened, run)
        write_config(run, opened.experiment.model_copy(update={"shift": experiment.shift}))
        extractor, reference = open_reference(opened)
        instrument = Instrument(opened, model, measured_seeds(opened))
        found: dict[str, dict[str, Any]] = {}
        with bar("comparing", len(rows), not quiet) as progress:
            for index, (name, row) in enumerate(rows.items()):
                stored = run.compared(name)
                facts = row_facts(opened, model, row, extractor.key)
                if not stored.exists() or read_json(stored)["facts"] != facts:
                    wanted = manifest(opened, model, row.sampler)
                    folder = run.compared_samples(name)  # its own: images of snrkit sample are never deleted here
                    make_images(opened, model, name, folder, row.sampler, differs(folder, wanted), True)
                    score = score_folder(opened, name, folder, extractor, reference)
                    measured = instrument.measure(row.sampler)
                    excess = {key: values.tolist() for key, values in measured.excess.items()}
                    content = {"facts": facts, "score": score, "shift": asdict(measured.shift), "excess": excess}
                    write_json(stored, content)
                found[name] = read_json(stored)
                progress.update(index + 1, name)
        times = time_rows(opened, model, rows)
        record = make_record(opened, model, rows, found, times)
        _write(run, record)
    return record


def check_untuned(run: Run, experiment: Experiment) -> None:
    """Refuse to score seeds on which coefficients were chosen: ConfigError."""
    scored = set(parse_seeds(experiment.sample.seeds))
    for path in sorted((run.path / "tune").glob("*.json")):
        shared = scored & set(parse_seeds(read_json(path)["seeds"]))
        if shared:
            raise ConfigError(
                f"sample.seeds: {len(shared)} of these seeds chose the coefficients of {path.stem} ({path}); "
                "score others."
            )


def row_facts(opened: Opened, model: Model, row: Row, features: str) -> dict[str, Any]:
    """What a row's numbers depend on: those of an earlier, interrupted command are kept where nothing differs."""
    e = opened.experiment
    return {
        **manifest(opened, model, row.sampler), "seeds": e.sample.seeds, "features": features,
        "metrics": e.metrics.model_dump(mode="json"), "shift": e.shift.model_dump(mode="json"), "version": __version__,
    }  # fmt: skip


def differs(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder of samples holds images that were made otherwise."""
    path = folder / "manifest.json"
    made = read_json(path) if path.exists() else {}
    return any(made.get(key) != value for key, value in wanted.items()) and path.exists()


def time_rows(opened: Opened, model: Model, rows: Mapping[str, Row]) -> dict[str, float]:
    """Median seconds per image of every row, over interleaved rounds; the first round warms up and is not counted."""
    config = opened.experiment.compare
    seeds = measured_seeds(opened)[: config.timed_images]
    taken: dict[str, list[float]] = {name: [] for name in rows}
    ready = {name: open_sampler(opened, model, row.sampler) for name, row in rows.items()}
    for _ in range(config.rounds + 1):
        for name, row in rows.items():
            x, cond, noise = starting_point(opened, row.sampler, ready[name].levels, seeds)
            before = time.perf_counter()
            with torch.no_grad():
                for step in sample_steps(model.denoiser, ready[name], x, noise, cond):
                    x = step.x_next
            float(x.sum())  # waits for the device
            taken[name].append((time.perf_counter() - before) / len(seeds))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def make_record(
    opened: Opened, model: Model, rows: Mapping[str, Row], found: Mapping[str, Any], times: Mapping[str, float]
) -> dict[str, Any]:
    """The table as plain data, rows by NFE and then in the order of the file."""
    confidence = opened.experiment.shift.confidence
    table = []
    for name, row in sorted(rows.items(), key=lambda item: item[1].nfe):
        score, near = found[name]["score"], found[name]["shift"]
        entry: dict[str, Any] = {
            "name": name, "nfe": row.nfe, "base": row.base, "definition": row.sampler.model_dump(mode="json"),
            "summary": score["summary"], "ranges": score["ranges"], "seconds_per_image": times[name],
        }  # fmt: skip
        for key in SHIFTS:
            entry[key] = {**near[key], "null": near[f"{key}_null"]}
        if row.base is not None:
            entry["overhead"] = times[name] / times[row.base] - 1
            entry |= beside(found[name], found[row.base], confidence)
        table.append(entry)
    first = next(iter(found.values()))["score"]
    warnings = sorted({w for row in found.values() for part in row["score"]["ranges"] for w in part["warnings"]})
    return {
        "rows": table, "names": first["names"], "features": first["features"], "reference": first["reference"],
        "images_a_range": first["ranges"][0]["images"], "ranges": len(first["ranges"]), "seeds": first["seeds"],
        "checkpoint_images": model.images, "weights": model.weights, "warnings": warnings, "confidence": confidence,
        "timed_images": opened.experiment.compare.timed_images, "made_with": provenance(opened.world),
    }  # fmt: skip


def beside(row: Mapping[str, Any], base: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """How a row's scores and its shift differ from those of its base."""
    scores = [part["score"] for part in (row, base)]
    difference = {
        key: against(scores[0]["ranges"], scores[1]["ranges"], key)
        for key in SCORED
        if all(key in score["summary"] for score in scores)
    }
    shift = {key: size_change(row["excess"][key], base["excess"][key], confidence) for key in SHIFTS}
    return {"difference": difference, "verdict": verdict(difference["fd"]), "shift_difference": shift}


def size_change(row: Sequence[float | None], base: Sequence[float | None], confidence: float) -> dict[str, float]:
    """|excess| of a row less that of its base, with the interval of shared resamples: below 0 the shift is smaller.

    NaN where one of them has no reading (None).
    """
    sizes = [torch.tensor([math.nan if v is None else abs(v) for v in of], dtype=torch.float64) for of in (row, base)]
    change, edge = sizes[0] - sizes[1], (1 - confidence) / 2
    low, high = torch.quantile(change[1:], torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return {"mean": float(change[0]), "low": low, "high": high}


def against(
    ranges: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], key: str
) -> dict[str, float | None]:
    """Mean difference of a score over ranges of equal seeds, with its paired 95 % t-interval (none for one range)."""
    differences = [float(a[key]) - float(b[key]) for a, b in zip(ranges, base, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None}
    degrees = len(differences) - 1
    half = student_t(degrees) * statistics.stdev(differences) / len(differences) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def student_t(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t: a table, then Hill's expansion round the normal one."""
    if degrees <= len(T_95):
        return T_95[degrees - 1]
    z, n = NORMAL_95, degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n ** (k + 1) for k, term in enumerate(terms))


def verdict(difference: Mapping[str, float | None]) -> str:
    """What the interval of a distance's difference says."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "one range: no interval"
    return "better" if high < 0 else "worse" if low > 0 else "no difference shown"


def _write(run: Run, record: Mapping[str, Any]) -> None:
    with disk_errors(f"writing {run.comparison()}", "free space and run the same command again"):
        write_json(run.comparison(), record)
        comparison_page(run, record)
