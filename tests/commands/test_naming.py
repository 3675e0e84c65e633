"""What a command works on: a YAML or a run directory as its first word, or --config; from anywhere."""

import os
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from snrkit.commands.cli import app
from snrkit.commands.naming import experiment_named, sampler_names
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
    import typer.main

    group = typer.main.get_command(app)
    without = {"check", "sweep", "average", "export", "validate", "schema", "data"}
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
