"""Latents that were encoded beforehand: `snrkit data encode` writes the file, `data: {kind: latents}` reads it.

An autoencoder says of each image that its latents are normal, with a mean and a standard deviation for each number.
Training draws them anew whenever it shows an image: x0 = (mean - shift + std * n) * scale. Everything else is given one
draw for each image, which is always the same: held-out losses, the real images of a measurement, spectra. The spread
sigma_data is that over all draws, var(mean) + mean(std^2), without sampling.

The file is an .npz of these arrays:

    mean    (n, C, H, W) float16 or float32, as the autoencoder gives it: without shift and scale
    std     the same; absent where the autoencoder has no posterior
    labels  (n,) int64; absent where the images have none
    about   (b,) uint8: JSON, sealed: what the latents are of and were made by, and the checksums of the arrays
"""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.arrays import DAMAGED, array_names, read_array
from snrkit.base.errors import DataError, missing, reason_of, shown
from snrkit.base.files import new_file, remove_abandoned
from snrkit.base.hub import local
from snrkit.base.records import from_json, to_json
from snrkit.base.sealed import sealed, unsealed
from snrkit.base.streams import LATENTS_FIXED
from snrkit.base.tensors import check_memory
from snrkit.base.value import LARGEST_SIDE, LONGEST_PATH, WIDEST, Place
from snrkit.data.dataset import Dataset, OpensDataset, Outlined, Source, count_classes, fingerprint
from snrkit.data.representation import PIXELS

if TYPE_CHECKING:
    from snrkit.data import AnySource

Array = np.ndarray[Any, Any]
Numbers = Literal["float32", "float16"]
Shape = tuple[int, int, int]
ARRAYS = ("mean", "std", "labels")
CHECKED_AT_ONCE = 4096  # images


@dataclass(frozen=True, slots=True)
class About:
    """What a file says of itself: the images, the autoencoder, and the checksums of its arrays."""

    name: str  # of the data set
    image: tuple[int, ...]  # (C, H, W)
    fingerprint: str  # of the images, as their data set has it
    autoencoder: str  # its folder, as it was called
    digest: str  # of its files
    scale: tuple[float, ...]  # of one channel, or of each
    shift: tuple[float, ...]
    sums: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.image) != 3 or not all(1 <= length <= LARGEST_SIDE for length in self.image):
            raise ValueError(f"says that its images are {self.image!s:.40}, which is no (C, H, W)")
        if not all(math.isfinite(x) and x > 0 for x in self.scale) or not all(map(math.isfinite, self.shift)):
            raise ValueError("has a scale that is not above 0, or a shift that is no number")
        if len(self.autoencoder) > LONGEST_PATH or "\0" in self.autoencoder:
            raise ValueError("names an autoencoder at an impossible path")

    @property
    def shape(self) -> Shape:
        """(C, H, W) of the images."""
        channels, height, width = self.image
        return channels, height, width


