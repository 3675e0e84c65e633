"""Files that want to be run, to fill the memory or to last: one sentence each, nothing run, little time and memory."""

import functools
import io
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import torch

from snrkit.networks.dit import Dit
from tests.checkpoints.test_edm_files import small
from tests.edm_files import Persistent, preconditioned, write
from tests.hostile import MIB, SECONDS, read
from tests.peak import forget, peak

REACHED = "REACHED"  # a file that appears where something of a file was run


class Call:
    """Pickles as a call."""

    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


def benign():
    """The content of an ordinary file."""
    return preconditioned("VEPrecond", small()[1], (3, 16, 16), 0, sigma_min=0.02, sigma_max=100)


def content(extra=None, **changes):
    """The bytes of an ordinary file with something more in it, or with other arguments of its network."""
    inner = small(**changes)[1]
    outer = preconditioned("VEPrecond", inner, (3, 16, 16), 0, sigma_min=0.02, sigma_max=100)
    return pickle.dumps({"ema": outer, **({} if extra is None else {"more": extra})}, protocol=4)


def program(*parts):
    """A pickle by its instructions."""
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


def stored(payload):
    """A storage of these bytes."""
    return named("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(payload)) + payload + b"\x85R"


def numbers(count=4, written=None):
    """A float storage as torch's older format has it, that says to hold `count` numbers and holds `written`."""
    buffer = io.BytesIO()
    torch.save(torch.zeros(count if written is None else written).untyped_storage(), buffer,
               _use_new_zipfile_serialization=False)  # fmt: skip
    typed = io.BytesIO()
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(written if written is not None else count).untyped_storage(), dtype=torch.float32,
        _internal=True,
    )  # fmt: skip
    torch.save(storage, typed, _use_new_zipfile_serialization=False)
    raw = typed.getvalue()
    assert buffer.getvalue()
    if written is None:
        return raw
    old, new = b"K" + bytes([written]), b"J" + struct.pack("<i", count)
    assert raw.count(old) >= 1
    return raw.replace(old, new)


def tensor(size, stride, offset=0, payload=None):
    """A program that rebuilds a tensor of a storage."""
    pieces = [named("torch._utils", "_rebuild_tensor_v2"), b"(", stored(numbers() if payload is None else payload)]
    whole = [pickle.dumps(part, protocol=2)[2:-1] for part in (offset, size, stride, False)]
    return b"".join([*pieces, *whole, b"}tR"])


def entry(body):
    """A file whose `ema` is made by a program."""
    return program(b"}", text("ema"), body, b"s")


def looped():
    """A module that lies within itself, twice."""
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    loop = Persistent("Loop", state)
    state["_modules"].update(a=loop, b=loop)
    return loop


