"""The response: 1 where an exact denoiser is linear, 0 where the network normalises its input, and what follows."""

import json
import math

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import snrkit
from snrkit.diffusion.prediction import Cond, Eps, Wrapped, solve
from snrkit.sampling.grid import UniformLogsnr
from snrkit.sampling.sampler import OpenedSampler
from snrkit.sampling.solvers import Euler
from snrkit.shift import response
from snrkit.shift.arms import forward_arm
from snrkit.shift.bootstrap import Bootstrap, Curve, Number
from snrkit.shift.control import of_covariance
from snrkit.shift.examine import Side
from snrkit.shift.response import SEEN, Response, ResponseProbe, measure_response, scaled_squares
from snrkit.shift.verdict import verdict_on
from tests.exact import PROCESSES, gaussian, mixture
from tests.small import SMALL
from tests.small import snrkit as command

CPU = torch.device("cpu")
SHAPE, VARIANCE, COUNT = (1, 4, 4), 0.25, 60
BOOT = Bootstrap(100, 0.95, 0)


def images(count=COUNT, mean=0.0, variance=VARIANCE, seed=1):
    draws = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + draws * variance**0.5


def levels_of(process, low=-4.0, high=6.0, steps=6):
    return [process.level(v) for v in torch.linspace(low, high, steps, dtype=torch.float64)]


def responded(denoise, x0, levels):
    """The response on images, beside their own forward arm."""
    rows = torch.arange(len(x0))
    held = Side(lambda: x0, rows, levels, Cond())
    arm = forward_arm(denoise, levels, x0, rows, Cond(), key=(5, 0, 0), batch=25, device=CPU)
    return measure_response(denoise, held, arm, BOOT, seed=0, batch=25, device=CPU)


def normalising(exact):
    """An exact denoiser that is shown every state at the scale that states of its level have, and is read as eps."""

    def answer(x, level, told, cond):
        size = (level.alpha**2 * VARIANCE + level.sigma**2).sqrt()
        seen = x * size / x.square().mean((1, 2, 3), keepdim=True).sqrt()
        return solve(x, exact(seen, level).eps, level, Eps())

    return Wrapped(exact.process, answer)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_of_centred_gaussian_data_it_is_one(process):
    """In every process, at every level, in every resample: the exact denoiser is linear."""
    found = responded(gaussian(process, 0.0, VARIANCE, SHAPE), images(), levels_of(process))
    for values in (found.levels.value, found.levels.low, found.levels.high):
        assert values == pytest.approx([1.0] * 6, abs=1e-9)
    assert (found.mean.low, found.mean.value, found.mean.high) == pytest.approx((1, 1, 1), abs=1e-9)
    assert not found.blind
    assert found.blind_levels == 0


def test_of_any_covariance_it_is_one():
    """Whatever the spectrum, as each mode is shrunk by a constant."""
    process = snrkit.Edm()
    factor = torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    denoise = of_covariance(process, factor @ factor.T / 16, SHAPE, apart=False)
    assert responded(denoise, images(), levels_of(process)).levels.value == pytest.approx([1.0] * 6, abs=1e-9)


def of_mean(k):
    """The closed form at k = alpha^2 |m|^2 over the variance of states."""
    each = [abs(math.log(c**2 + (1 - c) ** 2 * k)) / abs(math.log(c**2)) for c in (0.9, 1.1)]
    return sum(each) / 2


@given(k=st.floats(0, 1e6))
def test_a_mean_leaves_most_of_it(k):
    """0.88 at the least, whatever the mean, where one side answers nothing; never blind."""
    assert of_mean(k) >= 0.88
    assert of_mean(19.0) < 0.885


