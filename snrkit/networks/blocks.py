"""Running a network's blocks, with their activations kept or recomputed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
