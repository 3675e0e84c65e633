"""`snrkit sweep`: what is trained, what is shared, what is compared."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError, SnrkitError
from snrkit.base.records import to_json
from snrkit.base.sealed import read_json, write_json, write_lines
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands import sweep as sweeping
from snrkit.commands.sweep import check_file, load_sweep, make_table, row_path, run_sweep, sweep_trials
from snrkit.data.dataset import to_unit
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.lock import locked
from snrkit.experiment.opening import open_experiment, open_model
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import trajectories
from snrkit.metrics.appearance import appearance, looks
from tests.small import SMALL, snrkit, write_config, written

WORLD = World(0, 1, torch.device("cpu"))
ARMS = {"plain": [], "raw": ["sample.average=network"], "cold": ["train.lr=1e-5"]}


SHIPPED = [
    path for path in sorted((Path(__file__).parents[2] / "studies").rglob("*.yaml")) if "\narms:" in path.read_text()
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path):
    """Every arm with every seed is an experiment; `validate` knows sweeps from experiments."""
    sweep = load_sweep(path)
    assert len(check_file(path)) == len(sweep.seeds) * len(sweep.arms)


def write_sweep(folder: Path, **changes) -> Path:
    train = {**SMALL["train"], "images": 640, "augment": None, "averages": [{"half_life": 500}]}
    network = {**SMALL["network"], "augment": False, "dropout": 0.0}
    write_config(folder, train=train, network=network, metrics={**SMALL["metrics"], "ranges": 1})
    path = folder / "knobs.yaml"
    content = {"base": "small.yaml", "settings": ["sample.seeds=0-31"], "seeds": [3, 5], "arms": ARMS, **changes}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def swept_json(path, runs, settings=()):
    """What the command prints."""
    return to_json(run_sweep(path, runs, WORLD, settings, quiet=True))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(folder, record) of a finished sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, swept_json(write_sweep(folder), folder / "runs")


def test_arms_that_train_alike_share_a_run(swept):
    """Weights are trained once per seed; a run directory each for those that differ."""
    folder, record = swept
    assert sorted(p.name for p in (folder / "runs").iterdir() if p.is_dir()) == [
        "knobs-cold-3", "knobs-cold-5", "knobs-plain-3", "knobs-plain-5",
    ]  # fmt: skip
    assert record["arms"]["raw euler"]["weights"] == "network"
    assert record["arms"]["plain euler"]["weights"] == "ema-500"
    assert set(record["arms"]) == {f"{arm} {sampler}" for arm in ARMS for sampler in ("euler", "ancestral")}


def test_rows_are_compared_with_the_first_arm_seed_by_seed(swept):
    """The difference is that of the means, its interval Student's on two pairs; the first arm has none."""
    record = swept[1]["arms"]
    for sampler in ("euler", "ancestral"):
        first, cold = record[f"plain {sampler}"], record[f"cold {sampler}"]
        assert first["less_first"] is None
        pairs = [a - b for a, b in zip(cold["fd"]["values"], first["fd"]["values"], strict=True)]
        less = cold["less_first"]["fd"]
        assert less["mean"] == pytest.approx(sum(pairs) / 2)
        half = 12.706 * abs(pairs[0] - pairs[1]) / 2
        assert (less["low"], less["high"]) == pytest.approx((sum(pairs) / 2 - half, sum(pairs) / 2 + half), rel=1e-3)


def test_a_distance_of_too_few_images_is_kept_as_such(swept):
    """Of an arm, and of those that are compared with it; 32 images of a range for 4 features are enough."""
    folder, _ = swept
    sweep = load_sweep(folder / "knobs.yaml")
    rows = [(trial, sweeping.stored_row(trial, folder / "runs")) for trial in sweep_trials(sweep, "knobs", [])]
    assert not any(arm.biased for arm in make_table(sweep, rows).arms.values())
    few = [
        (trial, replace(row, samplers={
            name: replace(found, biased=("fd",) if (trial.arm, name) == ("plain", "euler") else ())
            for name, found in row.samplers.items()
        }))
        for trial, row in rows
    ]  # fmt: skip
    shifted = {label for label, arm in make_table(sweep, few).arms.items() if arm.biased}
    assert shifted == {f"{arm} euler" for arm in ARMS}


