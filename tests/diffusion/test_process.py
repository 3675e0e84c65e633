"""Clocks, scalings and tables."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.betas import LinearBetas, ScaledLinearBetas, SquaredCosBetas, TrainedBetas
from snrkit.diffusion.denoiser import EdmPrecondition
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import FlowVelocity
from snrkit.diffusion.process import Ddpm, Edm, Flow, OwnTime, Process, Vp, shift_of
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Heun
from snrkit.training.level_samplers import Laplace, LogitNormal, LogNormal, LogUniform
from snrkit.training.level_samplers import UniformTime as UniformTimeLevels
from snrkit.training.objective import Objective
from snrkit.training.weighting import Velocity
from tests.exact import gaussian, gaussian_flow, tensor

ZERO_SNR = (*np.linspace(1e-3, 0.5, 49), 1.0)
TABLES = {
    "linear": Ddpm(),
    "scaled_linear": Ddpm(betas=ScaledLinearBetas()),
    "squaredcos_cap_v2": Ddpm(betas=SquaredCosBetas()),
    "short": Ddpm(betas=LinearBetas(start=1e-3, end=0.2), steps=7),
    "zero-snr": Ddpm(betas=TrainedBetas(values=ZERO_SNR), steps=50),
    "ve": Ddpm(scaling="ve"),
}
CONTINUOUS = {"edm": Edm(), "flow": Flow(), "vp": Vp(), "vp by logsnr": Vp(clock="logsnr", logsnr_shift=1.5)}


@pytest.mark.parametrize("process", TABLES.values(), ids=TABLES)
def test_table_clock_is_exact(process):
    """time(logsnr(k)) == k for every index of every table, -inf of zero terminal SNR included."""
    k = torch.arange(process.steps, dtype=torch.float64)
    assert torch.equal(process.time(process.logsnr(k)), k)
    assert torch.equal(process.snap(process.logsnr(k)), process.table())


@pytest.mark.parametrize(("name", "process"), CONTINUOUS.items())
@given(u=st.floats(1e-6, 1 - 1e-6))
def test_continuous_clock_inverts(name, process, u):
    """time(logsnr(t)) == t to 1e-12 of the clock's range."""
    t = process.time(process.sweep(tensor(u)))
    torch.testing.assert_close(process.time(process.logsnr(t)), t, rtol=0, atol=1e-12)
    assert torch.equal(process.snap(tensor(u)), tensor(u))


@given(logsnr=st.floats(-14, 14))
def test_scalings_agree(logsnr):
    """alpha and sigma of the three scalings have one ratio, exp(-logsnr/2), and each its own normalisation."""
    level = {scaling: level_of(tensor(logsnr), scaling) for scaling in ("vp", "ve", "flow")}
    for found in level.values():
        torch.testing.assert_close(found.sigma / found.alpha, tensor(math.exp(-logsnr / 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(level["vp"].alpha ** 2 + level["vp"].sigma ** 2, tensor(1.0))
    torch.testing.assert_close(level["flow"].alpha + level["flow"].sigma, tensor(1.0))
    assert level["ve"].alpha == 1


def test_ends_are_finite():
    """The clean end and, in vp and flow, pure noise are exact."""
    for scaling in ("vp", "ve", "flow"):
        clean = level_of(tensor(math.inf), scaling)
        assert (clean.alpha, clean.sigma) == (1, 0)
    for scaling in ("vp", "flow"):
        noise = level_of(tensor(-math.inf), scaling)
        assert (noise.alpha, noise.sigma) == (0, 1)


def test_published_ends_of_tables():
    """abar_T of linear 4.04e-5, scaled_linear 4.66e-3, cosine 2.4e-9; logsnr_T of linear -10.12, of scaled -5.36."""
    end = {name: TABLES[name].table()[-1] for name in ("linear", "scaled_linear", "squaredcos_cap_v2")}
    assert torch.sigmoid(end["linear"]).item() == pytest.approx(4.04e-5, rel=2e-3)
    assert torch.sigmoid(end["scaled_linear"]).item() == pytest.approx(4.66e-3, rel=2e-3)
    assert torch.sigmoid(end["squaredcos_cap_v2"]).item() == pytest.approx(2.4e-9, rel=0.02)
    assert end["linear"].item() == pytest.approx(-10.12, abs=0.005)
    assert end["scaled_linear"].item() == pytest.approx(-5.36, abs=0.005)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables_equal_diffusers(name):
    """alphas_cumprod of diffusers' DDPMScheduler, to 2e-5 relative (it accumulates in float32)."""
    diffusers = pytest.importorskip("diffusers")
    ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}[name]
    scheduler = diffusers.DDPMScheduler(1000, *ends, beta_schedule=name)
    reference = scheduler.alphas_cumprod.double()
    ours = torch.sigmoid(TABLES[name].table())
    torch.testing.assert_close(ours[:-1], reference[:-1], rtol=2e-5, atol=0)


def test_betas_and_table_agree_with_the_plain_product():
    """logsnr from log1p sums equals ln(abar/(1-abar)) from the plain cumulative product where that is accurate."""
    abar = torch.cumprod(1 - LinearBetas().betas(1000), 0)
    torch.testing.assert_close(Ddpm().table(), torch.log(abar / (1 - abar)), rtol=1e-9, atol=1e-9)


def test_uniform_draws_hit_every_index_equally():
    """A stratified sweep of uniforms visits each table entry the same number of times."""
    process = TABLES["short"]
    drawn = process.draw((torch.arange(7000, dtype=torch.float64) + 0.5) / 7000)
    assert torch.equal(torch.bincount(process.time(drawn).long()), torch.full((7,), 1000))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainedBetas(values=(0.1, 1.2)), "must lie in"),
        (lambda: Ddpm(betas=TrainedBetas(values=(0.1, 0.2)), steps=3), "lists 2 values"),
        (lambda: Ddpm(betas=TrainedBetas(values=(0.1, 1.0)), steps=2, scaling="ve"), "zero terminal SNR"),
        (lambda: Edm(sigma_min=2, sigma_max=1), "must be below"),
        (lambda: Vp(logsnr_min=3, logsnr_max=1), "must be below"),
    ],
)
def test_impossible_processes_are_refused(make, words):
    """What cannot work says so in words."""
    with pytest.raises((ValueError, SnrkitError), match=words):
        make()


