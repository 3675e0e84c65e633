"""Closed forms of targets and bounds, against Monte Carlo, published values and identities."""

import csv
import math

import pytest
import torch

from snrkit.analysis.bound import denoising_nats, prior_nats, reconstruction_nats
from snrkit.analysis.closed_form import (
    Spectrum,
    difficulty,
    output_scale,
    output_signal_to_noise,
    posterior_mean_share,
    ring_difficulty,
    weighted_scale,
)
from snrkit.analysis.empirical import gradients, has_density, information, level_of_share, rank_correlation, x0_errors
from snrkit.base.distributed import World
from snrkit.commands.analyze import TARGETS, WEIGHTINGS, prior_bits, run_analysis, time_charts
from snrkit.commands.train import run_training
from snrkit.data.dataset import split
from snrkit.data.toy import MixtureDenoiser
from snrkit.diffusion.betas import LinearBetas, SquaredCosBetas
from snrkit.diffusion.denoiser import EdmPrecondition, NoPrecondition
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import X0, Cond, Eps, Score, V
from snrkit.diffusion.process import Ddpm, Edm, Flow, Vp
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.training.objective import output_weight
from snrkit.training.weighting import P2, EdmWeighting, MaxSnr, MinSnr, Simple
from tests.exact import PROCESSES, tensor
from tests.small import SMALL, drawing, snrkit, write_config, written

WORLD = World(0, 1, torch.device("cpu"))
LOGSNR = torch.linspace(-8, 8, 33, dtype=torch.float64)


@pytest.mark.parametrize("variance", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_metrics_are_those_of_drawn_pairs(target, variance):
    """All eight, by least squares on two million pairs in every scaling."""
    draws = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 2_000_000, dtype=torch.float64, generator=draws)
    x0 = x0 * variance**0.5
    for scaling, logsnr in (("vp", 0.0), ("ve", -1.5), ("flow", 2.0)):
        level = level_of(tensor(logsnr), scaling)
        a, b = target.direction(level)
        x, y = level.alpha * x0 + level.sigma * eps, a * x0 + b * eps
        slope = (x * y).mean() / x.square().mean()
        error = (y - slope * x).square().mean()
        found = difficulty(level, target, variance)
        rho = (x * y).mean() / (x.square().mean() * y.square().mean()).sqrt()
        expected = {
            "slope": slope, "bayes_error": error, "gradient_scale": error.sqrt(), "correlation": rho,
            "variance": y.square().mean(), "preconditioning": error.rsqrt(),
            "predictability": (slope * x).square().mean() / error, "information": -(1 - rho**2).log() / 2,
        }  # fmt: skip
        for name, value in expected.items():
            torch.testing.assert_close(getattr(found, name), value, rtol=0.02, atol=0.004, msg=name)


def test_published_row_of_unit_data():
    """At s = 1 in vp: eps snr/(1 + snr), x0 1/(1 + snr), v 1 with no information; the score as eps over sigma^2."""
    level, snr = level_of(LOGSNR, "vp"), LOGSNR.exp()
    eps, x0, v, score = (difficulty(level, target, 1.0) for target in (Eps(), X0(), V(), Score()))
    torch.testing.assert_close(eps.bayes_error, snr / (1 + snr))
    torch.testing.assert_close(x0.bayes_error, 1 / (1 + snr))
    torch.testing.assert_close(v.bayes_error, torch.ones_like(snr))
    torch.testing.assert_close(score.bayes_error, snr)
    torch.testing.assert_close(x0.information, torch.log1p(snr) / 2)
    torch.testing.assert_close(eps.information, torch.log1p(1 / snr) / 2)
    torch.testing.assert_close(v.information, torch.zeros_like(snr), rtol=0, atol=1e-12)
    torch.testing.assert_close(score.information, eps.information)
    torch.testing.assert_close(score.correlation, -eps.correlation)
    torch.testing.assert_close(x0.predictability, snr)
    torch.testing.assert_close(score.variance, 1 + snr)


