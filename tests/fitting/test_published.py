"""GITS and OSS against plain transcriptions of what their authors released, and what their paths minimise."""

from itertools import combinations, pairwise

import pytest
import torch

from snrkit.commands.design import published_grid
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.diffusion.process import Edm, Flow
from snrkit.fitting.design import AtLevels
from snrkit.fitting.published import gits_costs, gits_path, oss_path
from snrkit.sampling.flow import fine_flow
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.refine import refined
from snrkit.sampling.sample import start
from tests.exact import mixture
from tests.fitting.test_design import DENOISE, first_states, states

STEPS = 3


def network(process, denoise):
    """(the denoiser at nine candidates, its flow there from 10 first states)."""
    grid = Karras(steps=4) if process.kind == "edm" else UniformTime(steps=4)
    levels = refined(grid.levels(process), process, 2).levels
    x = start(process, states(3, noises=10), levels[0])
    return AtLevels(denoise, levels, None, ()), fine_flow(denoise, levels, x).states


def deviation(trajectory):
    """As released: (B, n, *) -> the distances of inner points from the line through the ends."""
    a, b, c = trajectory[:, 1:-1], trajectory[:, :1], trajectory[:, -1:]
    ac, bc = (c - a).flatten(2), (c - b).flatten(2)
    unit = bc / bc.norm(dim=2, keepdim=True)
    return (ac - (ac * unit).sum(2, keepdim=True) * unit).norm(dim=2)


def test_costs_of_gits_are_those_of_its_authors():
    """In EDM's own scaling: how much farther from the line a step of Euler ends than the trajectory is, on average."""
    edge, flow = network(Edm(), DENOISE)
    levels, last = edge.levels, len(flow) - 1
    teacher = torch.stack(flow, 1)
    own = torch.cat([deviation(teacher).mean(0), torch.zeros(1)])
    found = gits_costs(edge, flow, 4)
    for i in range(last):
        eps = DENOISE(flow[i], levels[i]).eps
        for j in range(i + 1, last + 1):
            stepped = flow[i] + (levels[j].sigma - levels[i].sigma) * eps
            wanted = deviation(torch.stack([flow[0], stepped, flow[-1]], 1))[:, 0].mean() - own[j - 1]
            assert float(found[i, j]) == pytest.approx(float(wanted), rel=1e-9, abs=1e-12)
    assert bool(found.tril().isinf().eq(torch.ones_like(found).tril().bool()).all())


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_path_of_gits_is_the_least_of_all(steps):
    """By trying every path: c_1 + g (c_2 + g (c_3 + ...))."""
    costs = torch.rand(9, 9, generator=torch.Generator().manual_seed(steps), dtype=torch.float64).triu(1)
    costs = costs.where(costs > 0, torch.inf)

    def whole(path):
        found = 0.0
        for i, j in reversed(list(pairwise(path))):
            found = float(costs[i, j]) + 1.15 * found
        return found

    every = [(0, *inner, 8) for inner in combinations(range(1, 8), steps - 1)]
    assert gits_path(costs, steps) == min(every, key=whole)


def oss_of_one(edge, flow, image, steps):
    """A transcription of the released search for one image, in its own indices: 0 is clean; from the first level."""
    last = len(flow) - 1
    levels, teacher = edge.levels[::-1], [state[image : image + 1] for state in flow[::-1]]
    came = [[last] * (last + 1) for _ in range(steps + 1)]
    least = [[float("inf")] * (last + 1) for _ in range(steps + 1)]
    before = [teacher[last]] * (last + 1)
    after = list(before)
    for k in range(steps):
        for i in reversed(range(1, last + 1)) if k else [last]:
            said = edge.denoise(before[i], levels[i])
            for j in reversed(range(i)):
                x = levels[j].alpha * said.x0 + levels[j].sigma * said.eps
                cost = float((x - teacher[j]).square().mean())
                if cost < least[k][j]:
                    least[k][j], came[k][j], after[j] = cost, i, x
        least[k + 1], came[k + 1], before = list(least[k]), list(came[k]), list(after)
    path = [0]
    for k in reversed(range(steps)):
        path.append(came[k][path[-1]])
    return path[1:]


@pytest.mark.parametrize("process", [Edm(), Flow()], ids=lambda process: process.kind)
@pytest.mark.parametrize("batch", [3, 100])
def test_the_path_of_oss_is_the_median_of_those_of_its_authors(process, batch):
    """Over ten first states, however they are divided; counted from the clean level, halves rounded down."""
    edge, flow = network(process, mixture(process, variance=0.1))
    paths = [sorted(values) for values in zip(*(oss_of_one(edge, flow, n, STEPS) for n in range(10)), strict=True)]
    median = [(values[5] + values[4]) // 2 for values in paths]
    last = len(flow) - 1
    assert median[-1] == last
    assert oss_path(edge, flow, STEPS, batch) == tuple(sorted({last, *(last - place for place in median)}))


@pytest.mark.parametrize("by", ["gits", "oss"])
def test_a_published_grid_is_a_list_of_levels(by):
    """From the sampler's first level, of as many steps, and of other levels than its own."""
    given = first_states(DENOISE, 5, 1)
    own = [float(level.logsnr) for level in given.levels]
    found = [float(level.logsnr) for level in published_grid(given, by).levels(Edm())]
    assert found[0] == pytest.approx(own[0])
    assert found[-1] == float("inf")
    assert len(found) == len(own) if by == "gits" else len(found) <= len(own)
    assert len(found) != len(own) or found != pytest.approx(own)


@pytest.mark.parametrize("by", ["gits", "oss"])
def test_a_published_grid_may_begin_at_pure_noise_and_be_guided(by):
    """Of a flow, whose first level has no scale of EDM's; by labels, in batches, as it is sampled."""
    process, answer = Flow(), mixture(Flow(), variance=0.1)
    other, labels = mixture(Flow(), variance=0.1, seed=11), torch.tensor([0, 1] * 5)

    def denoise(x, level, told=None, cond=None):
        plain, alike = answer(x, level), other(x, level)
        rows = (cond.labels == 1).reshape(-1, 1, 1, 1)
        return Prediction(torch.where(rows, alike.x0, plain.x0), torch.where(rows, alike.eps, plain.eps))

    levels = refined(UniformTime(steps=4).levels(process), process, 2).levels
    x, guided = start(process, states(3, noises=10), levels[0]), Wrapped(process, denoise)
    flow = fine_flow(guided, levels, x, Cond(labels)).states
    edge = AtLevels(guided, levels, Cond(labels), ())
    find = (lambda batch: oss_path(edge, flow, 3, batch)) if by == "oss" else (
        lambda batch: gits_path(gits_costs(edge, flow, batch), 3))  # fmt: skip
    assert find(100) == find(3)
    assert bool(gits_costs(edge, flow, 3)[0, 1:].isfinite().all())
    plain = AtLevels(guided, levels, Cond(torch.zeros_like(labels)), ())
    assert not torch.allclose(gits_costs(plain, flow, 100), gits_costs(edge, flow, 100), equal_nan=True)
