"""Beta tables: published ends and shapes, diffusers' tables, zero terminal SNR and a popular wrong form of it."""

import math

import pytest
import torch

from snrkit.diffusion.betas import (
    GeometricBetas,
    LaplaceAlphaBar,
    LinearBetas,
    ScaledLinearBetas,
    SigmoidAlphaBar,
    SigmoidBetas,
    SquaredCosBetas,
)
from snrkit.diffusion.process import Ddpm

KINDS = (
    LinearBetas,
    ScaledLinearBetas,
    SquaredCosBetas,
    GeometricBetas,
    SigmoidBetas,
    SigmoidAlphaBar,
    LaplaceAlphaBar,
)


def alpha_bar(betas, steps=1000):
    return torch.cumprod(1 - betas.betas(steps), 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [10, 1000])
def test_tables_fall_and_their_clock_is_exact(kind, steps):
    """Every table falls strictly, and time(logsnr(k)) == k on it, also after zero terminal SNR and a shift."""
    for process in (
        Ddpm(betas=kind(), steps=steps),
        Ddpm(betas=kind(), steps=steps, rescale_betas_zero_snr=True, logsnr_shift=-1.4),
    ):
        table, k = process.table(), torch.arange(steps, dtype=torch.float64)
        assert (table[1:] < table[:-1]).all()
        assert torch.equal(process.time(process.logsnr(k)), k)
        torch.testing.assert_close(process.fraction(process.draw((k + 0.5) / steps)), (k + 0.5) / steps)


