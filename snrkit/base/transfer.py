"""Between a device and the host, while both go on."""

import torch
from torch import Tensor

HOST = torch.device("cpu")


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; from the host to CUDA without a wait of either, else as torch copies them."""
    if device.type == "cuda" and values.device.type == "cpu":  # pinned, as from other memory the driver may wait
        return values.contiguous().pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Arriving:
    """A tensor, copied to the host while the device goes on; `wait` waits for it, in whichever thread."""

    __slots__ = ("_arrived", "_host")

    def __init__(self, values: Tensor) -> None:
        """Begin to copy `values`, which are not to be changed in place."""
        self._arrived: torch.cuda.Event | None = None
        self._host = values.detach()
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(values.device))  # which need not be of the current device

    def wait(self) -> Tensor:
        """The tensor, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


class Reading:
    """The values of a small tensor, copied to the host while the device goes on; `get` waits for them, once."""

    __slots__ = ("_arriving", "_found")

    def __init__(self, values: Tensor) -> None:
        """Begin to copy `values` (n,)."""
        self._found: list[float] | None = None
        self._arriving = Arriving(values)

    def get(self) -> list[float]:
        """The values."""
        if self._found is None:
            self._found = self._arriving.wait().tolist()
        return self._found