@functools.cache
def bomb():
    """A zip of 384 MiB of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.pkl", "w") as opened:
        for _ in range(24):
            opened.write(bytes(2**24))
    return buffer.getvalue()


def objects():
    """A NumPy archive with an array of objects, which only pickle reads."""
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Call(os.system, f"touch {REACHED}")], dtype=object))
    return buffer.getvalue()


def cyclic():
    """An ordinary file whose network lies within itself."""
    made = benign()
    made.state["_modules"]["model"].state["_modules"]["enc"] = looped()
    return pickle.dumps({"ema": made}, protocol=4)


TOUCH = f"touch {REACHED}"
FILES = {
    "system": lambda: content(Call(os.system, TOUCH)),
    "eval": lambda: content(Call(eval, f"open({REACHED!r}, 'w')")),
    "exec": lambda: content(Call(exec, f"open({REACHED!r}, 'w')")),
    "nested": lambda: content(Call(getattr, Call(__import__, "os"), "system")),
    "popen": lambda: entry(named("subprocess", "Popen") + b"(" + text(TOUCH) + b"t\x81"),
    "dotted": lambda: entry(named("torch.nn.modules.module", "warnings.sys.exit") + b")R"),
    "old-global": lambda: entry(b"cos\nsystem\n" + text(TOUCH) + b"\x85R"),
    "build": lambda: entry(named("collections", "OrderedDict") + b")R" + named("os", "environ") + b"b"),
    "inst": lambda: entry(b"(" + text(TOUCH) + b"ios\nsystem\n"),
    "extension": lambda: entry(b"\x82\x01"),
    "persistent-id": lambda: entry(text("a") + b"Q"),
    "four-gigabytes": lambda: entry(b"\x8e" + struct.pack("<Q", 2**32)),
    "long-text": lambda: entry(b"\x8d" + struct.pack("<Q", 2**40)),
    "long-integer": lambda: entry(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "truncated": lambda: content()[:-20_000],
    "zip-bomb": bomb,
    "objects": objects,
    "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 225876230\n",
    "empty": lambda: b"",
    "many-mappings": lambda: entry(b"}" * 3_000_000),
    "deep": lambda: entry(b")" + b"\x85" * 3_000_000),
    "growing-integers": lambda: entry((b"\x8a\xff" + b"\x7f" * 255) * 100_000),
    "wide-tensor": lambda: entry(tensor((10**6, 10**6), (0, 0))),
    "tensor-beyond": lambda: entry(tensor((4,), (1,), offset=2)),
    "negative-offset": lambda: entry(tensor((2,), (1,), offset=-2)),
    "overflowing-stride": lambda: entry(tensor((2,), (2**62,))),
    "lying-storage": lambda: entry(tensor((4,), (1,), payload=numbers(2**30, 4))),
    "storage-in-storage": lambda: entry(stored(program(stored(program(stored(b"")))))),
    "stored-program": lambda: entry(stored(program(named("os", "system")))),
    "hashed-tuples": lambda: entry(b")\x94" + b"".join(b"h%ch%c\x86\x94" % (k, k) for k in range(60)) + b"}h<Ns"),
    "long-inner": lambda: entry(stored(program(b"N0" * 3_000_000))),
    "within-itself": cyclic,
    "huge-network": lambda: content(model_channels=16_000, num_blocks=100),
    "endless-network": lambda: content(num_blocks=10**9),
}


def kept(body):
    """A value that the memo keeps, and the stack does not: h and its number push it again."""
    return body + b"\x940"


def long_text(content, size=2**22):
    """A text of 4 MiB that begins with this one."""
    return b"X" + struct.pack("<I", size) + content.ljust(size, b"x")


def integer(value):
    """Of sixteen bytes."""
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


LAYER, REBUILD = named("torch.nn.modules", "X"), named("torch._utils", "_rebuild_tensor_v2")
SHAPE = b"K\x00K\x04\x85K\x01\x85\x89}t"  # of four numbers
FOUR = b"(" + stored(numbers()) + SHAPE  # what a tensor of them is rebuilt of
PAYLOAD = b"B" + struct.pack("<I", len(numbers())) + numbers() + b"\x85"
FILES |= {  # programs that are short enough
    "memo": lambda: entry(b"Nr" + struct.pack("<I", 2**32 - 1)),
    "same-hash": lambda: entry(b"}(" + b"".join(integer(k * (2**61 - 1)) + b"N" for k in range(100_000)) + b"u"),
    "same-keys": lambda: entry(2 * kept(long_text(b"")) + b"}(" + b"h\x00Nh\x01N" * 200_000 + b"u"),
    "long-names": lambda: entry(
        kept(long_text(b"torch.nn.modules.")) + kept(text("X")) + b"(" + b"h\x00h\x01\x93" * 300_000 + b"t"
    ),
    "wide-calls": lambda: entry(
        kept(LAYER) + kept(b"(" + b"N" * 300_000 + b"t") + b"(" + b"h\x00h\x01R" * 100_000 + b"t"
    ),
    "mappings": lambda: entry(b"(" + b"}" * 999_000 + b"t"),
    "sets": lambda: entry(b"(" + b"\x8f" * 999_000 + b"t"),
    "deep-mappings": lambda: entry(b"}N" * 332_000 + b"N" + b"s" * 332_000),
    "deep-states": lambda: entry(kept(LAYER) + b"h\x00)R" * 120_000 + b"b" * 119_999),
    "itself": lambda: entry(kept(b"]") + b"h\x00" + (b"(" + b"h\x00" * 9 + b"e") * 90_000),
    "byte-strings": lambda: entry(b"(" + b"C\x01x" * 900_000 + b"t"),
    "wide-text": lambda: entry(b"X" + struct.pack("<I", 2**23 + 4) + b"a" * 2**23 + "\U0001f600".encode()),
    "tensors": lambda: entry(kept(REBUILD) + kept(FOUR) + b"(" + b"h\x00h\x01R" * 125_000 + b"t"),
    "storages": lambda: entry(
        kept(named("torch.storage", "_load_from_bytes")) + kept(PAYLOAD) + b"(" + b"h\x00h\x01R" * 125_000 + b"t"
    ),
    "written-tensor": lambda: entry(REBUILD + FOUR + b"RK\x00G" + struct.pack(">d", 1) + b"s"),
    "written-bytes": lambda: entry(b"C\x01xK\x00K\x01s"),
    "state-of-a-list": lambda: entry(b"]N}" + text("a") + b"Ns\x86b"),
    "far-stride": lambda: entry(tensor((0,), (2**100,))),
    "dimensions": lambda: entry(tensor((1,) * 100_000, (1,) * 100_000)),
}


def weights():
    """The weights of a small DiT."""
    made = Dit(patch=2, dim=16, depth=1, heads=2, classes=3).make((4, 8, 8), 8)
    state = {name: value for name, value in made.state_dict().items() if name != "extras.null_time"}
    return {**state, "pos_embed": made.pos_embed}


def saved(content, zipped=True):
    """A file of torch."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def archive(change, compression=zipfile.ZIP_STORED):
    """A zipped file of weights, with `change(name, content)` for each entry, None to leave it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(weights()))) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            made = change(entry.filename, old.read(entry))
            if made is not None:
                new.writestr(made[0], made[1])
    return buffer.getvalue()


def older(count):
    """An older file whose storages say to hold `count` numbers."""
    raw = saved({"x_embedder.proj.weight": torch.zeros(77)}, zipped=False)
    assert raw.count(b"KM") >= 1
    return raw.replace(b"KM", b"\x8a\x08" + struct.pack("<q", count))


def shared():
    """The weights of a large DiT, all of them views of one row of numbers."""
    with torch.device("meta"):
        made = Dit(patch=2, dim=384, depth=40, heads=6, classes=3).make((4, 8, 8), 8)
    row = torch.zeros(max(p.numel() for p in made.parameters()))
    state = {name: row[: p.numel()].view(p.shape) for name, p in made.named_parameters() if "null_time" not in name}
    return saved({**state, "pos_embed": row[: 16 * 384].view(1, 16, 384)})


def doubled(times):
    """A tuple of tuples."""
    return (inner := doubled(times - 1), inner) if times else ()


def swollen():
    """An ordinary file whose img_channels is a tuple of tuples, doubled forty times."""
    made = benign()
    made.state["img_channels"] = doubled(40)
    return pickle.dumps({"ema": made}, protocol=4)


def many_entries(large=False):
    """A zip that lists half a million entries, all of them one."""
    body, name = saved(weights()), b"data/000000000000000000000000000000"
    row = b"PK\x01\x02" + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name
    listed = row * 500_000
    stated = min(len(listed), 0xFFFFFFFF)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, stated, len(body), 0)
    if not large:
        return body + listed + end
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 500_000, 500_000, len(listed), len(body))
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(body) + len(listed), 1)
    return body + listed + record + locator + end[:12] + struct.pack("<IIH", 0, 0, 0)


def storage(key, count):
    """The persistent id of a storage of floats."""
    return b"(" + text("storage") + named("torch", "FloatStorage") + key + text("cpu") + integer(count) + b"tQ"


def objects_of(*parts, numbers=16):
    """A zipped file of these objects, and of a storage 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("x/data.pkl", program(*parts))
        made.writestr("x/data/0", bytes(numbers))
    return buffer.getvalue()


