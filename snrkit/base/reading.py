"""Numbers that a device has not computed yet, on their way to the host."""

import torch
from torch import Tensor


class Reading:
    """The values of a small tensor, copied to the host while the device goes on; `get` waits for them, once."""

    __slots__ = ("_arrived", "_found", "_host")

    def __init__(self, values: Tensor) -> None:
        """Begin to copy `values` (n,)."""
        self._found: list[float] | None = None
        self._arrived: torch.cuda.Event | None = None
        self._host = values.detach()
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def get(self) -> list[float]:
        """The values."""
        if self._found is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._found = self._host.tolist()
        return self._found
