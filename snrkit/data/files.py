"""Images from a folder, from a zip in EDM's layout, or from an .npz file.

Every image of a folder or a zip is looked at when the set is opened: whether it can be read, its size, its channels,
and what has to be changed (images.py). A set of up to IN_MEMORY_BYTES is read then. A larger one streams: its files are
read once for the checksum of their content and for what their headers say, which the cache keeps until a file changes;
whether their pixels are whole is seen as they are asked for.
"""

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from snrkit.base import arrays, zips
from snrkit.base.arrays import array_names, read_array
from snrkit.base.cache import open_cache
from snrkit.base.errors import DataError, SnrkitError, missing, plain, reason_of
from snrkit.base.files import checksum
from snrkit.base.records import read_record, to_json
from snrkit.base.regular import read_regular
from snrkit.base.sealed import write_json
from snrkit.base.value import Place
from snrkit.base.zips import OpenZip, read_entry
from snrkit.data.dataset import Dataset, Source, count_classes, fingerprint, memory_dataset
from snrkit.data.images import LARGEST_IMAGE, MADE, Found, look_at, read_image

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
OTHERS = {  # images too, which are refused by what is in them, and not passed over
    ".gif", ".eps", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".dds", ".pcx", ".ppm", ".pgm",
}  # fmt: skip
IN_MEMORY_BYTES = 2 << 30
LARGEST_LISTING = 2**26  # bytes of labels: two million images of EDM's names
LISTING, LISTED = 2**22, 512  # bytes of labels that are read in any case, and for every image beside
SURVEY = "1"  # version of what is found of a set; older records are not read

Channels = Literal[1, 3, "auto"]


class ImageFiles(Source):
    """What sources of image files share."""

    path: Place
    channels: Channels = Field(
        default="auto", description="1: grey, 3: RGB, to which images of the other are converted; auto: all agree"
    )


class Folder(ImageFiles):
    """All images below a folder, in sorted order.

    Labels come from `dataset.json` (EDM's layout) where it exists, else, with `labels: folders`, from the names of the
    first-level folders in sorted order.
    """

    kind: Literal["folder"] = "folder"
    labels: Literal["auto", "folders", "none"] = "auto"

    def open(self) -> Dataset:
        """The images, in memory up to 2 GiB, else read as they are asked for."""
        if self.path.is_file():
            kinds = {".zip": "give kind: zip", ".npz": "give kind: npz"}
            advice = kinds.get(self.path.suffix, "give data.path a folder of images")
            raise DataError(f"{self.path} is a file and no folder; {advice}.")
        if not self.path.is_dir():
            raise missing("folder", self.path, "give data.path a folder of images")
        names = sorted(_below(self.path))
        listed = self.path / "dataset.json"
        labels = None
        if self.labels == "folders":
            labels = _folder_labels(names)
        elif self.labels == "auto" and os.path.lexists(listed):
            with _readable(listed):
                listing = read_regular(listed, _largest_listing(len(names)))
            labels = _listed_labels(names, listing, str(listed))
        return _file_dataset(self, names, FolderOpener(self.path), labels)


class Zip(ImageFiles):
    """A zip of images with an optional `dataset.json`, as EDM's dataset_tool writes it."""

    kind: Literal["zip"] = "zip"
    labels: Literal["auto", "none"] = "auto"

    def open(self) -> Dataset:
        """The images, in memory up to 2 GiB, else read as they are asked for."""
        if not self.path.exists():
            raise missing("zip file", self.path, "give data.path a zip of images")
        if self.path.is_dir():
            raise DataError(f"{self.path} is a folder and no zip; give kind: folder.")
        try:
            with OpenZip(self.path) as archive:
                members = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        except zips.DAMAGED as error:
            raise DataError(
                f"{self.path} is not a zip file or is damaged ({reason_of(error)}); copy or pack it again."
            ) from None
        names, opener = sorted(filter(_is_image, members)), _ZipOpener(self.path)
        listed = next((name for name in members if Path(name).name == "dataset.json"), None)
        labels = None
        if listed and self.labels == "auto":
            listing = opener(listed, _largest_listing(len(names)))
            labels = _listed_labels(names, listing, f"{self.path}/{plain(listed)}")
        return _file_dataset(self, names, opener, labels)