def aliased():
    """A weight of a million rows and columns, all of them one row of a million numbers."""
    size = integer(2**20) * 2 + b"\x86K\x00K\x01\x86\x89}t"
    weight = REBUILD + b"(" + storage(text("0"), 2**20) + b"K\x00" + size + b"R"
    return objects_of(b"}", text("x_embedder.proj.weight"), weight, b"s", numbers=2**22)


def with_state(**state):
    """An ordinary file whose network has another state."""
    made = benign()
    made.state["_modules"]["model"].state.update(state)
    return pickle.dumps({"ema": made}, protocol=4)


def named_in_lines():
    """An ordinary file of a class whose name is two lines."""
    made = benign()
    made.name = "VE\nPrecond"
    return pickle.dumps({"ema": made}, protocol=4)


def repeated():
    """An ordinary file, a thousand of whose modules are one, with a thousand weights."""
    part = Persistent("Part", {"_parameters": {f"w{k}": torch.zeros(1) for k in range(1000)}, "_buffers": {},
                               "_modules": {}})  # fmt: skip
    return with_state(_modules=dict.fromkeys(map(str, range(1000)), part))


def latent(**state):
    """An ordinary file with an encoder of latents."""
    encoder = Persistent("StabilityVAEEncoder", state)
    return pickle.dumps({"ema": benign(), "encoder": encoder}, protocol=4)