def test_v_is_not_flat_for_other_data():
    """At s = 1/2, snr 1: mean square error 0.4 and 0.223 nats."""
    v = difficulty(level_of(tensor(0.0), "vp"), V(), 0.25)
    assert (float(v.bayes_error), float(v.information)) == pytest.approx((0.4, 0.223), abs=5e-4)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_edm_output_has_unit_residual_and_unit_variance_for_every_target(process, target):
    """Bayes error 1 of F, and Var F = 1, at any s that is the data's own."""
    for s in (0.25, 0.5, 2.0):
        level = level_of(LOGSNR, process.scaling)
        scale = output_scale(level, target, EdmPrecondition(), process, s, s**2)
        torch.testing.assert_close(scale, torch.ones_like(scale))
        a, b = target.direction(level)
        c = EdmPrecondition().coefficients(level, target, process.scaling, s)
        wanted = ((a - c.c_skip * level.alpha) ** 2 * s**2 + (b - c.c_skip * level.sigma) ** 2) / c.c_out**2
        torch.testing.assert_close(wanted, torch.ones_like(wanted), rtol=1e-9, atol=1e-9)
        shown = c.c_in**2 * (level.alpha**2 * s**2 + level.sigma**2)
        torch.testing.assert_close(shown, torch.ones_like(shown))
    off = output_scale(level_of(LOGSNR, process.scaling), target, EdmPrecondition(), process, 0.5, 1.0)
    assert float((off - 1).abs().max()) > 0.3


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_weighted_scale_is_one_curve_for_all_targets(weighting):
    """sqrt(weight_F) times the scale of F's residual, whatever the target and preconditioning."""
    process = PROCESSES["vp"]
    level, one, s, variance = level_of(LOGSNR, "vp"), torch.ones_like(LOGSNR), 0.5, 0.4
    wanted = weighted_scale(level, lambda: one, weighting, s, variance)
    for target in TARGETS.values():
        for precondition in (NoPrecondition(), EdmPrecondition()):
            weight = output_weight(
                level,
                lambda: one,
                process=process,
                target=target,
                precondition=precondition,
                weighting=weighting,
                sigma_data=s,
            )
            found = weight.sqrt() * output_scale(level, target, precondition, process, s, variance)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_only_edm_weighting_flattens():
    """P2 gives sqrt(snr)/(1 + snr), min-SNR sqrt(min(snr, 5)/(1 + snr)), max-SNR grows at low snr; EDM is 1."""
    level, one, snr = level_of(LOGSNR, "vp"), torch.ones_like(LOGSNR), LOGSNR.exp()

    def of(weighting):
        return weighted_scale(level, lambda: one, weighting, 1.0, 1.0)

    torch.testing.assert_close(of(EdmWeighting()), one)
    torch.testing.assert_close(of(P2()), snr.sqrt() / (1 + snr))
    torch.testing.assert_close(of(MinSnr()), (snr.clamp(max=5) / (1 + snr)).sqrt())
    torch.testing.assert_close(of(Simple()), (snr / (1 + snr)).sqrt())
    on_eps = of(MaxSnr())
    torch.testing.assert_close(on_eps, (snr.clamp(min=1) / (1 + snr)).sqrt())


def test_a_spectrum_of_one_ring_is_white_data():
    """And two rings add: errors and information are means over dimensions."""
    level = level_of(LOGSNR, "vp")
    for target in TARGETS.values():
        white = ring_difficulty(level, target, Spectrum(tensor([0.3]), tensor([1.0])))
        flat = difficulty(level, target, 0.3)
        torch.testing.assert_close(white.bayes_error, flat.bayes_error)
        torch.testing.assert_close(white.information, flat.information)
        torch.testing.assert_close(white.explained, flat.correlation**2, rtol=1e-9, atol=1e-12)
        parts = [difficulty(level, target, v) for v in (0.1, 4.0)]
        both = ring_difficulty(level, target, Spectrum(tensor([0.1, 4.0]), tensor([0.75, 0.25])))
        for name in ("bayes_error", "variance", "information"):
            wanted = 0.75 * getattr(parts[0], name) + 0.25 * getattr(parts[1], name)
            torch.testing.assert_close(getattr(both, name), wanted, rtol=1e-9, atol=1e-12)


