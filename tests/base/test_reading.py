"""What is read: regular files of a possible size, records and tensors whose checksum fits, a cache of one's own."""

import contextlib
import errno
import json
import os
import socket

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.cache import kept, open_cache
from snrkit.base.errors import SnrkitError
from snrkit.base.files import disk_errors, new_folder, remove_abandoned, write_bytes
from snrkit.base.regular import open_regular, read_regular
from snrkit.base.sealed import append_line, line_of, read_json, read_lines, sealed, unsealed, write_json
from snrkit.base.tensors import read_tensors, write_tensors

RECORD = {"a": 1.5, "b": [1, None, "x"], "c": {"d": True}}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    """A folder, a named pipe, a device and a socket are named; a link to a file is that file."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("pipe", "named pipe"), ("zero", "a device"), ("", "a folder")):
        with pytest.raises(SnrkitError, match=kind):
            open_regular(tmp_path / name)
    with pytest.raises((SnrkitError, OSError)):  # Linux does not open a socket at all
        open_regular(tmp_path / "socket")
    assert read_regular(tmp_path / "link", 7) == b"content"
    with pytest.raises(SnrkitError, match="more than the 6"):
        read_regular(tmp_path / "file", 6)


@given(st.dictionaries(st.text().filter(lambda key: key != "checksum"), PLAIN))
def test_records_come_back(content):
    """Sealed and unsealed again, a record is what it was, as a file and as a line."""
    assert unsealed(json.dumps(sealed(content), indent=1)) == content
    assert unsealed(line_of(content)) == content


def test_no_flipped_bit_of_a_record_goes_unseen(tmp_path):
    """Each gives the record that was written or a sentence."""
    path = tmp_path / "record.json"
    write_json(path, RECORD)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(SnrkitError):
            assert read_json(path) == RECORD  # white space


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"checksum": NaN}'])
def test_what_is_no_record_is_refused(tmp_path, content):
    """In one sentence, as a file and as a line that is not the last."""
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(SnrkitError, match="delete it and run"):
        read_json(path)
    path.write_bytes(content + b"\n" + line_of(RECORD).encode())
    with pytest.raises(SnrkitError, match="line 1 of"):
        read_lines(path)


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    """Every prefix of a log gives its whole lines; only its end may be torn."""
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == ([], False)
    for number in range(3):
        append_line(path, {"number": number})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        records, torn = read_lines(path)
        ends = [i for i in range(len(whole)) if whole[i : i + 1] == b"\n"]
        assert records == [{"number": n} for n in range(sum(length >= end for end in ends))]
        assert torn == (length not in (0, *ends, *(end + 1 for end in ends)))


def test_no_flipped_bit_of_tensors_goes_unseen(tmp_path):
    """Each is refused; so are tensors of other things."""
    path, tensors = tmp_path / "t.safetensors", {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}
    write_tensors(path, tensors, "these")
    assert all(torch.equal(read_tensors(path, "these")[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(SnrkitError, match="of other things"):
        read_tensors(path, "those")
    whole, passed = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            found = read_tensors(path, "these")
        except SnrkitError:
            continue
        passed += 1  # white space after the header
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert passed < 64


def test_the_cache_is_made_again_where_it_is_damaged(tmp_path, monkeypatch):
    """A flipped bit, a truncation and another's content are made anew; what is whole is not."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    made = []

    def make():
        made.append(1)
        return {"a": torch.arange(4.0)}

    path = tmp_path / "cache" / "x.safetensors"
    for damage in (lambda c: c, lambda c: c[:-1], lambda c: c[:-1] + b"\x01", lambda c: b"", lambda c: b"null"):
        assert torch.equal(kept("x", make)["a"], torch.arange(4.0))
        path.write_bytes(damage(path.read_bytes()))
    assert len(made) == 4
    kept("x", make)
    kept("y", make)
    (tmp_path / "cache" / "y.safetensors").replace(path)
    before = len(made)
    assert torch.equal(kept("x", make)["a"], torch.arange(4.0))
    assert len(made) == before + 1


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_cache_that_others_may_write_to_is_refused(tmp_path, monkeypatch, mode):
    """By name, with what to do."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    open_cache()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(SnrkitError, match="may be written to by others"):
        kept("x", lambda: {})


def test_only_what_the_dead_left_is_removed(tmp_path, monkeypatch):
    """The unfinished file of a process that lives stays; that of one that is gone, and an old one's, goes."""
    monkeypatch.setattr("platform.node", lambda: "host.of.many.dots")
    alive, dead, elsewhere, old = (
        tmp_path / f".x.{node}.{process}.tmp"
        for node, process in (
            ("host-of-many-dots", os.getpid()),
            ("host-of-many-dots", 2**22 + 1),
            ("other-of-many-dots", 2**22 + 1),
            ("other", 1),
        )
    )
    for path in (alive, dead, elsewhere, old):
        path.mkdir()
    os.utime(old, (0, 0))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted((alive, elsewhere))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    """No temporary stays; a folder that is left by the dead is cleared by the next of its name."""
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "no bytes")  # type: ignore[arg-type]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]

    def fails():
        with new_folder(tmp_path / "folder") as made:
            (made / "part").write_bytes(b"1")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT])
def test_where_nothing_may_be_written_no_space_is_to_be_freed(number):
    """What to do follows the system's error: another folder, or what the caller says for that."""
    for more, said in (((), "choose a folder that may be written to"), (("name another",), "name another")):
        with pytest.raises(SnrkitError) as refused, disk_errors("making x", "free space", *more):
            raise OSError(number, os.strerror(number), "x")
        assert str(refused.value) == f"making x failed: {os.strerror(number)}; {said}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_where_the_disk_is_full_or_fails_space_is(number):
    with pytest.raises(SnrkitError, match=r"^making x failed: .*; free space$"), disk_errors("making x", "free space"):
        raise OSError(number, os.strerror(number), "x")
