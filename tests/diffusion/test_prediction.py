"""The 2x2 solve, targets and preconditioning."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.data.toy import gaussian_denoiser
from snrkit.diffusion.betas import LinearBetas
from snrkit.diffusion.denoiser import EdmPrecondition, NetworkDenoiser, NoPrecondition, check_readable
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import (
    SAME,
    X0,
    Cond,
    Eps,
    FlowVelocity,
    PosteriorMean,
    Score,
    V,
    determinant,
    solve,
)
from snrkit.diffusion.process import Ddpm
from snrkit.experiment.experiment import parse_experiment
from snrkit.networks import Mlp, make_network
from tests.exact import PROCESSES, THREE, mixture, tensor
from tests.small import SMALL

TARGETS = {
    "x0": X0(), "eps": Eps(), "v": V(), "flow": FlowVelocity(), "score": Score(), "posterior_mean": PosteriorMean(),
}  # fmt: skip
SCALINGS = ("vp", "ve", "flow")


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@given(logsnr=st.floats(-12, 12))
def test_solve_recovers_what_was_mixed(scaling, target, logsnr):
    """solve(alpha*x0 + sigma*eps, a*x0 + b*eps) == (x0, eps), for every target, scaling and level."""
    level = level_of(tensor(logsnr), scaling)
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = target.direction(level)
    found = solve(level.alpha * x0 + level.sigma * eps, a * x0 + b * eps, level, target)
    torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(found.eps, eps, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("scaling", ["vp", "ve"])
def test_the_posterior_mean_of_a_table_is_ddpms(scaling):
    """Ho et al. 2020, equation 7, by betas: sqrt(abar') beta/(1 - abar) x0 + sqrt(1 - beta) (1 - abar')/(1 - abar) x.

    At the cleanest entry it is x0, as abar' is 1; the state x is that of vp, in whatever scaling a process keeps it.
    """
    process, t = Ddpm(scaling=scaling), torch.tensor([0, 1, 10, 500, 999])
    abar, betas = torch.sigmoid(Ddpm().table()), LinearBetas().betas(1000)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar])[t]
    of_x0, of_x = before.sqrt() * betas[t] / (1 - abar[t]), (1 - betas[t]).sqrt() * (1 - before) / (1 - abar[t])
    a, b = PosteriorMean().direction(process.level(process.table()[t]))
    torch.testing.assert_close(a, of_x0 + of_x * abar[t].sqrt(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(b, of_x * (1 - abar[t]).sqrt(), rtol=1e-10, atol=1e-11)
    assert (float(a[0]), float(b[0])) == (pytest.approx(1, abs=1e-11), 0)


def test_the_posterior_mean_is_a_target_at_pure_noise_too():
    """Where alpha is 0 nothing of the state stays: mu = alpha' x0, which still says x0."""
    table = Ddpm(rescale_betas_zero_snr=True)
    a, b = PosteriorMean().direction(table.level(torch.tensor([-torch.inf]).double()))
    assert float(b) == 0
    assert 0 < float(a) < 0.1


@pytest.mark.parametrize(
    ("process", "said"),
    [
        ({"kind": "vp"}, "process vp has none; take ddpm"),
        ({"kind": "ddpm", "betas": {"kind": "scaled_linear"}}, "another table than the process"),
        ({"kind": "ddpm", "steps": 100}, "another table than the process"),
    ],
    ids=["vp", "betas", "steps"],
)
def test_a_posterior_mean_is_of_the_table_of_its_process(process, said):
    content = {**SMALL, "target": {"kind": "posterior_mean"}, "precondition": {"kind": "none"}}
    content = {**content, "levels": {"kind": "uniform_time"}, "weighting": {"kind": "simple"}, "process": process}
    with pytest.raises(ConfigError, match=f"target: posterior_mean is of .*{said}"):
        parse_experiment(content, "small")


def test_v_in_vp_is_the_published_one():
    """v = alpha*eps - sigma*x0 in vp, and |x|^2 + |v|^2 = |x0|^2 + |eps|^2."""
    level = level_of(tensor(0.7), "vp")
    x0, eps = torch.randn(2, 50, dtype=torch.float64)
    a, b = V().direction(level)
    v, x = a * x0 + b * eps, level.alpha * x0 + level.sigma * eps
    torch.testing.assert_close(v, level.alpha * eps - level.sigma * x0)
    torch.testing.assert_close(x.square() + v.square(), x0.square() + eps.square())


