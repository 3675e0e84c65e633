"""The tool as a user meets it: the whole path, interruption, and what is refused with nothing written."""

import errno
import json
import os
import platform
import re
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from snrkit.base.errors import SnrkitError
from snrkit.checkpoints.ours import list_checkpoints, load_checkpoint, save_checkpoint
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.lock import locked
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from tests.small import SMALL, load_images, snrkit, started, write_config, written


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which `snrkit run` went through."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder)
    snrkit(folder, "run", "-q")
    return folder


def test_the_whole_path_leaves_a_complete_run_directory(finished):
    """Config, environment, log, checkpoints, images, manifests, shift, metrics, report: all there and readable."""
    run = finished / "runs" / "small"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["sigma_data"] > 0
    environment_record = json.loads((run / "environment.json").read_text())
    assert {"packages", "device", "dataset_fingerprint", "deterministic", "tf32"} <= environment_record.keys()
    assert [json.loads(line)["images"] for line in (run / "train.jsonl").read_text().splitlines()][-1] == 1920
    assert len(list_checkpoints(run / "checkpoints")) == 2
    for name in ("euler", "ancestral"):
        assert load_images(run / "samples" / name, range(64)).shape == (64, 1, 8, 8)
        assert json.loads((run / "samples" / name / "manifest.json").read_text())["finished"] == "0-63"
        assert len(json.loads((run / "samples" / name / "dataset.json").read_text())["labels"]) == 64
        shift = json.loads((run / "shift" / f"{name}.json").read_text())
        assert len(shift["logsnr"]) == 4
        assert (run / "shift" / f"{name}.csv").exists()
        metrics = json.loads((run / "metrics" / f"{name}.json").read_text())
        assert metrics["names"]["fd"] == "FD-pixel"
        assert len(metrics["ranges"]) == 2
        assert metrics["weights"] == "ema-1000"


def test_the_report_holds_the_table_and_stands_alone(finished):
    """Markdown names every sampler with its NFE; the HTML needs no other file; nothing is called FID."""
    run = finished / "runs" / "small"
    markdown, page = (run / "report.md").read_text(), (run / "report.html").read_text()
    table = markdown.split("## Probes")[0].splitlines()
    rows = [line for line in table if line.startswith("| euler") or line.startswith("| ancestral")]
    assert [row.split("|")[5].strip() for row in rows] == ["4", "4"]
    assert "FD-pixel" in rows[0] or "FD-pixel" in markdown
    assert 'src="data:image/png;base64,' in page
    assert 'src="samples' not in page
    assert "FID (" not in markdown.replace("It is called FID", "")
    for line in markdown.splitlines():
        if line.startswith("!["):
            assert (run / line.split("(")[1].split(")")[0]).is_file()


def test_running_again_changes_no_result(copied):
    """The same commands on a finished run leave images and scores as they were."""
    run = copied / "runs" / "small"
    before = {p: p.read_bytes() for p in run.rglob("*.png") if "samples" in p.parts}
    scores = (run / "metrics" / "euler.json").read_bytes()
    snrkit(copied, "run", "-q")
    assert {p: p.read_bytes() for p in run.rglob("*.png") if "samples" in p.parts} == before
    assert (run / "metrics" / "euler.json").read_bytes() == scores


def test_npz_holds_the_same_images_as_the_folder(copied):
    """arr_0 of the .npz in ADM's layout, in order of seeds; names with dots keep files apart."""
    import numpy as np

    path = copied / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["samplers"] |= {"es-1.005": SMALL["samplers"]["euler"], "es-1.017": SMALL["samplers"]["ancestral"]}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    snrkit(copied, "sample", "-q", "--set", "sample.npz=true", "--sampler", "es-1.005", "--sampler", "es-1.017")
    samples = copied / "runs" / "small" / "samples"
    for name, same in (("es-1.005", "euler"), ("es-1.017", "ancestral")):
        with np.load(samples / f"{name}.npz") as arrays:
            assert torch.equal(torch.from_numpy(arrays["arr_0"])[..., 0], load_images(samples / same, range(64))[:, 0])
        assert (samples / f"{name}.png").exists()


