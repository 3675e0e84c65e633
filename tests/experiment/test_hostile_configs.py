"""Experiments, sweeps and settings of strangers: one sentence each, little time and memory, nothing run or told."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml

from snrkit.base.errors import ConfigError
from snrkit.base.files import checksum
from snrkit.experiment.experiment import file_schema, load_experiment
from snrkit.experiment.yaml_files import apply_settings, plain_values
from snrkit.sampling.sampler import MOST_IMAGES, parse_seeds
from tests.hostile import MIB, SECONDS, read
from tests.small import SMALL

REACHED, SECRET = "REACHED", "hunter2"
LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
TEXTS = {
    "a-number-as-key": "samplers: {1: {}}",
    "a-truth-value-as-key": "samplers: {on: {}}",
    "nothing-as-key": "~: 1",
    "nan-as-key": ".nan: 1",
    "a-list-as-key": "[a]: 1",
    "a-mapping-as-key": "? {a: 1}\n: 2",
    "a-key-twice": "seed: 1\nseed: 2",
    "a-long-number": "seed: " + "9" * 5000,
    "a-long-hexadecimal": "seed: 0x" + "f" * 900_000,
    "a-number-by-sixties": "seed: 1" + ":59" * 300_000,
    "a-fraction-by-sixties": "seed: 1" + ":59" * 3000 + ".5",
    "binary": "seed: !!binary abc",
    "a-set": "seed: !!set {x}",
    "ordered": "seed: !!omap [x: 1]",
    "pairs": "seed: !!pairs [x: 1]",
    "a-date": "seed: 2001-99-99",
    "a-tagged-date": "seed: !!timestamp x",
    "no-integer": "seed: !!int x",
    "no-truth-value": "seed: !!bool x",
    "merged": "data: &a {kind: digits}\nprocess: {<<: *a}",
    "an-object": f"data: !!python/object/apply:os.system ['touch {REACHED}']",
    "a-module": "data: !!python/module:os",
    "laughs": LAUGHS,
    "within-itself": "data: &a [*a]",
    "aliases-within-each-other": "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000))]),
    "brackets": "data: " + "[" * 500_000,
    "braces": "{a: " * 250_000,
    "dashes": "- " * 400_000,
    "many-values": "- a\n" * 250_000,
    "many-keys": "\n".join(f"k{i}: 1" for i in range(20_000)),
    "nul": 'seed: "\0"',
    "half-a-character": 'name: "\\ud800"',
    "a-terminal": '"\\e[31m\\n": 1',
    "two-documents": "seed: 1\n---\nseed: 2",
    "an-unknown-alias": f"seed: *{SECRET}",
    "an-unknown-tag": f"seed: !{SECRET} x",
    "an-open-quote": 'seed: "' + "x" * 900_000,
    "large": "#" * 2**21,
    "base-is-a-list": "base: [a, b]",
    "base-has-a-nul": 'base: "a\\0b"',
    "base-is-long": "base: " + "x" * 5000,
    "sweep-of-many": "base: benign.yaml\nseeds: " + str(list(range(999))) + "\narms: {a: [], b: []}",
    "sweep-of-one-name": "base: benign.yaml\narms: {a: [], A: []}",
    "sweep-of-another-folder": "base: benign.yaml\narms: {../a: []}",
    "sweep-with-a-number": "base: benign.yaml\narms: {1: []}",
    "sweep-of-seeds-below": "base: benign.yaml\nseeds: [-1]\narms: {a: []}",
    "sweep-of-a-device": "base: /dev/zero\narms: {a: []}",
    "utf-16": "seed: 1".encode("utf-16"),
    "no-text": b"\xff\xfe\x00\x01",
}
MANY = ("text many-keys", "text a-date", "text a-terminal")  # of several faults, one a line
BASES = ("/dev/zero", "/dev/urandom", "/dev/stdin", "pipe", "socket", "folder", "secret.txt", "absent", "benign.yaml/x")
PLACES = ("pipe", "socket", "folder.pt", "/dev/zero", "absent.pt", "benign.yaml")
OWN = [(key, path) for key in ("module", "weights") for path in (*PLACES, "loop")]  # of a model that is code
OWN += [("module", f"own-{name}.py") for name in ("raises", "leaves", "nests", "lacks", "lies")]
CODES = {
    "raises": "raise RuntimeError('no' * 9999)",
    "leaves": "raise SystemExit(0)",
    "nests": "(" * 100_000,
    "lacks": "",
    "lies": "make = lambda: 'a network'",
}
TWICE = "samplers.EULER={grid: {kind: karras}, solver: {kind: euler}}"
SETTINGS = (
    "seed=" + "9" * 5000,
    "seed=!!python/name:os.system",
    "seed={1: 2}",
    ".".join("a" * 3000) + "=1",
    "samplers.²={grid: {kind: karras}, solver: {kind: euler}}",
    "train.averages.²=1",
    "train.averages." + "9" * 5000 + "=1",
    "name=" + "x" * 101,
    "name=a.PNG",
    "name=..",
    "name=a/b",
    "samplers.a@b={grid: {kind: karras}, solver: {kind: euler}}",
    TWICE,
    'samplers={"a\\nb": {grid: {kind: karras}, solver: {kind: euler}}}',
    "sample.seeds=0-99999999999",
    "sample.seeds=0-" + "9" * 5000,
    "sample.seeds=²",
    "tune.seeds=0-99999999999",
    "seed=99999999999999999999",
    "samplers.euler.grid.steps=1000000000",
    "samplers={a: {grid: {kind: karras, steps: 10000}, solver: {kind: heun}}, "
    "b: {grid: {kind: karras, steps: 10000}, solver: {kind: heun}}, "
    "c: {grid: {kind: karras, steps: 10000}, solver: {kind: heun}}}",
    "process={kind: ddpm, steps: 1000000000}",
    "train.images=1000000000000000000",
    "train.batch=1000000000",
    "train.importance={bins: 1000000000}",
    "train.lr=.nan",
    "data.count=1000000000000",
    "data.workers=1000000",
    "data.path=x",
    "shift.bootstrap=1000000000000",
    "shift.images=1000000000000",
    "metrics.pixel_components=1000000000000",
    "sample.batch=1000000000000",
    "network.blocks=1000000000",
    "network.channels=1000000000",
    "network.channels=0",
    "network.groups=0",
    "network.head_channels=0",
    "network.multipliers=[0]",
    "network={kind: dit, heads: 0, classes: 4, augment: true}",
    "network={kind: dit, depth: -1, classes: 4, augment: true}",
    "network.channels=3",
    "network={kind: dit, dim: 4, heads: 1, classes: 4, augment: true}",
    "shift.images=19",
    "shift={images: 1000000, bootstrap: 100000}",
    "shift.window_images=7",
    "shift.horizon_images=7",
    "shift.amplification_images=1",
    "shift.audit_pairs=63",
    "shift.estimator={batch: 1}",
    "shift.estimator={channels: 3}",
    "network={kind: mlp, dim: 1, classes: 4, augment: true}",
    "network={kind: mlp, depth: 1000000000, classes: 4, augment: true}",
)  # valid as files, but for no machine
SIZES = (
    "network={kind: dit, dim: 16384, depth: 200, heads: 1, classes: 4, augment: true}",
    "network={kind: mlp, dim: 16384, depth: 500, classes: 4, augment: true}",
    "network={channels: 16384, multipliers: [100, 100, 100, 100], blocks: 32}",
    "data={shape: [3, 16384, 16384], count: 1000000}",
    "data={shape: [16384, 16384, 16384]}",
    "train.batch=1000000",
)

PROGRAM = """
import sys
from pathlib import Path
from tests.experiment import test_hostile_configs as hostile
from snrkit.base.distributed import open_world
from snrkit.commands.dry_run import check_memory
from snrkit.commands.sweep import check_file
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.opening import open_experiment, open_network
from snrkit.experiment.stored import stored_experiment

