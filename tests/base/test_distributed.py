"""Two processes do what one does."""

import json
from dataclasses import replace
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError, Stopped
from snrkit.base.sealed import read_json, read_lines
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands.analyze import run_analysis
from snrkit.commands.analyze_spectrum import run_spectrum
from snrkit.commands.compare import run_comparing
from snrkit.commands.fit_estimator import run_estimating
from snrkit.commands.measure_shift import run_measuring
from snrkit.commands.run_all import run_everything
from snrkit.commands.sample import run_sampling
from snrkit.commands.sweep import run_sweep
from snrkit.commands.train import Tally, _loop, run_training
from snrkit.commands.tune import run_tuning
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.log import LogWriter
from snrkit.experiment.loggers import Journal, Loggers
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from tests.opened import open_network, open_task
from tests.small import SMALL, load_images, process, snrkit, write_config, written
from tests.spectral.test_levels import SPECTRAL
from tests.training.test_train import poisoned

OWN = {"grid": {"kind": "spectral", "steps": 3}, "solver": {"kind": "euler"}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(folder trained by one process, folder trained by two gloo processes that torchrun started)."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"p{processes}")
        network = {**SMALL["network"], "dropout": 0.0}
        learned = {"importance": {"bins": 4}, "balance": {"bins": 4}, "uncertainty": {}}
        train = {**SMALL["train"], **learned, "images": 640}
        train["accumulate"] = processes  # two micro-batches in each of two processes
        write_config(folder, network=network, train=train)
        (snrkit if processes == 1 else process)(folder, "train", "-q", processes=processes)
        folders.append(folder)
    return folders


def test_training_equals_one_process_to_float_tolerance(pair):
    """The same global batch in two halves of two micro-batches: equal but for the order of additions."""
    one, two = (list_checkpoints(folder / "runs" / "small" / "checkpoints")[-1] for folder in pair)
    for file in ("network.safetensors", "ema-500.safetensors", "learned.safetensors"):
        for name, tensor in load_file(one / file).items():
            torch.testing.assert_close(load_file(two / file)[name], tensor, rtol=1e-3, atol=2e-5)
    logs = [[json.loads(line) for line in (f / "runs/small/train.jsonl").read_text().splitlines()] for f in pair]
    assert [r["images"] for r in logs[0]] == [r["images"] for r in logs[1]]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_samples_and_scores_do_not_depend_on_the_number_of_processes(pair):
    """From one checkpoint: images bit for bit at equal batches, within one grey level at others; metrics to 1e-6."""
    source = pair[0]
    made, scores = {}, {}
    for name, processes, batch in (("one", 1, 16), ("two", 2, 16), ("odd", 1, 24)):
        folder = source.parent / f"{source.name}-{name}"
        copytree(source, folder)
        set_batch = [
            "--set",
            f"sample.batch={batch}",
            "--set",
            "metrics.features=classifier",
            "--set",
            "metrics.pixel_components=64",
        ]
        snrkit(folder, "sample", "-q", *set_batch, processes=processes)
        made[name] = {s: load_images(folder / "runs/small/samples" / s, range(64)) for s in ("euler", "ancestral")}
        if name != "odd":
            printed = snrkit(folder, "eval-fid", "-q", "--json", *set_batch, processes=processes).stdout
            scores[name] = json.loads(printed)
    for sampler in ("euler", "ancestral"):
        assert torch.equal(made["one"][sampler], made["two"][sampler])
        difference = made["one"][sampler].int() - made["odd"][sampler].int()
        assert difference.abs().max() <= 1
        for a, b in zip(scores["one"][sampler]["ranges"], scores["two"][sampler]["ranges"], strict=True):
            for key in ("fd", "inception_score", "kid", "precision", "recall"):
                assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-9)


def test_two_processes_fall_back_together_and_score_what_both_made(pair, tmp_path):
    """From the checkpoint before a damaged one, whose images every process sees listed before it scores them."""
    folder = copytree(pair[1], tmp_path / "copy")
    checkpoints = folder / "runs/small/checkpoints"
    newest = list_checkpoints(checkpoints)[-1]
    (newest / "network.safetensors").write_bytes(b"")
    snrkit(folder, "train", "-q", "--fall-back", processes=2)
    assert (folder / "runs/small/damaged/checkpoints" / newest.name / "network.safetensors").read_bytes() == b""
    assert list_checkpoints(checkpoints)[-1] == newest
    scored = ["eval-fid", "-q", "--checkpoints", "all", "--sampler", "euler"]
    snrkit(folder, *scored, processes=2)
    curve = read_json(folder / "runs/small/metrics/euler@checkpoints.json")
    assert [point["checkpoint_images"] for point in curve["points"]] == [320, 640]


def test_images_of_other_batches_agree_to_a_ten_thousandth(pair):
    """The float images of one seed in batches of 16 and of 24: 1e-4 in [-1, 1], bit for bit in equal batches."""
    from snrkit.data.dataset import chunks
    from snrkit.experiment.opening import open_experiment, open_model
    from snrkit.experiment.run import Run
    from snrkit.experiment.trajectories import trajectories

    opened = open_experiment(load_experiment(pair[0] / "small.yaml"), World(0, 1, torch.device("cpu")))
    samples = trajectories(opened, open_model(opened, Run(pair[0] / "runs" / "small")))
    for sampler in opened.experiment.samplers.values():
        made = [
            torch.cat([batch.x0 for batch in samples.generate(sampler, list(chunks(range(48), size)))])
            for size in (16, 16, 24)
        ]
        assert torch.equal(made[0], made[1])
        torch.testing.assert_close(made[0], made[2], rtol=0, atol=1e-4)