def test_missing_images_are_made_again_and_equal(copied):
    """Deleted and half-made folders go on with the missing seeds; batch composition moves a pixel by at most one."""
    folder = copied / "runs" / "small" / "samples" / "ancestral"
    before = load_images(folder, range(64))
    for seed in (3, 17, 40):
        SampleFolder(folder).image(seed).unlink()
    untouched = SampleFolder(folder).image(5).stat().st_mtime_ns
    snrkit(copied, "sample", "-q")
    after = load_images(folder, range(64))
    assert SampleFolder(folder).image(5).stat().st_mtime_ns == untouched
    assert (after.int() - before.int()).abs().max() <= 1


def test_interrupted_sampling_goes_on(copied):
    """SIGKILL while sampling: whole images stay, the same command makes the rest, and the manifest is complete."""
    shutil.rmtree(copied / "runs" / "small" / "samples")
    sampling = ["sample", "-q", "--set", "sample.seeds=0-299", "--set", "sample.batch=8", "--sampler", "euler"]
    sampler = started(copied, *sampling)
    folder = copied / "runs" / "small" / "samples" / "euler"
    while len(list(folder.glob("*/*.png"))) < 20 and sampler.poll() is None:
        time.sleep(0.005)
    sampler.send_signal(signal.SIGKILL)
    sampler.wait()
    made = len(list(folder.glob("*/*.png")))
    assert 20 <= made < 300
    snrkit(copied, *sampling)
    assert load_images(folder, range(300)).shape[0] == 300
    assert json.loads((folder / "manifest.json").read_text())["finished"] == "0-299"


def test_a_signal_while_sampling_stops_the_whole_run(copied):
    """SIGINT during the sampling of `run`: what is made stays, nothing is measured or scored, exit code 130."""
    run = copied / "runs" / "small"
    for folder in ("samples", "metrics", "shift"):
        shutil.rmtree(run / folder)
    running = started(copied, "run", "-q", "--set", "sample.seeds=0-1999", "--set", "sample.batch=8")
    while len(list((run / "samples").glob("*/*/*.png"))) < 20:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "run the same command to go on" in errors
    assert not (run / "shift").exists()
    assert not (run / "metrics").exists()


