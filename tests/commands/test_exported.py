"""A run in one file of snrkit's: it samples to the same bits, trains on from there, and is not believed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.exported import SnrkitModel
from snrkit.checkpoints.models import kinds_of
from snrkit.commands.export import run_exporting
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.run import Run
from tests.small import SMALL, load_images, snrkit, write_config

PARTS = ("process", "target", "precondition", "levels", "weighting", "network", "train")
GUIDED = {
    "euler": SMALL["samplers"]["euler"],
    "untold": {
        **SMALL["samplers"]["euler"], "corrections": [{"kind": "noise_awareness", "weight": 0.5}],
    },
    "cfg": {**SMALL["samplers"]["euler"], "corrections": [{"kind": "cfg", "weight": 0.5}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, a trained run's file)."""
    folder = tmp_path_factory.mktemp("exported")
    write_config(folder, samplers=GUIDED, sample={"seeds": "0-7", "batch": 8})
    snrkit(folder, "train", "-q", "--set", "train.images=640")
    found = json.loads(snrkit(folder, "export", folder / "runs/small", "--to", "snrkit", "--json", plain=True).stdout)
    return folder, found["path"]


def model(path):
    return {"kind": "snrkit", "path": str(path)}


def test_it_samples_to_the_same_bits(exported, tmp_path):
    """Plain, guided without labels, and guided without the level: what it can be asked travels with it."""
    folder, path = exported
    snrkit(folder, "sample", "-q", "--set", "train.images=640")
    rest = {key: value for key, value in SMALL.items() if key not in PARTS}
    (tmp_path / "x.yaml").write_text(json.dumps({**rest, "samplers": GUIDED, "model": model(path)}))
    snrkit(tmp_path, "sample", "-q", "--set", "sample={seeds: 0-7, batch: 8}", config="x.yaml")
    for name in GUIDED:
        ours, theirs = (load_images(Run(f / "runs/small").samples(name), range(8)) for f in (folder, tmp_path))
        assert torch.equal(ours, theirs)
    assert load_images(Run(folder / "runs/small").samples("cfg"), range(8)).float().std() > 0
    assert kinds_of(SnrkitModel(path=path).path) == ("snrkit",)


def test_it_is_trained_on_as_it_is(exported):
    """Its parts are the run's own, and a fine-tune begins with its weights."""
    folder, path = exported
    e = load_experiment(folder / "small.yaml")
    rest = {key: value for key, value in SMALL.items() if key in ("name", "data", "levels", "weighting")}
    train = {**SMALL["train"], "resume_from": {"model": model(path)}}
    tuned = parse_experiment({**rest, "train": train}, "tuned.yaml")
    for part in ("process", "target", "precondition", "network"):
        assert getattr(tuned, part) == getattr(e, part)
    weights = load_file(path)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in tuned.train.resume_from.model.load().state_dict().items()
    }
    (folder / "tuned.yaml").write_text(json.dumps({**rest, "name": "tuned", "train": train}))
    settings = ["--set", "train.images=64", "--set", "train.lr=1e-30", "--set", "train.warmup=0"]
    snrkit(folder, "train", "-q", *settings, config="tuned.yaml")
    after = load_file(folder / "runs/tuned/checkpoints/000000064/network.safetensors")
    assert all(torch.equal(after[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (None, "does not say that snrkit export --to snrkit wrote it"),
        ("{", "does not hold JSON"),
        ("[]", "describes an impossible"),
        (lambda about: about | {"format": 2}, "impossible format"),
        (lambda about: about | {"shape": [1, 8]}, "impossible shape"),
        (lambda about: about | {"network": about["network"] | {"channels": 16}}, "other weights than its header says"),
        (lambda about: about | {"network": {"kind": "mlp"}}, "other weights than its header says"),
        (lambda about: about | {"sigma_data": float("nan")}, "impossible sigma_data"),
    ],
)
def test_a_header_that_says_what_cannot_be_is_refused(exported, tmp_path, said, fault):
    """In one sentence, without a network of another size."""
    path = exported[1]
    about = json.loads(SnrkitModel(path=path).about().model_dump_json())
    text = said if said is None or isinstance(said, str) else json.dumps(said(about))
    save_file(load_file(path), tmp_path / "x.safetensors", None if text is None else {"snrkit": text})
    with pytest.raises(ConfigError, match=fault):
        SnrkitModel(path=tmp_path / "x.safetensors").load()


def test_what_is_no_file_of_it_is_refused(tmp_path):
    """An absent one, another format, a damaged one."""
    (tmp_path / "text").write_text("{}" * 40)
    (tmp_path / "cut").write_bytes((400).to_bytes(8, "little") + b"{" + b" " * 30)
    for name, fault in (("absent", "cannot be opened"), ("text", "no safetensors file"), ("cut", "no whole")):
        with pytest.raises(ConfigError, match=f"model.path: .*{fault}"):
            SnrkitModel(path=tmp_path / name).describe()


def test_an_export_does_not_replace_another(exported, tmp_path):
    """Nothing is written over; another place and other weights may be named."""
    folder, path = exported
    before, again = Path(path).read_bytes(), ("export", folder / "runs/small", "--to", "snrkit")
    done = snrkit(folder, *again, "--average", "network", plain=True, check=False)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    assert snrkit(folder, *again, plain=True).returncode == 0  # it is the very file
    assert Path(path).read_bytes() == before
    made = run_exporting(folder / "runs/small", "snrkit", tmp_path / "new" / "x.safetensors", "network")
    assert (made.weights, made.images) == ("network", 640)
