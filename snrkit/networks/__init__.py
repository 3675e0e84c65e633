"""Raw networks: `forward(x, time, cond) -> F`, plain modules that know nothing of noise.

Each is described by a Value whose `make(shape)` builds it: config.py says what these have in common, modules.py what
their modules may offer. Time embedding, normalisation statistics and softmax are in float32 whatever the precision
round them.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from snrkit.networks.adapted import Adapted
from snrkit.networks.config import Conditioning, NetworkConfig, NetworkValue
from snrkit.networks.dit import Dit
from snrkit.networks.mlp import Mlp
from snrkit.networks.modules import (
    check_storable,
    largest_logit,
    output_layer,
    output_weights,
    set_checkpointing,
    watch_attention,
)
from snrkit.networks.unet import UNet

Own = UNet | Dit | Mlp
AnyNetwork = Annotated[Own, Field(discriminator="kind")]
AnyTrained = Annotated[Own | Adapted, Field(discriminator="kind")]  # with those of other projects, to be trained on


def make_network(value: NetworkConfig, shape: tuple[int, int, int], seed: int) -> nn.Module:
    """The network for images of `shape` (C, H, W), initialised from `seed` and from nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return value.make(shape)


__all__ = [
    "Adapted",
    "AnyNetwork",
    "AnyTrained",
    "Conditioning",
    "Dit",
    "Mlp",
    "NetworkConfig",
    "NetworkValue",
    "UNet",
    "check_storable",
    "largest_logit",
    "make_network",
    "output_layer",
    "output_weights",
    "set_checkpointing",
    "watch_attention",
]
