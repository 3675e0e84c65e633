"""The instrument reads its null with an exact denoiser, and a known shift where there is one."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from snrkit.corrections import EpsilonScaling
from snrkit.grid import Karras, UniformLogsnr, UniformTime
from snrkit.prediction import Prediction, Wrapped
from snrkit.process import Ddpm, Edm, Flow
from snrkit.sample import sample, start
from snrkit.shift.config import ShiftConfig
from snrkit.shift.files import as_csv, as_png, as_record
from snrkit.shift.measure import Arm, compare, forward_arm, reverse_arm
from snrkit.solvers import Euler, Heun
from tests.exact import gaussian

SHAPE, VARIANCE, COUNT = (1, 4, 4), 0.25, 600


def clean(count, seed):
    """Images of N(0, VARIANCE)."""
    draws = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws * VARIANCE**0.5


def measure(process, solver, grid, distort=lambda x: x, corrections=(), denoise=None, exact_start=True):
    """The measurement of a sampler with the exact denoiser of N(0, VARIANCE); `distort` tampers with its start."""
    denoise = denoise or gaussian(process, 0.0, VARIANCE, SHAPE)
    levels = grid.levels(process)
    noise = torch.randn(COUNT, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def trajectory(wrapped):
        x = distort(start(process, noise, levels[0], VARIANCE if exact_start else None))
        return sample(wrapped, solver, levels, x, corrections=corrections)

    reverse, visited = reverse_arm(denoise, [trajectory])
    arms = [
        forward_arm(denoise, visited, clean(COUNT, seed), torch.arange(COUNT), None, key=(9, seed), batch=200,
                    device=torch.device("cpu"))
        for seed in (1, 2)
    ]  # fmt: skip
    return compare(reverse, *arms, visited, VARIANCE, ShiftConfig(images=COUNT, bootstrap=400), 0)


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=["edm", "ddpm", "flow"])
def test_an_exact_denoiser_and_many_steps_read_the_null(process):
    """Norm gap 0 and variance ratio 1 within the intervals of reading and null, at every level and on average."""
    low, high = (-8.0, 8.0) if process.scaling != "ve" else (-6.0, 8.0)
    fine = UniformLogsnr(steps=120, logsnr_min=low, logsnr_max=high)
    shift = measure(process, Heun(), UniformTime(steps=200) if process.scaling == "vp" else fine)
    for reading, truth in (
        (shift.mean_norm_gap, 0),
        (shift.mean_norm_gap_null, 0),
        (shift.mean_log_variance_ratio, 0),
        (shift.mean_log_variance_ratio_null, 0),
    ):
        margin = 0.6 * (reading.high - reading.low)
        assert reading.low - margin <= truth <= reading.high + margin
    inside = np.mean(
        [lo <= 1 <= hi for lo, hi in zip(shift.variance_ratio_null.low, shift.variance_ratio_null.high, strict=True)]
    )
    assert inside > 0.8
    assert max(abs(v - 1) for v in shift.variance_ratio.value) < 0.06
    assert max(abs(v) for v in shift.norm_gap.value) < 0.12


def test_few_euler_steps_read_their_discretisation_error():
    """The variance ratio of the zero-error control: its last reading is what the closed recursion gives."""
    process, grid = Edm(), Karras(steps=13)
    shift = measure(process, Euler(), grid)
    levels = grid.levels(process)
    variance = float(levels[0].sigma ** 2 + VARIANCE)
    for here, there in pairwise(levels[:-1]):
        gain = (VARIANCE + float(here.sigma) * float(there.sigma)) / (VARIANCE + float(here.sigma) ** 2)
        variance *= gain**2
    expected = variance / (VARIANCE + float(levels[-2].sigma) ** 2)
    assert shift.variance_ratio.value[-1] == pytest.approx(expected, rel=0.04)
    assert shift.variance_ratio.high[-1] < shift.variance_ratio_null.low[-1]
    assert shift.mean_log_variance_ratio.high < 0


def test_a_known_shift_is_read_with_its_sign_and_size():
    """States scaled by 1.1 at the start have the variance ratio 1.21 and the norm gap ln 1.21 at the first level."""
    process = Edm()
    grid = UniformLogsnr(steps=40, logsnr_min=-6, logsnr_max=8)
    plain, scaled = measure(process, Heun(), grid), measure(process, Heun(), grid, lambda x: 1.1 * x)
    assert scaled.variance_ratio.value[0] / plain.variance_ratio.value[0] == pytest.approx(1.21, rel=1e-6)
    assert scaled.norm_gap.value[0] - plain.norm_gap.value[0] == pytest.approx(math.log(1.21), rel=1e-6)


def test_division_by_a_constant_does_not_close_the_gap_by_itself():
    """Norms are of what the network says, not of what epsilon scaling makes of it."""
    process, grid = Edm(), Karras(steps=4)
    plain = measure(process, Euler(), grid)
    scaled = measure(process, Euler(), grid, corrections=(EpsilonScaling(scale=2.0),))
    assert scaled.rms_reverse.value[0] == plain.rms_reverse.value[0]
    assert scaled.rms_reverse.value[1] != plain.rms_reverse.value[1]


def test_the_arms_see_the_same_network_and_levels():
    """A network that says eps = 2 everywhere has rms 2 and norm 2 sqrt(D) in every arm, and gap 0."""
    process = Edm()
    two = Wrapped(process, lambda x, level, told, cond: Prediction(x - 2 * level.sigma, torch.full_like(x, 2.0)))
    shift = measure(process, Euler(), Karras(steps=5), denoise=two)
    for curve in (shift.rms_reverse, shift.rms_forward, shift.rms_train):
        assert curve.value == pytest.approx([2.0] * 5)
    assert shift.norm_reverse == pytest.approx([8.0] * 5)
    assert shift.norm_gap.value == pytest.approx([0.0] * 5, abs=1e-12)


def test_bootstrap_intervals_cover():
    """Over many repetitions the 95 % interval of a variance ratio holds the truth about 95 times in 100."""
    hits, level = 0, Edm().level(torch.tensor(0.0, dtype=torch.float64))
    for seed in range(120):
        draws = torch.Generator().manual_seed(seed)
        made = [
            Arm(torch.rand(1, 80, generator=draws).double() + 1, torch.randn(1, 80, 4, generator=draws) * 1.5**0.5,
                torch.arange(80))
            for _ in range(3)
        ]  # fmt: skip
        shift = compare(*made, [level], 0.5, ShiftConfig(bootstrap=200), seed)
        hits += shift.variance_ratio.low[0] <= 1 <= shift.variance_ratio.high[0]
    assert 105 <= hits <= 120


@pytest.mark.parametrize("dims", [64, 3072])
@pytest.mark.parametrize("images", [180, 1000])
def test_the_variance_ratio_is_unbiased_in_many_dimensions(dims, images):
    """Intervals centre on the reading and hold 1, also where 180 images are repeated to fill 1,000 places."""
    level, inside = Edm().level(torch.tensor(6.0, dtype=torch.float64)), 0
    for seed in range(12):
        draws = torch.Generator().manual_seed(seed)
        rows = torch.arange(1000) % images
        states = torch.randn(images, dims, generator=draws)[rows] * 0.5
        states = states + float(level.sigma) * torch.randn(1000, dims, generator=draws)
        arm = Arm(torch.ones(1, 1000).double(), states[None], rows)
        shift = compare(arm, arm, arm, [level], 0.25, ShiftConfig(bootstrap=200), seed)
        assert shift.variance_ratio.low[0] < shift.variance_ratio.value[0] < shift.variance_ratio.high[0]
        inside += shift.variance_ratio.low[0] <= 1 <= shift.variance_ratio.high[0]
    assert inside >= 9


def test_pure_noise_is_measured_and_written(tmp_path):
    """A flow grid from t = 1 has logsnr -inf: JSON says null, CSV -inf, and the picture leaves it out."""
    from snrkit.files import write_json

    shift = measure(Flow(), Euler(), UniformTime(steps=4), exact_start=False)
    assert shift.logsnr[0] == -math.inf
    write_json(tmp_path / "shift.json", as_record(shift))
    assert json.loads((tmp_path / "shift.json").read_text())["logsnr"][0] is None
    assert as_csv(shift).splitlines()[1].startswith("-inf,")
    assert as_png(shift, "title").startswith(b"\x89PNG")


def test_repeated_images_widen_the_interval():
    """Twenty images with thirty noises each say less than six hundred images: they are resampled together."""
    process = Edm()
    levels = [process.level(torch.tensor(4.0, dtype=torch.float64))]
    denoise = gaussian(process, 0.0, VARIANCE, SHAPE)
    widths = []
    for images in (20, 600):
        rows = torch.arange(600) % images
        made = [
            forward_arm(denoise, levels, clean(images, 3)[rows], rows, None, key=(9, k), batch=600,
                        device=torch.device("cpu"))
            for k in range(3)
        ]  # fmt: skip
        curve = compare(*made, levels, VARIANCE, ShiftConfig(), 0).variance_ratio
        widths.append(curve.high[0] - curve.low[0])
    assert widths[0] > 3 * widths[1]


def test_files_hold_the_measurement():
    """JSON round-trips, CSV has a row a level with the same numbers, PNG is a picture."""
    shift = measure(Edm(), Euler(), Karras(steps=4))
    record = json.loads(json.dumps(as_record(shift, nfe=4)))
    assert record["norm_gap"]["value"] == shift.norm_gap.value
    rows = as_csv(shift).splitlines()
    column = rows[0].split(",").index("variance_ratio")
    assert [float(row.split(",")[column]) for row in rows[1:]] == shift.variance_ratio.value
    assert as_png(shift, "title").startswith(b"\x89PNG")
