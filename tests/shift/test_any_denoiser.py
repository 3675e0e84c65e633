"""snrkit.measure: the reading of measure-shift of any denoiser on any images, and what it says of it."""

import json
import math
import sys
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import snrkit
from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.data.dataset import memory_dataset
from snrkit.data.toy import finite_denoiser
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Wrapped
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Model, open_experiment
from snrkit.experiment.run import Run
from snrkit.sampling.corrections import Autoguidance, Dcw, NoiseAwarenessClassifier, X0Rescale
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.sampler import Dummy, OpenedSampler, Sampler, open_with
from snrkit.sampling.solvers import AnalyticDpm, Ancestral, Euler, Heun
from snrkit.shift.bootstrap import FEWEST, Number
from snrkit.shift.files import as_csv
from snrkit.shift.measure import Shift
from snrkit.shift.reference import matching, scarce
from snrkit.shift.verdict import verdict_on
from snrkit.spectral.grid import SpectralGrid
from tests.exact import gaussian
from tests.opened import instrument as instrument_of
from tests.opened import open_network
from tests.small import SMALL

SHAPE, VARIANCE = (1, 4, 4), 0.03
EXACT = gaussian(snrkit.Edm(), 0.0, VARIANCE, SHAPE)
MANY = UniformLogsnr(steps=60, logsnr_min=-6, logsnr_max=10)
LEVELS = Karras(steps=3).levels(snrkit.Edm())


def clean(count, seed):
    """Images of N(0, VARIANCE), none of which leaves [-1, 1]."""
    draws = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return (draws * VARIANCE**0.5).clamp(-1, 1)


def measured(sampler, denoise=EXACT, trained=clean(400, 1), held=clean(400, 2), **options):  # noqa: B008
    return snrkit.measure(denoise, sampler, trained=trained, held=held, **{"images": 400, "bootstrap": 200, **options})


@pytest.fixture(scope="module")
def few():
    """Eight Euler steps with the exact denoiser."""
    return measured(Sampler(grid=Karras(steps=8), solver=Euler(), start="exact"), images=2000)


def test_an_exact_denoiser_and_many_steps_show_no_shift():
    """The verdict of a perfect model and an almost perfect solver, and readings within their intervals of 0."""
    found = measured(Sampler(grid=MANY, solver=Heun(), start="exact"))
    assert found.verdict.startswith("No shift is shown")
    for reading, _ in list(found.readings.values())[:2]:
        assert abs(reading.value) < 1.5 * (reading.high - reading.low)


def test_few_euler_steps_read_the_closed_recursion(few):
    """A linear denoiser's norm gap is the ln of the variance ratio, whose recursion over Euler's steps is exact.

    But for the size of the first noise, which all levels share, its answers to the sampler's states follow exactly.
    """
    levels = Karras(steps=8).levels(snrkit.Edm())
    sigmas = [float(level.sigma) for level in levels[:-1]]
    variances = [sigmas[0] ** 2 + VARIANCE]
    for here, there in pairwise(sigmas):
        variances.append(variances[-1] * ((VARIANCE + here * there) / (VARIANCE + here**2)) ** 2)
    answers = [s * v**0.5 / (VARIANCE + s**2) for s, v in zip(sigmas, variances, strict=True)]
    size = few.shift.rms_reverse.value[0] / answers[0]
    assert size == pytest.approx(1, abs=0.02)
    assert few.shift.rms_reverse.value == pytest.approx([size * answer for answer in answers], rel=1e-3)
    expected = sum(math.log(v / (VARIANCE + s**2)) for s, v in zip(sigmas, variances, strict=True)) / len(sigmas)
    for reading, _ in list(few.readings.values())[:2]:
        assert reading.value == pytest.approx(expected, abs=0.03)
    assert few.shift.mean_norm_gap.high < few.shift.mean_norm_gap_null.low
    assert "look cleaner" in few.verdict


def test_a_push_away_from_the_image_is_read_as_noise():
    """DCW with a coefficient far above 0 adds what the network takes for noise."""
    found = measured(Sampler(grid=MANY, solver=Euler(), corrections=(Dcw(pixel=0.02),)))
    assert "look noisier" in found.verdict
    assert found.shift.mean_log_variance_ratio.low > 0


def test_swapping_trained_and_held_flips_the_null():
    """A denoiser that knows its images by heart finds less noise in them: below 0, and above 0 the other way round.

    Its own samples are those images, so that the reading is at the null, and memory is not taken for a shift.
    """
    known, new = clean(40, 1), clean(40, 2)
    denoise, sampler = finite_denoiser(known)(snrkit.Edm()), Sampler(grid=MANY, solver=Heun())
    found = measured(sampler, denoise, known, new)
    swapped = measured(sampler, denoise, new, known)
    assert found.shift.mean_norm_gap_null.high < -0.1
    assert swapped.shift.mean_norm_gap_null.low > 0.1
    assert found.shift.mean_norm_gap.value < -0.1
    assert found.verdict.startswith("No shift is shown")


