"""What a run directory says is believed only where its checksums, types and names fit; each misfit is one sentence."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from snrkit.base.errors import DivergedError, RunError, SnrkitError, UnreadableError
from snrkit.base.files import checksum
from snrkit.base.sealed import line_of, read_json, write_json
from snrkit.checkpoints.ours import (
    Checkpoint,
    checksum_of,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    sound_checkpoint,
)
from snrkit.experiment.log import HeldOutLine, LogWriter, SkippedLine, TrainLine, read_log
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.reports.blocks import Heading, Paragraph, Picture, Table, markdown
from tests.small import SMALL, call, edit, load_images, snrkit, write_config, written

TENSORS = {"network": {"a": torch.arange(3.0)}, "ema-500": {"a": torch.ones(3)}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with images, scores and a measurement."""
    folder = tmp_path_factory.mktemp("finished")
    train = {**SMALL["train"], "images": 640, "save_every": 320}
    write_config(folder, train=train, samplers={"euler": SMALL["samplers"]["euler"]})
    for command in ("train", "sample", "measure-shift", "eval-fid"):
        snrkit(folder, command, "-q")
    return folder


def refused(folder, *arguments):
    """The one sentence that a command ends in, which leaves everything as it was."""
    before = written(folder)
    done = snrkit(folder, *arguments, check=False)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert written(folder) == before
    return sentence


def newest(folder):
    return list_checkpoints(folder / "runs/small/checkpoints")[-1]


def test_an_edited_state_is_refused(copied):
    """A step of 10 made 9, as text: the checksum does not fit, and training does not go on from it."""
    path = newest(copied) / "state.json"
    path.write_text(path.read_text().replace('"step": 10', '"step": 9'))
    sentence = refused(copied, "train", "-q", "--set", "train.images=960")
    assert "its checksum does not fit" in sentence
    assert "--fall-back" in sentence


@pytest.mark.parametrize("numbers", [
    {"step": "nine"}, {"step": None}, {"tally": []}, {"tally": {"steps": "x"}}, {"scaler": 3}, {"log_lines": -1.5},
    {"nonfinite": [1]},
])  # fmt: skip
def test_a_state_of_other_types_is_refused(copied, numbers):
    """Even where its checksum fits, as a stranger's may."""
    path = newest(copied) / "state.json"
    edit(path, numbers={**read_json(path)["numbers"], **numbers})
    assert "state.json" in refused(copied, "train", "-q", "--set", "train.images=960")


def test_a_checkpoint_is_of_the_images_in_its_name(tmp_path):
    """A folder that was renamed is no checkpoint of other images."""
    path = save_checkpoint(tmp_path, Checkpoint(320, TENSORS, {}))
    moved = path.rename(tmp_path / "000000640")
    with pytest.raises(RunError, match="of 320 images, which is not its name"):
        load_checkpoint(moved)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".hidden", "a\0b"])
def test_names_of_tensors_build_no_paths(tmp_path, name):
    """A state that lists a file elsewhere is refused before anything is opened."""
    path = save_checkpoint(tmp_path / "run", Checkpoint(320, TENSORS, {}))
    content = save({"a": torch.zeros(1)})
    (tmp_path / "secret.safetensors").write_bytes(content)
    state = read_json(path / "state.json")
    write_json(path / "state.json", {**state, "checksums": {**state["checksums"], name: checksum(content)}})
    for read in (load_checkpoint, lambda path: checksum_of(path, name)):
        with pytest.raises(RunError, match="no name of a file"):
            read(path)


@pytest.mark.parametrize("damage", ["network.safetensors", "ema-500.safetensors", "state.json"])
def test_files_of_two_checkpoints_are_not_mixed(tmp_path, damage):
    """Each file belongs to its state: that of another checkpoint does not fit."""
    one = save_checkpoint(tmp_path, Checkpoint(320, TENSORS, {"x": 1}))
    others = {name: {"a": part["a"] + 1} for name, part in TENSORS.items()}
    two = save_checkpoint(tmp_path, Checkpoint(640, others, {"x": 2}))
    shutil.copy(one / damage, two / damage)
    with pytest.raises(RunError, match=str(two)):
        load_checkpoint(two)
    found, damaged = sound_checkpoint(tmp_path)
    assert (found.images, damaged) == (320, [two])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, value):
    """One value of one tensor is enough; what was saved before stays."""
    path = save_checkpoint(tmp_path, Checkpoint(320, TENSORS, {}))
    wrong = {**TENSORS, "ema-500": {"a": torch.tensor([1.0, value, 1.0])}}
    with pytest.raises(DivergedError, match="ema-500/a is not finite at 640 images, and is not saved"):
        save_checkpoint(tmp_path, Checkpoint(640, wrong, {}))
    assert list_checkpoints(tmp_path) == [path]
    content = save(wrong["ema-500"])
    (path / "ema-500.safetensors").write_bytes(content)
    state = read_json(path / "state.json")
    write_json(path / "state.json", {**state, "checksums": {**state["checksums"], "ema-500": checksum(content)}})
    with pytest.raises(RunError, match="weights that are not finite, a of ema-500"):
        load_checkpoint(path, only="ema-500")
    assert load_checkpoint(path, only="network").images == 320