def test_few_images_of_a_trial_are_seen(swept):
    """With its row: 32 images of a range are too few for 48 features."""
    folder, _ = swept
    trial = sweep_trials(load_sweep(folder / "knobs.yaml"), "knobs", ["metrics.pixel_components=48"])[0]
    opened = open_experiment(trial.experiment, WORLD)
    found = sweeping.score_samplers(opened, Run(folder / "runs" / trial.experiment.name), 640, True)
    assert {row.biased for row in found.values()} == {("fd",)}


def test_nothing_is_made_twice(swept, monkeypatch):
    """The same command only reads; a changed setting of one arm makes that arm anew and no other."""
    folder, record = swept
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    monkeypatch.setattr(sweeping, "run_training", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(sweeping, "score_samplers", lambda *_: pytest.fail("scored again"))
    again = swept_json(folder / "knobs.yaml", folder / "runs")
    assert again == record
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before
    with pytest.raises(BaseException, match="scored again"):
        run_sweep(folder / "knobs.yaml", folder / "runs", WORLD, ["sample.seeds=0-15"], ["raw"], quiet=True)


def test_an_interrupted_arm_goes_on(tmp_path):
    """A run that stopped half-way is trained to its end, not from its beginning."""
    path = write_sweep(tmp_path, arms={"plain": []}, seeds=[0])
    trial = sweep_trials(load_sweep(path), "knobs", ["train.images=320"])[0]
    sweeping.run_training(trial.experiment, tmp_path / "runs", WORLD, True)
    run_sweep(path, tmp_path / "runs", WORLD, quiet=True)
    log = [json.loads(line) for line in (tmp_path / "runs/knobs-plain-0/train.jsonl").read_text().splitlines()]
    assert [line["images"] for line in log if line["kind"] == "train"] == [320, 640]
    assert int(list_checkpoints(tmp_path / "runs/knobs-plain-0/checkpoints")[-1].name) == 640


def test_several_at_once_share_the_work(tmp_path, caplog):
    """A run that another process holds is left to it, said, and the rest is done."""
    path = write_sweep(tmp_path, seeds=[0])
    with locked(Run(tmp_path / "runs" / "knobs-cold-0")):
        record = swept_json(path, tmp_path / "runs")
    assert "other processes work on cold (seed 0)" in caplog.text
    assert {label.split()[0] for label in record["arms"]} == {"plain", "raw"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {"a": ["weighting.kind=nope"], "b": ["train.lr=-1"]}}, r"(?s)arm a.*unknown kind.*arm b.*greater"),
        ({"arms": {}}, "arms: it needs a mapping from names to lists"),
        ({"arms": {"a": "train.lr=1"}}, "arms.a: it needs a mapping from names to lists of path=value"),
        ({"seeds": "0-2"}, r"seeds: it needs a list such as \[0, 1, 2\], not '0-2'"),
        ({"settings": {"a": 1}}, "settings: it needs a list of path=value"),
        ({"arms": {"a/b": []}}, "becomes a folder"),
        ({"seeds": [1, 1]}, "given twice"),
        ({"speed": 3}, "speed: unknown key. Known keys: base, settings, seeds, arms"),
        ({"arms": {"a": ["seed=7"]}}, "arm a: seed=7: seeds and names are the sweep's own"),
        ({"arms": {"a": ["train.clip={kind: groups, norms: {nothing: 1}}"]}}, "arm a.*no parameter falls to"),
        ({"arms": {"a": ["data.labels=none", "metrics.features=classifier"]}}, "arm a"),
        ({"base": "absent.yaml"}, "does not exist"),
        ({"arms": {"a": ["sample.average=snapshots-0.9"]}}, "arm a: .*made of snapshots; set train.snapshot_every"),
        ({"arms": {"a": ["sample.average=posthoc-0.1", "train.snapshot_every=320"]}}, "made of power averages"),
        ({"arms": {"a": ["sample.average=snapshots-x"]}}, "'snapshots-x' is no posthoc-<width> or snapshots-<decay>"),
        ({"arms": {"a": ["sample.average=snapshots-1.5"]}}, "a decay lies in"),
        ({"arms": {"a": ["sample.average=posthoc-0.30"]}}, "a width lies between"),
        ({"arms": {"a": ["sample.average=posthoc-0.10"]}}, "'posthoc-0.10' is written posthoc-0.1"),
    ],
)
def test_faults_are_said_before_anything_is_trained(tmp_path, changes, words):
    """All faults of all arms at once, and nothing is written."""
    path = write_sweep(tmp_path, **changes)
    before = written(tmp_path)
    with pytest.raises(ConfigError, match=words):
        run_sweep(path, tmp_path / "runs", WORLD, quiet=True)
    assert written(tmp_path) == before