SAMPLERS = {
    "euler": Sampler(grid=Karras(steps=3), solver=Euler()),
    "exact": Sampler(grid=Karras(steps=3), solver=Heun(), corrections=(Dcw(low=0.01),), start="exact"),
    "statistics": Sampler(grid=Karras(steps=3), solver=AnalyticDpm(), corrections=(X0Rescale(share=0.5),)),
}


@pytest.mark.parametrize(("classes", "seed", "confidence"), [(0, 0, 0.95), (4, 0, 0.95), (4, 3, 0.8)])
def test_it_is_the_reading_of_measure_shift(classes, seed, confidence):
    """On the split of an experiment every number is the command's, bit for bit, with labels and without.

    Whatever the seed, of which trajectories, real images' noise and resamples are made, and the confidence.
    """
    content = {
        **SMALL,
        "seed": seed,
        "data": {**SMALL["data"], "spread": 0.15, "std": 0.05},
        "network": {**SMALL["network"], "classes": classes, "augment": False},
        "train": {"images": 64},
        "samplers": {name: value.model_dump() for name, value in SAMPLERS.items()},
        "shift": {**SMALL["shift"], "probes": [], "confidence": confidence},
    }
    opened = open_experiment(parse_experiment(content, "small"), World(0, 1, torch.device("cpu")))
    e, data, split = opened.experiment, opened.data.dataset, opened.data.split
    network = open_network(opened).eval().requires_grad_(False)
    denoiser = NetworkDenoiser(network, e.process, e.target, e.precondition, opened.data.sigma_data)
    instrument = instrument_of(
        opened, Model(denoiser, Weights("network", 0, ""), Run("unused")), range(seed << 32, (seed << 32) + 32)
    )
    trained, held = (
        memory_dataset("a side", data.x0(rows), None if data.labels is None else data.labels[torch.as_tensor(rows)])
        for rows in (split.train, split.held)
    )
    options = {"images": 32, "batch": 16, "bootstrap": 100, "labels": instrument.labels, "seed": seed}
    for sampler in SAMPLERS.values():
        found = measured(sampler, denoiser, trained, held, confidence=confidence, **options)
        assert same(found.shift, instrument.measure(sampler).shift)
    assert (instrument.labels is None) == (classes == 0)


def same(one, other):
    """Whether two records hold the same text; NaN equals NaN there."""
    return repr(one) == repr(other)


def test_levels_and_a_solver_are_a_sampler_too():
    """What has no grid is measured as what has one."""
    levels = Karras(steps=3).levels(snrkit.Edm())
    grid = measured(Sampler(grid=Karras(steps=3), solver=Ancestral()), images=50)
    own = measured(OpenedSampler(levels, Ancestral(), ()), images=50)
    assert same(own, grid)


class Noting:
    """The exact denoiser, which keeps the states that it is shown at the first level, and how."""

    process = EXACT.process

    def __init__(self):
        self.first, self.gradients = [], set()

    def __call__(self, x, level, **options):
        """The exact answer."""
        self.gradients.add(torch.is_grad_enabled())
        if float(level.sigma) == LEVELS[0].sigma:
            self.first.append(x)
        return EXACT(x, level, **options)


def first_states(seed, images):
    """(of trajectories, of held-out images), each (images, 16)."""
    noting = Noting()
    measured(Sampler(grid=Karras(steps=3), solver=Euler()), noting, images=images, seed=seed)
    assert noting.gradients == {False}
    held, _, walked = noting.first[:3]  # the response asks of the held-out ones again
    return walked.flatten(1), held.flatten(1)


def test_no_two_seeds_share_noise():
    """Neither trajectories nor real images, however many there are; gradients are wanted of none of them."""
    found = [first_states(seed, images) for seed, images in ((0, 40), (1, 40), (2, 20), (1, 30))]
    for kind in range(2):
        zero, one, two, fewer = (states[kind] for states in found)
        for a, b in ((zero, one), (one, two), (zero, two)):
            assert float(torch.cdist(a, b).min()) > 1
        if kind == 0:
            assert torch.equal(one[:30], fewer)


