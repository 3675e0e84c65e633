"""Sets of images that are not what they say: one sentence each, nothing run or written, little time and memory.

All of them are opened in one process of its own, which says of each what was said, the CPU seconds and the peak of
memory, and which hears of every file that is written, every process that is started and every connection.
"""

import os
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.test_hostile_data import array, picture, swollen, vast_png, zipped
from tests.data.test_images import COLOUR, GREY, deep_png, png_chunk, saved, several, with_alpha
from tests.hostile import MIB, SECONDS, read

PNG, JPEG, WEBP, BMP, TIFF = (saved(COLOUR, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"))


def png_of(width, height, *chunks, bits=8, colour=0):
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + b"".join(chunks) + png_chunk(b"IEND", b"")


def bmp_of(width, height):
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def webp_of(width, height):
    """An extended WebP that says its canvas is so large."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(*tags, rest=b""):
    """A TIFF of tags (number, type, count, value) and what follows them."""
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4) + rest


def tiff_sized(width, height, others=None):
    """A TIFF of 8-bit grey whose pixels are one strip."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
            273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height % 2**32)}  # fmt: skip
    return tiff_of(*((tag, *value) for tag, value in sorted((tags | (others or {})).items())))


def jpeg_of(width, height, scans=1):
    """A progressive JPEG that goes over its pixels so often."""
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\0"
    table = b"\xff\xdb\0\x43\0" + b"\x01" * 64
    huffman = b"\xff\xc4\0\x14\0\x01" + bytes(15) + b"\0"
    scan = b"\xff\xda\0\x08\x01\x01\0\0\0\0" + b"\0" * 8
    return b"\xff\xd8" + table + frame + huffman + scan * scans + b"\xff\xd9"


def damaged_zip(path):
    body = bytearray(zipped(path, **{"a.png": PNG, "b.png": PNG}).read_bytes())
    body[len(PNG)] ^= 0xFF
    path.write_bytes(body)


def changed_zip(path, change):
    """A zip of two images, its list of entries changed."""
    body = bytearray(zipped(path, **{"a.png": PNG, "b.png": PNG}).read_bytes())
    change(body, body.index(b"PK\x01\x02"))
    path.write_bytes(body)


def encrypted(body, at):
    body[at + 8] |= 1


def longer(body, at):
    body[at + 24 : at + 28] = struct.pack("<I", 2**31)