def test_levels_of_every_image_s_own_in_two_processes(tmp_path):
    """Weights to float tolerance, one model of spectra, images bit for bit."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path / f"p{processes}"
        folder.mkdir()
        write_config(folder, **{**SMALL, **SPECTRAL, "samplers": {"own": OWN}})
        snrkit(folder, "train", "-q", "--set", "train.images=320", processes=processes)
        folders.append(folder / "runs" / "small")
    assert (folders[0] / "spectra.safetensors").read_bytes() == (folders[1] / "spectra.safetensors").read_bytes()
    one, two = (load_file(list_checkpoints(run / "checkpoints")[-1] / "network.safetensors") for run in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5)
    images = []
    for processes in (1, 2):
        own = f"samplers.p{processes}={{grid: {{kind: spectral, steps: 3}}, solver: {{kind: euler}}}}"
        settings = ["--sampler", f"p{processes}", "--set", "train.images=320", "--set", own]
        snrkit(tmp_path / "p1", "sample", "-q", *settings, processes=processes)
        images.append(load_images(folders[0] / "samples" / f"p{processes}", range(64)))
    assert torch.equal(images[0], images[1])


class Meeting(World):
    """A process that writes down which collectives it enters, instead of waiting for the others."""

    __slots__ = ("met",)

    def __init__(self, rank):
        super().__init__(rank, 1, torch.device("cpu"))
        object.__setattr__(self, "met", [])

    def barrier(self):
        self.met.append("barrier")

    def any(self, flag):
        self.met.append("any")
        return flag

    def sum(self, tensor):
        self.met.append("sum")
        return tensor

    def collect(self, items):
        self.met.append("collect")
        return list(items)


class Following(Meeting):
    """One that sees what the leader sees, and does not lead."""

    @property
    def leads(self):
        return False


@pytest.mark.parametrize("every", [64, 320])
def test_skipped_steps_in_a_row_are_exchanged_once_each_by_all(tmp_path, every):
    """Whoever writes the log of them, and whether it is written at every step: none is waited for by one alone."""
    met, logs = [], []
    for world in (Meeting(0), Following(0)):
        run = Run(tmp_path / type(world).__name__)
        experiment = parse_experiment(
            {**SMALL, "train": {**SMALL["train"], "images": 320, "log_every": every}}, "small"
        )
        found = open_experiment(experiment, World(0, 1, torch.device("cpu")))
        task, state = poisoned(open_task(found), open_network(found), lambda step: step in (1, 2))
        run.path.mkdir()
        log = LogWriter(run.log, 0, world.leads)
        _loop(run, replace(task, world=world), state, Tally(), Journal(log, Loggers()), {}, quiet=True)
        met.append(world.met)
        logs.append([line["step"] for line in read_lines(run.log)[0] if line["kind"] == "skipped"])
    assert met[0] == met[1]
    assert met[0].count("collect") == 2 * 2
    assert logs == [[2, 3], []]


def test_the_leader_and_the_others_meet_in_the_same_collectives(tmp_path):
    """Through training and sampling with every reason to look into a file: one that waits alone waits for ever."""
    samplers = {"own": OWN, "beyond": {"grid": {"kind": "karras", "steps": 2}, "solver": {"kind": "euler"}}}
    path = write_config(tmp_path, **{**SMALL, **SPECTRAL, "samplers": samplers})
    met = []
    for rank in (0, 0, 1):  # the first makes the files that the others find
        world = Meeting(rank)
        for job in (run_training, run_sampling):
            job(load_experiment(path), tmp_path / "runs", world, quiet=True)
        met.append(world.met)
    assert met[1] == met[2]
    assert met[1].count("barrier") > 8


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    """Three slices over two processes: one sentence."""
    write_config(tmp_path, train={**SMALL["train"], "batch": 48})
    done = snrkit(tmp_path, "train", "-q", processes=2, check=False)
    assert done.returncode != 0
    assert "do not divide over 2 processes" in done.stderr
    assert not (tmp_path / "runs").exists()


ALONE = {
    "tune": lambda e, runs, world: run_tuning(e, runs, world, (), "fd", ()),
    "compare": run_comparing,
    "analyze": run_analysis,
    "analyze --spectrum": run_spectrum,
    "fit-estimator": run_estimating,
    "measure-shift": run_measuring,
    "run": run_everything,
    "sweep": lambda e, runs, world: run_sweep(runs / "sweep.yaml", runs, world),
}


@pytest.mark.parametrize("command", ALONE)
def test_a_command_that_does_not_share_its_work_says_so_once(tmp_path, command):
    """One process of the group, in one sentence; all end in an error, and nothing is written."""
    experiment = load_experiment(write_config(tmp_path))
    before = written(tmp_path)
    with pytest.raises(SnrkitError) as refused:
        ALONE[command](experiment, tmp_path / "runs", World(0, 2, torch.device("cpu")))
    assert str(refused.value).startswith(f"{command.split()[0]} runs in one process, and was started as 2; ")
    with pytest.raises(Stopped) as silent:
        ALONE[command](experiment, tmp_path / "runs", World(1, 2, torch.device("cpu")))
    assert (str(silent.value), silent.value.code) == ("", 1)
    assert written(tmp_path) == before


@pytest.mark.parametrize("command", ["average", "export", "check"])
def test_commands_on_a_run_do_not_share_their_work_either(tmp_path, monkeypatch, command):
    """They are refused before they look at it."""
    monkeypatch.setattr("snrkit.base.distributed.open_world", lambda device: World(0, 3, torch.device(device)))
    done = snrkit(tmp_path, command, tmp_path / "none", plain=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"snrkit: {command} runs in one process, and was started as 3; start it without torchrun.\n"
