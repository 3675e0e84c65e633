"""Experiments whose model comes from elsewhere: what it brings, what it leaves to the user, what it refuses."""

import json

import pytest
import torch

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.experiment.experiment import ComputeConfig, dump_yaml, parse_experiment
from snrkit.experiment.opening import open_experiment, resolve_precision
from snrkit.sampling.step import Capabilities
from tests.small import snrkit, written
from tests.spectral.test_levels import WORLD

diffusers = pytest.importorskip("diffusers")
STEPS = {"grid": {"kind": "trailing", "steps": 3}, "solver": {"kind": "euler"}}
ASKED = {
    "data": {"kind": "digits"},
    "samplers": {"ddim": STEPS, "dcw": {**STEPS, "corrections": [{"kind": "dcw", "low": 0.1}]}},
    "sample": {"seeds": "0-47", "batch": 16},
    "shift": {"images": 48, "bootstrap": 100, "probes": ["window", "audit"]},
    "metrics": {"features": "classifier", "ranges": 2},
    "tune": {"seeds": "1000-1031"},
    "compare": {"solvers": [{"kind": "heun"}], "timed_images": 8, "rounds": 1},
}


def experiment(folder, **changes):
    """The parsed experiment."""
    named = {"kind": "diffusers", "path": str(folder), "null_label": 10}
    return parse_experiment({"name": "theirs", "model": named, **ASKED, **changes}, "theirs.yaml")


def test_a_model_brings_process_target_and_labels(model):
    """And these are not written into the resolved file, which reads back as the same experiment."""
    e = experiment(model)
    assert (e.process.kind, e.target.kind, e.network.classes) == ("ddpm", "eps", 10)
    assert e.model.parts.capabilities == Capabilities(labels=True, unlabelled=True, untold=False)
    text = dump_yaml(e)
    assert "betas" not in text
    assert "train" not in text
    import yaml

    assert parse_experiment(yaml.safe_load(text), "stored") == e


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": {"kind": "x0"}}, "target: has no effect, as `model` brings its own"),
        ({"model": {"kind": "diffusers"}}, "missing key 'path'"),
        ({"model": {"kind": "diffusers", "path": "nowhere"}}, "nowhere does not exist"),
        ({"model": {"kind": "diffusers", "path": "x", "pat": "y"}}, "unknown key 'pat'"),
    ],
)
def test_what_a_model_cannot_be_given_is_said(model, changes, said):
    """One line, with the file and the path in it."""
    with pytest.raises(ConfigError, match=said) as caught:
        experiment(model, **changes)
    assert str(caught.value).startswith("theirs.yaml: ")


def test_images_of_another_shape_are_refused(model):
    """Both shapes are named."""
    with pytest.raises(ConfigError, match="images are 3x8x8, and the model's 1x8x8"):
        open_experiment(experiment(model, data={"kind": "gaussian", "shape": [3, 8, 8], "count": 64}), WORLD)


def test_labels_that_the_images_lack_are_refused(model):
    """Without null_label, the eleventh is a label like the others."""
    with pytest.raises(ConfigError, match=r"the model has 11 labels, but digits has 10; .*model.null_label"):
        open_experiment(experiment(model, model={"kind": "diffusers", "path": str(model)}), WORLD)


def test_the_whole_path_runs_on_a_model_from_elsewhere(model, tmp_path):
    """run, compare and tune work and say what was found; train, analyze and fit-estimator of its training do not."""
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps({"model": {"kind": "diffusers", "path": str(model), "null_label": 10}, **ASKED}))
    snrkit(tmp_path, "run", "-q", config="theirs.yaml")
    run = tmp_path / "runs" / "theirs"
    shift = json.loads((run / "shift" / "ddim.json").read_text())
    assert shift["audit"] is None
    assert shift["mean_norm_gap"]["low"] < shift["mean_norm_gap"]["high"]
    report = (run / "report.md").read_text()
    assert "a model from elsewhere, diffusers" in report
    assert "clip_x0" in report
    record = json.loads(snrkit(tmp_path, "compare", "-q", "--json", config="theirs.yaml").stdout)
    assert {row["name"] for row in record["rows"]} >= {"ddim", "dcw"}
    snrkit(tmp_path, "tune", "-q", "--by", "predicted", "--sampler", "dcw", config="theirs.yaml")
    before = written(run)
    for command in (["train", "-q"], ["analyze"]):
        done = snrkit(tmp_path, *command, config="theirs.yaml", check=False)
        assert done.returncode == 1
        assert "taken as it is" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert written(run) == before


