"""Images from a folder, from a zip in EDM's layout, or from an .npz file."""

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from snrkit.base.arrays import DAMAGED, array_names, read_array
from snrkit.base.errors import DataError, missing
from snrkit.base.value import Place
from snrkit.data.dataset import Dataset, Source, count_classes, fingerprint, memory_dataset

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
IN_MEMORY_BYTES = 2 << 30
LARGEST_LISTING = 2**28  # bytes of labels
MOST_PIXELS = 2**24  # of one image


class Folder(Source):
    """All images below a folder, in sorted order.

    Labels come from `dataset.json` (EDM's layout) where it exists, else, with `labels: folders`, from the names of the
    first-level folders in sorted order.
    """

    kind: Literal["folder"] = "folder"
    path: Place
    labels: Literal["auto", "folders", "none"] = "auto"

    def open(self) -> Dataset:
        """The images, in memory up to 2 GiB, else read as they are asked for."""
        if not self.path.is_dir():
            raise missing("folder", self.path, "give data.path a folder of images")
        names = sorted(
            str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.suffix.lower() in EXTENSIONS
        )
        listed = self.path / "dataset.json"
        labels = None
        if self.labels == "folders":
            labels = _folder_labels(names)
        elif self.labels == "auto" and listed.is_file():
            labels = _listed_labels(names, listed.read_bytes(), str(listed))
        stamps = [(self.path / name).stat() for name in names]
        stamp = repr([(found.st_size, found.st_mtime_ns) for found in stamps])
        return _file_dataset(str(self.path), names, FolderOpener(self.path), labels, stamp)


class Zip(Source):
    """A zip of images with an optional `dataset.json`, as EDM's dataset_tool writes it."""

    kind: Literal["zip"] = "zip"
    path: Place
    labels: Literal["auto", "none"] = "auto"

    def open(self) -> Dataset:
        """The images, in memory up to 2 GiB, else read as they are asked for."""
        if not self.path.is_file():
            raise missing("zip file", self.path, "give data.path a zip of images")
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in EXTENSIONS)
                listed = next((n for n in archive.namelist() if Path(n).name == "dataset.json"), None)
                listing = _listing(archive, listed) if listed and self.labels == "auto" else None
                stamp = repr([archive.getinfo(name).CRC for name in names])
        except DAMAGED:
            raise DataError(f"{self.path} is not a zip file or is damaged; copy it again") from None
        labels = None if listing is None else _listed_labels(names, listing, f"{self.path}:{listed}")
        return _file_dataset(str(self.path), names, _ZipOpener(self.path), labels, stamp)


class Npz(Source):
    """`arr_0` (n, H, W, C) uint8 of an .npz file, with labels from `arr_1` where it exists (ADM's layout)."""

    kind: Literal["npz"] = "npz"
    path: Place

    def open(self) -> Dataset:
        """The images, in memory."""
        if not self.path.is_file():
            raise missing("file", self.path, "give data.path an .npz file with arr_0")
        try:
            images = read_array(self.path, "arr_0")
            labels = read_array(self.path, "arr_1") if "arr_1" in array_names(self.path) else None
        except DAMAGED as error:
            raise DataError(
                f"{self.path} holds no readable array arr_0 ({error}); write it with np.savez(path, images) or "
                "np.savez(path, images, labels), images uint8 (n, H, W, C)"
            ) from None
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"{self.path}: arr_0 must be uint8 (n, H, W, C), not {images.dtype} {images.shape}")
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
            raise DataError(
                f"{self.path}: arr_1 must be {len(images)} whole numbers, not {labels.dtype} {labels.shape}"
            )
        given = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return memory_dataset(str(self.path), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), given)


def _listing(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > LARGEST_LISTING:
        raise DataError(f"{archive.filename}:{name} unpacks to {size:,} bytes, which no list of labels takes")
    return archive.read(name)


Opener = Callable[[str], BinaryIO]


@dataclass(frozen=True, slots=True)
class FolderOpener:
    """Opens files of a folder."""

    path: Place

    def __call__(self, name: str) -> BinaryIO:
        """The file, for reading."""
        return (self.path / name).open("rb")


class _ZipOpener:
    """Opens members of a zip. Each process opens the archive for itself: forked ones would share its position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archives: dict[int, zipfile.ZipFile] = {}

    def __call__(self, name: str) -> BinaryIO:
        process = os.getpid()
        if process not in self.archives:
            self.archives = {process: zipfile.ZipFile(self.path)}
        return self.archives[process].open(name)  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "archives": {}}


def read_image(opener: Opener, name: str, where: str, mode: str | None = None) -> Tensor:
    """One image as uint8 (C, H, W): grey stays one channel, all else becomes RGB."""
    try:
        with opener(name) as file, Image.open(file) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels are more than {MOST_PIXELS:,}")
            picture.load()
            wanted = mode or ("L" if picture.mode in ("L", "1") or picture.mode.startswith("I;16") else "RGB")
            pixels = np.array(_eight_bits(picture).convert(wanted))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, *DAMAGED) as error:
        raise DataError(f"{where}/{name} is not a readable image ({error}); remove it or copy it again") from None
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; Pillow would clip it."""
    if not picture.mode.startswith("I;16"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.uint16) // 257).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class _Files:
    """Reads images by index; a plain object, so that worker processes can be handed it however they are started."""

    where: str
    names: Sequence[str]
    opener: Opener
    mode: str
    shape: torch.Size

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._one(self.names[index]) for index in indices])

    def _one(self, name: str) -> Tensor:
        image = read_image(self.opener, name, self.where, self.mode)
        if image.shape != self.shape:
            raise DataError(
                f"images differ in size: {self.names[0]} is {self.shape[2]}x{self.shape[1]}, "
                f"{name} is {image.shape[2]}x{image.shape[1]}; resize them to one size"
            )
        return image


def _file_dataset(where: str, names: list[str], opener: Opener, labels: Tensor | None, stamp: str) -> Dataset:
    if not names:
        raise DataError(f"{where} holds no images ({', '.join(sorted(EXTENSIONS))})")
    first = read_image(opener, names[0], where)
    mode = "L" if first.shape[0] == 1 else "RGB"

    read = _Files(where, names, opener, mode, first.shape)
    if len(names) * first.numel() <= IN_MEMORY_BYTES:
        return memory_dataset(where, read(range(len(names))), labels)
    mark = fingerprint(stamp, *names)
    shape = (int(first.shape[0]), int(first.shape[1]), int(first.shape[2]))
    classes = 0 if labels is None else count_classes(where, labels)
    return Dataset(where, shape, len(names), read, mark, labels, classes, streams=True)


def _folder_labels(names: list[str]) -> Tensor:
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in names]
    order = {folder: label for label, folder in enumerate(sorted(set(folders)))}
    return torch.tensor([order[folder] for folder in folders])


def _listed_labels(names: list[str], listing: bytes, where: str) -> Tensor | None:
    try:
        pairs = json.loads(listing)["labels"]
        if pairs is None:
            return None
        labels = {str(name): int(label) for name, label in pairs}
        return torch.tensor([labels[name.replace("\\", "/")] for name in names])
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{where} does not label every image ({type(error).__name__}: {error}); "
            "it must hold {'labels': [['name', label], ...]}, or set data.labels: none"
        ) from None
