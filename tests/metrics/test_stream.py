"""Scores of images that are read as they are needed are those of images in memory, and few are held at once."""

import os
import threading
from dataclasses import dataclass, replace

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import RunError
from snrkit.commands.sample import encode
from snrkit.data.dataset import memory_dataset
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.metrics import features
from snrkit.metrics.features import KEPT, extract

WORLD = World(0, 1, torch.device("cpu"))
SHAPE = (3, 8, 8)


@dataclass
class Pixels:
    """An extractor of the pixels themselves."""

    dim: int = 192
    classes: int = 0
    shape: tuple[int, ...] = (192,)

    def run(self, pixels):
        return pixels.flatten(1).float(), None


@pytest.fixture
def folder(tmp_path):
    """Forty images as `snrkit sample` writes them."""
    folder, pixels = SampleFolder(tmp_path / "samples"), torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8)
    folder.add({"a": 1}, {seed: encode(image) for seed, image in enumerate(pixels)}, 0)
    folder.gather({"a": 1})
    return folder, pixels


def test_a_folder_as_a_data_set_gives_the_images_of_its_seeds(folder):
    """Of any seeds, in any order; and `load` all at once."""
    samples, pixels = folder
    seeds = [3, 17, 4, 39]
    found = samples.dataset(seeds, SHAPE)
    assert (found.count, found.shape, found.labels) == (4, SHAPE, None)
    assert torch.equal(found.pixels([2, 0]), pixels[[4, 3]])
    assert torch.equal(samples.load(seeds, SHAPE), pixels[seeds])
    assert found.fingerprint != samples.dataset(seeds[:3], SHAPE).fingerprint


def test_a_damaged_image_is_found_when_it_is_read(folder):
    """By its checksum; so is one of another size."""
    samples, _ = folder
    samples.image(9).write_bytes(samples.image(8).read_bytes())
    with pytest.raises(RunError, match=r"000009\.png is not the image"):
        extract(Pixels(), samples.dataset(range(40), SHAPE), range(40), 8, WORLD)
    with pytest.raises(RunError, match="channels, rows and columns"):
        samples.dataset([1], (3, 8, 4)).pixels([0])


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch", [1, 7, 40, 64])
def test_features_of_a_folder_are_those_of_its_images(folder, monkeypatch, batch, threads):
    """To the bit, whichever threads decode, or none."""
    monkeypatch.setattr(features, "readers", lambda _: threads)
    samples, pixels = folder
    found = extract(Pixels(), samples.dataset(range(40), SHAPE), range(40), batch, WORLD)
    wanted = extract(Pixels(), memory_dataset("memory", pixels), range(40), batch, WORLD)
    assert torch.equal(found.features, wanted.features)
    assert torch.equal(found.gaussian.mean, wanted.gaussian.mean)
    assert torch.equal(found.gaussian.covariance, wanted.gaussian.covariance)


@pytest.mark.parametrize("threads", [0, 2])
def test_few_batches_are_held_at_once(monkeypatch, threads):
    """However many there are, those that threads read ahead and the one that is at work."""
    monkeypatch.setattr(features, "readers", lambda _: threads)
    held, most, lock = 0, 0, threading.Lock()
    plain = memory_dataset("memory", torch.randint(0, 256, (400, *SHAPE), dtype=torch.uint8))

    def read(indices):
        nonlocal held, most
        with lock:
            held += len(indices)
            most = max(most, held)
        return plain.pixels(indices)

    class Counting(Pixels):
        def run(self, pixels):
            nonlocal held
            with lock:
                held -= len(pixels)
            return super().run(pixels)

    found = extract(Counting(), replace(plain, pixels=read), range(400), 4, WORLD)
    assert len(found.features) == min(400, KEPT)
    assert most <= 4 * (threads + 2)


@pytest.mark.parametrize(("device", "cores", "size", "found"), [
    ("cpu", 2, 1, 0), ("cpu", 8, 1, 4), ("cpu", 4, 2, 0), ("cuda", 2, 1, 2), ("cuda", 8, 2, 4),
])  # fmt: skip
def test_threads_read_ahead_where_the_extractor_leaves_cores(monkeypatch, device, cores, size, found):
    """Of which torch takes two a process here."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert features.readers(World(0, size, torch.device(device))) == found
