"""Data sets that the package `datasets` opens: the same images and labels as of the folder that they were made of."""

import io

import pytest
import torch
from PIL import Image

from snrkit.base.errors import ConfigError, DataError
from snrkit.data import Folder
from snrkit.data.hub_images import HubImages

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


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


def parquet(path, images, **columns):
    """A data set of rows as a stranger may write them: {bytes, path} each, and columns beside."""
    image = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    path.mkdir()
    pq.write_table(pa.table({"image": image, **columns}), path / "train.parquet")
    return str(path)


def png():
    """A grey image."""
    Image.new("L", (8, 8), 9).save(buffer := io.BytesIO(), "png")
    return buffer.getvalue()


@pytest.mark.parametrize("labels", [[1.7, 0.0], [float("nan"), 0.0], [None, 0], [True, False], ["0", "1"]])
def test_labels_are_whole_numbers_and_nothing_else_is_made_of_others(tmp_path, labels):
    """By the rule that a listing of files has: 1.0 is the label 1, and 1.7 is none."""
    rows = [{"bytes": png(), "path": None}] * 2
    with pytest.raises(DataError, match=r"data.label: 'label' of .* does not hold whole numbers"):
        HubImages(path=parquet(tmp_path / "x", rows, label=labels), label="label").open()
    whole = HubImages(path=parquet(tmp_path / "whole", rows, label=[1.0, 0.0]), label="label")
    assert whole.open().labels.tolist() == [1, 0]


def test_a_row_names_files_of_its_data_set_alone(tmp_path, monkeypatch):
    """No other file is read, by whatever path; what is missing or null is one sentence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.png").write_bytes(png())
    (tmp_path / "linked").symlink_to(tmp_path)
    inside = tmp_path / "x/a.png"
    for number, named in enumerate(
        [
            tmp_path / "private.png",
            f"{tmp_path}/x/../private.png",
            tmp_path / "x/linked/private.png",
            "private.png",
            "\0",
        ]
    ):
        folder = parquet(tmp_path / "x", [{"bytes": None, "path": str(named)}])
        (tmp_path / "x/linked").symlink_to(tmp_path)
        with pytest.raises(DataError, match="which is no file of the data set, and is not read"):
            HubImages(path=folder).open()
        (tmp_path / "x").rename(tmp_path / f"tried-{number}")
    folder = parquet(tmp_path / "x", [{"bytes": None, "path": str(inside)}])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        HubImages(path=folder).open()
    inside.write_bytes(png())
    assert HubImages(path=folder).open().count == 1
    with pytest.raises(DataError, match="row 0 has no image under 'image'"):
        HubImages(path=parquet(tmp_path / "null", [{"bytes": None, "path": None}])).open()
