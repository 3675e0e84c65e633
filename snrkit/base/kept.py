"""What autograd keeps for a backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Kept:
    """Storages that a forward pass kept, by where they lie."""

    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(storage.nbytes() for storage in self.storages.values())


@contextmanager
def counting_kept(weights: Iterable[Tensor] = ()) -> Iterator[Kept]:
    """Within it, what is kept for backward passes is counted by autograd itself, `weights` left out."""
    known, kept = {p.untyped_storage()._cdata for p in weights}, Kept()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept.storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