WORLD = open_world("cpu")

def start(*settings):
    opened = open_experiment(load_experiment("benign.yaml", settings), WORLD)
    check_memory(opened.experiment.training, opened.setting)

def make(setting):
    open_network((opened := open_experiment(load_experiment("benign.yaml", [setting]), WORLD)).experiment.training,
                 opened.setting)

def foreign(kind, path):
    data = {"kind": "mixture", "shape": [1, 8, 8]}
    parse_experiment({"name": "x", "data": data, "model": {"kind": kind, "path": path}}, "x.yaml")

def own(**paths):
    model = {"kind": "python", "module": "own-lies.py", "weights": "weights.pt", "shape": [1, 8, 8],
             "process": {"kind": "flow"}, "target": {"kind": "flow"}, **paths}
    data = {"kind": "mixture", "shape": [1, 8, 8]}
    parse_experiment({"name": "x", "data": data, "model": model}, "x.yaml").model.loaded()

def benign():
    start("train.batch=64")
    check_file(Path("benign.yaml"))

def cases():
    for name in hostile.TEXTS:
        yield f"text {name}", lambda: check_file(Path(f"{name}.yaml"))
    for number, _ in enumerate(hostile.BASES):
        yield f"base {number}", lambda: load_experiment(f"base-{number}.yaml")
    for number, setting in enumerate(hostile.SETTINGS):
        yield f"setting {number}", lambda: load_experiment("benign.yaml", [setting])
    for number, setting in enumerate(hostile.SIZES):
        yield f"size {number}", lambda: start(setting)
    for number, setting in enumerate(hostile.SIZES[:3]):
        yield f"network {number}", lambda: make(setting)
    for kind in ("edm", "adm", "dit", "diffusers"):
        for path in hostile.PLACES:
            yield f"model {kind} {path}", lambda: foreign(kind, path)
    for key, path in hostile.OWN:
        yield f"own {key} {path}", lambda: own(**{key: path})
    yield "stored", lambda: stored_experiment(Path("stranger"))