def test_v_in_edm_space_has_its_root():
    """In ve, v is (eps - sigma*x0)/sqrt(1 + sigma^2): off by 1.118, 1.414 and 80 at sigma .5, 1, 80 without."""
    for sigma, off in ((0.5, 1.118), (1.0, 1.414), (80.0, 80.0)):
        level = level_of(-2 * tensor(sigma).log(), "ve")
        a, b = V().direction(level)
        assert float(1 / b) == pytest.approx(off, abs=7e-3)
        assert float(-sigma / a) == pytest.approx(off, abs=7e-3)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_a_v_network_is_read_in_edm_space(sigma):
    """x0 = x/(1 + sigma^2) - sigma v/sqrt(1 + sigma^2), eps = sigma x/(1 + sigma^2) + v/sqrt(1 + sigma^2)."""
    level = level_of(-2 * tensor(sigma).log(), "ve")
    x, v = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    found, d = solve(x, v, level, V()), 1 + sigma**2
    torch.testing.assert_close(found.x0, x / d - sigma * v / d**0.5, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, sigma * x / d + v / d**0.5, rtol=1e-9, atol=1e-9)


def test_ddpms_mean_in_terms_of_v():
    """mu = sqrt(alpha_t) x - (1 - alpha_t) sqrt(abar_{t-1})/sqrt(1 - abar_t) v, of the posterior mean by x0."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x0, eps = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64)
    for t in (1, 10, 500, 999):
        here, before = abar[t], abar[t - 1]
        alpha = here / before
        x = here.sqrt() * x0 + (1 - here).sqrt() * eps
        v = here.sqrt() * eps - (1 - here).sqrt() * x0
        mean = (before.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - before) * x) / (1 - here)
        level = level_of((here / (1 - here)).log(), "vp")
        a, b = V().direction(level)
        torch.testing.assert_close(a * x0 + b * eps, v, rtol=1e-9, atol=1e-9)
        ours = alpha.sqrt() * x - (1 - alpha) * before.sqrt() / (1 - here).sqrt() * v
        torch.testing.assert_close(ours, mean, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
@pytest.mark.parametrize("s", [0.5, 1.0])
def test_edm_coefficients_are_the_published_rows(sigma, s):
    """c_skip, c_out, c_in of Karras et al. 2022 table 1 for x0; the v row of Salimans & Ho at s = 1 is (0, 1)."""
    level = level_of(-2 * tensor(sigma).log(), "ve")
    c = EdmPrecondition().coefficients(level, X0(), "ve", s)
    total = sigma**2 + s**2
    for ours, published in ((c.c_skip, s**2 / total), (c.c_out, sigma * s / total**0.5), (c.c_in, total**-0.5)):
        torch.testing.assert_close(ours, tensor(published), rtol=1e-12, atol=0)
    v = EdmPrecondition().coefficients(level, V(), "ve", s)
    torch.testing.assert_close(v.c_skip, tensor(sigma * (1 - s**2) / ((1 + sigma**2) ** 0.5 * total)))
    torch.testing.assert_close(v.c_out, tensor(s * ((1 + sigma**2) / total) ** 0.5))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_edm_preconditioning_normalises_gaussians(scaling, target):
    """On N(0, s^2) data the network's input and target have unit variance, and the target no correlation with x."""
    s, draws = 0.6, torch.Generator().manual_seed(0)
    x0, eps = (
        s * torch.randn(400_000, dtype=torch.float64, generator=draws),
        torch.randn(400_000, dtype=torch.float64, generator=draws),
    )
    level = level_of(tensor(-1.3), scaling)
    c = EdmPrecondition().coefficients(level, target, scaling, s)
    a, b = target.direction(level)
    x = level.alpha * x0 + level.sigma * eps
    residual = (a * x0 + b * eps - c.c_skip * x) / c.c_out
    assert (c.c_in * x).var().item() == pytest.approx(1, abs=0.01)
    assert residual.var().item() == pytest.approx(1, abs=0.01)
    assert (residual * x).mean().item() == pytest.approx(0, abs=0.01 * x.std().item())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_all_targets_share_one_residual(target):
    """Under EDM's preconditioning the target of F is +-(sigma*x0 - alpha*s^2*eps)/(s*sqrt(d)), whatever the target."""
    s, level = 0.6, level_of(tensor(1.1), "flow")
    x0, eps = torch.randn(2, 20, dtype=torch.float64)
    c = EdmPrecondition().coefficients(level, target, "flow", s)
    a, b = target.direction(level)
    residual = (a * x0 + b * eps - c.c_skip * (level.alpha * x0 + level.sigma * eps)) / c.c_out
    d = level.alpha**2 * s**2 + level.sigma**2
    shared = (level.sigma * x0 - level.alpha * s**2 * eps) / (s * d.sqrt())
    torch.testing.assert_close(residual * torch.sign(residual[0] * shared[0]), shared)


def test_without_preconditioning_only_ve_scales_its_input():
    """c_in is 1 in vp and flow and 1/sqrt(1 + sigma^2) in ve."""
    for scaling in SCALINGS:
        level = level_of(tensor(-2.0), scaling)
        c = NoPrecondition().coefficients(level, Eps(), scaling, 0.5)
        expected = (1 + level.sigma**2).rsqrt() if scaling == "ve" else tensor(1.0)
        torch.testing.assert_close(c.c_in, expected)
        assert (c.c_skip, c.c_out) == (0, 1)