@pytest.mark.parametrize("mean", [0.3, -2.0])
def test_of_gaussian_data_with_a_mean_it_is_its_closed_form(mean):
    """By level, within what sampling leaves."""
    process = snrkit.Vp()
    levels = levels_of(process)
    found = responded(gaussian(process, mean, VARIANCE, SHAPE), images(1000, mean), levels)
    known = [float(v.alpha**2 * mean**2 / (v.alpha**2 * VARIANCE + v.sigma**2)) for v in levels]
    assert found.levels.value == pytest.approx([of_mean(k) for k in known], rel=0.05)


def test_a_denoiser_that_is_not_linear_is_not_blind():
    """Of narrow bumps a state that is too small or too large lies off all of them."""
    process = snrkit.Edm()
    draws = mixture(process, SHAPE)
    x0 = draws.means[torch.arange(COUNT) % 3] + 0.2 * images(variance=1.0)
    found = responded(draws, x0, levels_of(process))
    assert found.blind_levels == 0
    assert not found.blind


def test_a_network_that_normalises_its_input_answers_nothing():
    """0 to rounding at every level, and blind, though its norm gap on real images is that of the exact denoiser."""
    process = snrkit.Vp()
    exact = gaussian(process, 0.0, VARIANCE, SHAPE)
    found = responded(normalising(exact), images(), levels_of(process))
    assert found.levels.value == pytest.approx([0.0] * 6, abs=1e-9)
    assert found.blind
    assert found.blind_levels == 6


def test_states_are_those_of_the_forward_arm(monkeypatch):
    """Unscaled they give its squares, bit for bit, of the first images of a larger arm too."""
    process = snrkit.Edm()
    denoise, levels, x0, rows = (
        gaussian(process, 0.0, VARIANCE, SHAPE),
        levels_of(process),
        images(),
        torch.arange(COUNT),
    )
    monkeypatch.setattr(response, "SCALES", (1.0, 1.0))
    arm = forward_arm(denoise, levels, x0, rows, Cond(), key=(5, 0, 0), batch=25, device=CPU)
    held = Side(lambda: x0[:40], rows[:40], levels, Cond())
    found = scaled_squares(denoise, held, key=(5, 0, 0), batch=10, device=CPU)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], arm.eps_square[:, :40], rtol=1e-12, atol=0)


def reading(denoise, scale):
    """Of states that are walked from noise `scale` times too large."""
    levels = tuple(UniformLogsnr(steps=12, logsnr_min=-5, logsnr_max=5).levels(snrkit.Vp()))
    start = Wrapped(denoise.process, lambda x, level, told, cond: denoise(x, level))
    trained, held = (images(200, seed=seed).clamp(-1, 1).float() for seed in (5, 6))
    opened = OpenedSampler(levels, Louder(scale), ())
    return snrkit.measure(start, opened, trained=trained, held=held, images=200, bootstrap=200)


class Louder:
    """Euler's steps on states that the first step makes too large."""

    order, renews = 1, 0.0

    def __init__(self, scale):
        self.scale = scale

    def step(self, denoise, x, position, memory, noise):
        return Euler().step(denoise, x * (self.scale if position.index == 0 else 1.0), position, memory, noise)


def test_a_blind_network_s_states_are_never_called_clean():
    """States of many times the variance leave its norm gap near its null: the verdict says that it cannot say."""
    exact = gaussian(snrkit.Vp(), 0.0, VARIANCE, SHAPE)
    seen, blind = (reading(denoise, 4.0) for denoise in (exact, normalising(exact)))
    for found in (seen, blind):
        assert found.shift.mean_log_variance_ratio.value > 1
    assert "look noisier" in seen.verdict
    assert abs(blind.shift.mean_norm_gap.value) < 0.1
    assert blind.response.blind
    assert "cannot say" in blind.verdict
    assert "read the variance ratio" in blind.verdict
    assert blind.to_dict()["response"]["mean"]["value"] == blind.response.mean.value
    assert json.dumps(blind.to_dict(), allow_nan=False)


def a_response(value):
    return Response(100, Curve([value], [value], [value]), Number(value, value - 0.01, value + 0.01))


