"""What learns beside the network: identities of importance sampling, balance and uncertainty."""

import math

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.diffusion.denoiser import NoPrecondition
from snrkit.diffusion.prediction import Eps
from snrkit.diffusion.process import Vp
from snrkit.training.adaptive import (
    ENOUGH,
    Adaptive,
    Balance,
    Bins,
    Importance,
    Uncertainty,
    UncertaintyModule,
    balance_factor,
    warp,
)
from snrkit.training.level_samplers import UniformTime
from snrkit.training.objective import Objective
from snrkit.training.weighting import MinSnr

WORLD = World(0, 1, torch.device("cpu"))
FINE = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


def filled(loss, bins=10, memory=1e9):
    """Bins that have seen `loss` of every u often."""
    found = Bins(bins, memory)
    for _ in range(ENOUGH):
        found.observe(FINE[::100], loss(FINE[::100]), torch.ones(2000))
        found.update(WORLD)
    return found


def steep(u):
    return torch.exp(-4 * u) + 0.1


@pytest.mark.parametrize("uniform", [0.01, 0.5, 1 - 1e-9])
def test_importance_leaves_every_integral_as_it_was(uniform):
    """The mean of f(u') times the factor is the mean of f(u), for any f and whatever the bins hold."""
    value = Importance(bins=10, uniform=uniform)
    u, factor = warp(value, filled(steep), FINE)
    for f in (steep, torch.ones_like, lambda u: torch.sin(9 * u), lambda u: (u > 0.37).double()):
        assert float((f(u) * factor).mean()) == pytest.approx(float(f(FINE).mean()), rel=1e-3, abs=1e-4)
    assert (u.diff() > 0).all()
    if uniform > 0.9:
        torch.testing.assert_close(u, FINE, rtol=0, atol=1e-9)


def test_importance_draws_in_proportion_to_the_loss():
    """Shares of draws are the bins' losses, and the loss over its density is then nearly constant."""
    bins = filled(steep, bins=50)
    u, factor = warp(Importance(bins=50, uniform=1e-9), bins, FINE)
    shares = torch.bincount(bins.index(u), minlength=50) / len(u)
    torch.testing.assert_close(shares.double(), bins.mean / bins.mean.sum(), rtol=0, atol=1e-4)
    spread = steep(u) * factor
    assert float(spread.std() / spread.mean()) < 0.03
    assert float(steep(FINE).std() / steep(FINE).mean()) > 0.6


def test_importance_leaves_the_expected_loss_of_an_exact_denoiser():
    """Gaussian data and the exact eps: min-SNR times alpha^2 s^2/d over uniform t, with levels learned and without."""
    process, s = Vp(), 0.5
    objective = Objective(process, Eps(), NoPrecondition(), UniformTime(), MinSnr(), s)
    logsnr = objective.logsnr(FINE)
    level = process.level(logsnr)
    bayes = level.alpha**2 * s**2 / (level.alpha**2 * s**2 + level.sigma**2)
    wanted = float((objective.weight(logsnr) * bayes).mean())

    def exact(x, time, cond):
        here = process.level(process.logsnr(time.double()))
        slope = here.sigma / (here.alpha**2 * s**2 + here.sigma**2)
        return slope[:, None, None, None] * x

    draws = torch.Generator().manual_seed(0)
    count = 60_000
    learned = Adaptive(importance=(Importance(bins=20), Bins(20, 200)))
    means, spreads = [], []
    for step in range(6):  # the first look is plain: the bins are empty
        u = (torch.randperm(count, generator=draws) + torch.rand(count, generator=draws)).double() / count
        u, factor = learned.draw(u)
        logsnr = objective.logsnr(u)
        x0, eps = s * torch.randn(count, 1, 2, 2, generator=draws), torch.randn(count, 1, 2, 2, generator=draws)
        told = torch.zeros(count, dtype=torch.bool)
        error = objective.output_error(exact, x0, eps, logsnr, told, None)
        losses = learned.loss(objective.weight(logsnr) * error, u, logsnr, factor)
        learned.update(WORLD)
        means.append(float(losses.mean()))
        spreads.append(float(losses.std()))
        assert bool((factor == 1).all()) == (step == 0)
    assert means == pytest.approx([wanted] * 6, rel=0.02)
    assert max(spreads[1:]) < 0.9 * spreads[0]


def test_bins_average_plainly_at_first_and_exponentially_later():
    """Until the memory is full the mean of all that was seen; later half is forgotten after `memory` observations."""
    bins = Bins(2, memory=1000)
    for loss in (1.0, 2.0, 6.0):
        bins.observe(torch.full((10,), 0.3), torch.full((10,), loss), torch.ones(10))
        bins.update(WORLD)
    assert bins.mean.tolist() == pytest.approx([3.0, 0.0])
    assert bins.count.tolist() == [30, 0]
    bins = Bins(1, memory=50)
    bins.observe(torch.zeros(5000), torch.zeros(5000), torch.ones(5000))
    bins.update(WORLD)
    bins.observe(torch.zeros(50), torch.ones(50), torch.ones(50))
    bins.update(WORLD)
    assert bins.mean.tolist() == pytest.approx([0.5])


