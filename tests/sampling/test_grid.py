"""Sampling grids."""

import math

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.betas import TrainedBetas
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.grid import (
    BetaSigma,
    IddpmSigmas,
    Karras,
    KlOptimal,
    Listed,
    Polyexponential,
    Trailing,
    UniformLogsnr,
    UniformTime,
    VpSigmas,
)
from tests.exact import PROCESSES, tensor

GRIDS = (
    Karras(steps=9),
    UniformTime(steps=9),
    UniformLogsnr(steps=9),
    Polyexponential(steps=9, rho=1.5),
    BetaSigma(steps=9),
    KlOptimal(steps=9),
    VpSigmas(steps=9),
    IddpmSigmas(steps=9),
)


def test_karras_golden():
    """18 steps from 80 to 0.002, to the printed digits."""
    golden = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882, 0.5853, 0.2964,
              0.1395, 0.0599, 0.0229, 0.0075, 0.002, 0]  # fmt: skip
    sigmas = torch.stack([level.sigma for level in Karras(steps=18).levels(Edm())])
    torch.testing.assert_close(sigmas, torch.tensor(golden, dtype=torch.float64), rtol=0, atol=6e-5)


def sigmas(grid, process):
    """sigma/alpha at every level but the clean one."""
    return torch.exp(-torch.stack([level.logsnr for level in grid.levels(process)[:-1]]) / 2)


def test_kl_optimal_golden():
    """10 steps from 80 to 0.002, to the printed digits."""
    golden = [80, 5.3312, 2.6701, 1.7018, 1.1772, 0.8316, 0.5736, 0.3626, 0.1767, 0.002]
    torch.testing.assert_close(sigmas(KlOptimal(steps=10), Edm()), torch.tensor(golden).double(), rtol=0, atol=6e-5)


def test_kl_optimal_is_best_for_unit_gaussians():
    """With its levels Euler's gain on unit Gaussian data, the product of cosines of its steps, is largest."""

    def gain(grid):  # an Euler step from a to b multiplies by (1 + a b)/(1 + a^2), the flow by root (1 + b^2)/(1 + a^2)
        a = sigmas(grid, Edm())
        return float(torch.cos(torch.atan(a[:-1]) - torch.atan(a[1:])).log().sum())

    others = (Karras(steps=9), UniformLogsnr(steps=9), BetaSigma(steps=9), Polyexponential(steps=9, rho=2))
    assert all(gain(KlOptimal(steps=9)) > gain(other) for other in others)


def test_polyexponential_at_one_is_uniform_logsnr():
    """rho 1 falls evenly, and a larger rho spends more steps at the clean end."""
    for process in PROCESSES.values():
        torch.testing.assert_close(
            sigmas(Polyexponential(steps=7), process), sigmas(UniformLogsnr(steps=7), process), rtol=1e-12, atol=0
        )
    assert sigmas(Polyexponential(steps=7, rho=2), Edm())[3] < sigmas(Polyexponential(steps=7), Edm())[3]


