"""The machine that runs pickles: of plain values it makes what pickle makes, of anything else what has no effect."""

import pickle
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import SnrkitError
from snrkit.checkpoints.machine import Allowance, Name, Record, program
from snrkit.checkpoints.pickles import meaning, read_pickle
from snrkit.checkpoints.torch_files import read_torch
from tests.checkpoints.test_hostile_files import FOUR, REBUILD, benign, entry, named, saved, text, weights

LEAVES = st.none() | st.booleans() | st.integers(-(2**500), 2**500) | st.floats(allow_nan=False) | st.text(max_size=300)
KEYS = st.text("abc.0 é", max_size=40) | st.integers(-(2**63), 2**63) | st.booleans() | st.none()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=30,
)


def run(content):
    """The value of a pickle, and what is behind it."""
    found, rest = program(memoryview(content), Allowance())
    return found.run(meaning), bytes(rest)


@given(value=VALUES, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_values_are_those_of_pickle(value, protocol):
    """Of every protocol from 2 on, whatever lies behind the pickle."""
    content = pickle.dumps(value, protocol=protocol)
    assert run(content + b"rest") == (pickle.loads(content), b"rest")


@given(members=st.sets(st.text(max_size=5) | st.integers(0, 300)), protocol=st.sampled_from([2, 4]))
def test_sets_are_lists_of_their_members(members, protocol):
    """In any order."""
    found, _ = run(pickle.dumps(members, protocol=protocol))
    assert isinstance(found, list)
    assert len(found) == len(members)
    assert set(found) == members


@given(content=st.binary(max_size=400), protocol=st.sampled_from([3, 4, 5]))
def test_byte_strings_are_views_of_the_file(content, protocol):
    """What is written to the file is seen in them."""
    data = bytearray(pickle.dumps({"x": content, "y": [content]}, protocol=protocol))
    found, _ = program(memoryview(data), Allowance())
    view = found.run(meaning)["x"]
    assert view == content
    data[:] = bytes(255 - byte for byte in data)
    assert view == bytes(255 - byte for byte in content)


def test_every_part_of_a_program_is_refused():
    """A pickle that ends early is no pickle, wherever it ends."""
    content = pickle.dumps({"x": [1, 2.5, None, ("text", 10**30)], "y": b"bytes", "z": {1, 2}}, protocol=4)
    for end in range(len(content)):
        with pytest.raises(SnrkitError):
            run(content[:end])


@pytest.mark.parametrize("state", [b"]" + text("os.system") + b"a", b"N}" + text("full") + text("x") + b"s\x86", b"}"])
def test_a_name_keeps_its_name(state):
    """A state that it is given changes nothing, whatever form the state has."""
    found, _ = run(b"\x80\x04" + named("torch.nn.modules", "X") + state + b"b)R.")
    assert isinstance(found, Record)
    assert found.name == "torch.nn.modules.X"


def tensor_after(done, tmp_path):
    """What a tensor is after a program did something with it; it was four zeros."""
    tensor = REBUILD + FOUR + b"R\x94"
    (tmp_path / "x.pkl").write_bytes(entry(b"(" + tensor + done + b"1h\x00"))
    return read_pickle(tmp_path / "x.pkl")["ema"]


@pytest.mark.parametrize("state", [b"(NNNNt", b"}" + text("data") + b"Ns", b"N"])
def test_a_state_does_not_reach_a_tensor(state, tmp_path):
    """It is as it was stored."""
    assert torch.equal(tensor_after(state + b"b", tmp_path), torch.zeros(4))


def test_no_item_of_a_tensor_is_set(tmp_path):
    """The file is refused."""
    with pytest.raises(SnrkitError, match="does not support item assignment"):
        tensor_after(b"K\x00G" + struct.pack(">d", 5) + b"s", tmp_path)


def test_calls_become_records_of_what_was_asked():
    """By name, arguments and state."""
    found, _ = run(pickle.dumps(torch.nn.ReLU(), protocol=4))
    assert isinstance(found, Record)
    assert (found.name, found.args) == ("torch.nn.modules.activation.ReLU", ())
    assert found.state["inplace"] is False
    name, _ = run(pickle.dumps(torch.nn.ReLU, protocol=4))
    assert isinstance(name, Name)


def refusal(read, path):
    """Why a file is not read; None where it is."""
    try:
        read(path)
    except SnrkitError as error:
        return str(error)


CONTENTS = {
    "pickle": lambda: pickle.dumps({"ema": benign()}, protocol=4),
    "zip": lambda: saved(weights()),
    "older": lambda: saved(weights(), zipped=False),
}


@pytest.mark.parametrize("kind", CONTENTS)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(kind, data, tmp_path_factory):
    """A file with other bytes in it holds something, or ends in one sentence."""
    content = bytearray(CONTENTS[kind]())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 3000)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    said = refusal(read_pickle if kind == "pickle" else read_torch, path)
    assert said is None or (said.startswith(str(path)) and "\n" not in said)
