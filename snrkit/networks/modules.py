"""What a network's module may offer beside `forward(x, time, cond)`, and what is done without it.

output           on the network: the name of the layer that gives the output, or that layer itself. AGC leaves it
                 alone, and `analyze` reads gradients in it. Without: AGC bounds all layers, and gradients are read
                 in the layer whose weights come last.
checkpointing    on any module: while True it computes its blocks again in the backward pass (blocks.Blockwise); its
                 Value is `blockwise`. Without: compute.checkpointing is refused.
watch, largest   on attention layers: while `watch` is True, `largest` keeps the last pass's largest logit, shape ().
                 Without: it is not logged.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from snrkit.base.errors import ConfigError


@runtime_checkable
class Checkpointed(Protocol):
    """A module that can compute its blocks again in the backward pass."""

    checkpointing: bool


@runtime_checkable
class Watchable(Protocol):
    """An attention layer that can tell its largest logit."""

    watch: bool
    largest: Tensor | None


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Have the network's blocks keep their inputs alone and compute the rest again in the backward pass, or not."""
    for module in network.modules():
        if isinstance(module, Checkpointed):
            module.checkpointing = on


def watch_attention(network: nn.Module, on: bool) -> None:
    """Have the network's attention layers record their largest logit in the next forward passes, or stop."""
    for module in network.modules():
        if isinstance(module, Watchable):
            module.watch = on


def largest_logit(network: nn.Module) -> Tensor | None:
    """The largest attention logit of the last watched pass, shape (); None without such layers."""
    seen = [m.largest for m in network.modules() if isinstance(m, Watchable) and m.largest is not None]
    return torch.stack(seen).max() if seen else None


def output_layer(network: nn.Module) -> str | None:
    """The name of the layer that gives the output; None where the network does not say. ConfigError: it has none so."""
    named = getattr(network, "output", None)
    if isinstance(named, nn.Module):
        return "output"
    if not isinstance(named, str):
        return None
    try:
        next(network.get_submodule(named).parameters())
    except (AttributeError, StopIteration):
        raise ConfigError(
            f"network: `output` of {type(network).__name__} is '{named}', and no layer with weights has that name; "
            "give it the name of the layer that gives the output, or leave it out."
        ) from None
    return named


def output_weights(network: nn.Module) -> tuple[str, list[nn.Parameter]]:
    """(name, weights) of the layer that gives the output; of the one that was made last, where it does not say."""
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    name = output_layer(network) or trained[-1].rpartition(".")[0]
    layer = network.get_submodule(name)
    return name, [parameter for parameter in layer.parameters(recurse=bool(name)) if parameter.requires_grad]


def check_storable(network: nn.Module) -> None:
    """ConfigError where two of the network's tensors are one, which a checkpoint cannot say."""
    seen: dict[int, str] = {}
    for name, tensor in network.state_dict().items():
        first = seen.setdefault(tensor.untyped_storage()._cdata, name)
        if first != name:
            raise ConfigError(f"network: {first} and {name} share their memory, which no checkpoint keeps; copy one.")
