"""Raw networks: `forward(x, time, cond) -> F`, plain modules that know nothing of noise.

Each is described by a Value whose `make(shape)` builds it. Time embedding, normalisation statistics and softmax are in
float32 whatever the precision round them.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.networks.blocks import Blockwise
from snrkit.networks.dit import Attention, Dit
from snrkit.networks.mlp import Mlp
from snrkit.networks.unet import UNet

AnyNetwork = Annotated[UNet | Dit | Mlp, Field(discriminator="kind")]


def make_network(value: UNet | Dit | Mlp, shape: tuple[int, int, int], seed: int) -> nn.Module:
    """The network for images of `shape` (C, H, W), initialised from `seed` and from nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return value.make(shape)


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Have the network's blocks keep their inputs alone and compute the rest again in the backward pass, or not."""
    for module in network.modules():
        if isinstance(module, Blockwise):
            module.checkpointing = on


def watch_attention(network: nn.Module, on: bool) -> None:
    """Have the network's attention layers record their largest logit in the next forward passes, or stop."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.watch = on


def largest_logit(network: nn.Module) -> Tensor | None:
    """The largest attention logit of the last watched pass, shape (); None without such layers."""
    seen = [m.largest for m in network.modules() if isinstance(m, Attention) and m.largest is not None]
    return torch.stack(seen).max() if seen else None


__all__ = [
    "AnyNetwork",
    "Dit",
    "Mlp",
    "UNet",
    "largest_logit",
    "make_network",
    "set_checkpointing",
    "watch_attention",
]
