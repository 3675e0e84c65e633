"""`--dry-run`: what an experiment would do and need, without writing anything."""

import math
import resource
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snrkit.base.distributed import World, free_memory, in_bytes
from snrkit.base.errors import ConfigError
from snrkit.commands.opening import open_aloud
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.experiment import Experiment, dump_yaml
from snrkit.experiment.models import TrainedHere
from snrkit.experiment.opening import Setting, open_network, open_task
from snrkit.networks.foreign import Foreign
from snrkit.reports.blocks import short
from snrkit.training.config import TrainConfig
from snrkit.training.ema import AnyAveraging
from snrkit.training.train import make_state, train

MEASURED_STEPS = 3
LEAST = 0.25  # of the estimate in float32, that a step takes in whatever precision


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that training needs a process, in float32: 4 W + A, and W for every average (W weights, A activations)."""

    parameters: int
    weights: int  # with gradients, both moments and all averages
    activations: int
    there: float  # of the device, free

    @property
    def fits(self) -> bool:
        """Whether the device holds it all."""
        return self.weights + self.activations <= self.there


def plan(experiment: Experiment, world: World, peak: bool = False) -> str:
    """The resolved config, parameters, evaluations of each sampler, memory estimated and, with `peak`, measured."""
    opened = open_aloud(experiment, world)
    e, setting, dataset, split = opened.experiment, opened.setting, opened.data.dataset, opened.data.split
    facts = f"{len(split.train)} to train on, {len(split.held)} held out"
    lines = [dump_yaml(e).rstrip(), "", f"# data: {dataset.count} images {dataset.shape}, {facts}"]
    if note := opened.data.representation.note:
        lines.append(f"# states are {note}")
    for name, sampler in e.samplers.items():
        lines.append(f"# {name}: {setting.cost(sampler)} evaluations per image")
    return "\n".join([*lines, *(_of_training(e.training, setting, peak) if e.model.trains else _of_model(e))])


def _of_model(e: Experiment) -> list[str]:
    """What is known of a model from elsewhere."""
    network = e.network
    assert isinstance(network, Foreign)
    target = f"process {short(e.process)}, target {e.target.kind}, precondition {e.precondition.kind}"
    labels = f"{network.classes} labels{' and none' if network.null_label else ''}" if network.classes else "no labels"
    return [f"# model: {target}, {labels}", *(f"# {note}" for note in network.notes)]


def _of_training(training: TrainedHere, setting: Setting, peak: bool) -> list[str]:
    """Parameters, memory and averages."""
    averages, found = training.train.averages, budget(training, setting)
    lines = [f"# parameters: {found.parameters:,}"]
    lines.append(
        f"# training memory per process, estimated in float32: {in_bytes(found.weights)} for weights, gradients, two "
        f"moments and {len(averages)} average(s); {in_bytes(found.activations)} of activations"
        + (" (mixed precision: about half)" if setting.compute.precision != "fp32" else "")
    )
    if not found.fits:
        lines.append(f"# DOES NOT FIT into the {in_bytes(found.there)} free on {setting.world.device}: {REMEDY}")
    elif peak:
        lines.append(f"# measured over {MEASURED_STEPS} steps: {in_bytes(measured_peak(training, setting))} at most")
    return [*lines, *(f"# {_average(average, training.train)}" for average in averages)]


REMEDY = "raise train.accumulate, set compute.checkpointing, or take a smaller batch or network"


def budget(training: TrainedHere, setting: Setting) -> Budget:
    """Counted on tensors that hold nothing, so that any size can be asked about, where the network runs on such."""
    train, world = training.train, setting.world
    try:
        with FakeTensorMode():
            count, each = _counted(_outline(training, setting), setting)
    except RuntimeError:  # it looks at values, which these do not have
        count, each = _counted(open_network(training, setting), setting)
    micro = train.batch // (train.accumulate * world.size)
    return Budget(count, 4 * count * (4 + len(train.averages)), each * micro, free_memory(world.device))


def _outline(training: TrainedHere, setting: Setting) -> nn.Module:
    """The network, of whatever size; within a mode where tensors hold nothing."""
    return training.make(setting.data.dataset.shape, setting.seed, setting.compute.checkpointing)


def _counted(network: nn.Module, setting: Setting) -> tuple[int, int]:
    """(parameters, bytes of activations an image)."""
    return sum(p.numel() for p in network.parameters()), activation_bytes(setting, network)


def check_memory(training: TrainedHere, setting: Setting) -> None:
    """ConfigError where the device cannot hold even the weights of a training, or far from what a step keeps."""
    found, train = budget(training, setting), training.train
    if found.weights > found.there:
        raise ConfigError(
            f"network: {found.parameters:,} parameters need {in_bytes(found.weights)} to train with "
            f"{len(train.averages)} average(s), and {setting.world.device} has {in_bytes(found.there)} free; "
            "make the network smaller."
        )
    if found.weights + found.activations * LEAST > found.there:
        raise ConfigError(
            f"train.batch: a step keeps about {in_bytes(found.activations)} for its backward pass, and "
            f"{setting.world.device} has {in_bytes(found.there)} free; {REMEDY}."
        )


def _average(average: AnyAveraging, train: TrainConfig) -> str:
    late = average.beta(train.images, train.batch)
    if late <= 0:
        return f"{average.name}: nothing is left of the step before, which was {train.batch} images ago; average longer"
    half = math.log(0.5) / math.log(late) * train.batch
    return f"{average.name}: at the end half-life {half:,.0f} images, decay {late:.7g} a step"


def activation_bytes(setting: Setting, network: nn.Module) -> int:
    """What one image's forward pass keeps for the backward pass, counted by autograd itself (weights excluded).

    ConfigError for a network that does not answer in the shape of its states.
    """
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    batch = 2
    x = torch.zeros(batch, *setting.data.dataset.shape)
    takes = setting.parts.network.conditioning
    labels = torch.zeros(batch, dtype=torch.int64) if takes.classes else None
    scalars = torch.zeros(batch, len(takes.scalars)) if takes.scalars else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(x, torch.zeros(batch), Cond(labels, scalars, takes.unaugmented(batch)))
        out.square().mean()
    if out.shape != x.shape:
        raise ConfigError(
            f"network: it answers {tuple(out.shape)} to states of {tuple(x.shape)}; it needs their shape."
        )
    return sum(storage.nbytes() for storage in kept.values()) // batch


def measured_peak(training: TrainedHere, setting: Setting) -> int:
    """Bytes more than before that a few steps of training take at most, network and optimizer included."""
    device = setting.world.device
    before, task = _most(device), open_task(training, setting)
    for step in train(task, make_state(task, open_network(training, setting))):
        if step.step == MEASURED_STEPS:
            break
    return _most(device) - before


def _most(device: torch.device) -> int:
    """The most bytes held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
