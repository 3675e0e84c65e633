"""What a command works on: a YAML or a run directory as its first word, or --config; from anywhere."""

import os
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import typer.main

from snrkit.commands.cli import app
from snrkit.commands.naming import experiment_named, sampler_names, setting_keys
from snrkit.experiment.run import Run
from tests.small import SMALL, call, load_images, snrkit, write_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained small model."""
    folder = tmp_path_factory.mktemp("naming")
    write_config(folder)
    snrkit(folder, "train", "-q")
    return folder


def test_a_file_and_a_run_directory_are_the_experiment(trained, tmp_path, monkeypatch):
    """By the first word, from another folder, the same images come out; --runs is the directory's own."""
    run = Run(trained / "runs/small")
    done = call("sample", str(trained / "small.yaml"), "--runs", str(trained / "runs"), "--sampler", "euler", "-q")
    assert done.returncode == 0, done.stderr
    before = load_images(run.samples("euler"), range(4))
    monkeypatch.chdir(tmp_path)
    done = call("sample", str(run.path), "--sampler", "euler", "--overwrite", "-q")
    assert done.returncode == 0, done.stderr
    assert (load_images(run.samples("euler"), range(4)) == before).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a YAML file, a run directory or demo, such as snrkit train mine.yaml"),
        (["small.yaml", "--config", "small.yaml"], "name the experiment once"),
        (["nowhere"], "nowhere is neither a YAML file nor a run directory"),
        (["absent.yaml"], "absent.yaml does not exist"),
    ],
)
def test_what_names_no_experiment_is_refused(trained, monkeypatch, words, said):
    """In one sentence."""
    monkeypatch.chdir(trained)
    done = call("train", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_command_on_an_experiment_takes_a_first_word():
    """Those with --config and no words of their own."""
    group = typer.main.get_command(app)
    without = {"check", "sweep", "average", "export", "validate", "schema", "data", "init", "push"}
    for name, command in group.commands.items():
        names = {parameter.name for parameter in command.params}
        assert name in without or names & {"what", "directories", "images", "model"}, name


def test_the_folder_of_runs_may_be_said_once(trained, tmp_path):
    """By SNRKIT_RUNS, where no --runs is given."""
    with patch.dict(os.environ, {"SNRKIT_RUNS": str(trained / "runs")}):
        done = call("sample", str(trained / "small.yaml"), "--sampler", "euler", "--set", "sample.seeds=0-3", "-q")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_help_has_a_short_name():
    """-h, of all commands."""
    for words in ([], ["sample"], ["data", "encode"]):
        done = call(*words, "-h")
        assert done.returncode == 0
        assert "Usage" in done.stdout


def test_samplers_are_completed(trained):
    """Of the file or the run that is named; of what cannot be read none."""
    every = sampler_names(SimpleNamespace(params={"what": str(trained / "small.yaml")}), "")
    assert set(every) == set(SMALL["samplers"])
    run = SimpleNamespace(params={"what": str(trained / "runs/small"), "config": None})
    first = every[0]
    assert first in sampler_names(run, first[:2])
    assert sampler_names(SimpleNamespace(params={"config": "absent.yaml"}), "") == []
    assert experiment_named(trained, trained) is None


def test_keys_are_completed(trained):
    """Of the file that is named, with the = that follows; of what cannot be read none."""
    found = setting_keys(SimpleNamespace(params={"what": str(trained / "small.yaml")}), "train.b")
    assert found == ["train.batch="]
    assert "sample.seeds=" in setting_keys(SimpleNamespace(params={"config": str(trained / "small.yaml")}), "")
    assert setting_keys(SimpleNamespace(params={"what": "absent.yaml"}), "") == []
    assert "model.kind=" in setting_keys(SimpleNamespace(params={"what": "demo"}), "model")


def test_every_command_has_an_example_that_it_takes():
    """At the end of its help; its words are parsed without a fault."""
    group = typer.main.get_command(app)
    commands = {**group.commands, **{f"data {name}": found for name, found in group.commands["data"].commands.items()}}
    for name in set(commands) - {"data"}:
        line = commands[name].epilog.removeprefix("Example: ").split(" > ")[0]
        assert line.startswith(f"snrkit {name}"), name
        commands[name].make_context(name, line.removeprefix(f"snrkit {name}").split())


@pytest.mark.parametrize("name", ["éclair", "数字-13", "Übung_2.b", "проба"])
def test_names_are_of_any_script(trained, tmp_path, name):
    """Of a run and of a sampler, from training to the page."""
    samplers = {name: SMALL["samplers"]["euler"]}
    write_config(tmp_path, name=name, samplers=samplers, train={**SMALL["train"], "images": 128})
    settings = ["--set", "sample={seeds: 0-15, batch: 16}", "--set", "shift.probes=[]"]
    snrkit(tmp_path, "run", "-q", *settings)
    run = tmp_path / "runs" / name
    assert name in (run / "report.html").read_text()
    assert (run / "metrics" / f"{name}.json").exists()
    assert snrkit(tmp_path, "check", run, plain=True).returncode == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("e\u0301clair", "composed form"),
        ("a²", "composed form"),
        ("ﬁne", "composed form"),
        ("数" * 40, "100 bytes"),
        ("a\u202eb", "a name begins with a letter or digit"),
        ("a b", "a name begins with a letter or digit"),
        ("_a", "a name begins with a letter or digit"),
        ("\u200ba", "a name begins with a letter or digit"),
    ],
)
def test_names_that_systems_would_not_keep_are_refused(tmp_path, name, said):
    """Composed otherwise, too long, or with what does not show."""
    write_config(tmp_path, name=name)
    done = snrkit(tmp_path, "train", check=False)
    assert done.returncode == 1
    assert said in done.stderr


def test_validate_opens_the_images_where_it_is_asked_to(tmp_path):
    """What they are; what is not there; a network that does not take them."""
    write_config(tmp_path)
    assert "data:" not in snrkit(tmp_path, "validate", tmp_path / "small.yaml", plain=True).stdout
    said = snrkit(tmp_path, "validate", "--data", tmp_path / "small.yaml", plain=True).stdout
    assert said.splitlines() == [
        f"{tmp_path / 'small.yaml'}: valid", "data: 400 images (1, 8, 8), 369 to train on, 31 held out",
    ]  # fmt: skip
    for data, fault in (
        ({"kind": "folder", "path": "nowhere"}, "nowhere"),
        ({"kind": "mixture", "shape": [1, 7, 7], "count": 400, "components": 4}, "network: "),
    ):
        write_config(tmp_path, data=data, network={**SMALL["network"], "multipliers": [1, 2]})
        assert snrkit(tmp_path, "validate", tmp_path / "small.yaml", plain=True).returncode == 0
        done = snrkit(tmp_path, "validate", "--data", tmp_path / "small.yaml", plain=True, check=False)
        assert done.returncode == 1
        assert fault in done.stderr


def test_three_images_are_too_few_to_measure_with(tmp_path):
    """Whatever share is held out; the remedy is more of them."""
    write_config(tmp_path, data={**SMALL["data"], "count": 30})
    snrkit(tmp_path, "train", "-q", "--set", "train.images=128")
    done = snrkit(tmp_path, "measure-shift", "--set", "train.images=128", check=False)
    assert done.returncode == 1
    assert "data: 30 images are too few to measure with" in done.stderr
    assert "holdout" not in done.stderr
