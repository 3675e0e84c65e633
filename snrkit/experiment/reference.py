"""What measured states are compared with: moments of the training split, and images that match labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.frequency import View
from snrkit.base.streams import MATCHING
from snrkit.experiment.images import OpenedData


def class_shares(data: OpenedData, labels: Tensor | None) -> Tensor:
    """The weights (n,) of the training images, summing to 1, that mix classes as `labels` does."""
    dataset, pool = data.dataset, data.split.train
    if labels is None or dataset.labels is None:
        return torch.full((len(pool),), 1 / len(pool), dtype=torch.float64)
    own = dataset.labels[torch.as_tensor(pool)]
    classes = max(dataset.classes, int(labels.max()) + 1)
    wanted = torch.bincount(labels.cpu(), minlength=classes).double() / len(labels)
    return (wanted / torch.bincount(own, minlength=classes).clamp(min=1))[own]


def part_moments(data: OpenedData, labels: Tensor | None, view: View, batch: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of a view's coordinates over training images, mixed as `labels` (n,) mixes classes."""
    pool, share = data.split.train, class_shares(data, labels)
    mean = square = torch.zeros(len(view.parts), dtype=torch.float64)
    for part in torch.split(torch.arange(len(pool)), batch):
        for mirrored in data.ways:
            coordinates = view.coordinates(data.shown([pool[i] for i in part.tolist()], mirrored).double())
            weight = share[part] / len(data.ways)
            mean, square = mean + weight @ coordinates, square + weight @ coordinates.square()
    return mean, square - mean**2


def by_part(view: View, values: Tensor) -> Tensor:
    """Means (G,) of values (D,) over each part."""
    sizes = torch.bincount(view.parts).double()
    return values.new_zeros(len(sizes)).index_add_(0, view.parts, values) / sizes


def matching(known: Tensor | None, pool: Sequence[int], labels: Tensor | None, count: int) -> Tensor:
    """(count,) indices from `pool` in an order of their own, cycled; with `labels`, the j-th has the j-th label.

    The order is shuffled, as files often lie sorted by class or origin. SnrkitError where no image has a label.
    """
    images = MATCHING.open(len(pool)).permutation(np.asarray(pool))
    if labels is None or known is None:
        return torch.from_numpy(images[np.arange(count) % len(images)])
    own = known.numpy()[images]
    chosen = np.zeros(count, dtype=np.int64)
    for label in np.unique(labels.numpy()):
        places, same = np.flatnonzero(labels.numpy() == label), images[own == label]
        if len(same) == 0:
            raise SnrkitError(
                f"no image of one side of the split has label {label}; change data.holdout or set sample.labels."
            )
        chosen[places] = same[np.arange(len(places)) % len(same)]
    return torch.from_numpy(chosen)
