"""A network of the user's own: the file that makes it is run when the model is opened, and at no other time."""

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import snrkit as package
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.checkpoints.foreign import weights_of
from snrkit.checkpoints.python import PythonModel
from snrkit.commands import opening
from snrkit.diffusion.denoiser import EdmPrecondition, NetworkDenoiser
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.experiment import dump_yaml, file_schema, parse_experiment
from snrkit.experiment.models import FromElsewhere
from tests.small import SMALL, snrkit, written

CODE = '''
"""A network that nobody but its author knows."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Sizes:
    width: int


class Net(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(5, 8), nn.Linear(73, sizes.width), nn.Linear(sizes.width, 64)

    def forward(self, x, time, labels):
        told = torch.cat([x.flatten(1), time[:, None], self.embed(labels)], 1)
        return self.out(torch.tanh(self.mix(told))).reshape(x.shape)


def make(width=4):
    print("made")
    return Net(Sizes(width))
'''
ASKED = {key: SMALL[key] for key in ("data", "samplers", "sample", "shift", "metrics")}
MARK = "\nfrom pathlib import Path\nPath(__file__).with_name('RUN').write_text('')\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with the code of a network and its weights."""
    (tmp_path / "net.py").write_text(CODE)
    torch.save({"ema": network(tmp_path).state_dict(), "step": 7}, tmp_path / "net.pt")
    return tmp_path


def network(folder):
    """What the code makes, as a script of its author's has it, at random weights."""
    names = {"__name__": "net"}
    import sys
    from types import ModuleType

    sys.modules["net"] = ModuleType("net")
    exec((folder / "net.py").read_text(), names)
    torch.manual_seed(0)
    return names["make"](width=6)


def model(folder, **changes):
    """The part of a file."""
    return {
        "kind": "python", "module": str(folder / "net.py"), "options": {"width": 6}, "weights": str(folder / "net.pt"),
        "shape": [1, 8, 8], "process": {"kind": "edm"}, "target": {"kind": "x0"}, "precondition": {"kind": "edm"},
        "sigma_data": 0.5, "classes": 4, "null_label": 4, **changes,
    }  # fmt: skip


def file(folder, where="small.yaml", **changes):
    """A whole file, in the folder."""
    path = folder / where
    path.write_text(yaml.safe_dump({"name": "small", "model": model(folder), **ASKED, **changes}))
    return path


def loaded(folder, **changes):
    """The network as an experiment opens it."""
    return FromElsewhere(source=model(folder, **changes)).loaded().eval().requires_grad_(False)


def test_it_answers_as_the_network_that_a_script_wraps(folder, capsys):
    """Bit for bit, with labels and without; `null_label` is what no label is told as."""
    own = network(folder).eval()
    found = loaded(folder)
    assert "made" in capsys.readouterr().err
    x, level = torch.randn(3, 1, 8, 8, dtype=torch.float64), package.Edm().level(torch.tensor([0.3, -1.0, 2.0]))
    wrapped = package.wrap(own, package.Edm(), package.X0(), precondition=EdmPrecondition(), sigma_data=0.5)
    opened = NetworkDenoiser(found, package.Edm(), package.X0(), EdmPrecondition(), 0.5)
    for told, asked in (([0, 3, 2], [0, 3, 2]), ([4, 4, 4], None), ([1, 4, 0], [1, -1, 0])):
        expected = wrapped(x, level, cond=Cond(torch.tensor(told)))
        answer = opened(x, level, cond=Cond(None if asked is None else torch.tensor(asked)))
        assert torch.equal(answer.x0, expected.x0)


@pytest.mark.parametrize("form", ["safetensors", "plain", "old", "named"])
def test_its_weights_are_read_in_every_safe_form(form, folder):
    """safetensors, a state dict alone, torch's older format, and a state dict under a name."""
    weights, path, entry = network(folder).state_dict(), folder / "other", {}
    if form == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif form == "named":
        torch.save({"model": weights, "epoch": 3}, path)
        entry = {"entry": "model"}
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "plain")
    found = loaded(folder, weights=str(path), **entry)
    assert all(torch.equal(found.inner.state_dict()[name], tensor) for name, tensor in weights.items())
    assert all(tensor.dtype == torch.float32 for tensor in found.state_dict().values())


