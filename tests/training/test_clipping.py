"""Clipping: each rule's bound, its neutral value, and independent forms of it."""

import pytest
import torch
from torch import nn

from snrkit.base.errors import ConfigError
from snrkit.diffusion.prediction import Cond
from snrkit.networks import Dit, Mlp, UNet, make_network
from snrkit.training.clipping import (
    Adaptive,
    AdaptiveLayer,
    ByValue,
    GlobalNorm,
    Groups,
    LayerNorm,
    Normalize,
    UnitNorm,
    clip,
    unit_norms,
)

WIDE = 1e9  # a bound that nothing reaches
NEUTRAL = [
    GlobalNorm(norm=WIDE), LayerNorm(norm=WIDE), ByValue(limit=WIDE), Groups(norms={"": WIDE}), UnitNorm(norm=WIDE),
    Adaptive(ratio=WIDE), AdaptiveLayer(ratio=WIDE), None,
]  # fmt: skip


def network_with_gradients(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4), nn.Linear(4, 5))
    network.output = "3"
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return network


def grads(network):
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("rule", NEUTRAL, ids=lambda rule: getattr(rule, "kind", "none"))
def test_a_bound_out_of_reach_changes_nothing(rule):
    """Bit for bit, norm and cosine included."""
    network = network_with_gradients()
    before = grads(network)
    found = clip(rule, network, watch=True)
    assert all(torch.equal(a, b) for a, b in zip(before, grads(network), strict=True))
    assert found.after == found.before == pytest.approx(float(torch.cat([g.flatten() for g in before]).norm()))
    assert not found.cut
    assert found.cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "rule",
    [GlobalNorm(norm=0.5), LayerNorm(norm=0.5), ByValue(limit=0.1), Groups(norms={"2": 0.5}), UnitNorm(norm=0.5),
     Adaptive(ratio=0.1), AdaptiveLayer(ratio=0.1), Normalize(norm=3.0)],
    ids=lambda rule: rule.kind,
)  # fmt: skip
def test_the_norms_told_are_those_of_the_gradients(rule):
    """Rules derive the norm after from their factors; measured on the tensors it is the same."""
    network = network_with_gradients()
    before = float(torch.cat([g.flatten() for g in grads(network)]).norm())
    found = clip(rule, network)
    after = float(torch.cat([g.flatten() for g in grads(network)]).norm())
    assert found.before == pytest.approx(before, rel=1e-5)
    assert found.after == pytest.approx(after, rel=1e-5)
    assert abs(after / before - 1) > 0.1
    assert found.cut


def test_a_cut_that_the_norm_does_not_show_is_told():
    """One small layer at 0 whose gradient agc cuts to its floor, beside large ones that it leaves."""
    for rule in (Adaptive(ratio=0.2), AdaptiveLayer(ratio=0.2)):
        network = network_with_gradients(1e-4)
        network[0].bias.data.zero_()
        network[0].bias.grad.mul_(10).clamp_(min=1e-4)
        network[3].weight.grad.mul_(1e9)
        found = clip(rule, network)
        assert found.after == found.before
        assert found.cut
        assert not clip(rule, network).cut  # what lies within the bounds is not


def test_global_norm_is_torchs():
    """The gradient and the norm of torch's clip_grad_norm_, bit for bit."""
    ours, theirs = network_with_gradients(), network_with_gradients()
    found = clip(GlobalNorm(norm=0.7), ours)
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
    assert all(torch.equal(a, b) for a, b in zip(grads(ours), grads(theirs), strict=True))
    assert found.before == float(norm)
    assert found.after == pytest.approx(0.7, rel=1e-5)


def test_normalize_keeps_the_direction_whatever_the_size():
    """Gradients a million times larger or smaller leave the same step."""
    steps = []
    for scale in (1e-3, 1, 1e3):
        network = network_with_gradients(scale)
        found = clip(Normalize(norm=2.0), network, watch=True)
        assert found.after == pytest.approx(2, rel=1e-5)
        assert found.cosine == pytest.approx(1, abs=1e-6)
        steps.append(torch.cat([g.flatten() for g in grads(network)]))
    torch.testing.assert_close(steps[0], steps[2], rtol=1e-4, atol=1e-6)


def test_per_layer_and_per_unit_bound_what_they_name():
    """Each tensor's, each unit's norm is at most the bound; those below it are untouched."""
    network = network_with_gradients()
    before = grads(network)
    clip(LayerNorm(norm=2.5), network)
    for old, new in zip(before, grads(network), strict=True):
        assert float(new.norm()) <= 2.5 * (1 + 1e-5)
        if float(old.norm()) < 2.5:
            assert torch.equal(old, new)
    network = network_with_gradients()
    clip(UnitNorm(norm=1.5), network)
    for old, new in zip(before, grads(network), strict=True):
        assert (unit_norms([new]) <= 1.5 * (1 + 1e-5)).all()
        small = unit_norms([old]) < 1.5
        rows = [g.view(1, -1) if g.ndim < 2 else g.flatten(1) for g in (old, new)]
        assert torch.equal(rows[0][small], rows[1][small])


def test_by_value_clamps():
    """Between -limit and limit; the cosine says that the direction moved."""
    network = network_with_gradients()
    before = grads(network)
    found = clip(ByValue(limit=0.3), network, watch=True)
    assert all(torch.equal(old.clamp(-0.3, 0.3), new) for old, new in zip(before, grads(network), strict=True))
    flat = [torch.cat([g.flatten() for g in side]) for side in (before, grads(network))]
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), rel=1e-5)
    assert found.cosine < 0.97


