"""Reading all images of a set: in threads, in order, and no more than once until a file changes.

What a set was found to be (Survey) the cache keeps under a key of what the file system says of its files: inode, size
and times, and for a zip its list of members. Beside it lie the pixels of a set that is held in memory, if they are
KEPT_FROM bytes or more, and are believed where they fit their checksum. A set that changes while it is read is not
kept; neither is one of which an image is refused.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import PIL
import torch
from PIL import features
from torch import Tensor

from snrkit.base.ahead import ahead, threads
from snrkit.base.cache import keep_large, open_cache, read_large
from snrkit.base.errors import DataError, SnrkitError, plain
from snrkit.base.files import checksum
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import write_json
from snrkit.data.dataset import Hash, bytes_of, fingerprint, hash_of
from snrkit.data.images import MADE, Found, look_at, read_image
from snrkit.data.openers import Opener

VERSION = "2"  # of what is found of a set and of how its images are read; older records are not read
KEPT_FROM = 2**22  # bytes of pixels, which are read in less than a second
AT_ONCE, AT_ONCE_BYTES = 64, 2**22  # images, and their bytes, that a thread reads before it is asked for more


@dataclass(frozen=True, slots=True)
class ImageReader:
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

    def key(self, what: str) -> str | None:
        """What the cache calls a reading of these files, until one of them or a decoder changes; None of none.

        A file of which nothing can be said is named in its turn, when it is read.
        """
        versions = (VERSION, PIL.__version__, features.version("libjpeg_turbo") or "", features.version("webp") or "")
        with contextlib.suppress(SnrkitError):
            return fingerprint(what, *versions, str(self.channels), *self.opener.marks(self.names))
        return None


@dataclass(frozen=True, slots=True)
class Survey:
    """What all images of a set were found to be."""

    digest: str  # of their pixels where these are held in memory, else of the content of all files, in their order
    height: int
    width: int
    grey: int  # how many are grey
    colour: int
    changes: Mapping[str, int]

    def shape(self, where: str, asked: int | None) -> tuple[int, int, int]:
        """Of all images, with the channels that are asked for. DataError where none are, and they differ."""
        if asked is None and self.grey and self.colour:
            raise DataError(
                f"{where} holds {self.grey:,} grey images and {self.colour:,} of colour; set data.channels: 1 or 3, to "
                "which the others are converted."
            )
        return (asked or (1 if self.grey else 3), self.height, self.width)

    def conversions(self, channels: int) -> dict[str, int]:
        """What is changed, and of how many images, where all are made of so many channels."""
        made = self.colour if channels == 1 else self.grey
        return {**self.changes, **({MADE[channels]: made} if made else {})}


@dataclass(frozen=True, slots=True)
class Held:
    """All images of a set, uint8 (n, C, H, W), the hash that was begun of them, and what they were found to be."""

    pixels: Tensor
    hashed: Hash
    survey: Survey


class _Surveyor:
    """Takes down what each image was found to be."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.first: tuple[str, Found] | None = None
        self.channels: Counter[int] = Counter()
        self.changes: Counter[str] = Counter()

    def add(self, name: str, found: Found) -> None:
        """The next image. DataError where it is of another size than the first."""
        self.first = self.first or (name, found)
        other, first = self.first
        if found.shape[1:] != first.shape[1:]:
            raise DataError(
                f"images of {self.where} differ in size: {plain(other)} is {_size(first.shape)}, "
                f"{plain(name)} is {_size(found.shape)}; make them one size, such as "
                f"with snrkit data pack {plain(self.where)} -o packed.zip --size {min(first.shape[1:])}."
            )
        self.channels[found.shape[0]] += 1
        self.changes.update(found.changes)

    def survey(self, digest: str) -> Survey:
        """Of all of them."""
        assert self.first is not None
        _, height, width = self.first[1].shape
        return Survey(digest, height, width, self.channels[1], self.channels[3], dict(sorted(self.changes.items())))


def read_all(reader: ImageReader, shape: tuple[int, int, int]) -> Held:
    """All images, which the first says are of this shape; from the cache where it has them."""
    return finished(reading_all(reader, shape))


def reading_all(reader: ImageReader, shape: tuple[int, int, int]) -> Gradual[Held]:
    """As `read_all`, saying how many are read."""
    pixels = torch.empty((len(reader.names), *shape), dtype=torch.uint8)
    key = reader.key("pixels") if pixels.numel() >= KEPT_FROM else None
    known = _known(key)
    if known is not None and read_large(f"pixels-{key}", bytes_of(pixels)):
        hashed = hash_of(pixels)
        if hashed.hexdigest() == known.digest:
            return Held(pixels, hashed, known)

    rows = pixels.numpy()

    def read(index: int) -> Found:
        image, found = reader.one(index)
        if image.shape == pixels.shape[1:]:  # others are refused when all were looked at
            rows[index] = image.numpy()
        return found

    surveyor = yield from _survey(reader, read, math.prod(shape), "reading images")
    surveyor.survey("").shape(reader.where, reader.channels)
    hashed = hash_of(pixels)
    survey = surveyor.survey(hashed.hexdigest())
    if key is not None and reader.key("pixels") == key and keep_large(f"pixels-{key}", bytes_of(pixels)):
        _keep(key, survey)
    return Held(pixels, hashed, survey)


def look_at_all(reader: ImageReader) -> Survey:
    """What all images are by their headers, without reading those that the cache knows and that have not changed."""
    return finished(looking_at_all(reader))


def looking_at_all(reader: ImageReader) -> Gradual[Survey]:
    """As `look_at_all`, saying how many were looked at."""
    key = reader.key("headers")
    known = _known(key)
    if known is not None:
        return known
    checksums = [""] * len(reader.names)

    def look(index: int) -> Found:
        content = reader.opener(reader.names[index])
        checksums[index] = checksum(content)
        return look_at(content, reader.called(reader.names[index]))

    surveyor = yield from _survey(reader, look, 0, "looking at images")
    digest = hashlib.blake2b("".join(checksums).encode(), digest_size=16)
    survey = surveyor.survey(digest.hexdigest())
    if key is not None and reader.key("headers") == key:
        _keep(key, survey)
    return survey


def _survey(reader: ImageReader, look: Callable[[int], Found], size: int, what: str) -> Gradual[_Surveyor]:
    """What `look` finds of all images of `size` bytes, in threads. SnrkitError for the first, in order, to refuse."""

    def some(indices: range) -> list[Found | SnrkitError]:
        found: list[Found | SnrkitError] = []
        for index in indices:
            try:
                found.append(look(index))
            except SnrkitError as error:
                return [*found, error]
        return found

    count = len(reader.names)
    step = max(1, min(AT_ONCE, AT_ONCE_BYTES // max(size, 1)))
    runs = [range(first, min(first + step, count)) for first in range(0, count, step)]
    surveyor = _Surveyor(reader.where)
    yield Done(what, 0, count)
    for indices, results in zip(runs, ahead(some, runs, threads()), strict=True):
        for index, found in zip(indices, results, strict=False):
            if isinstance(found, SnrkitError):
                raise found
            surveyor.add(reader.names[index], found)
        yield Done(what, indices.stop, count)
    return surveyor


def _known(key: str | None) -> Survey | None:
    cache = None if key is None else open_cache()
    if cache is not None:
        with contextlib.suppress(SnrkitError):
            return read_record(Survey, cache / f"images-{key}.json")
    return None


def _keep(key: str, survey: Survey) -> None:
    cache = open_cache()
    if cache is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written to is none
            write_json(cache / f"images-{key}.json", to_json(survey))


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[1]}"
