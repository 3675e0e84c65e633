"""Opening an experiment and its model for a command: what a user should know of either is said once.

Of the images what was changed as they were read, of a model whose code is the user's own that it is run.
"""

from functools import cache

from snrkit.base.distributed import World
from snrkit.commands.progress import console
from snrkit.data import AnySource, Latents
from snrkit.data.dataset import Dataset
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.models import FromElsewhere
from snrkit.experiment.opening import Model, Opened, open_experiment, open_model
from snrkit.experiment.run import Run


def open_aloud(experiment: Experiment, world: World) -> Opened:
    """As open_experiment; the leading process says what was changed of the images."""
    opened = open_experiment(experiment, world)
    say_conversions(opened.data.labelled, world)
    return opened


def open_model_aloud(opened: Opened, run: Run, images: int | None = None) -> Model:
    """As open_model; the leading process says which file of code is run for it."""
    model = opened.experiment.model
    if isinstance(model, FromElsewhere) and model.code is not None and opened.world.leads:
        _say(f"model: the code of {model.code} is run, as kind {model.source.kind} asks")
    return open_model(opened, run, images)


def confirm_images(source: AnySource, world: World) -> None:
    """Before a training on latents begins: read the images that it names, and refuse others, DataError; said once."""
    if isinstance(source, Latents) and source.unread and world.leads:
        _say("data.of: its images are read once, to see that the latents are of these")
        source.confirm()


def say_conversions(dataset: Dataset, world: World) -> None:
    """What was changed of images as they were read, in one line, unless this process said it before."""
    if world.leads and dataset.conversions:
        changes = ", ".join(f"{count:,} {words}" for words, count in dataset.conversions.items())
        _say(f"data: of the images read, {changes}")


@cache
def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
