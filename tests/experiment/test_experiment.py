"""One YAML: inheritance, overrides, and messages that name every fault at once."""

import json
from pathlib import Path

import pytest
import yaml

from snrkit.base.errors import ConfigError
from snrkit.commands.sweep import load_sweep, sweep_trials
from snrkit.data.files import Folder
from snrkit.diffusion.process import Edm
from snrkit.experiment.experiment import dump_yaml, file_schema, load_experiment, parse_experiment
from snrkit.experiment.yaml_files import apply_settings, merge, read_yaml
from snrkit.sampling.corrections import Dcw
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.sampler import Sampler

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
EXPERIMENTS = [
    path
    for folder in ("configs", "studies")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
    if "\narms:" not in path.read_text()
]
SMALL = {
    "name": "small",
    "data": {"kind": "digits", "sigma_data": 0.75},
    "process": {"kind": "edm"},
    "target": {"kind": "x0"},
    "precondition": {"kind": "edm"},
    "levels": {"kind": "lognormal"},
    "weighting": {"kind": "edm"},
    "network": {"kind": "mlp", "dim": 16},
    "train": {"images": 640, "batch": 64},
    "samplers": {"euler": {"grid": {"kind": "karras", "steps": 5}, "solver": {"kind": "euler"}}},
}


def changed(*settings):
    return parse_experiment(apply_settings(SMALL, settings), "small.yaml")


def fault(*settings):
    with pytest.raises(ConfigError) as error:
        changed(*settings)
    return str(error.value).splitlines()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.name)
def test_every_shipped_config_is_valid(path):
    """What we ship loads, and its resolved form loads to the same."""
    experiment = load_experiment(path)
    assert parse_experiment(yaml.safe_load(dump_yaml(experiment)), "dump") == experiment


def test_a_dump_holds_every_default_and_reads_back():
    """The resolved config is complete: loading it needs no default."""
    experiment = changed()
    content = yaml.safe_load(dump_yaml(experiment))
    assert content["process"] == {"kind": "edm", "sigma_min": 0.002, "sigma_max": 80.0}
    assert parse_experiment(content, "dump") == experiment


