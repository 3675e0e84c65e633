"""`snrkit run`: the whole path of one experiment."""

from pathlib import Path

from snrkit.checkpoints.ours import newest_checkpoint
from snrkit.config import Experiment
from snrkit.distributed import World
from snrkit.errors import SnrkitError
from snrkit.jobs.measuring import run_measuring
from snrkit.jobs.sampling import run_sampling
from snrkit.jobs.scoring import run_scoring
from snrkit.jobs.showing import show_report
from snrkit.jobs.training import run_training


def run_everything(experiment: Experiment, runs: Path, world: World, quiet: bool = False) -> None:
    """Train, sample, measure, score and report; each part goes on where it stopped."""
    if world.size > 1:
        raise SnrkitError("snrkit run works in one process; under torchrun use train, sample and eval-fid.")
    run = run_training(experiment, runs, world, quiet)
    newest = newest_checkpoint(run.checkpoints)
    if newest is None or int(newest.name) < experiment.train.images:
        return  # stopped: run_training has said how to go on
    run_sampling(experiment, runs, world, quiet=quiet)
    run_measuring(experiment, runs, world, quiet=quiet)
    run_scoring(experiment, runs, world, quiet=quiet)
    show_report(experiment, runs)
