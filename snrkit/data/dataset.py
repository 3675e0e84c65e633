"""What a data set is: images by index, in memory as uint8 or read from files as they are asked for."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.errors import DataError, SnrkitError
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.base.value import Label, Value
from snrkit.data.representation import PIXELS, AnyRepresentation
from snrkit.diffusion.prediction import Denoiser
from snrkit.diffusion.process import Process

Reader = Callable[[Sequence[int]], Tensor]
MOST_CLASSES = 2**20
T = TypeVar("T")


class Hash(Protocol):
    """A hash of what it was given so far, as hashlib makes it."""

    def update(self, content: bytes | memoryview, /) -> None:
        """Go on with more."""

    def hexdigest(self) -> str:
        """Of all so far."""


class Posterior(Protocol):
    """What an autoencoder says of each image: independent normal latents."""

    def __call__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of the latents of images, each (n, C, H, W) float32."""


class Exact(Protocol):
    """Makes the exact denoiser of a distribution; `prior` (J,) are the equally likely logsnr behind told=None."""

    def __call__(self, process: Process, prior: Tensor | None = None) -> Denoiser:
        """The denoiser under a process."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images of one shape with optional labels.

    `pixels(indices)` gives uint8 (n, C, H, W), or float32 in [-1, 1] for toy sets; it is called from several threads at
    once. `fingerprint` changes with content. Where there is a `posterior`, `pixels` gives one fixed draw of it for each
    image, and training draws anew.
    `exact(process, prior)` makes the exact denoiser where one is known. `conversions` says in words what was changed
    when images were read, and of how many.
    """

    name: str
    shape: tuple[int, int, int]
    count: int
    pixels: Reader
    fingerprint: str
    labels: Tensor | None = None  # (count,) int64
    classes: int = 0
    streams: bool = False
    exact: Exact | None = field(default=None, repr=False)
    conversions: Mapping[str, int] = field(default_factory=dict)
    posterior: Posterior | None = None

    def x0(self, indices: Sequence[int]) -> Tensor:
        """Clean images (n, C, H, W), float32 in [-1, 1]."""
        return to_unit(self.pixels(indices))

    def drawn(self, indices: Sequence[int], normal: Tensor | None) -> Tensor:
        """As `pixels`; where there is a posterior, the draw mean + std * normal, with normal (n, C, H, W) float32."""
        if self.posterior is None or normal is None:
            return self.pixels(indices)
        mean, std = self.posterior(indices)
        return mean + std * normal

    def squares(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(the expectation of x0, that of x0^2) over the draws of each image, (n, C, H, W) float64."""
        if self.posterior is None:
            x0 = self.x0(indices).double()
            return x0, x0**2
        mean, std = (part.double() for part in self.posterior(indices))
        return mean, mean**2 + std**2

    def represented(self, shape: tuple[int, int, int], pixels: Reader, mark: str) -> "Dataset":
        """The same images as states of another shape, which `pixels` reads; `mark` changes with the representation."""
        return replace(
            self,
            shape=shape,
            pixels=pixels,
            fingerprint=fingerprint(self.fingerprint, mark),
            exact=None,
            posterior=None,
        )


class Source(Value):
    """What all sources share; each adds `kind` and `open()`."""

    sigma_data: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto",
        description="standard deviation of the states' numbers (EDM's sigma_data), pixels in [-1, 1]; auto: of "
        "those trained on, or of a model's own training",
    )
    holdout: float = Field(default=0.1, ge=0, le=0.9, description="share of images never trained on")
    flip: bool = Field(default=False, description="mirror images at random")
    only: tuple[Label, ...] | None = Field(
        default=None, min_length=1, max_length=100_000, description="keep only images of these labels; default: all"
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=256,
        description="processes that read images while training, for sets not in memory; 0: threads of the training "
        "itself do, which is enough where a step takes longer than reading its images (some 3,000 of 64x64 a second)",
    )
    representation: AnyRepresentation = Field(default=PIXELS, description="what the network is shown of images")
    elsewhere: ClassVar[tuple[str, ...]] = ("workers", "path", "root", "download", "channels")

    def identity(self) -> dict[str, Any]:
        """What decides, beside the content of the images, what is trained on, as plain data.

        Left out are `elsewhere`, the keys that say where and how images are read, and what earlier versions had not,
        where it is as theirs was.
        """
        left_out = {*self.elsewhere, *(["representation"] if self.representation == PIXELS else [])}
        return self.model_dump(mode="json", exclude=left_out)


class OpensDataset(Protocol):
    """A source of images: what a file of an experiment names and a command opens."""

    def open(self) -> Dataset:
        """The data set. Raises DataError when it cannot be read."""


@runtime_checkable
class OpensGradually(Protocol):
    """A source of images that says how many of them it has read while it is opened."""

    def opening(self) -> Gradual[Dataset]:
        """The data set. Raises DataError when it cannot be read."""


def opening(source: OpensDataset) -> Gradual[Dataset]:
    """The data set of a source, saying how many images are read where the source says it."""
    if isinstance(source, OpensGradually):
        return (yield from source.opening())
    yield Done("opening the data")
    return source.open()


Outline = tuple[int, tuple[int, int, int]]  # (how many images, their shape (C, H, W))


@runtime_checkable
class Outlined(Protocol):
    """A source of images that says what they are without reading them all."""

    def outline(self) -> Outline:
        """As the names and headers of its files say. Raises DataError when they cannot be read."""


@runtime_checkable
class AsksShape(Protocol):
    """A value that cannot be had of images of every shape, such as levels made of spectra."""

    def check(self, shape: tuple[int, int, int]) -> None:
        """SnrkitError where images of this shape (C, H, W) do not have it."""


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1], to the same bits on every device; floats pass."""
    if pixels.dtype != torch.uint8:
        return pixels
    half = torch.full((), 127.5, device=pixels.device)  # for a number a GPU multiplies by its reciprocal
    return pixels.float().div_(half).sub_(1)


def to_bytes(x0: Tensor) -> Tensor:
    """[-1, 1] to uint8 by rounding, values outside clipped."""
    return (x0 * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def memory_dataset(
    name: str,
    pixels: Tensor,
    labels: Tensor | None = None,
    exact: Exact | None = None,
) -> Dataset:
    """A data set of `pixels` (n, C, H, W), uint8 or float32, held in memory, with `labels` (n,) of int64 from 0 on.

    Bytes are read as x / 127.5 - 1, floats as they are: images lie in [-1, 1], which is not checked here, as toy
    distributions reach beyond. DataError for no images or another shape, and for labels of another shape, of floats
    or below 0.
    """
    pixels, labels = pixels.detach().cpu(), None if labels is None else labels.cpu()
    if pixels.ndim != 4:
        raise DataError(f"{name} has pixels of shape {tuple(pixels.shape)}; give images (n, C, H, W).")
    if pixels.numel() == 0:
        raise DataError(f"{name} holds no images; give one at least.")
    if labels is not None and (labels.shape != (len(pixels),) or labels.is_floating_point()):
        raise DataError(
            f"{name} has {len(pixels)} images and labels of shape {tuple(labels.shape)} and {labels.dtype}; give an "
            "int64 for each image."
        )
    return replace(pixels_dataset(name, pixels, labels, hash_of(pixels)), exact=exact)


def pixels_dataset(name: str, pixels: Tensor, labels: Tensor | None, hashed: Hash) -> Dataset:
    """As memory_dataset, of pixels on the host whose `hash_of` is known, which is used up."""
    classes = 0 if labels is None else count_classes(name, labels)
    shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))

    def read(indices: Sequence[int]) -> Tensor:
        return pixels[torch.as_tensor(indices)]

    _add(hashed, b"", b"" if labels is None else labels.numpy().tobytes(), str(shape))
    return Dataset(name, shape, len(pixels), read, hashed.hexdigest(), labels, classes)


