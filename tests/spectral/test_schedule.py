"""Power spectra and the schedules made of them: golden numbers, identities under scaling, enlarging and turning."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.analysis.gaussian_rings import euler_gain, spectral_distance
from snrkit.base.errors import DataError, SnrkitError
from snrkit.data.dataset import memory_dataset, split
from snrkit.data.toy import gaussian_denoiser
from snrkit.diffusion.level import ROUNDING_VARIANCE, level_of
from snrkit.diffusion.process import Vp
from snrkit.experiment.experiment import load_experiment
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Euler
from snrkit.spectral.measure import measure_spectra
from snrkit.spectral.schedule import SpectralSchedule, power_spectra, ring_members
from snrkit.spectral.spectra import slope
from tests.small import snrkit, write_config

ROOT = Path(__file__).parents[2]
T = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
FALLING = 64 * torch.cat([torch.ones(1), torch.arange(1, 33)]).double()[None] ** -2  # 64 k^-2 in rings 1 ... 32
BARE = {"dc": "exclude", "logsnr_max": None}
KINDS = ("spectral_freq", "spectral_power", "spectral_mixed")


def pictures(count=6, side=16, channels=3, slope=1.0, seed=0):
    """Smooth random images (count, channels, side, side), with a mean of their own."""
    draws = torch.Generator().manual_seed(seed)
    noise = torch.fft.fft2(torch.randn(count, channels, side, side, generator=draws))
    frequency = torch.fft.fftfreq(side, 1 / side)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).clamp(min=0.5)
    return torch.fft.ifft2(noise * radius**-slope).real


def test_rings_have_the_golden_counts():
    """Of 64x64: 1, 8, 12, 16, 32, 28 frequencies; all 33 rings hold 3291 of 4096."""
    counts = ring_members(64).sum((0, 1))
    assert counts[:6].tolist() == [1, 8, 12, 16, 32, 28]
    assert len(counts) == 33
    assert float(counts.sum()) == 3291


def test_spectra_of_known_images():
    """An impulse has 1/N^2 in every ring; a constant c^2 N^2 at 0; a cosine half its power over its ring."""
    side = 32
    impulse = torch.zeros(1, 1, side, side)
    impulse[..., 5, 7] = 1
    torch.testing.assert_close(power_spectra(impulse), torch.full((1, 17), side**-2, dtype=torch.float64))
    flat = power_spectra(torch.full((1, 3, side, side), 0.5))
    assert float(flat[0, 0]) == pytest.approx(256)
    assert flat[0, 1:].tolist() == [ROUNDING_VARIANCE] * 16
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(side) / side)[:, None].expand(1, 1, side, side)
    found = power_spectra(wave)
    assert float(found[0, 3]) == pytest.approx(32)
    assert float(torch.cat([found[0, :3], found[0, 4:]]).max()) < 1e-5


def test_white_noise_has_power_one_in_every_ring():
    """Within four standard errors of 200 draws."""
    noise = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = power_spectra(noise).mean(0)
    error = 4 * (2 / (200 * 3 * ring_members(32).sum((0, 1)))).sqrt()
    assert ((found - 1).abs() < error).all()


def test_rings_beyond_the_last_are_left_out():
    """The spectrum of all frequencies is that of the rings and the corners: Parseval."""
    x0 = pictures(count=2, side=8, channels=1).double()
    members, power = ring_members(8), torch.fft.fft2(x0, norm="ortho").abs().square().mean(1)
    corners = power[:, members.sum(2) == 0].sum(1)
    found = (power_spectra(x0) * members.sum((0, 1))).sum(1)
    torch.testing.assert_close(found + corners, x0.square().sum((1, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("spectral_freq", (7.3778, 6.2529, 4.5205, 1.4478, -2.1234, -5.0210, -8.7641)),
        ("spectral_power", (7.3778, 3.4284, 0.5570, -2.8847, -5.7246, -7.5151, -8.7641)),
        ("spectral_mixed", (7.3778, 4.8407, 2.5387, -0.7184, -3.9240, -6.2681, -8.7641)),
    ],
)
def test_golden_schedules(kind, wanted):
    """P_k = 64/k^2 with kappa 100 and 0.01, the mean left out."""
    found = SpectralSchedule(kind=kind, **BARE).logsnr(FALLING, T)
    torch.testing.assert_close(found[0], torch.tensor(wanted).double(), rtol=0, atol=1e-4)


def test_frequency_sweep_of_a_power_law_in_closed_form():
    """ln kappa(t) - ln 64 + 2 ln(32 - 31 t), wherever t falls between rings."""
    t = torch.linspace(0, 1, 32, dtype=torch.float64)  # where f is whole, so that nothing is interpolated
    found = SpectralSchedule(kind="spectral_freq", **BARE).logsnr(FALLING, t)[0]
    kappa = (1 - t) * math.log(100) + t * math.log(0.01)
    torch.testing.assert_close(found, kappa - math.log(64) + 2 * (32 - 31 * t).log())


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), slope=st.floats(0, 3), side=st.sampled_from([4, 8, 9, 16]))
def test_schedules_fall_strictly_between_their_bounds(kind, seed, slope, side):
    """Whatever the image, a constant one included, with the mean in the bounds or not."""
    x0 = torch.cat([pictures(3, side, slope=slope, seed=seed), torch.full((1, 3, side, side), 0.3)])
    power = power_spectra(x0)
    for dc in ("include", "exclude"):
        schedule = SpectralSchedule(kind=kind, dc=dc)
        table, (low, high) = schedule.table(power), schedule.ends(power)
        assert (table.diff(dim=1) < 0).all()
        torch.testing.assert_close(table[:, 0], high)
        torch.testing.assert_close(table[:, -1], low)
        assert float(table.max()) <= 13.3 + 1e-9


def test_the_ends_are_where_the_strongest_ring_is_buried_and_the_finest_resolved():
    """SNR kappa_min of the strongest of all rings, the mean's among them, and kappa_max of the last."""
    power = power_spectra(pictures())
    low, high = SpectralSchedule(logsnr_max=None).ends(power)
    torch.testing.assert_close(low.exp() * power.max(1).values, torch.full_like(low, 0.01))
    torch.testing.assert_close(high.exp() * power[:, -1], torch.full_like(high, 100))
    without = SpectralSchedule(**BARE).ends(power)[0]
    torch.testing.assert_close(without.exp() * power[:, 1:].max(1).values, torch.full_like(low, 0.01))


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_shifts_the_whole_schedule(kind):
    """Of an image times s, logsnr is lower by 2 ln s at every t."""
    schedule, x0 = SpectralSchedule(kind=kind, logsnr_max=None), pictures()
    moved = schedule.table(power_spectra(3 * x0)) - schedule.table(power_spectra(x0))
    torch.testing.assert_close(moved, torch.full_like(moved, -2 * math.log(3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mirrored_images_have_the_same_schedule(kind):
    """Whichever way they are mirrored or transposed."""
    schedule, x0 = SpectralSchedule(kind=kind), pictures()
    for other in (x0.flip(3), x0.flip(2), x0.transpose(2, 3)):
        torch.testing.assert_close(schedule.table(power_spectra(other)), schedule.table(power_spectra(x0)))


def test_enlarging_moves_the_noisy_end_by_two_ln_two():
    """Band-limited: power at a frequency in cycles per image grows with the number of pixels."""
    x0 = pictures(side=16)
    spectrum = torch.fft.fft2(x0)
    wide = torch.zeros(*x0.shape[:2], 32, 32, dtype=spectrum.dtype)
    keep = torch.tensor([*range(8), *range(-7, 0)])
    wide[:, :, keep[:, None] % 32, keep[None] % 32] = spectrum[:, :, keep[:, None] % 16, keep[None] % 16] * 4
    schedule = SpectralSchedule(logsnr_max=None)
    for dc in ("include", "exclude"):
        schedule = SpectralSchedule(dc=dc, logsnr_max=None)
        small, large = (schedule.ends(power_spectra(each))[0] for each in (x0, torch.fft.ifft2(wide).real))
        torch.testing.assert_close(large - small, torch.full_like(small, -2 * math.log(2)), rtol=0, atol=1e-4)


def test_images_that_are_not_square_are_refused():
    """With their size and what to do."""
    with pytest.raises(SnrkitError, match="images of 16x8 have no spectrum by rings"):
        power_spectra(torch.zeros(1, 3, 16, 8))
    with pytest.raises(ValueError, match="kappa_min 2 must be below kappa_max 1"):
        SpectralSchedule(kappa_min=2, kappa_max=1)


CPU = torch.device("cpu")


def measured(x0, labels=None, holdout=0.0):
    return measure_spectra(memory_dataset("made", x0, labels), split(len(x0), holdout), CPU)


def test_slopes_are_those_of_power_laws():
    """a of 64 k^-a; of images whose amplitudes fall as k^-a near 2 a, less as logs of few are low."""
    rings = torch.arange(1, 17).double()
    for a in (0.0, 1.3, 2.5):
        assert slope(torch.cat([torch.ones(1), 64 * rings**-a])) == pytest.approx(a, abs=1e-9)
    assert slope(measured(pictures(200, 32, slope=1.0)).mean) == pytest.approx(2, abs=0.15)


def own(spectra, scope):
    """The spectrum of every image in a scope."""
    rows, of_image = spectra.scoped(scope)
    return rows[of_image]


def test_scopes_are_means_of_logarithms_over_training_images():
    """Each image's own; its class's; the data set's, in which held-out images have no part."""
    x0 = pictures(60)
    labels = torch.arange(60) % 3
    found = measured(x0, labels, holdout=0.3)
    parts, power = split(60, 0.3), power_spectra(x0)
    trained = torch.tensor(parts.train)
    torch.testing.assert_close(own(found, "instance"), power)
    torch.testing.assert_close(own(found, "dataset")[7], power[trained].log().mean(0).exp())
    chosen = trained[labels[trained] == 1]
    torch.testing.assert_close(own(found, "class")[4], power[chosen].log().mean(0).exp())
    assert torch.equal(own(found, "class")[4], own(found, "class")[7])


def test_classes_without_training_images_and_images_without_labels():
    """The first have the mean of all; the second are refused with what to do. One image alone is its own mean."""
    x0 = pictures(5)
    found = measured(x0, torch.tensor([0, 0, 0, 0, 2]))
    torch.testing.assert_close(found.class_means[1], found.mean)
    with pytest.raises(DataError, match="no labels, which scope class needs; use scope dataset or instance"):
        measured(x0).scoped("class")
    alone = measured(x0[:1])
    torch.testing.assert_close(own(alone, "dataset"), own(alone, "instance"))
    with pytest.raises(SnrkitError, match="images of 16x8 have no spectrum"):
        measured(x0[..., :8])


def test_the_command_writes_what_it_measures(tmp_path):
    """Slope, bounds and curves of the training images; nothing but the analysis is written."""
    path = write_config(tmp_path)
    done = snrkit(tmp_path, "analyze", "--spectrum")
    folder = tmp_path / "runs" / "small" / "analysis" / "spectrum"
    assert str(folder / "index.html") in done.stdout.replace("\n", "")
    record = json.loads((folder / "index.json").read_text())
    dataset = load_experiment(path).data.open()
    found = measure_spectra(dataset, split(dataset.count, 0.1), CPU)
    assert record["slope"] == pytest.approx(slope(found.mean))
    assert record["ends"]["include"]["of_the_mean"] == pytest.approx(
        [float(end) for end in SpectralSchedule().ends(found.mean[None])]
    )
    charts = {p.stem for p in folder.glob("*.csv")}
    assert charts == {"power", "power-by-class", "schedules", "bounds"}
    refused = snrkit(tmp_path, "analyze", "--spectrum", "--set", "data.shape=[1,8,4]", check=False)
    assert "images of 8x4 have no spectrum by rings" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("power", [0.02, 0.5, 30.0])
def test_a_grids_gain_is_what_the_sampler_does(power):
    """Euler with the exact denoiser of Gaussian data, step by step, against one factor; on spectral levels."""
    levels = [level_of(v, "vp") for v in SpectralSchedule().table(FALLING)[0].flip(0)[::32]]
    levels.append(level_of(torch.tensor(math.inf), "vp"))
    process, x = Vp(), torch.randn(3, 1, 1, 1, dtype=torch.float64)
    denoise = gaussian_denoiser(process, torch.zeros(()), power, (1, 1, 1))
    for step in sample(denoise, Euler(), levels, x):
        found = step.x_next
    torch.testing.assert_close(found, x * euler_gain(levels, torch.tensor(power, dtype=torch.float64)))


def test_distances_of_spectra():
    """0 between equals; of one ring W2 is the difference of deviations and KL that of two Gaussians."""
    power, counts = torch.tensor([2.0, 0.5]).double(), torch.tensor([8.0, 12.0]).double()
    assert [float(d) for d in spectral_distance(power, power, counts)] == [0, 0]
    made = torch.tensor([2.0, 1.0]).double()
    apart, kl = spectral_distance(made, power, counts)
    assert float(apart) == pytest.approx(12 * (1 - 0.5**0.5) ** 2 / (16 + 6))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(0.0, 1.0), normal(0.0, 0.5**0.5))
    assert float(kl) == pytest.approx(12 / 20 * float(wanted), rel=1e-6)


def test_spectral_grids_beat_cosine_on_gaussian_photographs():
    """64 pixels, 16 evaluations: mixed has the least W2, frequency-focused the least KL of what is each image's own;
    uniform logsnr between the same bounds is close to mixed, and mixed on the mean spectrum closer."""
    spec = importlib.util.spec_from_file_location("gaussian", ROOT / "studies" / "spectral" / "gaussian.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SIDES, module.STEPS = (64,), (16,)
    found = {name: cells[0] for name, cells in module.measured().items()}
    shared = found.pop("spectral_mixed, mean spectrum")
    assert shared[0] < 1.1 * found["spectral_mixed"][0]
    assert min(found, key=lambda name: found[name][0]) == "spectral_mixed"
    assert min(found, key=lambda name: found[name][1]) == "spectral_freq"
    assert found["cosine, logsnr -15 to 15"][0] > 1.5 * found["spectral_mixed"][0]
    assert found["uniform logsnr, own bounds"][0] < 1.5 * found["spectral_mixed"][0]


def test_even_runs_straight_between_the_same_ends():
    """logsnr falls evenly; the ends are those of every other kind."""
    power = power_spectra(pictures(5))
    table = SpectralSchedule(kind="spectral_even").table(power)
    torch.testing.assert_close(table.diff(dim=1), table.diff(dim=1)[:, :1].expand(-1, 256), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(table[:, [0, -1]], SpectralSchedule().table(power)[:, [0, -1]])


def test_mean_brightness_is_buried_but_is_no_power_to_pass():
    """With dc included the noisy end falls by ln P_0/Q_1; the frequencies that are visited when stay, and no step of a
    picture with thirty times the power in its mean is steeper than without, but those at the noisy end."""
    power = FALLING.clone()
    power[:, 0] = 30 * power[:, 1]
    kind = "spectral_power"
    without = SpectralSchedule(kind=kind, **BARE).table(power)[0]
    included = SpectralSchedule(kind=kind, dc="include", logsnr_max=None).table(power)[0]
    assert float(without[-1] - included[-1]) == pytest.approx(math.log(30))
    early = without > math.log(0.1) - math.log(float(power[0, 2]))  # before f comes to ring 2
    torch.testing.assert_close(included[:100][early[:100]], without[:100][early[:100]])