def test_sigmoid_beta_and_sigmoid_are_two_curves():
    """On beta: sum 10.05, abar 0.302 half-way and 3.97e-5 at the end. On abar: 1, .851, .5, .149, 0 at quarters."""
    betas = SigmoidBetas().betas(1000)
    abar = torch.cumprod(1 - betas, 0)
    assert float(betas.sum()) == pytest.approx(10.05, abs=5e-3)
    assert float(abar[499]) == pytest.approx(0.302, abs=1e-3)
    assert float(abar[-1]) == pytest.approx(3.97e-5, rel=5e-3)
    assert float(alpha_bar(LinearBetas())[499]) == pytest.approx(0.079, abs=5e-4)
    quarters = SigmoidAlphaBar().alpha_bar(torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(quarters, torch.tensor([1, 0.851, 0.5, 0.149, 0]).double(), rtol=0, atol=5e-4)
    torch.testing.assert_close(alpha_bar(SigmoidAlphaBar())[[249, 499, 749]], quarters[1:4], rtol=1e-9, atol=0)


def test_geometric_has_no_usable_end():
    """abar stops at 0.0228, SNR at 0.023; the rescale to zero terminal SNR mends it."""
    abar = float(alpha_bar(GeometricBetas())[-1])
    assert abar == pytest.approx(0.0228, abs=1e-4)
    assert abar / (1 - abar) == pytest.approx(0.023, abs=5e-4)
    assert float(Ddpm(betas=GeometricBetas(), rescale_betas_zero_snr=True).table()[-1]) == -math.inf


@pytest.mark.parametrize(
    ("betas", "name", "ends"),
    [
        (SigmoidBetas(), "sigmoid", (1e-4, 0.02)),
        (SigmoidBetas(start=1e-3, end=0.3), "sigmoid", (1e-3, 0.3)),
        (SquaredCosBetas(), "squaredcos_cap_v2", (1e-4, 0.02)),
        (LinearBetas(), "linear", (1e-4, 0.02)),
        (ScaledLinearBetas(), "scaled_linear", (0.00085, 0.012)),
    ],
)
def test_tables_equal_diffusers(betas, name, ends):
    """alphas_cumprod of diffusers' DDPMScheduler to 2e-5 (it multiplies in float32)."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, *ends, beta_schedule=name).alphas_cumprod.double()
    usable = theirs > 1e-8
    torch.testing.assert_close(alpha_bar(betas)[usable], theirs[usable], rtol=2e-5, atol=0)


def test_diffusers_laplace_is_a_root_of_what_is_meant():
    """Half-way logsnr is the mean and abar 1/2; diffusers' table has its root, 0.707, and stops at SNR 0.033."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="laplace").alphas_cumprod.double()
    ours = alpha_bar(LaplaceAlphaBar())
    assert float(ours[499]) == pytest.approx(0.5, abs=1e-12)
    assert float(theirs[499]) == pytest.approx(0.707, abs=1e-3)
    assert float(theirs[-1] / (1 - theirs[-1])) == pytest.approx(0.033, abs=2e-3)
    middle = slice(100, 900)
    torch.testing.assert_close(ours[middle].sqrt(), theirs[middle], rtol=2e-3, atol=0)


def test_laplace_table_is_its_level_sampler():
    """logsnr at index k is the Laplace quantile of (k + 1)/T."""
    from snrkit.diffusion.process import Flow
    from snrkit.training.level_samplers import Laplace

    wide = Flow(logsnr_min=-30, logsnr_max=30)
    k = torch.arange(0, 999, 37)
    drawn = Laplace(mean=0.4, scale=0.7).logsnr((k + 1) / 1000, wide)
    torch.testing.assert_close(Ddpm(betas=LaplaceAlphaBar(mean=0.4, scale=0.7)).table()[k], drawn, rtol=0, atol=1e-6)


GOLDEN_ROOTS = {
    LinearBetas: [0.99995, 0.722173, 0.275733, 0.051861, 0.000065, 0],
    ScaledLinearBetas: [0.999575, 0.80882, 0.4923, 0.18213, 0.000444, 0],
}


@pytest.mark.parametrize("kind", GOLDEN_ROOTS)
def test_zero_terminal_snr_has_its_golden_numbers(kind):
    """sqrt(abar) at steps 1, 250, 500, 750, 999, 1000 (Lin et al. 2024, algorithm 1)."""
    table = Ddpm(betas=kind(), rescale_betas_zero_snr=True).table()
    roots = torch.sigmoid(table[[0, 249, 499, 749, 998, 999]]).sqrt()
    torch.testing.assert_close(roots, torch.tensor(GOLDEN_ROOTS[kind]).double(), rtol=0, atol=1e-6)


def test_a_popular_form_of_zero_terminal_snr_removes_the_noise_instead():
    """beta' = beta (1 - abar_1)/(1 - abar_T): abar_T 0.99900 with SNR 994 (linear), 0.9954 with 218 (scaled linear)."""
    for betas, end, snr in ((LinearBetas(), 0.999, 994), (ScaledLinearBetas(), 0.9954, 218)):
        abar = alpha_bar(betas)
        wrong = torch.cumprod(1 - betas.betas(1000) * (1 - abar[0]) / (1 - abar[-1]), 0)[-1]
        assert float(wrong) == pytest.approx(end, abs=5e-5)
        assert float(wrong / (1 - wrong)) == pytest.approx(snr, rel=5e-3)
        assert float((1 - abar[0]) / (1 - abar[-1])) == pytest.approx(1e-4 if snr == 994 else 8.5e-4, rel=0.01)


def test_scaled_linear_does_not_start_gently():
    """Its first beta is 8.5 times linear's and larger for 51 steps, its SNR lower for 102; it ends slower and leaks."""
    linear, scaled = LinearBetas().betas(1000), ScaledLinearBetas().betas(1000)
    assert float(scaled[0] / linear[0]) == pytest.approx(8.5)
    assert int((scaled > linear).sum()) == 51
    a, b = Ddpm().table(), Ddpm(betas=ScaledLinearBetas()).table()
    lower = (b < a).nonzero().flatten()
    assert lower[-1] == len(lower) - 1
    assert len(lower) == 102
    assert float(torch.exp(b[-1])) == pytest.approx(4.7e-3, abs=5e-5)
    shares = [float((t < math.log(0.01)).double().mean()) for t in (a, b)]
    assert shares == pytest.approx([0.33, 0.07], abs=5e-3)


def test_scaled_linear_between_equal_ends_is_gentler():
    """The square of a line lies below the chord between its ends: smaller betas, and a higher SNR at every step."""
    ends = {"start": 1e-4, "end": 0.02}
    linear, scaled = LinearBetas(**ends).betas(1000), ScaledLinearBetas(**ends).betas(1000)
    torch.testing.assert_close(scaled[[0, -1]], linear[[0, -1]])
    assert bool((scaled[1:-1] < linear[1:-1]).all())
    a, b = (Ddpm(betas=kind(**ends)).table() for kind in (LinearBetas, ScaledLinearBetas))
    assert bool((b >= a).all())


def test_snr_below_one_where_its_logarithm_is_negative():
    """On 74 % of linear's steps, 65 % of scaled linear's and half of cosine's: ln(snr) bounds no loss."""
    kinds = (LinearBetas, ScaledLinearBetas, SquaredCosBetas)
    shares = [float((Ddpm(betas=kind()).table() < 0).double().mean()) for kind in kinds]
    assert shares == pytest.approx([0.74, 0.65, 0.50], abs=6e-3)
