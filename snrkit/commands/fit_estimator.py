"""`snrkit fit-estimator`: the estimator of levels of a run, trained on forward samples of its training split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from snrkit.base.distributed import World
from snrkit.base.errors import Stopped
from snrkit.base.files import disk_errors
from snrkit.base.records import to_json
from snrkit.base.sealed import write_json
from snrkit.base.signals import stoppable
from snrkit.base.streams import ESTIMATOR_HELD, ESTIMATOR_TRAIN, Stream
from snrkit.base.tensors import write_tensors
from snrkit.commands.opening import open_aloud
from snrkit.commands.progress import bar
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.instrument import check_held_out
from snrkit.experiment.lock import locked
from snrkit.experiment.opening import Setting
from snrkit.experiment.run import Run
from snrkit.experiment.sources import FittedEstimator, fitted_on
from snrkit.experiment.stored import trained_run
from snrkit.shift.estimator import MARGIN, calibrate, fit, make_estimator

CALIBRATION_IMAGES = 4096


def run_estimating(experiment: Experiment, runs: Path, world: World, quiet: bool = False) -> FittedEstimator:
    """Fit, calibrate on held-out images and save; returns the calibration."""
    world.check_alone("fit-estimator")
    opened = open_aloud(experiment, world, quiet)
    setting, e = opened.setting, opened.experiment
    data, config = setting.data, e.shift.estimator
    check_held_out(data)
    run = trained_run(runs, e, data.dataset.fingerprint)
    with locked(run):
        estimator = make_estimator(config, e.process.bounds, data.dataset.shape[0], e.seed)
        batches = forward_batches(setting, data.split.train, config.batch, ESTIMATOR_TRAIN)
        with stoppable() as stop, bar("fitting the estimator", config.images, not quiet) as progress:
            for images, loss in fit(estimator, batches, config, world.device):
                progress.update(images, f"cross-entropy {loss:.3f}")
                if stop.asked:
                    text = "stopped; nothing is saved. To fit the estimator, run the same command again."
                    raise Stopped(text, stop.code)
        states, logsnr = next(forward_batches(setting, data.split.held, CALIBRATION_IMAGES, ESTIMATOR_HELD))
        found = calibrate(estimator, states, logsnr)
        record = FittedEstimator(found.error, found.coverage, fitted_on(config, setting))
        with disk_errors(f"writing {run.estimator}", "free space and run the same command again"):
            save_estimator(run, estimator.network.state_dict(), record)
    return record


def forward_batches(
    setting: Setting, pool: Sequence[int], batch: int, stream: Stream
) -> Iterator[tuple[Tensor, Tensor]]:
    """(states (batch, *), logsnr (batch,)) of images from `pool`, at levels uniform in logsnr, a MARGIN wide."""
    process = setting.parts.process
    low, high = process.bounds[0] - MARGIN, process.bounds[1] + MARGIN
    step = 0
    while True:
        rng = stream.open(setting.seed, step)
        rows = [pool[i] for i in rng.integers(len(pool), size=batch).tolist()]
        logsnr = low + (high - low) * torch.from_numpy(rng.random(batch))
        x0 = setting.data.shown(rows)
        alpha, sigma = process.level(logsnr).scales(x0.double())
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype="float32"))
        yield alpha * x0.double() + sigma * noise, logsnr
        step += 1


def save_estimator(run: Run, tensors: dict[str, Tensor], record: FittedEstimator) -> None:
    """Write weights, then the record that says they are complete."""
    write_tensors(run.estimator / "network.safetensors", tensors, record.what)
    write_json(run.estimator / "estimator.json", to_json(record))
