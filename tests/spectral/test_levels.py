"""Training at levels of every image's own: what is drawn, weighed and told is the image's own schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, DataError, SnrkitError
from snrkit.data.dataset import memory_dataset, split
from snrkit.diffusion.level import level_of
from snrkit.diffusion.process import Vp
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.spectral.grid import Spectral, SpectralGrid
from snrkit.spectral.levels import SpectralLevels, told_ends
from snrkit.spectral.measure import measure_spectra
from snrkit.spectral.model import fit_spectrum_model
from snrkit.spectral.tabulated import Tabulated
from snrkit.training.batches import micro_batch
from snrkit.training.holdout import held_out_loss
from snrkit.training.level_samplers import LogNormal
from snrkit.training.train import make_state, micro_losses, restore, state_numbers, state_tensors, train
from snrkit.training.weighting import Sigmoid, SpectralBias
from tests.opened import open_network, open_task
from tests.small import SMALL
from tests.spectral.test_schedule import pictures

EULER = {"solver": {"kind": "euler"}}
WORLD = World(0, 1, torch.device("cpu"))
PROCESS = Vp()
LABELS = torch.arange(40) % 4
SPECTRAL = {
    "process": {"kind": "vp"},
    "target": {"kind": "v"},
    "levels": {"kind": "spectral"},
    "weighting": {"kind": "sigmoid", "bias": {"kind": "spectral", "at": -1.0}},
    "network": {**SMALL["network"], "dropout": 0.0, "augment": False, "scalars": ["logsnr_noisy", "logsnr_clean"]},
    "train": {**SMALL["train"], "augment": None, "images": 640},
}


def measured(labels=LABELS):
    x0 = pictures(40)
    dataset = memory_dataset("pictures", x0, labels, 4 if labels is not None else 0)
    return measure_spectra(dataset, split(40, 0.2), WORLD.device)


def opened(**changes):
    found = open_experiment(parse_experiment({**SMALL, **SPECTRAL, **changes}, "small"), WORLD)
    return open_task(found), open_network(found)


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.network.parameters()])


@pytest.mark.parametrize("scope", ["instance", "class", "dataset"])
def test_levels_are_the_schedule_of_each_image_in_its_scope(scope):
    """At every t, to float32; the scopes differ in whose spectrum that is."""
    spectra, value = measured(), SpectralLevels(scope=scope)
    images = torch.tensor([3, 17, 3, 39])
    owner = {"instance": spectra.power[images], "class": spectra.class_means[LABELS[images]],
             "dataset": spectra.mean.expand(4, -1)}[scope]  # fmt: skip
    levels = value.tables(spectra).of(images)
    for t in (0.0, 0.3, 0.77, 1.0):
        found = levels.logsnr(torch.full((4,), t, dtype=torch.float64), PROCESS)
        table = Tabulated(value.schedule.table(owner)).logsnr(torch.full((4,), t, dtype=torch.float64), PROCESS)
        torch.testing.assert_close(found, table, rtol=0, atol=2e-6)


def test_ends_are_told_and_sometimes_those_of_the_mean():
    """Below the share `mean_ends` the data set's, else the image's own; noisy first."""
    spectra, value = measured(), SpectralLevels(mean_ends=0.25)
    tables, images = value.tables(spectra), torch.tensor([5, 6, 7])
    found = tables.told(images, torch.tensor([0.1, 0.25, 0.9]))
    own = told_ends(*value.schedule.ends(spectra.power[images]))
    torch.testing.assert_close(found[1:], own[1:])
    torch.testing.assert_close(found[:1], told_ends(*value.schedule.ends(spectra.mean[None])))
    assert bool((found[:, 0] < found[:, 1]).all())


def test_importance_is_the_integral_between_the_ends_of_the_image():
    """Over the density, the mean over t of the weight is its integral over logsnr where no step exceeds the cap."""
    spectra, t = measured(), (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    totals = {}
    for kind in ("spectral_freq", "spectral_mixed"):
        value = SpectralLevels.model_validate({"kind": "spectral", "schedule": {"kind": kind}})
        tables = value.tables(spectra)
        for image in (1, 2):
            levels = tables.of(torch.tensor([image]))
            logsnr = levels.logsnr(t, PROCESS)
            density = levels.density(logsnr, PROCESS)
            weight = Sigmoid(bias=-1.0).weight(level_of(logsnr, "vp"), lambda d=density: d, 1.0)
            low, high = (float(end) for end in value.schedule.ends(spectra.power[[image]]))
            primitive = [torch.nn.functional.softplus(torch.tensor(-1.0 - end)) for end in (low, high)]
            totals[kind, image] = float(weight.mean())
            assert totals[kind, image] == pytest.approx(float(primitive[0] - primitive[1]), rel=2e-3), (kind, image)
    assert totals["spectral_freq", 1] == pytest.approx(totals["spectral_mixed", 1], rel=2e-3)


def test_a_spectral_bias_makes_weights_follow_the_contrast():
    """An image k times as bright has its schedule 2 ln k nats lower, and there the weights of the image."""
    x0 = torch.cat([pictures(20), 2 * pictures(20)])
    spectra = measure_spectra(memory_dataset("pairs", x0, None, 0), split(40, 0.0), WORLD.device)
    value = SpectralLevels.model_validate({"kind": "spectral", "schedule": {"logsnr_max": None}})
    tables = value.tables(spectra)
    one, other, t = torch.tensor([4]), torch.tensor([24]), torch.tensor([0.4], dtype=torch.float64)
    found = []
    for image in (one, other):
        weighting = Sigmoid(bias=SpectralBias(at=0.7)).follow(tables).of(image)
        logsnr, levels = tables.of(image).logsnr(t, PROCESS), tables.of(image)
        found.append(weighting.weight(level_of(logsnr, "vp"), lambda v=levels, x=logsnr: v.density(x, PROCESS), 1.0))
    assert float(tables.offset(one) - tables.offset(other)) == pytest.approx(2 * math.log(2), abs=1e-4)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)
    plain = Sigmoid(bias=0.7)
    assert plain.follow(tables) is plain
    whole, level = Sigmoid(bias=SpectralBias(at=0.7)), level_of(t, "vp")
    for weighting in (whole, whole.follow(tables)):
        assert torch.equal(weighting.weight(level, lambda: t, 1.0), plain.weight(level, lambda: t, 1.0))
    with pytest.raises(SnrkitError, match=r"weighting\.bias: kind spectral follows levels of each image's own; give a"):
        whole.follow(LogNormal())


def test_a_micro_batch_is_the_objective_of_its_images():
    """By hand: levels of own tables, the network told own ends, the sigmoid weight with its own bias."""
    task, network = opened()
    draws = task.plan().draw(0, range(4))
    images = torch.tensor([task.train[p] for p in draws.positions.tolist()])
    pixels = task.dataset.pixels(images.tolist())
    asked = micro_batch(task, draws, pixels).ask(task)
    losses, logsnr = micro_losses(task, network, asked, (0, 0)), asked.logsnr
    value = SpectralLevels()
    spectra = measure_spectra(task.dataset, split(task.dataset.count, SMALL_HOLDOUT), WORLD.device)
    table, mean = value.schedule.table(spectra.power[images]), value.schedule.table(spectra.mean[None])
    place = draws.level * 256
    left = place.long()
    rows = torch.arange(64)
    step = table[rows, left] - table[rows, left + 1]
    by_hand = table[rows, left] - (place - left) * step
    torch.testing.assert_close(logsnr, by_hand, rtol=0, atol=2e-5)
    bias = -1.0 + torch.trapezoid(table, dx=1 / 256) - torch.trapezoid(mean, dx=1 / 256)
    fall = torch.minimum(256 * step, 10 * (table[:, 0] - table[:, -1]))
    weight = torch.sigmoid(bias - logsnr) * fall
    ends = torch.where((draws.scalars < 0.1)[:, None], mean[:, [-1, 0]], table[:, [-1, 0]]).float() / 4
    labels = task.dataset.labels[images].masked_fill(draws.label_drop < 0.1, -1)
    level, x0 = level_of(logsnr, "vp"), task.dataset.x0(images.tolist())
    x = level.scales(x0)[0] * x0 + level.scales(x0)[1] * draws.noise
    variance = task.objective.sigma_data**2
    total = (level.alpha**2 * variance + level.sigma**2).float()[:, None, None, None]
    time = PROCESS.time(logsnr).masked_fill(draws.noise_drop < 0.1, torch.nan).float()
    from snrkit.diffusion.prediction import Cond

    output = network(x / total.sqrt(), time, Cond(labels, ends))
    c_skip = (level.alpha * level.sigma * (1 - variance)).float()[:, None, None, None] / total
    c_out = variance**0.5 / total.sqrt()
    x0_hat_v = c_skip * x + c_out * output  # v_hat
    eps_hat = level.scales(x0)[0] * x0_hat_v + level.scales(x0)[1] * x
    error = (eps_hat - draws.noise).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.double(), weight * error.double(), rtol=2e-3, atol=1e-6)


SMALL_HOLDOUT = parse_experiment({**SMALL, **SPECTRAL}, "small").data.holdout


def test_levels_on_a_table_are_weighed_where_they_are_snapped_to():
    """An entry just beyond an image's own ends is inside: no weight over a density of 0."""
    task, _ = opened(process={"kind": "ddpm", "steps": 60}, levels={"kind": "spectral", "mean_ends": 0.0})
    for step in range(30):
        draws = task.plan().draw(step, range(4))
        images = torch.tensor([task.train[p] for p in draws.positions.tolist()])
        objective = task.objective.of(images)
        logsnr = objective.logsnr(draws.level)
        assert bool(objective.weight(logsnr).isfinite().all())
        assert bool((objective.weight(logsnr) > 0).all())


