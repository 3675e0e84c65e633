"""Images, lists and experiments that want to be run, to fill the memory or to lie elsewhere: one sentence each."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from snrkit.base.arrays import read_array
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.data.files import Folder, Npz, Zip
from snrkit.experiment.experiment import load_experiment
from snrkit.metrics.features import load_statistics
from tests.checkpoints.test_hostile_files import REACHED, TOUCH, Call
from tests.peak import forget, peak

PIXELS = np.zeros((4, 8, 8, 3), np.uint8)


def picture(size=(8, 8)):
    """A PNG file."""
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "png")
    return buffer.getvalue()


def vast_png():
    """A PNG that says to be 60,000 pixels wide and high."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def zipped(path, **members):
    """A zip of members by name, `_` for a slash or a dot where Python allows none."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return path


def array(shape, dtype="|u1", body=b"\0" * 64):
    """An .npy whose header says what it likes."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def swollen(path):
    """A zip that unpacks to 4 GiB of zeros in one array."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as opened:
        opened.write(array((2**32,), body=b""))
        for _ in range(16):
            opened.write(bytes(2**24))
    return path


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: np.savez(p, np.array([Call(os.system, TOUCH)], dtype=object)), "holds objects"),
        (lambda p: zipped(p, **{"arr_0.npy": array((10**12,))}), "holds other than its 1000000000000 numbers"),
        (lambda p: zipped(p, **{"arr_0.npy": array((-1, 64))}), "holds no readable array arr_0"),
        (lambda p: zipped(p, **{"arr_0.npy": b"\x93NUMPY\x07\x00"}), "is of format"),
        (lambda p: zipped(p, **{"arr_0.npy": b"text"}), "holds no readable array arr_0"),
        (lambda p: zipped(p, **{"arr_0.npy": array("__import__('os').system('x')")}), "holds no readable array arr_0"),
        (lambda p: zipped(p, other=b""), "holds no readable array arr_0"),
        (swollen, "over 100 times what is stored"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "holds no readable array arr_0"),
        (lambda p: np.savez(p, PIXELS, np.array(["a"] * 4)), "arr_1 must be 4 whole numbers"),
        (lambda p: np.savez(p, PIXELS, np.arange(3)), "arr_1 must be 4 whole numbers"),
    ],
)
def test_arrays_are_what_they_say_or_refused(write, said, tmp_path, monkeypatch):
    """Before memory is asked for; nothing is run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "images.npz"
    write(path)
    forget()
    before = peak()
    with pytest.raises(SnrkitError, match=said) as caught:
        Npz(path=path).open()
    assert "\n" not in str(caught.value)
    assert peak() - before < 200
    assert not (tmp_path / REACHED).exists()
    with pytest.raises(SnrkitError, match="holds no statistics mu and sigma"):
        load_statistics(path)


def test_honest_arrays_are_read(tmp_path):
    """Compressed or not, in either order of dimensions, as NumPy itself reads them."""
    given = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    for save in (np.savez, np.savez_compressed):
        for value in (given, np.asfortranarray(given), given[:0], np.float32(2.0)):
            save(tmp_path / "a.npz", x=value)
            found = read_array(tmp_path / "a.npz", "x")
            assert found.dtype == value.dtype
            assert np.array_equal(found, value)


def damaged(path):
    """A zip whose image is no longer what was packed."""
    body = bytearray(zipped(path, **{"a.png": picture()}).read_bytes())
    body[40] ^= 0xFF
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: zipped(p, **{"a.png": vast_png()}), "a.png is not a readable image"),
        (lambda p: zipped(p, **{"a.png": picture((5000, 5000))}), "5000x5000 pixels are none, or more than"),
        (lambda p: zipped(p, **{"a.png": b"<svg>"}), "a.png holds SVG"),
        (damaged, "a.png cannot be read"),
        (lambda p: zipped(p, **{"a.png": picture(), "dataset.json": b"[" * 10**6}), "does not label every image"),
        (
            lambda p: zipped(p, **{"a.png": picture(), "dataset.json": b'{"labels": [["a.png", 1e999]]}'}),
            "inf is no whole number",
        ),
        (
            lambda p: zipped(p, **{"a.png": picture(), "dataset.json": bytes(2**28 + 1)}),
            "dataset.json cannot be read .it unpacks to",
        ),
    ],
)
def test_images_in_zips_are_read_or_refused(write, said, tmp_path):
    """One sentence, with the member's name."""
    path = tmp_path / "images.zip"
    write(path)
    with pytest.raises(SnrkitError, match=said) as caught:
        Zip(path=path).open()
    assert "\n" not in str(caught.value)


def test_nothing_is_unpacked_anywhere(tmp_path):
    """Members whose names lead elsewhere are read as images, and no file appears."""
    inside = tmp_path / "inside"
    inside.mkdir()
    zipped(inside / "images.zip", **{f"../../{REACHED}.png": picture(), f"/{REACHED}.png": picture()})
    assert Zip(path=inside / "images.zip").open().count == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "images.zip"]


def test_images_in_folders_are_bounded_too(tmp_path):
    """By what their header says, before they are unpacked."""
    (tmp_path / "a.png").write_bytes(vast_png())
    with pytest.raises(SnrkitError, match="is not a readable image"):
        Folder(path=tmp_path).open()


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: !!python/object/apply:os.system ['touch REACHED']", "only plain values are read"),
        ("data: !!python/name:os.system", "only plain values are read"),
        (LAUGHS, "stands for more than 50,000 values"),
        ("data: &a [*a]", "stands for more than 50,000 values"),
        ("data: " + "[" * 20_000, "nested more deeply"),
    ],
)
def test_experiments_are_plain_values(text, said, tmp_path, monkeypatch):
    """No objects, and no more of them than are written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_experiment(tmp_path / "x.yaml")
    assert not (tmp_path / REACHED).exists()


def test_a_reference_that_is_no_plain_state_dict_is_refused(tmp_path, monkeypatch):
    """Inception's weights are read like any other file of torch's."""
    import torch

    from snrkit.metrics.extractors import _inception

    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Call(os.system, TOUCH)}, tmp_path / "inception.pth")
    with pytest.raises(SnrkitError, match=r"is not a plain state dict; .* names posix.system"):
        _inception(tmp_path / "inception.pth", torch.device("cpu"))
    assert not (tmp_path / REACHED).exists()
