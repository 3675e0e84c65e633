"""Levels by design: the grid of n steps on which fitted steps stay nearest to the network's flow.

The flow is recorded at candidate levels, x0_hat and eps_hat beside its states X. The best linear step from level i to
level j, with the eps of the level h before it, leaves

    C(h, i, j) = min_abc E |X_j - a x0_hat_i - b eps_hat_i - c eps_hat_h|^2,

which follows from the products of these, without another evaluation; they are summed image by image, so that of all
first states X alone is held. An error at level j is A_j times as large (in mean square) in the clean state; A is
measured by moving recorded states. The grid is the path of n steps with the least sum of A_j C(h, i, j), by dynamic
programming over pairs of levels; the few best are kept, as steps are fitted on states of their own in the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser, Prediction
from snrkit.diffusion.process import Process
from snrkit.fitting.least_squares import at_once, solutions
from snrkit.sampling.flow import Flow, fine_flow, in_rows, rms
from snrkit.sampling.sample import informed, sample, wrapped
from snrkit.sampling.solvers import Unipc
from snrkit.sampling.step import BeliefCorrection, Position

FEW = 16  # paths that are kept, as the cost of a step on the flow is not that on states that steps made
SMALLEST = 1e-3  # of a state's rms, for an error whose growth is measured


@dataclass(frozen=True, slots=True)
class Recorded:
    """The flow at N noisy levels and the clean one, and its products with what the network says there."""

    process: Process
    levels: tuple[Level, ...]  # N + 1, of shape ()
    flow: Flow  # at all of them
    products: Tensor  # (3N + 1, 3N + 1), means of those of x0_hat and eps_hat at N levels and of all states


@dataclass(frozen=True, slots=True)
class Path:
    """Places of levels among the candidates, from the first to the clean one, and what its steps cost."""

    places: tuple[int, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class AtLevels:
    """A network as it is asked of some first states at candidate levels."""

    denoise: Denoiser
    levels: tuple[Level, ...]
    cond: Cond | None
    guidance: Sequence[BeliefCorrection]

    def of(self, rows: slice) -> "AtLevels":
        """As it is asked of some of the states."""
        return self if self.cond is None else replace(self, cond=self.cond.at(rows))

    def says(self, place: int, x: Tensor) -> Prediction:
        """What it says of states x (M, *) at a noisy level."""
        position = Position(place, self.levels, self.levels[place], self.levels[place + 1])
        return informed(wrapped(self.denoise, self.guidance, position), self.cond)(x, self.levels[place])

    def clean(self, place: int, x: Tensor) -> Tensor:
        """Where its flow takes states x (M, *) from a level."""
        steps = range(place, len(self.levels) - 1)
        walk = sample(self.denoise, Unipc(p=3), self.levels, x, corrections=self.guidance, cond=self.cond, steps=steps)
        for step in walk:
            x = step.x_next
        return x


def record_flow(
    denoise: Denoiser,
    levels: Sequence[Level],
    x: Tensor,
    cond: Cond | None = None,
    guidance: Sequence[BeliefCorrection] = (),
    batch: int | None = None,
) -> Recorded:
    """The flow from states x (M, *) at levels[0], with what guides the network, at candidate levels.

    The states of the flow alone are held for all M; `batch` of them, all by default, are walked at a time.
    """
    flow = fine_flow(denoise, levels, x, cond, guidance, batch=batch)
    guided = AtLevels(denoise, tuple(levels), cond, guidance)
    return Recorded(denoise.process, guided.levels, flow, _products(guided, flow.states, batch))


def _products(guided: AtLevels, states: Sequence[Tensor], batch: int | None) -> Tensor:
    """(V, V) mean products of x0_hat, of eps_hat and of the states (M, *), summed image by image, on the CPU."""
    images, count = len(states[0]), len(states) - 1
    together = at_once(2 * count * states[0][0].numel())
    total = torch.zeros(3 * count + 1, 3 * count + 1, dtype=torch.float64)
    for rows in in_rows(images, together if batch is None else min(together, batch)):
        _add_products(total, guided.of(rows), [state[rows] for state in states])
    return total / states[0].numel()


def _add_products(total: Tensor, guided: AtLevels, states: Sequence[Tensor]) -> None:
    """Add the products of some images; what the network says of them is held for no longer."""
    said = [guided.says(place, state) for place, state in enumerate(states[:-1])]
    vectors = [*(part.x0 for part in said), *(part.eps for part in said), *states]
    for image in range(len(states[0])):
        flat = torch.stack([vector[image].flatten() for vector in vectors]).double()
        total += (flat @ flat.T).cpu()


def step_costs(recorded: Recorded) -> tuple[Tensor, Tensor]:
    """(C(i, j) (N, N + 1) without history, C(h, i, j) (N, N, N + 1)), mean squares; inf where levels do not rise."""
    count, products = len(recorded.levels) - 1, recorded.products
    i, j = torch.arange(count), torch.arange(count + 1)
    plain = _left(products, torch.stack([i, count + i], 1)[:, None], (2 * count + j)[None])
    plain = torch.where(j[None] > i[:, None], plain, torch.inf)
    history = torch.full((count, count, count + 1), torch.inf, dtype=torch.float64)
    for h in range(count):
        terms = torch.stack([i, count + i, torch.full_like(i, count + h)], 1)[:, None]
        rises = (i > h)[:, None] & (j > i[:, None])
        history[h] = torch.where(rises, _left(products, terms, (2 * count + j)[None]), torch.inf)
    return plain, history


def _left(products: Tensor, terms: Tensor, wanted: Tensor) -> Tensor:
    """What least squares leaves of the vectors `wanted` (..., J) by terms (..., 1, n), as indices of products."""
    gram = products[terms[..., :, None], terms[..., None, :]]
    along = products[terms, wanted[..., None]]
    square = products.diagonal()[wanted]
    return (square - (solutions(gram, along) * along).sum(-1)).clamp(min=0)


def amplifications(
    denoise: Denoiser,
    recorded: Recorded,
    places: Sequence[int],
    cond: Cond | None = None,
    guidance: Sequence[BeliefCorrection] = (),
    batch: int | None = None,
) -> Tensor:
    """(N + 1,) mean-square gains of an error at each candidate in the clean state, measured at `places`.

    The error is that of the best linear step from the place before; between places the logarithm is interpolated by
    the number of the level. That of the clean state is 1. States are moved `batch` at a time, all at once by default.
    """
    guided, last = AtLevels(denoise, recorded.levels, cond, guidance), len(recorded.levels) - 1
    known = {last: 0.0}
    for before, place in pairwise(places):
        if 0 < place < last:
            known[place] = math.log(_gain(guided, recorded, before, place, batch))
    known.setdefault(0, known[min(known)])
    at = sorted(known)
    gains = torch.zeros(last + 1, dtype=torch.float64)
    for low, high in pairwise(at):
        share = torch.linspace(0, 1, high - low + 1, dtype=torch.float64)
        gains[low : high + 1] = known[low] + share * (known[high] - known[low])
    return gains.exp()


def _gain(guided: AtLevels, recorded: Recorded, before: int, place: int, batch: int | None) -> float:
    state = recorded.flow.states[place]
    error = _error(guided, recorded, before, place, batch)
    size = rms(error)
    moved = max(size, SMALLEST * rms(state))  # above what walking it twice would round
    grown = torch.zeros((), dtype=torch.float64, device=state.device)
    for rows in in_rows(len(state), batch):
        own, here = guided.of(rows), state[rows]
        grown += (own.clean(place, here + error[rows] * (moved / size)) - own.clean(place, here)).square().sum()
    return float(grown) / state.numel() / moved**2


def _error(guided: AtLevels, recorded: Recorded, before: int, place: int, batch: int | None) -> Tensor:
    """(M, *): that of the best linear step between two places; eps_hat where it has none."""
    states, products, count = recorded.flow.states, recorded.products, len(recorded.levels) - 1
    terms = torch.tensor([before, count + before])
    x0, eps = solutions(products[terms[:, None], terms], products[terms, 2 * count + place]).tolist()
    error, all_rows = torch.empty_like(states[place]), list(in_rows(len(states[place]), batch))
    for rows in all_rows:
        said = guided.of(rows).says(before, states[before][rows])
        error[rows] = x0 * said.x0.double() + eps * said.eps.double() - states[place][rows]
    if not rms(error):
        for rows in all_rows:
            error[rows] = guided.of(rows).says(place, states[place][rows]).eps
    return error


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