class Npz(Source):
    """`arr_0` (n, H, W, C) uint8 of an .npz file, C 1 or 3, with labels from `arr_1` where it exists (ADM's layout)."""

    kind: Literal["npz"] = "npz"
    path: Place

    def open(self) -> Dataset:
        """The images, in memory."""
        if not self.path.exists():
            raise missing("file", self.path, "give data.path an .npz file with arr_0")
        try:
            images = read_array(self.path, "arr_0")
            labels = read_array(self.path, "arr_1") if "arr_1" in array_names(self.path) else None
        except arrays.DAMAGED as error:
            raise DataError(
                f"{self.path} holds no readable array arr_0 ({reason_of(error)}); write it with np.savez(path, images) "
                "or np.savez(path, images, labels), images uint8 (n, H, W, C)"
            ) from None
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"{self.path}: arr_0 must be uint8 (n, H, W, C), not {images.dtype} {images.shape}")
        _check_channels(str(self.path), images.shape)
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
            raise DataError(
                f"{self.path}: arr_1 must be {len(images)} whole numbers, not {labels.dtype} {labels.shape}"
            )
        given = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return memory_dataset(str(self.path), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), given)


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


def _below(folder: Path) -> Iterator[str]:
    """The names of images below a folder. DataError where one of its folders cannot be listed."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); see to its permissions.") from None

    for where, _, names in os.walk(folder, onerror=refuse):
        inner = Path(where).relative_to(folder)
        yield from (str(inner / name) for name in filter(_is_image, names))


def _is_image(name: str) -> bool:
    """As its name says."""
    return Path(name).suffix.lower() in EXTENSIONS | OTHERS


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{plain(str(path))} cannot be read ({error.strerror}); see to its permissions.") from None


def _largest_listing(images: int) -> int:
    """Bytes that the labels of so many images may take."""
    return min(LARGEST_LISTING, LISTING + LISTED * images)


@dataclass(frozen=True, slots=True)
class FolderOpener:
    """Reads files of a folder."""

    path: Place

    def __call__(self, name: str) -> bytes:
        """The content of a file. SnrkitError where it is no regular file or too large for an image."""
        with _readable(self.path / name):
            return read_regular(self.path / name, LARGEST_IMAGE)

    def marks(self, names: Sequence[str]) -> Iterator[bytes]:
        """What changes with any file, by what the file system says of it."""
        for name in names:
            with _readable(self.path / name):
                yield os.fsencode(name) + _marks(self.path / name)


class _ZipOpener:
    """Reads members of a zip. Each process opens the archive for itself: forked ones would share its position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archives: dict[int, OpenZip] = {}

    def __call__(self, name: str, largest: int = LARGEST_IMAGE) -> bytes:
        process = os.getpid()
        try:
            if process not in self.archives:
                self.archives = {process: OpenZip(self.path)}
            archive = self.archives[process]
            return read_entry(archive, archive.getinfo(name), largest)
        except zips.DAMAGED as error:
            raise DataError(
                f"{self.path}/{plain(name)} cannot be read ({reason_of(error)}); remove it or pack it again."
            ) from None

    def marks(self, names: Sequence[str]) -> Iterator[bytes]:
        """What changes with the archive, by what the file system says of it."""
        with _readable(self.path):
            yield _marks(self.path)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "archives": {}}


Opener = FolderOpener | _ZipOpener


def _marks(path: Path) -> bytes:
    found = path.stat()
    return repr((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode()


@dataclass(frozen=True, slots=True)
class _Files:
    """Reads images by index; a plain object, so that worker processes can be handed it however they are started."""

    where: str
    names: Sequence[str]
    opener: Opener
    channels: int | None = None  # of which all are made
    shape: tuple[int, int, int] | None = None  # which all must have

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self.one(index)[0] for index in indices])

    def one(self, index: int) -> tuple[Tensor, Found]:
        """An image, and what it was found to be."""
        name = self.names[index]
        image, found = read_image(self.opener(name), self.called(name), self.channels)
        if self.shape is not None and image.shape != self.shape:
            raise DataError(
                f"{self.called(name)} is now {_size(tuple(image.shape))} with {image.shape[0]} channels, and was "
                f"{_size(self.shape)} with {self.shape[0]} when the set was opened; restore it."
            )
        return image, found

    def called(self, name: str) -> str:
        """What a file is called in messages."""
        return f"{self.where}/{plain(name)}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What all images of a set were found to be."""

    digest: str  # of their content, in their order; nothing where they are in memory
    height: int
    width: int
    grey: int  # how many are grey
    colour: int
    changes: Mapping[str, int]

    def shape(self, where: str, asked: Channels) -> tuple[int, int, int]:
        """Of all images, with the channels that are asked for. DataError where none are, and they differ."""
        if asked == "auto" and self.grey and self.colour:
            raise DataError(
                f"{where} holds {self.grey:,} grey images and {self.colour:,} of colour; set data.channels: 1 or 3, to "
                "which the others are converted."
            )
        own = 1 if self.grey else 3
        return (own if asked == "auto" else asked, self.height, self.width)

    def conversions(self, channels: int) -> dict[str, int]:
        """What is changed, and of how many images, where all are made of so many channels."""
        made = self.colour if channels == 1 else self.grey
        return {**self.changes, **({MADE[channels]: made} if made else {})}