def test_an_experiment_and_a_sweep_are_told_apart(tmp_path):
    """Each given to the other's command is called what it is."""
    sweep = write_sweep(tmp_path)
    base = tmp_path / yaml.safe_load(sweep.read_text())["base"]
    with pytest.raises(ConfigError, match=r"is an experiment and no sweep, as it has no arms"):
        load_sweep(base)
    with pytest.raises(ConfigError, match=r"is a sweep, as it has arms; run snrkit sweep"):
        load_experiment(sweep)


def test_arms_that_compute_or_clip_otherwise_do_not_share(tmp_path):
    """Precision, snapshots and the order of clipping groups decide weights or files; sampling does not."""
    groups = "train.clip={{kind: groups, norms: {{{}}}}}"
    arms = {
        "a": [], "half": ["compute.precision=bf16"], "kept": ["train.snapshot_every=320"],
        "g1": [groups.format("conv: 1, mid: 2")], "g2": [groups.format("mid: 2, conv: 1")], "b": ["shift.images=31"],
    }  # fmt: skip
    trials = sweep_trials(load_sweep(write_sweep(tmp_path, arms=arms, seeds=[0])), "s")
    assert [t.experiment.name for t in trials] == ["s-a-0", "s-half-0", "s-kept-0", "s-g1-0", "s-g2-0", "s-a-0"]


def test_an_arm_that_breaks_off_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    """Its sentence stands on the page; the same command does not try it again."""
    path = write_sweep(tmp_path, arms={"plain": [], "wild": ["train.lr=1e30", "train.images=1280"]}, seeds=[0])
    record = swept_json(path, tmp_path / "runs")
    assert "not finite in 10 steps" in record["failed"]["wild, seed 0"]
    assert {label.split()[0] for label in record["arms"]} == {"plain"}
    assert "Broken off" in (tmp_path / "runs" / "knobs.md").read_text()
    told = snrkit(tmp_path, "sweep", str(path), "--runs", str(tmp_path / "runs"), "-q", plain=True).stdout
    assert "broken off: wild, seed 0: training stopped" in " ".join(told.split())
    monkeypatch.setattr(sweeping, "run_training", lambda *_: pytest.fail("trained again"))
    assert swept_json(path, tmp_path / "runs") == record


def test_rows_are_of_the_images_they_say(tmp_path):
    """A run that was trained farther is not scored as a shorter one, unless it kept the checkpoint."""
    path = write_sweep(tmp_path, arms={"plain": []}, seeds=[0])
    run_sweep(path, tmp_path / "runs", WORLD, quiet=True)
    with pytest.raises(SnrkitError, match="no checkpoint at 256 images"):
        run_sweep(path, tmp_path / "runs", WORLD, ["train.images=256"], quiet=True)
    record = swept_json(path, tmp_path / "runs", ["train.images=320"])
    assert record["everywhere"] == ["sample.seeds=0-31", "train.images=320"]
    stored = [json.loads(p.read_text()) for p in (tmp_path / "runs/knobs-plain-0/sweep").glob("*.json")]
    assert {row["samplers"]["euler"]["made"]["checkpoint_images"] for row in stored} == {320, 640}


def test_rows_of_other_images_are_refused(swept, tmp_path):
    """A row says which data set its images' model was trained on; nothing is made beside other images."""
    copytree(swept[0], tmp_path / "copy")
    path = next((tmp_path / "copy/runs").glob("*/sweep/plain-*.json"))
    row = read_json(path)
    row["samplers"]["euler"]["made"]["data"] = "other"
    write_json(path, row)
    with pytest.raises(RunError, match=rf"{path.name} was made of other images"):
        run_sweep(tmp_path / "copy/knobs.yaml", tmp_path / "copy/runs", WORLD, quiet=True)