"""


def names():
    """Of all cases."""
    numbered = (("base", BASES), ("setting", SETTINGS), ("size", SIZES), ("network", SIZES[:3]))
    models = [f"model {kind} {path}" for kind in ("edm", "adm", "dit", "diffusers") for path in PLACES]
    counted = [f"{kind} {k}" for kind, inputs in numbered for k in range(len(inputs))]
    own = [f"own {key} {path}" for key, path in OWN]
    return [*(f"text {name}" for name in TEXTS), *counted, *models, *own, "stored"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every case met with; nothing more lies in the folder than before."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "benign.yaml").write_text(yaml.safe_dump(SMALL))
    for name, text in TEXTS.items():
        (folder / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for number, base in enumerate(BASES):
        (folder / f"base-{number}.yaml").write_text(f"base: {base}")
    for name in ("folder", "folder.pt", "stranger"):
        (folder / name).mkdir()
    (folder / "secret.txt").write_text(f'root: "{SECRET}\nx: [{SECRET}')
    body = "base: ../benign.yaml\n"
    (folder / "stranger" / "config.yaml").write_text(f"{body}# checksum: {checksum(body.encode())}\n")
    for name, code in CODES.items():
        (folder / f"own-{name}.py").write_text(code)
    torch.save({"weight": torch.zeros(1)}, folder / "weights.pt")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    before, here = {p.name for p in folder.rglob("*")}, Path.cwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(folder)  # a socket's path is short
        try:
            listening.bind("socket")
        finally:
            os.chdir(here)
        met = read(folder, PROGRAM)
    assert {p.name for p in folder.rglob("*")} == {*before, "socket"}
    return met


def test_every_case_is_read(found):
    """None is left out."""
    assert list(found) == names()
    assert len(found) > 100


@pytest.mark.parametrize("name", names())
def test_a_hostile_input_ends_in_one_sentence(found, name):
    """Within 5 CPU seconds, with at most 200 MiB more than before; nothing is written, started or connected to."""
    met = found[name]
    assert not met.said.startswith(("READ", "RAISED")), met.said
    faults = met.said.splitlines()
    assert len(faults) == 1 or name in MANY
    assert all(len(fault) <= 1000 and fault.isprintable() for fault in faults)
    assert SECRET not in met.said or name == "text an-unknown-tag"
    assert met.seconds < SECONDS
    assert met.grown < MIB
    assert met.done == []


def test_the_harness_sees_what_it_looks_for(tmp_path):
    """A case that hangs on to memory, that writes, and one that starts a program."""
    lines = f"""
from pathlib import Path
import subprocess
def benign():
    pass
def cases():
    yield "large", lambda: len(b"x" * (300 * 2**20))
    yield "writes", lambda: Path("{REACHED}").write_text("")
    yield "starts", lambda: subprocess.run(["true"])
    yield "raises", lambda: 1 / 0
"""
    met = read(tmp_path, lines)
    assert met["large"].grown > 290
    assert met["writes"].done == [f"wrote {REACHED}"]
    assert "subprocess.Popen" in met["starts"].done
    assert met["raises"].said.startswith("RAISED ZeroDivisionError")


def test_what_to_do_is_said(found):
    """A key that is no text is to be quoted, a stranger's config.yaml has no base, a device is no file."""
    assert "line 1, column 12: this key is no text to YAML" in found["text a-number-as-key"].said
    assert "quote it" in found["text a-truth-value-as-key"].said
    assert "is whole and has none" in found["stored"].said
    assert found["base 0"].said.endswith("base-0.yaml: base: /dev/zero is no file but a device; give a regular file.")
    assert "pipe is no file but a named pipe" in found["model edm pipe"].said
    assert "differ in upper and lower case alone" in found[f"setting {SETTINGS.index(TWICE)}"].said
    assert "there are more faults than these 30" in found["text many-keys"].said
    assert "parameters need" in found["size 0"].said
    assert "parameters take" in found["network 0"].said


