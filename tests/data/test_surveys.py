"""Sets of files opened again: the same pixels and the same words, without reading what did not change."""

import hashlib
import io
import itertools
import json
import os
import threading
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from snrkit.base import cache
from snrkit.base.cache import keep_large, read_large
from snrkit.base.errors import DataError
from snrkit.data import surveys
from snrkit.data.dataset import bytes_of, hash_of, memory_dataset
from snrkit.data.files import Folder, Zip
from snrkit.data.images import MADE, METADATA, OPAQUE, WARNINGS, read_image

RNG = np.random.default_rng(0)
COUNT = 7


def saved(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def contents():
    """Files of seven images: one with an opaque alpha channel, one grey, one a JPEG."""
    files = {f"{k}.png": saved(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for k in range(COUNT)}
    opaque = np.dstack([RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8), np.full((5, 7), 255, np.uint8)])
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    labels = {"labels": [[f"{k}.png", k % 3] for k in range(COUNT)]}
    return files | {
        "1.png": saved(opaque), "2.png": saved(grey), "3.png": saved(grey[:, :, None].repeat(3, 2), "JPEG"),
        "dataset.json": json.dumps(labels).encode(),
    }  # fmt: skip


def write(path, files):
    """A folder, or a zip, in place of what is there."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path.with_name("new"), "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        path.with_name("new").replace(path)
        return Zip(path=path, channels=3)
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / "new").write_bytes(content)
        (path / "new").replace(path / name)
    return Folder(path=path, channels=3)


@pytest.fixture(params=["folder", "set.zip"])
def kept(request, tmp_path, monkeypatch):
    """(A source of which the cache keeps the pixels, however few; its files; how often an image was decoded)."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(surveys, "KEPT_FROM", 1)
    monkeypatch.setattr(surveys, "AT_ONCE", 2)
    decoded = []
    monkeypatch.setattr(surveys, "read_image", lambda *given: decoded.append(given[1]) or read_image(*given))
    files = contents()
    return write(tmp_path / request.param, files), files, decoded


def equal(one, other):
    assert torch.equal(one.pixels(range(COUNT)), other.pixels(range(COUNT)))
    assert (one.fingerprint, one.shape, one.count, one.classes) == (
        other.fingerprint, other.shape, other.count, other.classes,
    )  # fmt: skip
    assert torch.equal(one.labels, other.labels)
    assert one.conversions == other.conversions


def test_a_set_that_is_known_is_the_set_that_was_read(kept):
    """Pixels, labels, fingerprint, conversions; they are those of its images one by one, and none is decoded again."""
    source, files, decoded = kept
    first = source.open()
    assert len(decoded) == COUNT
    again = source.open()
    assert len(decoded) == COUNT
    equal(first, again)
    plain = torch.stack([read_image(files[f"{k}.png"], "", 3)[0] for k in range(COUNT)])
    assert torch.equal(again.pixels(range(COUNT)), plain)
    assert again.conversions == {OPAQUE: 1, MADE[3]: 1}
    numbers = plain.numpy().tobytes() + b"\0" + again.labels.numpy().tobytes() + b"\0" + b"(3, 5, 7)\0"
    assert again.fingerprint == hashlib.blake2b(numbers, digest_size=16).hexdigest()


def test_labels_are_read_each_time_and_channels_are_their_own(kept):
    """What is kept are pixels, as data.channels asks for them."""
    source, _, decoded = kept
    source.open()
    bare = source.model_copy(update={"labels": "none"}).open()
    assert bare.labels is None
    assert len(decoded) == COUNT
    assert source.model_copy(update={"channels": 1}).open().shape == (1, 5, 7)
    assert len(decoded) == 2 * COUNT


def test_what_changed_is_read_anew(kept):
    """All of it, also where sizes and times are those of before."""
    source, files, decoded = kept
    first = source.open()
    places = [source.path] if source.kind == "zip" else [source.path / name for name in files]
    times = {place: place.stat() for place in places}
    files["5.png"], files["6.png"] = files["6.png"], files["5.png"]
    write(source.path, files)
    for place, found in times.items():
        os.utime(place, ns=(found.st_atime_ns, found.st_mtime_ns))
    now = source.open()
    assert len(decoded) == 2 * COUNT
    assert now.fingerprint != first.fingerprint
    assert torch.equal(now.pixels([5])[0], read_image(files["5.png"], "")[0])


@pytest.mark.parametrize("damage", ["bit", "short", "long", "absent", "record", "other record"])
def test_damage_in_the_cache_changes_nothing(kept, tmp_path, damage):
    """The files are read again, and what is kept is mended."""
    source, _, decoded = kept
    first = source.open()
    (pixels,), (record,) = (list((tmp_path / "cache").glob(pattern)) for pattern in ("pixels-*", "images-*"))
    content = pixels.read_bytes()
    if damage == "absent":
        pixels.unlink()
    elif damage == "record":
        record.write_text(record.read_text().replace("5", "6", 1))
    elif damage == "other record":
        surveys._keep(record.stem.removeprefix("images-"), surveys.Survey("0" * 32, 5, 7, 0, COUNT, {}))
    else:
        flipped = content[:20] + bytes([content[20] ^ 1]) + content[21:]
        pixels.write_bytes({"bit": flipped, "short": content[:-1], "long": content + b"\0"}[damage])
    equal(source.open(), first)
    assert len(decoded) == 2 * COUNT
    equal(source.open(), first)
    assert len(decoded) == 2 * COUNT
    assert pixels.read_bytes() == content


def test_a_cache_that_cannot_be_written_to_is_none(kept, monkeypatch):
    """The set is read each time."""
    source, _, decoded = kept

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_bytes", full)
    equal(source.open(), source.open())
    assert len(decoded) == 2 * COUNT


def test_a_set_that_changes_while_it_is_read_is_not_kept(kept, monkeypatch):
    """As what was read may be of before or after."""
    source, _, decoded = kept
    read = surveys.read_image

    def meddling(content, called, channels):
        if called.endswith("6.png") and len(decoded) < COUNT:
            where = source.path / "0.png" if source.kind == "folder" else source.path
            os.utime(where, (1, 1))
        return read(content, called, channels)

    monkeypatch.setattr(surveys, "read_image", meddling)
    source.open()
    assert len(decoded) == COUNT
    source.open()
    assert len(decoded) == 2 * COUNT
    source.open()
    assert len(decoded) == 2 * COUNT


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("workers", "at_once"), [(1, 1), (1, 64), (3, 2)])
def test_the_first_bad_image_is_named(kept, monkeypatch, streams, workers, at_once):
    """In order, whatever is wrong with later ones and however many are read at once; nothing is kept."""
    source, files, _ = kept
    monkeypatch.setattr(surveys, "threads", lambda: workers)
    monkeypatch.setattr(surveys, "AT_ONCE", at_once)
    if streams:
        monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", 10)
    bad = {
        "is not a readable image": b"no image", "holds GIF": b"GIF89a",
        "0.png is 7x5, {} is 4x4": saved(np.zeros((4, 4), np.uint8)),
    }  # fmt: skip
    for place, said in enumerate(bad):
        order = [*bad.values()][place:] + [*bad.values()][:place]
        later = dict(zip(("4.png", "5.png", "6.png"), order, strict=True))
        write(source.path, {**files, **later})
        for _ in range(2):
            with pytest.raises(DataError, match=said.format("4.png")):
                source.open()