def test_an_interval_is_as_wide_as_it_is_sure():
    """The same resamples between other quantiles."""
    sampler = Sampler(grid=Karras(steps=2), solver=Euler())
    wide, narrow = (measured(sampler, images=50, confidence=sure) for sure in (0.95, 0.6))
    for outer, inner in zip(wide.shift.headline(), narrow.shift.headline(), strict=True):
        assert outer.value == inner.value
        assert outer.low < inner.low < inner.high < outer.high
    assert (wide.confidence, narrow.confidence) == (0.95, 0.6)


def test_images_by_index_are_as_good_as_a_tensor():
    """Anything with `count` and `x0(rows)`, which is asked for no more than is needed at once."""

    class Lazy:
        count, asked = 3000, 0

        def x0(self, rows):
            self.asked = max(self.asked, len(rows))
            return clean(3000, 1)[torch.as_tensor(rows)]

    sampler, lazy = Sampler(grid=Karras(steps=2), solver=Euler()), Lazy()
    by_index = measured(sampler, trained=lazy, images=50)
    assert same(by_index.shift, measured(sampler, trained=clean(3000, 1), images=50).shift)
    assert lazy.asked < 3000


class Arrays:
    """Images by index that are not tensors."""

    count = 40

    def x0(self, rows):
        """Of NumPy."""
        return clean(40, 1).numpy()[rows]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"held": clean(19, 2)}, "`held` holds 19 images, and an interval needs at least 20"),
        ({"trained": clean(40, 1) * 4}, r"`trained` holds [\d.]+, and images lie in \[-1, 1\]"),
        ({"held": clean(40, 1) * torch.nan}, r"`held` holds nan"),
        ({"trained": clean(40, 1).flatten(1)}, r"float32 of shape \(16,\); give images \(N, C, H, W\)"),
        ({"held": torch.zeros(40, *SHAPE, dtype=torch.uint8)}, "bytes as x / 127.5 - 1"),
        ({"held": clean(40, 2)[..., :3]}, r"`trained` are \(1, 4, 4\) and in `held` \(1, 4, 3\)"),
        ({"labels": torch.zeros(400, dtype=torch.int64)}, "`trained` has no labels"),
        ({"labels": torch.zeros(400)}, r"give \(400,\) of int64"),
        ({"labels": torch.zeros(400, dtype=torch.bool)}, r"labels are torch\.bool of shape .* of int64"),
        ({"labels": [0] * 400}, r"labels are a list; give a tensor \(400,\) of int64"),
        ({"held": torch.tensor(0.5)}, "`held` holds 0 images"),
        ({"held": torch.zeros(40, 0, 4, 4)}, r"`held` holds torch\.float32 of shape \(0, 4, 4\)"),
        ({"trained": clean(40, 1).numpy()}, r"`trained` is a ndarray; .* torch\.from_numpy\(images\) of an array"),
        ({"trained": [clean(40, 1)]}, "`trained` is a list; give a tensor"),
        ({"trained": Arrays()}, r"`trained`\.x0 answers a ndarray"),
        ({"held": torch.cat([clean(39, 1), torch.full((1, *SHAPE), torch.nan)])}, "`held` holds nan"),
        ({"seed": -1}, "seed is -1; give 0 at least"),
        ({"seed": 2**32}, r"give one below 2\^32"),
        ({"images": 400.0}, r"images is 400\.0; give a whole number"),
        ({"device": "gpu"}, "device is 'gpu', which torch does not find here; give cpu"),
        ({"device": "meta"}, "device is 'meta', and states are float64"),
        ({"images": 10}, "images is 10; give 20 at least"),
        ({"bootstrap": 10}, "bootstrap is 10"),
        ({"confidence": 95}, "confidence is 95"),
        ({"confidence": 0.9999, "bootstrap": 100}, r"bootstrap is 100; .* confidence of 0\.9999 give 20000 at"),
        ({"images": 10**9}, "give fewer images"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, said):
    """In one sentence, before anything is sampled."""
    silent = Wrapped(snrkit.Edm(), lambda *_: 1 / 0)
    with pytest.raises(SnrkitError, match=said) as error:
        measured(Sampler(grid=Karras(steps=4), solver=Euler()), silent, **options)
    assert "\n" not in str(error.value)


