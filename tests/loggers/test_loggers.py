"""What is logged is what the run's own files say, once, under one log for a run; and nothing of it moves a number."""

import csv
import json
import logging
import shutil
import sqlite3
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.base.records import read_record
from snrkit.base.sealed import finite
from snrkit.base.value import Value
from snrkit.commands.sweep import Trial, row_path
from snrkit.experiment import loggers
from snrkit.experiment.experiment import Experiment, load_experiment, parse_experiment
from snrkit.experiment.loggers import open_loggers
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_experiment
from snrkit.loggers import sending
from snrkit.loggers.mlflow import MLflow
from snrkit.metrics.records import SamplerScores
from tests.loggers.reading import pictures, scalars, wandb_files, wandb_records, wandb_rows
from tests.small import SMALL, snrkit, write_config, written
from tests.toys import member

EULER = {"euler": SMALL["samplers"]["euler"]}
TRAIN = {
    **SMALL["train"], "images": 640, "decay": "constant", "augment": None, "averages": [{"half_life": 500}],
    "save_every": 320, "log_every": 128, "holdout_every": 320,
}  # fmt: skip
PLAIN = {
    "train": TRAIN, "network": {**SMALL["network"], "augment": False}, "samplers": EULER,
    "sample": {"seeds": "0-15", "batch": 8}, "shift": {"images": 32, "batch": 32, "bootstrap": 100},
}  # fmt: skip
KINDS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
AFTER = (["sample"], ["measure-shift"], ["eval-fid"])  # commands that log beside train


@pytest.fixture(scope="module", autouse=True)
def _own_places(tmp_path_factory):
    """No logger reads or writes outside the folders of these tests, or tells anybody of itself."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_DIR", "TRACKIO_DIR", "HF_HOME"):
            patch.setenv(name, str(home / name.lower()))
        for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def whole_path(folder, log):
    """Train, lose the newest checkpoint as a kill before it would, go on, and run the commands that follow."""
    write_config(folder, **PLAIN, log=log)
    snrkit(folder, "train", "-q")
    shutil.rmtree(folder / "runs/small/checkpoints/000000640")
    for arguments in (["train"], *AFTER):
        done = snrkit(folder, *arguments, "-q")
        assert not done.stderr
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without loggers, trained and sampled."""
    folder = tmp_path_factory.mktemp("plain")
    write_config(folder, **PLAIN)
    for command in ("train", "sample"):
        snrkit(folder, command, "-q")
    return folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run that all loggers follow whose packages are there."""
    folder = tmp_path_factory.mktemp("logged")
    every = [
        {"kind": "tensorboard"}, {"kind": "mlflow", "folder": str(folder / "store")}, {"kind": "trackio"},
        {"kind": "wandb", "mode": "offline", "folder": str(folder / "wandb"), "project": "mine"},
    ]  # fmt: skip
    there = [log for log in every if find_spec(log["kind"]) is not None]
    return whole_path(folder, there) if there else pytest.skip("no package of a logger is installed")


@pytest.fixture
def of_tensorboard(logged):
    """The run, where TensorBoard is there; and so for the others."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    return logged


@pytest.fixture
def of_wandb(logged):
    pytest.importorskip("wandb", reason="wandb is not installed")
    return logged


@pytest.fixture
def of_mlflow(logged):
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    return logged


@pytest.fixture
def of_trackio(logged):
    pytest.importorskip("trackio", reason="trackio is not installed")
    return logged


def wanted(folder):
    """(name, images, value) of every number that is to be logged, by the run's own files."""
    run, found = folder / "runs/small", []
    for line in map(json.loads, (run / "train.jsonl").read_text().splitlines()):
        kind, images = line.pop("kind"), line.pop("images")
        for key, value in line.items():
            if kind == "train" and isinstance(value, int | float):
                found.append((f"train/{key}", images, value))
            if kind == "held_out" and key in ("loss", "eps_error"):
                found.append((f"held_out/{key}", images, fmean(value)))
    for key, entry in read_record(SamplerScores, run / "metrics/euler.json").summary.items():
        error = None if entry.error is None else entry.error.whole
        values = {key: entry.mean, f"{key}_std": entry.std, f"{key}_error": error}
        found += [(f"scores/euler/{name}", 640, value) for name, value in values.items() if value is not None]
    shift = json.loads((run / "shift/euler.json").read_text())
    found += [
        (f"shift/euler/{key}", 640, value["value"])
        for key, value in shift.items()
        if isinstance(value, dict) and isinstance(value.get("value"), float)
    ]
    return sorted(found)