def test_what_is_not_finite_is_not_learned():
    """An overflowing loss does not poison the bins."""
    bins = filled(steep)
    before = bins.mean.clone()
    bins.observe(torch.tensor([0.1, 0.2]), torch.tensor([math.nan, math.inf]), torch.ones(2))
    bins.update(WORLD)
    assert torch.equal(bins.mean, before)


def test_until_every_bin_is_seen_nothing_changes():
    """Neither where training looks nor how much it counts."""
    bins = Bins(4, 100)
    bins.observe(torch.full((500,), 0.1), torch.full((500,), 7.0), torch.ones(500))
    bins.update(WORLD)
    u, factor = warp(Importance(bins=4), bins, FINE)
    assert torch.equal(u, FINE)
    assert (factor == 1).all()
    assert (balance_factor(Balance(bins=4), bins, FINE) == 1).all()


def test_balance_makes_all_bins_count_alike():
    """The balanced loss, or its variance, is the same in every bin; factors stay within the limit."""
    bins = filled(steep)
    even = steep(FINE) * balance_factor(Balance(bins=10), bins, FINE)
    each = torch.stack([even[bins.index(FINE) == k].mean() for k in range(10)])
    assert float(each.max() / each.min()) == pytest.approx(1, abs=0.01)
    noisy = Bins(10, 1e9)
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        u = torch.rand(1000, generator=draws, dtype=torch.float64)
        noisy.observe(u, 1 + (1 + u) * torch.randn(1000, generator=draws, dtype=torch.float64), torch.ones(1000))
        noisy.update(WORLD)
    factor = balance_factor(Balance(bins=10, by="variance"), noisy, (torch.arange(10) + 0.5).double() / 10)
    variance = (1 + (torch.arange(10) + 0.5).double() / 10) ** 2
    product = factor * variance
    assert float(product.max() / product.min()) == pytest.approx(1, abs=0.1)
    wild = filled(lambda u: 10 ** (8 * u))
    bounded = balance_factor(Balance(bins=10, limit=4), wild, FINE)
    assert (float(bounded.min()), float(bounded.max())) == pytest.approx((0.25, 4))


def test_uncertainty_begins_as_nothing_and_ends_at_the_loss():
    """v = 0 leaves the loss; at the optimum e^v is the expected loss, so that every level contributes 1 (EDM2)."""
    module = UncertaintyModule(Uncertainty(features=64))
    learned = Adaptive(uncertainty=module)
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    logsnr = 8 - 16 * u
    loss = torch.exp(-0.3 * logsnr).float()
    assert torch.equal(learned.loss(loss, u, logsnr, torch.ones(99)), loss)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        learned.loss(loss, u, logsnr, torch.ones(99)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(module(logsnr).detach(), loss.log(), rtol=0, atol=0.05)
    assert torch.isfinite(module(torch.tensor([-math.inf])))


def test_importance_follows_what_moves_the_network():
    """Beside a fitted uncertainty every level moves the network alike, and importance draws them alike."""
    module = UncertaintyModule(Uncertainty(features=8))
    learned = Adaptive(importance=(Importance(bins=10), Bins(10, 1e9)), uncertainty=module)
    module.forward = lambda logsnr: torch.log(0.02 + FINE[::100].float())
    for _ in range(ENOUGH):
        learned.loss(0.02 + FINE[::100].float(), FINE[::100], FINE[::100], torch.ones(2000))
        learned.update(WORLD)
    torch.testing.assert_close(learned.importance[1].mean, torch.ones(10).double(), rtol=1e-5, atol=0)


def test_balance_sees_through_importance():
    """Its bins hold the mean over plain draws, though finer bins of importance draw inside them unevenly."""
    learned = Adaptive((Importance(bins=40), filled(steep, bins=40)), (Balance(bins=4), Bins(4, 1e9)))
    plain = filled(steep, bins=4)
    for _ in range(3):
        u, factor = learned.draw(FINE)
        learned.loss(steep(u), u, -u, factor)
        learned.update(WORLD)
    torch.testing.assert_close(learned.balance[1].mean, plain.mean, rtol=0.01, atol=0)


def test_state_survives_a_checkpoint():
    """tensors() and load() carry all that decides the next step."""

    def fresh():
        return Adaptive(
            (Importance(bins=10), Bins(10, 50)), (Balance(bins=10), Bins(10, 50)), UncertaintyModule(Uncertainty())
        )

    one = fresh()
    for _ in range(3):
        u, factor = one.draw(FINE[::100])
        one.loss(steep(u), u, -u, factor)
        one.update(WORLD)
    torch.nn.init.normal_(one.uncertainty.linear.weight)
    other = fresh()
    other.load({name: tensor.clone() for name, tensor in one.tensors().items()})
    for a, b in zip(one.draw(FINE), other.draw(FINE), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.loss(steep(FINE), FINE, -FINE, FINE), other.loss(steep(FINE), FINE, -FINE, FINE))
