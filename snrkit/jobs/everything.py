"""`snrkit run`: the whole path of one experiment."""

from pathlib import Path

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.config import Experiment
from snrkit.jobs.measuring import check_held_out, run_measuring
from snrkit.jobs.opening import open_experiment
from snrkit.jobs.sampling import check_samplers, choose, run_sampling
from snrkit.jobs.scoring import run_scoring
from snrkit.jobs.showing import show_report
from snrkit.jobs.training import run_training
from snrkit.metrics.extractors import check_features


def run_everything(experiment: Experiment, runs: Path, world: World, quiet: bool = False) -> None:
    """Train (but for a model from elsewhere), sample, measure, score and report; what cannot work is said first.

    Each part goes on where it stopped.
    """
    if world.size > 1:
        raise SnrkitError("snrkit run works in one process; under torchrun use train, sample and eval-fid.")
    choose(experiment, ())
    opened = open_experiment(experiment, world)
    check_held_out(opened)
    check_samplers(opened, list(opened.experiment.samplers))
    check_features(opened.experiment.metrics, opened.labelled)
    if experiment.model is None:
        run_training(experiment, runs, world, quiet)
    run_sampling(experiment, runs, world, quiet=quiet)
    run_measuring(experiment, runs, world, quiet=quiet)
    run_scoring(experiment, runs, world, quiet=quiet)
    show_report(experiment, runs)
