"""The images of a data set together with what is measured of them, each thing once and when first asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch

from snrkit.data.dataset import Dataset, Split

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A data set, as the network sees it, with its split and the device to measure on."""

    dataset: Dataset
    split: Split
    device: torch.device
    _found: dict[object, object] = field(default_factory=dict, init=False, repr=False)

    def once(self, measure: Callable[["Measured"], Found]) -> Found:
        """What `measure` gives of these images; kept, so that whoever asks for the same gets the same."""
        if measure not in self._found:
            self._found[measure] = measure(self)
        return cast(Found, self._found[measure])
