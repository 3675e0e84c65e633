"""Schedulers of diffusers, audited: what is planted is found as it is, and what is found is what their code says."""

import math
from itertools import pairwise

import numpy as np
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
    """fixed_small leaves the noise of the next level to a network that knows the image; fixed_large adds beta.

    With its default spacing, call by call, the variance that a state keeps included; most of all at the last.
    """
    small = walk_scheduler(diffusers.DDPMScheduler(variance_type="fixed_small"), 10)
    assert abs(small.worst) < 1e-5
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large")
    large = walk_scheduler(scheduler, 10)
    times = [round(call.time) for call in large.calls]
    variance, expected = 1 - float(scheduler.alphas_cumprod[times[0]]), [0.0]
    for time, after in pairwise(times):
        abar, before = (float(scheduler.alphas_cumprod[t]) for t in (time, after))
        beta = 1 - abar / before
        variance = (1 - beta) * ((1 - before) / (1 - abar)) ** 2 * variance + beta
        expected.append(-math.log(variance / (1 - before)))
    assert [call.difference for call in large.calls] == pytest.approx(expected, abs=1e-3)
    assert times[-1] == 0
    assert large.worst == large.calls[-1].difference < -5


def test_training_pairs_of_a_configuration():
    """Those of DDPM are at every entry of the table what they are told."""
    found = walk_training(diffusers.DDPMScheduler())
    assert len(found.calls) == 1000
    assert abs(found.worst) < 1e-5
    flow = walk_training(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert abs(flow.worst) < 1e-4


def told_sigma(scheduler, times):
    """sigma of times by the scheduler's own table, between entries evenly in ln sigma."""
    table = np.log(np.array((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod)) / 2
    return np.exp(np.interp(times, np.arange(len(table)), table))


def time_of(scheduler, sigmas):
    """The inverse."""
    table = np.log(np.array((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod)) / 2
    return np.interp(np.log(sigmas), table, np.arange(len(table)))


WHOLE = {  # which make whole numbers of the times of their sigmas, and how
    "karras": (lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), np.round),
    "lu": (lambda: diffusers.DPMSolverMultistepScheduler(use_lu_lambdas=True), np.round),
    "exponential": (lambda: diffusers.UniPCMultistepScheduler(use_exponential_sigmas=True), np.floor),
    "beta": (lambda: diffusers.DEISMultistepScheduler(use_beta_sigmas=True), np.floor),
    "sa": (lambda: diffusers.SASolverScheduler(use_exponential_sigmas=True), np.floor),
}


@pytest.mark.parametrize("name", WHOLE)
def test_times_that_are_made_whole_are_found_call_by_call(name):
    """Rounded or cut: sigma of the whole number against the sigma that is kept, at every call."""
    make, whole = WHOLE[name]
    scheduler = make()
    found = walk_scheduler(scheduler, 25)
    sigmas, times = scheduler.sigmas[:-1].double().numpy(), scheduler.timesteps.numpy()
    exact = time_of(scheduler, sigmas)
    assert np.array_equal(times[1:-1], whole(exact)[1:-1])  # the ends are entries of the table, up to float32
    expected = 2 * np.log(told_sigma(scheduler, times) / sigmas)
    assert [call.difference for call in found.calls] == pytest.approx(expected.tolist(), abs=2e-4)
    assert max(abs(expected)) > 0.01


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_of_a_flow_that_are_cut_are_found_call_by_call(name, shift):
    """int(1000 sigma) against sigma; the first is pure noise but for -2 ln 3 nats of the shift, or 1e-6 in UniPC."""
    settings = {"use_flow_sigmas": True, "flow_shift": shift}
    scheduler = getattr(diffusers, f"{name}Scheduler")(**settings)
    found = walk_scheduler(scheduler, 10)
    for call, sigma in zip(found.calls, scheduler.sigmas.double().tolist(), strict=False):
        told = int(1000 * sigma) / 1000
        expected = 2 * math.log((1 - sigma) / sigma) - 2 * math.log((1 - told) / told)
        assert call.difference == pytest.approx(expected, abs=1e-3)
    first = math.log(1e-6 / 1e-3) if name == "UniPCMultistep" else -math.log(shift)
    assert found.calls[0].difference == pytest.approx(2 * first, abs=0.03)


def test_two_layouts_at_once_are_found():
    """Euler's log_linear: sigmas even in their logarithm, times even in themselves."""
    scheduler = diffusers.EulerDiscreteScheduler(interpolation_type="log_linear")
    found = walk_scheduler(scheduler, 10)
    sigmas = scheduler.sigmas[:10].double().numpy()
    assert np.diff(np.log(sigmas)) == pytest.approx([math.log(sigmas[1] / sigmas[0])] * 9, abs=1e-5)
    expected = 2 * np.log(told_sigma(scheduler, np.linspace(999, 0, 10)) / sigmas)
    assert [call.difference for call in found.calls] == pytest.approx(expected.tolist(), abs=1e-4)


def test_pndm_under_linspace_steps_as_ddim_does():
    """Its second call is told 888 and is at 899."""
    scheduler = diffusers.PNDMScheduler(timestep_spacing="linspace", skip_prk_steps=True)
    found = walk_scheduler(scheduler, 10)
    assert found.calls[1].difference == pytest.approx(logsnr(scheduler, 899) - logsnr(scheduler, 888), abs=1e-5)


def test_ipndm_throws_its_first_answer_away():
    """Two networks that answer otherwise at the first call leave the same state."""
    states = []
    for answer in (torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 5.0)):
        scheduler = diffusers.IPNDMScheduler()
        scheduler.set_timesteps(10)
        states.append(scheduler.step(answer, scheduler.timesteps[0], torch.ones(1, 1, 2, 2)).prev_sample)
    assert torch.equal(*states)
    assert walk_scheduler(diffusers.IPNDMScheduler(), 10).calls[1].state < -70


def test_a_consistency_model_is_told_more_noise_than_it_has():
    """By ln(1 - sigma_min^2/sigma^2)."""
    scheduler = diffusers.CMStochasticIterativeScheduler()
    last = walk_scheduler(scheduler, 10).calls[-1]
    assert last.difference == pytest.approx(-math.log1p(-((0.002 / float(scheduler.sigmas[-2])) ** 2)), abs=1e-4)


def test_inverted_sigmas_end_in_noise_under_lcm_alone():
    """Euler's step goes by differences."""
    assert walk_scheduler(diffusers.FlowMatchLCMScheduler(invert_sigmas=True), 4).end == -math.inf
    euler = walk_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 4)
    assert euler.end > 30
    assert abs(euler.worst) < 1e-4


