"""`snrkit audit`: schedulers of diffusers by their folders, experiments and runs; exit codes and sentences."""

import json

import pytest

from tests.small import SMALL, call, snrkit, write_config

diffusers = pytest.importorskip("diffusers")
EULER = {"grid": {"kind": "karras", "steps": 4}, "solver": {"kind": "euler"}}
INFLATED = {**EULER, "solver": {"kind": "churn", "s_noise": 1.1, "s_churn": 4.0, "s_min": 0.0, "s_max": None}}


def audit(*arguments):
    return call("audit", *map(str, arguments), "--device", "cpu")


def test_a_folder_whose_scheduler_tells_the_truth_ends_in_0(tmp_path):
    """As a pipeline saves it, or by its file; every call is a row, and the training pairs a line."""
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "scheduler")
    for what in (tmp_path, tmp_path / "scheduler", tmp_path / "scheduler" / "scheduler_config.json"):
        done = audit(what, "--steps", 4)
        assert done.returncode == 0, done.stderr
        assert "every level told is that of the state, to 0.01 nats" in done.stdout
        assert "training pairs of FlowMatchEulerDiscreteScheduler: 1000 times are told" in done.stdout
        assert [line.split()[0] for line in done.stdout.splitlines()[-6:-2]] == ["1", "2", "3", "4"]


def test_one_that_does_not_ends_in_1_and_says_where(tmp_path):
    """DDIM's linspace, at 10 steps; the JSON has every call. A tolerance that is wide enough lets it pass."""
    diffusers.DDIMScheduler(timestep_spacing="linspace").save_pretrained(tmp_path)
    done = audit(tmp_path, "--steps", 10)
    assert done.returncode == 1
    assert "beyond 0.01 nats: DDIMScheduler" in done.stdout
    done = audit(tmp_path, "--steps", 10, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert len(found["walks"][0]["calls"]) == 10
    assert len(found["beyond"]) >= 1
    assert audit(tmp_path, "--steps", 10, "--tolerance", 20).returncode == 0


@pytest.mark.parametrize("runs", [False, True])
def test_an_experiment_and_its_run(runs, tmp_path):
    """One row a sampler, and training pairs, trained or not; nothing is written."""
    path = write_config(tmp_path, samplers={"euler": EULER, "heun": {**EULER, "solver": {"kind": "heun"}}},
                        train={**SMALL["train"], "images": 64})  # fmt: skip
    what = ["--config", path]
    if runs:
        snrkit(tmp_path, "train", "--quiet")
        what = [tmp_path / "runs" / "small"]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = audit(*what)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training pairs" in done.stdout
    assert "small: every level told is that of the state" in done.stdout
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_sampler_that_inflates_its_noise_ends_in_1(tmp_path):
    """And only where it is asked about."""
    path = write_config(tmp_path, samplers={"euler": EULER, "inflated": INFLATED})
    assert audit("--config", path, "--sampler", "euler").returncode == 0
    done = audit("--config", path)
    assert done.returncode == 1
    assert "beyond 0.01 nats: inflated 4 of 7 calls" in done.stdout or "beyond 0.01 nats: inflated" in done.stdout


def test_input_perturbation_is_another_level_than_is_told(tmp_path):
    """Which is what it is for: ln(1 + gamma^2) nats to the noisy side."""
    path = write_config(tmp_path, samplers={"euler": EULER},
                        train={**SMALL["train"], "perturb": {"gamma": 0.5}})  # fmt: skip
    done = audit("--config", path)
    assert done.returncode == 1
    assert "training pairs have another level than is told" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "audit takes a YAML, a run directory, a folder of"),
        (["nowhere"], "audit: nowhere does not exist"),
        (["{folder}"], "holds neither scheduler/scheduler_config.json"),
        (["{folder}", "--set", "seed=1"], "it needs --config FILE"),
        (["{folder}", "--tolerance", "0"], "--tolerance 0 must be above 0"),
        (["{folder}", "--steps", "0"], "--steps 0 must be 1 to 10,000"),
        (["--config", "x.yaml", "--steps", "4"], "--steps is for schedulers of diffusers"),
        (["{folder}/bad.json"], "is no scheduler of the installed diffusers"),
        (["{folder}/list.json"], "is not valid JSON"),
        (["{folder}/tokens.json"], "works on masked tokens"),
        (["{folder}/long.json"], "asks for more than 100,000 of something"),
    ],
)
def test_what_cannot_be_audited_is_said_in_a_sentence(arguments, said, tmp_path):
    """Without a traceback, and nothing that a file names is run."""
    (tmp_path / "bad.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (tmp_path / "list.json").write_text("{")
    (tmp_path / "tokens.json").write_text(json.dumps({"_class_name": "AmusedScheduler", "mask_token_id": 1}))
    (tmp_path / "long.json").write_text(json.dumps({"_class_name": "DDPMScheduler", "num_train_timesteps": 10**9}))
    done = audit(*(text.format(folder=tmp_path) for text in arguments))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