def test_one_spectrum_for_all_is_an_ordinary_level_sampler():
    """Scope dataset, told nothing: losses are those of the mean's table under an unconditioned network."""
    changes = {"levels": {"kind": "spectral", "scope": "dataset"},
               "network": {**SPECTRAL["network"], "scalars": []}}  # fmt: skip
    task, network = opened(**changes)
    draws = task.plan().draw(0, range(4))
    pixels = task.dataset.pixels([task.train[p] for p in draws.positions.tolist()])
    batch = micro_batch(task, draws, pixels)
    asked = batch.ask(task)
    mean = replace(task.objective, levels=Tabulated(task.objective.levels.mean))
    plain = batch.ask(replace(task, objective=mean))
    torch.testing.assert_close(asked.logsnr, plain.logsnr, rtol=0, atol=2e-6)
    found, expected = (micro_losses(task, network, question, (0, 0)) for question in (asked, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_training_goes_on_bit_for_bit_and_lowers_the_held_out_loss():
    """Five steps, a checkpoint and five more are ten steps; held-out images are weighed at their own levels."""
    task, network = opened()
    before = held_out_loss(task, network)
    whole = make_state(task, network)
    steps = train(task, whole)
    for _ in range(5):
        next(steps)
    kept = {n: {k: v.detach().clone() for k, v in part.items()} for n, part in state_tensors(whole).items()}
    whole.settle(task)
    numbers, images = state_numbers(whole), whole.images
    list(steps)
    again, fresh = opened()
    resumed = make_state(again, fresh)
    restore(resumed, images, kept, numbers)
    list(train(again, resumed))
    assert torch.equal(weights(whole), weights(resumed))
    after = held_out_loss(task, whole.network)
    assert sum(after.loss) < sum(before.loss)


def test_what_the_ends_say_reaches_the_network():
    """Another image's ends give another loss; without scalars the network is told none."""
    task, network = opened()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    draws = task.plan().draw(0, range(1))
    pixels = task.dataset.pixels([task.train[p] for p in draws.positions.tolist()])
    told_means = replace(draws, scalars=torch.zeros(16))
    own, means = (
        micro_losses(task, network, micro_batch(task, each, pixels).ask(task), (0, 0)) for each in (draws, told_means)
    )
    assert bool((own != means).any())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": {"kind": "lognormal"}}, "network.scalars: only levels of kind spectral and scope"),
        ({"levels": {"kind": "lognormal"}}, "weighting.bias: kind spectral follows levels of kind spectral"),
        ({"levels": {"kind": "spectral", "scope": "class"}}, "only levels of kind spectral and scope instance provide"),
        (
            {
                "samplers": {"own": {**EULER, "grid": {"kind": "spectral", "scale": 2}}},
                "network": {**SPECTRAL["network"], "scalars": []},
            },
            "samplers.own.grid.scale: the network is told no ends",
        ),
        ({"network": {**SPECTRAL["network"], "scalars": ["a"]}}, "network.scalars: unknown; they are"),
        ({"train": SMALL["train"], "network": {**SPECTRAL["network"], "augment": True}}, "train.augment: changes"),
        ({"levels": {"kind": "spectral", "scope": "image"}}, "scope: input should be 'instance', 'class' or 'dataset'"),
        ({"weighting": {"kind": "sigmoid", "bias": "x"}}, "weighting.*bias"),
        ({"levels": {"kind": "spectral", "schedule": {"kappa_min": 200}}}, "kappa_min 200 must be below kappa_max"),
    ],
)
def test_what_spectral_levels_cannot_do_is_refused(changes, words):
    """In one line that names the place."""
    with pytest.raises(ConfigError, match=words):
        parse_experiment({**SMALL, **SPECTRAL, **changes}, "small")