def test_averages_made_afterwards_are_made(tmp_path):
    """sample.average: snapshots-0.5 or posthoc-0.1 of an arm needs no other command."""
    kept = ["train.snapshot_every=320", "train.averages=[{kind: power, width: 0.05}, {kind: power, width: 0.1}]"]
    arms = {
        "kept": kept,
        "mean": [*kept, "sample.average=snapshots-0.5"],
        "wide": [*kept, "sample.average=posthoc-0.2"],
    }
    record = swept_json(write_sweep(tmp_path, arms=arms, seeds=[0]), tmp_path / "runs")
    assert record["arms"]["mean euler"]["weights"] == "snapshots-0.5"
    assert record["arms"]["wide euler"]["weights"] == "posthoc-0.2"
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()] == ["knobs-kept-0"]


def test_what_the_log_says_of_a_training(tmp_path):
    """Means over steps that were not skipped, whatever the lines' lengths, until the images that are asked for."""
    rest = {"loss": 1.0, "clipped_norm": 1.0, "lr": 0.1, "seconds": 1.0, "images_per_second": 1.0}
    trained = [
        {"kind": "train", "step": step, "images": 10 * step, "skipped": skipped, "grad_norm": norm,
         "clipped_share": share, **rest}
        for step, skipped, norm, share in (
            (10, 0, 1.0, 0.5), (30, 20, None, None), (60, 0, 3.0, 0.1), (70, 0, 9.0, 1.0)
        )
    ]  # fmt: skip
    held = {"kind": "held_out", "step": 30, "images": 300, "logsnr": [0.0], "loss": [0.1], "eps_error": [0.2],
            "held_images": 1}  # fmt: skip
    run = Run(tmp_path)
    write_lines(run.log, [*trained[:2], held, *trained[2:]])
    facts = to_json(sweeping.training_facts(run, 600))
    assert facts == {
        "skipped": 20, "grad_norm": pytest.approx((10 * 1 + 30 * 3) / 40),
        "clipped_share": pytest.approx((10 * 0.5 + 30 * 0.1) / 40), "held_out": held,
    }  # fmt: skip
    broken = to_json(sweeping.training_facts(run, 90))  # off before the first line
    assert broken == {"skipped": 0, "grad_norm": None, "clipped_share": None, "held_out": None}


def test_rows_hold_what_the_log_and_the_images_say(swept):
    """The table's power is that of the images that the arm makes, its norms those of its log."""
    folder, record = swept
    trial = sweep_trials(load_sweep(folder / "knobs.yaml"), "knobs")[0]
    opened = open_experiment(trial.experiment, WORLD)
    run = Run(folder / "runs" / "knobs-plain-3")
    images = trajectories(opened, open_model(opened, run)).images(trial.experiment.samplers["euler"], range(32))
    data = appearance([opened.data.dataset.x0(opened.data.split.train)], opened.data.dataset.shape)
    wanted = looks(appearance([to_unit(images)], opened.data.dataset.shape), data)
    row = sweeping.stored_row(trial, folder / "runs")
    assert row.samplers["euler"].looks.power == pytest.approx(wanted.power, rel=1e-4)
    norms = [json.loads(line)["grad_norm"] for line in run.log.read_text().splitlines() if '"train"' in line]
    assert record["arms"]["plain euler"]["grad_norm"][0] == pytest.approx(sum(norms) / len(norms))
    assert record["arms"]["plain euler"]["skipped"] == 0


def test_what_can_be_put_right_is_no_result(tmp_path, monkeypatch):
    """A damaged checkpoint or a full disk ends the command; the next one tries again."""
    path = write_sweep(tmp_path, arms={"plain": []}, seeds=[0])
    real = sweeping.run_training

    def broken(*_):
        raise RunError("the checkpoint is damaged; delete it to go on")

    monkeypatch.setattr(sweeping, "run_training", broken)
    with pytest.raises(SnrkitError, match="arm plain, seed 0: the checkpoint is damaged"):
        run_sweep(path, tmp_path / "runs", WORLD, quiet=True)
    monkeypatch.setattr(sweeping, "run_training", real)
    assert set(swept_json(path, tmp_path / "runs")["arms"]) == {"plain euler", "plain ancestral"}