def test_names_are_read_as_they_are_written(tmp_path):
    """A date is a text; so is any key that is quoted; a mark of the byte order is no character of the first key."""
    assert plain_values("name: 2024-01-01") == {"name": "2024-01-01"}
    assert plain_values("'1': a\n'on': b") == {"1": "a", "on": "b"}
    assert apply_settings({}, ["name=2001-99-99"]) == {"name": "2001-99-99"}
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(SMALL).encode())
    assert load_experiment(tmp_path / "x.yaml").name == "small"


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_libyaml_and_pyyaml_read_the_same(monkeypatch):
    """The configs of the repository, and what strangers write, with libyaml's events and with PyYAML's own."""
    own = [path.read_text() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]
    texts = [*own, *(text for text in TEXTS.values() if isinstance(text, str) and len(text) < 10_000)]

    def read_values(text):
        try:
            return repr(plain_values(text))
        except ValueError:
            return ValueError

    fast = [read_values(text) for text in texts]
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert fast == [read_values(text) for text in texts]
    assert ValueError in fast
    assert ValueError not in fast[: len(own)]


def test_a_base_may_lie_anywhere(tmp_path):
    """For a user's own file: beside, above, or by its whole path."""
    (tmp_path / "a").mkdir()
    (tmp_path / "benign.yaml").write_text(yaml.safe_dump(SMALL))
    for number, base in enumerate(("../benign.yaml", str(tmp_path / "benign.yaml"))):
        (tmp_path / "a" / f"{number}.yaml").write_text(f"base: {base}\nseed: 7")
        assert load_experiment(tmp_path / "a" / f"{number}.yaml").seed == 7
    (tmp_path / "0.yaml").write_text("base: benign.yaml")
    for number in range(1, 40):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number - 1}.yaml")
    with pytest.raises(ConfigError, match="more than 20 files"):
        load_experiment(tmp_path / "39.yaml")


def test_seeds_are_ranges_however_many_they_are():
    """What a list of them would say: length, order, places, slices, members and what two have in common."""
    text = "5-9,0-3,20"
    seeds, listed = parse_seeds(text), [5, 6, 7, 8, 9, 0, 1, 2, 3, 20]
    assert list(seeds) == listed
    assert len(seeds) == len(listed)
    assert [seeds[k] for k in range(-10, 10)] == [listed[k] for k in range(-10, 10)]
    for part in (slice(None), slice(2, 7), slice(-3, None), slice(None, None, -2), slice(4, 4)):
        assert seeds[part] == listed[part]
    assert [seed in seeds for seed in range(25)] == [seed in listed for seed in range(25)]
    with pytest.raises(IndexError):
        seeds[10]
    other = parse_seeds("3-5,19-30")
    assert seeds.shared(other) == other.shared(seeds) == len(set(seeds) & set(other)) == 3
    assert len(parse_seeds(f"1-{MOST_IMAGES}")) == MOST_IMAGES
    with pytest.raises(ValueError, match="at most"):
        parse_seeds(f"0-{MOST_IMAGES}")
    with pytest.raises(ValueError, match="repeat"):
        parse_seeds(f"0-{MOST_IMAGES},7")


def unbounded(node, path=()):
    """Where a schema takes integers, lists, mappings or texts of any size."""
    if isinstance(node, list):
        for k, part in enumerate(node):
            yield from unbounded(part, (*path, k))
    if not isinstance(node, dict):
        return
    fixed = {"const", "enum"} & set(node)
    bounds = {"integer": ("maximum", "exclusiveMaximum"), "array": ("maxItems",), "string": ("maxLength",)}
    kind = node.get("type")
    named = kind == "object" and isinstance(node.get("additionalProperties"), dict)
    needs = ("maxProperties",) if named else bounds.get(kind, ()) if isinstance(kind, str) else ()
    if needs and not fixed and node.get("format") != "path" and not any(bound in node for bound in needs):
        yield ".".join(map(str, path))
    for key, part in node.items():
        yield from unbounded(part, (*path, key))


def test_every_number_list_and_text_of_a_file_has_a_bound():
    """So that what is made of a stranger's file has one; a path's length is checked beside the schema."""
    assert list(unbounded(file_schema())) == []
    assert list(unbounded(json.loads('{"type": "integer"}'))) == [""]
    assert list(unbounded({"a": {"type": "array", "items": {"type": "string"}}})) == ["a", "a.items"]
    with pytest.raises(ConfigError, match="no file has such a path"):
        load_experiment(
            Path(__file__).parents[2] / "configs" / "digits.yaml", ["train.resume_from={run: " + "x" * 300 + "}"]
        )
