"""The posterior mean as what is asked for: against the sum written out, and what stays as it was."""

from itertools import islice

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.diffusion.process import Edm, Flow, Vp
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.training.batches import micro_batches
from snrkit.training.stable_target import stable_target
from tests.opened import open_task
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))
ALONE = {"augment": None, "noise_dropout": 0.0, "perturb": None}
PROCESSES = {"edm": Edm(), "vp": Vp(), "flow": Flow()}
LEVELS = torch.tensor([-3.0, 0.0, 1.0, 2.0, 4.0, 12.0]).double()


def opened(network=None, **train):
    network = {**SMALL["network"], "augment": False, **(network or {})}
    content = {**SMALL, "network": network, "train": {**SMALL["train"], **ALONE, **train}}
    return open_experiment(parse_experiment(content, "small"), WORLD)


@pytest.fixture
def images():
    """x0 and eps (6, 1, 2, 2) float64."""
    draws = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(6, 1, 2, 2, generator=draws, dtype=torch.float64)
    return x0, torch.randn(6, 1, 2, 2, generator=draws, dtype=torch.float64)


def written_out(x0, eps, level, rivals):
    """E[x0 | x] over the uniform distribution on some of the images, by densities of N(alpha x0_j, sigma^2)."""
    found = torch.empty_like(x0)
    for i in range(len(x0)):
        alpha, sigma = level.alpha[i], level.sigma[i]
        x = alpha * x0[i] + sigma * eps[i]
        own = rivals[i]
        spread = torch.distributions.Normal(alpha * x0[own], sigma)
        logs = spread.log_prob(x).flatten(1).sum(1)
        weight = (logs - logs.max()).exp()
        found[i] = (weight[:, None, None, None] * x0[own]).sum(0) / weight.sum()
    return found


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("group", [6, 3, 2])
def test_it_is_the_mean_given_the_state(process, group, images):
    """Of the images of each group, by densities; what is left beside it gives the same state."""
    x0, eps = images
    level = process.level(LEVELS)
    rivals = [list(range(i // group * group, i // group * group + group)) for i in range(6)]
    mean, left = stable_target(x0, eps, level, group)
    torch.testing.assert_close(mean, written_out(x0, eps, level, rivals), rtol=1e-9, atol=1e-9)
    alpha, sigma = level.scales(x0)
    torch.testing.assert_close(alpha * mean + sigma * left, alpha * x0 + sigma * eps, rtol=1e-9, atol=1e-9)
    assert (mean[:4] - x0[:4]).abs().max() > 0.01


def test_an_image_with_a_label_has_rivals_of_this_label(images):
    """And one whose label is not told has all."""
    x0, eps = images
    level, true = Vp().level(LEVELS), torch.tensor([0, 1, 0, 1, 0, 1])
    told = torch.tensor([0, -1, 0, 1, -1, 1])
    rivals = [[j for j in range(6) if told[i] < 0 or true[j] == told[i]] for i in range(6)]
    mean, _ = stable_target(x0, eps, level, 6, (told, true))
    torch.testing.assert_close(mean, written_out(x0, eps, level, rivals), rtol=1e-9, atol=1e-9)


def test_alone_and_without_noise_an_image_is_itself(images):
    """Bit for bit in a group of one; to rounding where the level leaves no doubt."""
    x0, eps = (each.float() for each in images)
    mean, left = stable_target(x0, eps, Edm().level(LEVELS), 1)
    assert torch.equal(mean, x0)
    assert torch.equal(left, eps)
    mean, left = stable_target(x0, eps, Edm().level(torch.full((6,), 12.0).double()), 6)
    torch.testing.assert_close(mean, x0)
    torch.testing.assert_close(left, eps)


def test_what_the_network_learns_stays(images):
    """The mean over states of one level of what is asked is that of the images, as E[E[x0 | x]] is; its spread is less.

    Over 4,000 draws of the noise of each of the six images, at the level of the third.
    """
    x0, _ = images
    level = Vp().level(torch.full((6,), 1.0).double())
    draws = torch.Generator().manual_seed(1)
    asked = torch.stack(
        [stable_target(x0, torch.randn(x0.shape, generator=draws).double(), level, 6)[0] for _ in range(4000)]
    )
    torch.testing.assert_close(asked.mean((0, 1)), x0.mean(0), rtol=0, atol=0.02)
    assert asked.flatten(0, 1).var(0).sum() < 0.95 * x0.var(0, correction=0).sum()


def test_a_training_pair_has_the_same_state_and_level():
    """And asks for something else."""
    plain, mean = open_task(opened()), open_task(opened(stable_target=True))
    a, b = (next(islice(micro_batches(task, 3), 1)) for task in (plain, mean))
    torch.testing.assert_close(a.pair.x, b.pair.x)
    assert torch.equal(a.logsnr, b.logsnr)
    assert torch.equal(a.pair.time, b.pair.time)
    assert (a.pair.wanted - b.pair.wanted).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("train", "key"),
    [
        ({"noise_dropout": 0.1}, "train.noise_dropout"),
        ({"perturb": {"kind": "ddpm_ip"}}, "train.perturb"),
        ({"pairing": {"kind": "minibatch_ot"}}, "train.pairing"),
    ],
    ids=["noise_dropout", "perturb", "pairing"],
)
def test_other_posteriors_are_refused(train, key):
    """Where the images of a slice are not those that a state could be of, each as likely as the others."""
    with pytest.raises(ConfigError, match=rf"train\.stable_target: .* drop it or {key}"):
        opened(stable_target=True, **train)


def test_images_with_levels_of_their_own_are_refused():
    """An image is the likelier one at a level the more it is trained there."""
    content = {
        **SMALL,
        "levels": {"kind": "spectral"},
        "network": {**SMALL["network"], "augment": False},
        "train": {**SMALL["train"], **ALONE, "stable_target": True},
    }
    with pytest.raises(ConfigError, match=r"train\.stable_target: the mean of images with levels of their own"):
        parse_experiment(content, "small")


def test_results_of_before_there_was_any_stay_valid():
    """Without it what decides the weights is said as before the key was there."""
    assert "stable_target" not in opened().experiment.model.identity()["train"]
    assert opened(stable_target=True).experiment.model.identity()["train"]["stable_target"] is True
