"""`snrkit data encode`: the latents of all images of a data set, by an autoencoder of diffusers, in one file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snrkit.base.distributed import World, free_memory, in_bytes
from snrkit.base.errors import ConfigError, DataError, Stopped
from snrkit.base.files import check_out, disk_errors
from snrkit.base.signals import stoppable
from snrkit.checkpoints.codec import BATCH, Codec, autoencoder_digest, load_codec
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.commands.opening import say_conversions
from snrkit.commands.progress import bar
from snrkit.data import AnySource, Latents
from snrkit.data.dataset import Dataset, OpensDataset, chunks, moments
from snrkit.data.latents import About, Encoded, write_latents
from snrkit.data.representation import PIXELS
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.opening import resolve_precision, set_compute
from snrkit.reports.records import EncodedFile

NUMBERS: dict[str, "np.dtype[np.floating]"] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be encoded, by what, and where to."""

    images: OpensDataset
    vae: Path
    out: Path


def run_encoding(
    experiment: Experiment,
    world: World,
    out: Path | None,
    vae: Path | None,
    dtype: str,
    overwrite: bool = False,
    quiet: bool = False,
) -> EncodedFile:
    """Write the file. ConfigError or DataError where images and autoencoder do not fit, or it is there already."""
    world.check_alone("data encode")
    if dtype not in NUMBERS:
        raise ConfigError(f"--dtype {dtype}: choose one of {', '.join(NUMBERS)}.")
    asked = _asked(experiment.data, out, vae)
    check_out(asked.out, ".npz", overwrite)
    autoencoder, key = Autoencoder(path=asked.vae), "--vae" if vae else "data.vae"
    digest = autoencoder_digest(autoencoder, key)
    set_compute(resolve_precision(experiment.compute, world.device), world.device)
    images = asked.images.open()
    say_conversions(images, world)
    codec = load_codec(autoencoder, world.device, key)
    encoded = _encode(images, codec, digest, NUMBERS[dtype], quiet)
    with disk_errors(f"writing {asked.out}", "free space or name another file with --out"):
        write_latents(asked.out, encoded)
    latents = encoded.dataset()
    spread = moments(latents, range(latents.count)).sigma_data
    return EncodedFile(str(asked.out), latents.count, latents.shape, dtype, encoded.std is not None, spread)


_UNUSED: dict[str, Callable[[AnySource], object]] = {
    "only": lambda source: source.only is not None,
    "flip": lambda source: source.flip,
    "representation": lambda source: source.representation != PIXELS,
}


def _asked(source: AnySource, out: Path | None, vae: Path | None) -> Asked:
    """Of latents, what they say themselves where the command line does not; else the images are the experiment's."""
    if isinstance(source, Latents):
        if source.of is None:
            raise ConfigError("data.of: name the images that are to be encoded, such as {kind: folder, path: ...}.")
        images, vae, out = source.of, vae or source.vae, out or source.path
    elif unused := [name for name, used in _UNUSED.items() if used(source)]:
        raise ConfigError(f"data.{unused[0]}: has no effect here, as all images are encoded as they are; drop it.")
    else:
        images = source
    if vae is None:
        raise ConfigError("--vae: name the folder of the autoencoder, as diffusers saves it.")
    if out is None:
        raise ConfigError("--out: name the file to make, such as latents.npz.")
    return Asked(images, vae, out)


def _encode(images: Dataset, codec: Codec, digest: str, dtype: "np.dtype[np.floating]", quiet: bool) -> Encoded:
    """All images, in their order. Raises Stopped when asked to stop."""
    shape = (images.count, *codec.shape(images.shape))
    needed, there = 2 * dtype.itemsize * int(np.prod(shape)), free_memory(torch.device("cpu"))
    if needed > there:
        raise ConfigError(f"data: the latents take {in_bytes(needed)}, and this machine has {in_bytes(there)} free.")
    mean, std, posterior, done = np.empty(shape, dtype), np.empty(shape, dtype), True, 0
    with stoppable() as stop, bar("encoding", images.count, not quiet) as progress:
        for found, spread in _posteriors(images, codec):
            rows = slice(done, done + len(found))
            mean[rows], posterior = _numbers(found, dtype, images), spread is not None
            if spread is not None:
                std[rows] = _numbers(spread, dtype, images)
            done = rows.stop
            progress.update(done)
            if stop.asked:
                raise Stopped("stopped; nothing is saved. To encode the images, run the same command again.", stop.code)
    scale, shift = (tuple(row.flatten().tolist()) for row in (codec.scale, codec.shift))
    about = About(images.name, images.shape, images.fingerprint, str(codec.path.resolve()), digest, scale, shift, {})
    labels = None if images.labels is None else images.labels.numpy().astype(np.int64)
    return Encoded(about, mean, std if posterior else None, labels)


def _posteriors(images: Dataset, codec: Codec) -> Iterator[tuple[Tensor, Tensor | None]]:
    for rows in chunks(range(images.count), BATCH):
        yield codec.posterior(images.x0(rows))


def _numbers(found: Tensor, dtype: "np.dtype[np.floating]", images: Dataset) -> np.ndarray:
    """As they are kept. DataError where they are not finite, or too large for float16."""
    numbers = found.float().cpu().numpy().astype(dtype)
    if not np.isfinite(numbers).all():
        raise DataError(f"{images.name}: latents are not finite in {dtype}; use float32, or another autoencoder.")
    return numbers