def test_colour_makes_v_informative():
    """White data of variance 1 leave v unpredictable at every level; a red spectrum of the same variance does not."""
    level = level_of(LOGSNR, "vp")
    red = ring_difficulty(level, V(), Spectrum(tensor([3.7, 0.1]), tensor([0.25, 0.75])))
    assert float(red.information.max()) > 0.3
    assert float(ring_difficulty(level, V(), Spectrum(tensor([1.0]), tensor([1.0]))).information.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("betas", "variance", "scale", "unknown"),
    [(LinearBetas(), 1.0, (0.98, 1.0), 6.5e-5), (LinearBetas(), 0.25, (0.25, 0.98), None),
     (SquaredCosBetas(), 1.0, None, 2.4e-3)],
)  # fmt: skip
def test_posterior_mean_is_nearly_the_state(betas, variance, scale, unknown):
    """mu-tilde has a steady variance, and at most 6.5e-5 (linear) or 2.4e-3 (cosine) of it is unknown given x."""
    process = Ddpm(betas=betas)
    table = process.table()
    total, share = posterior_mean_share(process.level(table[1:]), process.level(table[:-1]), variance)
    if scale is not None:
        assert float(total.min()) == pytest.approx(scale[0], abs=0.01)
        assert float(total.max()) == pytest.approx(scale[1], abs=0.02)
    if unknown is not None:
        assert float(share.max()) == pytest.approx(unknown, rel=0.05)


def test_posterior_mean_of_a_table_that_ends_in_noise_fades():
    """On cosine its variance is below 0.9 for 19 steps, and 0.001 at the last."""
    table = Ddpm(betas=SquaredCosBetas()).table()
    total, _ = posterior_mean_share(level_of(table[1:], "vp"), level_of(table[:-1], "vp"), 1.0)
    assert int((total < 0.9).sum()) == 19
    assert float(total[-1]) == pytest.approx(0.001, rel=0.05)