def test_a_file_that_is_gone_is_named_in_its_turn(tmp_path, monkeypatch):
    """A link to nothing, of which no time is known, after an image that is bad."""
    monkeypatch.setattr(surveys, "KEPT_FROM", 1)
    source = write(tmp_path / "set", {**contents(), "4.png": b"no image"})
    (tmp_path / "set" / "5.png").unlink()
    (tmp_path / "set" / "5.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"4\.png is not a readable image"):
        source.open()
    write(source.path, {"4.png": contents()["5.png"]})
    with pytest.raises(DataError, match=r"5\.png cannot be read"):
        source.open()


def test_large_things_give_way_to_newer_ones(tmp_path, monkeypatch):
    """Those that were used least recently, down to the bound; what is over it alone is not kept."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "MOST_LARGE", 30)
    used, stamp = itertools.count(1), os.utime
    monkeypatch.setattr(cache.os, "utime", lambda path: stamp(path, (next(used),) * 2))
    for name in "abc":
        assert keep_large(name, memoryview(name.encode() * 10))
        assert read_large(name, memoryview(bytearray(10)))
    assert read_large("a", memoryview(bytearray(10)))
    assert keep_large("d", memoryview(b"d" * 10))
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    assert not keep_large("e", memoryview(b"e" * 31))
    into = bytearray(10)
    assert read_large("d", memoryview(into))
    assert into == b"d" * 10


def test_pixels_are_hashed_where_they_lie():
    """Without a copy; the fingerprint of pixels that are not contiguous is that of their copy."""
    pixels = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8)
    assert np.shares_memory(np.frombuffer(bytes_of(pixels), np.uint8), pixels.numpy())
    for given in (pixels, pixels.permute(0, 1, 3, 2), pixels.float()):
        assert hash_of(given).hexdigest() == hashlib.blake2b(given.numpy().tobytes(), digest_size=16).hexdigest()
        assert memory_dataset("a", given).fingerprint == memory_dataset("b", given.clone().contiguous()).fingerprint


def test_each_thread_hears_its_own_warnings():
    """Of two that decode at once; a third thread's go where they went before, and no filter is touched."""
    meet, heard, before = threading.Barrier(2, timeout=20), {}, list(warnings.filters)

    def decode(category, first):
        with WARNINGS.heard() as found:
            meet.wait()
            if first:
                TiffImagePlugin.warnings.warn("of the first", category)
            meet.wait()
            TiffImagePlugin.warnings.warn("of both", category)
            meet.wait()
        heard[category] = found

    decoders = [threading.Thread(target=decode, args=given) for given in ((UserWarning, True), (RuntimeWarning, False))]
    for decoder in decoders:
        decoder.start()
    for decoder in decoders:
        decoder.join()
    assert heard == {UserWarning: [UserWarning] * 2, RuntimeWarning: [RuntimeWarning]}
    assert warnings.filters == before
    with warnings.catch_warnings(record=True) as outside:
        warnings.simplefilter("always")
        with WARNINGS.heard() as found:
            other = threading.Thread(target=TiffImagePlugin.warnings.warn, args=("of another", UserWarning))
            other.start()
            other.join()
        assert found == []
        assert [warning.category for warning in outside] == [UserWarning]


def test_what_is_damaged_is_counted_whatever_others_do_with_warnings():
    """Filters that another thread sets and takes back while an image is read hide nothing, and none of ours stays."""
    exif = Image.Exif()
    exif[0x0112] = 6
    written = exif.tobytes()
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG", exif=written[:6] + b"??" + written[8:])
    damaged = buffer.getvalue()
    wanted, hook = read_image(damaged, "a.jpg")[1].changes, warnings.showwarning
    assert wanted == {METADATA}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(damaged, "a.jpg")[1].changes == wanted
        inner = warnings.catch_warnings(record=True)
        with WARNINGS.heard():
            inner.__enter__()
        inner.__exit__(None, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(damaged, "a.jpg")[1].changes == wanted
    assert warnings.showwarning is hook