def trained_like(process, target, precondition, seed=0):
    """A network with a last layer that is not zero, so that its answers depend on everything it is given."""
    network = make_network(Mlp(dim=16, depth=1, classes=3), (1, 2, 2), seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return NetworkDenoiser(network, process, target, precondition, 0.5)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("precondition", [NoPrecondition(), EdmPrecondition()], ids=["none", "edm"])
@torch.no_grad()
def test_state_equation_holds_after_every_call(process, target, precondition):
    """alpha*x0 + sigma*eps == x at `level`, whatever the network says and whatever it was told."""
    denoise = trained_like(process, target, precondition)
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logsnr = process.snap(torch.linspace(*process.bounds, 5, dtype=torch.float64))
    for level in (process.level(logsnr), process.level(logsnr[2])):
        alpha, sigma = level.scales(x)
        for told in (SAME, None, process.level(logsnr[3])):
            p = denoise(x, level, told=told, cond=Cond(labels=torch.tensor([0, 1, 2, -1, 0])))
            scale = float((alpha * p.x0).abs().max() + (sigma * p.eps).abs().max())
            torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=0, atol=1e-13 * scale + 1e-12)


@torch.no_grad()
def test_told_moves_the_network_and_level_the_reading():
    """An x0 network keeps D(x; told) wherever it is read; an eps network keeps eps(x; told)."""
    process = PROCESSES["ddpm"]
    here, other = process.level(tensor(1.0)), process.level(tensor(-2.0))
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    for target, kept in ((X0(), "x0"), (Eps(), "eps")):
        denoise = trained_like(process, target, NoPrecondition())
        at_here, at_other = denoise(x, here, told=other), denoise(x, other, told=other)
        assert torch.equal(getattr(at_here, kept), getattr(at_other, kept))
        assert not torch.allclose(getattr(at_here, kept), getattr(denoise(x, here), kept))


@torch.no_grad()
def test_telling_the_level_itself_changes_no_bit():
    """told=level is SAME."""
    denoise = trained_like(PROCESSES["edm"], X0(), EdmPrecondition())
    x, level = torch.randn(3, 1, 2, 2, dtype=torch.float64), PROCESSES["edm"].level(tensor(0.3))
    assert torch.equal(denoise(x, level).x0, denoise(x, level, told=level).x0)
    assert not torch.equal(denoise(x, level).x0, denoise(x, level, told=None).x0)


@torch.no_grad()
def test_a_silent_edm_network_is_the_exact_gaussian_denoiser():
    """For N(0, sigma_data^2) the optimal F is 0, told or not, in every process."""
    for process in PROCESSES.values():
        for target in TARGETS.values():
            denoise = NetworkDenoiser(lambda x, t, c: torch.zeros_like(x), process, target, EdmPrecondition(), 0.5)
            exact = gaussian_denoiser(process, 0.0, 0.25, (1, 2, 2))
            x, level = torch.randn(3, 1, 2, 2, dtype=torch.float64), process.level(tensor(-0.4))
            for told in (SAME, None):
                torch.testing.assert_close(denoise(x, level, told=told).x0, exact(x, level).x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", THREE.values(), ids=THREE)
def test_exact_denoisers_obey_the_score_identity(process):
    """eps = -sigma * grad ln p(x): the mixture's denoiser against autograd on its own density."""
    denoise, level = mixture(process), process.level(tensor(0.5))
    x = torch.randn(6, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(denoise.posterior(x, level)[1].sum(), x)
    torch.testing.assert_close(denoise(x, level).eps, -level.sigma * score, rtol=1e-9, atol=1e-9)


def test_blind_exact_denoiser_is_the_average_over_its_prior():
    """told=None: with one level in the prior it is told that level; with many it lies between."""
    process = PROCESSES["edm"]
    x, level = torch.randn(4, 1, 2, 2, dtype=torch.float64), process.level(tensor(0.0))
    one = mixture(process, prior=tensor([1.5]))
    torch.testing.assert_close(one(x, level, told=None).x0, one(x, level, told=process.level(tensor(1.5))).x0)
    with pytest.raises(SnrkitError, match="no prior"):
        mixture(process)(x, level, told=None)


def test_eps_and_score_are_refused_at_pure_noise():
    """At alpha = 0 their determinant is 0, x0's, v's and flow's is not."""
    level = level_of(tensor(-float("inf")), "flow")
    for name, target in TARGETS.items():
        silent = name in ("eps", "score")
        assert (determinant(level, target) == 0) == silent
        if silent:
            with pytest.raises(SnrkitError, match="pure noise"):
                check_readable(level, target)
        else:
            check_readable(level, target)


def test_a_condition_of_some_images_is_theirs():
    """Every part by its own name; what is not told stays untold."""
    whole = Cond(labels=torch.arange(4), augment=torch.arange(36.0).reshape(4, 9))
    part = whole.at(slice(1, 3))
    assert part.labels.tolist() == [1, 2]
    assert torch.equal(part.augment, whole.augment[1:3])
    assert part.scalars is None
