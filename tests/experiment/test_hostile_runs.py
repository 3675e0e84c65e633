"""Run directories of strangers: every checksum fits and nothing else need; one sentence each, little time and memory.

Nothing is run, connected to, or written outside the run directory, whose records a stranger may have sealed anew.
"""

import io
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from snrkit.base.files import checksum
from snrkit.base.sealed import line_of, read_json, write_json
from snrkit.experiment.sample_folder import SampleFolder
from tests.hostile import MIB, SECONDS, read
from tests.small import SMALL, edit, snrkit, write_config

CHANGES = {
    "data": {**SMALL["data"], "count": 1000},
    "network": {**SMALL["network"], "dropout": 0.0},
    "train": {**SMALL["train"], "images": 128, "save_every": 128, "snapshot_every": 128, "holdout_every": 128,
              "log_every": 64},
    "samplers": {"euler": {"grid": {"kind": "karras", "steps": 2}, "solver": {"kind": "euler"}}},
    "sample": {"seeds": "0-7", "batch": 8},
    "metrics": {**SMALL["metrics"], "ranges": 2},
    "shift": {"images": 20, "batch": 20, "bootstrap": 100, "probes": [], "estimator": {"images": 256, "channels": 4}},
}  # fmt: skip
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%pipe%touch REACHED\n"
HUGE = b"{" + b'"a": [' * 200_000
BOMB = b"\x93SAFE" + struct.pack("<Q", 2**60)


def reseal(path, change):
    """A record as a stranger would write it: changed, with the checksum that fits."""
    content = read_json(path)
    change(content)
    write_json(path, content)


def state(change):
    """A change of the newest checkpoint's state."""
    return lambda run: reseal(run / "checkpoints/000000128/state.json", change)


def weights(content, name="network"):
    """Weights of a checkpoint, with the checksum that fits."""

    def damage(run):
        folder = run / "checkpoints/000000128"
        (folder / f"{name}.safetensors").write_bytes(content)
        reseal(folder / "state.json", lambda state: state["checksums"].update({name: checksum(content)}))

    return damage


def image(content):
    """An image of a sampler, with the checksum that fits."""

    def damage(run):
        folder = SampleFolder(run / "samples/euler")
        stored = folder.manifest()
        folder.image(3).write_bytes(content)
        folder.write(stored.made, {**stored.sums, 3: checksum(content)})

    return damage


def picture(side, mode="L"):
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, "png")
    return out.getvalue()


def replaced(name, make):
    """A file, or folder, that is something else."""

    def damage(run):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)

    return damage


def pipe(path):
    os.mkfifo(path)


def link(target):
    return lambda path: path.symlink_to(target)


def hard(path):
    os.link(path.parents[2] / "victim", path)


