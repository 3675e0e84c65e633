"""What `snrkit certify` takes, before it begins: evaluations of the network for one image, and how long they are."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from snrkit.commands.pace import duration, rate
from snrkit.experiment.experiment import Experiment
from snrkit.sampling.flow import FLOW_STEPS, flow_evaluations
from snrkit.sampling.sampler import FEWEST_NOISES, Dummy, Sampler, guidance_of, open_with, parse_seeds

FLOWS = 2  # from first states that choose and that confirm, before anything else is tried
MEASURED = 15  # walks from each image that is measured: states, null and answers to two scales, before and after
TRIED_FLOWS, WALKS = 6, 150  # about: flows, and walks of the sampler, that all candidates take from each first state
FEW_IMAGES, FEW_SEEDS = 60, 200  # with which an answer still says something


@dataclass(frozen=True, slots=True)
class Cost:
    """Evaluations of an image."""

    before: int  # anything but the sampler itself is tried: flows
    tried: int  # about, of what --minutes cuts short
    after: int  # the winner is confirmed, with the shift of the sampler as it is

    @property
    def sure(self) -> int:
        """Whatever --minutes says."""
        return self.before + self.after

    def seconds(self, each: float, minutes: float | None) -> float:
        """How long it is at so many seconds for each evaluation, where trying ends after so many minutes."""
        begun, whole = each * self.before, each * (self.before + self.tried)
        return each * self.after + (whole if minutes is None else min(whole, max(begun, 60 * minutes)))


def cost_of(e: Experiment, samplers: Sequence[Sampler]) -> Cost:
    """What it takes to certify samplers, all of their candidates included."""
    costs = [_cost(e, sampler) for sampler in samplers]
    return Cost(*(sum(getattr(cost, part.name) for cost in costs) for part in fields(Cost)))


def _cost(e: Experiment, sampler: Sampler) -> Cost:
    process, walk = e.process, e.model.parts.cost(sampler)
    opened = open_with(sampler, process, Dummy(process, e.model.parts.levels))
    guidance = guidance_of(sampler, opened)
    flow = (1 + len(guidance)) * flow_evaluations(opened.typical, process, guidance)
    reference = (1 + len(guidance)) * flow_evaluations(opened.typical, process, guidance, FLOW_STEPS)  # of probe why
    noises, images, scored = e.tune.noises, e.shift.images, len(parse_seeds(e.sample.seeds))
    return Cost(
        noises * (FLOWS * flow + walk),
        noises * (TRIED_FLOWS * flow + WALKS * walk),
        2 * noises * walk + images * (reference + MEASURED * walk) + 2 * scored * walk,
    )


def foreseen(e: Experiment, samplers: Mapping[str, Sampler], each: float, minutes: float | None) -> str:
    """How long it takes to certify samplers at so many seconds for each evaluation, and what would be shorter."""
    cost, (least, settings) = cost_of(e, list(samplers.values())), shorter(e)
    whole, sure = cost.seconds(each, minutes), each * cost.sure
    what = f"certifying {len(samplers)} samplers" if len(samplers) > 1 else "certifying"
    text = (
        f"{what} takes about {duration(whole)} here, less what was tried before, at {rate(1 / each)} evaluations of an "
        f"image a second: {duration(sure)} for flows, shifts and the score, and {duration(whole - sure)} to try "
        f"candidates, {'which --minutes bounds' if minutes is None else 'as --minutes counts from the start'}"
    )
    name, first = next(iter(samplers.items()))
    only = f"--sampler {shlex.quote(name)}" if len(samplers) > 1 else ""
    fewer = " ".join(filter(None, (only, settings)))
    if not fewer or (minutes is not None and each * cost.before <= 60 * minutes):
        return text
    return f"{text}. With {fewer} it takes about {duration(cost_of(least, [first]).seconds(each, minutes))}"


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
    least = e
    for key, (_, new) in changed.items():
        section, name = key.split(".")
        least = least.model_copy(update={section: getattr(e, section).model_copy(update={name: new})})
    return least, " ".join(f"--set {key}={new}" for key, (old, new) in changed.items() if new != old)
