"""The training split of an experiment as measured states are compared with it (snrkit.shift.reference)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from snrkit.base.frequency import View
from snrkit.experiment.images import OpenedData
from snrkit.shift.reference import even_shares, moments_of, shares_by_class
from snrkit.shift.spread import at_once


def class_shares(data: OpenedData, labels: Tensor | None) -> Tensor:
    """The weights (n,) of the training images, summing to 1, that mix classes as `labels` does."""
    dataset, pool = data.dataset, data.split.train
    if labels is None or dataset.labels is None:
        return even_shares(len(pool))
    return shares_by_class(dataset.labels[torch.as_tensor(pool)], labels)


def weighted_images(data: OpenedData, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training images in all the ways that training shows them, with their weights, mixed as `labels`."""
    pool, share = data.split.train, class_shares(data, labels)
    for part in torch.split(torch.arange(len(pool)), at_once(data.dataset.shape)):
        for mirrored in data.ways:
            yield data.shown([pool[i] for i in part.tolist()], mirrored), share[part] / len(data.ways)


def part_moments(data: OpenedData, labels: Tensor | None, view: View) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of a view's coordinates over training images, mixed as `labels` (n,) mixes classes."""
    return moments_of(weighted_images(data, labels), view)
