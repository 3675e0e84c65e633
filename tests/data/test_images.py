"""Pictures: read by their content, refused by their name, and nothing of them changed that is not counted."""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from snrkit.base.errors import DataError
from snrkit.data.files import Folder, Zip
from snrkit.data.images import (
    FEWER_BITS,
    MADE,
    METADATA,
    OPAQUE,
    PALETTE,
    PREVIEWS,
    SIXTEEN_BITS,
    UPRIGHT,
    format_of,
    look_at,
    read_image,
)

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0].copy()


def saved(image, kind="PNG", **options):
    """A file of an image or an array."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    """EXIF that says how to turn an image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def array(content, channels=None):
    """(H, W, C), and what was changed."""
    image, found = read_image(content, "a.png", channels)
    return image.permute(1, 2, 0).numpy(), found.changes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_ordinary_images_are_read_as_they_are(kind):
    """Grey and RGB of 8 bits, to the bit, and nothing is said of them."""
    for given in (COLOUR, GREY[:, :, None]):
        found, changes = array(saved(given.squeeze(), kind))
        assert np.array_equal(found, given)
        assert not changes


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_images_are_read_as_pillow_decodes_them(kind):
    """To the bit."""
    content = saved(COLOUR, kind)
    found, changes = array(content)
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert not changes


UPRIGHTS = {  # of an array, as the standard has them: where its first row and first column are to be seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHTS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_images_are_turned_upright(kind, options, orientation):
    """As their EXIF says; a header alone tells the same shape and changes."""
    content = saved(COLOUR, kind, exif=turned(orientation), **options)
    found, changes = array(content)
    assert np.array_equal(found, UPRIGHTS[orientation](COLOUR))
    assert changes == ({UPRIGHT} if orientation > 1 else set())
    assert look_at(content, "a.png") == read_image(content, "a.png")[1]


def test_a_jpeg_is_turned_upright():
    """As Pillow's own exif_transpose does."""
    from PIL import ImageOps

    content = saved(COLOUR, "JPEG", exif=turned(6))
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    found, changes = array(content)
    assert np.array_equal(found, np.asarray(wanted))
    assert changes == {UPRIGHT}


def test_damaged_exif_is_passed_over_and_said():
    """The pixels are what they are."""
    exif = turned(6).tobytes()
    assert exif.startswith(b"Exif\0\0MM") or exif.startswith(b"Exif\0\0II")
    found, changes = array(saved(COLOUR, exif=exif[:6] + b"??" + exif[8:]))
    assert np.array_equal(found, COLOUR)
    assert changes <= {METADATA}
    assert METADATA in changes


def with_alpha(alpha, image=COLOUR):
    return np.dstack([image, np.full(image.shape[:2], alpha, np.uint8)])


def png_chunk(kind, body):
    import struct
    import zlib

    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(pixels, colour):
    """A PNG of 16 bits: pixels (H, W, C) of uint16."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", head),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )


def palette():
    """A palette image whose colours all are opaque, and its colours."""
    image = Image.fromarray(COLOUR).quantize(16)
    return image, np.asarray(image.convert("RGB"))


def changed_cases():
    """(what it is, file, pixels, words)."""
    image, colours = palette()
    one = Image.fromarray(GREY).convert("1")
    deep = (COLOUR.astype(np.uint16) * 257)[:, :, :]
    translucent = np.dstack([deep[:, :, :1], np.full((5, 7, 1), 65535, np.uint16)])
    return [
        ("RGBA", saved(with_alpha(255)), COLOUR, {OPAQUE}),
        ("LA", saved(Image.fromarray(GREY).convert("LA")), GREY[:, :, None], {OPAQUE}),
        ("WebP with alpha", saved(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, set()),
        ("palette", saved(image), colours, {PALETTE}),
        ("opaque palette", saved(image, transparency=bytes([255] * 16)), colours, {PALETTE, OPAQUE}),
        ("unused colour", saved(GREY | 1, transparency=0), (GREY | 1)[:, :, None], {OPAQUE}),
        ("one bit", saved(one), np.asarray(one.convert("L"))[:, :, None], {FEWER_BITS}),
        ("16-bit grey", deep_png(deep[:, :, :1], 0), GREY[:, :, None], {SIXTEEN_BITS}),
        ("16-bit RGB", deep_png(deep, 2), COLOUR, {SIXTEEN_BITS}),
        ("16-bit grey and alpha", deep_png(translucent, 4), GREY[:, :, None], {SIXTEEN_BITS, OPAQUE}),
        ("16-bit TIFF", saved(deep[:, :, 0], "TIFF"), GREY[:, :, None], {SIXTEEN_BITS}),
    ]


@pytest.mark.parametrize(("content", "pixels", "words"), [case[1:] for case in changed_cases()])
def test_what_is_changed_is_said(content, pixels, words):
    """The pixels are those that the file shows, and its header tells the same."""
    found, changes = array(content)
    assert np.array_equal(found, pixels)
    assert changes == words
    assert look_at(content, "a.png") == read_image(content, "a.png")[1]


def test_the_first_picture_of_a_jpeg_with_previews_is_read():
    """A camera's MPO is a JPEG with further pictures."""
    content = saved(COLOUR, "MPO", save_all=True, append_images=[Image.fromarray(COLOUR[::-1].copy())])
    found, changes = array(content)
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(content))))
    assert changes == {PREVIEWS}


