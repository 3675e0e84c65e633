"""Compiling a network block by block.

torch.compile on a whole network inlines every block again: the time grows with their number. Compiled each for itself,
blocks of one kind and shape share what was compiled (regional compilation), and the network between them stays as it
is, with its hooks, its names and its state dict.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
KINDS = 64  # of blocks, by class and shape, that are compiled before torch gives up and leaves the rest as they are


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules with weights that stand in lists of the network: what it repeats."""
    return [block for block in _in_lists(network) if next(block.parameters(), None) is not None]


def _in_lists(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        inner = child.children() if isinstance(child, LISTS) else ()
        for block in inner:
            yield from _in_lists(nn.ModuleList([block])) if isinstance(block, LISTS[:2]) else [block]
        if not isinstance(child, LISTS):
            yield from _in_lists(child)


@contextlib.contextmanager
def eagerly(on: bool) -> Iterator[None]:
    """Within the block compiled blocks run as they are, where `on`: for a few calls of another kind than training's."""
    if not on:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def compiled(network: nn.Module) -> nn.Module:
    """The network with its blocks compiled in place; one without blocks as a whole, in a wrapper.

    It is compiled when it is first called, and again for inputs of another kind.
    """
    found = blocks(network)
    if not found:
        return torch.compile(network)  # type: ignore[return-value]
    from torch import _dynamo  # which takes seconds to import

    limit = "recompile_limit" if hasattr(_dynamo.config, "recompile_limit") else "cache_size_limit"  # torch 2.6
    setattr(_dynamo.config, limit, max(getattr(_dynamo.config, limit), KINDS))
    for block in found:
        block.compile()
    return network
