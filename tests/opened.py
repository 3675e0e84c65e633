"""Parts of an opened experiment, as tests ask for them."""

from snrkit.experiment import opening
from snrkit.experiment.instrument import Instrument
from snrkit.experiment.trajectories import trajectories


def open_task(found):
    """What its training is surrounded by."""
    return found.task()


def open_network(found):
    """The network that it trains, fresh."""
    return found.network()


def level_sampler(found):
    """Where its training looks."""
    return opening.level_sampler(found.experiment.levels, found.data)


def instrument(found, model, seeds):
    """What measures a model of it."""
    return Instrument(trajectories(found, model), found.experiment.shift, seeds)