BLACK_IS_ZERO, WHITE_IS_ZERO = (b"\x06\x01\x03\0\x01\0\0\0" + value for value in (b"\x01", b"\0"))  # tag 262


def several(kind):
    return saved(COLOUR, kind, save_all=True, append_images=[Image.fromarray(COLOUR[::-1].copy())])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (several("PNG"), "holds several frames; save each"),
        (several("WEBP"), "holds several frames"),
        (several("TIFF"), "holds several frames"),
        (saved(with_alpha(254)), "has transparent pixels; compose it on a colour"),
        (saved(with_alpha(0), "WEBP"), "has transparent pixels"),
        (saved(with_alpha(0), "TIFF"), "has transparent pixels"),
        (saved(GREY, transparency=int(GREY[0, 0])), "has transparent pixels"),
        (saved(COLOUR, transparency=tuple(map(int, COLOUR[2, 3]))), "has transparent pixels"),
        (saved(palette()[0], transparency=bytes([0] * 16)), "has transparent pixels"),
        (saved(Image.fromarray(GREY).convert("1"), transparency=0), "names a colour as transparent"),
        (saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "holds CMYK, not grey or RGB; save it as"),
        (saved(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"), "holds YCbCr"),
        (saved(Image.new("LAB", (4, 4)), "TIFF"), "holds LAB"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "holds 32-bit or signed numbers"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "holds floating-point numbers"),
        (saved(Image.new("RGBX", (4, 4)), "TIFF"), "holds 4 channels"),
        (saved(Image.new("I;16", (4, 4)), "TIFF").replace(BLACK_IS_ZERO, WHITE_IS_ZERO), "counts from white to black"),
        (saved(COLOUR, "GIF"), "a.png holds GIF, not an image that is read .PNG, JPEG, WebP, BMP, TIFF.; convert it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "holds EPS"),
        (b"", "holds nothing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "holds a pointer of Git LFS"),
        (b"\0" * 100, "is not a readable image .none of PNG, JPEG"),
    ],
)  # fmt: skip
def test_what_would_be_a_choice_is_refused(content, said):
    """By its name, with what to do."""
    for read in (read_image, look_at):
        with pytest.raises(DataError, match=said) as caught:
            read(content, "a.png")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("EPS", "EPS"), ("PDF", "PDF"), ("GIF", "GIF"), ("DDS", "DDS"), ("JPEG2000", "JPEG 2000"), ("PCX", "PCX"),
        ("ICO", "ICO"), ("PPM", "netpbm"), ("SGI", "SGI"), ("TGA", "TGA"), ("QOI", "QOI"), ("ICNS", "ICNS"),
        ("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WEBP"), ("BMP", "BMP"), ("TIFF", "TIFF"),
    ],
)  # fmt: skip
def test_formats_are_told_by_content(kind, name):
    """Of what Pillow writes."""
    assert format_of(saved(COLOUR, kind)) == name


