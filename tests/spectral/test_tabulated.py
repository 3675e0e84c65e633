"""Level samplers made of tables: what they draw is what they say, image by image."""

import numpy as np
import pytest
import torch
from scipy import stats

from snrkit.diffusion.process import Vp
from snrkit.spectral.schedule import POINTS, SpectralSchedule, power_spectra
from snrkit.spectral.tabulated import STEEPEST, Tabulated
from snrkit.training.level_samplers import UniformTime
from tests.spectral.test_schedule import pictures

PROCESS = Vp()
T = torch.linspace(0, 1, POINTS, dtype=torch.float64)
UNIFORMS = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def tables(count=5):
    return SpectralSchedule().table(power_spectra(pictures(count)))


def test_points_of_the_table_are_met_exactly():
    """Also both ends; between them it is linear; every image has its own."""
    table = tables()
    levels = Tabulated(table)
    for k in (0, 1, 100, POINTS - 1):
        torch.testing.assert_close(levels.logsnr(T[k].expand(5), PROCESS), table[:, k], rtol=0, atol=1e-12)
    between = levels.logsnr(((T[7] + T[8]) / 2).expand(5), PROCESS)
    torch.testing.assert_close(between, (table[:, 7] + table[:, 8]) / 2)


def test_draws_follow_the_stated_density():
    """Kolmogorov-Smirnov, for each of several images; the density integrates to 1."""
    for row in tables(3):
        levels = Tabulated(row[None])
        drawn = levels.logsnr(UNIFORMS, PROCESS)
        axis = torch.linspace(float(row[-1]), float(row[0]), 40_001, dtype=torch.float64)
        cdf = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(levels.density(axis, PROCESS), axis)])
        assert float(cdf[-1]) == pytest.approx(1, abs=2e-3)
        found = stats.kstest(drawn.numpy(), lambda v, a=axis, c=cdf: np.interp(v, a.numpy(), c.numpy()))
        assert found.pvalue > 1e-3


def test_a_batch_is_its_images():
    """Levels and densities of several tables at once are those of each alone, bit for bit."""
    table = tables()
    u = UNIFORMS[:5]
    together = Tabulated(table)
    logsnr = together.logsnr(u, PROCESS)
    density = together.density(logsnr, PROCESS)
    for k in range(5):
        alone = Tabulated(table[k : k + 1])
        assert torch.equal(alone.logsnr(u[k : k + 1], PROCESS), logsnr[k : k + 1])
        assert torch.equal(alone.density(logsnr[k : k + 1], PROCESS), density[k : k + 1])


def test_a_tabulated_cosine_is_the_cosine():
    """Levels and density of vp's own uniform time, to the spacing of the table."""
    table = PROCESS.sweep(T)[None]
    u = UNIFORMS[(UNIFORMS > 0.05) & (UNIFORMS < 0.95)]
    logsnr = Tabulated(table).logsnr(u, PROCESS)
    torch.testing.assert_close(logsnr, UniformTime().logsnr(u, PROCESS), rtol=0, atol=5e-3)
    found = Tabulated(table).density(logsnr, PROCESS)
    torch.testing.assert_close(found, UniformTime().density(logsnr, PROCESS), rtol=0.05, atol=0)


def test_importance_leaves_the_integral_over_levels():
    """The mean of w/density over draws is the integral of w between the ends, whatever the table."""
    for row in tables(3):
        levels = Tabulated(row[None])
        logsnr = levels.logsnr((torch.arange(200_000) + 0.5) / 200_000, PROCESS)
        found = (torch.sigmoid(-logsnr) / levels.density(logsnr, PROCESS)).mean()
        ends = row[[0, -1]]
        wanted = torch.nn.functional.softplus(-ends[1]) - torch.nn.functional.softplus(-ends[0])
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)


def test_steep_places_are_bounded():
    """A cliff counts as STEEPEST times the mean fall, no more; beyond the ends the density is 0."""
    table = torch.cat([torch.linspace(5, 4, 128), torch.linspace(-4, -5, 129)]).double()[None]
    density = Tabulated(table).density(torch.tensor([0.0, 4.5, 6.0, -6.0]).double(), PROCESS)
    assert float(1 / density[0]) == pytest.approx(STEEPEST * 10)
    assert float(1 / density[1]) < STEEPEST * 10
    assert density[2:].tolist() == [0, 0]