def test_base_is_a_deep_merge_with_the_child_on_top(tmp_path):
    """Mappings merge, lists and scalars replace, another kind replaces whole, bases chain."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntrain: {lr: 1e-3}\nprocess: {sigma_max: 50}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nname: c\nprocess: {kind: flow}\n")
    b, c = load_experiment(tmp_path / "b.yaml"), load_experiment(tmp_path / "c.yaml")
    assert (b.train.lr, b.train.images, b.process.sigma_max, b.process.sigma_min) == (1e-3, 640, 50, 0.002)
    assert (c.name, c.train.lr, c.process.kind) == ("c", 1e-3, "flow")
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    with pytest.raises(ConfigError, match="leads back to itself"):
        load_experiment(tmp_path / "loop.yaml")
    assert merge({"a": {"x": 1}, "l": [1]}, {"a": {"y": 2}, "l": [2]}) == {"a": {"x": 1, "y": 2}, "l": [2]}


def test_settings_reach_any_depth():
    """Numbers, mappings, list indices; a bad path or value is refused."""
    dcw = "samplers.euler.corrections=[{kind: dcw, pixel: 0.1}]"
    experiment = changed("train.lr=3e-4", dcw, "samplers.euler.corrections.0.pixel=-0.2")
    assert experiment.train.lr == 3e-4
    assert experiment.samplers["euler"].corrections[0].pixel == -0.2
    for setting, words in (("train.lr", "path=value"), ("train.lr={", "not valid YAML")):
        with pytest.raises(ConfigError, match=words):
            changed(setting)
    with pytest.raises(ConfigError, match="not an index"):
        changed(dcw, "samplers.euler.corrections.3.pixel=1")


def test_all_faults_are_shown_at_once_with_path_and_remedy():
    """Unknown key with the near miss, unknown kind with those known, value out of range, missing key."""
    lines = fault(
        "samplers.euler.corrections=[{kind: dcw, hi: 1}]",
        "network.dims=3",
        "target.kind=noise",
        "train.lr=-1",
        "seed=x",
    )
    text = "\n".join(lines)
    assert "small.yaml: samplers.euler.corrections.0 (dcw): unknown key 'hi'. Did you mean 'high'? Known" in text
    assert "small.yaml: network (mlp): unknown key 'dims'. Did you mean 'dim'?" in text
    assert "small.yaml: target: unknown kind 'noise'. Known kinds: x0, eps, v, flow, score" in text
    assert "small.yaml: train.lr: input should be greater than 0, not -1" in text
    assert "small.yaml: seed:" in text
    assert len(lines) == 5
    both = "\n".join(fault("train.lr=-1", "train.batch=100", "train.label_dropout=0.1", "train.adam_betas=[2, 3]"))
    assert "greater than 0, not -1" in both
    assert "must lie in [0, 1)" in both
    mixed = "\n".join(fault("train.warmup=-1", "train.batch=100", "train.label_dropout=0.1", "bogus=1"))
    for words in ("train.warmup", "train.batch: 100 is not", "train.label_dropout: has no effect", "bogus"):
        assert words in mixed
    content = {key: value for key, value in SMALL.items() if key != "target"}
    with pytest.raises(ConfigError, match="missing key 'target'"):
        parse_experiment(content, "small.yaml")


def test_a_word_that_is_nearly_right_is_told_what_would_be():
    """A kind as a key, and seeds below 0 as such."""
    (kind,) = fault("network.kind=mlpp")
    assert "network: unknown kind 'mlpp'. Did you mean 'mlp'? Known kinds: unet, dit, mlp" in kind
    (seeds,) = fault("sample.seeds=-5-3")
    assert "sample.seeds: seeds '-5-3' are below 0; seeds begin at 0" in seeds


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dcw(lo=0.1), "Dcw: unknown key 'lo'. Did you mean 'low'? Known keys: kind, pixel, low, high"),
        (lambda: UniformTime(steps=0), "UniformTime: steps: input should be greater than or equal to 1, not 0"),
        (lambda: Edm(sigma_min=3, sigma_max=1), "Edm: sigma_min 3.0 must be below sigma_max 1.0"),
        (lambda: Sampler(grid=Karras(), solver={"kind": "eulr"}), "Sampler: solver: unknown kind 'eulr'. Did you mean"),
    ],
)
def test_python_hears_the_words_of_files(make, said):
    """Arguments that a Value does not take: one line, no page of pydantic's, and an error that both worlds know."""
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(said)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


def test_a_base_that_is_not_there_is_told_with_who_asks_for_it(tmp_path):
    """Both files by their paths."""
    (tmp_path / "child.yaml").write_text("base: absent.yaml\n")
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "child.yaml")
    assert str(error.value) == (
        f"{tmp_path / 'child.yaml'}: base: {tmp_path / 'absent.yaml'} does not exist; name another file, by its path "
        "from this one's folder."
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.batch=100"], "train.batch: 100 is not a multiple of slice"),
        (["train.label_dropout=0.1"], "train.label_dropout: has no effect without labels"),
        (["train.augment={kind: edm}"], "needs network.augment: true"),
        (["network.augment=true"], "needs network.augment: true"),
        (["network.scalars=[a]"], "network.scalars"),
        (["process={kind: ddpm, steps: 2, betas: {kind: trained_betas, values: [.1, 1]}}", "target={kind: eps}"],
         "zero terminal SNR"),
        (["samplers.euler.corrections=[{kind: cfg, weight: 1}]"], "cfg.*needs a network with classes"),
        (["samplers.euler.grid={kind: trailing}"], "samplers.euler: grid trailing needs"),
        (["process={kind: ddpm}", "samplers.euler.grid.steps=900"], "at most"),
        (["process={kind: flow}", "target={kind: eps}", "samplers.euler.grid={kind: uniform_time}"], "pure noise"),
        (["process={kind: flow}", "samplers.euler.grid={kind: uniform_time}",
          "samplers.euler.corrections=[{kind: epsilon_scaling, scale: 1.1}]"], "undefined at alpha = 0"),
        (["sample.average=ema-7"], "unknown weights 'ema-7'. Known: ema-500000, network"),
        (["sample.labels=3"], "sample.labels: 3 is not below"),
        (["sample.seeds=9-1"], "sample.seeds"),
        (["name=a/b"], "name"),
        (["metrics.ranges=900"], "metrics.ranges: 900 ranges need"),
        (["metrics={weights: x.pth}"], "weights have no effect"),
        (["train.averages=[{half_life: 5}, {half_life: 5}]"], "same name"),
        (["process={sigma_max: 1, sigma_min: 2}"], "must be below"),
        (["data.sigma_data=0"], "data.*sigma_data"),
        (["train.adam_betas=[2, 3]"], "must lie in"),
        (["train.decay=rsqrt"], "needs decay_from"),
        (["train.decay_from=5"], "no effect with decay constant"),
        (["metrics.pixel_components=8"], "pixel_components has no effect"),
        (["metrics.download=true"], "download has no effect"),
        (["data={}", "data.kind=null"], "data"),
    ],
)  # fmt: skip
def test_what_cannot_act_is_refused(settings, words):
    """A setting that would have no effect, or cannot work, is an error with its place."""
    import re

    assert any(re.search(words, line) for line in fault(*settings)), fault(*settings)


