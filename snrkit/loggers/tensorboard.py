"""TensorBoard: event files in a folder. Needs the extra `tensorboard`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from snrkit.base.value import Place, Value
from snrkit.loggers.logger import Columns, Source, package

MODULE, EXTRA = "torch.utils.tensorboard", "tensorboard"


class TensorBoard(Value):
    """Event files for TensorBoard, which `tensorboard --logdir runs` shows."""

    kind: Literal["tensorboard"] = "tensorboard"
    folder: Place | None = Field(
        default=None,
        description="folder in which the run gets one of its own name; null: tensorboard/ in the run directory",
    )
    purges: ClassVar[bool] = True

    @property
    def place(self) -> str:
        return str(self.folder)

    def check(self) -> None:
        package(MODULE, EXTRA)

    def open(self, source: Source) -> "Events":
        folder = source.folder / "tensorboard" if self.folder is None else self.folder / source.name
        return Events(folder, None if source.images is None else source.images + 1)


class Events:
    """The event files of a run; a table has a folder of its own in it, so that tables of one name share their charts.

    Its rows are steps there, and a table that is made again replaces the one before.
    """

    key = ""

    def __init__(self, folder: Path, purge: int | None) -> None:
        """`purge`: from which number of images on TensorBoard forgets what was logged."""
        self._folder, self._write = folder, package(MODULE, EXTRA).SummaryWriter
        self._writer: Any = self._write(str(folder), purge_step=purge)

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)
        self._writer.flush()

    def table(self, images: int, name: str, columns: Columns) -> None:
        writer = self._write(str(self._folder / f"{name}@{images:09d}"), purge_step=0)
        for column, values in columns.items():
            for row, value in enumerate(values):
                if value is not None:
                    writer.add_scalar(f"{name.partition('/')[0]}/{column}", value, row)
        writer.close()

    def picture(self, images: int, name: str, path: Path) -> None:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        self._writer.add_image(name, pixels, images, dataformats="HW" if pixels.ndim == 2 else "HWC")
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()