@pytest.mark.parametrize("betas", [LinearBetas(), ScaledLinearBetas()], ids=lambda b: b.kind)
def test_zero_terminal_snr_moves_the_end_and_keeps_the_beginning(betas):
    """sqrt(abar) is moved and scaled: abar_T = 0 and abar_1 as before, as diffusers' rescale_zero_terminal_snr."""
    plain, moved = Ddpm(betas=betas), Ddpm(betas=betas, rescale_betas_zero_snr=True)
    before, after = torch.sigmoid(plain.table()), torch.sigmoid(moved.table())
    assert float(after[-1]) == 0
    assert float(moved.table()[0]) == pytest.approx(float(plain.table()[0]), rel=1e-12)
    root, first, last = before.sqrt(), before[0].sqrt(), before[-1].sqrt()
    torch.testing.assert_close(after, ((root - last) * first / (first - last)) ** 2, rtol=1e-9, atol=1e-15)
    index = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(moved.time(moved.logsnr(index)), index)
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    theirs = scheduling.rescale_zero_terminal_snr(betas.betas(1000))
    torch.testing.assert_close(torch.cumprod(1 - theirs, 0), after, rtol=1e-6, atol=1e-9)


def test_zero_terminal_snr_twice_is_refused():
    """A table that ends at pure noise already has nothing to move."""
    values = (*[0.1] * 9, 1.0)
    with pytest.raises(ValueError, match="has no effect"):
        Ddpm(betas=TrainedBetas(values=values), steps=10, rescale_betas_zero_snr=True)


def test_what_a_network_reads_changes_nothing_else():
    """With a clock in logsnr the time is EDM's at the same SNR; levels uniform in t, and their density, stay."""
    own, plain = (Vp(clock=clock, logsnr_shift=-1.0) for clock in ("logsnr", "t"))
    logsnr, u = tensor([-14.0, -3.0, 0.0, 9.0]), torch.linspace(0, 1, 65, dtype=torch.float64)
    torch.testing.assert_close(own.time(logsnr), Edm().time(logsnr), rtol=0, atol=1e-12)
    for same in (lambda p: p.sweep(u), lambda p: p.draw(u), lambda p: p.fraction(logsnr), lambda p: p.bounds,
                 lambda p: p.draw_density(logsnr)):  # fmt: skip
        torch.testing.assert_close(same(own), same(plain), rtol=0, atol=0)


class Plain:
    """A process that answers `Process` and nothing else: the straight line, read by its network as logsnr."""

    scaling = "flow"
    bounds = (-8.0, 8.0)

    def level(self, logsnr):
        return level_of(logsnr, "flow")

    def time(self, logsnr):
        return -logsnr.to(torch.float64)

    def logsnr(self, time):
        return -time.to(torch.float64)

    def snap(self, logsnr):
        return logsnr.to(torch.float64)


def test_a_process_is_six_answers():
    """No member of the protocol is about time that is uniform, or about a shift; what the package has adds these."""
    asked, answered = ({name for name in vars(kind) if not name.startswith("_")} for kind in (Process, Plain))
    assert asked == answered == {"scaling", "bounds", "level", "time", "logsnr", "snap"}
    for process in (*TABLES.values(), *CONTINUOUS.values()):
        assert isinstance(process, OwnTime)
    assert [shift_of(process) for process in (Edm(), Vp(logsnr_shift=1.5), Plain())] == [0, 1.5, 0]


def test_a_process_of_six_answers_trains_and_samples():
    """Wherever levels are laid out in logsnr or sigma; where they are to be uniform in its time it is refused."""
    process, x = Plain(), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    denoise = gaussian(process, shape=(1, 2, 2))
    for step in sample(denoise, Heun(), Karras(steps=40).levels(process), x):
        end = step.x_next
    wanted = gaussian_flow(x, process.level(tensor(-8.0)), process.level(tensor(math.inf)))
    torch.testing.assert_close(end, wanted, rtol=0, atol=2e-2)
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for levels in (LogNormal(), LogitNormal(), LogUniform(), Laplace()):
        objective = Objective(process, FlowVelocity(), EdmPrecondition(), levels, Velocity(), 0.5)
        assert bool((objective.weight(objective.logsnr(u)) > 0).all())
    assert torch.equal(LogitNormal().logsnr(u, process), LogitNormal().logsnr(u, Flow()))
    for impossible in (lambda: UniformTimeLevels().logsnr(u, process), lambda: UniformTime().levels(process)):
        with pytest.raises(SnrkitError, match="Plain has no time of its own for levels to be uniform in"):
            impossible()
