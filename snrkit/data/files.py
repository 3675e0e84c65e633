"""Images from a folder, from a zip in EDM's layout, or from an .npz file.

Every image of a folder or a zip is looked at when the set is opened: whether it can be read, its size, its channels,
and what has to be changed (images.py). A set of up to IN_MEMORY_BYTES is read then. A larger one streams: its files are
read once for the checksum of their content and for what their headers say; whether their pixels are whole is seen as
they are asked for. Either way the cache keeps what was found until a file changes (surveys.py).
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from snrkit.base import arrays
from snrkit.base.arrays import array_names, array_shape, read_array
from snrkit.base.errors import DataError, missing, plain, reason_of
from snrkit.base.gradual import Gradual, finished
from snrkit.base.hub import local
from snrkit.base.regular import read_regular
from snrkit.base.value import Place
from snrkit.data.dataset import Dataset, Outline, Source, count_classes, fingerprint, memory_dataset, pixels_dataset
from snrkit.data.images import look_at
from snrkit.data.openers import FolderOpener, Opener, ZipOpener, readable
from snrkit.data.surveys import ImageReader, looking_at_all, reading_all

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
OTHERS = {  # images too, which are refused by what is in them, and not passed over
    ".gif", ".eps", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".dds", ".pcx", ".ppm", ".pgm",
}  # fmt: skip
IN_MEMORY_BYTES = 2 << 30
LARGEST_LISTING = 2**26  # bytes of labels: two million images of EDM's names
LISTING, LISTED = 2**22, 512  # bytes of labels that are read in any case, and for every image beside

Channels = Literal[1, 3, "auto"]


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder or a zip by name, in sorted order, with their labels; none has been read."""

    where: str
    names: Sequence[str]
    opener: Opener
    labels: Tensor | None  # (n,) int64
    channels: Channels = "auto"

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError(
                f"{self.where} holds no images ({', '.join(sorted(EXTENSIONS))}); name the place that has them, or "
                "convert them to one of these."
            )


class Listed(Source):
    """A source whose images are files that can be listed."""

    def listing(self) -> Listing:
        """The names of the images, and their labels. DataError where there are none, or they cannot be listed."""
        raise NotImplementedError

    def open(self) -> Dataset:
        """The images, in memory up to 2 GiB, else read as they are asked for."""
        return finished(self.opening())

    def opening(self) -> Gradual[Dataset]:
        return _file_dataset(self.listing())

    def outline(self) -> Outline:
        """By the names, and the header of the first."""
        files = self.listing()
        return len(files.names), _first_shape(files, _reader(files))


class ImageFiles(Listed):
    """What sources of image files share.

    Labels come from `dataset.json` (EDM's layout) where it exists, or, with `labels: folders`, from the names of the
    first-level folders in sorted order, whether it exists or not.
    """

    path: Place = Field(description="folder, or zip, of the images")
    labels: Literal["auto", "folders", "none"] = Field(
        default="auto",
        description="auto: of dataset.json, if there is one; folders: by first-level folders in sorted order; "
        "none: no labels",
    )
    channels: Channels = Field(
        default="auto", description="1: grey, 3: RGB, to which images of the other are converted; auto: all agree"
    )


class Folder(ImageFiles):
    """All images below a folder, in sorted order."""

    kind: Literal["folder"] = "folder"

    def listing(self) -> Listing:
        """The names of the images, and their labels. DataError where there are none, or they cannot be listed."""
        folder = local(self.path)
        if folder.is_file():
            kinds = {".zip": "give kind: zip", ".npz": "give kind: npz"}
            advice = kinds.get(folder.suffix, "give data.path a folder of images")
            raise DataError(f"{self.path} is a file and no folder; {advice}.")
        if not folder.is_dir():
            raise missing("folder", self.path, "give data.path a folder of images")
        names = sorted(_below(folder))
        listed = folder / "dataset.json"
        labels = None
        if self.labels == "folders":
            labels = _folder_labels(names)
        elif self.labels == "auto" and os.path.lexists(listed):
            with readable(listed):
                listing = read_regular(listed, _largest_listing(len(names)))
            labels = _listed_labels(names, listing, str(listed))
        return Listing(str(self.path), names, FolderOpener(folder), labels, self.channels)


