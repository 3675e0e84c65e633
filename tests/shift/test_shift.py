"""The instrument reads its null with an exact denoiser, and a known shift where there is one."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.frequency import pixels, views
from snrkit.base.records import from_json, to_json
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.instrument import check_arms_fit
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Model, open_experiment
from snrkit.experiment.reference import part_moments
from snrkit.experiment.run import Run
from snrkit.sampling.corrections import EpsilonScaling, TimeShift
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, open_with
from snrkit.sampling.solvers import AnalyticDpm, Ancestral, Churn, Euler, Heun
from snrkit.sampling.solvers.ancestral import AnalyticSteps
from snrkit.shift.arms import Arm, forward_arm, reverse_arm
from snrkit.shift.bootstrap import Bootstrap, Number, check_resampling, fewest_resamples, signed
from snrkit.shift.config import ShiftConfig
from snrkit.shift.files import as_csv, as_png
from snrkit.shift.measure import Reference, Shift, compare_arms, readable, size
from snrkit.shift.nearest import GaussianFit, leak, misfits, nearest_shift
from snrkit.shift.states import stack
from tests.exact import gaussian
from tests.exact import tensor as tensor_of
from tests.opened import instrument as instrument_of
from tests.opened import open_network
from tests.small import SMALL, drawing

SHAPE, VARIANCE, COUNT = (1, 4, 4), 0.25, 600


def clean(count, seed):
    """Images of N(0, VARIANCE)."""
    draws = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws * VARIANCE**0.5


def reference(process, shape=SHAPE, variance=VARIANCE, count=COUNT, seen=None):
    """What is known of N(0, variance) data."""
    dims = math.prod(shape)
    spectrum = GaussianFit(process, torch.zeros(dims).double(), torch.full((dims,), variance, dtype=torch.float64))
    known = [(v, torch.full((len(v.names),), variance, dtype=torch.float64)) for v in seen or views(shape)]
    return Reference(known, spectrum, torch.full((count,), variance, dtype=torch.float64))


def whole(arm, level, variance, resamples, seed):
    """The variance ratio of one arm put in all three places."""
    known = reference(Edm(), arm.shape, variance, arm.eps_square.shape[1], [pixels(arm.shape)])
    return compare_arms(arm, arm, arm, [level], known, Bootstrap(resamples, 0.95, seed)).variance_ratio


def an_arm(states, groups):
    """An arm of states (1, n, C, H, W) with eps and x0 of mean square 1."""
    ones, shape = torch.ones(1, states.shape[1], dtype=torch.float64), tuple(states.shape[2:])
    level = Edm().level(torch.tensor(0.0, dtype=torch.float64))
    reader = reference(Edm(), shape, seen=[pixels(shape)]).reader([level], {})
    return Arm(ones, ones, ones, stack([reader.read(0, states[0], groups)]), groups, shape)


def measure(process, solver, grid, distort=lambda x: x, corrections=(), denoise=None, exact_start=True):
    """The measurement of a sampler with the exact denoiser of N(0, VARIANCE); `distort` tampers with its start."""
    denoise = denoise or gaussian(process, 0.0, VARIANCE, SHAPE)
    levels = grid.levels(process)
    noise = torch.randn(COUNT, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    draws = torch.Generator().manual_seed(8)

    def fresh(x):
        return torch.randn(x.shape, generator=draws, dtype=x.dtype)

    def trajectory(wrapped):
        x = distort(start(process, noise, levels[0], VARIANCE if exact_start else None))
        return sample(wrapped, solver, levels, x, corrections=corrections, noise=fresh)

    visited, known = levels[:-1], reference(process)
    reader = known.reader(visited, {})
    reverse = reverse_arm(denoise, [trajectory], range(len(visited)), COUNT, reader)
    arms = [
        forward_arm(denoise, visited, clean(COUNT, seed), torch.arange(COUNT), Cond(), key=(9, seed), batch=200,
                    device=torch.device("cpu"), reader=reader)
        for seed in (1, 2)
    ]  # fmt: skip
    return compare_arms(reverse, *arms, visited, known, Bootstrap(400, 0.95, 0))


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
        (shift.mean_nearest, 0),
        (shift.mean_nearest_null, 0),
    ):
        margin = 0.6 * (reading.high - reading.low)
        assert reading.low - margin <= truth <= reading.high + margin
    inside = np.mean(
        [lo <= 1 <= hi for lo, hi in zip(shift.variance_ratio_null.low, shift.variance_ratio_null.high, strict=True)]
    )
    assert inside > 0.8
    assert max(abs(v - 1) for v in shift.variance_ratio.value) < 0.06
    assert max(abs(v) for v in shift.norm_gap.value) < 0.12
    assert set(shift.part_ratio) == {"ll", "lh", "hl", "hh", "ring-0", "ring-1", "ring-2"}
    for curve in shift.part_ratio.values():
        assert max(abs(v - 1) for v in curve.value) < 0.25
    last = shift.x0_rms_reverse.value[-1], shift.x0_rms_forward.value[-1]
    assert last == pytest.approx([shift.x0_rms_true.value] * 2, rel=0.03)


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
    for part in scaled.part_ratio:
        assert scaled.part_ratio[part].value[0] / plain.part_ratio[part].value[0] == pytest.approx(1.21, rel=1e-6)
    level = process.level(torch.tensor(-6.0, dtype=torch.float64))
    total = float(level.sigma**2) + VARIANCE
    noisier = -math.log((1.21 * total - VARIANCE) / float(level.sigma**2))
    assert scaled.nearest.value[0] - plain.nearest.value[0] == pytest.approx(noisier, abs=0.01)
    assert scaled.mean_nearest.high < 0


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
        states = torch.randn(1, 80, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) * 1.5**0.5
        curve = whole(an_arm(states, torch.arange(80)), level, 0.5, 200, seed)
        hits += curve.low[0] <= 1 <= curve.high[0]
    assert 105 <= hits <= 120


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99, 0.998, 0.9998, 0.9999])
def test_the_fewest_resamples_reach_beyond_an_interval(confidence):
    """One of them on either side, and one less would not do."""
    least = fewest_resamples(confidence)
    beyond = (1 - confidence) / 2
    assert least * beyond == pytest.approx(1, abs=1e-6)
    check_resampling("resamples", max(100, least), confidence)
    with pytest.raises(SnrkitError, match=f"give {max(100, least)} at least"):
        check_resampling("resamples", max(100, least) - 1, confidence)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("images", [180, 1000])
def test_the_variance_ratio_is_unbiased_in_many_dimensions(shape, images):
    """Intervals centre on the reading and hold 1, also where 180 images are repeated to fill 1,000 places."""
    level, inside = Edm().level(torch.tensor(6.0, dtype=torch.float64)), 0
    for seed in range(12):
        draws = torch.Generator().manual_seed(seed)
        rows = torch.arange(1000) % images
        states = torch.randn(images, *shape, generator=draws)[rows] * 0.5
        states = states + float(level.sigma) * torch.randn(1000, *shape, generator=draws)
        curve = whole(an_arm(states[None], rows), level, 0.25, 200, seed)
        assert curve.low[0] < curve.value[0] < curve.high[0]
        inside += curve.low[0] <= 1 <= curve.high[0]
    assert inside >= 9


def test_pure_noise_is_measured_and_written(tmp_path):
    """A flow grid from t = 1 has logsnr -inf: JSON says null, CSV -inf, and the picture leaves it out."""
    from snrkit.base.sealed import write_json

    shift = measure(Flow(), Euler(), UniformTime(steps=4), exact_start=False)
    assert shift.logsnr[0] == -math.inf
    write_json(tmp_path / "shift.json", to_json(shift))
    assert json.loads((tmp_path / "shift.json").read_text())["logsnr"][0] is None
    assert as_csv(shift).splitlines()[1].startswith("-inf,")
    assert math.isnan(shift.nearest.value[0])
    assert math.isfinite(shift.mean_nearest.value)
    with drawing():
        assert as_png(shift, "title").startswith(b"\x89PNG")


def test_repeated_images_widen_the_interval():
    """Twenty images with thirty noises each say less than six hundred images: they are resampled together."""
    process = Edm()
    levels = [process.level(torch.tensor(4.0, dtype=torch.float64))]
    denoise, known = gaussian(process, 0.0, VARIANCE, SHAPE), reference(process)
    widths = []
    for images in (20, 600):
        rows = torch.arange(600) % images
        made = [
            forward_arm(denoise, levels, clean(images, 3)[rows], rows, Cond(), key=(9, k), batch=600,
                        device=torch.device("cpu"), reader=known.reader(levels, {}))
            for k in range(3)
        ]  # fmt: skip
        curve = compare_arms(*made, levels, known, Bootstrap(1000, 0.95, 0)).variance_ratio
        widths.append(curve.high[0] - curve.low[0])
    assert widths[0] > 3 * widths[1]


def test_files_hold_the_measurement():
    """JSON round-trips, CSV has a row a level with the same numbers, PNG is a picture."""
    shift = measure(Edm(), Euler(), Karras(steps=4))
    record = json.loads(json.dumps(to_json(shift)))
    assert record["norm_gap"]["value"] == shift.norm_gap.value
    assert to_json(from_json(Shift, record, "shift.json")) == record
    rows = as_csv(shift).splitlines()
    column = rows[0].split(",").index("variance_ratio")
    assert [float(row.split(",")[column]) for row in rows[1:]] == shift.variance_ratio.value
    with drawing():
        assert as_png(shift, "title").startswith(b"\x89PNG")


def test_the_nearest_level_is_silent_where_its_null_fails():
    """By the forward arm and the data alone: where it misses its own level, is unsure, or would read data as noise."""
    process = Edm()
    levels = [process.level(torch.tensor(v, dtype=torch.float64)) for v in (-4.0, -4.0, -4.0, 8.0)]
    noise = 0.01 * torch.randn(4, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise[2] *= 20
    forward = noise + torch.tensor([0.0, 0.5, 0.0, 0.0], dtype=torch.float64)[:, None]
    assert readable(forward, levels, reference(process).spectrum).tolist() == [True, False, False, False]


def test_what_a_wrong_variance_of_the_data_reads_as():
    """`leak` is the derivative: states of data 1 % too small read .01 leak nats too clean."""
    process, known = Edm(), reference(Edm(), (1, 16, 16)).spectrum
    x0 = torch.randn(4000, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * VARIANCE**0.5
    noise = torch.randn(4000, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for logsnr in (-2.0, 1.0):
        level = process.level(torch.tensor(logsnr, dtype=torch.float64))
        weights = torch.full((1, 4000), 1 / 4000, dtype=torch.float64)
        at = [
            float(nearest_shift(misfits(scale * x0 + level.sigma * noise, level, known)[None], weights))
            for scale in (1, 0.99**0.5)
        ]
        assert at[1] - at[0] == pytest.approx(0.01 * float(leak([level], known)), rel=0.1)


@pytest.mark.parametrize("kind", ["churn", "analytic_dpm"])
def test_samplers_with_fresh_noise_read_the_null(kind):
    """The state is read where the step begins, at its nominal level, also where the solver asks elsewhere first.

    Analytic-DPM's steps are exact on these data; churn takes many.
    """
    grid = UniformLogsnr(steps=150 if kind == "churn" else 30, logsnr_min=-6, logsnr_max=8)
    levels = grid.levels(Edm())[:-1]
    spread = torch.stack([VARIANCE * lv.sigma**2 / (VARIANCE + lv.sigma**2) for lv in levels])
    solver = Churn(s_churn=40.0) if kind == "churn" else AnalyticSteps(AnalyticDpm(), spread)
    shift = measure(Edm(), solver, grid)
    assert abs(shift.mean_log_variance_ratio.value) < 0.02
    assert abs(shift.mean_norm_gap.value) < 0.02
    assert abs(shift.mean_nearest.value) < 0.03


def test_a_moved_level_does_not_move_the_reading():
    """Time shift tells the network another level; its states are read at the nominal one, as everyone's."""
    grid = UniformLogsnr(steps=12, logsnr_min=-6, logsnr_max=8)
    plain, moved = (
        measure(Edm(), Euler(), grid, corrections=c)
        for c in ((), (TimeShift(unit="nats", window=0.8, data_variance=VARIANCE),))
    )
    assert plain.norm_gap.value[:2] == moved.norm_gap.value[:2]  # the same states up to the first shifted step
    assert plain.norm_gap.value[2] != moved.norm_gap.value[2]


