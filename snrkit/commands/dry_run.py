"""`--dry-run`: what an experiment would do and need, without writing anything."""

import math
import resource
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snrkit.base.ahead import held_ahead
from snrkit.base.distributed import World, free_memory, in_bytes
from snrkit.base.errors import ConfigError
from snrkit.base.kept import counting_kept
from snrkit.commands.opening import open_aloud
from snrkit.commands.pace import duration, rate, sampling_takes, training_pace
from snrkit.experiment.experiment import Experiment, dump_yaml
from snrkit.experiment.loggers import check_loggers
from snrkit.experiment.models import TrainedHere
from snrkit.experiment.opening import AUTOCAST, Setting, open_network, open_task
from snrkit.networks.foreign import Foreign
from snrkit.reports.blocks import short
from snrkit.sampling.sampler import parse_seeds
from snrkit.training.config import TrainConfig
from snrkit.training.ema import AnyAveraging
from snrkit.training.train import make_state, train

MEASURED_STEPS = 3  # after those that use up what threads made ahead, so that making the rest is measured too
COVERS = {  # by device: what a measured peak is of
    "cpu": "by which this process grew: all that is estimated, code and workspace of libraries, memory not yet reused",
    "cuda": "of torch's allocator: all that is estimated, and workspace of libraries; the CUDA context not counted",
}
LEAST = 0.25  # of the estimate in float32, that a step takes in whatever precision


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that training needs a process: 4 W + A + B, and W for every average.

    W are weights, A activations, and B micro-batches that are made ahead of the step.
    """

    parameters: int
    weights: int  # float32, with gradients, both moments and all averages
    activations: Mapping[str, int]  # of a step in each precision, with the copies of weights that it works with
    ahead: int  # what the network is shown and should answer, of every micro-batch that is there at a time
    precision: str  # in which the experiment trains
    there: float  # of the device, free

    @property
    def fits(self) -> bool:
        """Whether the device holds it all."""
        return self.weights + self.activations[self.precision] + self.ahead <= self.there


def plan(
    experiment: Experiment,
    world: World,
    peak: bool = False,
    config: bool = False,
    trains: bool = True,
    sampled: Sequence[str] = (),
) -> str:
    """Images, evaluations of each sampler, parameters, memory estimated and, with `peak`, measured, and the time.

    The time of a training where the command `trains`, and of the images of the samplers that are `sampled`. With
    `config` as comments behind the resolved experiment, which is YAML.
    """
    check_loggers(experiment)
    opened = open_aloud(experiment, world)
    e, setting, dataset, split = opened.experiment, opened.setting, opened.data.dataset, opened.data.split
    facts = f"{len(split.train):,} to train on, {len(split.held):,} held out"
    lines = [f"data: {dataset.count:,} images {dataset.shape}, {facts}"]
    if note := opened.data.representation.note:
        lines.append(f"states are {note}")
    if not e.model.trains:
        lines += _of_model(e)
    elif trains:
        lines += _of_training(e.training, setting, peak)
    lines += [f"{name}: {setting.cost(sampler)} evaluations per image" for name, sampler in e.samplers.items()]
    if sampled:
        each = sum(setting.cost(e.samplers[name]) for name in sampled)
        lines.append(sampling_takes(opened, each * len(parse_seeds(e.sample.seeds))))
    if config:
        return "\n".join([dump_yaml(e).rstrip(), "", *(f"# {line}" for line in lines)])
    more = trains and e.model.trains and not peak
    asked = ["--peak trains a few steps in memory and says what they took"] if more else []
    return "\n".join([*lines, *asked, "--show-config prints the resolved experiment too"])


def _of_model(e: Experiment) -> list[str]:
    """What is known of a model from elsewhere."""
    network = e.network
    assert isinstance(network, Foreign)
    target = f"process {short(e.process)}, target {e.target.kind}, precondition {e.precondition.kind}"
    labels = f"{network.classes} labels{' and none' if network.null_label else ''}" if network.classes else "no labels"
    return [f"model: {target}, {labels}", *network.notes]


def _of_training(training: TrainedHere, setting: Setting, peak: bool) -> list[str]:
    """Parameters, memory and averages."""
    averages, found = training.train.averages, budget(training, setting)
    lines = [f"parameters: {found.parameters:,}"]
    each = 4 * found.parameters
    lines.append(
        f"training memory per process, estimated: {in_bytes(found.weights)} for weights, gradients, two moments and "
        f"{len(averages)} average(s), {in_bytes(each)} each; {_in_each(found.activations)} of activations; "
        f"{in_bytes(found.ahead)} of micro-batches made ahead; images in memory and what libraries hold not counted"
    )
    if not found.fits:
        lines.append(f"DOES NOT FIT into the {in_bytes(found.there)} free on {setting.world.device}: {REMEDY}")
    else:
        lines += _measured(training, setting) if peak else [_paced(training, setting)]
        lines += training.train.remarks
    return [*lines, *(_average(average, training.train) for average in averages)]


def _in_each(activations: Mapping[str, int]) -> str:
    return ", ".join(f"{in_bytes(count)} in {precision}" for precision, count in activations.items())


def _paced(training: TrainedHere, setting: Setting) -> str:
    """How long training takes, by the pace of a few steps on a part of a batch."""
    shape, device, train = setting.data.dataset.shape, setting.world.device, training.train
    batch = train.batch // (train.accumulate * setting.world.size)
    network, takes = open_network(training, setting).to(device), setting.parts.network.conditioning
    pace = training_pace(network, shape, batch, device, takes, AUTOCAST[setting.compute.precision])
    took = duration(train.images / (pace * setting.world.size))
    return (
        f"{train.images:,} images take about {took} by {rate(pace)} images/s forward and backward here; "
        "optimizer, averages and what compiling gains are not counted"
    )


def _measured(training: TrainedHere, setting: Setting) -> list[str]:
    """What a few steps took, and how long the rest would."""
    found, left = measured_steps(training, setting), training.train.images
    batch = training.train.batch
    covers = COVERS["cuda" if setting.world.device.type == "cuda" else "cpu"]
    return [
        f"measured over {MEASURED_STEPS} steps: {in_bytes(found.memory)} at most, {covers}",
        f"a step of {batch} images takes {found.seconds:.3g} s here, so {left:,} images about "
        f"{duration(found.seconds * left / batch)}, checkpoints and hold-out losses not counted",
    ]


REMEDY = "raise train.accumulate, set compute.checkpointing, or take a smaller batch or network"


def budget(training: TrainedHere, setting: Setting, precisions: Collection[str] = tuple(AUTOCAST)) -> Budget:
    """Counted on tensors that hold nothing, so that any size can be asked about, where the network runs on such.

    `precisions`: those in which activations are counted.
    """
    train, world = training.train, setting.world
    micro = train.batch // (train.accumulate * world.size)
    try:
        with FakeTensorMode():
            count, kept = _counted(_outline(training, setting), setting, micro, precisions)
    except RuntimeError:  # it looks at values, which these do not have
        count, kept = _counted(open_network(training, setting), setting, micro, precisions)
    weights = 4 * count * (4 + len(train.averages))
    ahead = (held_ahead(world.size) + 1) * 2 * 4 * micro * math.prod(setting.data.dataset.shape)
    return Budget(count, weights, kept, ahead, setting.compute.precision, free_memory(world.device))


def _outline(training: TrainedHere, setting: Setting) -> nn.Module:
    """The network, of whatever size; within a mode where tensors hold nothing."""
    return training.make(setting.data.dataset.shape, setting.seed, setting.compute.checkpointing)


def _counted(
    network: nn.Module, setting: Setting, batch: int, precisions: Collection[str]
) -> tuple[int, dict[str, int]]:
    """(parameters, bytes of the activations of a batch in each precision).

    Of two images and of four: what does not grow with their number are copies of the weights.
    """
    kept = {}
    for precision in precisions:
        few, more = (activation_bytes(setting, network, images, precision) for images in (2, 4))
        kept[precision] = max(0, 2 * few - more) + (more - few) * batch // 2
    return sum(p.numel() for p in network.parameters()), kept


def check_memory(training: TrainedHere, setting: Setting) -> None:
    """ConfigError where the device cannot hold even the weights of a training, or far from what a step keeps."""
    found, train = budget(training, setting, ()), training.train
    if found.weights > found.there:
        raise ConfigError(
            f"network: {found.parameters:,} parameters need {in_bytes(found.weights)} to train with "
            f"{len(train.averages)} average(s), and {setting.world.device} has {in_bytes(found.there)} free; "
            "make the network smaller."
        )
    found = budget(training, setting, {"fp32", found.precision})
    if found.weights + found.activations["fp32"] * LEAST + found.ahead > found.there:
        raise ConfigError(
            f"train.batch: a step keeps about {in_bytes(found.activations[found.precision])} for its backward pass and "
            f"{in_bytes(found.ahead)} of batches made ahead, and {setting.world.device} has {in_bytes(found.there)} "
            f"free; {REMEDY}."
        )


def _average(average: AnyAveraging, train: TrainConfig) -> str:
    late = average.beta(train.images, train.batch)
    if late <= 0:
        return f"{average.name}: nothing is left of the step before, which was {train.batch} images ago; average longer"
    half = math.log(0.5) / math.log(late) * train.batch
    return f"{average.name}: at the end half-life {half:,.0f} images, decay {late:.7g} a step"


def activation_bytes(setting: Setting, network: nn.Module, batch: int, precision: str) -> int:
    """What the forward pass of a batch keeps for the backward pass, counted by autograd itself (weights excluded).

    ConfigError for a network that does not answer in the shape of its states.
    """
    x = torch.zeros(batch, *setting.data.dataset.shape)
    cond = setting.parts.network.conditioning.zeros(batch)
    autocast = torch.autocast("cpu", AUTOCAST[precision], enabled=AUTOCAST[precision] is not None)
    with autocast, counting_kept(network.parameters()) as kept:
        out = network(x, torch.zeros(batch), cond)
        out.float().square().mean()
    if out.shape != x.shape:
        raise ConfigError(
            f"network: it answers {tuple(out.shape)} to states of {tuple(x.shape)}; it needs their shape."
        )
    return kept.bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """A few steps of training on this device."""

    memory: int  # bytes more than before at most, network and optimizer included
    seconds: float  # a step, the first ones, which warm up, left out


def measured_steps(training: TrainedHere, setting: Setting) -> Measured:
    """MEASURED_STEPS steps, after some that warm up."""
    device = setting.world.device
    before, task = _most(device), open_task(training, setting)
    warm = MEASURED_STEPS + -(-held_ahead(setting.world.size) // task.config.accumulate)
    task = replace(task, config=task.config.model_copy(update={"images": (warm + MEASURED_STEPS) * task.config.batch}))
    begun = 0.0
    for step in train(task, make_state(task, open_network(training, setting))):
        if step.step == warm:
            begun = _now(device)
    return Measured(_most(device) - before, (_now(device) - begun) / MEASURED_STEPS)


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _most(device: torch.device) -> int:
    """The most bytes held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
