"""`--dry-run`: what an experiment would do and need, without writing anything."""

import math
import os
import resource
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.experiment import Experiment, dump_yaml
from snrkit.experiment.opening import Opened, open_experiment, open_network, open_task
from snrkit.networks.foreign import Foreign
from snrkit.reports.blocks import short
from snrkit.sampling.sampler import dry_run
from snrkit.training.ema import AnyAveraging
from snrkit.training.train import make_state, train

GIBIBYTE = 2**30
MEASURED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that training needs a process, in float32: 4 W + A, and W for every average (W weights, A activations)."""

    parameters: int
    weights: int  # with gradients, both moments and all averages
    activations: int
    there: int  # of the device

    @property
    def fits(self) -> bool:
        """Whether the device holds it all."""
        return self.weights + self.activations <= self.there


def plan(experiment: Experiment, world: World, peak: bool = False) -> str:
    """The resolved config, parameters, evaluations of each sampler, memory estimated and, with `peak`, measured."""
    opened = open_experiment(experiment, world)
    e = opened.experiment
    lines = [dump_yaml(e).rstrip(), "", f"# data: {opened.dataset.count} images {opened.dataset.shape}, "
             f"{len(opened.split.train)} to train on, {len(opened.split.held)} held out"]  # fmt: skip
    for name, sampler in e.samplers.items():
        calls = dry_run(sampler, e.process, e.target, opened.dataset.shape, e.spectral)
        lines.append(f"# {name}: {calls} evaluations per image")
    return "\n".join([*lines, *(_of_training(opened, peak) if e.model.trains else _of_model(e))])


def _of_model(e: Experiment) -> list[str]:
    """What is known of a model from elsewhere."""
    network = e.network
    assert isinstance(network, Foreign)
    target = f"process {short(e.process)}, target {e.target.kind}, precondition {e.precondition.kind}"
    labels = f"{network.classes} labels{' and none' if network.null_label else ''}" if network.classes else "no labels"
    coded = e.model.autoencoder()
    latent = [] if coded is None else [f"# states are latents, of the autoencoder in {coded.path}"]
    return [f"# model: {target}, {labels}", *latent, *(f"# {note}" for note in network.notes)]


def _of_training(opened: Opened, peak: bool) -> list[str]:
    """Parameters, memory and averages."""
    e, found = opened.experiment, budget(opened)
    lines = [f"# parameters: {found.parameters:,}"]
    lines.append(
        f"# training memory per process, estimated in float32: {_size(found.weights)} for weights, gradients, two "
        f"moments and {len(e.train.averages)} average(s); {_size(found.activations)} of activations"
        + (" (mixed precision: about half)" if e.compute.precision != "fp32" else "")
    )
    if not found.fits:
        lines.append(f"# DOES NOT FIT into the {_size(found.there)} of {opened.world.device}: {REMEDY}")
    elif peak:
        lines.append(f"# measured over {MEASURED_STEPS} steps: {_size(measured_peak(opened))} at most")
    return [*lines, *(f"# {_average(average, e)}" for average in e.train.averages)]


REMEDY = "raise train.accumulate, set compute.checkpointing, or take a smaller batch or network"


def budget(opened: Opened) -> Budget:
    """Counted on tensors that hold nothing, so that any size can be asked about."""
    e = opened.experiment
    with FakeTensorMode():
        network = open_network(opened)
        count = sum(p.numel() for p in network.parameters())
        each = activation_bytes(opened, network)
    micro = e.train.batch // (e.train.accumulate * opened.world.size)
    return Budget(count, 4 * count * (4 + len(e.train.averages)), each * micro, memory_of(opened.world.device))


def check_memory(opened: Opened) -> None:
    """ConfigError where the device cannot hold even the weights of a training."""
    found = budget(opened)
    if found.weights > found.there:
        raise ConfigError(
            f"network: {found.parameters:,} parameters need {_size(found.weights)} to train with "
            f"{len(opened.experiment.train.averages)} average(s), and {opened.world.device} has {_size(found.there)}; "
            "make the network smaller."
        )


def memory_of(device: torch.device) -> int:
    """Bytes of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(count: int) -> str:
    return f"{count / GIBIBYTE:.1f} GiB" if count >= GIBIBYTE else f"{count / 2**20:.1f} MiB"


def _average(average: AnyAveraging, e: Experiment) -> str:
    late = average.beta(e.train.images, e.train.batch)
    if late <= 0:
        return (
            f"{average.name}: nothing is left of the step before, which was {e.train.batch} images ago; average longer"
        )
    half = math.log(0.5) / math.log(late) * e.train.batch
    return f"{average.name}: at the end half-life {half:,.0f} images, decay {late:.7g} a step"


def activation_bytes(opened: Opened, network: nn.Module) -> int:
    """What one image's forward pass keeps for the backward pass, counted by autograd itself (weights excluded)."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    batch = 2
    x = torch.zeros(batch, *opened.dataset.shape)
    labels = torch.zeros(batch, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cond = Cond(labels, torch.zeros(batch, len(opened.experiment.network.scalars)))
        network(x, torch.zeros(batch), cond).square().mean()
    return sum(storage.nbytes() for storage in kept.values()) // batch


def measured_peak(opened: Opened) -> int:
    """Bytes more than before that a few steps of training take at most, network and optimizer included."""
    device = opened.world.device
    before, task = _most(device), open_task(opened)
    for step in train(task, make_state(task, open_network(opened))):
        if step.step == MEASURED_STEPS:
            break
    return _most(device) - before


def _most(device: torch.device) -> int:
    """The most bytes held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
