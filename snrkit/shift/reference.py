"""What states are compared with: moments of the images that were trained on, and real images that match labels."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.frequency import View, views
from snrkit.base.streams import MATCHING
from snrkit.diffusion.process import Process
from snrkit.shift.bootstrap import FEWEST
from snrkit.shift.measure import Reference
from snrkit.shift.nearest import GaussianFit
from snrkit.shift.spread import at_once

Weighted = Iterator[tuple[Tensor, Tensor]]
"""Batches of images (n, C, H, W), each with their weights (n,), which sum to 1 over all batches."""


def even_shares(count: int) -> Tensor:
    """Equal weights (n,)."""
    return torch.full((count,), 1 / count, dtype=torch.float64)


def shares_by_class(known: Tensor, labels: Tensor) -> Tensor:
    """The weights (n,), summing to 1, that mix the classes of images with labels `known` (n,) as `labels` (B,) does."""
    classes = max(int(known.max()), int(labels.max())) + 1
    wanted = torch.bincount(labels.cpu(), minlength=classes).double() / len(labels)
    return (wanted / torch.bincount(known, minlength=classes).clamp(min=1))[known]


def moments_of(batches: Weighted, view: View) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of a view's coordinates."""
    mean = square = torch.zeros(len(view.parts), dtype=torch.float64)
    for x0, weight in batches:
        coordinates = view.coordinates(x0.double())
        mean, square = mean + weight @ coordinates, square + weight @ coordinates.square()
    return mean, square - mean**2


def by_part(view: View, values: Tensor) -> Tensor:
    """Means (G,) of values (D,) over each part."""
    sizes = torch.bincount(view.parts).double()
    return values.new_zeros(len(sizes)).index_add_(0, view.parts, values) / sizes


def make_reference(process: Process, trained: Callable[[], Weighted], held: Tensor) -> Reference:
    """Var[x0] by part and the Gaussian fit of trained images, which are read once a view; the true x0 of those held."""
    channels, height, width = held.shape[1:]
    found = [(view, *moments_of(trained(), view)) for view in views((channels, height, width))]
    known = [(view, by_part(view, spread)) for view, _, spread in found]
    _, mean, spread = found[-1]  # the rings' coordinates, or pixels where there are none
    squares = [part.double().square().flatten(1).mean(1) for part in torch.split(held, at_once(held.shape[1:]))]
    return Reference(known, GaussianFit(process, mean, spread), torch.cat(squares))


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


def scarce(rows: Tensor, labels: Tensor | None) -> str | None:
    """Why intervals cannot rest on the images `rows` (n,) that stand beside n trajectories; None where they can.

    The bootstrap draws images, over all labels at once and not within each. So as many as FEWEST must be used, and an
    image beside several trajectories is drawn or left out with all of them: none may stand beside more than n/FEWEST,
    rounded up. A label that a share s of the trajectories have therefore needs s * FEWEST images.
    """
    images, beside = rows.unique(return_counts=True)  # type: ignore[no-untyped-call]
    if len(images) < FEWEST:
        return f"{len(images)} of its images stand beside {len(rows)} trajectories; intervals need {FEWEST} at least"
    most, allowed = int(beside.max()), math.ceil(len(rows) / FEWEST)
    if most <= allowed:
        return None
    of = "" if labels is None else f" of label {int(labels[rows == images[beside.argmax()]][0])}"
    return f"one image{of} stands beside {most} of {len(rows)} trajectories; intervals allow {allowed}"