def test_what_cannot_be_held_is_refused_before_it_begins():
    """One sentence; what is needed grows with the images alone, as the states of one level are held at a time."""
    opened = open_experiment(parse_experiment(SMALL, "small"), World(0, 1, torch.device("cpu")))
    state = 4 * math.prod(opened.data.dataset.shape)

    def needed(images):
        shift = ShiftConfig(images=images, probes=())
        limit = next(n for n in range(100) if fits(opened.setting, shift, n * images * state))
        with pytest.raises(ConfigError, match=rf"^shift\.images: {images} trajectories .* free; give fewer images\.$"):
            check_arms_fit(opened.setting, shift, (limit - 1) * images * state)
        return limit * images * state

    assert 3 * 50 * state <= needed(50) <= 15 * 50 * state  # a walk in float64 and its state in float32 at least
    assert needed(100) == 2 * needed(50)


def fits(setting, shift, memory):
    """Whether so many bytes suffice."""
    try:
        check_arms_fit(setting, shift, memory)
    except ConfigError:
        return False
    return True


def test_a_mean_square_has_its_noise_taken_out():
    """Pure noise of any size has none left on average, a true shift keeps its square; NaN levels drop out."""
    rng = torch.Generator().manual_seed(0)
    noise, true = 0.3, tensor_of([0.2, -0.1, 0.0])
    found = []
    for _ in range(400):
        own = true[:, None] + noise * torch.randn(3, 1, generator=rng, dtype=torch.float64)
        resampled = own + noise * torch.randn(3, 200, generator=rng, dtype=torch.float64)
        found.append(size(torch.cat([own, resampled], 1)))
    wanted = float(true.square().mean())
    assert float(torch.stack([f[0] for f in found]).mean()) == pytest.approx(wanted, abs=0.012)
    assert float(torch.stack([f[1:].mean() for f in found]).mean()) == pytest.approx(wanted, abs=0.012)
    gone = torch.cat([torch.cat([own, resampled], 1), torch.full((1, 201), torch.nan, dtype=torch.float64)])
    torch.testing.assert_close(size(gone), found[-1])
    assert size(gone[-1:]).isnan().all()