def test_run_says_first_what_cannot_work(tmp_path, monkeypatch):
    """No samplers, no labels for the classifier, no weights for Inception: refused before any training."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    write_config(tmp_path)
    cases = {
        "samplers={}": "this experiment has none",
        "metrics.features=inception": "need weights-inception",
        "data.holdout=0": "needs held-out images",
        "sample.labels=1": "held-out images: ",
    }
    for setting, words in cases.items():
        extra = ["--set", "metrics.pixel_components=64"] if "inception" in setting else []
        done = snrkit(tmp_path, "run", "-q", "--set", setting, *extra, check=False)
        assert done.returncode == 1
        assert words in done.stderr
        assert not (tmp_path / "runs").exists()


def test_the_curve_over_checkpoints_marks_the_best_as_selected(copied):
    """--checkpoints last 2 scores two checkpoints; the selected one has the smaller distance."""
    printed = snrkit(copied, "eval-fid", "-q", "--json", "--checkpoints", "last 2", "--sampler", "euler").stdout
    record = json.loads(printed)["euler"]
    distances = {p["checkpoint_images"]: p["summary"]["fd"]["mean"] for p in record["points"]}
    assert len(distances) == 2
    assert record["selected_images"] == min(distances, key=distances.get)
    every = ("eval-fid", "-q", "--checkpoints", "all", "--sampler", "euler")
    done = snrkit(copied, *every)
    assert "selected by this score" in done.stdout
    warned = "FD-pixel of too few images chooses the best checkpoint"
    assert warned not in done.stderr
    assert warned in snrkit(copied, *every, "--set", "metrics.pixel_components=48").stderr


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    """Resolved config, parameters, evaluations of each sampler, memory - and no file."""
    write_config(tmp_path)
    before = written(tmp_path)
    printed = snrkit(tmp_path, "train", "--dry-run", "--show-config").stdout
    short = snrkit(tmp_path, "train", "--dry-run").stdout
    assert written(tmp_path) == before
    paced = re.compile(r"1,920 images take about \d+\.\d s by [\d,]+ images/s forward and backward here")
    assert paced.search(printed)
    assert "30 steps of training are a trial of the commands" in short
    said = [f"# {line}" for line in short.splitlines()[:-2] if not paced.match(line)]
    assert said == [line for line in printed.splitlines() if line.startswith("#") and not paced.search(line)]
    assert short.startswith("data: 400 images (1, 8, 8), 369 to train on, 31 held out\nparameters: ")
    made = snrkit(tmp_path, "sample", "--sampler", "euler", "--dry-run").stdout
    assert re.search(
        r"\n256 evaluations of an image take about \d+\.\d s here; shifts and scores are not", made
    )  # 64 images in 4
    assert "forward and backward" not in made
    whole = snrkit(tmp_path, "run", "--dry-run").stdout
    assert paced.search(whole)
    assert "512 evaluations of an image take about" in whole
    assert written(tmp_path) == before
    refused = snrkit(tmp_path, "sample", "--show-config", check=False)
    assert "add --dry-run" in refused.stderr
    resolved = yaml.safe_load(printed)
    assert resolved["data"]["sigma_data"] == pytest.approx(0.5, abs=0.2)
    for words in ("# parameters: ", "# euler: 4 evaluations per image", "in fp32, ", "in fp16 of activations"):
        assert words in printed


def test_the_memory_of_any_size_can_be_asked_about(tmp_path):
    """Without taking it: 4 W and W for every average; what does not fit is said, and refused before training."""
    network = {**SMALL["network"], "channels": 16_000, "groups": 4}
    write_config(tmp_path, network=network)
    printed = snrkit(tmp_path, "train", "--dry-run").stdout
    count = int(printed.split("parameters: ")[1].split()[0].replace(",", ""))
    assert f"{4 * count * 6 / 2**30:.1f} GiB for weights, gradients, two moments and 2 average(s)" in printed
    assert "DOES NOT FIT into the " in printed
    before = written(tmp_path)
    refused = snrkit(tmp_path, "train", check=False)
    assert refused.returncode == 1
    assert "make the network smaller" in " ".join(refused.stderr.split())
    assert written(tmp_path) == before


def test_a_peak_is_measured_in_a_dry_run_alone(tmp_path):
    """Else it would seem that the experiment was trained."""
    write_config(tmp_path)
    before = written(tmp_path)
    refused = snrkit(tmp_path, "train", "--peak", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("snrkit: --peak measures within a dry run")
    assert "add --dry-run" in refused.stderr
    assert not refused.stdout
    assert written(tmp_path) == before


@pytest.mark.parametrize(("number", "remedy"), [
    (errno.EPERM, "choose --runs with a folder that may be written to"),
    (errno.ENOSPC, "free space or choose --runs with a folder on another disk"),
])  # fmt: skip
def test_a_folder_that_cannot_be_made_is_told_by_its_reason(tmp_path, monkeypatch, number, remedy):
    """A folder that may not be written to has room enough."""
    write_config(tmp_path)
    plain = os.mkdir

    def mkdir(path, *given, **more):
        if Path(path).name in ("runs", "small"):
            raise OSError(number, os.strerror(number), str(path))
        plain(path, *given, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    refused = snrkit(tmp_path, "train", "-q", check=False)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith(f"; {remedy}")


def test_the_peak_of_three_steps_is_measured_when_asked(tmp_path):
    """With what an average too short to keep anything is told of; no file is written."""
    write_config(tmp_path, train={**SMALL["train"], "averages": [{"half_life": 0.001}]})
    before = written(tmp_path)
    printed = snrkit(tmp_path, "train", "--dry-run", "--peak").stdout
    assert written(tmp_path) == before
    assert re.search(r"measured over 3 steps: \d+\.\d [MG]iB at most, by which this process grew: ", printed)
    assert "images in memory and what libraries hold not counted" in printed
    assert re.search(r"a step of 64 images takes [\d.e-]+ s here, so 1,920 images about \d+\.\d (s|minutes), ", printed)
    assert "nothing is left of the step before, which was 64 images ago; average longer" in printed


def test_validate_and_schema(tmp_path):
    """Valid files are named, faults of all others shown, exit code 1; the schema is JSON."""
    good = write_config(tmp_path)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**SMALL, "bogus": 1, "seed": -1}))
    done = snrkit(tmp_path, "validate", good, tmp_path / "bad.yaml", plain=True, check=False)
    assert done.returncode == 1
    assert "small.yaml: valid" in done.stdout
    assert "unknown key 'bogus'" in done.stderr
    assert "seed" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(snrkit(tmp_path, "schema", plain=True).stdout)["properties"]


REFUSED = {
    "unknown key": (["train", "--set", "bogus=1"], "unknown key 'bogus'"),
    "unknown kind": (["train", "--set", "target.kind=noise"], "unknown kind 'noise'"),
    "value out of range": (["train", "--set", "train.lr=-1"], "greater than 0"),
    "missing data folder": (["train", "--set", "data={kind: folder, path: /nowhere}"], "/nowhere does not exist"),
    "empty data folder": (["train", "--set", "data={kind: folder, path: HERE/empty}"], "holds no images"),
    "corrupt image": (
        ["train", "--set", "data={kind: folder, path: HERE/corrupt}"],
        "a.png is not a readable image",
    ),
    "workers for a set in memory": (["train", "--set", "data.workers=2"], "has no effect"),
    "no checkpoint": (["sample"], "has no checkpoint"),
    "unknown sampler": (["sample", "--sampler", "foo"], "unknown sampler 'foo'. Known: euler, ancestral"),
    "misspelt sampler": (["sample", "--sampler", "eulr"], "unknown sampler 'eulr'. Did you mean 'euler'? Known: euler"),
    "wrong class count": (["train", "--set", "network.classes=3"], "mixture has 4"),
    "size that does not fit": (["train", "--set", "network.multipliers=[1,1,1,1,1]"], "do not halve"),
    "no held-out images": (["measure-shift", "--set", "data.holdout=0"], "needs held-out images"),
    "too few of a label": (["measure-shift", "--set", "sample.labels=1"], "of its images stand beside 32 trajectories"),
    "too few to compare": (["compare", "--set", "sample.labels=1"], "of its images stand beside 32 trajectories"),
    "too few trajectories": (["measure-shift", "--set", "shift.images=19"], "greater than or equal to 20"),
    "fp16 on the CPU": (["train", "--set", "compute.precision=fp16"], "needs a CUDA device"),
    "no such device": (["train", "--device", "quantum"], "unknown device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_gets_one_sentence_and_writes_nothing(tmp_path, name):
    """Exit code 1, one line on stderr, no traceback, no file but the config."""
    write_config(tmp_path)
    for folder in ("empty", "corrupt"):
        (tmp_path / folder).mkdir()
    (tmp_path / "corrupt" / "a.png").write_bytes(b"no picture")
    before = written(tmp_path)
    arguments, words = REFUSED[name]
    arguments = [argument.replace("HERE", str(tmp_path)) for argument in arguments]
    done = snrkit(tmp_path, *arguments, "-q", check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert written(tmp_path) == before


def newest(run):
    return list_checkpoints(run / "checkpoints")[-1]


def spoil(run, file):
    path = newest(run) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lose(run, file):
    (newest(run) / file).unlink()


def swap(run):
    """Another network's weights with right checksums."""
    checkpoint = load_checkpoint(newest(run))
    tensors = {name: dict(values) for name, values in checkpoint.tensors.items()}
    tensors["ema-1000"] = {"other": torch.zeros(3)}
    save_checkpoint(run / "checkpoints", type(checkpoint)(checkpoint.images, tensors, checkpoint.numbers))


