"""`snrkit data pack SOURCE -o OUT.zip --size N`: any folder or zip of images as a zip in EDM's layout.

    00000/img00000000.png     square images in the sorted order of their names, PNG and not compressed, a thousand a
                              folder, stored
    dataset.json              {"labels": [[name, label], ...]}, or null where there are none

The same images give the same bytes: entries carry no time.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from torch import Tensor

from snrkit.base.errors import DataError, SnrkitError, missing
from snrkit.base.files import check_out, disk_errors, new_file, remove_abandoned
from snrkit.base.hub import local
from snrkit.base.signals import ending
from snrkit.commands.progress import Bar, bar
from snrkit.data.dataset import count_classes
from snrkit.data.files import Channels, Folder, Listing, Zip
from snrkit.data.packing import Crop, packed
from snrkit.data.surveys import ImageReader
from snrkit.reports.records import Packing

REMEDY = "free space, or name another file with -o"
LABELS = ("auto", "folders", "none")
CHANNELS: Mapping[str, Channels] = {"auto": "auto", "1": 1, "3": 3}
UNIX = 3  # where a zip says that it was made, whatever made it


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How images are packed. SnrkitError names an option that is none."""

    size: int
    crop: str = "center"
    labels: str = "auto"
    channels: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("crop", get_args(Crop)), ("labels", LABELS), ("channels", tuple(CHANNELS))):
            if getattr(self, name) not in known:
                raise SnrkitError(f"--{name} {getattr(self, name)} is not known; give one of {', '.join(known)}.")


def run_packing(source: Path, out: Path, options: PackOptions, overwrite: bool, quiet: bool) -> Packing:
    """Write `out`, whole or not at all. SnrkitError where an image cannot be packed, or something lies at `out`."""
    check_out(out, ".zip", overwrite)
    files = _listing(source, options.labels)
    stopping = ending(text="stopped; nothing is written. To pack the images, run the same command again.")
    classes = 0 if files.labels is None else count_classes(files.where, files.labels)
    with stopping, disk_errors(f"writing {out}", REMEDY), bar("packing", len(files.names), not quiet) as progress:
        remove_abandoned(out.parent, out.name)
        with new_file(out) as file, zipfile.ZipFile(file, "w") as archive:
            channels, changes = _write(archive, files, options, progress)
    return Packing(str(out), len(files.names), options.size, channels, classes, dict(sorted(changes.items())))


def _write(archive: zipfile.ZipFile, files: Listing, options: PackOptions, progress: Bar) -> tuple[int, Counter[str]]:
    """Write all entries; returns the channels of all images, and what was changed of how many."""
    asked = CHANNELS[options.channels]
    reader = ImageReader(files.where, files.names, files.opener, None if asked == "auto" else asked)
    channels: Counter[int] = Counter()
    changes: Counter[str] = Counter()
    for index, image in enumerate(packed(reader, options.size, "none" if options.crop == "none" else "center")):
        _add(archive, _name(index), image.content)
        channels[image.channels] += 1
        changes.update(image.changes)
        if len(channels) > 1:
            raise DataError(
                f"{files.where} holds grey images and images of colour, such as {reader.called(files.names[index])}; "
                "give --channels 1 or 3, to which the others are converted."
            )
        progress.update(index + 1)
    _add(archive, "dataset.json", json.dumps({"labels": _labels(files.labels)}).encode())
    return next(iter(channels)), changes


def _name(index: int) -> str:
    digits = f"{index:08d}"
    return f"{digits[:5]}/img{digits}.png"


def _labels(labels: Tensor | None) -> list[list[str | int]] | None:
    return None if labels is None else [[_name(index), label] for index, label in enumerate(labels.tolist())]


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # of 1980, where zips begin
    entry.create_system = UNIX
    archive.writestr(entry, content)


def _listing(source: Path, labels: str) -> Listing:
    """The images of a folder or a zip."""
    here = local(source)
    if not here.exists():
        raise missing("folder or zip", source, "name one that holds images")
    given = {"path": source, "labels": labels}
    return (Folder if here.is_dir() else Zip).model_validate(given).listing()
