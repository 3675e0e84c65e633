"""The latents of a data set while it is encoded: finished batches, beside the file that they become.

    OUT.parts/00000064.safetensors    mean and, where there is one, std of the images from number 64 on, as OUT has them

Each file is whole or absent, and carries a checksum of its content and of what it is of: images, autoencoder, numbers,
settings, and which of the images. What is of anything else is not read, and replaced. The folder goes with the last of
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from snrkit.base.errors import DataError, SnrkitError
from snrkit.base.files import disk_errors, remove_abandoned
from snrkit.base.tensors import read_tensors, write_tensors
from snrkit.data.latents import Array, Shape

NAMES = ({"mean"}, {"mean", "std"})
SUFFIX = ".safetensors"


def parts_folder(out: Path) -> Path:
    """Where the parts of a file lie."""
    return out.with_name(f"{out.name}.parts")


@dataclass(frozen=True, slots=True)
class Parts:
    """Finished batches of what is encoded."""

    folder: Path
    of: str  # what all of them are of
    shape: Shape  # (C, H, W) of the latents
    dtype: "np.dtype[np.floating]"

    def __post_init__(self) -> None:
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise DataError(
                f"{self.folder} is no folder, and finished batches are to be kept there; move it away, or name another "
                "file with -o."
            )

    def read(self, rows: Sequence[int]) -> dict[str, Array] | None:
        """mean and std of these images, (n, C, H, W) each; None where they are not there, or do not fit."""
        try:
            found = {name: tensor.numpy() for name, tensor in read_tensors(self._path(rows), self._of(rows)).items()}
        except (SnrkitError, OSError, TypeError):  # TypeError: of numbers that numpy has not
            return None
        wanted = (self.dtype, (len(rows), *self.shape))
        fits = set(found) in NAMES and all((array.dtype, array.shape) == wanted for array in found.values())
        return found if fits else None

    def write(self, rows: Sequence[int], arrays: Mapping[str, Array]) -> None:
        """Keep what was made of these images. SnrkitError where the disk fails."""
        with disk_errors(f"writing {self._path(rows)}", "free space and run the same command again, which goes on"):
            write_tensors(self._path(rows), {k: torch.from_numpy(v) for k, v in arrays.items()}, self._of(rows))

    def remove(self) -> None:
        """Delete all parts, and the folder where nothing else lies in it. SnrkitError where the disk fails."""
        remedy = "the latents are whole; delete the folder yourself"
        with disk_errors(f"deleting {self.folder}", remedy, remedy):
            for path in self.folder.glob(f"[0-9]*{SUFFIX}"):
                path.unlink(missing_ok=True)
            remove_abandoned(self.folder)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _path(self, rows: Sequence[int]) -> Path:
        return self.folder / f"{rows[0]:08d}{SUFFIX}"

    def _of(self, rows: Sequence[int]) -> str:
        return f"{self.of} {rows[0]} {len(rows)}"