SPOILED = {
    "missing config": (lambda run: (run.parent.parent / "small.yaml").unlink(), ["train"], "does not exist"),
    "damaged weights": (lambda run: spoil(run, "network.safetensors"), ["train"], "is damaged"),
    "damaged average": (lambda run: spoil(run, "ema-1000.safetensors"), ["sample"], "is damaged"),
    "half a checkpoint": (lambda run: lose(run, "state.json"), ["train"], "is not complete"),
    "a lost file": (lambda run: lose(run, "optimizer.safetensors"), ["train"], "optimizer.safetensors is gone"),
    "images of another sampler": (
        lambda run: None, ["sample", "--set", "samplers.euler.grid.steps=5"], "another sampler or checkpoint"),
    "another model": (lambda run: None, ["train", "--set", "network.channels=16"], "holds another experiment"),
    "another seed": (lambda run: None, ["sample", "--set", "seed=5"], "seed is 0 there and 5 here"),
    "weights of another network": (swap, ["sample"], "is of another network"),
    "a damaged image": (
        lambda run: SampleFolder(run / "samples/euler").image(3).write_bytes(b"no"), ["eval-fid"],
        "is not the image that snrkit sample made"),
    "missing images": (lambda run: shutil.rmtree(run / "samples" / "euler"), ["eval-fid"], "run snrkit sample first"),
    "checkpoints in other words": (lambda run: None, ["eval-fid", "--checkpoints", "best"], "write all, or 'last N'"),
    "a damaged manifest": (
        lambda run: (run / "samples" / "euler" / "manifest.json").write_text("{"), ["sample"], "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_run_gets_one_sentence_and_stays_as_it_was(copied, name):
    """Damage is named with its file; nothing in the run directory changes."""
    damage, arguments, words = SPOILED[name]
    run = copied / "runs" / "small"
    damage(run)
    before = written(run)
    done = snrkit(copied, *arguments, "-q", check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert written(run) == before


def test_two_processes_on_one_run_directory_are_refused(copied):
    """The second is told in one sentence; the lock of a killed process does not stay."""
    run = Run(copied / "runs" / "small")
    with locked(run):
        second = started(copied, "train", "-q")
        _, errors = second.communicate()
    assert second.returncode == 1
    assert "another process is working in" in errors
    snrkit(copied, "train", "-q")


def test_a_full_disk_leaves_older_checkpoints_whole(copied, monkeypatch):
    """ENOSPC in the middle of a save: one sentence, the folder as before, and saving works once there is room."""
    from pathlib import Path

    run = copied / "runs" / "small"
    checkpoint = load_checkpoint(newest(run))
    before = written(run)
    real, calls = Path.write_bytes, []

    def full(self, content):
        calls.append(self)
        if len(calls) == 3:
            real(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, content)

    later = type(checkpoint)(checkpoint.images + 64, checkpoint.tensors, checkpoint.numbers)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(SnrkitError, match="the disk is full; older checkpoints are intact"):
            save_checkpoint(run / "checkpoints", later)
    assert written(run) == before
    assert load_checkpoint(save_checkpoint(run / "checkpoints", later)).images == later.images


@contextmanager
def no_file_beyond(size):
    """Within the block a file that grows past `size` bytes meets what a full disk says."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("arguments", [["sample", "--overwrite"], ["measure-shift"], ["eval-fid"], ["report"]])
def test_a_full_disk_gets_one_sentence_in_every_command(copied, arguments, monkeypatch):
    """With no file allowed to grow past four blocks each command says what failed, without a traceback."""
    monkeypatch.setenv("SNRKIT_CACHE", str(copied / "cache"))
    with no_file_beyond(4096):
        done = snrkit(copied, *arguments, *([] if arguments == ["report"] else ["-q"]), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "failed" in done.stderr


def test_an_unwritable_place_gets_one_sentence(tmp_path):
    """--runs where nothing can be made."""
    write_config(tmp_path)
    done = snrkit(
        tmp_path, "train", "-q", "--config", tmp_path / "small.yaml", "--runs", "/proc/nope", plain=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "/proc/nope" in done.stderr


@pytest.mark.parametrize("below", ["", "/x"])
def test_a_file_where_a_folder_is_wanted_is_named(tmp_path, below):
    """--runs may lie at or below one: the file itself is told."""
    write_config(tmp_path)
    file = tmp_path / "small.yaml"
    done = snrkit(tmp_path, "train", "-q", "--config", file, "--runs", f"{file}{below}", plain=True, check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert f"{file} is a file where a folder is wanted" in done.stderr


def test_half_written_files_of_a_killed_process_are_removed(copied):
    """Temporary names are never read and vanish with the next save."""
    run = copied / "runs" / "small"
    left = run / "checkpoints" / f".000009999.{platform.node().replace('.', '-')[-60:]}.{2**22 + 1}.tmp"
    left.mkdir()
    (left / "network.safetensors").write_bytes(b"half")
    config = load_experiment(copied / "small.yaml")
    snrkit(copied, "train", "-q", "--set", f"train.images={config.train.images + 640}")
    assert not list((run / "checkpoints").glob(".*"))


def test_a_run_directory_takes_over_new_samplers(copied):
    """Samplers may be added to a trained run; its config.yaml then holds them."""
    path = copied / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["samplers"]["heun"] = {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "heun"}}
    path.write_text(yaml.safe_dump(content))
    snrkit(copied, "sample", "-q", "--sampler", "heun")
    assert "heun" in yaml.safe_load((copied / "runs/small/config.yaml").read_text())["samplers"]
    report = snrkit(copied, "report").stdout
    assert "heun" in report
    assert "Not scored yet: heun" in (copied / "runs/small/report.md").read_text()


def test_a_redefined_sampler_does_not_keep_its_old_scores(copied):
    """The report leaves out what was measured on another definition, and says so."""
    path = copied / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["samplers"]["euler"]["grid"]["steps"] = 9
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    snrkit(copied, "report")
    text = (copied / "runs/small/report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| euler"))
    assert [cell.strip() for cell in row.split("|")][5:7] == ["?", "-"]
    assert "redefined since: scores of euler, shift of euler" in text


def test_other_images_under_the_same_name_are_refused(tmp_path):
    """A run remembers the content of its data set."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    network = {**SMALL["network"], "classes": 0}
    data = {"kind": "npz", "path": str(tmp_path / "set.npz"), "sigma_data": 0.5}
    plain = {**SMALL["train"], "label_dropout": 0.0, "images": 128}
    write_config(tmp_path, data=data, network=network, train=plain)
    snrkit(tmp_path, "train", "-q")
    np.savez(tmp_path / "set.npz", rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    done = snrkit(tmp_path, "sample", "-q", check=False)
    assert done.returncode == 1
    assert "the images differ from those" in done.stderr


def test_eval_fid_on_two_sets(tmp_path):
    """Any two of folder, zip, npz or data set name, without an experiment."""
    done = snrkit(tmp_path, "eval-fid", "digits", "digits", "--set", "features=pixels", "--json", plain=True)
    assert json.loads(done.stdout)["fd"] == pytest.approx(0, abs=1e-6)
    for arguments, words in (
        (["digits"], "compares two sets"),
        ([], "takes either"),
        (["digits", "digits", "--sampler", "x"], "need --config"),
    ):
        done = snrkit(tmp_path, "eval-fid", *arguments, plain=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr


def test_probes_that_are_not_asked_for_again_are_kept(copied):
    """A second measure-shift of the same sampler adds its probes; another checkpoint's are not mixed in."""
    record = lambda: json.loads((copied / "runs/small/shift/euler.json").read_text())  # noqa: E731
    first = ["measure-shift", "-q", "--sampler", "euler", "--set"]
    snrkit(copied, *first, "shift.probes=[horizon]")
    horizon = record()["horizon"]
    snrkit(copied, *first, "shift.probes=[audit]")
    assert horizon is not None
    assert record()["horizon"] == horizon
    assert record()["audit"] is not None
    snrkit(copied, *first, "shift.probes=[]", "--set", "sample.average=network")
    assert record()["horizon"] is record()["audit"] is None


@pytest.mark.parametrize("name", ["runs/small", "other/../runs/small"])
def test_a_model_that_guides_itself_is_found_by_its_path(copied, name):
    """Autoguidance by the sampled weights, named through their own run directory, is refused."""
    correction = {"kind": "autoguidance", "weight": 1.0, "run": str(copied / name)}
    (copied / "other").mkdir()
    path = copied / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["samplers"] = {"guided": {**content["samplers"]["euler"], "corrections": [correction]}}
    path.write_text(yaml.safe_dump(content))
    done = snrkit(copied, "sample", "-q", check=False)
    assert done.returncode == 1
    assert "is the sampled model itself" in done.stderr


def test_an_interrupted_search_goes_on(copied):
    """SIGINT while tuning: one sentence, exit code 130, and no evaluation is made twice afterwards.

    Enough images that the search lasts for a second, however late the signal comes.
    """
    correction = {"kind": "dcw", "pixel": 0.01}
    path = copied / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["samplers"] = {"dcw": {**content["samplers"]["euler"], "corrections": [correction]}}
    path.write_text(yaml.safe_dump({**content, "tune": {"seeds": "1000-1127"}}))
    search, kept = started(copied, "tune", "-q"), copied / "runs/small/tune/dcw.jsonl"
    while not kept.exists() or len(kept.read_text().splitlines()) < 2:
        assert search.poll() is None
        time.sleep(0.002)
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=60)
    assert (search.returncode, "every evaluation so far is kept" in errors) == (130, True)
    found = kept.read_text().splitlines()
    snrkit(copied, "tune", "-q")
    after = kept.read_text().splitlines()
    assert after[: len(found)] == found
    assert len({json.loads(record)["key"] for record in after}) == len(after)
