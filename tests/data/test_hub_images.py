"""Data sets that the package `datasets` opens: the same images and labels as of the folder that they were made of."""

import pytest
import torch
from PIL import Image

from snrkit.base.errors import ConfigError, DataError
from snrkit.data import Folder
from snrkit.data.hub_images import HubImages

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six grey images in two folders."""
    made = tmp_path_factory.mktemp("images")
    for i in range(6):
        path = made / "train" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (8, 8), 40 * i)
        image.putpixel((i, 1), 255)
        image.save(path)
    return made


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_it_is_the_folder_it_was_made_of(folder):
    """Pixels and labels, in an order of its own; known again by its content."""
    theirs = HubImages(path=str(folder), label="label").open()
    ours = Folder(path=folder / "train", labels="folders").open()
    assert (theirs.count, theirs.shape, theirs.classes) == (6, (1, 8, 8), 2)
    pairs = [
        sorted(zip(d.labels.tolist(), d.pixels(range(6)).flatten(1).tolist(), strict=True)) for d in (theirs, ours)
    ]
    swapped = sorted((1 - label, image) for label, image in pairs[1])  # labels by another order of names
    assert pairs[0] in (pairs[1], swapped)
    assert HubImages(path=str(folder)).open().fingerprint == HubImages(path=str(folder)).open().fingerprint
    assert HubImages(path=str(folder)).open().labels is None


def test_what_is_not_there_is_named(folder, tmp_path):
    """The data set, a column, a part."""
    with pytest.raises(ConfigError, match="has no column 'picture'; it has image, label"):
        HubImages(path=str(folder), image="picture").open()
    with pytest.raises(DataError, match="cannot be opened by datasets"):
        HubImages(path=str(folder), split="nowhere").open()
    with pytest.raises(DataError, match="cannot be opened by datasets"):
        HubImages(path=str(tmp_path / "nowhere")).open()
    grey, colour = (HubImages(path=str(folder), channels=c).open().pixels([0]) for c in ("auto", 3))
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))
