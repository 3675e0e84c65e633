"""Opening an experiment for a command: what was changed of its images as they were read is said once."""

from functools import cache

from snrkit.base.distributed import World
from snrkit.commands.progress import console
from snrkit.data.dataset import Dataset
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.opening import Opened, open_experiment


def open_aloud(experiment: Experiment, world: World) -> Opened:
    """As open_experiment; the leading process says what was changed of the images."""
    opened = open_experiment(experiment, world)
    say_conversions(opened.data.labelled, world)
    return opened


def say_conversions(dataset: Dataset, world: World) -> None:
    """What was changed of images as they were read, in one line, unless this process said it before."""
    if world.leads and dataset.conversions:
        changes = ", ".join(f"{count:,} {words}" for words, count in dataset.conversions.items())
        _say(f"data: of the images read, {changes}")


@cache
def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