def small_instrument(**changes):
    """An instrument on the small experiment's untrained network."""
    opened = open_experiment(parse_experiment({**SMALL, **changes}, "small"), World(0, 1, torch.device("cpu")))
    e = opened.experiment
    denoiser = NetworkDenoiser(
        open_network(opened).eval().requires_grad_(False), e.process, e.target, e.precondition, opened.data.sigma_data
    )
    return instrument_of(opened, Model(denoiser, Weights("network", 0, ""), Run(Path("unused"))), list(range(32)))


def test_a_row_has_the_shift_of_its_equal():
    """Two samplers that do the same, measured one after the other, differ by exactly 0 in every resample."""
    instrument = small_instrument(shift={"images": 32, "batch": 16, "bootstrap": 100, "probes": []})
    grid = Karras(steps=4)
    plain = instrument.measure(Sampler(grid=grid, solver=Heun())).sizes
    again = instrument.measure(Sampler(grid=grid, solver=Churn(s_churn=0.0), corrections=(EpsilonScaling(),))).sizes
    other = instrument.measure(Sampler(grid=grid, solver=Euler())).sizes
    for key in ("norm_gap", "log_variance_ratio"):
        assert torch.equal(plain[key], again[key])
        assert not torch.equal(plain[key], other[key])


def test_samplers_of_one_grid_share_what_does_not_depend_on_them():
    """Forward arms and the matrices of wrong levels are made once a grid, the audit once."""
    options = {"images": 32, "batch": 16, "bootstrap": 100, "window_images": 8, "audit_pairs": 64}
    instrument = small_instrument(shift={**options, "probes": ["window", "audit"]})
    samplers = [Sampler(grid=Karras(steps=n), solver=solver) for n, solver in ((3, Euler()), (3, Heun()), (4, Euler()))]
    one, alike, other = (instrument.specimen(s, *instrument.examined(s)) for s in samplers)
    assert one.forward is alike.forward
    assert one.train is alike.train
    assert one.forward is not other.forward
    window, audit = instrument.config.probes
    assert audit.read(one) is audit.read(other)
    first, silent = window.read(one), Wrapped(Edm(), lambda *_: 1 / 0)
    assert window.read(replace(alike, denoise=silent)).eps_square == first.eps_square  # without a further call
    with pytest.raises(ZeroDivisionError):
        window.read(replace(other, denoise=silent))


