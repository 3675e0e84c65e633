"""What the network is shown of images: the Haar transform is a rotation, and no process knows of it."""

import numpy as np
import pytest
import pywt
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.wavelet import haar_coefficients, haar_images
from snrkit.commands.sample import manifest
from snrkit.data.digits import Digits
from snrkit.data.representation import Haar, Pixels
from snrkit.data.toy import gaussian_denoiser
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.sources import RunNames
from snrkit.sampling.corrections import Dcw
from snrkit.sampling.grid import UniformLogsnr
from snrkit.sampling.sample import sample, start
from snrkit.sampling.solvers import Ancestral, Dpmpp2m, Euler, Heun
from snrkit.training.batches import micro_batch
from tests.opened import open_task
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))
HAAR = {"representation": {"kind": "haar"}}


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_coefficients_are_those_of_pywt():
    """Band by band, all channels of one before those of the next."""
    x = draws(2, 3, 6, 8)
    ll, (hl, lh, hh) = pywt.dwt2(x.numpy(), "haar")
    found = haar_coefficients(x)
    assert found.shape == (2, 12, 3, 4)
    wanted = torch.from_numpy(np.concatenate([ll, lh, hl, hh], 1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_the_transform_is_orthogonal_and_its_inverse_exact():
    """As a matrix of dyadic numbers its product with its transpose is the identity to the bit; bytes come back."""
    units = torch.eye(3 * 4 * 2, dtype=torch.float64).reshape(-1, 3, 4, 2)
    matrix = haar_coefficients(units).flatten(1)
    assert torch.equal(matrix @ matrix.T, torch.eye(24, dtype=torch.float64))
    assert torch.equal(haar_images(haar_coefficients(units)), units)
    whole = torch.randint(0, 256, (5, 1, 8, 6), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(haar_images(haar_coefficients(whole)), whole)
    x = draws(4, 3, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(haar_images(haar_coefficients(x)), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", [Euler(), Heun(), Dpmpp2m(), Ancestral()])
@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()])
@pytest.mark.parametrize("corrections", [(), (Dcw(pixel=0.02),)])
def test_an_elementwise_model_samples_the_same_images(process, solver, corrections):
    """From the coefficients of the same noise, whatever the process and the solver, a correction of pixels included."""
    levels = UniformLogsnr(steps=6).levels(process)
    noise, variance = draws(3, 1, 8, 8), 0.3

    def walk(shape, represent):
        x, fresh = start(process, represent(noise), levels[0]), iter(range(1, 100))
        denoise = gaussian_denoiser(process, 0.0, variance, shape)
        renewed = lambda x: represent(draws(3, 1, 8, 8, seed=next(fresh)))  # noqa: E731
        for step in sample(denoise, solver, levels, x, corrections=corrections, noise=renewed):
            x = step.x_next
        return x

    pixels, coefficients = walk((1, 8, 8), lambda x: x), walk((4, 4, 4), haar_coefficients)
    torch.testing.assert_close(haar_images(coefficients), pixels, rtol=0, atol=1e-12)


def small(flip=False, augment=None, **data):
    """The small experiment on digits, opened."""
    network = {"kind": "mlp", "dim": 8, "depth": 1, "classes": 10}
    if augment:
        network = {**SMALL["network"], "classes": 10, "augment": True}
    content = {**SMALL, "data": {"kind": "digits", "flip": flip, **data}, "network": network,
               "train": {**SMALL["train"], "augment": augment}}  # fmt: skip
    return open_experiment(parse_experiment(content, "small"), WORLD)


@pytest.mark.parametrize("augment", [None, {"kind": "edm", "probability": 0.5}])
def test_flips_and_augmentation_are_of_images(augment):
    """Training in coefficients is shown the coefficients of what training in pixels is shown, with the same labels."""
    batches = []
    for data in ({}, HAAR):
        task = open_task(small(flip=True, augment=augment, **data))
        drawn = task.plan().draw(3, range(2))
        batches.append(micro_batch(task, drawn, task.pixels(drawn)))
    pixels, coefficients = batches
    torch.testing.assert_close(coefficients.x0, haar_coefficients(pixels.x0), rtol=0, atol=2e-6)
    assert torch.equal(pixels.cond.labels, coefficients.cond.labels)
    assert torch.equal(pixels.images, coefficients.images)


def test_what_is_measured_of_coefficients_is_what_is_measured_of_pixels():
    """Images as training shows them, the mean square and the fingerprint, which changes with the representation."""
    pixels, haar = small(flip=True).data, small(flip=True, **HAAR).data
    rows = range(6)
    torch.testing.assert_close(haar.shown(rows), haar_coefficients(pixels.shown(rows)), rtol=0, atol=1e-6)
    torch.testing.assert_close(haar.images(haar.shown(rows, True)), pixels.shown(rows, True), rtol=0, atol=1e-6)
    assert haar.labelled.shape == pixels.dataset.shape == (1, 8, 8)
    assert haar.dataset.shape == (4, 4, 4)
    assert haar.dataset.fingerprint != pixels.dataset.fingerprint
    assert haar.labelled.fingerprint == pixels.labelled.fingerprint
    # the transform moves the mean into ll, so that the grand variance is larger by three quarters of its square
    square = lambda moments: float(moments.square.mean())  # noqa: E731
    found = [square(small(sigma_data="auto", **data).data.moments) for data in ({}, HAAR)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_images_of_odd_sides_are_refused():
    """In one sentence."""
    odd = {"kind": "gaussian", "shape": [1, 8, 7], "count": 64}
    content = {**SMALL, "data": {**odd, **HAAR}, "network": {"kind": "mlp", "dim": 8, "depth": 1},
               "train": {**SMALL["train"], "augment": None, "label_dropout": 0.0}}  # fmt: skip
    with pytest.raises(SnrkitError, match=r"data.representation: gaussian has images of 8x7 pixels, and haar needs"):
        open_experiment(parse_experiment(content, "small"), WORLD)


def test_runs_in_pixels_are_what_they_were(tmp_path):
    """What earlier versions wrote of them has no key of a representation, and the data set is the source's own."""
    opened = small()
    part = opened.experiment.training_part()
    assert part["data"] == {"kind": "digits", "sigma_data": opened.data.sigma_data, "holdout": 0.1, "flip": False,
                            "only": None}  # fmt: skip
    names = RunNames(opened.experiment, opened.setting, Run(tmp_path), Weights("network", 0, ""))
    made = manifest(names, opened.experiment.samplers["euler"])
    assert made["training"] == part
    assert made["data"] == Digits().open().fingerprint
    images = Digits().open()
    assert Pixels().states(images) is images
    x = images.x0(range(2))
    assert Pixels().encode(x) is x is Pixels().decode(x)
    other = small(**HAAR).experiment.training_part()["data"]
    assert other == {**part["data"], "sigma_data": other["sigma_data"], **HAAR}


def test_the_representation_reads_as_it_is_written():
    """An experiment with one is the same after a round through its file."""
    e = small(**HAAR).experiment
    assert e.data.representation == Haar()
    assert parse_experiment(e.model_dump(mode="json"), "again") == e