def velocity(**options):
    """A network of the straight flow that says nothing, with dropout."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16, **options), nn.Dropout(0.5), nn.Unflatten(1, SHAPE))


class Timed(nn.Module):
    """A module that looks at no time."""

    def __init__(self, **options):
        super().__init__()
        self.inner, self.seen = velocity(**options), set()

    def forward(self, x, time):
        """Notes the dtypes that it is given."""
        self.seen.add((x.dtype, time.dtype))
        return self.inner(x)


def of_flow(network, **options):
    """Of two Euler steps with a network of flow matching."""
    denoise = snrkit.wrap(network, snrkit.Flow(), snrkit.FlowVelocity())
    return measured(Sampler(grid=UniformTime(steps=2), solver=Euler()), denoise, images=20, **options)


@pytest.mark.parametrize("part", [lambda network: network, lambda network: network.inner[2]])
def test_a_network_in_train_mode_is_refused(part):
    """Whole or in part, as dropout would be measured for a shift; what was in eval mode stays there."""
    network = Timed().eval()
    part(network).train()
    with pytest.raises(SnrkitError, match=r"in train mode, .*; call its eval\(\) first"):
        of_flow(network)
    assert not network.seen
    assert same(of_flow(network.eval()), of_flow(network))
    assert not any(module.training for module in network.modules())


def test_a_network_elsewhere_is_refused():
    """With where it lies and where it was to be asked."""
    with pytest.raises(SnrkitError, match="the network lies on meta and device is cpu; move it, or give its device"):
        of_flow(Timed(device="meta").eval())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_is_asked_in_the_dtype_of_its_parameters(dtype):
    """float32 and float64; images of either, and such as gradients are wanted of, read the same."""
    network = Timed(dtype=dtype).eval()
    found = of_flow(network)
    assert network.seen == {(dtype, dtype)}
    assert same(found, of_flow(network, held=clean(400, 2).double().requires_grad_()))


def test_labels_that_real_images_lack_are_named():
    """Both sides need them."""
    some = memory_dataset("some", clean(40, 1), torch.arange(40) % 3)
    labels = torch.full((400,), 3)
    with pytest.raises(SnrkitError, match=r"`trained` has no images of the labels \[3\]"):
        measured(SAMPLERS["euler"], trained=some, held=some, labels=labels)


@pytest.mark.parametrize(
    ("known", "labels", "said"),
    [
        (torch.arange(100).clamp(max=1), torch.zeros(100, dtype=torch.int64), "1 of its images stand beside 100"),
        (torch.arange(100) < 9, torch.arange(400) % 2, "one image of label 1 stands beside 23 .* intervals allow 20"),
        (torch.arange(100) < 10, torch.arange(400) % 2, None),
        (torch.arange(100) % 2, torch.zeros(400, dtype=torch.int64), None),
        (torch.arange(100), torch.arange(100), None),  # one image a label: labels are resampled with their images
    ],
)
def test_images_are_counted_where_they_are_used(known, labels, said):
    """100 of a set are too few where one, or less than their share of 20, stands for a label's trajectories."""
    some = memory_dataset("some", clean(100, 1), known.long())
    enough = memory_dataset("enough", clean(3000, 2), torch.arange(3000) % 100)
    options = {"labels": labels, "images": len(labels), "bootstrap": 100}
    for name in ("trained", "held"):
        sides = {"trained": enough, "held": enough, name: some}
        if said is None:
            assert measured(Sampler(grid=Karras(steps=2), solver=Euler()), **sides, **options)
            continue
        with pytest.raises(SnrkitError, match=f"^`{name}`: {said}"):
            measured(SAMPLERS["euler"], Wrapped(snrkit.Edm(), lambda *_: 1 / 0), **sides, **options)


@given(st.integers(FEWEST, 60), st.integers(FEWEST, 300))
def test_a_set_of_twenty_is_enough_for_any_number_of_trajectories(count, images):
    """Without labels the rule is the number of images; below it nothing is enough."""
    assert scarce(matching(None, range(count), None, images), None) is None
    assert scarce(matching(None, range(FEWEST - 1), None, images), None) is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corrections": (Autoguidance(weight=1.0, average="ema-500"),)}, "autoguidance: names other weights of a run"),
        ({"corrections": (NoiseAwarenessClassifier(weight=1.0),)}, "classifier: names a run's estimator"),
        ({"grid": SpectralGrid(steps=4)}, "a grid that follows each image needs a run"),
    ],
)
def test_samplers_that_need_a_run_are_refused(change, said):
    """They are measured by the command."""
    with pytest.raises(SnrkitError, match=said):
        measured(SAMPLERS["euler"].model_copy(update=change))


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        (
            lambda: open_with(Sampler(grid=SpectralGrid(steps=4), solver=Euler()), snrkit.Edm(), Dummy(snrkit.Edm())),
            "opened by a run, for levels or scalars of each image's own; measure it with snrkit measure-shift",
        ),
        (lambda: OpenedSampler((), Euler(), ()), "has 0 levels"),
        (lambda: OpenedSampler(LEVELS[:1], Euler(), ()), "has 1 levels"),
        (
            lambda: OpenedSampler(tuple(snrkit.Edm().level(torch.tensor([v, v])) for v in (0.0, 1.0)), Euler(), ()),
            r"give levels of shape \(\)",
        ),
        (lambda: OpenedSampler(LEVELS, AnalyticDpm(), ()), "AnalyticDpm of the opened sampler is not opened"),
        (lambda: OpenedSampler(LEVELS, Euler(), (X0Rescale(share=0.5),)), "X0Rescale of the opened sampler"),
    ],
)
def test_an_opened_sampler_that_is_not_one_for_all_images_is_refused(opened, said):
    """Its trajectories would start and walk elsewhere than the run's, or not at all."""
    with pytest.raises(SnrkitError, match=said):
        measured(opened(), Wrapped(snrkit.Edm(), lambda *_: 1 / 0))