@pytest.mark.parametrize(
    ("flag", "grid"),
    [
        ("use_karras_sigmas", Karras(steps=11)),
        ("use_exponential_sigmas", UniformLogsnr(steps=11)),
        ("use_beta_sigmas", BetaSigma(steps=11)),
    ],
)
def test_sigma_grids_equal_diffusers(flag, grid):
    """Sigmas of diffusers' EulerDiscreteScheduler between the ends of its table, to float32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace", **{flag: True})
    scheduler.set_timesteps(11)
    theirs = scheduler.sigmas.double()[:-1]
    between = Edm(sigma_min=float(theirs[-1]), sigma_max=float(theirs[0]))
    torch.testing.assert_close(sigmas(grid, between), theirs, rtol=2e-5, atol=0)


def test_vp_sigmas_are_table_1():
    """Between the ends of beta_d 19.9 and beta_min 0.1 it is their curve at even times, for any process."""
    curve = lambda t: math.sqrt(math.exp(19.9 / 2 * t**2 + 0.1 * t) - 1)  # noqa: E731
    wanted = [curve(1 + i / 10 * (1e-3 - 1)) for i in range(11)]
    grid = VpSigmas(steps=11, sigma_max=wanted[0], sigma_min=wanted[-1])
    for name in ("edm", "flow", "vp"):
        torch.testing.assert_close(sigmas(grid, PROCESSES[name]), tensor(wanted), rtol=1e-9, atol=0)


def test_vp_sigmas_begin_and_end_at_the_bounds():
    """The betas follow from the bounds; an end that no beta leads to is refused."""
    found = sigmas(VpSigmas(steps=6), Edm())
    assert (float(found[0]), float(found[-1])) == (pytest.approx(80, rel=1e-14), pytest.approx(0.002, rel=1e-14))
    with pytest.raises(SnrkitError, match="raise end"):
        VpSigmas(sigma_min=0.5).levels(Edm())
    assert len(VpSigmas(sigma_min=0.5, end=0.1).levels(Edm())) == 19


def test_iddpm_sigmas_are_table_1():
    """u at floor(j_0 + (M - 1 - j_0) i/(N - 1) + 1/2) with j_0 = 8 of 1000, which is where a sigma_max of 81 begins."""
    total, c_1, c_2, count = 1000, 0.001, 0.008, 18
    share = lambda j: math.sin(math.pi / 2 * j / (total * (c_2 + 1))) ** 2  # noqa: E731
    u = {total: 0.0}
    for j in range(total, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(share(j - 1) / share(j), c_1) - 1)
    least = 0.99 * u[total - 1]
    wanted = [u[math.floor(8 + (total - 1 - 8) / (count - 1) * i + 0.5)] for i in range(count)]
    found = sigmas(IddpmSigmas(steps=count, sigma_min=least, sigma_max=81.0), Edm())
    torch.testing.assert_close(found, tensor(wanted), rtol=1e-9, atol=0)


def test_iddpm_sigmas_that_its_table_has_not_are_refused():
    """More steps than entries, with the number that fits; and bounds between two entries."""
    with pytest.raises(SnrkitError, match="at most 20 steps fit"):
        IddpmSigmas(steps=21, table=20, c_1=1e-9, sigma_min=1e-9, sigma_max=1e12).levels(Edm())
    with pytest.raises(SnrkitError, match="no entry of its table"):
        IddpmSigmas(table=10, sigma_min=1.0, sigma_max=1.0001).levels(Edm())


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_grids_rise_snap_and_end_clean(process, grid):
    """n + 1 levels, strictly rising, each its own snap and told what it is; the last is clean."""
    levels = grid.levels(process)
    logsnr = torch.stack([level.logsnr for level in levels])
    assert len(levels) == grid.steps + 1
    assert (logsnr[1:] > logsnr[:-1]).all()
    assert levels[-1].is_clean()
    assert torch.equal(process.snap(logsnr[:-1]), logsnr[:-1])
    told = process.logsnr(process.time(logsnr[:-1]))
    torch.testing.assert_close(told, logsnr[:-1], rtol=1e-12, atol=1e-9)


def test_ddpm_grids_tell_whole_indices():
    """told == level at every step of a table process: no grid is off by an index or a fraction of one."""
    process = PROCESSES["ddpm"]
    for grid in (*GRIDS, Trailing(steps=9)):
        time = process.time(torch.stack([level.logsnr for level in grid.levels(process)[:-1]]))
        assert torch.equal(time, time.round())


def test_trailing_is_the_published_spacing():
    """round(T - i T/n) - 1: 10 steps of 1000 are 999, 899, ..., 99, and zero terminal SNR starts at pure noise."""
    process = PROCESSES["ddpm"]
    time = process.time(torch.stack([level.logsnr for level in Trailing(steps=10).levels(process)[:-1]]))
    assert time.tolist() == list(range(999, 0, -100))
    zero = Ddpm(betas=TrainedBetas(values=(0.1, 0.3, 0.5, 1.0)), steps=4)
    assert Trailing(steps=2).levels(zero)[0].alpha == 0


def test_uniform_time_is_uniform_in_each_clock():
    """Index on ddpm, t on flow and vp, sigma on edm."""
    ddpm = torch.stack([level.logsnr for level in UniformTime(steps=4).levels(PROCESSES["ddpm"])[:-1]])
    assert PROCESSES["ddpm"].time(ddpm).tolist() == [999, 666, 333, 0]
    flow = [float(level.sigma) for level in UniformTime(steps=4).levels(PROCESSES["flow"])]
    assert flow == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    edm = [float(level.sigma) for level in UniformTime(steps=3).levels(Edm(sigma_min=1, sigma_max=5))]
    assert edm == pytest.approx([5, 3, 1, 0])


def test_repeated_levels_are_refused_with_what_fits():
    """A table of 50 levels has room for no grid of 60; the message names the largest that fits, and that one works."""
    process = Ddpm(steps=50)
    with pytest.raises(SnrkitError, match="at most 50 steps"):
        UniformTime(steps=60).levels(process)
    assert len(UniformTime(steps=50).levels(process)) == 51
    with pytest.raises(SnrkitError, match=r"at most \d+ steps fit") as error:
        Karras(steps=50).levels(process)
    fits = int(str(error.value).split("at most ")[1].split()[0])
    assert len(Karras(steps=fits).levels(process)) == fits + 1


def test_trailing_without_a_table_is_refused():
    """The spacing has no meaning on a continuous clock."""
    with pytest.raises(SnrkitError, match="needs a process with a table"):
        Trailing(steps=5).levels(Edm())


def test_given_ends_are_hit_exactly():
    """karras' sigma_min and sigma_max, uniform_logsnr's ends."""
    levels = Karras(steps=7, sigma_min=0.01, sigma_max=10).levels(PROCESSES["vp"])
    assert math.exp(-levels[0].logsnr / 2) == pytest.approx(10, rel=1e-14)
    assert math.exp(-levels[-2].logsnr / 2) == pytest.approx(0.01, rel=1e-14)
    levels = UniformLogsnr(steps=3, logsnr_min=-2, logsnr_max=4).levels(Edm())
    assert [float(level.logsnr) for level in levels] == [-2, 1, 4, math.inf]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_list_of_a_grid_s_levels_is_that_grid(grid, name):
    """As logsnr, as sigma over alpha and as times of the network, whichever are finite."""
    process = PROCESSES[name]
    levels = grid.levels(process)
    logsnr = torch.stack([level.logsnr for level in levels[:-1]])
    lists = [Listed(time=tuple(process.time(logsnr).tolist()))]
    if bool(logsnr.isfinite().all()):
        lists += [Listed(logsnr=tuple(logsnr.tolist())), Listed(sigma=tuple(torch.exp(-logsnr / 2).tolist()))]
    for listed in lists:
        assert listed.steps == grid.steps
        found = torch.stack([level.logsnr for level in listed.levels(process)])
        torch.testing.assert_close(found[:-1], logsnr, rtol=1e-9, atol=1e-9)
        assert float(found[-1]) == math.inf


def test_a_published_list_may_end_in_the_clean_level():
    """AYS's ten sigmas of Stable Diffusion, with the 0 that is printed behind them."""
    sigmas = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
    with_end, without = (Listed(sigma=listed).levels(Edm()) for listed in ((*sigmas, 0.0), sigmas))
    assert [float(level.sigma) for level in with_end] == [float(level.sigma) for level in without]
    assert len(with_end) == 12


@pytest.mark.parametrize(
    "options",
    [{}, {"sigma": (1.0,), "time": (3.0,)}, {"sigma": ()}, {"sigma": (1.0, -1.0)}, {"sigma": (0.0,)}],
)
def test_lists_that_say_nothing_are_refused(options):
    """None, two, empty, or of levels that are none."""
    with pytest.raises(ValueError, match=r"give one of|above 0|at least 1"):
        Listed(**options)


@pytest.mark.parametrize(
    ("listed", "process"),
    [
        (Listed(sigma=(1.0, 2.0)), Edm()),
        (Listed(logsnr=(1.0, 1.0)), Edm()),
        (Listed(time=(0.5, 0.7)), Flow()),
        (Listed(time=(999.0, 998.9, 998.8)), Ddpm()),
    ],
)
def test_lists_that_do_not_rise_are_refused(listed, process):
    """Whatever they are listed in, and where two lie at one entry of a table."""
    with pytest.raises(SnrkitError, match="cleaner than the one before"):
        listed.levels(process)