def text(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def config(change):
    """config.yaml, changed and sealed anew."""

    def damage(run):
        path = run / "config.yaml"
        body = change(path.read_bytes().rpartition(b"# checksum: ")[0])
        path.write_bytes(body + b"# checksum: " + checksum(body).encode() + b"\n")

    return damage


def logged(line):
    return lambda run: (run / "train.jsonl").write_text(line_of(line))


def large(path):
    with path.open("wb") as file:
        file.truncate(2**40)


NAN = save({"x": torch.tensor([float("nan")])})
CASES = {
    "lock-is-a-link": ("train", replaced(".lock", link("../../victim"))),
    "lock-is-a-hard-link": ("train", replaced(".lock", hard)),
    "lock-is-a-pipe": ("train", replaced(".lock", pipe)),
    "lock-is-a-folder": ("train", replaced(".lock", Path.mkdir)),
    "checkpoints-are-a-link": ("train", replaced("checkpoints", link("../../elsewhere"))),
    "a-link-in-samples": ("sample", replaced("samples/euler/000000/000003.png", link("/etc/passwd"))),
    "a-link-to-itself": ("report", replaced("metrics", link("metrics"))),
    "a-link-to-the-root": ("report", replaced("shift", link("/"))),
    "config-is-a-pipe": ("train", replaced("config.yaml", pipe)),
    "config-has-a-base": ("export", config(lambda body: b"base: /etc/shadow\n" + body)),
    "config-has-code": ("export", config(lambda body: b"x: !!python/object/apply:os.system [touch REACHED]\n" + body)),
    "config-laughs": ("export", config(lambda body: b"".join(b"a%d: &a%d [*a%d,*a%d]\n" % (i, i, i - 1, i - 1)
                                                             for i in range(1, 50)) + body)),
    "config-is-no-text": ("export", config(lambda body: b"\xff" + body)),
    "config-is-large": ("export", replaced("config.yaml", large)),
    "config-asks-for-all-memory": ("export", config(lambda body: body.replace(b"channels: 8", b"channels: 16000"))),
    "config-names-a-folder-above": ("train", config(lambda body: body.replace(b"name: small", b"name: ../small"))),
    "environment-is-a-pipe": ("train", replaced("environment.json", pipe)),
    "environment-is-large": ("train", replaced("environment.json", large)),
    "environment-is-deep": ("train", replaced("environment.json", text(HUGE))),
    "environment-is-a-folder": ("train", replaced("environment.json", Path.mkdir)),
    "environment-of-other-types": ("report", lambda run: edit(run / "environment.json", packages=["torch"])),
    "state-is-a-pipe": ("train", replaced("checkpoints/000000128/state.json", pipe)),
    "state-leads-elsewhere": ("train", state(lambda s: s["checksums"].update({"../../../../secret": "0" * 32}))),
    "state-has-an-absolute-name": ("train", state(lambda s: s["checksums"].update({"/etc/passwd": "0" * 32}))),
    "state-of-other-images": ("train", state(lambda s: s.update(images=10**30))),
    "state-of-negative-images": ("train", state(lambda s: s.update(images=-1))),
    "state-without-a-tally": ("train", state(lambda s: s["numbers"].pop("tally"))),
    "state-with-a-list-of-numbers": ("train", state(lambda s: s.update(numbers=[]))),
    "state-with-a-text-as-step": ("train", state(lambda s: s["numbers"].update(step="x"))),
    "state-with-more-lines": ("train", state(lambda s: s["numbers"].update(log_lines=10**12))),
    "weights-are-a-pipe": ("sample", replaced("checkpoints/000000128/ema-1000.safetensors", pipe)),
    "weights-are-large": ("sample", replaced("checkpoints/000000128/ema-1000.safetensors", large)),
    "estimator-is-large": ("measure", replaced("estimator/network.safetensors", large)),
    "weights-are-not-finite": ("sample", weights(NAN, "ema-1000")),
    "weights-of-another-network": ("sample", weights(save({"x": torch.zeros(2)}), "ema-1000")),
    "weights-claim-more-than-there-is": ("sample", weights(struct.pack("<Q", 2**62) + b"{}", "ema-1000")),
    "weights-are-a-pickle": ("sample", weights(b"cos\nsystem\n(S'touch REACHED'\ntR.", "ema-1000")),
    "moments-of-other-shapes": ("train", weights(save({"out.weight/exp_avg": torch.zeros(3)}), "optimizer")),
    "a-checkpoint-of-a-long-number": ("check", lambda run: (run / "checkpoints" / ("9" * 200)).mkdir()),
    "a-checkpoint-of-a-superscript": ("check", lambda run: (
        (run / "checkpoints/²").mkdir(), (run / "config.yaml").unlink())),
    "log-is-a-pipe": ("report", replaced("train.jsonl", pipe)),
    "log-is-large": ("report", replaced("train.jsonl", large)),
    "log-of-another-kind": ("report", logged({"kind": "other", "step": 1, "images": 1})),
    "log-with-a-text": ("report", logged({"kind": "train", "step": "1", "images": 1})),
    "log-with-lists": ("report", logged({"kind": "held_out", "step": 1, "images": 1, "logsnr": [[1]], "loss": [],
                                         "eps_error": [], "held_images": 1})),
    "manifest-is-a-pipe": ("eval-fid", replaced("samples/euler/manifest.json", pipe)),
    "manifest-lists-no-seeds": ("eval-fid", lambda run: edit(run / "samples/euler/manifest.json",
                                                             checksums={"../../x": "0" * 32})),
    "manifest-lists-lists": ("eval-fid", lambda run: edit(run / "samples/euler/manifest.json", checksums=[[1]])),
    "manifest-of-fractions": ("eval-fid", lambda run: edit(run / "samples/euler/manifest.json",
                                                           checkpoint_images=1.5)),
    "an-image-runs-a-program": ("eval-fid", image(EPS)),
    "an-image-is-a-bomb": ("eval-fid", image(picture(20_000))),
    "an-image-of-another-size": ("eval-fid", image(picture(9))),
    "an-image-of-other-channels": ("eval-fid", image(picture(8, "RGB"))),
    "an-image-is-a-pipe": ("eval-fid", replaced("samples/euler/000000/000003.png", pipe)),
    "an-image-is-large": ("eval-fid", replaced("samples/euler/000000/000003.png", large)),
    "metrics-are-a-pipe": ("report", replaced("metrics/euler.json", pipe)),
    "metrics-of-another-shape": ("report", lambda run: edit(run / "metrics/euler.json", ranges=[])),
    "metrics-without-numbers": ("report", lambda run: edit(run / "metrics/euler.json", summary={"fd": {"mean": None}})),
    "metrics-of-text": ("report", lambda run: edit(run / "metrics/euler.json", nfe="<script>")),
    "shift-of-no-levels": ("report", lambda run: edit(run / "shift/euler.json", logsnr=[])),
    "shift-of-fewer-levels": ("report", lambda run: edit(run / "shift/euler.json", norm_gap=3)),
    "estimator-is-a-pipe": ("measure", replaced("estimator/network.safetensors", pipe)),
    "estimator-of-absurd-size": ("measure", lambda run: reseal(
        run / "estimator/estimator.json", lambda r: r["config"].update(channels=10**9))),
    "estimator-of-another-kind": ("measure", lambda run: reseal(
        run / "estimator/estimator.json", lambda r: r.update(config={"no": 1}))),
    "tune-is-a-pipe": ("tune", replaced("tune", lambda path: (path.mkdir(), os.mkfifo(path / "x.jsonl")))),
    "tune-of-other-lines": ("tune", replaced("tune", lambda path: (
        path.mkdir(), (path / "x.jsonl").write_text(line_of({"key": 1}))))),
}  # fmt: skip

PROGRAM = """
import contextlib, io, shutil
from pathlib import Path
from tests.experiment import test_hostile_runs as hostile
from snrkit.base.distributed import open_world
from snrkit.base.errors import SnrkitError
from snrkit.commands.check import run_checking
from snrkit.commands.eval_fid import run_scoring
from snrkit.commands.export import run_exporting
from snrkit.commands.measure_shift import run_measuring
from snrkit.commands.sample import run_sampling
from snrkit.commands.train import run_training
from snrkit.commands.tune import run_tuning
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.run import Run
from snrkit.reports.terminal import make_report

WORLD = open_world("cpu")

def checked(folder, e):
    found = run_checking(folder / "small", False)
    if found.sound:
        raise SnrkitError("all is sound, and the folder is ignored")
    raise SnrkitError(found.findings[0].what)

START = {
    "train": lambda folder, e: run_training(e, folder, WORLD, quiet=True),
    "sample": lambda folder, e: run_sampling(e, folder, WORLD, quiet=True),
    "eval-fid": lambda folder, e: run_scoring(e, folder, WORLD, quiet=True),
    "report": lambda folder, e: make_report(e, folder),
    "export": lambda folder, e: run_exporting(folder / "small", "diffusers", folder / "out", "network", None),
    "measure": lambda folder, e: run_measuring(e, folder, WORLD, quiet=True),
    "tune": lambda folder, e: run_tuning(e, folder, WORLD, (), "gap", ("0.scale",), quiet=True),
    "check": checked,
}
SETTINGS = {
    "measure": ["shift.probes=[estimator]"],
    "sample": ["sample.seeds=0-15"],
    "train": ["train.images=256"],
    "tune": ["samplers.euler.corrections=[{kind: epsilon_scaling}]", "tune.seeds=100-119"],
}

def start(name, command):
    e = load_experiment("finished/small.yaml", SETTINGS.get(command, ()))
    with contextlib.redirect_stdout(io.StringIO()):
        START[command](Path(name) / "runs", e)

def spoiled(name, damage):
    shutil.copytree("finished", name)
    (Path(name) / "victim").write_text("precious")
    (Path(name) / "elsewhere").mkdir()
    (Path(name) / "elsewhere/000000001").mkdir()
    damage(Path(name) / "runs/small")

def benign():
    for command in START:
        spoiled(f"benign-{command}", lambda run: None)
        try:
            start(f"benign-{command}", command)
        except SnrkitError as error:
            assert command == "check", error

def cases():
    for name, (command, damage) in hostile.CASES.items():
        spoiled(name, damage)
        yield name, lambda: start(name, command)
"""


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """What every case met with, and the folder that it all happened in."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "finished").mkdir()
    write_config(folder / "finished", **CHANGES)
    for command in ("train", "sample", "measure-shift", "fit-estimator", "eval-fid"):
        snrkit(folder / "finished", command, "-q")
    return folder, read(folder, PROGRAM)


def test_every_run_directory_is_tried(met):
    """None is left out."""
    assert list(met[1]) == list(CASES)
    assert len(CASES) > 60


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_run_directory_ends_in_one_sentence(met, name):
    """Within 5 CPU seconds, with at most 200 MiB more than before; only the run directory is written to."""
    folder, found = met
    assert not found[name].said.startswith(("READ", "RAISED")), found[name].said
    assert len(found[name].said.splitlines()) == 1
    assert found[name].seconds < SECONDS
    assert found[name].grown < MIB
    own = (f"wrote {name}/runs/small/", f"wrote {os.environ['SNRKIT_CACHE']}/")
    assert [done for done in found[name].done if not done.startswith(own)] == []
    assert not list(folder.rglob("REACHED"))
    assert (folder / name / "victim").read_text() == "precious"
    assert list((folder / name / "elsewhere").iterdir())