def test_what_another_process_finishes_in_between_is_in_the_table(tmp_path, monkeypatch):
    """Arms that are held at first are tried once more at the end."""
    path = write_sweep(tmp_path, arms={"cold": ["train.lr=1e-5"], "plain": []}, seeds=[0])
    held, real = locked(Run(tmp_path / "runs" / "knobs-cold-0")), sweeping.make_row
    held.__enter__()

    def releasing(trial, *rest):
        real(trial, *rest)  # raises while the arm is held
        held.__exit__(None, None, None)

    monkeypatch.setattr(sweeping, "make_row", releasing)
    record = swept_json(path, tmp_path / "runs")
    assert {label.split()[0] for label in record["arms"]} == {"cold", "plain"}


def test_an_arm_that_is_not_there_is_named(swept):
    """--arm with a wrong name."""
    with pytest.raises(ConfigError, match="this sweep has plain, raw, cold"):
        run_sweep(swept[0] / "knobs.yaml", swept[0] / "runs", WORLD, arms=["hot"], quiet=True)


def test_the_command_prints_and_writes_the_table(swept):
    """The page lists every arm and what it changes."""
    folder, _ = swept
    done = snrkit(folder, "sweep", str(folder / "knobs.yaml"), "--runs", str(folder / "runs"), "-q", plain=True)
    assert "cold euler" in done.stdout
    assert "broken off" not in done.stdout
    page = (folder / "runs" / "knobs.md").read_text()
    assert "| raw | sample.average=network |" in page
    assert page.count("| plain ") == 3


def test_looks_of_the_data_are_one():
    """Ratios of a set to itself; noise added shows in the high rings, equal brightness in the spread."""
    draws = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(400, 1, 2, 2, generator=draws), size=8, mode="bilinear")
    data = appearance([coarse[:100], coarse[100:]], (1, 8, 8))
    same = looks(appearance([coarse], (1, 8, 8)), data)
    assert same.power == pytest.approx([1] * 5, rel=1e-5)
    assert same.brightness == pytest.approx(1)
    noisy = looks(appearance([coarse + 0.3 * torch.randn(coarse.shape, generator=draws)], (1, 8, 8)), data)
    assert noisy.power[-1] > 3 > 1.2 > noisy.power[1]
    assert noisy.power[0] == pytest.approx(1, abs=0.05)
    level = coarse - coarse.mean((1, 2, 3), keepdim=True)
    assert looks(appearance([level], (1, 8, 8)), data).brightness < 1e-3


def test_power_is_that_of_the_rings():
    """White noise has its variance in every ring, a constant all its power in the first."""
    noise = torch.randn(500, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = appearance([2 * noise], (3, 16, 16)).power
    assert found == pytest.approx([4] * len(found), rel=0.1)
    flat = appearance([torch.full((2, 1, 8, 8), 0.5)], (1, 8, 8)).power
    assert flat == pytest.approx([0.25 * 64, 0, 0, 0, 0], abs=1e-9)


def test_looks_of_single_pixels_have_one_ring():
    """Images of one pixel and three channels: power is the mean square, over all channels."""
    x = torch.tensor([[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]]).reshape(2, 3, 1, 1)
    assert appearance([x], (3, 1, 1)).power == pytest.approx([3.0])


def test_rows_stay_where_a_key_came_later(tmp_path):
    """A key of `train` at the value that was meant before it was there has no part in where a row lies; another has."""
    path = write_sweep(tmp_path)

    def row(*settings):
        return row_path(sweep_trials(load_sweep(path), path.stem, settings)[0], tmp_path)

    apart = ("network.classes=0", "train.label_dropout=0", "train.noise_dropout=0")
    assert row("train.pairing=null", "train.stable_target=false") == row()
    assert row(*apart, "train.stable_target=true") != row(*apart)
    with_rows = sweeping._facts(sweep_trials(load_sweep(path), path.stem)[0])["train"]
    assert not {"pairing", "stable_target"} & with_rows.keys()
