"""Sampling on a device: to the bits of the host's, and without a wait while a trajectory is walked."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from snrkit.base.transfer import HOST, send
from snrkit.diffusion.denoiser import EdmPrecondition, NetworkDenoiser
from snrkit.diffusion.prediction import X0, Cond
from snrkit.diffusion.process import Edm
from snrkit.networks import make_network
from snrkit.networks.dit import Dit
from snrkit.sampling.grid import Karras
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Sampler, open_with
from snrkit.sampling.solvers import Euler
from snrkit.training.randomness import ImageStreams
from tests.pretended import CUDA, pretended
from tests.sampling.test_corrections import ACTIVE, Around
from tests.sampling.test_solvers import OF_EACH

SHAPE = (1, 4, 4)
SPREAD = torch.tensor([-0.1, 0.0, 0.1], dtype=torch.float64)


def denoiser(device, seed=0):
    """A small network with two classes and attention, of few operations, as it is asked on a device."""
    network = make_network(Dit(dim=8, depth=1, heads=1, patch=2, mlp_ratio=1, classes=2), SHAPE, seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    network = network.to(device).eval().requires_grad_(False)
    return NetworkDenoiser(network, Edm(), X0(), EdmPrecondition(), 0.5)


class Sources(Around):
    """The sources of a test, on a device."""

    def __init__(self, device):
        super().__init__(Edm())
        self.device = device

    def denoiser(self, named):
        return denoiser(self.device, seed=1)


def end(device, sampler, own=False):
    """The last state of three trajectories; `own`: each with levels of its own."""
    ready = open_with(sampler, Edm(), Sources(device))
    if own:
        ready = replace(ready, levels=tuple(Edm().level(level.logsnr + SPREAD) for level in ready.levels))
    streams, known = ImageStreams(range(3), device), denoiser(device)
    x = start(Edm(), streams.normal(SHAPE), ready.levels[0])
    cond = Cond(labels=send(torch.tensor([0, 1, 1]), device))
    yield
    with sdpa_kernel(SDPBackend.MATH):  # torch picks it for the pretended device, and another on the host
        more = {"corrections": ready.corrections, "noise": streams, "cond": cond}
        for step in sample(known, ready.solver, ready.levels, x, **more):
            x = step.x_next
    yield x


@pytest.mark.parametrize("corrected", ["dcw low", "dcw high", "dcw double"])
def test_bands_at_levels_of_each_image_are_moved_without_a_wait(monkeypatch, corrected):
    """Whose gains lie on the device; to the host's bits."""
    sampler = Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(ACTIVE[corrected],))
    *_, expected = end(HOST, sampler, own=True)
    with pretended(monkeypatch) as waits:
        walk = end(CUDA, sampler, own=True)
        next(walk)
        waits.clear()
        found = next(walk)
        assert waits == []
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("solver", OF_EACH.values(), ids=OF_EACH)
@pytest.mark.parametrize("corrected", [None, *ACTIVE])
def test_a_trajectory_never_waits_for_its_device(monkeypatch, solver, corrected):
    """And ends in the same bits as on the host. Where a network is told what the state says, it waits for that."""
    corrections = () if corrected is None else (ACTIVE[corrected],)
    sampler = Sampler(grid=Karras(steps=5), solver=solver, corrections=corrections)
    *_, expected = end(HOST, sampler)
    with pretended(monkeypatch) as waits:
        walk = end(CUDA, sampler)
        next(walk)
        waits.clear()
        found = next(walk)
        told_by_the_state = 4 if corrected == "time_shift" else 0  # in every step but the first
        assert waits == [("to the host", True)] * told_by_the_state
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)