def test_a_model_is_described_once_and_says_nothing_of_training(model, monkeypatch):
    """One reading of its configuration serves every part; levels, weighting and train are refused, not made up."""
    asked = []
    describe = DiffusersModel.describe
    monkeypatch.setattr(DiffusersModel, "describe", lambda self: asked.append(self) or describe(self))
    e = experiment(model)
    parts = (e.process, e.target, e.precondition, e.network, e.model.parts.levels, e.training_part(), dump_yaml(e))
    assert len(asked) == 1
    assert parts[:4] == (e.model.parts.process, e.model.parts.target, e.model.parts.precondition, e.model.parts.network)
    assert not {"levels", "weighting", "train"} & set(e.model_dump())
    for name in ("levels", "weighting", "train"):
        with pytest.raises(ConfigError, match="taken as it is"):
            getattr(e, name)


def test_a_wrong_kind_is_recognised(model, tmp_path):
    """Each file, taken for another kind, is called by its own."""
    from tests.checkpoints import test_edm_files, test_hostile_files
    from tests.networks import test_adm

    pickled = test_edm_files.file_of("edm", tmp_path)
    torch.save(test_hostile_files.weights(), tmp_path / "dit.pt")
    test_adm.saved("plain", test_adm.theirs("plain"), tmp_path)
    for path, kinds in ((model, "diffusers"), (pickled, "edm"), (tmp_path / "dit.pt", "dit or sit"),
                        (tmp_path / "adm.pt", "adm")):  # fmt: skip
        wrong = [kind for kind in ("diffusers", "edm", "dit", "sit") if kind not in kinds]
        for kind in wrong:
            with pytest.raises(ConfigError, match=rf"It looks like kind: {kinds}\.$") as caught:
                experiment(model, model={"kind": kind, "path": str(path)})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "begins", "said"),
    [
        ("edm", b"PK\x03\x04rest", "It is a file of torch's, which adm, dit and sit read."),
        ("diffusers", b"\x80\x04rest", "It is a pickle, which edm reads, or an older file"),
        ("edm", b"\x89HDF\r\n", "It is an HDF5 file, which no kind reads."),
        ("edm", b"\x40" + bytes(7) + b'{"a":', "It is a safetensors file, of which kind diffusers reads the folder"),
        ("diffusers", b"PK\x03\x04rest", "is no folder, .* It is a file of torch's, which adm, dit and sit read."),
        ("edm", b"<html>", "is no pickle.$"),
    ],
)
def test_a_file_of_another_format_is_called_by_its_own(kind, begins, said, tmp_path):
    """By its first bytes, where its content says no more; of an unknown one nothing is guessed."""
    (tmp_path / "x.bin").write_bytes(begins)
    with pytest.raises(ConfigError, match=said) as caught:
        experiment(tmp_path, model={"kind": kind, "path": str(tmp_path / "x.bin")})
    assert "\n" not in str(caught.value)


def test_a_changed_model_is_noticed(model, tmp_path):
    """Images made with other weights are not taken for this model's."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (tmp_path / "small.yaml").write_text(
        json.dumps({"model": {"kind": "diffusers", "path": str(copy), "null_label": 10}, **ASKED})
    )
    snrkit(tmp_path, "sample", "-q", "--sampler", "ddim")
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = snrkit(tmp_path, "sample", "-q", "--sampler", "ddim", check=False)
    assert done.returncode == 1
    assert "holds images of another sampler or checkpoint (weights" in done.stderr


def test_a_network_of_kind_foreign_needs_a_model():
    """It cannot be trained."""
    from tests.small import SMALL

    with pytest.raises(SnrkitError, match="network: unknown kind 'foreign'"):
        parse_experiment({**SMALL, "network": {"kind": "foreign", "shape": [1, 8, 8]}}, "small")


def test_precision_is_not_lowered_unasked(model, monkeypatch):
    """On a GPU `auto` is bf16 for our own networks and fp32 for others, whose rounding would be taken for shift."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    auto, gpu = ComputeConfig(), torch.device("cuda")
    assert resolve_precision(auto, gpu).precision == "bf16"
    assert resolve_precision(auto, gpu, known=False).precision == "fp32"
    asked = ComputeConfig(precision="bf16")
    assert resolve_precision(asked, gpu, known=False).precision == "bf16"
    assert open_experiment(experiment(model), WORLD).experiment.compute.precision == "fp32"
