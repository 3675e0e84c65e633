"""What `snrkit certify` takes, before it begins: evaluations of the network for one image, and how long they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from snrkit.commands.pace import duration
from snrkit.experiment.experiment import Experiment
from snrkit.sampling.corrections.guidance import Guidance
from snrkit.sampling.flow import FLOW_STEPS, flow_evaluations
from snrkit.sampling.sampler import FEWEST_NOISES, Dummy, Sampler, guidance_of, open_with, parse_seeds

FLOWS = 3  # from first states that are fitted on, that choose, and that confirm
MEASURED = 15  # walks from each image that is measured: states, null and answers to two scales, before and after
DESIGNED, WALKS = 5, 150  # about: flows, and walks of the sampler, that all candidates take from each first state
FEW_IMAGES, FEW_SEEDS = 60, 200  # with which an answer still says something


@dataclass(frozen=True, slots=True)
class Cost:
    """Evaluations of an image."""

    sure: int  # whatever --minutes says: flows, the shift of the sampler as it is, and what confirms
    tried: int  # about, of what is tried

    def seconds(self, each: float, minutes: float | None) -> float:
        """How long it is at so many seconds for each evaluation, where trying may take so many minutes in all."""
        sure, whole = each * self.sure, each * (self.sure + self.tried)
        return whole if minutes is None else min(whole, max(sure, 60 * minutes))


def cost_of(e: Experiment, samplers: Sequence[Sampler]) -> Cost:
    """What it takes to certify samplers, all of their candidates included."""
    costs = [_cost(e, sampler) for sampler in samplers]
    return Cost(sum(cost.sure for cost in costs), sum(cost.tried for cost in costs))


def _cost(e: Experiment, sampler: Sampler) -> Cost:
    process, guides = e.process, sum(isinstance(c, Guidance) for c in sampler.corrections)
    opened, walk = open_with(sampler, process, Dummy(process, e.model.parts.levels)), e.model.parts.cost(sampler)
    guidance = guidance_of(sampler, opened)
    flow, reference = (
        (1 + guides) * each
        for each in (
            flow_evaluations(opened.typical, process, guidance),
            flow_evaluations(opened.typical, process, guidance, FLOW_STEPS),  # as the probe why has it
        )
    )
    noises, images, scored = e.tune.noises, e.shift.images, len(parse_seeds(e.sample.seeds))
    sure = noises * (FLOWS * flow + 4 * walk) + images * (reference + MEASURED * walk) + 2 * scored * walk
    return Cost(sure, noises * (DESIGNED * flow + WALKS * walk))


def foreseen(e: Experiment, samplers: Sequence[Sampler], each: float, minutes: float | None) -> str:
    """How long it takes to certify samplers at so many seconds for each evaluation, and what would be shorter."""
    cost, (least, settings) = cost_of(e, samplers), shorter(e)
    takes, sure = (duration(cost.seconds(each, at)) for at in (minutes, 0.0))
    text = f"certifying takes about {takes} here, at {1 / each:,.3g} evaluations of an image a second"
    if minutes is not None:
        text += f"; {sure} of it whatever --minutes says, for flows, shifts and the score"
    if not settings or (minutes is not None and each * cost.sure <= 60 * minutes):
        return text
    return f"{text}. With {settings} it takes about {duration(cost_of(least, samplers).seconds(each, minutes))}"


def shorter(e: Experiment) -> tuple[Experiment, str]:
    """(The experiment with as few first states, images and seeds as say something, the settings that make it so)."""
    seeds = parse_seeds(e.sample.seeds)
    few = f"{seeds[0]}-{seeds[0] + FEW_SEEDS - 1}" if len(seeds.ranges[0]) > FEW_SEEDS else e.sample.seeds
    noises, images = min(e.tune.noises, FEWEST_NOISES), min(e.shift.images, FEW_IMAGES)
    decide = "kid" if few != e.sample.seeds else e.metrics.decide  # which is not shifted by few images
    changed = {
        "tune.noises": (e.tune.noises, noises),
        "shift.images": (e.shift.images, images),
        "sample.seeds": (e.sample.seeds, few),
        "metrics.decide": (e.metrics.decide, decide),
    }
    least = e.model_copy(
        update={
            "tune": e.tune.model_copy(update={"noises": noises}),
            "shift": e.shift.model_copy(update={"images": images}),
            "sample": e.sample.model_copy(update={"seeds": few}),
            "metrics": e.metrics.model_copy(update={"decide": decide}),
        }
    )
    return least, " ".join(f"--set {key}={new}" for key, (old, new) in changed.items() if new != old)