def test_images_without_rings_or_labels_are_refused():
    """Images that are no squares; scope class without labels."""
    changes = {"data": {**SMALL["data"], "shape": [1, 8, 6]}}
    with pytest.raises(SnrkitError, match="images of 8x6 have no spectrum by rings"):
        opened(**changes)
    with pytest.raises(DataError, match="no labels, which scope class needs"):
        SpectralLevels(scope="class").tables(measured(labels=None))


NOISE = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
CLASSES = np.arange(40) % 2
DEGENERATE = {
    "one colour for one class": (np.where(CLASSES[:, None, None, None], NOISE, 200).astype(np.uint8), CLASSES),
    "one colour for each class": (np.repeat(CLASSES * 255, 64).reshape(40, 8, 8, 1).astype(np.uint8), CLASSES),
    "one colour": (np.full((40, 8, 8, 1), 99, np.uint8), np.zeros(40, np.int64)),
    "one image": (NOISE[:1], np.zeros(1, np.int64)),
}


@pytest.mark.parametrize("scope", ["instance", "class", "dataset"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_images_without_texture_or_company_are_trained_on_and_drawn(case, scope, tmp_path):
    """Their schedules fall, from no cleaner than the cap; a step of training and a grid are finite."""
    np.savez(tmp_path / "set.npz", *DEGENERATE[case])
    task, network = opened(
        data={"kind": "npz", "path": str(tmp_path / "set.npz"), "sigma_data": 0.5},
        levels={"kind": "spectral", "scope": scope},
        network={
            **SPECTRAL["network"],
            "classes": int(DEGENERATE[case][1].max()) + 1,
            "scalars": SPECTRAL["network"]["scalars"] if scope == "instance" else [],
        },
    )
    assert bool((task.objective.levels.rows.diff(dim=1) < 0).all())
    assert float(task.objective.levels.rows.max()) <= 13.3 + 1e-4
    before = weights(state := make_state(task, network))
    assert math.isfinite(next(train(task, state)).loss)
    after = weights(state)
    assert bool(after.isfinite().all())
    assert not torch.equal(before, after)
    spectra = measure_spectra(task.dataset, split(task.dataset.count, 0.0), WORLD.device)
    known = Spectral(fit_spectrum_model(spectra), SpectralLevels(scope=scope), tells=True)
    labels = torch.tensor([0, -1, 0])
    rows = torch.stack([level.logsnr for level in known.place(SpectralGrid(steps=5), PROCESS, range(3), labels)[:-1]])
    assert bool((rows.diff(dim=0) > 0).all())
    assert bool(rows.isfinite().all())
