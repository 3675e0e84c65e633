"""Perturbed-attention guidance: networks whose tokens look at themselves alone, and the published update."""

import pytest
import torch
from torch.nn import functional

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.denoiser import EdmPrecondition, NetworkDenoiser, wrap
from snrkit.diffusion.prediction import X0, Cond
from snrkit.diffusion.process import Edm
from snrkit.networks import Dit, UNet, make_network
from snrkit.sampling.corrections import ClassifierFreeGuidance, PerturbedAttention
from snrkit.sampling.grid import Karras
from snrkit.sampling.sampler import Sampler, dry_run
from snrkit.sampling.solvers import Euler
from snrkit.sampling.step import Capabilities
from tests.exact import tensor
from tests.sampling.test_corrections import place_at

SHAPE = (1, 8, 8)
NETWORKS = {  # with the number of their attention layers, and of the middle one
    "dit": (Dit(dim=24, depth=3, heads=2, classes=3), 3, 1),
    "dit rotary": (Dit(dim=16, depth=2, heads=2, rotary=True, qk_norm=True), 2, 1),
    "unet": (
        UNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,), head_channels=8, classes=3),
        4,
        1,
    ),
    "unet of one resolution": (
        UNet(channels=8, multipliers=(1, 2), blocks=2, groups=4, attention=(8,), head_channels=4),
        5,
        2,
    ),
}


def opened(value):
    """The network with no weight at 0, where its attention would do nothing."""
    network = make_network(value, SHAPE, 0)
    with torch.no_grad():
        for part in network.parameters():
            part.add_(0.1 * torch.randn(part.shape, generator=torch.Generator().manual_seed(part.numel())))
    return network.eval()


def asked(network, cond):
    torch.manual_seed(3)
    return network(torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8]), cond)


@pytest.mark.parametrize(("value", "layers", "middle"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("which", ["middle", "all"])
def test_tokens_that_look_at_themselves_alone_are_those_of_a_mask(value, layers, middle, which, monkeypatch):
    """By torch's attention with a mask that lets each token see itself, in the layers that are asked for."""
    network, cond = opened(value), Cond(labels=torch.tensor([0, 2]) if value.classes else None)
    whole, plain, calls = asked(network, cond), functional.scaled_dot_product_attention, []

    def masked(q, k, v):
        calls.append(q.shape[-2])
        chosen = range(layers) if which == "all" else [middle]
        own = torch.eye(q.shape[-2], dtype=torch.bool) if len(calls) - 1 in chosen else None
        return plain(q, k, v, attn_mask=own)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", masked)
        wanted = asked(network, cond)
    assert len(calls) == layers
    found = asked(network, Cond(labels=cond.labels, alone=which))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, whole, rtol=1e-3)


def test_the_guided_prediction_is_the_published_one():
    """p + w (p - p_k), beside cfg p + w (p - u) + s (p - p_k), which is the published sum; one evaluation each."""
    network = opened(NETWORKS["dit"][0])
    denoise = NetworkDenoiser(network, Edm(), X0(), EdmPrecondition(), 0.5)
    x, level = torch.randn(2, *SHAPE, dtype=torch.float64), Edm().level(tensor(0.4))
    cond = Cond(labels=torch.tensor([0, 1]))
    p, u = denoise(x, level, cond=cond), denoise(x, level, cond=Cond(labels=torch.tensor([-1, -1])))
    alone = denoise(x, level, cond=Cond(labels=cond.labels, alone="middle"))
    pag, cfg = PerturbedAttention(weight=3.0), ClassifierFreeGuidance(weight=1.5)
    found = pag.wrap(denoise, place_at(level))(x, level, cond=cond)
    torch.testing.assert_close(found.x0, p.x0 + 3 * (p.x0 - alone.x0))
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x)
    both = pag.wrap(cfg.wrap(denoise, place_at(level)), place_at(level))(x, level, cond=cond)
    torch.testing.assert_close(both.eps, p.eps + 1.5 * (p.eps - u.eps) + 3 * (p.eps - alone.eps))
    assert dry_run(Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(cfg, pag)), Edm(), X0(), SHAPE) == 15


def test_it_needs_attention_that_can_be_told():
    """Of snrkit's own networks with attention; of a wrapped function nothing is known, and it is not asked."""
    able = Capabilities(labels=False, unlabelled=False, untold=False, attends=True)
    assert PerturbedAttention().missing(able) is None
    assert "needs one of snrkit's own networks with attention" in PerturbedAttention().missing(
        Capabilities(True, True, True)
    )
    assert all(value.conditioning.attends for value, *_ in NETWORKS.values())
    assert not UNet().conditioning.attends
    level = Edm().level(tensor(0.0))
    without = NetworkDenoiser(opened(UNet(channels=8, blocks=1, groups=4)), Edm(), X0(), EdmPrecondition(), 0.5)
    for denoise in (wrap(lambda x, t: x, Edm(), X0()), without):
        with pytest.raises(SnrkitError, match="this network has no such part"):
            PerturbedAttention(weight=1.0).wrap(denoise, place_at(level))(torch.randn(1, *SHAPE), level)


def test_the_middle_of_a_u_net_is_its_middle_block():
    """Where that attends: its values alone are what comes out of its attention."""
    network, seen = opened(NETWORKS["unet"][0]), []
    network.mid_block.attentions[0].register_forward_hook(lambda module, given, out: seen.append(given[1]))
    asked(network, Cond(labels=torch.tensor([0, 2]), alone="middle"))
    asked(network, Cond(labels=torch.tensor([0, 2])))
    assert seen == [True, False]