def test_posterior_mean_is_the_ddpm_formula():
    """sqrt(abar_s) beta/(1 - abar_t) x0 + sqrt(alpha) (1 - abar_s)/(1 - abar_t) x, by its variance on unit data."""
    process = Ddpm()
    abar, betas = torch.sigmoid(process.table()), LinearBetas().betas(1000)
    t = torch.tensor([1, 10, 500, 999])
    p = abar[t - 1].sqrt() * betas[t] / (1 - abar[t])
    q = (1 - betas[t]).sqrt() * (1 - abar[t - 1]) / (1 - abar[t])
    total, share = posterior_mean_share(process.level(process.table()[t]), process.level(process.table()[t - 1]), 1.0)
    torch.testing.assert_close(total, p**2 + q**2 + 2 * p * q * abar[t].sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(share, p**2 * (1 - abar[t]) / total, rtol=1e-9, atol=0)


def test_prior_term_has_its_published_size():
    """Nats per dimension at s^2 = 1/4: 5.05e-6 linear, 5.9e-4 scaled_linear, 3.0e-3 geometric."""
    bits = prior_bits(0.25)
    for name, nats in (("linear", 5.05e-6), ("scaled_linear", 5.9e-4), ("geometric", 3.0e-3)):
        assert bits[name] * math.log(2) == pytest.approx(nats, rel=0.02)
    assert bits["geometric"] * math.log(2) * 3072 == pytest.approx(9.2, abs=0.1)
    assert bits["scaled_linear"] * math.log(2) * 3072 == pytest.approx(1.8, abs=0.05)


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_prior_term_is_a_divergence(scaling):
    """Against drawn x0 with a mean: the average of KL(N(alpha x0, sigma^2) | where sampling starts)."""
    level = level_of(tensor(-1.0), scaling)
    x0 = 0.5 + 0.6**0.5 * torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = 1.0 if scaling == "vp" else float(level.sigma)
    kl = (level.sigma**2 + (level.alpha * x0) ** 2) / (2 * start**2) - 0.5 + torch.log(start / level.sigma)
    torch.testing.assert_close(prior_nats(level, scaling, 0.6 + 0.5**2), kl.mean(), rtol=0.01, atol=1e-4)


def test_denoising_term_is_the_entropy_of_gaussian_data():
    """1/2 of the integral of snr mmse is the information gained: ln((1 + s^2 snr_1)/(1 + s^2 snr_0))/2."""
    logsnr = torch.linspace(-10, 8, 4001, dtype=torch.float64)
    for variance in (0.25, 2.0):
        mse = variance / (1 + variance * logsnr.exp())
        gained = (torch.log1p(variance * logsnr[-1].exp()) - torch.log1p(variance * logsnr[0].exp())) / 2
        torch.testing.assert_close(denoising_nats(logsnr, mse), gained, rtol=1e-5, atol=0)


def test_the_bound_of_an_exact_denoiser_is_the_entropy():
    """The three terms of 8-bit Gaussian images add up to their entropy, wherever the clean end is cut."""
    variance, draws = 0.05, torch.Generator().manual_seed(0)
    x0 = variance**0.5 * torch.randn(4000, 1, 2, 2, dtype=torch.float64, generator=draws)
    x0 = ((x0 + 1) / 2 * 255).round().clamp(0, 255) / 255 * 2 - 1
    entropy = math.log(2 * math.pi * math.e * variance) / 2 - math.log(2 / 255)
    for clean in (9.0, 10.5, 12.0):
        logsnr = torch.linspace(-12, clean, 4001, dtype=torch.float64)
        first, last = level_of(logsnr[0], "vp"), level_of(logsnr[-1], "vp")
        x = last.alpha * x0 + last.sigma * torch.randn(x0.shape, dtype=torch.float64, generator=draws)
        mse = x0.var() / (1 + x0.var() * logsnr.exp())
        total = prior_nats(first, "vp", float(x0.var())) + denoising_nats(logsnr, mse)
        total = total + reconstruction_nats(x, x0, last)
        assert float(total) == pytest.approx(entropy, abs=0.06)


def test_the_command_writes_a_csv_and_a_picture_for_every_chart(tmp_path):
    """Numbers in the CSVs are the closed forms; the page shows every picture; nothing else is touched."""
    path = write_config(tmp_path, weighting={"kind": "min_snr"}, train={**SMALL["train"], "images": 64})
    with drawing():
        record = run_analysis(load_experiment(path), tmp_path / "runs", WORLD)
    folder = tmp_path / "runs" / "small" / "analysis"
    assert {p.stem for p in folder.glob("*.csv")} == set(record["charts"])
    text, html = ((folder / f"index.{ending}").read_text() for ending in ("md", "html"))
    assert text.count("![") == len(list(folder.glob("*.png"))) == 4
    assert min(path.stat().st_size for path in folder.glob("*.png")) > 10_000
    assert html.count('<figure class="plot dense"') == len(record["charts"])
    assert "<img" not in html
    rows = [
        row for row in csv.DictReader((folder / "bayes_error.csv").read_text().splitlines()) if row["curve"] == "x0"
    ]
    assert len(rows) == 241
    pixels = load_experiment(path).data.open().x0(range(400))[list(split(400, 0.1).train)].double()
    assert record["variance"] == pytest.approx(float(pixels.var(0, unbiased=False).mean()), rel=1e-4)
    assert record["second_moment"] == pytest.approx(float(pixels.square().mean()), rel=1e-4)
    for row in rows[::40]:
        level = level_of(tensor(float(row["logsnr"])), "ve")
        assert float(row["Bayes error"]) == pytest.approx(
            float(difficulty(level, X0(), record["variance"]).bayes_error), rel=1e-6
        )
    assert not (tmp_path / "runs" / "small" / "checkpoints").exists()


def test_metrics_over_time_are_those_over_logsnr_at_the_levels_of_the_process():
    """At a third of flow's time, t = 1/3, logsnr is 2 ln 2; of edm's, sigma is a third of the way."""
    for process, logsnr in ((Flow(), 2 * math.log(2)), (Edm(sigma_min=0.002, sigma_max=3), 0.0), (Vp(), math.log(3))):
        e = parse_experiment({**SMALL, "process": process.model_dump(mode="json"), "samplers": {}}, "here")
        charts = {c.name: c for c in time_charts(e, Spectrum(tensor([0.3]), tensor([1.0])))}
        t, error = charts["bayes_error-over-t"].curves["x0"]
        assert float(t[80]) == pytest.approx(1 / 3, abs=1e-3)
        wanted = difficulty(level_of(tensor(logsnr), process.scaling), X0(), 0.3).bayes_error
        assert float(error[80]) == pytest.approx(float(wanted), rel=0.01)
        assert float(error[0]) < 0.02 < 0.2 < float(error[-1])


def test_analyze_prints_where_the_page_is(tmp_path):
    """From the command line, before any training; --json gives the record."""
    write_config(tmp_path)
    done = snrkit(tmp_path, "analyze")
    assert "index.html" in done.stdout
    assert "scaled_linear" in done.stdout
    assert written(tmp_path / "runs" / "small" / "analysis")


EVEN = torch.linspace(-12, 12, 481, dtype=torch.float64)


@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_information_of_gaussian_data_is_its_closed_form(variance):
    """I-MMSE of the exact mse: ln(1 + s^2 snr)/2 for x0, ln(1 + 1/(s^2 snr))/2 for eps, v as the table."""
    level = level_of(EVEN, "vp")
    found = information(EVEN, variance / (1 + variance * EVEN.exp()))
    for target, got in ((X0(), found.x0), (Eps(), found.eps), (V(), found.v)):
        wanted = difficulty(level, target, variance).information
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)
    assert has_density(found)
    assert not has_density(information(EVEN, variance / (1 + variance * EVEN.exp()) * (EVEN < 6)))  # read off at last


