"""`snrkit data encode`: the latents of all images of a data set, by an autoencoder of diffusers, in one file.

Finished batches lie beside it until all are (data/latent_parts.py), so that a command that was stopped goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snrkit.base.distributed import World, free_memory, in_bytes
from snrkit.base.errors import ConfigError, DataError, Stopped
from snrkit.base.files import check_out, disk_errors
from snrkit.base.numerics import NUMERICS
from snrkit.base.signals import ending_at_once, stoppable
from snrkit.checkpoints.codec import BATCH, Codec, autoencoder_digest, load_codec
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.commands.opening import say_conversions
from snrkit.commands.progress import bar, follow
from snrkit.data import AnySource, Latents
from snrkit.data.dataset import Dataset, Source, chunks, fingerprint, measuring_moments, opening
from snrkit.data.latent_parts import Parts, parts_folder
from snrkit.data.latents import About, Array, Encoded, write_latents
from snrkit.data.representation import PIXELS
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.opening import resolve_precision, set_compute
from snrkit.reports.records import EncodedFile

NUMBERS: dict[str, "np.dtype[np.floating]"] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be encoded, by what, and where to."""

    images: AnySource
    vae: Path
    out: Path

    def data(self, holdout: float) -> dict[str, Any]:
        """The `data` of an experiment that trains on the file."""
        kept = self.images.model_dump(mode="json", exclude_defaults=True, exclude=set(Source.model_fields))
        of = {"kind": self.images.kind, **kept}
        found = {"kind": "latents", "path": str(self.out), "vae": str(self.vae), "of": of}
        return found if holdout == Source.model_fields["holdout"].default else {**found, "holdout": holdout}


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
    with ending_at_once(_unbegun(asked.out)):
        images = follow(opening(asked.images), not quiet)
        say_conversions(images, world)
        with bar("opening the autoencoder", shown=not quiet):
            codec = load_codec(autoencoder, world.device, key)
    of = [images.fingerprint, digest, *_settings(experiment, world.device)]
    parts = Parts(parts_folder(asked.out), fingerprint(json.dumps(of)), codec.shape(images.shape), NUMBERS[dtype])
    encoded = _encode(images, codec, digest, parts, quiet)
    with disk_errors(f"writing {asked.out}", "free space or name another file with --out"), bar("writing"):
        write_latents(asked.out, encoded)
    parts.remove()
    latents = encoded.dataset()
    spread = follow(measuring_moments(latents, range(latents.count)), not quiet).sigma_data
    data = asked.data(experiment.data.holdout)
    return EncodedFile(str(asked.out), latents.count, latents.shape, dtype, encoded.std is not None, spread, data)


def _unbegun(out: Path) -> str:
    """What is true while images are read and nothing is encoded."""
    folder = parts_folder(out)
    if folder.exists():
        return f"stopped; what was encoded before is kept in {folder}. To go on, run the same command again."
    return "stopped; nothing was encoded yet. To encode the images, run the same command again."


def _settings(experiment: Experiment, device: torch.device) -> list[Any]:
    """What decides, beside images and autoencoder, the bits of latents."""
    compute = experiment.compute
    return [NUMERICS, torch.__version__, device.type, compute.tf32, compute.deterministic, BATCH]


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


def _encode(images: Dataset, codec: Codec, digest: str, parts: Parts, quiet: bool) -> Encoded:
    """All images, in their order. Raises Stopped when asked to stop."""
    shape, dtype = (images.count, *parts.shape), parts.dtype
    needed, there = 2 * dtype.itemsize * int(np.prod(shape)), free_memory(torch.device("cpu"))
    if needed > there:
        raise ConfigError(f"data: the latents take {in_bytes(needed)}, and this machine has {in_bytes(there)} free.")
    whole, batch = {name: np.empty(shape, dtype) for name in ("mean", "std")}, None
    with stoppable() as stop, bar("encoding", images.count, not quiet) as progress:
        for rows in chunks(range(images.count), BATCH):
            batch = parts.read(rows)
            if batch is None:
                batch = _batch(images, codec, rows, dtype)
                parts.write(rows, batch)
            for name, array in batch.items():
                whole[name][rows[0] : rows[0] + len(rows)] = array
            progress.update(done := rows[0] + len(rows))
            if stop.asked:
                text = f"stopped; {done} of {images.count} images are encoded and kept in {parts.folder}. "
                raise Stopped(text + "To go on, run the same command again.", stop.code)
    assert batch is not None  # no data set is empty
    scale, shift = (tuple(row.flatten().tolist()) for row in (codec.scale, codec.shift))
    about = About(images.name, images.shape, images.fingerprint, str(codec.path.resolve()), digest, scale, shift, {})
    labels = None if images.labels is None else images.labels.numpy().astype(np.int64)
    return Encoded(about, whole["mean"], whole["std"] if "std" in batch else None, labels)


def _batch(images: Dataset, codec: Codec, rows: Sequence[int], dtype: "np.dtype[np.floating]") -> dict[str, Array]:
    """mean and, where the autoencoder has one, std of the latents of these images, as they are kept."""
    mean, std = codec.posterior(images.x0(rows))
    found = {"mean": mean} if std is None else {"mean": mean, "std": std}
    return {name: _numbers(part, dtype, images) for name, part in found.items()}


def _numbers(found: torch.Tensor, dtype: "np.dtype[np.floating]", images: Dataset) -> np.ndarray:
    """As they are kept. DataError where they are not finite, or too large for float16."""
    numbers = found.float().cpu().numpy().astype(dtype)
    if not np.isfinite(numbers).all():
        raise DataError(f"{images.name}: latents are not finite in {dtype}; use float32, or another autoencoder.")
    return numbers