def test_a_table_that_rises_again_is_refused():
    """Euler's zero terminal SNR sets its last entry to 2^-24, which is above the one before it."""
    scheduler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] > scheduler.alphas_cumprod[-2]
    with pytest.raises(SnrkitError, match="betas must lie in"):
        walk_scheduler(scheduler, 10)


def test_add_noise_of_a_multistep_scheduler_is_reversed_until_its_steps_are_set():
    """The pair of time 999 - i has the noise of i."""
    scheduler = diffusers.DPMSolverMultistepScheduler()
    found = walk_training(scheduler)
    assert [call.time for call in found.calls[:3]] == [999, 998, 997]
    for index in (0, 1, 500, 999):
        assert found.calls[index].state == pytest.approx(logsnr(scheduler, index), abs=1e-3)


def test_the_page_has_what_is_found():
    """At 4 steps, under the same diffusers: every finding is in the table, and nothing else is."""
    from tests import audit_page

    text = audit_page.PAGE.read_text()
    if f"diffusers {audit_page.VERSION} exports" not in text.replace("\n", " "):
        pytest.skip("written with another diffusers")
    rows = [line.split(" | ")[:3] for line in text.splitlines() if line.startswith("| ") and "(" in line]
    told = {tuple(cell.removeprefix("| ") for cell in row) for row in rows}
    for names, variant, four, _ in audit_page.levels((4,)):
        for name in names.split(", "):
            assert any(name in a.split(", ") and (b, c) == (variant, four) for a, b, c in told), (name, variant, four)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: diffusers.AmusedScheduler(mask_token_id=1), "masked tokens"),
        (diffusers.RePaintScheduler, "step asks for mask, original_image, which only its pipeline has"),
        (diffusers.ScoreSdeVeScheduler, "no step that takes what a network says"),
        (diffusers.DDIMInverseScheduler, "goes from an image to noise"),
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
