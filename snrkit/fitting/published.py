"""Levels by design as two papers have it, to set beside those of fitting/design.py: of plain steps, nothing fitted.

GITS (Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling", arXiv 2405.11326). A trajectory
bends in a plane; with dev the distance of a state from the line through the first and the clean one, in EDM's scaling,
a step of Euler from level i to level j costs

    c_ij = E dev(x_i + (sigma_j - sigma_i) eps_i) - E dev(x_j),

and the grid is the path of n steps with the least c_1 + g (c_2 + g (c_3 + ...)), g = 1.15.

OSS (Pei et al. 2025, "Optimal stepsize for diffusion sampling", arXiv 2503.21774). For each first state on its own, by
dynamic programming over the number k of steps: of all states that k - 1 steps brought to a level i, the one whose next
step comes nearest to the flow at j is kept there. The grid is the median of the paths of many first states, step by
step; of an even count, as released, the place below the middle of both. Every path begins at the first level: the
released search may begin at a later one with the same state, which no sampler of a grid does.

Both have their trajectories from a teacher of a fixed number of steps, and here from the flow at candidate levels.
"""

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.fitting.design import AtLevels
from snrkit.sampling.flow import in_rows

GITS_GAIN = 1.15  # how often what follows a step counts beside it


def gits_costs(network: AtLevels, flow: tuple[Tensor, ...], batch: int) -> Tensor:
    """(N + 1, N + 1) mean costs of steps of Euler between levels, of flow states (M, *); inf where none rises."""
    last = len(flow) - 1
    total, own = torch.zeros(last + 1, last + 1, dtype=torch.float64), torch.zeros(last + 1, dtype=torch.float64)
    for rows in in_rows(len(flow[0]), batch):
        of, states = network.of(rows), [state[rows] for state in flow]
        line = _Line(states, network.levels)
        for j in range(1, last):
            own[j] += line.deviations(states[j] / network.levels[j].alpha).sum().cpu()
        for i in range(last):
            said = of.says(i, states[i])
            for j in range(i + 1, last + 1):
                level = network.levels[j]
                total[i, j] += line.deviations(said.x0 + level.sigma / level.alpha * said.eps).sum().cpu()
    rises = torch.arange(last + 1)[None] > torch.arange(last + 1)[:, None]
    return torch.where(rises, (total - own) / len(flow[0]), torch.inf)


class _Line:
    """The lines between first and clean states, in EDM's scaling; at pure noise along the noise."""

    def __init__(self, states: list[Tensor], levels: tuple[Level, ...]) -> None:
        self.clean = (states[-1] / levels[-1].alpha).flatten(1).double()
        along = levels[0].alpha * self.clean - states[0].flatten(1).double()
        self.along = along / along.norm(dim=1, keepdim=True)

    def deviations(self, x: Tensor) -> Tensor:
        """How far states x (M, *), over alpha, lie from their lines: (M,)."""
        away = self.clean - x.flatten(1).double()
        across = away - (away * self.along).sum(1, keepdim=True) * self.along
        found: Tensor = torch.linalg.vector_norm(across, dim=1)
        return found


def gits_path(costs: Tensor, steps: int, gain: float = GITS_GAIN) -> tuple[int, ...]:
    """The places of the levels of the best path of `steps` steps from the first to the last."""
    count = len(costs)
    value = costs[:, -1].clone()  # of what is left from each level, by one step
    taken: list[Tensor] = []
    for _ in range(steps - 1):
        onward = costs + gain * value[None]
        onward[:, -1] = torch.inf  # the last level is reached by the last step
        value, following = onward.min(1)
        taken.append(following)
    places = [0]
    for following in reversed(taken):
        places.append(int(following[places[-1]]))
    return (*places, count - 1)


def oss_path(network: AtLevels, flow: tuple[Tensor, ...], steps: int, batch: int) -> tuple[int, ...]:
    """The places of the levels of the median path over first states (M, *) of the flow.

    Of at most `steps` steps: where another step brings nothing nearer, a path has fewer.
    """
    last, paths = len(flow) - 1, []
    for rows in in_rows(len(flow[0]), batch):
        paths.append(_oss_paths(network.of(rows), [state[rows] for state in flow], steps))
    each = last - torch.cat(paths, 1)  # (steps, M), counted from the clean level as in the paper
    ordered, half = each.sort(1).values, each.shape[1] // 2
    middle = ordered[:, half] if half == 0 else (ordered[:, half] + ordered[:, half - 1]) // 2
    return tuple(sorted({*(last - middle).tolist(), last}))


def _oss_paths(network: AtLevels, flow: list[Tensor], steps: int) -> Tensor:
    """(steps, M) places from which the steps of the best paths begin, the last step first."""
    last, images = len(flow) - 1, len(flow[0])
    reached, costs = [flow[0]] * (last + 1), torch.full((last + 1, images), torch.inf, dtype=torch.float64)
    came = torch.zeros(last + 1, images, dtype=torch.int64)
    steps_back: list[Tensor] = []
    for k in range(steps):
        found, came = list(reached), came.clone()
        for i in range(last if k else 1):
            said = network.says(i, reached[i])
            for j in range(i + 1, last + 1):
                alpha, sigma = network.levels[j].scales(said.x0)
                x = alpha * said.x0 + sigma * said.eps
                cost = (x - flow[j]).square().flatten(1).mean(1).double().cpu()
                nearer = cost < costs[j]
                costs[j] = torch.where(nearer, cost, costs[j])
                came[j] = torch.where(nearer, i, came[j])
                found[j] = torch.where(nearer.to(x.device).reshape(-1, *[1] * (x.ndim - 1)), x, found[j])
        reached = found
        steps_back.append(came)
    place, path = torch.full((images,), last), []
    for came in reversed(steps_back):
        place = came[place, torch.arange(images)]
        path.append(place)
    return torch.stack(path)