FILES |= {
    "swollen": swollen,
    "lines": named_in_lines,
    "lines-of-a-name": lambda: entry(named("os\nsystem", "x")),
    "lines-of-a-key": lambda: pickle.dumps({"em\na": benign()}, protocol=4),
    "repeated": repeated,
    "skipped": lambda: with_state(
        _buffers=dict.fromkeys(map(str, range(20_000)), torch.zeros(1)), _non_persistent_buffers_set=[None] * 500_000
    ),
    "long-argument": lambda: content(attn_resolutions=["x"] * 500_000),
    "latent-swollen": lambda: latent(vae_name=doubled(40)),
}
TORCH = {
    "pt-aliased": aliased,
    "pt-claims": lambda: objects_of(b"}", text("x"), REBUILD + b"(" + storage(text("0"), 2**62) + SHAPE, b"Rs"),
    "pt-long-key": lambda: objects_of(storage(long_text(b""), 4)),
    "pt-deep": lambda: saved({**weights(), **{f"blocks.{k}.x": torch.zeros(1) for k in range(10_000)}}),
    "pt-shared": shared,
    "pt-system": lambda: saved({**weights(), "more": Call(os.system, TOUCH)}),
    "pt-old-system": lambda: saved({**weights(), "more": Call(os.system, TOUCH)}, zipped=False),
    "pt-module": lambda: saved(torch.nn.Sequential(torch.nn.Linear(2, 2))),
    "pt-compressed": lambda: archive(lambda name, content: (name, content), zipfile.ZIP_DEFLATED),
    "pt-bomb": bomb,
    "pt-without-objects": lambda: archive(lambda name, content: None if name.endswith(".pkl") else (name, content)),
    "pt-without-numbers": lambda: archive(lambda name, content: None if "/data/" in name else (name, content)),
    "pt-short-numbers": lambda: archive(lambda name, content: (name, content[:3] if "/data/" in name else content)),
    "pt-outside": lambda: archive(lambda name, content: (f"../../{REACHED}/{name}", content)),
    "pt-other-order": lambda: archive(lambda name, c: (name, b"big" if name.endswith("byteorder") else c)),
    "pt-truncated": lambda: saved(weights())[:-5_000],
    "pt-old-truncated": lambda: saved(weights(), zipped=False)[:-5_000],
    "pt-many-entries": many_entries,
    "pt-many-entries-large": lambda: many_entries(large=True),
    "pt-old-huge": lambda: older(2**60),
    "pt-old-negative": lambda: older(-5),
    "pt-text": lambda: b"<!DOCTYPE html><title>Sign in</title>",
}

PROGRAM = """
from pathlib import Path
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.checkpoints.edm import EdmModel
from snrkit.checkpoints.transformers import DitModel

def read(path):
    model = EdmModel(path=path) if path.suffix == ".pkl" else DitModel(path=path, heads=2)
    try:
        model.describe()
        model.autoencoder()
        return model.load()
    except SnrkitError as error:
        assert isinstance(error, ConfigError)
        raise

def benign():
    read(Path("benign.pkl"))
    read(Path("benign.pt"))

def cases():
    for path in sorted(Path("hostile").iterdir()):
        yield path.stem, lambda: read(path)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(what every file met with, whether anything was run)."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile").mkdir()
    write(folder / "benign.pkl", benign())
    (folder / "benign.pt").write_bytes(saved(weights()))
    for files, suffix in ((FILES, "pkl"), (TORCH, "pt")):
        for name, make in files.items():
            (folder / "hostile" / f"{name}.{suffix}").write_bytes(make())
    met = read(folder, PROGRAM)
    return met, any((*folder.rglob(f"{REACHED}*"), *folder.parent.glob(f"{REACHED}*")))  # other tests lie beside it


@pytest.mark.parametrize("name", [*FILES, *TORCH])
def test_a_hostile_file_ends_in_one_sentence(found, name):
    """Naming the file, within 5 CPU seconds, with at most 200 MiB more than the peak before."""
    met = found[0][name]
    assert not met.said.startswith(("READ", "RAISED"))
    assert f"{name}.p" in met.said
    assert "\n" not in met.said
    assert len(met.said) < 400
    assert met.seconds < SECONDS
    assert met.grown < MIB
    assert met.done == []


def test_nothing_of_them_was_run(found):
    """No file says that it was."""
    assert not found[1]


def test_what_is_named_is_said(found):
    """Unknown names, by their name."""
    for name, said in (("system", "posix.system"), ("eval", "builtins.eval"), ("popen", "subprocess.Popen"),
                       ("nested", "builtins.getattr"), ("old-global", "os.system")):  # fmt: skip
        assert f"names {said}, which" in found[0][name].said


def test_the_programs_are_pickles():
    """What is made by hand is what pickle itself would go through: the tests are of reading, not of bad spelling."""
    for name in ("popen", "old-global", "wide-tensor", "tensor-beyond", "stored-program", "build", "hashed-tuples"):
        assert sum(1 for _ in pickletools.genops(FILES[name]())) > 3


def test_the_peak_is_seen():
    """A reader that took 300 MiB for a moment would be found."""
    forget()
    before = peak()
    assert len(b"x" * (300 * 2**20)) > 0
    assert peak() - before > 290
