"""`snrkit validate --data`: the images that experiments name, opened as the other commands would."""

from collections.abc import Sequence

from snrkit.base.distributed import World
from snrkit.base.outline import outlined
from snrkit.commands.opening import open_aloud
from snrkit.experiment.experiment import Experiment


def images_of(experiments: Sequence[Experiment], world: World) -> list[str]:
    """A line on each set of images. SnrkitError where one cannot be read, or the network cannot take it."""
    lines = {}
    for e in experiments:
        asked = e.model_dump_json(include={"data", "seed", "model"})
        if asked not in lines:
            data = open_aloud(e, world).data
            if e.model.trains:
                with outlined():
                    e.training.make(data.dataset.shape, 0)
            split = f"{len(data.split.train):,} to train on, {len(data.split.held):,} held out"
            lines[asked] = f"data: {data.dataset.count:,} images {data.dataset.shape}, {split}"
    return list(dict.fromkeys(lines.values()))