def write(folder, **files):
    """A folder of files by name."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.png").write_bytes(content)
    return folder


def test_grey_and_colour_are_not_mixed_unasked(tmp_path):
    """Whichever sorts first: the refusal says how many there are of each, and what to set; so set, it is counted."""
    for order in ({"a": GREY, "b": COLOUR, "c": COLOUR}, {"c": GREY, "a": COLOUR, "b": COLOUR}):
        folder = write(tmp_path / "-".join(order), **{name: saved(image) for name, image in order.items()})
        with pytest.raises(DataError, match=r"1 grey images and 2 of colour; set data\.channels: 1 or 3"):
            Folder(path=folder).open()
        rgb, grey = (Folder(path=folder, channels=channels).open() for channels in (3, 1))
        assert (rgb.shape, grey.shape) == ((3, 5, 7), (1, 5, 7))
        assert (rgb.conversions, grey.conversions) == ({MADE[3]: 1}, {MADE[1]: 2})
        at = sorted(order).index(next(iter(order)))
        assert torch.equal(rgb.pixels([at])[0], torch.from_numpy(GREY).expand(3, 5, 7))
        pillows = torch.from_numpy(np.array(Image.fromarray(COLOUR).convert("L")))
        assert torch.equal(grey.pixels([1 if at == 0 else 0])[0, 0], pillows)


def test_a_set_does_not_depend_on_how_its_files_are_encoded(tmp_path):
    """Equal pixels in memory have an equal fingerprint, and what was changed is counted."""
    plain = Folder(path=write(tmp_path / "plain", a=saved(COLOUR), b=saved(COLOUR))).open()
    other = Folder(path=write(tmp_path / "other", a=saved(with_alpha(255)), b=saved(COLOUR, "BMP"))).open()
    assert plain.fingerprint == other.fingerprint
    assert (plain.conversions, other.conversions) == ({}, {OPAQUE: 1})


@pytest.fixture
def streaming(tmp_path, monkeypatch):
    """A set of files that are not held in memory, and what of them is read."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", 10)
    from snrkit.data import openers

    read = []
    whole = openers.read_regular
    monkeypatch.setattr(openers, "read_regular", lambda path, most: read.append(path.name) or whole(path, most))
    images = RNG.integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    return write(tmp_path / "set", **{f"i{i}": saved(image) for i, image in enumerate(images)}), read


def test_a_streaming_set_is_known_by_its_content(streaming, tmp_path):
    """A copy is the same set, whatever its times; a changed byte makes another; nothing unchanged is read again."""
    folder, read = streaming
    first = Folder(path=folder).open()
    assert first.streams
    assert sorted(set(read)) == ["i0.png", "i1.png", "i2.png", "i3.png"]
    read.clear()
    assert Folder(path=folder).open().fingerprint == first.fingerprint
    assert set(read) <= {"i0.png"}  # for its shape, by which it is known to stream
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (1, 1))
    copy = Folder(path=tmp_path / "copy").open()
    assert copy.fingerprint == first.fingerprint
    body = (folder / "i2.png").read_bytes()
    (tmp_path / "copy" / "i2.png").write_bytes(body + b"\0")
    assert Folder(path=tmp_path / "copy").open().fingerprint != first.fingerprint


def test_a_streaming_zip_is_the_set_that_its_folder_is(streaming, tmp_path):
    """Whatever the archive is called and when it was packed; labels and channels count."""
    folder, _ = streaming
    for name, year in (("a.zip", 1980), ("b.zip", 2000)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name, (year, 1, 1, 0, 0, 0)), path.read_bytes())
    marks = [Zip(path=tmp_path / name).open().fingerprint for name in ("a.zip", "b.zip")]
    plain = Folder(path=folder).open().fingerprint
    assert [plain, plain] == marks
    assert Folder(path=folder, channels=1).open().fingerprint != plain
    labels = [[f"i{k}.png", k] for k in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert Folder(path=folder).open().fingerprint != plain


def test_a_streaming_set_is_looked_at_as_one_in_memory_is(streaming, monkeypatch):
    """The same conversions, the same refusals, and the same pixels, as channels ask."""
    folder, _ = streaming
    (folder / "i1.png").write_bytes(saved(with_alpha(255)[:, :, [1, 2, 0, 3]]))
    (folder / "i2.png").write_bytes(saved(GREY))
    with pytest.raises(DataError, match="1 grey images and 3 of colour"):
        Folder(path=folder).open()
    found = {channels: Folder(path=folder, channels=channels).open() for channels in (1, 3)}
    monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", 2**20)
    for channels, dataset in found.items():
        held = Folder(path=folder, channels=channels).open()
        assert dataset.streams
        assert not held.streams
        assert dataset.conversions == held.conversions
        assert torch.equal(dataset.pixels(range(4)), held.pixels(range(4)))
    assert found[1].conversions == {OPAQUE: 1, MADE[1]: 3}


def test_a_streaming_set_is_refused_when_opened(streaming):
    """Where one of its images has another size, is damaged in its header, or is no image."""
    folder, _ = streaming
    for content, said in ((saved(COLOUR[:4]), "i0.png is 7x5, i3.png is 7x4"), (b"GIF89a", "i3.png holds GIF")):
        (folder / "i3.png").write_bytes(content)
        with pytest.raises(DataError, match=said):
            Folder(path=folder).open()