def test_information_on_v_is_an_arch_for_a_mixture():
    """Even in logsnr, positive between, 0 at both ends, highest at SNR 1; x0's rises and eps's falls throughout."""
    process = PROCESSES["vp"]
    means = tensor([-1.0, 1.0])
    draws = torch.Generator().manual_seed(0)
    side = torch.randint(2, (200_000,), generator=draws)
    noisy = torch.randn(200_000, dtype=torch.float64, generator=draws)
    x0 = (means[side] + 0.2 * noisy)[:, None, None, None]
    x0 = (x0 - x0.mean()) / x0.std()  # a density of unit variance that is not Gaussian
    s = float(0.2 / (means[side] + 0.2 * noisy).std())
    centres = means / (means[side] + 0.2 * noisy).std()
    denoise = MixtureDenoiser(process, centres[:, None, None, None], tensor([s**2, s**2]), tensor([0.5, 0.5]))
    axis = torch.linspace(-12, 12, 121, dtype=torch.float64)

    def noise(like):
        return torch.randn(like.shape, dtype=torch.float64, generator=draws)

    found = information(axis, x0_errors(denoise, process, [(x0, Cond())], axis, noise).mean(1))
    torch.testing.assert_close(found.v, found.v.flip(0), rtol=0, atol=1e-9)
    assert found.v[60] > 0.2
    assert int(found.v.argmax()) in range(55, 66)
    assert abs(float(found.v[0])) < 0.01
    assert (found.x0.diff() > 0).all()
    assert (found.eps.diff() < 0.003).all()


