"""Sampling grids."""

import math

import pytest
import torch

from snrkit.errors import SnrkitError
from snrkit.grid import Karras, Trailing, UniformLogsnr, UniformTime
from snrkit.process import Ddpm, Edm, TrainedBetas
from tests.exact import PROCESSES

GRIDS = (Karras(steps=9), UniformTime(steps=9), UniformLogsnr(steps=9))


def test_karras_golden():
    """18 steps from 80 to 0.002, to the printed digits."""
    golden = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882, 0.5853, 0.2964,
              0.1395, 0.0599, 0.0229, 0.0075, 0.002, 0]  # fmt: skip
    sigmas = torch.stack([level.sigma for level in Karras(steps=18).levels(Edm())])
    torch.testing.assert_close(sigmas, torch.tensor(golden, dtype=torch.float64), rtol=0, atol=6e-5)


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