class _Surveyor:
    """Takes down what each image was found to be."""

    def __init__(self, files: _Files) -> None:
        self.files = files
        self.first: tuple[str, Found] | None = None
        self.channels: Counter[int] = Counter()
        self.changes: Counter[str] = Counter()

    def add(self, name: str, found: Found) -> None:
        """The next image. DataError where it is of another size than the first."""
        self.first = self.first or (name, found)
        other, first = self.first
        if found.shape[1:] != first.shape[1:]:
            raise DataError(
                f"images of {self.files.where} differ in size: {plain(other)} is {_size(first.shape)}, "
                f"{plain(name)} is {_size(found.shape)}; resize them to one size"
            )
        self.channels[found.shape[0]] += 1
        self.changes.update(found.changes)

    def survey(self, digest: str = "") -> Survey:
        """Of all of them."""
        assert self.first is not None
        _, height, width = self.first[1].shape
        return Survey(digest, height, width, self.channels[1], self.channels[3], dict(sorted(self.changes.items())))


def _file_dataset(source: Folder | Zip, names: list[str], opener: Opener, labels: Tensor | None) -> Dataset:
    where = str(source.path)
    if not names:
        raise DataError(f"{where} holds no images ({', '.join(sorted(EXTENSIONS))})")
    files = _Files(where, names, opener, None if source.channels == "auto" else source.channels)
    first = look_at(opener(names[0]), files.called(names[0]))
    shape = (files.channels or first.shape[0], *first.shape[1:])
    if len(names) * math.prod(shape) <= IN_MEMORY_BYTES:
        pixels, survey = _read_all(files, shape)
        shape = survey.shape(where, source.channels)
        return replace(memory_dataset(where, pixels, labels), conversions=survey.conversions(shape[0]))
    survey = _surveyed(files)
    shape = survey.shape(where, source.channels)
    read = replace(files, channels=shape[0], shape=shape)
    mark = fingerprint(survey.digest, str(shape), b"" if labels is None else labels.numpy().tobytes())
    classes = 0 if labels is None else count_classes(where, labels)
    converted = survey.conversions(shape[0])
    return Dataset(where, shape, len(names), read, mark, labels, classes, streams=True, conversions=converted)


def _read_all(files: _Files, shape: tuple[int, int, int]) -> tuple[Tensor, Survey]:
    """(All images, those whose channels are not of this shape left out; what they were found to be)."""
    pixels, surveyor = torch.empty((len(files.names), *shape), dtype=torch.uint8), _Surveyor(files)
    for index, name in enumerate(files.names):
        image, found = files.one(index)
        surveyor.add(name, found)
        if len(image) == len(pixels[index]):
            pixels[index] = image
    return pixels, surveyor.survey()


def _surveyed(files: _Files) -> Survey:
    """What all images are found to be, without reading those that the cache knows and that have not changed."""
    cache = open_cache()
    record = None if cache is None else cache / f"images-{fingerprint(SURVEY, *files.opener.marks(files.names))}.json"
    if record is not None:
        with contextlib.suppress(SnrkitError):
            return read_record(Survey, record)
    digest, surveyor = hashlib.blake2b(digest_size=16), _Surveyor(files)
    for name in files.names:
        content = files.opener(name)
        digest.update(checksum(content).encode())
        surveyor.add(name, look_at(content, files.called(name)))
    survey = surveyor.survey(digest.hexdigest())
    if record is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written to is none
            write_json(record, to_json(survey))
    return survey


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[1]}"


def _folder_labels(names: list[str]) -> Tensor:
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in names]
    order = {folder: label for label, folder in enumerate(sorted(set(folders)))}
    return torch.tensor([order[folder] for folder in folders])


def _listed_labels(names: list[str], listing: bytes, where: str) -> Tensor | None:
    try:
        pairs = json.loads(listing)["labels"]
        if pairs is None:
            return None
        labels = {str(name): _label(label) for name, label in pairs}
        return torch.tensor([labels[name.replace("\\", "/")] for name in names])
    except (KeyError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DataError(
            f"{where} does not label every image ({type(error).__name__}: {plain(reason_of(error))}); "
            "it must hold {'labels': [['name', label], ...]}, or set data.labels: none"
        ) from None


def _label(given: object) -> int:
    """A label as a listing has it: a whole number."""
    if type(given) is not int and not (isinstance(given, float) and given.is_integer()):
        raise ValueError(f"{str(given)[:40]} is no whole number")
    return int(given)