def test_excess_error_is_read_where_the_exact_denoiser_is_known(tmp_path):
    """An untrained one under EDM's preconditioning is off by its Wiener gain less the exact one."""
    data = {"kind": "gaussian", "shape": [1, 4, 4], "std": 0.5, "count": 4000, "sigma_data": 1.0}
    network = {"kind": "mlp", "dim": 8, "depth": 1}
    train = {"images": 64, "batch": 64, "lr": 1e-12, "averages": []}
    e = load_experiment(write_config(tmp_path, data=data, network=network, train=train))
    run_training(e, tmp_path / "runs", WORLD, quiet=True)
    run_analysis(e, tmp_path / "runs", WORLD)
    rows = (tmp_path / "runs/small/analysis/run-excess.csv").read_text().splitlines()
    for row in [row for row in csv.DictReader(rows) if row["curve"] == "x0"][::6]:
        sigma2 = math.exp(-float(row["logsnr"]))
        gap = 1 / (1 + sigma2) - 0.25 / (0.25 + sigma2)  # gains at the s it was told and at the data's own
        assert float(row["mean square"]) == pytest.approx(gap**2 * (0.25 + sigma2), rel=0.08)


def test_rank_correlation_is_spearmans():
    """1 for what rises together, -1 for what parts, scipy's for noise."""
    from scipy import stats

    one = torch.linspace(0, 1, 30, dtype=torch.float64)
    assert rank_correlation(one, one.exp()) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert math.isnan(rank_correlation(one, torch.ones(30) + 1e-12 * one))
    other = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for each in (other, other.clamp(min=0), (one > 0.9).double()):  # with ties too
        assert rank_correlation(one, each) == pytest.approx(stats.spearmanr(one, each).statistic)
    assert math.isnan(rank_correlation(one, torch.where(other > 1, math.nan, other)))


def test_gradient_signal_to_noise_takes_the_means_own_noise_off():
    """Gradients m + s z of 40 samples: |m|^2/(d s^2), also where m = 0; the norm is sqrt(|m|^2 + d s^2)."""
    for mean, spread in ((0.3, 1.0), (0.0, 1.0)):
        ratios, norms = [], []
        for seed in range(200):
            draws = torch.Generator().manual_seed(seed)
            weight = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))
            rows = mean + spread * torch.randn(40, 20, dtype=torch.float64, generator=draws)
            found = gradients(lambda i, rows=rows, weight=weight: (rows[i] * weight).sum(), 40, [weight])
            ratios.append(found.signal_to_noise)
            norms.append(found.norm)
        assert sum(ratios) / 200 == pytest.approx(mean**2 / spread**2, abs=0.005)
        assert sum(norms) / 200 == pytest.approx(math.sqrt(20 * (mean**2 + spread**2)), rel=0.02)


