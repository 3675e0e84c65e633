"""hf:owner/name wherever a path may stand, and push: on a folder that stands in for the Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from snrkit.base import hub
from snrkit.base.errors import ConfigError
from snrkit.base.hub import chosen, fetched, lasting, local, place_of
from snrkit.base.starters import STARTERS
from snrkit.checkpoints.foreign import digest_of
from snrkit.commands.certify_model import write_experiment
from snrkit.data import Folder
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.run import Run
from snrkit.shift.bootstrap import FEWEST
from tests.small import SMALL, call, load_images, snrkit, write_config

pytest.importorskip("huggingface_hub", reason="the package huggingface_hub is not installed")
from tests.hub_folder import FolderHub, check_as_the_package

PARTS = ("process", "target", "precondition", "levels", "weighting", "network", "train")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The stand-in, empty, with nothing fetched before."""
    found = FolderHub(tmp_path / "hub", tmp_path / "hub-cache")
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "hub_package", lambda: found)
    monkeypatch.setattr("snrkit.commands.push.hub_package", lambda: found)
    hub._fetched.cache_clear()
    yield found
    hub._fetched.cache_clear()


def test_the_stand_in_is_called_as_the_hub():
    """By the names that the package's own calls have."""
    check_as_the_package()


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("hf:me/mine", ("me/mine", "model", None, "")),
        ("hf://me/mine/unet", ("me/mine", "model", None, "unet")),
        ("hf:me/mine@v1.0/a/b.safetensors", ("me/mine", "model", "v1.0", "a/b.safetensors")),
        ("hf:datasets/me/mine/train.zip", ("me/mine", "dataset", None, "train.zip")),
    ],
)
def test_what_a_path_names(path, named):
    """A repository, a revision, and what lies in it; also as a Path, which joins slashes."""
    assert tuple(place_of(Path(path))) == named


@pytest.mark.parametrize("path", ["hf:", "hf:mine", "hf:me/mine/../../x", "hf:me/mi ne", "hf:me/mine@"])
def test_what_names_nothing_is_refused(path):
    """In one sentence."""
    with pytest.raises(ConfigError, match="names nothing on the Hub"):
        place_of(Path(path))


def test_of_a_model_configurations_and_safe_weights_are_fetched():
    """Pickles only where there is nothing else; of a data set everything; of a folder what lies within."""
    files = ["config.json", "unet/model.safetensors", "unet/model.bin", "unet/config.json", "a.onnx", "train.py"]
    model = place_of(Path("hf:me/mine"))
    assert chosen(files, model) == ["config.json", "unet/config.json", "unet/model.safetensors"]
    assert chosen([f for f in files if "safe" not in f], model) == ["config.json", "unet/config.json", "unet/model.bin"]
    assert chosen(files, place_of(Path("hf:me/mine/unet"))) == ["unet/config.json", "unet/model.safetensors"]
    assert chosen(files, place_of(Path("hf:me/mine/train.py"))) == ["train.py"]
    assert chosen(files, place_of(Path("hf:datasets/me/mine"))) == files
    mixed = ["vae/a.safetensors", "vae/a.bin", "unet/b.bin"]  # one folder's safetensors say nothing of another's
    assert chosen(mixed, model) == ["vae/a.safetensors", "unet/b.bin"]


