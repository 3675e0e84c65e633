"""The training split of an experiment as measured states are compared with it (snrkit.shift.reference)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from snrkit.base.frequency import View
from snrkit.experiment.opening import Opened
from snrkit.shift.reference import READ_AT_ONCE, even_shares, moments_of
from snrkit.shift.reference import class_shares as shares_of


def class_shares(opened: Opened, labels: Tensor | None) -> Tensor:
    """The weights (n,) of the training images, summing to 1, that mix classes as `labels` does."""
    dataset, pool = opened.dataset, opened.split.train
    if labels is None or dataset.labels is None:
        return even_shares(len(pool))
    return shares_of(dataset.labels[torch.as_tensor(pool)], labels)


def weighted_images(opened: Opened, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training images in all the ways that training shows them, with their weights, mixed as `labels`."""
    pool, share = opened.split.train, class_shares(opened, labels)
    for part in torch.split(torch.arange(len(pool)), READ_AT_ONCE):
        for mirrored in opened.ways:
            yield opened.shown([pool[i] for i in part.tolist()], mirrored), share[part] / len(opened.ways)


def part_moments(opened: Opened, labels: Tensor | None, view: View) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of a view's coordinates over training images, mixed as `labels` (n,) mixes classes."""
    return moments_of(weighted_images(opened, labels), view)