def test_an_edited_score_is_not_printed(copied):
    """A better FD, written by hand, is refused by the report."""
    path = copied / "runs/small/metrics/euler.json"
    path.write_text(path.read_text().replace('"mean": ', '"mean": 0'))
    assert f"{path} cannot be believed" in refused(copied, "report")


@pytest.mark.parametrize("name", ["metrics/euler.json", "shift/euler.json", "environment.json", "train.jsonl"])
@pytest.mark.parametrize("content", ["null", "[1]", "", '{"a": ', "3", '"x"', "{}"])
def test_damaged_records_are_sentences(copied, name, content):
    """Whatever stands in a record, the report names the file."""
    path = copied / "runs/small" / name
    path.write_text(content + "\n" if name == "train.jsonl" else content)
    if (name, content) == ("train.jsonl", ""):
        path.write_text("\n\n")
    assert name in refused(copied, "report")


ODD = [
    {}, {"kind": "train"}, {"kind": "other", "images": 1}, {"kind": "train", "step": "x", "images": 64},
    {"kind": "held_out", "step": 1, "images": 64, "logsnr": 3, "loss": None}, {"images": None},
    {"kind": ["train"], "images": 64},
]  # fmt: skip


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_odd_lines_of_the_log_are_sentences(copied, line):
    """With checksums that fit, in report; a plain one without, in train as well."""
    log = copied / "runs/small/train.jsonl"
    whole = log.read_text()
    log.write_text(line_of(line) + whole)
    assert "line 1 of" in refused(copied, "report")
    log.write_text(json.dumps(line) + "\n" + whole)
    assert "line 1 of" in refused(copied, "report")
    assert "line 1 of" in refused(copied, "train", "-q", "--set", "train.images=960")


def test_lines_that_a_checkpoint_counts_must_be_there(tmp_path):
    """A log that lost lines is refused; one that gained some is cut; one that is gone is begun anew."""
    path, record = tmp_path / "train.jsonl", {"kind": "skipped", "step": 1, "images": 1, "logsnr": [], "culprits": []}
    log = LogWriter(path, 0, True)
    for _ in range(3):
        log.add(record)
    assert (log.lines, len(read_log(path).lines)) == (3, 3)
    assert LogWriter(path, 2, True).lines == 2
    assert len(read_log(path).lines) == 2
    with pytest.raises(RunError, match="has 2 whole lines, and its checkpoint was saved after 3"):
        LogWriter(path, 3, True)
    path.unlink()
    assert LogWriter(path, 3, True).lines == 0


def test_the_log_is_read_as_it_was_written(finished):
    """Every line that training writes is of a known kind, and has all its fields."""
    log = read_log(Run(finished / "runs/small").log)
    kinds = {type(line) for line in log.lines}
    assert kinds <= {TrainLine, HeldOutLine, SkippedLine}
    assert {TrainLine, HeldOutLine} <= kinds
    assert not log.torn
    assert log.lines[-1].images == 640


def test_an_exchanged_image_is_not_scored_and_made_again(copied):
    """Another seed's image is refused by eval-fid; sample makes the right one, and nothing else, anew."""
    folder = SampleFolder(copied / "runs/small/samples/euler")
    before = load_images(folder.path, range(64))
    shutil.copy(folder.image(4), folder.image(3))
    assert "000003.png is not the image that snrkit sample made" in refused(copied, "eval-fid", "-q")
    kept = folder.image(5).stat().st_mtime_ns
    assert "1 images were damaged or gone" in snrkit(copied, "sample", "-q").stderr
    assert (load_images(folder.path, range(64)).int() - before.int()).abs().max() <= 1
    assert folder.image(5).stat().st_mtime_ns == kept