def test_it_goes_the_whole_way(folder):
    """It is sampled, measured, tuned, compared, scored and reported; what trains refuses it."""
    corrected = {**SMALL["samplers"]["euler"], "corrections": [{"kind": "epsilon_scaling", "scale": 1.01}]}
    guided = {**SMALL["samplers"]["euler"], "corrections": [{"kind": "cfg", "weight": 0.5}]}
    file(folder, samplers={"euler": SMALL["samplers"]["euler"], "es": corrected, "cfg": guided},
         tune={"seeds": "1000-1031"}, compare={"solvers": [], "timed_images": 2, "rounds": 1})  # fmt: skip
    for command in (["sample"], ["measure-shift"], ["tune", "--by", "predicted", "--sampler", "es"], ["compare"]):
        snrkit(folder, *command, "-q")
    snrkit(folder, "eval-fid", "-q")
    snrkit(folder, "report")
    run = folder / "runs/small"
    page = (run / "report.md").read_text()
    assert f"a model from elsewhere, python at {folder / 'net.py'}" in page
    assert f"Note: its network is made by the code of {folder / 'net.py'}" in page
    assert json.loads((run / "samples/euler/manifest.json").read_text())["weights"].startswith("python-")
    refused = snrkit(folder, "train", "-q", check=False)
    assert "taken as it is" in refused.stderr


def test_each_process_says_once_that_code_is_run(folder, monkeypatch):
    """By the file's name, however many commands open it."""
    said = []
    monkeypatch.setattr(opening.log, "warning", said.append)
    file(folder)
    for _ in range(2):
        snrkit(folder, "measure-shift", "-q", "--sampler", "euler")
    assert said == [f"model: the code of {folder / 'net.py'} is run, as kind python asks"]


def test_the_code_is_run_by_opening_the_model_alone(folder):
    """Not by validate, schema, a dry run, check or report: a file that it leaves is not there until it is sampled."""
    (folder / "net.py").write_text(CODE + MARK)
    path, mark = file(folder), folder / "RUN"
    snrkit(folder, "validate", path, plain=True)
    assert "is RUN when the model is opened" in json.dumps(file_schema())
    said = snrkit(folder, "sample", "--dry-run").stdout
    assert f"its network is made by the code of {folder / 'net.py'}, which is run when the model is opened" in said
    for command in ("sample", "compare", "certify"):
        planned = snrkit(folder, command, "--dry-run", "--set", "tune={seeds: 1000-1059, noises: 20}").stdout
        assert f"how long they take is not tried, as {folder / 'net.py'} would be run" in planned
    content = {"name": "small", "model": model(folder), **ASKED}
    e = parse_experiment(content, "small.yaml")
    assert parse_experiment(yaml.safe_load(dump_yaml(e)), "stored") == e
    assert weights_of(e.model.source).startswith("python-")
    assert not mark.exists()
    snrkit(folder, "sample", "-q", "--sampler", "euler")
    assert mark.exists()
    mark.unlink()
    snrkit(folder, "report")
    snrkit(folder, "check", folder / "runs/small", plain=True)
    assert not mark.exists()


@pytest.mark.parametrize("changed", ["net.py", "net.pt"])
def test_an_edited_file_is_noticed(changed, folder):
    """Images made by other code or weights are not taken for this model's."""
    file(folder)
    snrkit(folder, "sample", "-q", "--sampler", "euler")
    if changed == "net.py":
        (folder / "net.py").write_text(CODE.replace("torch.tanh", "torch.sin"))
    else:
        torch.save(network(folder).state_dict(), folder / "net.pt")
    done = snrkit(folder, "sample", "-q", "--sampler", "euler", check=False)
    assert done.returncode == 1
    assert "holds images of another sampler or checkpoint (weights" in done.stderr


def test_the_code_of_another_run_is_not_run(folder):
    """A sampler that names a run whose model is code is refused before it is opened."""
    (folder / "net.py").write_text(CODE + MARK)
    file(folder)
    snrkit(folder, "sample", "-q", "--sampler", "euler")
    (folder / "RUN").unlink()
    weak = {**SMALL["samplers"]["euler"], "corrections": [
        {"kind": "autoguidance", "weight": 0.5, "run": str(folder / "runs/small")}]}  # fmt: skip
    (folder / "mine.py").write_text(CODE)
    file(folder, "mine.yaml", name="mine", model=model(folder, module=str(folder / "mine.py")), samplers={"weak": weak})
    done = snrkit(folder, "sample", "-q", config="mine.yaml", check=False)
    assert done.returncode == 1
    assert "has a model that runs" in done.stderr
    assert done.stderr.count("snrkit: ") == 1
    assert not (folder / "RUN").exists()