def test_its_data_are_those_of_the_files(few):
    """The keys of measure-shift's JSON, as JSON, and the columns of its CSV, one row a level."""
    found = few.to_dict()
    assert [*found] == ["verdict", *(field.name for field in fields(Shift)), "confidence", "response"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["mean_norm_gap"]["value"] == few.shift.mean_norm_gap.value
    pandas = pytest.importorskip("pandas")
    frame = few.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 8
    assert frame.to_csv(index=False).splitlines()[0] == as_csv(few.shift).splitlines()[0]
    assert frame["norm_gap"].tolist() == few.shift.norm_gap.value


def test_a_frame_without_pandas_is_refused(few, monkeypatch):
    """With what else there is; all the rest works without."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SnrkitError, match="to_frame needs pandas; pip install pandas, or take to_dict"):
        few.to_frame()
    assert few.to_dict()


def test_it_is_shown_with_its_verdict(few):
    """A figure of six readings, lines for a terminal, a table for a notebook; each has the sentence and the nulls."""
    figure = few.plot()
    assert len(figure.axes) == 6
    assert figure.get_suptitle() == few.verdict
    lines = repr(few).splitlines()
    assert (
        lines[0]
        == f"Shift of 2000 images, 8 levels (the nearest level read at {few.shift.nearest_levels}), 95% intervals"
    )
    assert lines[-1].strip() == few.verdict
    assert len(lines) == 5
    page = few._repr_html_()
    for shown in (repr(few), page):
        assert all(number.signed() in shown for pair in few.readings.values() for number in pair)
    assert few.verdict in page


NULL = (0.0, -0.02, 0.02)


@pytest.mark.parametrize(
    ("gap", "null", "said"),
    [
        ((0.12, 0.08, 0.16), NULL, "look noisier"),
        ((-0.1, -0.12, -0.08), NULL, "look cleaner"),
        ((0.12, 0.02, 0.16), NULL, "No shift is shown"),  # the intervals meet
        ((-0.1, -0.12, -0.02), NULL, "No shift is shown"),
        ((0.01, -0.01, 0.03), (-0.3, -0.4, -0.2), "No shift is shown"),  # as new images are
        ((-0.1, -0.15, -0.05), (-0.3, -0.4, -0.2), "No shift is shown"),  # between those and the remembered
        ((-0.3, -0.4, -0.2), (-0.3, -0.4, -0.2), "No shift is shown"),  # as the remembered
        ((-0.6, -0.7, -0.5), (-0.3, -0.4, -0.2), "look cleaner"),
        ((0.1, 0.05, 0.15), (-0.3, -0.4, -0.2), "look noisier"),
        ((math.nan, 0.0, 0.0), NULL, "Nothing can be said"),
        ((math.inf, 0.0, math.inf), NULL, "Nothing can be said"),
    ],
)
def test_the_rule_of_the_verdict(gap, null, said):
    """A shift is what neither new images nor those that were trained on read; its sign decides its name."""
    sentence = verdict_on(Number(*gap), Number(*null))
    assert said in sentence
    assert sentence.endswith(".")
    assert all(Number(*pair).signed() in sentence for pair in (gap, null)) or said == "Nothing can be said"


def test_a_network_and_a_solver_are_no_denoiser_and_no_sampler():
    """What is meant is said, before any image is read."""
    sampler = Sampler(grid=Karras(steps=2), solver=Euler())
    with pytest.raises(SnrkitError, match=r"is a Linear; make one of a network with snrkit\.wrap"):
        snrkit.measure(torch.nn.Linear(2, 2), sampler, trained=clean(40, 1), held=clean(40, 2))
    with pytest.raises(SnrkitError, match=r"is a Euler; give snrkit\.Sampler"):
        snrkit.measure(EXACT, Euler(), trained=clean(40, 1), held=clean(40, 2))
