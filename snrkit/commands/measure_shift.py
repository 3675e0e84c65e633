"""`snrkit measure-shift`: the arms and probes of snrkit.shift for every sampler, written to the run directory."""

import json
from collections.abc import Sequence
from pathlib import Path

from snrkit.base.distributed import World
from snrkit.base.files import disk_errors, write_bytes, write_text
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import to_json
from snrkit.base.sealed import write_json
from snrkit.base.signals import ending
from snrkit.commands.opening import open_aloud, open_model_aloud
from snrkit.commands.progress import bar, follow, loading, log
from snrkit.commands.sample import check_samplers, choose, manifest
from snrkit.data.dataset import fingerprint
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.instrument import (
    Instrument,
    Measurement,
    check_arms_fit,
    check_beside,
    check_probes,
    measured_seeds,
)
from snrkit.experiment.lock import locked
from snrkit.experiment.loggers import check_loggers, open_loggers
from snrkit.experiment.run import Run
from snrkit.experiment.stored import trained_run, write_config
from snrkit.experiment.trajectories import trajectories
from snrkit.sampling.sampler import Sampler, parse_seeds
from snrkit.shift.config import every_probe
from snrkit.shift.files import Facts, ShiftRecord, as_csv, as_png, probes_before


def run_measuring(
    experiment: Experiment, runs: Path, world: World, names: Sequence[str] = (), quiet: bool = False
) -> dict[str, ShiftRecord]:
    """Measure the chosen samplers (all by default); returns the records by sampler."""
    world.check_alone("measure-shift")
    chosen = choose(experiment, names)
    check_loggers(experiment)
    opened = open_aloud(experiment, world, quiet)
    e = opened.experiment
    samplers = {name: e.samplers[name] for name in chosen}
    check_beside(opened.setting, e)
    check_samplers(opened.setting, samplers)
    check_arms_fit(opened.setting, e.shift, samplers=samplers.values())
    run = trained_run(runs, e, opened.data.dataset.fingerprint)
    check_probes(e, run, chosen)
    records: dict[str, ShiftRecord] = {}
    with locked(run), ending("every sampler that was measured so far"), open_loggers(e, run, world) as loggers:
        write_config(run, e)
        if note := _further(e):
            log.info(note)
        instrument = Instrument(trajectories(opened, open_model_aloud(opened, run)), e.shift, measured_seeds(e))
        with bar("measuring shift", len(chosen), not quiet, "samplers") as progress:
            for index, (name, sampler) in enumerate(samplers.items()):
                progress.say(name)
                measurement = follow(instrument.measuring(sampler), not quiet)
                progress.update(index + 1, f"{name}: norm gap {measurement.shift.mean_norm_gap.value:+.4f}")
                records[name] = _record(run, _facts(instrument, name, sampler), measurement)
                with loading(f"drawing {name}", not quiet):  # the first time by what draws
                    _write(run, e.name, records[name], measurement)
                loggers.shift(records[name])
    return records


def _further(e: Experiment) -> str:
    """What to know where more trajectories are measured than images are sampled; nothing where there are as many."""
    sampled = len(parse_seeds(e.sample.seeds))
    return (
        f"shift.images is {e.shift.images:,} and sample.seeds are {sampled:,}: the seeds that follow are measured too; "
        f"set shift.images to measure fewer"
        if e.shift.images > sampled
        else ""
    )


def _facts(instrument: Instrument, name: str, sampler: Sampler) -> Facts:
    setting, model, names = instrument.setting, instrument.model, instrument.samples.sources.names
    return Facts(
        sampler=name,
        definition=sampler.model_dump(mode="json"),
        nfe=setting.cost(sampler),
        weights=model.weights,
        checkpoint_images=model.images,
        held_out_images=len(setting.data.split.held),
        confidence=instrument.config.confidence,
        seeds=fingerprint(repr(list(instrument.seeds))),
        made=fingerprint(json.dumps(manifest(names, sampler), sort_keys=True)),
        numerics=NUMERICS,
    )


def _record(run: Run, facts: Facts, measurement: Measurement) -> ShiftRecord:
    """The measurement, and what probes that were not asked for now have found before."""
    before = probes_before(run.shift(facts.sampler), facts)
    probes = {
        probe.kind: before.get(probe.kind) if (found := measurement.probes.get(probe.kind)) is None else found
        for probe in every_probe()
    }
    return ShiftRecord(facts, measurement.shift, probes)


def _write(run: Run, experiment: str, record: ShiftRecord, measurement: Measurement) -> None:
    facts, shift, name = record.facts, record.shift, record.facts.sampler
    title = (
        f"{experiment}/{name}: {facts.nfe} evaluations, {shift.images} images, {facts.weights} at "
        f"{facts.checkpoint_images} images"
    )
    with disk_errors(f"writing {run.shift(name)}", "free space and run the same command again"):
        write_json(run.shift(name), to_json(record))
        write_text(run.shift(name, ".csv"), as_csv(shift))
        write_bytes(run.shift(name, ".png"), as_png(shift, title))
        for probe in every_probe():
            found = measurement.probes.get(probe.kind)
            picture = None if found is None else probe.picture(found, title)
            if picture is not None:
                write_bytes(run.probe_picture(name, probe.kind), picture)