def rows(folder):
    """The rows of measure-shift, {column: numbers}, with their steps; None where a number is not finite."""
    with (folder / "runs/small/shift/euler.csv").open() as file:
        table = list(csv.DictReader(file))
    found = {key: [finite(float(row[key])) for row in table] for key in table[0]}
    return {"step": list(range(len(table))), **found}


def weights(folder):
    """All tensors of all checkpoints, as bytes by file."""
    checkpoints = folder / "runs/small/checkpoints"
    return {
        (path.relative_to(checkpoints), name): tensor.numpy().tobytes()
        for path in sorted(checkpoints.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def bare_log(folder):
    """The training log without what a clock says."""
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second", "checksum")}
        for line in (folder / "runs/small/train.jsonl").read_text().splitlines()
    ]


def same_numbers(folder, other):
    """Whether two runs are the same training and made the same images, bit for bit."""
    made = [{p.name: p.read_bytes() for p in (f / "runs/small/samples").rglob("*.png")} for f in (folder, other)]
    return weights(folder) == weights(other) and bare_log(folder) == bare_log(other) and made[0] == made[1]


def png_of(folder):
    """The picture of the run's images."""
    return folder / "runs/small/samples/euler.png"


def timeless(found):
    """Without what a clock says: of what is made again, loggers have the first, the log has the second."""
    return sorted(entry for entry in found if entry[0] not in ("train/seconds", "train/images_per_second"))


def by_name(found):
    """(name, images, value) of {name: [(images, value)]}."""
    return sorted((name, images, value) for name, points in found.items() for images, value in points)


class Noted:
    """A log in memory."""

    def __init__(self, source, until=None):
        self.key, self.until = source.key or "first", until
        self.found = []

    def numbers(self, images, values):
        if self.until is not None and images >= self.until:
            raise OSError("the network is gone")
        self.found += [(name, images, value) for name, value in values.items()]

    def table(self, images, name, columns):
        self.found.append((name, images, {key: list(column) for key, column in columns.items()}))

    def picture(self, images, name, path):
        self.found.append((name, images, path.read_bytes()))

    def close(self, failed):
        self.found.append(("closed", failed, None))


class Noting(Value):
    """A logger as a test defines it for itself."""

    kind: Literal["noting"] = "noting"
    place: str = "here"
    until: int | None = None  # images from which on it takes no lines
    purges: ClassVar[bool] = False
    opened: ClassVar[list[tuple[object, Noted]]] = []

    def check(self):
        pass

    def open(self, source):
        self.opened.append((source, Noted(source, self.until)))
        return self.opened[-1][1]


class Failing(Noting):
    """One that goes wrong where it is told to."""

    kind: Literal["failing"] = "failing"
    at: Literal["open", "numbers", "close"]

    def open(self, source):
        log = Noted(source)
        if self.at == "open":
            raise OSError("the network is gone")
        setattr(log, self.at, self.gone)
        return log

    @staticmethod
    def gone(*arguments):
        raise OSError("the network is gone")


@pytest.fixture
def noting():
    """What loggers of kind noting are opened with and take, in the order of opening."""
    Noting.opened.clear()
    with member(Experiment, "log", Noting):
        yield Noting.opened


def test_a_new_logger_gets_what_every_command_makes(tmp_path, noting, plain):
    """Numbers, curves and pictures as the run's files have them, at the images of the weights; nothing moves."""
    whole_path(tmp_path, [{"kind": "noting"}])
    assert same_numbers(tmp_path, plain)
    commands = [log.found for _, log in noting]
    assert len(commands) == 5
    assert all(found.pop() == ("closed", False, None) for found in commands)
    trained, again, sampled, measured, scored = commands
    png = (tmp_path / "runs/small/samples/euler.png").read_bytes()
    assert sampled == [("samples/euler", 640, png)]
    table = next(entry for entry in measured if entry[0] == "shift/euler")
    assert table == ("shift/euler", 640, rows(tmp_path))
    numbers = [entry for entry in [*trained, *again, *measured, *scored] if entry is not table]
    assert timeless(numbers) == timeless(wanted(tmp_path))


def test_a_killed_training_goes_on_in_its_own_log(tmp_path, noting):
    """It is told the key of its log, and is handed nothing that it had before; one at another place begins anew."""
    write_config(tmp_path, **PLAIN, log=[{"kind": "noting"}])
    snrkit(tmp_path, "train", "-q")
    shutil.rmtree(tmp_path / "runs/small/checkpoints/000000640")
    snrkit(tmp_path, "train", "-q", "--set", "train.images=896")
    (first, log), (second, more) = noting
    assert (first.key, first.images, first.name) == (None, 0, "small")
    assert (second.key, second.images) == ("first", 320)
    assert [i for name, i, _ in log.found if name == "train/loss"] == [128, 256, 384, 512, 640]
    assert [i for name, i, _ in more.found if name == "train/loss"] == [768, 896]
    snrkit(tmp_path, "train", "-q", "--set", "train.images=1024", "--set", "log=[{kind: noting, place: there}]")
    third, last = noting[2]
    assert third.key is None
    assert [i for name, i, _ in last.found if name == "train/loss"] == [1024]


@pytest.mark.parametrize("until", [384, 256])
def test_a_logger_that_failed_is_handed_what_is_made_again_from_there(tmp_path, noting, until):
    """It took nothing of what the run went on to log without it, and gets that as soon as it is made again."""
    write_config(tmp_path, **PLAIN, log=[{"kind": "noting", "until": until}])
    snrkit(tmp_path, "train", "-q")
    shutil.rmtree(tmp_path / "runs/small/checkpoints/000000640")
    snrkit(tmp_path, "sample", "-q", "--set", "log=[{kind: noting}]")  # which leaves how far it came
    snrkit(tmp_path, "train", "-q", "--set", "log=[{kind: noting}]")
    took = [[i for name, i, _ in log.found if name == "train/loss"] for _, log in noting]
    assert took == [[i for i in (128, 256, 384) if i < until], [], [384, 512, 640]]


def test_how_far_a_logger_has_come_is_rarely_written(tmp_path, noting, monkeypatch):
    """As it begins and at the end of a short command; with no pause between, by every line."""
    written = []
    monkeypatch.setattr(loggers, "write_json", lambda path, content: written.append(content["had"]))
    experiment = parse_experiment({**SMALL, "log": [{"kind": "noting"}]}, "small")
    for every, wanted in ((60.0, [0, 3]), (0.0, [0, 1, 2, 3])):
        written.clear()
        monkeypatch.setattr(loggers, "EVERY", every)
        with open_loggers(experiment, Run(tmp_path), World(0, 1, torch.device("cpu")), 0) as opened:
            for images in (1, 2, 3):
                opened.line({"kind": "train", "images": images, "loss": 1.0})
        assert written == wanted


@pytest.mark.parametrize("address", ["postgresql://u:se/cret@db/mlflow", "http://u:secret@host:5000", "sqlite:///x.db"])
def test_a_record_holds_no_password_of_a_server(monkeypatch, address):
    """Nor does a changed one begin another log; another server does."""

    def place(address):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        return MLflow().place

    assert "secret" not in place(address)
    assert place(address.replace("secret", "other")) == place(address)
    assert place(address.replace("db", "there").replace("host", "there")) != place(address)


def test_a_logger_that_purges_is_handed_all_that_is_made_again(tmp_path, noting, monkeypatch):
    """It forgets what lies beyond the checkpoint itself."""
    monkeypatch.setattr(Noting, "purges", True)
    write_config(tmp_path, **PLAIN, log=[{"kind": "noting"}])
    snrkit(tmp_path, "train", "-q")
    shutil.rmtree(tmp_path / "runs/small/checkpoints/000000640")
    snrkit(tmp_path, "train", "-q")
    again = [i for name, i, _ in noting[1][1].found if name == "train/loss"]
    assert again == [384, 512, 640]


@pytest.mark.parametrize("at", ["open", "numbers", "close"])
def test_a_logger_that_fails_is_a_warning(tmp_path, plain, at):
    """One, and the run is what it is without it."""
    write_config(tmp_path, **PLAIN, log=[{"kind": "failing", "at": at}])
    with member(Experiment, "log", Failing):
        done = snrkit(tmp_path, "train", "-q")
    assert [line for line in done.stderr.splitlines() if "log (failing)" in line] == done.stderr.splitlines()
    assert len(done.stderr.splitlines()) == 1
    assert "the network is gone; the run goes on without it" in done.stderr
    assert bare_log(tmp_path) == bare_log(plain)
    assert weights(tmp_path) == weights(plain)


def test_a_logger_that_hangs_is_not_waited_for(monkeypatch, caplog):
    """Beyond the patience at the end; what cannot be held any more is dropped. Both are one warning."""
    monkeypatch.setattr(sending, "PATIENCE", 0.01)
    monkeypatch.setattr(sending, "MOST_WAITING", 3)
    free = threading.Event()
    done = []

    def begin():
        free.wait()
        raise OSError("never mind")

    with caplog.at_level(logging.WARNING, "snrkit"):
        sender = sending.Sender("slow", begin, lambda: done.append("ended"))
        for number in range(5):
            sender.do(lambda log, number=number: done.append(number))
        sender.close(False)
    free.set()
    assert done == []
    assert len(caplog.messages) == 1
    assert "log (slow): it is 3 records behind" in caplog.messages[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, kind):
    """Of every command, before anything is written."""
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write_config(tmp_path, **PLAIN, log=[{"kind": kind}])
    before = written(tmp_path)
    for arguments in (["train"], ["train", "--dry-run"], *AFTER, ["eval-fid", "--checkpoints", "all"], ["run"]):
        done = snrkit(tmp_path, *arguments, "-q", check=False)
        assert done.returncode == 1
        assert done.stderr == (
            f"snrkit: log.0 ({kind}): the package {kind} is not installed; pip install 'snrkit[{kind}]'.\n"
        )
    assert written(tmp_path) == before


def test_a_file_names_each_kind_once():
    """Two logs of one kind would be two runs there."""
    with pytest.raises(ConfigError, match="log: two of kind tensorboard; give each kind once"):
        parse_experiment({**SMALL, "log": [{"kind": "tensorboard"}, {"kind": "tensorboard", "folder": "x"}]}, "small")


def test_loggers_are_no_part_of_what_a_run_is(plain, tmp_path):
    """A run goes on with others than before, in a sweep too, and its file says which it had last."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = shutil.copytree(plain, tmp_path / "copy")
    path = write_config(folder, **PLAIN, log=[{"kind": "tensorboard"}])
    bare, more = (parse_experiment({**SMALL, **PLAIN, "log": log}, "small") for log in ([], [{"kind": "tensorboard"}]))
    assert load_experiment(path) == more
    assert bare.training_part() == more.training_part()
    assert row_path(Trial("arm", 0, bare), folder) == row_path(Trial("arm", 0, more), folder)
    snrkit(folder, "train", "-q", "--set", "train.images=768")
    assert stored_experiment(folder / "runs/small").log == more.log
    assert [step for step, _ in scalars(folder / "runs/small/tensorboard")["train/loss"]] == [768]


def test_the_record_of_a_log_is_checked(tmp_path, noting):
    """Damaged, it is refused with what to do, and put aside by `check --repair`; then a log begins anew."""
    write_config(tmp_path, **PLAIN, log=[{"kind": "noting"}])
    snrkit(tmp_path, "train", "-q")
    kept = tmp_path / "runs/small/loggers/noting.json"
    kept.write_text(kept.read_text().replace("first", "other"))
    done = snrkit(tmp_path, "train", "-q", check=False)
    assert done.returncode == 1
    assert "loggers/noting.json" in done.stderr
    assert "delete it" in done.stderr
    snrkit(tmp_path, "check", str(tmp_path / "runs/small"), "--repair", plain=True)
    assert not kept.exists()
    snrkit(tmp_path, "train", "-q")
    assert noting[-1][0].key is None


def test_only_the_process_that_leads_logs(tmp_path, noting):
    """Others open nothing."""
    experiment = parse_experiment({**SMALL, "log": [{"kind": "noting"}]}, "small")
    with open_loggers(experiment, Run(tmp_path), World(1, 2, torch.device("cpu"))) as opened:
        opened.line({"kind": "train", "images": 1, "loss": 1.0})
    assert not noting
    assert not list(tmp_path.iterdir())


def test_loggers_change_no_bit(logged, plain):
    """Weights, moments and averages of all checkpoints, log and images, of a training that was killed besides."""
    assert same_numbers(logged, plain)


def test_tensorboard_shows_what_the_run_s_files_say(of_tensorboard):
    """In float32, each point once though the last were made again."""
    events = of_tensorboard
    found = by_name(scalars(events / "runs/small/tensorboard"))
    assert found == [(name, images, float(np.float32(value))) for name, images, value in wanted(events)]


def test_tensorboard_shows_curves_by_step(of_tensorboard, tmp_path):
    """A measurement is a run of its own, so that samplers share charts; made again, it replaces itself."""
    events = shutil.copytree(of_tensorboard, tmp_path / "copy")
    write_config(events, **PLAIN, log=[{"kind": "tensorboard"}])
    snrkit(events, "measure-shift", "-q")
    found = scalars(events / "runs/small/tensorboard/shift/euler@000000640")
    assert found == {
        f"shift/{column}": points
        for column, values in rows(events).items()
        if (points := [(step, float(np.float32(v))) for step, v in enumerate(values) if v is not None])
    }


def test_tensorboard_shows_the_picture(of_tensorboard):
    """Pixel by pixel, at the images of its weights."""
    found = pictures(of_tensorboard / "runs/small/tensorboard")
    ((images, pixels),) = found["samples/euler"]
    grey = np.asarray(Image.open(png_of(of_tensorboard)))
    assert images == 640
    assert np.array_equal(pixels.reshape(*grey.shape, -1)[..., 0], grey)


def test_wandb_is_told_what_the_run_s_files_say(of_wandb):
    """Once each, exactly."""
    found = [
        (name, row["images"], value)
        for row in wandb_rows(of_wandb / "wandb")
        for name, value in row.items()
        if name != "images" and not isinstance(value, dict)
    ]
    assert timeless(found) == timeless(wanted(of_wandb))
    assert len(found) == len(wanted(of_wandb))


def test_wandb_has_one_run_for_a_run(of_wandb):
    """All commands, before and after the kill, went on in the same; the run directory holds none of its links."""
    key = json.loads((of_wandb / "runs/small/loggers/wandb.json").read_text())["key"]
    made = [r.run for path in wandb_files(of_wandb / "wandb") for r in wandb_records(path) if r.HasField("run")]
    assert {(run.run_id, run.project, run.display_name) for run in made} == {(key, "mine", "small")}
    assert len(wandb_files(of_wandb / "wandb")) == 5
    assert not [path for path in (of_wandb / "runs").rglob("*") if path.is_symlink()]


def test_wandb_is_given_curves_and_the_picture(of_wandb):
    """As a table with the columns of the CSV, and as the file itself."""
    found = {name: row[name] for row in wandb_rows(of_wandb / "wandb") for name in row if isinstance(row[name], dict)}
    assert set(found) == {"shift/euler", "samples/euler"}
    files = {path.name: path for path in (of_wandb / "wandb").rglob("files/media/**/*.*")}
    table = json.loads(files[Path(found["shift/euler"]["path"]).name].read_text())
    columns = rows(of_wandb)
    assert table["columns"] == list(columns)
    assert table["data"] == [list(row) for row in zip(*columns.values(), strict=True)]
    picture = files[Path(found["samples/euler"]["path"]).name]
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(png_of(of_wandb))))


def test_wandb_without_a_key_is_refused(tmp_path, monkeypatch):
    """Before anything is written, with what to do."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")

    def refuse(verify):
        assert not verify, "a network that is gone is no reason to refuse"
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", refuse)
    write_config(tmp_path, **PLAIN, log=[{"kind": "wandb"}])
    done = snrkit(tmp_path, "train", "-q", check=False)
    assert done.stderr == (
        "snrkit: log.0 (wandb): W&B refuses (No API key configured.); run wandb login, or set mode: offline.\n"
    )
    assert not (tmp_path / "runs").exists()