@pytest.mark.parametrize(
    ("gap", "value", "said"),
    [
        ((0.2, 0.1, 0.3), 0.1, "look noisier"),  # it sees that much
        ((-0.2, -0.3, -0.1), 0.1, "cannot say"),
        ((0.0, -0.1, 0.1), 0.1, "cannot say"),
        ((0.0, -0.1, 0.1), 0.6, "No shift is shown"),
        ((0.0, -0.1, 0.1), SEEN, "No shift is shown"),  # the interval reaches it
        ((-0.2, -0.3, -0.1), 0.6, "look cleaner"),
    ],
)
def test_what_a_blind_network_may_say(gap, value, said):
    """That states are noisier, and nothing else."""
    assert said in verdict_on(Number(*gap), Number(0.0, -0.05, 0.05), a_response(value))


def test_it_warns_where_it_is_blind():
    """After a sampler's name; the cell counts the levels."""
    probe, blind, seen = ResponseProbe(), a_response(0.1), a_response(1.0)
    assert probe.warning(seen) is None
    assert "hardly sees how large its states are (response 0.10 [0.09, 0.11] of 1" in probe.warning(blind)
    assert probe.cells(blind) == ("+0.1000 [+0.0900, +0.1100], blind at 1 of 1 levels",)
    assert probe.cells(seen) == ("+1.0000 [+0.9900, +1.0100]",)


SCALING = {"kind": "epsilon_scaling", "scale": 1.01}
CODE = """
import torch


class Normalising(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mix = torch.nn.GroupNorm(1, 1), torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, time):
        return self.mix(self.norm(x))


def make():
    return Normalising()
"""


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A folder with a network that begins with a norm, and an experiment on it."""
    folder = tmp_path_factory.mktemp("blind")
    (folder / "net.py").write_text(CODE)
    names = {}
    exec(CODE, names)
    torch.manual_seed(0)
    torch.save(names["make"]().state_dict(), folder / "net.pt")
    grid = {"grid": {"kind": "leading", "steps": 4}, "solver": {"kind": "euler"}}
    model = {"kind": "python", "module": str(folder / "net.py"), "weights": str(folder / "net.pt"), "shape": [1, 8, 8],
             "process": {"kind": "ddpm"}, "target": {"kind": "eps"}}  # fmt: skip
    content = {"name": "small", "model": model, "data": SMALL["data"], "sample": SMALL["sample"],
               "shift": {**SMALL["shift"], "probes": ["response"]}, "metrics": SMALL["metrics"],
               "tune": {"seeds": "1000-1031"},
               "samplers": {"plain": grid, "es": {**grid, "corrections": [SCALING]}}}  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_the_report_and_the_terminal_warn(blind):
    """By sampler, beside the readings, which stay as they are."""
    said = command(blind, "measure-shift", "-q").stdout
    assert "warning: es: the network hardly sees how large its states are" in said
    command(blind, "report")
    page = (blind / "runs/small/report.md").read_text()
    assert "Warning: plain: the network hardly sees how large its states are" in page
    assert "blind at 4 of 4 levels" in page
    record = json.loads((blind / "runs/small/shift/es.json").read_text())
    assert record["response"]["images"] == 32
    assert record["response"]["mean"]["value"] < 0.1
    compared = ["--set", "compare={solvers: [], timed_images: 2, rounds: 1}"]
    assert "warning: es: the network hardly sees" in command(blind, "compare", "-q", *compared).stdout
    assert "Warning: es: the network hardly sees" in (blind / "runs/small/compare.md").read_text()


def test_tuning_by_gap_is_refused(blind):
    """In one sentence, and no coefficient is written."""
    done = command(blind, "tune", "-q", "--by", "gap", "--sampler", "es", check=False)
    assert done.returncode == 1
    assert "snrkit: --by gap: the network hardly sees how large the states of es are" in done.stderr
    assert not (blind / "runs/small/tune/es.json").exists()
