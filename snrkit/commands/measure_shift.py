"""`snrkit measure-shift`: the arms and probes of snrkit.shift for every sampler, written to the run directory."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.files import disk_errors, read_json, write_bytes, write_json, write_text
from snrkit.base.numerics import NUMERICS
from snrkit.commands.progress import bar
from snrkit.commands.sample import check_samplers, choose
from snrkit.data.dataset import fingerprint
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.instrument import LARGEST_COVARIANCE, Instrument, Measurement, check_held_out, measured_seeds
from snrkit.experiment.opening import Model, Opened, open_experiment, open_model, resumable
from snrkit.experiment.run import locked
from snrkit.experiment.stored import trained_run, write_config
from snrkit.sampling.sampler import Sampler, dry_run
from snrkit.shift.files import as_csv, as_png, as_record, window_png
from snrkit.spectral.grid import scope_of

STATE_BYTES, IMAGE_BYTES = 4, 8  # of a number in an arm, and where a covariance is taken


def run_measuring(
    experiment: Experiment, runs: Path, world: World, names: Sequence[str] = (), quiet: bool = False
) -> dict[str, Any]:
    """Measure the chosen samplers (all by default); returns the records by sampler."""
    if world.size > 1:
        raise SnrkitError("measure-shift runs in one process; start it without torchrun.")
    chosen = choose(experiment, names)
    opened = open_experiment(experiment, world)
    check_held_out(opened)
    check_samplers(opened, chosen)
    check_one_grid_for_why(opened.experiment, chosen)
    check_memory(opened, [opened.experiment.samplers[name] for name in chosen])
    records: dict[str, Any] = {}
    run = trained_run(runs, opened.experiment, opened.dataset.fingerprint)
    with locked(run), resumable("every sampler that was measured"):
        model = open_model(opened, run)
        write_config(run, opened.experiment)
        instrument = Instrument(opened, model, measured_seeds(opened))
        with bar("measuring shift", len(chosen), not quiet) as progress:
            for index, name in enumerate(chosen):
                sampler = opened.experiment.samplers[name]
                measurement = instrument.measure(sampler)
                progress.update(index + 1, name)
                records[name] = _write(opened, model, name, sampler, measurement, instrument.seeds)
    return records


def check_one_grid_for_why(e: Experiment, names: Sequence[str]) -> None:
    """Refuse the probe `why` for grids that differ from image to image: ConfigError."""
    for name in names if "why" in e.shift.probes else ():
        if scope_of(e.samplers[name].grid, e.spectral) != "dataset":
            raise ConfigError(
                f"shift.probes: why cuts the steps of one grid for all images; give samplers.{name}.grid scope: "
                "dataset, or leave the probe out."
            )


def check_memory(opened: Opened, samplers: Iterable[Sampler], memory: int | None = None) -> None:
    """Refuse to begin what cannot be held, by estimate: ConfigError. Every level keeps its states until it is read.

    Two forward arms a grid, two reverse arms at most and room to join them; a covariance where one is taken.

    `memory`: bytes; default: all that this machine has.
    """
    e, dims = opened.experiment, math.prod(opened.dataset.shape)
    grids = {sampler.grid for sampler in samplers}
    kept = 2 * sum(grid.steps for grid in grids) + 4 * max(grid.steps for grid in grids)
    needed = STATE_BYTES * e.shift.images * dims * kept
    if "amplification" in e.shift.probes and dims <= LARGEST_COVARIANCE:
        needed += 2 * IMAGE_BYTES * len(opened.split.train) * dims * len(opened.ways)
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > memory:
        raise ConfigError(
            f"shift.images: the states of {e.shift.images} images at every level need {needed / 2**30:.0f} GiB and "
            f"this machine has {memory / 2**30:.0f}; give fewer images, or measure fewer samplers at a time."
        )


def _write(
    opened: Opened, model: Model, name: str, sampler: Sampler, measurement: Measurement, seeds: Sequence[int]
) -> dict[str, Any]:
    e, shift, run = opened.experiment, measurement.shift, model.run
    nfe = dry_run(sampler, e.process, e.target, opened.dataset.shape, e.spectral)
    probes = {key: value for key, value in asdict(measurement).items() if key not in ("shift", "sizes")}
    facts = {
        "sampler": name, "definition": sampler.model_dump(mode="json"), "nfe": nfe, "weights": model.weights,
        "checkpoint_images": model.images, "held_out_images": len(opened.split.held), "confidence": e.shift.confidence,
        "seeds": fingerprint(repr(list(seeds))), "numerics": NUMERICS,
    }  # fmt: skip
    before = read_json(run.shift(name)) if run.shift(name).exists() else {}
    if all(before.get(key) == value for key, value in facts.items()):  # probes not asked for now are kept
        probes = {key: before.get(key) if value is None else value for key, value in probes.items()}
    record = as_record(shift, **facts) | probes
    with disk_errors(f"writing {run.shift(name)}", "free space and run the same command again"):
        write_json(run.shift(name), record)
        write_text(run.shift(name, ".csv"), as_csv(shift))
        title = f"{e.name}/{name}: {nfe} evaluations, {shift.images} images, {model.weights} at {model.images} images"
        write_bytes(run.shift(name, ".png"), as_png(shift, title))
        if measurement.window is not None:
            write_bytes(
                run.shift(name, "-window.png"), window_png(measurement.window, measurement.amplification, title)
            )
    return record
