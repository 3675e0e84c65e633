"""`snrkit compare`: samplers, their bases and stronger solvers in one table, equal cost against equal cost.

Rows are laid out by jobs/rows.py. All make the same seeds, so that scores differ range by range: a row's difference
from its base has a paired t-interval over the ranges, and the row says whether it clears 0. The sizes of a row's shift
and of its base's are compared by resamples that both share.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.files import disk_errors, read_json, write_json
from snrkit.commands.compare_rows import Row, lay_out
from snrkit.commands.eval_fid import SCORED, open_reference, provenance, score_folder
from snrkit.commands.progress import bar
from snrkit.commands.sample import check_samplers, choose, make_images, manifest
from snrkit.data.dataset import fingerprint
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.instrument import Instrument, check_arms_fit, check_held_out, measured_seeds
from snrkit.experiment.opening import Model, Opened, open_experiment, open_model, resumable
from snrkit.experiment.run import Run, locked
from snrkit.experiment.sources import open_sampler
from snrkit.experiment.stored import trained_run, write_config
from snrkit.experiment.trajectories import sample_steps, starting_point
from snrkit.reports.comparison import comparison_page
from snrkit.sampling.sampler import parse_seeds
from snrkit.shift.bootstrap import bounds
from snrkit.spectral.grid import scope_of

FORMAT = 3  # of what is kept of a row
SHIFTS = ("mean_norm_gap", "mean_log_variance_ratio", "mean_nearest")


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
    check_arms_fit(opened, [row.sampler for row in rows.values()])
    check_untuned(Run(runs / experiment.name), opened.experiment)
    run = trained_run(runs, opened.experiment, opened.dataset.fingerprint)
    with locked(run), resumable("every row"):
        model = open_model(opened, run)
        write_config(run, opened.experiment.model_copy(update={"shift": experiment.shift}))
        found = find_rows(opened, model, rows, quiet)
        record = make_record(opened, model, rows, found, time_rows(opened, model, rows))
        _write(run, record)
    return record


def find_rows(opened: Opened, model: Model, rows: Mapping[str, Row], quiet: bool) -> dict[str, dict[str, Any]]:
    """Scores and shifts of every row; what an earlier, interrupted command found is kept where nothing differs."""
    extractor, reference = open_reference(opened)
    instrument = Instrument(opened, model, measured_seeds(opened))
    found: dict[str, dict[str, Any]] = {}
    with bar("comparing", len(rows), not quiet) as progress:
        for index, (name, row) in enumerate(rows.items()):
            stored, facts = model.run.compared(name), row_facts(opened, model, row, extractor.key)
            if not stored.exists() or read_json(stored)["facts"] != facts:
                wanted = manifest(opened, model, row.sampler)
                folder = model.run.compared_samples(name)  # its own: images of snrkit sample are never deleted here
                make_images(opened, model, name, folder, row.sampler, differs(folder, wanted), True)
                score = score_folder(opened, name, folder, extractor, reference)
                measured = instrument.measure(row.sampler)
                sizes = {key: values.tolist() for key, values in measured.sizes.items()}
                write_json(stored, {"facts": facts, "score": score, "shift": asdict(measured.shift), "sizes": sizes})
            found[name] = read_json(stored)
            progress.update(index + 1, name)
    return found


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
    """What a row's numbers depend on."""
    e = opened.experiment
    return {
        "format": FORMAT, "measured": fingerprint(repr(measured_seeds(opened))),
        **manifest(opened, model, row.sampler), "seeds": e.sample.seeds, "features": features,
        "metrics": e.metrics.model_dump(mode="json"), "shift": e.shift.model_dump(mode="json"),
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
            own, x, cond, noise = starting_point(opened, row.sampler, ready[name], seeds)
            before = time.perf_counter()
            with torch.no_grad():
                for step in sample_steps(model.denoiser, own, x, noise, cond):
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
            grids = (row.sampler.grid, rows[row.base].sampler.grid)
            scopes = {scope_of(grid, opened.experiment.spectral) for grid in grids}
            entry |= beside(found[name], found[row.base], len(scopes) == 1, confidence)
        table.append(entry)
    first = next(iter(found.values()))["score"]
    warnings = sorted({w for row in found.values() for part in row["score"]["ranges"] for w in part["warnings"]})
    return {
        "rows": table, "names": first["names"], "features": first["features"], "reference": first["reference"],
        "images_a_range": first["ranges"][0]["images"], "ranges": len(first["ranges"]), "seeds": first["seeds"],
        "checkpoint_images": model.images, "weights": model.weights, "warnings": warnings, "confidence": confidence,
        "timed_images": opened.experiment.compare.timed_images, "made_with": provenance(opened.world),
    }  # fmt: skip


def beside(row: Mapping[str, Any], base: Mapping[str, Any], one_scope: bool, confidence: float) -> dict[str, Any]:
    """How a row's scores and its shift differ from those of its base. `one_scope`: their grids follow equal spectra."""
    scores = [part["score"] for part in (row, base)]
    difference = {
        key: against(scores[0]["ranges"], scores[1]["ranges"], key)
        for key in SCORED
        if all(key in score["summary"] for score in scores)
    }
    alike = one_scope and row["shift"]["logsnr"] == base["shift"]["logsnr"]
    sizes, others = row["sizes"], base["sizes"]
    shift = {key: size_change(sizes[key], others[key], confidence) if alike else None for key in sizes}
    return {"difference": difference, "verdict": verdict(difference["fd"]), "shift_change": shift}


def size_change(row: Sequence[float | None], base: Sequence[float | None], confidence: float) -> dict[str, Any] | None:
    """Root mean squares of a shift in a row and in its base, and the interval of the difference of mean squares.

    Both are mean squares under the same resamples, the sample's own first. None where one has no reading.
    """
    if None in row or None in base:
        return None
    squares = [torch.tensor(of, dtype=torch.float64) for of in (row, base)]
    change = squares[0] - squares[1]
    low, high = (float(bound) for bound in bounds(change[1:], confidence))
    sizes = [float(of[0].clamp(min=0).sqrt()) for of in squares]
    return {
        "row": sizes[0], "base": sizes[1], "mean_square": {"mean": float(change[0]), "low": low, "high": high},
        "verdict": "smaller" if high < 0 else "larger" if low > 0 else "no difference shown",
    }  # fmt: skip


def against(
    ranges: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], key: str
) -> dict[str, float | None]:
    """Mean difference of a score over ranges of equal seeds, with its paired 95 % t-interval (none for one range)."""
    differences = [float(a[key]) - float(b[key]) for a, b in zip(ranges, base, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None}
    degrees = len(differences) - 1
    half = float(stdtrit(degrees, 0.975)) * statistics.stdev(differences) / len(differences) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


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
