"""What the network is shown of images: their pixels, their Haar coefficients, or latents of an autoencoder.

A representation maps images x (n, C, H, W) in [-1, 1] to states, which are trained on and sampled, and states back to
images, which are saved and scored. Pixels are states themselves. The Haar transform is orthonormal: norms are kept,
white noise stays white, and a process with an elementwise denoiser is the same process in other coordinates.
Autoencoders stand with the files that they are read from (checkpoints/codec.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field
from torch import Tensor

from snrkit.base.errors import DataError
from snrkit.base.value import Value
from snrkit.base.wavelet import haar_coefficients, haar_images

if TYPE_CHECKING:
    from snrkit.data.dataset import Dataset

Shape = tuple[int, int, int]


class Representation(Protocol):
    """The way from images to states and back, which training asks for in several threads at once."""

    @property
    def exact(self) -> bool:
        """Whether `decode` undoes `encode` to rounding, so that images can be mirrored and warped through it."""

    @property
    def note(self) -> str | None:
        """What states are, in words; None where they are the images themselves."""

    def states(self, images: "Dataset") -> "Dataset":
        """The data set as the network is shown it. SnrkitError where images of its shape have no such states."""

    def encode(self, images: Tensor) -> Tensor:
        """The states (n, c, h, w) of images (n, C, H, W), float32."""

    def decode(self, states: Tensor) -> Tensor:
        """The images (n, C, H, W) of states (n, c, h, w)."""


class Pixels(Value):
    """States are images."""

    kind: Literal["pixels"] = "pixels"

    @property
    def exact(self) -> bool:
        return True

    @property
    def note(self) -> str | None:
        return None

    def states(self, images: "Dataset") -> "Dataset":
        return images

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, states: Tensor) -> Tensor:
        return states


class Haar(Value):
    """States are the orthonormal Haar coefficients of one level, (4C, H/2, W/2): bands ll, lh, hl, hh, C channels each.

    The values of ll reach from -2 to 2.
    """

    kind: Literal["haar"] = "haar"

    @property
    def exact(self) -> bool:
        return True

    @property
    def note(self) -> str | None:
        return "Haar coefficients of the images"

    def states(self, images: "Dataset") -> "Dataset":
        channels, height, width = images.shape
        if height % 2 or width % 2:
            raise DataError(
                f"data.representation: {images.name} has images of {height}x{width} pixels, and haar needs even sides; "
                "crop or resize them, or take pixels."
            )
        return images.represented((4 * channels, height // 2, width // 2), _HaarReader(images.x0), "haar")

    def encode(self, images: Tensor) -> Tensor:
        return haar_coefficients(images)

    def decode(self, states: Tensor) -> Tensor:
        return haar_images(states)


@dataclass(frozen=True, slots=True)
class _HaarReader:
    """Reads coefficients; a plain object, so that worker processes can be handed it however they are started."""

    x0: Callable[[Sequence[int]], Tensor]

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return haar_coefficients(self.x0(indices))


PIXELS = Pixels()
AnyRepresentation = Annotated[Pixels | Haar, Field(discriminator="kind")]
