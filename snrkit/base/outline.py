"""Networks without memory: their parameters have shapes and no values, on the device `meta`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = {
    "normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_",
    "orthogonal_", "eye_", "dirac_", "sparse_",
}  # fmt: skip


class _Undrawn(TorchFunctionMode):
    """Leaves parameters as they are where they would be drawn, which on `meta` draws nothing and imports a compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def outlined() -> Iterator[None]:
    """Within the block networks are made without memory, however large they are."""
    with torch.device("meta"), _Undrawn():
        yield