@dataclass(frozen=True, slots=True)
class Encoded:
    """The latents of all images of a data set, as the autoencoder gives them, and what they are."""

    about: About
    mean: Array
    std: Array | None = None
    labels: Array | None = None

    @property
    def shape(self) -> Shape:
        """(C, H, W) of the latents."""
        _, channels, height, width = self.mean.shape
        return channels, height, width

    def __call__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As Posterior: with shift and scale."""
        rows = np.asarray(indices, dtype=np.int64)
        scale, shift = (
            torch.tensor(row, dtype=torch.float32).reshape(-1, 1, 1) for row in (self.about.scale, self.about.shift)
        )
        mean = torch.from_numpy(self.mean[rows]).float()
        std = torch.zeros_like(mean) if self.std is None else torch.from_numpy(self.std[rows]).float()
        return (mean - shift) * scale, std * scale

    def fixed(self, indices: Sequence[int]) -> Tensor:
        """(n, C, H, W) float32: one draw of each image, by its place in the file."""
        mean, std = self(indices)
        if self.std is None:
            return mean
        normal = [LATENTS_FIXED.open(i).standard_normal(self.shape, dtype=np.float32) for i in indices]
        return mean + std * torch.from_numpy(np.stack(normal)) if normal else mean

    def dataset(self) -> Dataset:
        """The data set of these latents."""
        about = self.about
        labels = None if self.labels is None else torch.from_numpy(self.labels)
        mark = fingerprint("latents", json.dumps([about.digest, about.scale, about.shift, dict(about.sums)]))
        classes = 0 if labels is None else count_classes(about.name, labels)
        posterior = None if self.std is None else self
        name = f"latents of {about.name}"
        return Dataset(name, self.shape, len(self.mean), self.fixed, mark, labels, classes, posterior=posterior)


class Latents(Source):
    """Latents of a file that `snrkit data encode` makes.

    Samples are decoded before they are saved and scored. Scores compare them with the images of the data set `of`,
    where it is given, else with the decoded latents.
    """

    kind: Literal["latents"] = "latents"
    path: Place = Field(description="`.npz` file that snrkit data encode makes")
    vae: Place | None = Field(
        default=None,
        description="folder of the autoencoder, as diffusers saves it; default: the one that the file names",
    )
    of: "AnySource | None" = Field(
        default=None, description="the images that are encoded, and that scores compare with; default: decoded latents"
    )
    elsewhere: ClassVar[tuple[str, ...]] = (*Source.elsewhere, "vae", "of")

    @model_validator(mode="after")
    def _acts(self) -> "Latents":
        if self.flip:
            raise ValueError("flip: latents of a mirrored image are no mirrored latents; drop it")
        if self.representation != PIXELS:
            raise ValueError("representation: latents are a representation of their own; drop it")
        source: Any = self.of
        if isinstance(source, Latents):
            raise ValueError("of: these are latents too; name the images that they are of")
        for name, entry in Source.model_fields.items() if source is not None else ():
            if getattr(source, name, entry.default) != entry.default:
                raise ValueError(f"of.{name}: has no effect here; set data.{name} instead")
        return self

    def encoded(self) -> Encoded:
        """What the file holds. DataError where it cannot be read, or holds no latents."""
        return read_latents(local(self.path))

    def open(self) -> Dataset:
        """The latents, in memory."""
        return self.encoded().dataset()

    def confirm(self) -> None:
        """DataError where the file was made of other images than `of` has, which are all read for it."""
        if self.of is not None:
            _ = _Originals(self.of, _about(local(self.path)), self.path).images

    @property
    def unread(self) -> bool:
        """Whether opening the latents leaves unread which images `of` has, and looks at their number and shape only."""
        return isinstance(self.of, Outlined)

    def originals(self, about: About, latents: Dataset) -> Dataset | None:
        """The images of all latents, opened when they are first asked for; None where `of` names none.

        DataError where these are other images, as far as can be seen without reading them all.
        """
        if self.of is None:
            return None
        read = _Originals(self.of, about, self.path)
        read.look(latents.count)
        return Dataset(about.name, about.shape, latents.count, read, about.fingerprint, latents.labels, latents.classes)


@dataclass(slots=True)
class _Originals:
    """Reads the images of a data set that is opened once, and only where it is needed."""

    source: OpensDataset
    about: About
    path: Path
    opened: Dataset | None = None
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return self.images.pixels(indices)

    @property
    def images(self) -> Dataset:
        """Opened. DataError where they are others than the latents are of."""
        with self.lock:
            if self.opened is None:
                found = self.source.open()
                if found.fingerprint != self.about.fingerprint:
                    raise self._others(f"{found.name} has other images than those")
                self.opened = found
        return self.opened

    def look(self, count: int) -> None:
        """DataError where they are not so many of the shape that they should have; or others, where that is seen."""
        if not isinstance(self.source, Outlined):
            _ = self.images
            return
        wanted, found = (count, self.about.shape), self.source.outline()
        if found != wanted:
            ours, theirs = (f"{number:,} images of {'x'.join(map(str, shape))}" for number, shape in (found, wanted))
            raise self._others(f"there are {ours}, not the {theirs}")

    def _others(self, what: str) -> DataError:
        return DataError(
            f"data.of: {what} that {self.path} was made of; name these, encode it anew with snrkit data encode, or "
            "drop data.of."
        )


def write_latents(path: Path, encoded: Encoded) -> None:
    """Write a file, whole or not at all; the checksums in `about` are made anew. OSError where the disk fails."""
    arrays = {name: array for name in ARRAYS if (array := getattr(encoded, name)) is not None}
    about = {**to_json(encoded.about), "sums": {name: _sum(array) for name, array in arrays.items()}}
    text = np.frombuffer(json.dumps(sealed(about)).encode(), dtype=np.uint8)
    remove_abandoned(path.parent, path.name)
    with new_file(path) as file:
        np.savez(file, about=text, **arrays)


def _sum(array: Array) -> str:
    return fingerprint(f"{array.dtype.str} {array.shape}", np.ascontiguousarray(array).data)


def read_latents(path: Path) -> Encoded:
    """What write_latents wrote. DataError where it is not that, or holds no latents."""
    if not path.exists():
        raise missing("file", path, "make it with snrkit data encode")
    try:
        check_memory(path)
        names = array_names(path)
        if lacking := [name for name in ("about", "mean") if name not in names]:
            raise DataError(f"{path} has no array {lacking[0]}, as files of latents have; {AGAIN}.")
        about = _about(path)
        arrays = {name: read_array(path, name) for name in ARRAYS if name in names}
    except DAMAGED as error:
        raise DataError(f"{path} holds no readable latents ({reason_of(error)}); {AGAIN}.") from None
    encoded = Encoded(about, **arrays)
    _check_shapes(path, encoded)
    if wrong := [
        name for name in {**arrays, **about.sums} if name not in arrays or about.sums.get(name) != _sum(arrays[name])
    ]:
        raise DataError(f"{path} was damaged or changed: the checksum of {shown(wrong[0])} does not fit; {AGAIN}.")
    _check_values(path, encoded)
    return encoded


def _about(path: Path) -> About:
    """What a file says of itself. Raises one of DAMAGED where it is none."""
    return from_json(About, unsealed(read_array(path, "about").tobytes()), path)


AGAIN = "make it with snrkit data encode"


def _check_shapes(path: Path, encoded: Encoded) -> None:
    mean, std, labels = encoded.mean, encoded.std, encoded.labels
    if mean.dtype not in (np.float16, np.float32) or mean.ndim != 4 or mean.size == 0:
        raise DataError(
            f"{path}: mean must be float16 or float32 (n, C, H, W), not {mean.dtype} {mean.shape}; {AGAIN}."
        )
    if max(mean.shape[1:]) > WIDEST:
        raise DataError(f"{path}: latents of {mean.shape[1:]} are larger than any; {AGAIN}.")
    if std is not None and (std.dtype, std.shape) != (mean.dtype, mean.shape):
        raise DataError(f"{path}: std is {std.dtype} {std.shape}, and mean {mean.dtype} {mean.shape}; {AGAIN}.")
    if labels is not None and (labels.dtype != np.int64 or labels.shape != mean.shape[:1]):
        raise DataError(f"{path}: labels must be {len(mean)} int64, not {labels.dtype} {labels.shape}; {AGAIN}.")
    for name, row in (("scale", encoded.about.scale), ("shift", encoded.about.shift)):
        if len(row) not in (1, mean.shape[1]):
            raise DataError(f"{path}: {name} has {len(row)} numbers for {mean.shape[1]} channels; {AGAIN}.")


def _check_values(path: Path, encoded: Encoded) -> None:
    """DataError for what is not finite or negative, by the first image that has it."""
    for first in range(0, len(encoded.mean), CHECKED_AT_ONCE):
        rows = range(first, min(first + CHECKED_AT_ONCE, len(encoded.mean)))
        mean, std = encoded(rows)
        for name, wrong, what in (
            ("mean", ~mean.isfinite(), "is not finite"),
            ("std", ~std.isfinite(), "is not finite"),
            ("std", std < 0, "is negative"),
        ):
            if (found := wrong.flatten(1).any(1).nonzero().flatten()).numel():
                raise DataError(f"{path}: {name} of image {first + int(found[0])} {what}; {AGAIN}.")