def test_images_without_a_checksum_are_made_again(copied):
    """A file that no manifest lists, as a kill between its writing and its line leaves it, is not believed."""
    folder = SampleFolder(copied / "runs/small/samples/euler")
    before = load_images(folder.path, range(64))
    stored = folder.manifest()
    folder.write(stored.made, {seed: known for seed, known in stored.sums.items() if seed != 7})
    folder.image(7).write_bytes(b"half")
    snrkit(copied, "sample", "-q")
    assert (load_images(folder.path, range(64)).int() - before.int()).abs().max() <= 1


def test_a_manifest_gathers_what_processes_added(tmp_path):
    """Whole images alone, whichever process made them; a torn or damaged file of lines loses only its own."""
    folder = SampleFolder(tmp_path)
    made = {"a": 1}
    folder.write(made, {})
    folder.add(made, {0: b"0", 1: b"1"}, 0)
    folder.add(made, {5: b"5"}, 3)
    folder.add(made, {7: b"7"}, 4)
    folder.add({"a": 2}, {9: b"9"}, 5)  # by a command that was killed before the sampler changed
    folder.image(1).write_bytes(b"x")
    (tmp_path / "made-4.jsonl").write_text("null\n")
    assert folder.gather(made) == {1}
    assert folder.manifest().made == {"a": 1}
    assert sorted(folder.manifest().sums) == [0, 5]
    assert folder.missing([0, 1, 5, 7, 9]) == [1, 7, 9]
    assert not list(tmp_path.glob("made-*"))
    assert folder.gather(made) == set()


@pytest.mark.parametrize("sums", [None, [], {"x": "1"}, {"1": 2}, {"../1": "a"}, {"²": "a"}, {"9" * 30: "a"}])
def test_checksums_of_what_is_no_seed_are_refused(tmp_path, sums):
    """As a stranger's manifest may hold them, under a checksum that fits."""
    write_json(tmp_path / "manifest.json", {"finished": "", "checksums": sums})
    with pytest.raises(SnrkitError, match=r"manifest\.json"):
        SampleFolder(tmp_path).manifest()


@pytest.mark.parametrize("edited", ["network", "seed", "truncated", "gone"])
def test_the_configuration_of_a_run_is_as_it_was_written(copied, edited):
    """An edit is refused by what reads it; without the file the next command writes it anew."""
    path = copied / "runs/small/config.yaml"
    text = path.read_text()
    if edited == "gone":
        path.unlink()
        snrkit(copied, "train", "-q")
        assert path.read_text() == text
        return
    changes = {
        "network": ("channels: 8", "channels: 16"),
        "seed": ("\nseed: 0", "\nseed: 1"),
        "truncated": (text, text[:200]),
    }
    path.write_text(text.replace(*changes[edited]))
    assert path.read_text() != text
    for command in (["train", "-q"], ["sample", "-q"]):
        assert f"{path} cannot be believed" in refused(copied, *command)
    done = snrkit(copied, "export", str(copied / "runs/small"), plain=True, check=False)
    assert "cannot be believed" in done.stderr


def test_pages_hold_no_markup_of_others(tmp_path):
    """Tags, links and pictures in names are text, in Markdown as in HTML."""
    evil = "<script>alert(1)</script> [x](http://y) ![z](http://w)\n# title"
    for block in (Heading(evil), Paragraph(evil), Table((evil,), [(evil,)]), Picture(tmp_path / "a.png", evil)):
        text = markdown(block, tmp_path)
        assert "<" not in text
        assert "](http" not in text
        assert "\n# " not in text


def test_files_of_two_samplers_cannot_meet():
    """Whatever two names are, no file of one is a file of the other, or lies in its folder."""
    run = Run(Path("run"))
    names = ["a", "a-window", "a-checkpoints", "a-estimator", "a-000000320", "tuned", "a-scale-2"]
    made = {
        name: {
            run.samples(name), run.samples(f"{name}.png"), run.samples(f"{name}.npz"), run.samples_at(name, 320),
            run.samples(f"{name}@000000320.png"), run.metrics(name), run.curve(name),
            *(run.shift(name, suffix) for suffix in (".json", ".csv", ".png")),
            *(run.probe_picture(name, probe) for probe in ("window", "estimator")),
            run.tuned(name), run.tuned(name, ".jsonl"), run.compared(name), run.compared_samples(name),
            run.compared_samples(f"{name}.png"),
        }
        for name in names
    }  # fmt: skip
    for one in names:
        for two in names:
            assert one == two or not made[one] & made[two], (one, two)