FAULTS = {
    "raises": ("x = 1\n1 / 0\n", {}, r"net\.py, line 2, raised ZeroDivisionError \(division by zero\)\.$"),
    "exits": ("import sys\n\nsys.exit(3)\n", {}, r"net\.py, line 3, raised SystemExit \(3\)\.$"),
    "is-no-python": ("def make(:\n", {}, r"net\.py, line 1, raised SyntaxError"),
    "has-a-nul": ("\0", {}, r"net\.py(, line \d)?, raised (SyntaxError|ValueError)"),
    "imports-what-is-not-there": ("import no_such_package\n", {}, r"line 1, raised ModuleNotFoundError"),
    "has-no-such-function": (CODE, {"call": "build"}, r"net\.py has no function build; what can be called there is "),
    "names-a-value": ("make = 3\n", {}, r"has no function make; nothing there can be called\.$"),
    "makes-something-else": ("def make(width):\n    return 5\n", {}, r"make of .*net\.py returns a int; let it return"),
    "takes-no-such-option": (CODE, {"options": {"depth": 2}}, r"net\.py, raised TypeError .*'depth'"),
    "makes-another-size": (CODE, {"options": {"width": 5}}, r"does not fill the network .*: mix\.\w+ is \(6.* not \(5"),
    "makes-other-names": (CODE.replace("self.mix", "self.mixed"), {}, r"does not fill the network .* is unknown"),
    "terminal": ("raise ValueError('\\x1b[31m\\n' * 999)\n", {}, r"line 1, raised ValueError"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_in_the_code_is_one_sentence(name, folder):
    """With file, line and exception, and no traceback; what a later part of the text moves on a terminal is escaped."""
    code, changes, said = FAULTS[name]
    (folder / "net.py").write_text(code)
    with pytest.raises(ConfigError, match=said) as caught:
        loaded(folder, **changes)
    assert str(caught.value).startswith("model.")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ("return x[:, :, 1:]", r"the network of .*net\.py answers \(2, 1, 7, 8\) for states \(2, 1, 8, 8\)"),
        ("return None", "answers NoneType for states"),
        ("return x @ torch.zeros(3, 3)", r"net\.py, line \d+, raised RuntimeError \(mat1"),
        ("raise SystemExit(0)", r"net\.py, line \d+, raised SystemExit"),
    ],
)
def test_what_goes_wrong_in_a_call_is_one_sentence(instead, said, folder):
    """Of the line in the user's file, whatever lies below it."""
    body = "told = torch.cat([x.flatten(1), time[:, None], self.embed(labels)], 1)"
    (folder / "net.py").write_text(CODE.replace(body, instead))
    with pytest.raises(SnrkitError, match=said):
        loaded(folder)(torch.zeros(2, 1, 8, 8), torch.zeros(2), Cond(torch.tensor([0, 1])))


def test_an_interruption_is_no_fault_of_the_code(folder):
    """ctrl-C while it runs ends the command as anywhere else."""
    (folder / "net.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        loaded(folder)


class Call:
    """Pickles as a call."""

    def __reduce__(self):
        return os.system, ("touch REACHED",)


def test_weights_that_want_to_be_run_are_refused_before_the_code_is(folder, monkeypatch):
    """Nothing of them is run, and nothing of the code either."""
    monkeypatch.chdir(folder)
    (folder / "net.py").write_text(CODE + MARK)
    (folder / "evil.pt").write_bytes(pickle.dumps({"x": Call()}, protocol=2))
    torch.save({"x": Call()}, folder / "evil.zip")
    for name in ("evil.pt", "evil.zip"):
        with pytest.raises(ConfigError, match=r"model\.weights: .*evil"):
            loaded(folder, weights=name)
    assert not (folder / "RUN").exists()
    assert not (folder / "REACHED").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"module": "nowhere.py"}, "nowhere.py does not exist; a relative path in a YAML is one from that file"),
        ({"weights": "nowhere.pt"}, "model.weights: .*nowhere.pt does not exist"),
        ({"sigma_data": None}, "precondition edm: give sigma_data"),
        ({"classes": 0}, "null_label: has no effect without classes"),
        ({"call": "os.system"}, "call"),
        ({"call": "make()"}, "call"),
        ({"target": {"kind": "nothing"}}, r"model \(python\).target: unknown kind 'nothing'"),
        ({"shape": [1, 8]}, "shape"),
        ({"options": {"width": {"a": 1}}}, "options"),
    ],
)  # fmt: skip
def test_what_a_file_says_wrongly_is_told_before_anything_is_opened(changes, said, folder):
    """With the place in the file."""
    with pytest.raises(ConfigError, match=said) as caught:
        parse_experiment({"name": "x", "model": model(folder, **changes), **ASKED}, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")


def test_it_is_refused_where_it_cannot_be_trained_on(folder):
    """Its network is no plain values."""
    content = {**SMALL, "train": {**SMALL["train"], "resume_from": {"model": model(folder)}}}
    for part in ("process", "target", "precondition", "network"):
        content.pop(part)
    with pytest.raises(ConfigError, match="a model of kind python cannot be trained on"):
        parse_experiment(content, "x.yaml")


def test_opening_it_changes_nothing_else(folder):
    """Neither torch's random state nor a folder beside the code."""
    state, before = torch.get_rng_state(), written(folder)
    loaded(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert written(folder) == before


def test_the_default_is_a_function_called_make():
    """With no options, no labels and no preconditioning."""
    plain = PythonModel(module=Path("a.py"), weights=Path("a.pt"), shape=(1, 2, 2), process=package.Flow(),
                        target=package.FlowVelocity())  # fmt: skip
    assert (plain.call, plain.options, plain.classes, plain.precondition.kind) == ("make", {}, 0, "none")
