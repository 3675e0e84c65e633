"""Running a network's blocks, with their activations kept or recomputed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from snrkit.diffusion.prediction import Cond


class Blockwise(nn.Module):
    """A network of blocks. While `checkpointing` is on, what a block computes is not kept for the backward pass.

    The same bits come out, dropout's masks included (Chen et al. 2016).
    """

    checkpointing: bool = False

    def through(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """block(*inputs)."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, alone: bool) -> Tensor:
    """Attention of queries, keys and values (B, heads, T, head); `alone`: by the identity as its map, which gives v."""
    return v if alone else functional.scaled_dot_product_attention(q, k, v)


def alone_in(cond: Cond | None, layers: int, middle: int) -> frozenset[int]:
    """The numbers of those of so many attention layers in which tokens attend to themselves alone."""
    asked = None if cond is None else cond.alone
    return frozenset(() if asked is None else range(layers) if asked == "all" else [middle])