def test_files_that_are_no_experiments(tmp_path):
    """Missing file, broken YAML, a list, a key given twice, bytes that are no text."""
    cases = {"broken.yaml": b"a: [", "list.yaml": b"- 1", "twice.yaml": b"a: 1\na: 2", "bytes.yaml": b"\xff\xfe\x00"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name, words in (
        ("absent.yaml", "does not exist"), ("broken.yaml", "not valid YAML"), ("list.yaml", "is a mapping"),
        ("twice.yaml", "given twice"), ("bytes.yaml", "is no text in UTF-8"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            read_yaml(tmp_path / name)


def test_the_schema_describes_what_is_accepted():
    """Every field of the experiment and every kind appears in the JSON schema."""
    schema = file_schema()
    assert "base" in schema["properties"]
    assert "required" not in schema
    text = json.dumps(schema)
    for word in ("heun", "squaredcos_cap_v2", "epsilon_scaling", "lognormal", "sigma_data", "half_life"):
        assert word in text


def test_values_are_immutable_and_hashable():
    """Frozen: a value can be a dictionary's key and never changes under one's hands."""
    experiment = changed()
    assert hash(experiment.process) == hash(changed().process)
    with pytest.raises(ValueError, match="frozen"):
        experiment.train.lr = 3


def test_the_training_part_is_what_decides_the_weights():
    """Samplers, logging and compute do not change it; data, level sampler and a decayed run's length do."""
    base = changed().training_part()
    for free in (
        "samplers={}",
        "train.log_every=7",
        "shift.images=29",
        "train.images=1280",
        "data.workers=2",
        "data.holdout=0.1",
    ):
        assert changed(free).training_part() == base
    for bound in (
        "seed=1",
        "levels.mean=0",
        "network.dim=32",
        "train.lr=1e-4",
        "train.noise_dropout=0.1",
        "data.holdout=0.2",
    ):
        assert changed(bound).training_part() != base
    assert (
        changed("train.decay=cosine").training_part()
        != changed("train.decay=cosine", "train.images=1280").training_part()
    )


def test_a_relative_path_is_one_from_the_file_that_says_it(tmp_path, monkeypatch):
    """Of a YAML, of its base, of a sweep's arms: their own folders; of --set: the working directory."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.yaml").write_text(yaml.safe_dump(SMALL | {"data": {"kind": "folder", "path": "images"}}))
    (tmp_path / "mine.yaml").write_text("base: base/base.yaml\ntrain: {resume_from: {run: ../other}}\n")
    (tmp_path / "sweep.yaml").write_text("base: mine.yaml\narms: {a: [data.path=b/images], b: ['data={path: /c}']}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (tmp_path / "mine.yaml", Path("../mine.yaml")):
        experiment = load_experiment(path)
        assert experiment.data.path.resolve() == tmp_path / "base" / "images"
        assert experiment.data.path.is_absolute()
        assert experiment.train.resume_from.run.resolve() == tmp_path.parent / "other"
        assert parse_experiment(yaml.safe_load(dump_yaml(experiment)), "dump") == experiment
    assert load_experiment(path, ["data.path=here"]).data.path == tmp_path / "elsewhere" / "here"
    trials = sweep_trials(load_sweep(Path("../sweep.yaml")), "sweep", ["train.batch=32"])
    assert [t.experiment.data.path.resolve() for t in trials] == [tmp_path / "b" / "images", Path("/c")]
    assert changed("data.kind=zip", "data.path=here").data.path == tmp_path / "elsewhere" / "here"
    assert Folder(path="here").path == Path("here")
