"""Images of a data set that the package `datasets` opens: of the Hugging Face Hub, or of a folder laid out as there.

The files of images are read as those of a folder or a zip are, by their content (images.py): `datasets` only says which
there are. Nothing of a data set is run, and a row that names a file is believed where it lies below the folder that the
data set was opened from, or in the caches where `datasets` and the Hub keep what they fetch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from snrkit.base.errors import ConfigError, DataError, plain, reason_of, shown
from snrkit.base.hub import hub_package
from snrkit.base.regular import read_regular
from snrkit.base.value import Text
from snrkit.data.files import Channels, Listed, Listing, whole_label
from snrkit.data.images import LARGEST_IMAGE
from snrkit.data.openers import readable


@dataclass(frozen=True, slots=True)
class RowOpener:
    """Reads the files of the images in the rows of a data set."""

    rows: Any  # a datasets.Dataset, with its images not decoded
    image: str
    folders: tuple[Path, ...]  # below which files may lie that rows name, after links

    def __call__(self, name: str) -> bytes:
        """The content of the image in a row, by the row's number. DataError where it has none, or none to be read."""
        found = self.rows[int(name)][self.image]
        content, path = (found.get("bytes"), found.get("path")) if isinstance(found, dict) else (None, None)
        if content is not None:
            return bytes(content[: LARGEST_IMAGE + 1])
        if path is None:
            raise DataError(f"row {int(name)} has no image under '{self.image}'; choose rows that have one.")
        place = self._place(path)
        if place is None:
            raise DataError(
                f"row {int(name)} names {shown(path)}, which is no file of the data set, and is not read; make it "
                "again with the images in it."
            )
        with readable(place):
            return read_regular(place, LARGEST_IMAGE)

    def _place(self, path: str) -> Path | None:
        """The file that a row names, after links on the way to its folder; None where it may not be read."""
        if "\0" in path or not Path(path).is_absolute():
            return None
        place = Path(path).parent.resolve() / Path(path).name
        return place if any(folder in place.parents for folder in self.folders) else None

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
                labels = torch.tensor([whole_label(label) for label in rows[self.label][:]], dtype=torch.int64)
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise DataError(
                    f"data.label: '{self.label}' of {self.path} does not hold whole numbers "
                    f"({plain(reason_of(error))}); name a column that does, or none."
                ) from None
        rows = rows.select_columns([self.image])
        names = [f"{row:09d}" for row in range(len(rows))]
        return Listing(self.path, names, RowOpener(rows, self.image, _folders(self.path)), labels, self.channels)

    def _rows(self) -> Any:
        """The data set, its images not decoded."""
        datasets = _package()
        try:
            rows = datasets.load_dataset(self.path, self.config, split=self.split, revision=self.revision)
            return (
                rows.cast_column(self.image, datasets.Image(decode=False)) if self.image in rows.column_names else rows
            )
        except Exception as error:  # whatever the package raises of a name, a network or a file
            raise DataError(f"{self.path} cannot be opened by datasets ({reason_of(error)[:300]}).") from None


def _package() -> Any:
    """The package datasets; ConfigError says how to install it."""
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ConfigError("data.kind: hf needs the package datasets; pip install 'snrkit[hub]'.") from None
    return datasets


def _folders(path: str) -> tuple[Path, ...]:
    """The folder of a data set that is one here, and those where its packages keep what they fetch."""
    config = _package().config
    caches = [config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH]
    caches.append(hub_package().constants.HF_HUB_CACHE)
    return tuple(Path(place).resolve() for place in (*([path] if Path(path).is_dir() else []), *caches))
