"""`snrkit run`: the whole path of one experiment."""

from pathlib import Path

from snrkit.base.distributed import World
from snrkit.commands.eval_fid import run_scoring
from snrkit.commands.measure_shift import run_measuring
from snrkit.commands.opening import open_aloud
from snrkit.commands.progress import bar
from snrkit.commands.sample import check_images, check_samplers, choose, run_sampling
from snrkit.commands.train import run_training
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.instrument import check_beside, check_probes
from snrkit.experiment.run import Run
from snrkit.metrics.extractors import check_features
from snrkit.reports.blocks import Table
from snrkit.reports.terminal import make_report


def run_everything(experiment: Experiment, runs: Path, world: World, quiet: bool = False) -> tuple[Path, Table]:
    """Train (but for a model from elsewhere), sample, measure, score and report; what cannot work is said first.

    Each part goes on where it stopped. Returns the path of the report, and its table.
    """
    world.check_alone("run", "under torchrun use train, sample and eval-fid")
    choose(experiment, ())
    opened = open_aloud(experiment, world, quiet)
    check_beside(opened.setting, opened.experiment)
    check_images(opened.setting)
    check_samplers(opened.setting, opened.experiment.samplers)
    check_probes(opened.experiment, Run(runs / experiment.name), list(opened.experiment.samplers))
    check_features(opened.experiment.metrics, opened.data.labelled)
    if experiment.model.trains:
        run_training(experiment, runs, world, quiet)
    run_sampling(experiment, runs, world, quiet=quiet)
    run_measuring(experiment, runs, world, quiet=quiet)
    run_scoring(experiment, runs, world, quiet=quiet)
    with bar("writing the report", shown=not quiet):
        return make_report(experiment, runs)