class Zip(ImageFiles):
    """A zip of images with an optional `dataset.json`, as EDM's dataset_tool writes it."""

    kind: Literal["zip"] = "zip"

    def listing(self) -> Listing:
        """The names of the images, and their labels. DataError where there are none, or the zip is damaged."""
        path = local(self.path)
        if not path.exists():
            raise missing("zip file", self.path, "give data.path a zip of images")
        if path.is_dir():
            raise DataError(f"{self.path} is a folder and no zip; give kind: folder.")
        opener = ZipOpener(path)
        members = opener.names()
        names = sorted(filter(_is_image, members))
        listed = next((name for name in members if Path(name).name == "dataset.json"), None)
        labels = None
        if self.labels == "folders":
            labels = _folder_labels(names)
        elif listed and self.labels == "auto":
            listing = opener(listed, _largest_listing(len(names)))
            labels = _listed_labels(names, listing, f"{self.path}/{plain(listed)}")
        return Listing(str(self.path), names, opener, labels, self.channels)


class Npz(Source):
    """`arr_0` (n, H, W, C) uint8 of an .npz file, C 1 or 3, with labels from `arr_1` where it exists (ADM's layout)."""

    kind: Literal["npz"] = "npz"
    path: Place = Field(description="`.npz` file of the images, arr_0, and of their labels, arr_1, if they have any")

    def open(self) -> Dataset:
        """The images, in memory."""
        with self._readable() as path:
            images = read_array(path, "arr_0")
            labels = read_array(path, "arr_1") if "arr_1" in array_names(path) else None
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                f"{self.path}: arr_0 must be uint8 (n, H, W, C), not {images.dtype} {images.shape}; {_to_bytes(images)}"
            )
        _check_channels(str(self.path), images.shape)
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
            raise DataError(
                f"{self.path}: arr_1 must be {len(images)} whole numbers, not {labels.dtype} {labels.shape}"
            )
        given = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return memory_dataset(str(self.path), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), given)

    def outline(self) -> Outline:
        """By what stands before the numbers."""
        with self._readable() as path:
            shape = array_shape(path, "arr_0")
        if len(shape) != 4:
            dataset = self.open()  # which says what is wrong
            return dataset.count, dataset.shape
        count, height, width, channels = shape
        return count, (channels, height, width)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[Path]:
        """Where the file lies. DataError where it is absent or no such file."""
        path = local(self.path)
        if not path.exists():
            raise missing("file", self.path, "give data.path an .npz file with arr_0")
        try:
            yield path
        except arrays.DAMAGED as error:
            raise DataError(
                f"{self.path} holds no readable array arr_0 ({reason_of(error)}); write it with np.savez(path, images) "
                "or np.savez(path, images, labels), images uint8 (n, H, W, C)"
            ) from None


def _to_bytes(images: np.ndarray[Any, Any]) -> str:
    """What to do with an array that holds no images as bytes."""
    if images.ndim != 4:
        return "give one axis to images, height, width and channels each"
    if images.dtype.kind not in "fb":
        return "where its numbers go from 0 to 255, save images.astype(np.uint8)"
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 1.0)
    way = "((images + 1) * 127.5).round()" if low < 0 else "(images * 255).round()"
    if high > 2:
        way = "images.round()"
    return f"save {way}.clip(0, 255).astype(np.uint8)"


