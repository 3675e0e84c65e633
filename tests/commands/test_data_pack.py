"""`snrkit data pack`: any images as a zip in EDM's layout, whole or not at all."""

import io
import json
import os
import re
import signal
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from snrkit.commands import data_pack
from snrkit.data import Zip, packing
from snrkit.data.images import MADE
from snrkit.data.packing import ENLARGED, RESIZED
from tests.small import call, snrkit, written

RNG = np.random.default_rng(0)
SIZES = [(20, 31), (16, 8), (8, 8), (5, 9), (24, 24)]  # height, width
IMAGES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
FOLDERS = ["cat", "ant", "cat", "bee", "ant"]


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder with a folder for each class; names sort otherwise than classes were met."""
    for place, (image, folder) in enumerate(zip(IMAGES, FOLDERS, strict=True)):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / folder / f"{place}.png").write_bytes(png(image))
    return tmp_path / "set"


def pack(*arguments):
    return call("data", "pack", *map(str, arguments), "-q")


def edm(image, size):
    """EDM's center-crop, from its paper's tool: the central square by slices, then Lanczos."""
    height, width = image.shape[:2]
    side = min(height, width)
    crop = image[(height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2]
    return np.array(Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS))


def test_what_is_packed_are_edms_images_with_their_labels(pictures, tmp_path):
    """In the order of names, under EDM's names, stored, and not compressed inside either."""
    out = tmp_path / "out.zip"
    done = pack(pictures, "-o", out, "--size", 8, "--labels", "folders", "--json")
    assert done.returncode == 0, done.stderr
    order = sorted(range(5), key=lambda k: f"{FOLDERS[k]}/{k}.png")
    labels = [{"ant": 0, "bee": 1, "cat": 2}[FOLDERS[k]] for k in order]
    names = [f"00000/img{k:08d}.png" for k in range(5)]
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [*names, "dataset.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read("dataset.json")) == {
            "labels": [list(p) for p in zip(names, labels, strict=True)]
        }
        for name in names:
            content = archive.read(name)
            at = content.index(b"IDAT")
            (length,) = struct.unpack(">I", content[at - 4 : at])
            assert len(zlib.decompress(content[at + 4 : at + 4 + length])) == 8 * (3 * 8 + 1) < length
    dataset = Zip(path=out).open()
    assert dataset.labels.tolist() == labels
    wanted = np.stack([edm(IMAGES[k], 8) for k in order]).transpose(0, 3, 1, 2)
    assert torch.equal(dataset.pixels(range(5)), torch.from_numpy(wanted))
    assert json.loads(done.stdout) == {
        "path": str(out), "images": 5, "size": 8, "channels": 3, "classes": 3, "changes": {RESIZED: 2, ENLARGED: 1},
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_images_are_the_same_bytes(pictures, tmp_path, monkeypatch, workers):
    """Whatever the threads, from a folder and from a zip of it; and packing what was packed changes nothing."""
    monkeypatch.setattr(packing, "threads", lambda: workers)
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in pictures.rglob("*.png"):
            archive.write(path, path.relative_to(pictures))
    assert pack(pictures, "-o", tmp_path / "a.zip", "--size", 8, "--labels", "folders").returncode == 0
    assert pack(tmp_path / "in.zip", "-o", tmp_path / "b.zip", "--size", 8, "--labels", "folders").returncode == 0
    assert pack(tmp_path / "b.zip", "-o", tmp_path / "c.zip", "--size", 8).returncode == 0
    first = (tmp_path / "a.zip").read_bytes()
    assert (tmp_path / "b.zip").read_bytes() == first
    assert (tmp_path / "c.zip").read_bytes() == first


def test_labels_may_be_left_out(pictures, tmp_path):
    """`none`, and `auto` where there is no dataset.json: null, as EDM has it."""
    for labels in ("none", "auto"):
        out = tmp_path / f"{labels}.zip"
        assert pack(pictures, "-o", out, "--size", 4, "--labels", labels).returncode == 0
        assert json.loads(zipfile.ZipFile(out).read("dataset.json")) == {"labels": None}
        assert Zip(path=out).open().labels is None


def test_grey_among_colour_is_converted_as_asked(pictures, tmp_path):
    """By --channels, which is counted; without it the first image of the other kind is named."""
    (pictures / "z.png").write_bytes(png(IMAGES[4][:, :, 0].copy()))
    said = pack(pictures, "-o", tmp_path / "out.zip", "--size", 8).stderr
    assert f"holds grey images and images of colour, such as {pictures}/z.png; give --channels 1 or 3" in said
    for channels in (1, 3):
        done = pack(pictures, "-o", tmp_path / "out.zip", "--size", 8, "--channels", channels, "--overwrite")
        assert done.returncode == 0
        assert f"{5 if channels == 1 else 1} {MADE[channels]}" in done.stdout
        assert Zip(path=tmp_path / "out.zip").open().shape == (channels, 8, 8)


BAD = {
    "an absent source": (("no",), "folder or zip .*no does not exist; name one that holds images"),
    "no zip": (("text.zip",), "is not a zip file or is damaged"),
    "an empty folder": (("empty",), "holds no images"),
    "a bad image": (("bad",), r"b\.png is not a readable image"),
    "an image that is not square": (("set", "--crop", "none"), "is 31x20 and not square; crop the images|is 8x16"),
    "a crop of no such name": (("set", "--crop", "left"), "--crop left is not known; give one of center, none"),
    "labels of no such name": (("set", "--labels", "x"), "--labels x is not known; give one of auto, folders, none"),
    "channels of no such number": (("set", "--channels", "2"), "--channels 2 is not known; give one of auto, 1, 3"),
    "labels of other images": (("labelled",), "does not label every image"),
    "another ending": (("set", "-o", "out.tar"), r"out\.tar does not end in \.zip"),
    "a folder in its place": (("set", "-o", "folder.zip"), r"folder\.zip is a folder; name another file"),
    "a file in its place": (("set", "-o", "there.zip"), r"there\.zip exists already; give --overwrite"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_packed_is_refused_in_a_sentence(pictures, tmp_path, case):
    """And nothing is written, nor is anything left of what was begun."""
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "there.zip").write_text("kept")
    for name in ("empty", "bad", "labelled", "folder.zip"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "labelled" / name).write_bytes(png(IMAGES[2]))
        (tmp_path / "bad" / name).write_bytes(b"\x89PNG" if name == "b.png" else png(IMAGES[2]))
    (tmp_path / "labelled" / "dataset.json").write_text('{"labels": [["a.png", 1]]}')
    (source, *options), said = BAD[case]
    options = [str(tmp_path / option) if "." in option else option for option in options]
    before = written(tmp_path)
    done = pack(tmp_path / source, *([] if "-o" in options else ["-o", tmp_path / "out.zip"]), *options, "--size", 8)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert re.search(said, done.stderr), done.stderr
    assert written(tmp_path) == before


def test_what_was_there_stays_until_all_is_written(pictures, tmp_path):
    """An image that is bad, after others were packed, leaves the zip of before."""
    out = tmp_path / "out.zip"
    assert pack(pictures, "-o", out, "--size", 8).returncode == 0
    before = out.read_bytes()
    (pictures / "z.png").write_bytes(b"no image")
    assert pack(pictures, "-o", out, "--size", 8, "--overwrite").returncode == 1
    assert out.read_bytes() == before
    (pictures / "z.png").unlink()
    assert pack(pictures, "-o", out, "--size", 4, "--overwrite").returncode == 0
    assert Zip(path=out).open().shape == (3, 4, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip", "set"]


def test_a_stopped_packing_says_that_nothing_is_kept(tmp_path, monkeypatch):
    """A zip is whole or not there, and the same command begins anew."""
    (tmp_path / "images").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "images/a.png")
    monkeypatch.setattr(data_pack, "packed", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    words = ("data", "pack", tmp_path / "images", "-o", tmp_path / "out.zip", "--size", "4", "-q")
    done = snrkit(tmp_path, *words, plain=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "stopped; nothing is written. To pack the images, run the same command again.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