def bytes_of(pixels: Tensor) -> memoryview:
    """The numbers of a tensor on the host, in order; its own memory, where that is contiguous."""
    return np.ascontiguousarray(pixels.numpy()).data.cast("B")


def hash_of(pixels: Tensor) -> Hash:
    """The hash of pixels, from which their fingerprint goes on; its digest is `checksum(bytes_of(pixels))`."""
    return hashlib.blake2b(bytes_of(pixels), digest_size=16)


def restrict(dataset: Dataset, only: Sequence[int]) -> Dataset:
    """The images of the given labels, which keep their numbers. DataError where there are none."""
    if dataset.labels is None:
        raise DataError(f"{dataset.name} has no labels, so data.only cannot choose by them; drop it.")
    absent = sorted(set(only) - set(dataset.labels.tolist()))
    if absent:
        raise DataError(f"{dataset.name} has no images of the labels {absent}; change data.only.")
    kept = torch.isin(dataset.labels, torch.tensor(only)).nonzero().flatten()
    mark = fingerprint(dataset.fingerprint, kept.numpy().tobytes())
    rows, posterior = kept.tolist(), dataset.posterior
    return replace(
        dataset, count=len(kept), pixels=_Chosen(dataset.pixels, rows), fingerprint=mark, labels=dataset.labels[kept],
        exact=None, posterior=None if posterior is None else _Chosen(posterior, rows),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Chosen(Generic[T]):
    """Reads some of a set by their index; a plain object, as ImageReader is."""

    read: Callable[[Sequence[int]], T]
    rows: Sequence[int]

    def __call__(self, indices: Sequence[int]) -> T:
        return self.read([self.rows[i] for i in indices])


def count_classes(name: str, labels: Tensor) -> int:
    """One more than the largest label. DataError for a negative one, which would mean "no label", and a vast one."""
    if int(labels.min()) < 0:
        raise DataError(f"{name} has the label {int(labels.min())}; labels count from 0.")
    if int(labels.max()) >= MOST_CLASSES:
        raise DataError(f"{name} has the label {int(labels.max())}; labels count {MOST_CLASSES:,} classes at most.")
    return int(labels.max()) + 1


def fingerprint(*parts: bytes | memoryview | str) -> str:
    """A short content hash of the parts."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, *parts)
    return digest.hexdigest()


def _add(digest: Hash, *parts: bytes | memoryview | str) -> None:
    """Have a hash go on with parts, each with its end."""
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the images that are trained on and of those held out."""

    train: tuple[int, ...]
    held: tuple[int, ...]


def split(count: int, holdout: float) -> Split:
    """Divide by a hash of the index (splitmix64), so that an image's side does not depend on how many there are."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    held = (z ^ (z >> np.uint64(31))).astype(np.float64) / 2.0**64 < holdout
    chosen = Split(tuple(np.flatnonzero(~held).tolist()), tuple(np.flatnonzero(held).tolist()))
    if not chosen.train:
        raise DataError(f"data.holdout {holdout} leaves no image to train on")
    return chosen


def chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`indices` in runs of at most `size`."""
    for first in range(0, len(indices), size):
        yield indices[first : first + size]


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of x0: per pixel `mean` and mean `square` (C, H, W), and the scalars over everything."""

    mean: Tensor
    square: Tensor
    variance: float  # of all pixels round the one grand mean
    pixel_variance: float  # over images, averaged over pixels

    @property
    def sigma_data(self) -> float:
        """The standard deviation of all pixels, EDM's sigma_data."""
        return float(self.variance**0.5)


def moments(dataset: Dataset, indices: Sequence[int], batch: int = 1024) -> Moments:
    """The moments of the chosen images, accumulated in float64."""
    return finished(measuring_moments(dataset, indices, batch))


def measuring_moments(dataset: Dataset, indices: Sequence[int], batch: int = 1024) -> Gradual[Moments]:
    """As `moments`, saying how many images were seen."""
    total = torch.zeros(dataset.shape, dtype=torch.float64)
    squares = torch.zeros(dataset.shape, dtype=torch.float64)
    seen = 0
    for run in chunks(indices, batch):
        yield Done("measuring the data", seen, len(indices))
        x0, square = dataset.squares(run)
        total += x0.sum(0)
        squares += square.sum(0)
        seen += len(run)
    mean, square = total / len(indices), squares / len(indices)
    grand = float(square.mean() - mean.mean() ** 2)
    return Moments(mean, square, grand, float((square - mean**2).mean()))


def read_by_processes(
    dataset: Dataset, batches: Iterable[Sequence[int]], workers: int
) -> Iterator[Tensor | SnrkitError]:
    """The pixels of each batch of indices, in order, read ahead by `workers` processes, each a batch at a time.

    In the place of a batch of which an image cannot be read stands the error, for who uses it to raise. Draws nothing
    from torch's own generator.
    """
    yield from torch.utils.data.DataLoader(
        _Batches(dataset.pixels),
        sampler=_Order(batches),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2,
        generator=torch.Generator(),
        collate_fn=_as_it_is,
    )


@dataclass(frozen=True, slots=True)
class _Batches(torch.utils.data.Dataset[Tensor | SnrkitError]):
    """Batches by their indices. An error is handed over as it is: a loader would make a traceback of it."""

    pixels: Reader

    def __getitem__(self, indices: Sequence[int]) -> Tensor | SnrkitError:
        try:
            return self.pixels(indices)
        except SnrkitError as error:
            return error


@dataclass(frozen=True, slots=True)
class _Order(torch.utils.data.Sampler[Sequence[int]]):
    """The batches that are asked for, without end if they have none."""

    batches: Iterable[Sequence[int]]

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self.batches)


def _as_it_is(found: Any) -> Any:
    return found