@pytest.mark.parametrize("precondition", [NoPrecondition(), EdmPrecondition()], ids=["none", "edm"])
@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=lambda target: target.kind)
def test_gradient_signal_to_noise_given_the_state(target, precondition):
    """Of a layer that says 0, over draws of x0 given x, averaged over x: the closed form, for data with a mean.

    The data are Gaussian of variance 0.3 round a mean image, told to be of variance 0.8; the posterior is exact.
    """
    process, draws, variance, size = PROCESSES["vp"], torch.Generator().manual_seed(0), 0.3, 48
    level = process.level(tensor(0.5))
    a, b = target.direction(level)
    c = precondition.coefficients(level, target, process.scaling, math.sqrt(0.8))
    mean, d = torch.linspace(-1, 1, size, dtype=torch.float64), level.alpha**2 * variance + level.sigma**2
    layer, found = torch.nn.Linear(1, size, dtype=torch.float64, bias=False), []
    torch.nn.init.zeros_(layer.weight)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=draws)

    for _ in range(24):
        x = level.alpha * mean + d.sqrt() * normal(size)
        best = mean + level.alpha * variance / d * (x - level.alpha * mean)
        x0 = best + (variance * level.sigma**2 / d).sqrt() * normal(300, size)
        wanted = (a * x0 + b * (x - level.alpha * x0) / level.sigma - c.c_skip * x) / c.c_out

        def loss(index, wanted=wanted):
            return (layer(torch.ones(1, dtype=torch.float64)) - wanted[index]).square().sum()

        found.append(gradients(loss, 300, [layer.weight]).signal_to_noise)
    closed = output_signal_to_noise(
        level, target, precondition, process, math.sqrt(0.8), variance, float(mean.square().mean())
    )
    assert sum(found) / 24 == pytest.approx(float(closed), rel=0.08, abs=2e-3)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_closed_signal_to_noise_of_centred_data(target):
    """Without preconditioning the target's predictability ratio, with EDM's 0 at the data's own variance."""
    level = level_of(LOGSNR, "vp")
    process, plain = PROCESSES["vp"], difficulty(level, target, 0.3).predictability
    found = output_signal_to_noise(level, target, NoPrecondition(), process, 0.5, 0.3)
    torch.testing.assert_close(found, plain)
    flat = output_signal_to_noise(level, target, EdmPrecondition(), process, math.sqrt(0.3), 0.3)
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=lambda target: target.kind)
def test_a_weighting_multiplies_the_gradient_not_its_root(target):
    """At the optimum of unit data it goes with w sqrt(Bayes error): EDM's is flat for v, not for x0 and eps."""
    process, level, snr = PROCESSES["vp"], level_of(LOGSNR, "vp"), LOGSNR.exp()
    weight = output_weight(
        level, lambda: torch.ones_like(LOGSNR), process=process, target=target, precondition=NoPrecondition(),
        weighting=EdmWeighting(), sigma_data=1.0,
    )  # fmt: skip
    found = weight * output_scale(level, target, NoPrecondition(), process, 1.0, 1.0)
    wanted = {"x0": (1 + snr).sqrt(), "eps": (1 + 1 / snr).sqrt(), "v": torch.ones_like(snr)}[target.kind]
    torch.testing.assert_close(found, wanted)


def test_levels_of_shares_of_information():
    """A flat density has its median in the middle; one that sits at an end has it there."""
    flat = torch.ones_like(EVEN)
    for share in (0.05, 0.31, 0.5, 0.95):  # also between levels
        assert level_of_share(EVEN, flat, share) == pytest.approx(float(EVEN[0] + share * (EVEN[-1] - EVEN[0])))
    assert level_of_share(EVEN, (EVEN > 10).double(), 0.05) > 10


def test_a_trained_run_is_read_beside_its_closed_forms(tmp_path):
    """Its errors lie between the exact denoiser's and the data's variance, and the page has its figures."""
    averages = [{"half_life": 500}]
    train = {**SMALL["train"], "images": 3840, "augment": None, "save_every": 3840, "averages": averages}
    network = {**SMALL["network"], "augment": False, "dropout": 0.0}
    e = load_experiment(write_config(tmp_path, train=train, network=network))
    run_training(e, tmp_path / "runs", WORLD, quiet=True)
    record = run_analysis(e, tmp_path / "runs", WORLD)
    folder = tmp_path / "runs" / "small" / "analysis"
    rows = list(csv.DictReader((folder / "run-error.csv").read_text().splitlines()))
    curve = {float(r["logsnr"]): float(r["mse"]) for r in rows if r["curve"] == "run, held-out"}
    for logsnr in list(curve)[4:-4:8]:  # the label names the component, of which 0.1^2 is unknown
        best = float(difficulty(e.process.level(tensor(logsnr)), X0(), 0.01).bayes_error)
        assert 0.9 * best < curve[logsnr] < 1.3 * record["variance"] + best
    assert record["facts"]["Weights"] == "ema-500 at 3840 images"
    assert "Bound, bits per dimension" in record["facts"]
    assert {"run-information", "run-gradients", "run-gsnr", "run-accuracy"} <= {p.stem for p in folder.glob("*.csv")}
    apart = [float(line.rsplit(",", 1)[1]) for line in (folder / "run-features.csv").read_text().splitlines()[1:]]
    assert apart[-1] < 0.01  # nothing is hidden
    assert 0.4 < apart[0] < 1  # the mean image: nearer than another image, which is at 1, not nearer than the mean