@pytest.mark.parametrize("labels", [None, 1])
def test_what_is_known_of_the_images_is_what_training_shows(labels):
    """With flips, moments and covariance are those of images and mirror images, at the trajectories' mix of labels."""
    data = {**SMALL["data"], "flip": True, "holdout": 0.2}
    sample = {"seeds": "0-63", "batch": 16} | ({} if labels is None else {"labels": labels})
    instrument = small_instrument(data=data, sample=sample)
    data = instrument.setting.data
    x0 = data.dataset.x0(data.split.train).double()
    both, own = (
        torch.cat([x0, x0.flip(3)]).flatten(1),
        data.dataset.labels[torch.as_tensor(data.split.train)],
    )
    own = own.repeat(2)
    drawn = torch.bincount(instrument.labels, minlength=4).double() / 32
    weight = (drawn / torch.bincount(own, minlength=4))[own]
    view = pixels(data.dataset.shape)
    mean, spread = part_moments(data, instrument.labels, view)
    wanted = weight @ both
    torch.testing.assert_close(mean, wanted)
    torch.testing.assert_close(spread, weight @ (both - wanted).square())
    centred = both - torch.stack([both[own == k].mean(0) for k in range(4)])[own]
    torch.testing.assert_close(instrument.covariance, centred.T @ (weight[:, None] * centred))
    shown = [data.shown(data.split.train, mirrored) for mirrored in (False, True)]
    assert not torch.equal(shown[0], shown[1])
    torch.testing.assert_close(shown[0] + shown[1], (x0 + x0.flip(3)).float())


@pytest.mark.parametrize(
    ("solver", "share"),
    [(Euler(), 0.0), (Churn(s_churn=0.0), 0.0), (Churn(), None), (Ancestral(), 1.0), (Ancestral(eta=0.5), None),
     (Ancestral(eta=0.0), 0.0), (Ancestral(logsnr_max=2.0), None), (AnalyticDpm(), 1.0),
     (Ancestral(variance="large"), 1.0),
     (AnalyticDpm(eta=0.0), None)],
)  # fmt: skip
def test_which_gains_have_a_null(solver, share):
    """The exact flow's, or those of the chain that renews all noise; nothing between has a closed form here."""
    sampler = Sampler(grid=Karras(steps=4), solver=solver)
    assert open_with(sampler, Edm(), Dummy(Edm())).solver.renews == share


def test_what_rounds_to_nothing_has_no_sign_of_its_own():
    """Columns have no +0.0000 beside -0.0000."""
    assert Number(-0.00003, -0.1, 0.00004).signed() == "+0.0000 [-0.1000, +0.0000]"
    assert (signed(-0.00006), signed(math.inf), signed(-math.inf)) == ("-0.0001", "+inf", "-inf")
