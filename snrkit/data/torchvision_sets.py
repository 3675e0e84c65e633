"""MNIST, FashionMNIST and CIFAR-10 through torchvision, downloaded only on request."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from snrkit.base.errors import DataError, SnrkitError
from snrkit.base.value import Place
from snrkit.data.dataset import Dataset, Source, memory_dataset


class TorchvisionSource(Source):
    """What the three share: `root` as torchvision lays it out, `part`, and whether to download what is not there."""

    root: Place = Field(description="folder of the set, laid out as torchvision does")
    part: Literal["train", "test"] = Field(
        default="train", description="which images of the set: those that it names for training, or those for testing"
    )
    download: bool = Field(default=False, description="fetch the set where it is not in `root`")


class Mnist(TorchvisionSource):
    """MNIST: 60,000 or 10,000 grey digits of 28x28."""

    kind: Literal["mnist"] = "mnist"

    def open(self) -> Dataset:
        """Images (1, 28, 28) with labels 0..9."""
        return _open(self, "MNIST", "mnist")


class FashionMnist(TorchvisionSource):
    """FashionMNIST: 60,000 or 10,000 grey garments of 28x28."""

    kind: Literal["fashion_mnist"] = "fashion_mnist"

    def open(self) -> Dataset:
        """Images (1, 28, 28) with labels 0..9."""
        return _open(self, "FashionMNIST", "fashion_mnist")


class Cifar10(TorchvisionSource):
    """CIFAR-10: 50,000 or 10,000 colour images of 32x32."""

    kind: Literal["cifar10"] = "cifar10"

    def open(self) -> Dataset:
        """Images (3, 32, 32) with labels 0..9."""
        return _open(self, "CIFAR10", "cifar10")


def _open(source: TorchvisionSource, torchvision_name: str, name: str) -> Dataset:
    make: Callable[..., Any] = getattr(import_torchvision().datasets, torchvision_name)
    try:
        loaded = make(str(source.root), train=source.part == "train", download=source.download)
    except RuntimeError as error:
        if "not found" not in str(error):
            raise DataError(f"{name}: torchvision could not read {source.root} ({error})") from None
        raise DataError(
            f"{name} is not in {source.root}; point data.root at torchvision's folder or set data.download: true"
        ) from None
    except OSError as error:
        raise DataError(f"{name}: download or reading failed ({error}); check data.root and the network") from None
    pixels = torch.as_tensor(np.asarray(loaded.data))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return memory_dataset(f"{name}-{source.part}", pixels, torch.as_tensor(loaded.targets).long())


def import_torchvision() -> Any:
    """torchvision, or one sentence when its build does not fit torch's."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise SnrkitError(
            "this torchvision was built for another torch (operator torchvision::nms does not exist); "
            "install the ordinary builds together: pip install --force-reinstall torch torchvision"
        ) from None
    return torchvision
