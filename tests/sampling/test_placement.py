"""Grids of each image's own, made up here: whatever samples knows none of them."""

from dataclasses import dataclass
from typing import Literal

import torch

from snrkit.base.value import Value
from snrkit.diffusion.prediction import X0
from snrkit.diffusion.process import Vp
from snrkit.sampling.grid import Karras, scope_of
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, dry_run, first_variance, open_with
from snrkit.sampling.solvers import Dpmpp2m
from tests.exact import gaussian

PROCESS = Vp()


@dataclass(frozen=True)
class Laid:
    """Image i begins i/10 nats above -6, or as far above as it is bright; the network is told where."""

    steps: int
    varies = True
    key = "staggered"

    def typical(self):
        return self.levels([0], None)

    def levels(self, seeds, labels, own=None):
        first = -6 + (torch.tensor(seeds).double() / 10 if own is None else own)
        rows = first + torch.linspace(0, 12, self.steps).double()[:, None]
        return tuple(PROCESS.level(row) for row in (*rows, torch.full_like(first, torch.inf)))

    def told(self, seeds, labels, own=None):
        return self.levels(seeds, labels, own)[0].logsnr[:, None].float()

    def follows(self, x0):
        return x0.double().flatten(1).mean(1)


class Staggered(Value):
    kind: Literal["staggered"] = "staggered"
    steps: int = 7

    def check(self, shape):
        pass

    def faults(self, classes, scalars):
        return ()

    def scope_under(self, levels):
        return "instance"

    def made_up(self, process, levels):
        return Laid(self.steps)


def sampler():
    return Sampler.model_construct(grid=Staggered(), solver=Dpmpp2m(), corrections=(), start="published")


def test_a_grid_of_each_image_is_opened_counted_and_laid_out():
    """Its cost is that of its steps; it varies; states begin at sigma*n; existing images bring their own levels."""
    assert dry_run(sampler(), PROCESS, X0(), (1, 8, 8)) == 7
    ready = open_with(sampler(), PROCESS, Dummy(PROCESS))
    assert ready.varies
    assert [level.logsnr.shape for level in ready.levels] == [(1,)] * 8
    assert (scope_of(sampler().grid, None), scope_of(Karras(), None)) == ("instance", "dataset")
    assert first_variance(sampler(), None) == 0
    own, told = ready.of_images([3, 8], None)
    torch.testing.assert_close(own.levels[0].logsnr, torch.tensor([-5.7, -5.2]).double())
    torch.testing.assert_close(told, torch.tensor([[-5.7], [-5.2]]))
    bright = ready.placement.follows(torch.full((2, 1, 8, 8), 0.5))
    assert ready.of_images([3, 8], None, bright)[0].levels[0].logsnr.tolist() == [-5.5, -5.5]


def test_images_on_grids_of_their_own_do_not_see_each_other():
    """Three together end where each alone does."""
    ready = open_with(sampler(), PROCESS, Dummy(PROCESS))
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def walk(rows):
        own, _ = ready.of_images(rows, None)
        x = start(PROCESS, noise[rows], own.levels[0], 0.0)
        for step in sample(gaussian(PROCESS, shape=(1, 2, 2)), own.solver, own.levels, x):
            x = step.x_next
        return x

    together = walk([0, 1, 2])
    torch.testing.assert_close(together, torch.cat([walk([k]) for k in range(3)]), rtol=1e-12, atol=1e-12)
