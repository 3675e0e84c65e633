"""Names of weights from elsewhere: they change with whatever the numbers depend on, and with nothing else."""

import json
import os
from pathlib import Path
from typing import Literal

import pytest

from snrkit.base import cache
from snrkit.base.cache import cache_folder, content_digest
from snrkit.base.sealed import read_json, write_json
from snrkit.base.value import Value
from snrkit.checkpoints.foreign import digest_of, weights_of


class Kind(Value):
    """A kind of model with a second path."""

    kind: Literal["toy"] = "toy"
    path: Path
    prompts: Path | None = None
    times: float = 1.0


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.ours").write_bytes(bytes(400_000))
    (tmp_path / "texts").write_bytes(b"a cat")
    return Kind(path=tmp_path / "model", prompts=tmp_path / "texts")


def test_every_byte_of_every_path_counts(model, tmp_path):
    """One bit anywhere, a name within the folder, or another file of the folder; not where the folder lies."""
    names = {weights_of(model)}
    content = bytearray((model.path / "weights.ours").read_bytes())
    content[100_000] ^= 1
    (model.path / "weights.ours").write_bytes(content)
    names.add(weights_of(model))
    (model.path / "weights.ours").rename(model.path / "others.ours")
    names.add(weights_of(model))
    (model.path / "readme").write_text("x")
    names.add(weights_of(model))
    model.prompts.write_text("a dog")
    names.add(weights_of(model))
    assert len(names) == 5
    model.path.rename(tmp_path / "moved")
    assert weights_of(Kind(path=tmp_path / "moved", prompts=model.prompts)) in names
    assert all(name.startswith("toy-") and len(name) == 16 for name in names)


def test_digests_of_large_files_are_kept_until_they_change(tmp_path, monkeypatch):
    """The kept digest is that of the content, is read again, and is not believed where it is no digest."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "large"
    path.write_bytes(b"1" * 1000)
    plain = content_digest(path)
    monkeypatch.setattr(cache, "LARGE", 10)
    assert content_digest(path) == plain
    (kept,) = cache_folder().glob("digest-*")
    marks = read_json(kept)["marks"]
    write_json(kept, {"marks": marks, "digest": "00" * 16})
    assert content_digest(path) == "00" * 16
    for damaged in ("nonsense", json.dumps({"marks": marks, "digest": "11" * 16})):
        kept.write_text(damaged)
        assert content_digest(path) == plain
    path.write_bytes(b"2" * 1000)
    os.utime(path, ns=(1, 1))
    assert content_digest(path) not in (plain, "00" * 16)
    assert digest_of(path) != digest_of(tmp_path / "cache")