def test_a_run_goes_to_the_hub_and_comes_back_to_the_same_bits(tmp_path, remote, monkeypatch):
    """By push, and by model: {kind: snrkit, path: hf:...}; certify and init take the same name."""
    write_config(tmp_path, sample={"seeds": "0-31", "batch": 16})
    snrkit(tmp_path, "run", "-q", "--set", "train.images=640", "--set", "shift.probes=[]")
    run = tmp_path / "runs/small"
    said = snrkit(tmp_path, "push", run, "hf:me/mine", plain=True).stdout
    assert "hf:me/mine/snrkit.safetensors" in said
    there = tmp_path / "hub/models/me/mine"
    assert sorted(path.name for path in there.iterdir()) == ["README.md", "experiment.yaml", "snrkit.safetensors"]
    assert str(tmp_path) not in "".join(path.read_text() for path in there.iterdir() if path.suffix != ".safetensors")
    front = yaml.safe_load((there / "README.md").read_text().split("---")[1])
    scores = json.loads((run / "metrics/euler.json").read_text())
    values = [metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert scores["summary"][scores["decided_by"]]["mean"] in values
    rest = {key: value for key, value in SMALL.items() if key not in PARTS}
    model = {"kind": "snrkit", "path": "hf:me/mine/snrkit.safetensors"}
    (tmp_path / "x.yaml").write_text(json.dumps({**rest, "name": "x", "model": model}))
    e = load_experiment(tmp_path / "x.yaml")
    assert str(e.model.source.path) == model["path"]
    snrkit(tmp_path, "sample", "-q", "--set", "sample={seeds: 0-7, batch: 8}", config="x.yaml")
    ours, theirs = (load_images(Run(tmp_path / "runs" / name).samples("euler"), range(8)) for name in ("small", "x"))
    assert torch.equal(ours, theirs)
    snrkit(tmp_path, "push", run, "hf:me/raw", "--average", "network", plain=True)  # of which nothing was measured
    card = (tmp_path / "hub/models/me/raw/README.md").read_text()
    assert "model-index" not in card
    assert "| euler |" not in card
    monkeypatch.chdir(tmp_path)
    assert call("init", "y.yaml", "--from", model["path"]).returncode == 0
    assert str(load_experiment("y.yaml").model.source.path) == model["path"]
    assert remote.fetches == ["snrkit.safetensors"]


def test_images_of_the_hub_are_those_of_the_folder(tmp_path, remote):
    """Of a repository of data sets; the value goes on naming the Hub."""
    folder = tmp_path / "hub/datasets/me/photos/train"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(folder / f"{i}.png")
    named, here = Folder(path="hf:datasets/me/photos/train"), Folder(path=folder)
    assert torch.equal(fetched(named).open().pixels(range(4)), here.open().pixels(range(4)))
    assert torch.equal(named.open().pixels(range(4)), here.open().pixels(range(4)))
    assert str(named.path) == "hf:datasets/me/photos/train"


def test_commands_take_what_the_hub_holds_as_they_take_a_folder(tmp_path, remote, monkeypatch):
    """Images and models, wherever a command asks for one; what is written goes on naming the Hub."""
    monkeypatch.chdir(tmp_path)
    folder, named = tmp_path / "hub/datasets/me/photos", "hf:datasets/me/photos"
    folder.mkdir(parents=True)
    for i in range(2 * FEWEST):
        Image.new("L", (8, 8), 5 * i).save(folder / f"{i:02d}.png")
    (tmp_path / "hub/models/me/mine").mkdir(parents=True)
    shutil.copyfile(STARTERS / "digits.safetensors", tmp_path / "hub/models/me/mine/digits.safetensors")
    for source, out in ((named, "theirs.zip"), (str(folder), "ours.zip")):
        assert call("data", "pack", source, "-o", out, "--size", "8").returncode == 0
    assert Path("theirs.zip").read_bytes() == Path("ours.zip").read_bytes()
    done = call("eval-fid", named, str(folder), "--set", "features=pixels", "--json")
    assert json.loads(done.stdout)["fd"] == pytest.approx(0, abs=1e-9)
    assert call("init", "x.yaml", "--data", named).returncode == 0
    assert str(load_experiment("x.yaml").data.path) == named
    made = write_experiment(Path("hf:me/mine/digits.safetensors"), Path(named), 13)
    assert str(load_experiment(made).data.path) == named
    done = call("init", "y.yaml", "--data", f"{named}/nowhere")
    assert done.returncode == 1
    assert "holds nothing at nowhere" in done.stderr


def test_a_scheduler_of_the_hub_is_audited_without_its_weights(tmp_path, remote, monkeypatch):
    """By the name of the repository, of which the scheduler's folder alone is fetched."""
    diffusers = pytest.importorskip("diffusers", reason="the package diffusers is not installed")
    there = tmp_path / "hub/models/me/flow"
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(there / "scheduler")
    (there / "unet").mkdir()
    (there / "unet/model.safetensors").write_bytes(b"\0")
    done = call("audit", "hf:me/flow", "--steps", "4", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "every level told is that of the state" in done.stdout
    assert not list((tmp_path / "hub-cache").rglob("*.safetensors"))
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "hub/models/me/alone")
    assert call("audit", "hf:me/alone", "--steps", "4", "--device", "cpu").returncode == 0


def put(folder, files):
    """Files of a byte each."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def again():
    """As another process would begin."""
    hub._fetched.cache_clear()


def test_what_was_fetched_is_there_without_a_network(tmp_path, remote):
    """Though the repository holds files that are not wanted; what was not fetched is refused in one sentence."""
    put(tmp_path / "hub/models/me/mine", ("config.json", "README.md", ".gitattributes"))
    first = local(Path("hf:me/mine"))
    again()
    remote.reachable = False
    assert local(Path("hf:me/mine")) == first
    with pytest.raises(ConfigError, match="hf:me/other cannot be fetched"):
        local(Path("hf:me/other"))
    (first / "config.json").unlink()
    again()
    with pytest.raises(ConfigError, match="no earlier fetch of it is whole on this machine"):
        local(Path("hf:me/mine"))
    remote.reachable = True
    with pytest.raises(ConfigError, match=r"holds nothing at nowhere that can be read"):
        local(Path("hf:me/mine/nowhere"))


@pytest.mark.parametrize("tolerant", [False, True])
def test_half_a_fetch_is_no_data_set(tmp_path, remote, tolerant):
    """Whatever the package does where the network breaks: refused then and without a network, whole when it is back."""
    put(tmp_path / "hub/datasets/me/photos", [f"{i}.png" for i in range(10)])
    remote.breaks, remote.tolerant = 5, tolerant
    for reachable in (True, False):
        remote.reachable = reachable
        again()
        with pytest.raises(ConfigError, match="hf:datasets/me/photos cannot be fetched"):
            local(Path("hf:datasets/me/photos"))
    remote.reachable, remote.breaks = True, None
    again()
    assert len(list(local(Path("hf:datasets/me/photos")).iterdir())) == 10


def test_names_are_no_patterns(tmp_path, remote):
    """A file whose name is a pattern is fetched, alone too; a data set costs one pattern, or none."""
    put(tmp_path / "hub/datasets/me/photos", ("a[1]/img[1].png", "a[1]/2.png", "a1/3.png"))
    put(tmp_path / "hub/models/me/mine", ("a[1].json", "a1.json.py"))
    for path, files in (
        ("hf:datasets/me/photos/a[1]/img[1].png", {"a[1]/img[1].png"}),
        ("hf:datasets/me/photos/a[1]", {"a[1]/img[1].png", "a[1]/2.png"}),
        ("hf:datasets/me/photos", {"a[1]/img[1].png", "a[1]/2.png", "a1/3.png"}),
        ("hf:me/mine", {"a[1].json"}),
    ):
        remote.fetches.clear()
        assert local(Path(path)).exists()
        assert set(remote.fetches) == files
    assert [None if p is None else len(p) for p in remote.patterns] == [1, 1, None, 1]


def test_weights_of_the_hub_are_what_is_fetched_of_it(tmp_path, remote):
    """What other programs add to the same folder changes no name; a bit of what is read does."""
    put(tmp_path / "hub/models/me/mine", ("config.json", "unet/a.safetensors"))
    folder = local(Path("hf:me/mine"))
    before = digest_of(Path("hf:me/mine"))
    assert before == digest_of(folder)
    put(folder, ("README.md", "unet/a.fp16.safetensors"))
    assert digest_of(Path("hf:me/mine")) == before
    assert digest_of(folder) != before
    (folder / "unet/a.safetensors").write_text("[]")
    assert digest_of(Path("hf:me/mine")) != before


def test_code_of_the_hub_is_not_run(tmp_path, remote):
    """A file of Python is the user's own, whatever it is called."""
    rest = {key: value for key, value in SMALL.items() if key not in PARTS}
    model = {
        "kind": "python", "module": "hf:me/mine/net.py", "weights": "w.pt", "shape": [1, 8, 8],
        "process": {"kind": "flow"}, "target": {"kind": "flow"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="code of the Hub is not run"):
        parse_experiment({**rest, "model": model}, "x.yaml")
    assert not remote.fetches


@pytest.mark.parametrize("to", ["me/mine", "hf:mine", "hf:datasets/me/mine", "hf:me/mine/x"])
def test_a_run_is_pushed_to_a_repository_of_a_model(tmp_path, remote, to):
    """And to nothing else."""
    done = snrkit(tmp_path, "push", tmp_path, to, plain=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "hf:owner/name" in done.stderr


def test_what_a_path_names_is_written_without_steps_up(tmp_path, monkeypatch):
    """Absolute; a link stays one where it can, and is followed where a step up would leave it for another folder."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    monkeypatch.chdir(tmp_path / "a")
    assert lasting(Path("../a/b")) == tmp_path / "a/b"
    assert lasting(Path("b")) == tmp_path / "a/b"
    assert lasting(tmp_path / "link") == tmp_path / "link"
    assert lasting(tmp_path / "link/../b") == tmp_path / "a/b"
    assert lasting(Path("../link")) == tmp_path / "link"
    assert lasting(Path("b/..")) == tmp_path / "a"