def published_agc(weight, gradient, ratio, floor):
    """Brock et al. 2021, eq. 3, unit by unit."""
    out = gradient.clone()
    rows = [(slice(None),)] if weight.ndim < 2 else [(row,) for row in range(len(weight))]
    for row in rows:
        bound = ratio * max(float(weight[row].norm()), floor)
        if float(gradient[row].norm()) > bound:
            out[row] = gradient[row] * bound / float(gradient[row].norm())
    return out


def test_agc_is_the_published_rule_per_unit_and_spares_the_last_layer():
    """Rows of linear layers, filters of convolutions, whole vectors; a zero weight counts as the floor."""
    network = network_with_gradients()
    network[0].weight.data[1] = 0
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    clip(Adaptive(ratio=0.2, floor=1e-3), network)
    for name, parameter in network.named_parameters():
        wanted = before[name] if name.startswith("3.") else published_agc(parameter.detach(), before[name], 0.2, 1e-3)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-9)
    assert float(network[0].weight.grad[1].norm()) == pytest.approx(0.2 * 1e-3, rel=1e-4)


@pytest.mark.parametrize("rule", [Adaptive(ratio=0.2), UnitNorm(norm=0.5)], ids=lambda rule: rule.kind)
def test_units_are_cut_however_a_weight_lies_in_memory(rule):
    """channels_last gradients come out as contiguous ones."""
    plain, other = network_with_gradients(), network_with_gradients()
    weight = other[0].weight
    weight.data = weight.data.to(memory_format=torch.channels_last)
    weight.grad = weight.grad.to(memory_format=torch.channels_last)
    assert not weight.grad.is_contiguous()
    for network in (plain, other):
        clip(rule, network)
    for a, b in zip(grads(plain), grads(other), strict=True):
        torch.testing.assert_close(a, b.contiguous())


def test_agc_per_layer_is_another_algorithm():
    """It takes one factor for a tensor, so that a unit with small weights keeps a gradient that agc cuts."""
    networks = [network_with_gradients(), network_with_gradients()]
    for network, rule in zip(networks, (Adaptive(ratio=0.2), AdaptiveLayer(ratio=0.2)), strict=True):
        network[2].weight.data[1] *= 1e-3
        clip(rule, network)
    unit, layer = (float(network[2].weight.grad[1].norm()) for network in networks)
    assert layer > 100 * unit
    whole = networks[1][2].weight
    assert float(whole.grad.norm()) == pytest.approx(0.2 * float(whole.detach().norm()), rel=1e-4)
    network = network_with_gradients()
    network[0].weight.data.zero_()
    clip(AdaptiveLayer(ratio=0.2, floor=1e-3), network)
    assert float(network[0].weight.grad.norm()) == pytest.approx(0.2 * 1e-3, rel=1e-4)  # what is at 0 still moves


@pytest.mark.parametrize(
    "value",
    [UNet(channels=16, groups=4, classes=3), Dit(dim=16, depth=1, heads=2, classes=3), Mlp(dim=8, classes=3)],
    ids=["unet", "dit", "mlp"],
)
@pytest.mark.parametrize("kind", [Adaptive, AdaptiveLayer])
def test_agc_spares_exactly_what_gives_the_output(kind, value):
    """The one layer whose parameters, at 0, make the output 0; every other layer is clipped."""
    network = make_network(value, (1, 8, 8), 0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
        parameter.grad = torch.full_like(parameter, 1e3)
    clip(kind(ratio=1e-3), network)
    spared = [name for name, p in network.named_parameters() if bool((p.grad == 1e3).all())]
    assert spared == [f"{network.output}.weight", f"{network.output}.bias"]
    labels = Cond(labels=torch.tensor([0, 1]))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in spared:
                parameter.zero_()
        assert float(network(torch.randn(2, 1, 8, 8), torch.zeros(2), labels).abs().max()) == 0


def test_groups_bound_by_the_first_pattern_that_fits():
    """Each group by its own norm; what fits none is left alone; a pattern that fits nothing is refused."""
    network = network_with_gradients()
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    clip(Groups(norms={r"^2\.weight": 0.1, r"^[02]\.": 0.5}), network)
    after = {name: p.grad for name, p in network.named_parameters()}
    assert float(after["2.weight"].norm()) == pytest.approx(0.1, rel=1e-4)
    rest = torch.cat([after[n].flatten() for n in ("0.weight", "0.bias", "2.bias")])
    assert float(rest.norm()) == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(after["3.weight"], before["3.weight"])
    with pytest.raises(ConfigError, match="no parameter falls to 'attention'"):
        clip(Groups(norms={"attention": 1.0}), network)
    with pytest.raises(ValueError, match="not a regular expression"):
        Groups(norms={"(": 1.0})


def test_the_largest_gradient_is_named():
    """The tensor with the largest share of the squared norm, and the share."""
    network = network_with_gradients()
    network[2].weight.grad *= 50
    raw = float(network[2].weight.grad.norm())
    for rule in (None, LayerNorm(norm=0.1)):  # also where clipping leaves all tensors alike
        found = clip(rule, network, watch=True)
        assert found.largest[0] == "2.weight"
        assert found.largest[1] == pytest.approx(raw**2 / found.before**2, rel=1e-4)