def lying(path):
    """A zip whose image is 256 MiB of zeros, packed, and said to be of 100 bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(2**24)) for _ in range(16)) + packer.flush()
    facts = struct.pack("<HHHIIIHH", 8, 0, 0, 0, len(packed), 100, 5, 0)
    local = b"PK\x03\x04\x14\0\0\0" + facts + b"a.png" + packed
    listed = b"PK\x01\x02\x14\0\x14\0\0\0" + facts + bytes(14) + b"a.png"
    path.write_bytes(local + listed + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(listed), len(local), 0))


def many_entries(path):
    """A zip that lists half a million entries, all of them one."""
    name = b"0" * 30 + b".png"
    listed = (b"PK\x01\x02" + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name) * 500_000
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(listed), len(PNG), 0)
    path.write_bytes(PNG + listed + end)


def twice(path):
    renamed(path, "a.png", "b.png", PNG)


def renamed(path, name, other, content):
    """A zip of two entries that were called otherwise, and are called the same."""
    path.write_bytes(
        zipped(path, **{name: content, other: content}).read_bytes().replace(other.encode(), name.encode())
    )


def packed_otherwise(path, method):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", PNG)


def arrays(*given, **named):
    return lambda path: np.savez(path, *given, **named)


def npy(content):
    return lambda path: zipped(path, **{"arr_0.npy": content})


def header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def two_arrays(path):
    renamed(path, "arr_0.npy", "arr_1.npy", array((64,)))


def listing(text):
    return {"a.png": PNG, "dataset.json": text}


IMAGES = {  # content of an image
    **{name: saved(COLOUR, kind) for name, kind in
       (("eps", "EPS"), ("pdf", "PDF"), ("gif", "GIF"), ("dds", "DDS"), ("jpeg2000", "JPEG2000"), ("pcx", "PCX"),
        ("ico", "ICO"), ("netpbm", "PPM"), ("sgi", "SGI"), ("tga", "TGA"), ("qoi", "QOI"), ("icns", "ICNS"))},
    "eps-of-windows": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "avif": b"\0\0\0\x20ftypavif" + bytes(20), "heic": b"\0\0\0\x18ftypheic" + bytes(12),
    "xbm": b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0};", "psd": b"8BPS\0\x01" + bytes(20),
    "svg": b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>",
    "html": b"<!DOCTYPE html><title>Sign in</title>", "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "resource-fork": b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "zip-as-image": b"PK\x03\x04" + bytes(26),
    "empty": b"", "zeros": bytes(1000), "text": b"hello", "mspaint": b"DanM" + bytes(28),
    **{f"half-{name}": content[: len(content) // 2] for name, content in
       (("png", PNG), ("jpeg", JPEG), ("webp", WEBP), ("bmp", BMP), ("tiff", TIFF))},
    **{f"magic-{name}": content[:12] for name, content in
       (("png", PNG), ("jpeg", JPEG), ("webp", WEBP), ("bmp", BMP), ("tiff", TIFF))},
    "nearly-png": PNG[:-30], "nearly-jpeg": JPEG[:-200], "nearly-tiff": TIFF[:20],
    "vast-png": vast_png(), "vast-bmp": bmp_of(2**30, 2**30), "vast-webp": webp_of(2**14, 2**14),
    "vast-tiff": tiff_sized(2**16, 2**16), "vast-jpeg": jpeg_of(65_000, 65_000), "large-png": picture((5000, 5000)),
    "no-width": png_of(0, 8), "bmp-upside-down": bmp_of(-8, -(2**31)), "palette-of-none": png_of(8, 8, colour=3),
    "scans": jpeg_of(4000, 4000, scans=20_000),
    "text-bomb": png_of(8, 8, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))),
    "texts": png_of(8, 8, *[png_chunk(b"zTXt", b"%d\0\0" % k + zlib.compress(bytes(2**20 - 9))) for k in range(100)]),
    "profile-bomb": png_of(8, 8, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28)))),
    "chunk-beyond": PNG[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + PNG[41:60],
    "tiff-strips": tiff_sized(8, 8, {273: (4, 2**30, 8)}),
    "tiff-itself": b"II*\0" + struct.pack("<I", 8) + struct.pack("<HHHII", 1, 256, 4, 1, 8) + struct.pack("<I", 8),
    "tiff-samples": tiff_sized(8, 8, {277: (3, 1, 60_000)}),
    "tiff-packed": tiff_sized(8, 8, {259: (3, 1, 34712)}),
    "animated-png": several("PNG"), "animated-webp": several("WEBP"), "pages": several("TIFF"),
    "transparent": saved(with_alpha(0)), "cmyk": saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "floats": saved(Image.new("F", (4, 4)), "TIFF"), "deep-transparent": deep_png(np.zeros((4, 4, 4), np.uint16), 6),
}  # fmt: skip
ZIPS = {
    "zip-text": lambda path: path.write_text("hello"),
    "zip-empty": lambda path: path.write_bytes(b""),
    "zip-half": lambda path: path.write_bytes(zipped(path, **{"a.png": PNG}).read_bytes()[:-40]),
    "zip-nothing": lambda path: zipped(path, **{"readme.txt": b""}),
    "zip-damaged": damaged_zip,
    "zip-encrypted": lambda path: changed_zip(path, encrypted),
    "zip-longer": lambda path: changed_zip(path, longer),
    "zip-lying": lying,
    "zip-many": many_entries,
    "zip-twice": twice,
    "zip-lzma": lambda path: packed_otherwise(path, zipfile.ZIP_LZMA),
    "zip-bzip2": lambda path: packed_otherwise(path, zipfile.ZIP_BZIP2),
    "zip-outside": lambda path: zipped(path, **{"../../REACHED.png": b"GIF89a"}),
    "zip-lines": lambda path: zipped(path, **{"a\nb\x1b[31m.png": b"GIF89a"}),
    "zip-pipe": os.mkfifo,
    "zip-folder": os.mkdir,
    "zip-device": lambda path: path.symlink_to("/dev/zero"),
    "zip-mixed": lambda path: zipped(path, **{"a.png": PNG, "b.png": saved(GREY)}),
    "zip-sizes": lambda path: zipped(path, **{"a.png": PNG, "b.png": saved(COLOUR[:4])}),
    **{
        f"labels-{name}": lambda path, text=text: zipped(path, **listing(text))
        for name, text in {
            "deep": b"[" * 10**6,
            "long": bytes(2**26 + 1),
            "lists": b'{"labels": [' + b"[]," * (2**22 // 3 - 10) + b"[]]}",
            "numbers": b'{"labels": [["a.png", ' + b"9" * 10**6 + b"]]}",
            "infinite": b'{"labels": [["a.png", 1e999]]}',
            "vast": b'{"labels": [["a.png", 1099511627776]]}',
            "beyond": b'{"labels": [["a.png", 1' + b"0" * 30 + b"]]}",
            "half": b'{"labels": [["a.png", 0.5]]}',
            "negative": b'{"labels": [["a.png", -1]]}',
            "text": b'{"labels": [["a.png", "\\ud800\\n"]]}',
            "other": b'{"labels": [["b.png", 1]]}',
            "none": b"{}",
            "bytes": b"\xff\xfe\x00",
        }.items()
    },
}
NPZS = {
    "npz-swollen": swollen,
    "npz-claims": npy(array((10**12,))),
    "npz-claims-nothing": npy(array((0, 10**30))),
    "npz-negative": npy(array((-1, 64))),
    "npz-objects": arrays(np.array([{}], dtype=object)),
    "npz-tokens": npy(header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (64,), ")),
    "npz-nested": npy(header(b"(" * 9000)),
    "npz-signs": npy(header(b"-" * 9000 + b"1")),
    "npz-code": npy(array("__import__('os').system('touch REACHED')")),
    "npz-dtype": npy(array((64,), dtype="|V99999999999999")),
    "npz-version": npy(b"\x93NUMPY\x07\x00"),
    "npz-twice": two_arrays,
    "npz-other": arrays(x=np.zeros(3)),
    "npz-floats": arrays(np.zeros((2, 3, 3, 1))),
    "npz-labels": arrays(np.zeros((2, 3, 3, 1), np.uint8), np.arange(3)),
    "npz-labels-vast": arrays(np.zeros((2, 3, 3, 1), np.uint8), np.array([0, 2**40])),
    "npz-no-images": arrays(np.zeros((0, 3, 3, 1), np.uint8)),
    "npz-no-channels": arrays(np.zeros((2, 3, 3, 0), np.uint8)),
    "npz-first-1": arrays(np.zeros((2, 1, 8, 8), np.uint8)),
    "npz-first-3": arrays(np.zeros((2, 3, 8, 9), np.uint8)),
    "npz-channels-2": arrays(np.zeros((2, 8, 8, 2), np.uint8)),
    "npz-channels-4": arrays(np.zeros((2, 8, 8, 4), np.uint8)),
    "npz-channels-16": arrays(np.zeros((2, 8, 8, 16), np.uint8)),
    "npz-pipe": os.mkfifo,
    "npz-folder": os.mkdir,
    "npz-text": lambda path: path.write_text("hello"),
}


def sparse(path):
    with path.open("wb") as file:
        file.write(PNG)
        file.truncate(2**40)


FOLDERS = {  # what makes a.png
    "folder-pipe": os.mkfifo,
    "folder-device": lambda path: path.symlink_to("/dev/zero"),
    "folder-loop": lambda path: path.symlink_to(path.name),
    "folder-gone": lambda path: path.symlink_to("gone.png"),
    "folder-folder": os.mkdir,
    "folder-socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder-sparse": sparse,
    "folder-listing-pipe": lambda path: (path.write_bytes(PNG), os.mkfifo(path.with_name("dataset.json"))),
    "folder-listing-long": lambda path: (
        path.write_bytes(PNG), path.with_name("dataset.json").write_bytes(b" " * 2**23)
    ),
}  # fmt: skip

PROGRAM = """
from pathlib import Path
from snrkit.data.files import Folder, Npz, Zip