def test_mlflow_has_what_the_run_s_files_say(of_mlflow):
    """Once each, in one run, with curves and the picture beside."""
    folder = of_mlflow
    key = json.loads((folder / "runs/small/loggers/mlflow.json").read_text())["key"]
    with sqlite3.connect(folder / "store/mlflow.db") as base:
        found = list(base.execute("select key, step, value from metrics where run_uuid = ?", (key,)))
        assert list(base.execute("select name, status from runs")) == [("small", "FINISHED")]
    assert timeless(found) == timeless(wanted(folder))
    artifacts = folder / "store/artifacts" / key / "artifacts"
    assert json.loads((artifacts / "shift/euler@000000640.json").read_text()) == rows(folder)
    assert (artifacts / "samples/000000640/euler.png").read_bytes() == png_of(folder).read_bytes()


def test_trackio_has_what_the_run_s_files_say(of_trackio):
    """Once each, in one run, with curves and the picture beside."""
    folder = of_trackio
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    ((key, name),) = [(each["id"], each["name"]) for each in SQLiteStorage.get_run_records("snrkit")]
    assert key == json.loads((folder / "runs/small/loggers/trackio.json").read_text())["key"]
    logs = SQLiteStorage.get_logs("snrkit", name, run_id=key)
    entries = [(k, log["step"], v) for log in logs for k, v in log.items() if "/" in k]
    numbers = [entry for entry in entries if not isinstance(entry[2], dict)]
    assert timeless(numbers) == timeless(wanted(folder))
    table, picture = (next(v for k, _, v in entries if k == key) for key in ("shift/euler", "samples/euler"))
    columns = rows(folder)
    assert table["_value"] == [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert np.array_equal(
        np.asarray(Image.open(MEDIA_DIR / picture["file_path"])), np.asarray(Image.open(png_of(folder)))
    )
