"""Levels by design: the grid of n steps on which fitted steps stay nearest to the network's flow.

The flow is recorded at candidate levels, x0_hat and eps_hat beside its states X. The best linear step from level i to
level j, with the eps of the level h before it, leaves

    C(h, i, j) = min_abc E |X_j - a x0_hat_i - b eps_hat_i - c eps_hat_h|^2,

which follows from the products of what was recorded, without another evaluation. An error at level j is A_j times as
large (in mean square) in the clean state; A is measured by moving recorded states. The grid is the path of n steps with
the least sum of A_j C(h, i, j), by dynamic programming over pairs of levels; the few best are kept, as steps are fitted
on states of their own in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.diffusion.process import Process
from snrkit.fitting.least_squares import solutions
from snrkit.sampling.flow import Flow, fine_flow, rms
from snrkit.sampling.sample import informed, sample, wrapped
from snrkit.sampling.solvers import Unipc
from snrkit.sampling.step import BeliefCorrection, Position

FEW = 16  # paths that are kept, as the cost of a step on the flow is not that on states that steps made
SMALLEST = 1e-3  # of a state's rms, for an error whose growth is measured


@dataclass(frozen=True, slots=True)
class Recorded:
    """The flow at N noisy levels and the clean one, and what the network says there."""

    process: Process
    levels: tuple[Level, ...]  # N + 1, of shape ()
    flow: Flow
    x0: Tensor  # (N, M, *)
    eps: Tensor  # (N, M, *)


@dataclass(frozen=True, slots=True)
class Path:
    """Places of levels among the candidates, from the first to the clean one, and what its steps cost."""

    places: tuple[int, ...]
    cost: float


def record_flow(
    denoise: Denoiser,
    levels: Sequence[Level],
    x: Tensor,
    cond: Cond | None = None,
    guidance: Sequence[BeliefCorrection] = (),
) -> Recorded:
    """The flow from states x (M, *) at levels[0], with what guides the network, at candidate levels."""
    flow = fine_flow(denoise, levels, x, cond, guidance)
    said = []
    for index, (here, there) in enumerate(pairwise(levels)):
        guided = informed(wrapped(denoise, guidance, Position(index, tuple(levels), here, there)), cond)
        said.append(guided(flow.states[index], here))
    return Recorded(
        denoise.process,
        tuple(levels),
        flow,
        torch.stack([part.x0 for part in said]),
        torch.stack([part.eps for part in said]),
    )


def step_costs(recorded: Recorded) -> tuple[Tensor, Tensor]:
    """(C(i, j) (N, N + 1) without history, C(h, i, j) (N, N, N + 1)), mean squares; inf where levels do not rise."""
    count, states = len(recorded.x0), torch.stack(recorded.flow.states)
    products = _products(torch.cat([recorded.x0, recorded.eps, states]))
    i, j = torch.arange(count), torch.arange(count + 1)
    plain = _left(products, torch.stack([i, count + i], 1)[:, None], (2 * count + j)[None])
    plain = torch.where(j[None] > i[:, None], plain, torch.inf)
    h, of_i = torch.meshgrid(i, i, indexing="ij")
    terms = torch.stack([of_i, count + of_i, count + h], -1)[:, :, None]
    history = _left(products, terms, (2 * count + j)[None, None])
    rises = (of_i > h)[..., None] & (j[None, None] > of_i[..., None])
    return plain, torch.where(rises, history, torch.inf)


def _products(vectors: Tensor) -> Tensor:
    """(V, V) mean products of vectors (V, M, *), image by image, on the CPU."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for image in range(vectors.shape[1]):
        flat = vectors[:, image].double().flatten(1)
        total += (flat @ flat.T).cpu()
    return total / vectors[0].numel()


def _left(products: Tensor, terms: Tensor, wanted: Tensor) -> Tensor:
    """What least squares leaves of the vectors `wanted` (..., J) by terms (..., 1, n), as indices of products."""
    gram = products[terms[..., :, None], terms[..., None, :]]
    along = products[terms, wanted[..., None]]
    gram = gram.expand(*along.shape, along.shape[-1])
    square = products.diagonal()[wanted]
    return (square - (solutions(gram, along) * along).sum(-1)).clamp(min=0)


def amplifications(
    denoise: Denoiser,
    recorded: Recorded,
    places: Sequence[int],
    cond: Cond | None = None,
    guidance: Sequence[BeliefCorrection] = (),
) -> Tensor:
    """(N + 1,) mean-square gains of an error at each candidate in the clean state, measured at `places`.

    The error is that of the best linear step from the place before; between places the logarithm is interpolated by
    the number of the level. That of the clean state is 1.
    """
    last, known = len(recorded.x0), {len(recorded.x0): 0.0}
    for before, place in pairwise(places):
        if 0 < place < last:
            known[place] = float(_gain(denoise, recorded, before, place, cond, guidance).log())
    known.setdefault(0, known[min(known)])
    at = sorted(known)
    gains = torch.zeros(last + 1, dtype=torch.float64)
    for low, high in pairwise(at):
        share = torch.linspace(0, 1, high - low + 1, dtype=torch.float64)
        gains[low : high + 1] = known[low] + share * (known[high] - known[low])
    return gains.exp()


def _gain(
    denoise: Denoiser,
    recorded: Recorded,
    before: int,
    place: int,
    cond: Cond | None,
    guidance: Sequence[BeliefCorrection],
) -> Tensor:
    state = recorded.flow.states[place]
    terms = torch.stack([recorded.x0[before].flatten(), recorded.eps[before].flatten()]).double()
    made = (solutions(terms @ terms.T, terms @ state.flatten().double()) @ terms).reshape(state.shape).to(state)
    error = made - state
    if not rms(error):
        error = recorded.eps[place]
    error = error * max(1.0, SMALLEST * rms(state) / rms(error))  # above what walking it twice would round

    def clean(x: Tensor) -> Tensor:
        steps = range(place, len(recorded.levels) - 1)
        for step in sample(denoise, Unipc(p=3), recorded.levels, x, corrections=guidance, cond=cond, steps=steps):
            x = step.x_next
        return x

    return torch.tensor((rms(clean(state + error) - clean(state)) / rms(error)) ** 2, dtype=torch.float64)


def best_paths(plain: Tensor, history: Tensor, gains: Tensor, steps: int, few: int = FEW) -> list[Path]:
    """The least paths of `steps` steps from level 0 to the clean one, one for each last level, the best first.

    `plain` (N, N + 1) and `history` (N, N, N + 1) are the costs of steps, `gains` (N + 1,) what an error at their ends
    is multiplied by.
    """
    count = len(plain)
    value = torch.full((count, count + 1), torch.inf, dtype=torch.float64)  # of the last two levels
    value[0] = plain[0] * gains
    came: list[Tensor] = []
    weighted = history * gains
    for _ in range(steps - 1):
        value, before = (value[:, :count, None] + weighted).min(0)
        came.append(before)
    ends = [Path(_followed(came, int(i), count), float(value[i, count])) for i in value[:, count].argsort()[:few]]
    return [path for path in ends if path.cost < torch.inf]


def _followed(came: Sequence[Tensor], last: int, clean: int) -> tuple[int, ...]:
    """The path that ends with a step from `last` to the clean level."""
    places = [clean, last]
    for before in reversed(came):
        places.append(int(before[places[-1], places[-2]]))
    return tuple(reversed(places))