def read(path):
    kind = {".zip": Zip, ".npz": Npz}.get(path.suffix, Folder)
    return kind(path=path).open()

def benign():
    for path in sorted(Path("benign").iterdir()):
        read(path)

def cases():
    for path in sorted(Path("hostile").iterdir()):
        yield path.stem, lambda: read(path)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each met with."""
    folder = tmp_path_factory.mktemp("sets")
    hostile, benign = folder / "hostile", folder / "benign"
    for each in (hostile, benign, benign / "set"):
        each.mkdir()
    for name, content in (("a.png", PNG), ("b.jpg", JPEG), ("c.webp", WEBP), ("d.bmp", BMP), ("e.tif", TIFF)):
        (benign / "set" / name).write_bytes(content)
    zipped(benign / "set.zip", **{"a.png": PNG})
    np.savez(benign / "set.npz", np.zeros((2, 4, 4, 1), np.uint8))
    for name, content in IMAGES.items():
        (hostile / name).mkdir()
        (hostile / name / "a.png").write_bytes(content)
    for name, make in FOLDERS.items():
        (hostile / name).mkdir()
        make(hostile / name / "a.png")
    for makes, suffix in ((ZIPS, "zip"), (NPZS, "npz")):
        for name, make in makes.items():
            make(hostile / f"{name}.{suffix}")
    met = read(folder, PROGRAM, options=("-W", "error"))
    assert not any(folder.rglob("REACHED*"))
    return met


EVERY = [*IMAGES, *FOLDERS, *ZIPS, *NPZS]


def test_there_are_many():
    """Of every kind that is read."""
    assert len(EVERY) == len(set(EVERY)) > 100


@pytest.mark.parametrize("name", EVERY)
def test_a_hostile_set_ends_in_one_sentence(found, name):
    """Naming the file, within 5 CPU seconds, with at most 200 MiB more than before; nothing is run or written."""
    met = found[name]
    assert not met.said.startswith(("READ", "RAISED"))
    assert f"hostile/{name}" in met.said
    assert met.said.isprintable()
    assert len(met.said) < 500
    assert met.seconds < SECONDS
    assert met.grown < MIB
    assert not met.done