@pytest.mark.parametrize("ending", [(".png", "network.safetensors"), ("made-0.jsonl", "state.json")])
def test_what_the_disk_does_not_give_is_not_taken_for_damaged(tmp_path, monkeypatch, ending):
    """An error in reading leaves manifest and checkpoints as they are, and is said."""
    folder, made = SampleFolder(tmp_path / "samples"), {"a": 1}
    folder.add(made, {0: b"0"}, 0)
    folder.gather(made)
    folder.add(made, {1: b"1"}, 0)
    path = save_checkpoint(tmp_path / "checkpoints", Checkpoint(320, TENSORS, {}))
    before, plain = written(tmp_path), os.open

    def failing(file, *rest, **named):
        if str(file).endswith(ending):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return plain(file, *rest, **named)

    monkeypatch.setattr(os, "open", failing)
    for read in (lambda: folder.gather(made), lambda: load_checkpoint(path),
                 lambda: sound_checkpoint(tmp_path / "checkpoints")):  # fmt: skip
        with pytest.raises(UnreadableError, match="cannot be read \\(Input/output error\\)"):
            read()
    monkeypatch.undo()
    assert written(tmp_path) == before


@pytest.mark.parametrize("name", ["state.json", "network.safetensors", "euler.png", "000003.png", "config.yaml"])
def test_repairing_puts_nothing_aside_that_the_disk_does_not_give(copied, monkeypatch, name):
    """`check --repair` names it with another remedy than damage has, and moves nothing."""
    before, plain = written(copied / "runs"), os.open

    def failing(file, *rest, **named):
        if str(file).endswith(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return plain(file, *rest, **named)

    monkeypatch.setattr(os, "open", failing)
    done = call("check", str(copied / "runs/small"), "--repair")
    monkeypatch.undo()
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines
    assert all("cannot be read (Input/output error); see to its disk" in line for line in lines), lines
    assert written(copied / "runs") == before


def test_a_repaired_run_is_sound_and_complete_again(copied):
    """Images that were damaged or are gone are listed no more, and the next `sample` makes these alone, bit for bit."""
    folder = SampleFolder(copied / "runs/small/samples/euler")
    before = written(folder.path)
    folder.image(3).write_bytes(folder.image(3).read_bytes()[:-1])
    folder.image(5).unlink()
    repaired = call("check", str(copied / "runs/small"), "--repair")
    assert repaired.returncode == 0
    assert "put aside in damaged/samples/euler/000000; run snrkit sample again" in repaired.stdout
    assert "000005.png: is not the image that was made; not listed any more; run snrkit sample" in repaired.stdout
    assert call("check", str(copied / "runs/small")).returncode == 0
    assert folder.missing([3, 4, 5]) == [3, 5]
    snrkit(copied, "sample", "-q")
    assert written(folder.path) == before


def test_a_training_without_its_files_is_still_its_own(copied):
    """With config.yaml and environment.json deleted, other images and another objective are refused all the same."""
    run = copied / "runs/small"
    (run / "config.yaml").unlink()
    (run / "environment.json").unlink()
    for setting in ("data.seed=1", "weighting={kind: elbo}", "target={kind: eps}"):
        for command in ("train", "sample"):
            assert "is of another training" in refused(copied, command, "-q", "--set", setting), setting
    snrkit(copied, "sample", "-q")


def test_a_damaged_checkpoint_is_no_fault_of_the_log(copied):
    """`check` names each file for what is wrong with it, and nothing else."""
    (newest(copied) / "state.json").write_text("null")
    done = snrkit(copied, "check", str(copied / "runs/small"), plain=True, check=False)
    (line,) = done.stdout.splitlines()
    assert line.startswith("checkpoints/000000640: ")


def test_damaged_files_are_put_aside(copied):
    """--repair moves what a command makes again, names the rest, and a second look finds nothing more to move."""
    run = copied / "runs/small"
    scores, environment = run / "metrics/euler.json", run / "environment.json"
    content = scores.read_bytes()
    for path in (scores, environment):
        path.write_bytes(path.read_bytes()[:-9])
    for words in (["check", str(run)], ["check", str(run), "--repair"], ["check", str(run), "--repair"]):
        done = snrkit(copied, *words, plain=True, check=False)
        assert done.returncode == 1
        assert "environment.json: " in done.stdout
    assert (run / "damaged/metrics/euler.json").read_bytes() == content[:-9]
    assert environment.exists()
    environment.unlink()
    snrkit(copied, "train", "-q")
    snrkit(copied, "eval-fid", "-q")
    assert snrkit(copied, "check", str(run), plain=True).returncode == 0
    assert scores.read_bytes() == content