def _check_channels(where: str, shape: Sequence[int]) -> None:
    """DataError for arrays (n, H, W, C) of other than 1 or 3 channels, which no picture can be made of."""
    if shape[3] in (1, 3):
        return
    if shape[1] in (1, 3) and shape[3] > 4:
        raise DataError(
            f"{where}: arr_0 of shape {tuple(shape)} has its channels first; save np.transpose(images, (0, 2, 3, 1))."
        )
    raise DataError(
        f"{where}: images of {shape[3]} channels cannot be saved as PNG; give arr_0 1 or 3 of them, (n, H, W, C)."
    )


def kind_of_file(path: Path) -> str | None:
    """The kind of source that reads a place on this machine; None where none does."""
    return "folder" if path.is_dir() else {".zip": "zip", ".npz": "npz"}.get(path.suffix.lower())


def _below(folder: Path) -> Iterator[str]:
    """The names of images below a folder. DataError where one of its folders cannot be listed, or is a link to one."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); see to its permissions.") from None

    for where, folders, names in os.walk(folder, onerror=refuse):
        inner = Path(where).relative_to(folder)
        for name in sorted(folders):
            if Path(where, name).is_symlink():
                raise DataError(
                    f"{folder}/{plain(str(inner / name))} is a link to a folder, and none is followed; put the folder "
                    "itself there, or remove the link."
                )
        yield from (str(inner / name) for name in filter(_is_image, names))


def _is_image(name: str) -> bool:
    """As its name says."""
    return Path(name).suffix.lower() in EXTENSIONS | OTHERS


def _largest_listing(images: int) -> int:
    """Bytes that the labels of so many images may take."""
    return min(LARGEST_LISTING, LISTING + LISTED * images)


def _reader(files: Listing) -> ImageReader:
    return ImageReader(files.where, files.names, files.opener, None if files.channels == "auto" else files.channels)


def _first_shape(files: Listing, reader: ImageReader) -> tuple[int, int, int]:
    """(C, H, W) of the first image, by its header."""
    name = files.names[0]
    found = look_at(files.opener(name), reader.called(name)).shape
    return (reader.channels or found[0], *found[1:])


def _file_dataset(files: Listing) -> Gradual[Dataset]:
    where, names, labels = files.where, files.names, files.labels
    reader = _reader(files)
    shape = _first_shape(files, reader)
    if len(names) * math.prod(shape) <= IN_MEMORY_BYTES:
        held = yield from reading_all(reader, shape)
        dataset = pixels_dataset(where, held.pixels, labels, held.hashed)
        return replace(dataset, conversions=held.survey.conversions(shape[0]))
    survey = yield from looking_at_all(reader)
    shape = survey.shape(where, reader.channels)
    read = replace(reader, channels=shape[0], shape=shape)
    mark = fingerprint(survey.digest, str(shape), b"" if labels is None else labels.numpy().tobytes())
    classes = 0 if labels is None else count_classes(where, labels)
    converted = survey.conversions(shape[0])
    return Dataset(where, shape, len(names), read, mark, labels, classes, streams=True, conversions=converted)


def _folder_labels(names: list[str]) -> Tensor:
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in names]
    order = {folder: label for label, folder in enumerate(sorted(set(folders)))}
    return torch.tensor([order[folder] for folder in folders])


def _listed_labels(names: list[str], listing: bytes, where: str) -> Tensor | None:
    try:
        pairs = json.loads(listing)["labels"]
        if pairs is None:
            return None
        labels = {str(name): whole_label(label) for name, label in pairs}
        return torch.tensor([labels[name.replace("\\", "/")] for name in names])
    except (KeyError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DataError(
            f"{where} does not label every image ({type(error).__name__}: {plain(reason_of(error))}); "
            "it must hold {'labels': [['name', label], ...]}, or set data.labels: none"
        ) from None


def whole_label(given: object) -> int:
    """A label as a listing or a column has it. ValueError where it is no whole number."""
    if type(given) is not int and not (isinstance(given, float) and given.is_integer()):
        raise ValueError(f"{str(given)[:40]} is no whole number")
    return int(given)
