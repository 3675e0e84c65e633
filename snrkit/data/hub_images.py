"""Images of a data set that the package `datasets` opens: of the Hugging Face Hub, or of a folder laid out as there.

The files of images are read as those of a folder or a zip are, by their content (images.py): `datasets` only says which
there are. Nothing of a data set is run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from snrkit.base.errors import ConfigError, DataError, reason_of
from snrkit.base.regular import read_regular
from snrkit.base.value import Text
from snrkit.data.files import Channels, Listed, Listing
from snrkit.data.images import LARGEST_IMAGE


@dataclass(frozen=True, slots=True)
class RowOpener:
    """Reads the files of the images in the rows of a data set."""

    rows: Any  # a datasets.Dataset, with its images not decoded
    image: str

    def __call__(self, name: str) -> bytes:
        """The content of the image in a row, by the row's number. DataError where it has none."""
        found = self.rows[int(name)][self.image]
        if not isinstance(found, dict):
            raise DataError(f"row {int(name)} has no image under '{self.image}'; choose rows that have one.")
        if found.get("bytes") is not None:
            return bytes(found["bytes"][: LARGEST_IMAGE + 1])
        return read_regular(Path(found["path"]), LARGEST_IMAGE)

    def marks(self, names: Sequence[str]) -> Iterator[bytes]:
        """What changes with the data set: its own mark of its content."""
        yield f"{self.rows._fingerprint} {self.image} {len(names)}".encode()


class HubImages(Listed):
    """A data set that `datasets` opens, with one image a row."""

    kind: Literal["hf"] = "hf"
    path: Text = Field(description="owner/name on the Hugging Face Hub, or a folder laid out as a data set there")
    config: Text | None = Field(default=None, description="name of the configuration; default: the only one")
    split: Text = Field(default="train", description="which part of it, such as train or test[:10%]")
    revision: Text | None = Field(default=None, description="branch, tag or commit; default: as it is now")
    image: Text = Field(default="image", description="column of the images")
    label: Text | None = Field(
        default=None, description="column of the labels, whole numbers from 0; default: no labels"
    )
    channels: Channels = Field(
        default="auto", description="1: grey, 3: RGB, to which images of the other are converted; auto: all agree"
    )

    def listing(self) -> Listing:
        """The rows by number, with their labels. DataError where the data set cannot be opened or has no images."""
        rows = self._rows()
        for column in (self.image, *([] if self.label is None else [self.label])):
            if column not in rows.column_names:
                raise ConfigError(f"data: {self.path} has no column '{column}'; it has {', '.join(rows.column_names)}.")
        labels = None
        if self.label is not None:
            try:
                labels = torch.tensor(rows[self.label][:], dtype=torch.int64)
            except (TypeError, ValueError, RuntimeError):
                raise DataError(f"data.label: '{self.label}' of {self.path} does not hold whole numbers.") from None
        rows = rows.select_columns([self.image])
        names = [f"{row:09d}" for row in range(len(rows))]
        return Listing(self.path, names, RowOpener(rows, self.image), labels, self.channels)

    def _rows(self) -> Any:
        """The data set, its images not decoded."""
        try:
            import datasets  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise ConfigError("data.kind: hf needs the package datasets; pip install 'snrkit[hub]'.") from None
        try:
            rows = datasets.load_dataset(self.path, self.config, split=self.split, revision=self.revision)
            return (
                rows.cast_column(self.image, datasets.Image(decode=False)) if self.image in rows.column_names else rows
            )
        except Exception as error:  # whatever the package raises of a name, a network or a file
            raise DataError(f"{self.path} cannot be opened by datasets ({reason_of(error)[:300]}).") from None
