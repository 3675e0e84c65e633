"""Schedulers of diffusers, audited: what is planted is found as it is, and what is found is what their code says."""

import math

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.shift.schedulers import walk_scheduler, walk_training

diffusers = pytest.importorskip("diffusers")


def logsnr(scheduler, index):
    """Of an entry of a scheduler's table."""
    abar = float(scheduler.alphas_cumprod[index])
    return math.log(abar / (1 - abar))


HONEST = {
    "ddpm": lambda: diffusers.DDPMScheduler(timestep_spacing="trailing"),
    "ddim": diffusers.DDIMScheduler,
    "ddim-v": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction"),
    "ddim-sample": lambda: diffusers.DDIMScheduler(prediction_type="sample"),
    "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
    "euler-v": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", prediction_type="v_prediction"),
    "ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
    "edm": diffusers.EDMEulerScheduler,
    "edm-v": lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    "heun": lambda: diffusers.HeunDiscreteScheduler(timestep_spacing="trailing"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_schedulers_tell_what_is(name):
    """Ten steps of each to 2e-5 nats, deterministic or not, whatever the network predicts."""
    found = walk_scheduler(HONEST[name](), 10)
    assert len(found.calls) == (19 if "heun" in name else 10)
    assert max(abs(call.difference) for call in found.calls) < 2e-5
    assert max(abs(call.scale) for call in found.calls) < 1e-5


class FlowMatchUnshifted(diffusers.FlowMatchEulerDiscreteScheduler):
    """Walks shifted levels and tells the unshifted time: the bug of a shift that one of two does not know."""

    def set_timesteps(self, *args, **settings):
        super().set_timesteps(*args, **settings)
        sigma = self.sigmas[:-1]
        self.timesteps = 1000 * sigma / (self.shift + (1 - self.shift) * sigma)


def test_a_shift_that_is_not_told_is_found_as_what_it_is():
    """-2 ln 3 nats at every call but that of pure noise, where there is nothing to shift."""
    found = walk_scheduler(FlowMatchUnshifted(shift=3.0), 10)
    assert found.calls[0].difference == 0
    off = [call.difference for call in found.calls[1:]]
    assert off == pytest.approx([-2 * math.log(3)] * 9, abs=1e-4)


class Repeating(diffusers.EulerDiscreteScheduler):
    """Tells the third time step twice."""

    def set_timesteps(self, *args, **settings):
        super().set_timesteps(*args, **settings)
        self.timesteps[3] = self.timesteps[2]


def test_a_duplicated_time_step_is_found_where_it_is():
    """At the fourth call alone, by the distance of two levels."""
    scheduler = Repeating(timestep_spacing="trailing")
    found = walk_scheduler(scheduler, 10)
    off = [call.difference for call in found.calls]
    ratio = float(scheduler.sigmas[2] / scheduler.sigmas[3])
    assert off[3] == pytest.approx(2 * math.log(ratio), abs=1e-5)
    assert max(abs(one) for one in [*off[:3], *off[4:]]) < 1e-5
    assert "1 of 10 calls" in found.beyond(0.01)[0]
    assert "call 4" in found.beyond(0.01)[0]


class Unscaled(diffusers.EulerDiscreteScheduler):
    """Shows the network its states as they are."""

    def scale_model_input(self, sample, timestep):
        super().scale_model_input(sample, timestep)
        return sample


def test_an_input_of_another_size_is_found():
    """By ln sqrt(1 + sigma^2), with levels that are right."""
    scheduler = Unscaled(timestep_spacing="trailing")
    found = walk_scheduler(scheduler, 4)
    assert found.worst == pytest.approx(0, abs=1e-5)
    sizes = [0.5 * math.log1p(float(sigma) ** 2) for sigma in scheduler.sigmas[:-1]]
    assert [call.scale for call in found.calls] == pytest.approx(sizes, abs=1e-5)


def test_ddim_under_linspace_is_found_at_its_second_call():
    """It steps by 1000 // n, and tells the next of n times from 999 to 0."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace")
    found = walk_scheduler(scheduler, 10)
    assert found.calls[1].difference == pytest.approx(logsnr(scheduler, 899) - logsnr(scheduler, 888), abs=1e-5)


def test_variances_of_ddpm_are_told_apart():
    """fixed_small leaves the noise of the next level to a network that knows the image; fixed_large adds beta."""
    small = walk_scheduler(diffusers.DDPMScheduler(variance_type="fixed_small", timestep_spacing="trailing"), 10)
    assert abs(small.worst) < 1e-5
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing")
    large = walk_scheduler(scheduler, 10)
    abar, before = (float(scheduler.alphas_cumprod[t]) for t in (999, 899))
    beta = 1 - abar / before
    variance = (1 - beta) * ((1 - before) / (1 - abar)) ** 2 * (1 - abar) + beta
    assert large.calls[1].difference == pytest.approx(-math.log(variance / (1 - before)), abs=1e-4)


def test_training_pairs_of_a_configuration():
    """Those of DDPM are at every entry of the table what they are told."""
    found = walk_training(diffusers.DDPMScheduler())
    assert len(found.calls) == 1000
    assert abs(found.worst) < 1e-5
    flow = walk_training(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert abs(flow.worst) < 1e-4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: diffusers.AmusedScheduler(mask_token_id=1), "masked tokens"),
        (diffusers.RePaintScheduler, "step asks for mask, original_image, which only its pipeline has"),
        (diffusers.ScoreSdeVeScheduler, "is not known here"),
    ],
)
def test_what_cannot_be_run_so_says_why(make, said):
    """In one sentence."""
    with pytest.raises(SnrkitError, match=said):
        walk_scheduler(make(), 10)


def test_more_steps_than_a_scheduler_has_are_refused():
    """As diffusers says it."""
    with pytest.raises(SnrkitError, match=r"DDIMScheduler cannot be audited at 2000 steps: .*cannot be larger"):
        walk_scheduler(diffusers.DDIMScheduler(), 2000)


def test_global_noise_is_left_alone():
    """Nothing is drawn from torch's generator."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    walk_scheduler(diffusers.DDPMScheduler(), 4)
    assert torch.equal(before, torch.get_rng_state())
