"""`--dry-run`: what an experiment would do and need, without writing anything."""

import math

import torch
from torch import Tensor, nn

from snrkit.config import Experiment, dump_yaml
from snrkit.distributed import World
from snrkit.jobs.opening import Opened, open_experiment, open_network
from snrkit.prediction import Cond
from snrkit.sampler import rehearse

MEBIBYTE = 2**20


def plan(experiment: Experiment, world: World) -> str:
    """The resolved config, parameters, evaluations of each sampler, and an estimate of memory."""
    opened = open_experiment(experiment, world)
    e = opened.experiment
    network = open_network(opened)
    count = sum(p.numel() for p in network.parameters())
    lines = [dump_yaml(e).rstrip(), "", f"# data: {opened.dataset.count} images {opened.dataset.shape}, "
             f"{len(opened.split.train)} to train on, {len(opened.split.held)} held out"]  # fmt: skip
    lines.append(f"# parameters: {count:,}")
    for name, sampler in e.samplers.items():
        lines.append(f"# {name}: {rehearse(sampler, e.process, e.target, opened.dataset.shape)} evaluations per image")
    weights = 4 * count / MEBIBYTE
    copies = 4 + len(e.train.averages)
    activations = activation_bytes(opened, network) * _micro(e, world) / MEBIBYTE
    lines.append(
        f"# training memory per process, estimated: {weights * copies:.1f} MiB for weights, gradients, two moments and "
        f"{len(e.train.averages)} average(s); {activations:.1f} MiB of activations in float32"
    )
    for average in e.train.averages:
        late = average.beta(e.train.images, e.train.batch)
        half = math.log(0.5) / math.log(late) * e.train.batch
        lines.append(f"# {average.name}: at the end half-life {half:,.0f} images, decay {late:.7g} a step")
    return "\n".join(lines)


def _micro(e: Experiment, world: World) -> int:
    return e.train.batch // (e.train.accumulate * world.size)


def activation_bytes(opened: Opened, network: nn.Module) -> int:
    """What one image's forward pass keeps for the backward pass, counted by autograd itself (weights excluded)."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = 2
    x = torch.zeros(batch, *opened.dataset.shape)
    labels = torch.zeros(batch, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x, torch.zeros(batch), Cond(labels=labels)).square().mean()
    return sum(kept.values()) // batch
