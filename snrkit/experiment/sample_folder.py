"""The images of a sampler, by seed: PNGs, and a manifest that says what made them and holds a checksum of each.

samples/<sampler>/
    manifest.json             what decides the images, the seeds that are there, and their checksums
    000000/000123.png         EDM's layout: a thousand images a folder
    made-<process>.jsonl      what each process has added since the manifest was written

An image counts as made only while its file has its checksum: all else is made again by `sample`, and refused by what
reads it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.errors import DamagedError, RunError, SnrkitError, UnreadableError, unreadable
from snrkit.base.files import checksum, sync_file, sync_folder, write_bytes
from snrkit.base.records import from_json
from snrkit.base.regular import read_regular
from snrkit.base.sealed import LARGEST, append_line, read_json, read_lines, write_json
from snrkit.data.dataset import Dataset, fingerprint
from snrkit.data.images import LARGEST_IMAGE, read_image

SUMS, OF = "checksums", "of"
FINISHED = "finished"
LINE = 128  # bytes of a checksum in a manifest, at most


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest holds."""

    made: Mapping[str, Any]  # what decides the images
    sums: Mapping[int, str]  # of the images that are there, by seed


@dataclass(frozen=True, slots=True)
class SampleFolder:
    """Where the images of one sampler lie."""

    path: Path

    def image(self, seed: int) -> Path:
        """Where image `seed` lies."""
        return self.path / image_path(seed)

    def manifest(self) -> Manifest | None:
        """What was written last; None where there is nothing. SnrkitError where it is damaged."""
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        thousands = sum(entry.is_dir() for entry in self.path.iterdir())
        content = read_json(path, LARGEST + 1000 * thousands * LINE)
        sums = _sums(content.pop(SUMS, None), path)
        content.pop(FINISHED, None)
        return Manifest(content, sums)

    def write(self, made: Mapping[str, Any], sums: Mapping[int, str]) -> None:
        """Write the manifest."""
        listed = {str(seed): sums[seed] for seed in sorted(sums)}
        write_json(self.path / "manifest.json", {**made, FINISHED: ranges(sorted(sums)), SUMS: listed})

    def add(self, made: Mapping[str, Any], images: Mapping[int, bytes], process: int) -> None:
        """Write images to the disk, then the line that says so, and of what they are: `made`.

        One process of its group, by number, writes one file of lines.
        """
        for seed, content in images.items():
            write_bytes(self.image(seed), content, sync=False)
        for seed in images:
            sync_file(self.image(seed))
        for folder in {self.image(seed).parent for seed in images}:
            sync_folder(folder)
        sums = {str(seed): checksum(content) for seed, content in images.items()}
        append_line(self._lines(process), {OF: _of(made), SUMS: sums})

    def gather(self, made: Mapping[str, Any], verify: bool = True) -> set[int]:
        """Have the manifest say what is there; returns the seeds whose images are not what was written.

        `verify`: read them all. Lines of what was made otherwise are dropped. For one process alone, while no
        other adds.
        """
        stored = self.manifest()
        listed = dict(stored.sums) if stored is not None else {}
        added: dict[int, str] = {}
        files = sorted(self.path.glob("made-*.jsonl"))
        for path in files:
            added |= _added(path, _of(made))
        known = {**listed, **added}
        lost = {seed for seed in known if verify and not self.is_whole(seed, known[seed])}
        there = {seed: known[seed] for seed in known.keys() - lost}
        if stored is None or dict(stored.made) != dict(made) or there != listed:
            self.write(made, there)
        for path in files:
            path.unlink()
        return lost

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Those that the manifest does not list."""
        stored = self.manifest()
        known = {} if stored is None else stored.sums
        return [seed for seed in seeds if seed not in known]

    def is_damaged(self, seeds: Iterable[int]) -> bool:
        """Whether the folder is there, and one of the images is not listed or not what was written."""
        stored = self.manifest()
        known = {} if stored is None else stored.sums
        return self.path.exists() and not all(s in known and self.is_whole(s, known[s]) for s in seeds)

    def load(self, seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """The images of `seeds`, uint8 (n, C, H, W). RunError where one is not what was written, or not of `shape`."""
        return self.dataset(seeds, shape).pixels(range(len(seeds)))

    def dataset(self, seeds: Sequence[int], shape: tuple[int, int, int]) -> Dataset:
        """The images of `seeds` as a data set without labels, each read and verified when it is asked for."""
        stored = self.manifest()
        known = {} if stored is None else stored.sums

        def read(indices: Sequence[int]) -> Tensor:
            return torch.stack([self._load(seeds[index], known.get(seeds[index]), shape) for index in indices])

        mark = fingerprint(*(f"{seed} {known.get(seed)}" for seed in seeds))
        return Dataset(str(self.path), shape, len(seeds), read, mark, streams=True)

    def check_listed(self) -> None:
        """RunError for the first image that is not as its manifest lists it, where there is a manifest of ours."""
        try:
            stored = self.manifest()
        except (DamagedError, UnreadableError):
            raise
        except SnrkitError:  # another's, of the same name
            return
        if stored is None:
            return
        for seed, known in stored.sums.items():
            self._whole(seed, known)
        listed = {self.image(seed) for seed in stored.sums}
        for path in sorted(self.path.rglob("*.png")):
            if path not in listed:
                raise RunError(f"{path} is not listed in {self.path / 'manifest.json'}; delete it.")

    def _load(self, seed: int, known: str | None, shape: tuple[int, int, int]) -> Tensor:
        image = read_image(self._whole(seed, known), str(self.image(seed)))[0]
        if image.shape != shape:
            raise RunError(
                f"{self.image(seed)} has {tuple(image.shape)} channels, rows and columns, and images of the "
                f"experiment {shape}; delete it and run snrkit sample again."
            )
        return image

    def _whole(self, seed: int, known: str | None) -> bytes:
        content = self._content(seed)
        if content is None or checksum(content) != known:
            raise RunError(
                f"{self.image(seed)} is not the image that snrkit sample made (it is gone, or its checksum does not "
                "fit); run snrkit sample again, which makes it anew."
            )
        return content

    def is_whole(self, seed: int, known: str) -> bool:
        """Whether an image is what was written."""
        content = self._content(seed)
        return content is not None and checksum(content) == known

    def _content(self, seed: int) -> bytes | None:
        """The file of an image; None where it is gone, or no file. UnreadableError where the disk does not give it."""
        try:
            return read_regular(self.image(seed), LARGEST_IMAGE)
        except (FileNotFoundError, NotADirectoryError, SnrkitError):
            return None
        except OSError as error:
            raise unreadable(self.image(seed), error) from None

    def _lines(self, process: int) -> Path:
        return self.path / f"made-{process}.jsonl"


def image_path(seed: int) -> str:
    """Where an image lies in its folder, in EDM's layout."""
    return f"{seed - seed % 1000:06d}/{seed:06d}.png"


def _of(made: Mapping[str, Any]) -> str:
    """What images are of, in short."""
    return checksum(json.dumps(made, sort_keys=True).encode())


def _added(path: Path, of: str) -> dict[int, str]:
    """What a file of lines lists of images of one make; nothing where it is damaged, so that they are made again."""
    try:
        lines = [line for line in read_lines(path)[0] if line.get(OF) == of]
        return {seed: known for line in lines for seed, known in _sums(line.get(SUMS), path).items()}
    except UnreadableError:
        raise
    except SnrkitError:
        return {}


def _sums(content: Any, where: Path) -> dict[int, str]:
    found = from_json(Mapping[str, str], content, where)  # type: ignore[type-abstract]
    if not all(key.isascii() and key.isdigit() and len(key) <= 18 for key in found):
        raise RunError(f"{where} lists checksums of what is no seed; delete it and run snrkit sample again.")
    return {int(key): value for key, value in found.items()}


def ranges(seeds: Sequence[int]) -> str:
    """Sorted seeds as '0-99,200-299'."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)
