"""Level samplers, weightings and the loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.diffusion.betas import TrainedBetas
from snrkit.diffusion.denoiser import EdmPrecondition, NoPrecondition
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import X0, Cond, Eps, FlowVelocity, Score, V
from snrkit.diffusion.process import Ddpm
from snrkit.networks import Mlp, make_network
from snrkit.training.level_samplers import LogNormal, UniformTime
from snrkit.training.objective import Objective, output_weight
from snrkit.training.weighting import EdmWeighting, MinSnr, Simple
from tests.exact import PROCESSES, tensor

TARGETS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": FlowVelocity()}


def weight(logsnr, process, target, precondition, weighting, s=0.5):
    level = process.level(tensor(logsnr))
    return float(
        output_weight(
            level,
            lambda: tensor(1.0),
            process=process,
            target=target,
            precondition=precondition,
            weighting=weighting,
            sigma_data=s,
        )
    )


@given(logsnr=st.floats(-9, 9), s=st.floats(0.2, 2))
def test_edm_weighting_is_the_unit_loss_on_f(logsnr, s):
    """1 on the output of an EDM-preconditioned network, for every target and process; lambda(sigma) on x0 in ve."""
    for process in PROCESSES.values():
        for target in (*TARGETS.values(), Score()):
            assert weight(logsnr, process, target, EdmPrecondition(), EdmWeighting(), s) == pytest.approx(1, rel=1e-9)
    sigma = torch.exp(tensor(-logsnr / 2)).item()
    published = (sigma**2 + s**2) / (sigma * s) ** 2
    assert weight(logsnr, PROCESSES["edm"], X0(), NoPrecondition(), EdmWeighting(), s) == pytest.approx(published)


@given(logsnr=st.floats(-9, 9))
def test_simple_is_the_plain_loss_on_eps(logsnr):
    """1 on eps, snr on x0, sigma^2 on score."""
    process = PROCESSES["vp"]
    assert weight(logsnr, process, Eps(), NoPrecondition(), Simple()) == pytest.approx(1)
    assert weight(logsnr, process, X0(), NoPrecondition(), Simple()) == pytest.approx(torch.exp(tensor(logsnr)).item())
    sigma = float(process.level(tensor(logsnr)).sigma)
    assert weight(logsnr, process, Score(), NoPrecondition(), Simple()) == pytest.approx(sigma**2)


def test_weights_are_finite_at_zero_terminal_snr():
    """At alpha = 0 the unit v-loss keeps weight 1 and min-SNR is 0; nothing divides by alpha."""
    process = Ddpm(betas=TrainedBetas(values=(0.1, 0.5, 1.0)), steps=3)
    end = float(process.table()[-1])
    assert end == -float("inf")
    assert weight(end, process, V(), NoPrecondition(), EdmWeighting(), s=1.0) == pytest.approx(1)
    assert weight(end, process, V(), NoPrecondition(), MinSnr()) == pytest.approx(0, abs=1e-15)
    assert weight(end, process, X0(), NoPrecondition(), MinSnr()) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("precondition", [NoPrecondition(), EdmPrecondition()], ids=["none", "edm"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_loss_on_f_is_the_weighted_error_of_eps(target, precondition):
    """The loss equals w_eps |eps_hat - eps|^2 with eps_hat read from the same output by the denoiser."""
    from snrkit.diffusion.denoiser import NetworkDenoiser

    network = make_network(Mlp(dim=16, depth=1), (1, 2, 2), 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    process = PROCESSES["flow"]
    objective = Objective(process, target, precondition, UniformTime(), MinSnr(gamma=2.0), 0.5)
    x0, eps = torch.randn(2, 6, 1, 2, 2)
    logsnr = torch.linspace(-3, 4, 6, dtype=torch.float64)
    output_error = objective.output_error(network, x0, eps, logsnr, torch.zeros(6, dtype=torch.bool), Cond())
    loss, eps_error = (w(logsnr).float() * output_error for w in (objective.weight, objective.eps_weight))
    level = process.level(logsnr)
    alpha, sigma = level.scales(x0)
    denoise = NetworkDenoiser(network, process, target, precondition, 0.5)
    error = (denoise(alpha * x0 + sigma * eps, level).eps - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(eps_error, error, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(
        loss, MinSnr(gamma=2.0).weight(level, lambda: level.logsnr, 0.5).float() * error, rtol=2e-4, atol=1e-6
    )


def test_table_draws_are_snapped_before_noise_is_added():
    """Every training level of a table process is one of its entries."""
    process = PROCESSES["ddpm"]
    objective = Objective(process, Eps(), NoPrecondition(), LogNormal(), Simple(), 0.5)
    drawn = objective.logsnr(torch.rand(100, dtype=torch.float64))
    assert torch.isin(drawn, process.table()).all()
    assert level_of(drawn, "vp").alpha.shape == (100,)


def test_half_precision_keeps_what_posts_say_it_flushes():
    """fp16 holds subnormals to 6.0e-8: gradients of 1e-5 survive, what is under 3.0e-8 and squares of 1.7e-4 do not."""
    info = torch.finfo(torch.float16)
    assert info.smallest_normal == pytest.approx(6.1e-5, rel=1e-2)
    kept = torch.tensor([1e-5, 6.1e-8, 3.1e-8]).half()
    assert (kept > 0).all()
    assert float(kept[0]) == pytest.approx(1e-5, rel=3e-3)
    assert (torch.tensor([2.9e-8, 1.6e-4**2]).half() == 0).all()


def test_edm_weighting_leaves_v_alone_for_unit_data_only():
    """Its factor on v is 1 at s = 1 and (snr + 4)/(snr + 1) at s = 1/2."""
    process = PROCESSES["vp"]
    for logsnr in (-4.0, 0.0, 3.0):
        snr = torch.exp(tensor(logsnr)).item()
        assert weight(logsnr, process, V(), NoPrecondition(), EdmWeighting(), s=1.0) == pytest.approx(1)
        found = weight(logsnr, process, V(), NoPrecondition(), EdmWeighting(), s=0.5)
        assert found == pytest.approx((snr + 4) / (snr + 1))


def test_no_published_inverse_of_one_plus_variance_flattens():
    """1/(sigma^2 + 1) as "EDM's weight" leaves sqrt(w) times the gradient scale from 1e-4 to 1 on eps (unit data)."""
    logsnr = torch.tensor([-9.2, 9.2], dtype=torch.float64)  # SNR 1e-4 and 1e4
    snr = logsnr.exp()
    scale = (1 / (1 + 1 / snr) * snr / (1 + snr)).sqrt()
    torch.testing.assert_close(scale, torch.tensor([1e-4, 1.0]).double(), rtol=0.02, atol=0)
    flat = ((1 + 1 / snr) * snr / (1 + snr)).sqrt()
    torch.testing.assert_close(flat, torch.ones(2).double())
