"""Runs exported to diffusers: what diffusers loads by itself samples to the same images; other runs are refused."""

import json

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.commands.export import unfit
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.opening import open_experiment, open_model
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import trajectories
from tests.small import SMALL, snrkit, write_config
from tests.spectral.test_levels import SPECTRAL

diffusers = pytest.importorskip("diffusers")
WORLD = World(0, 1, torch.device("cpu"))
STEPS = 5  # which divide 1000: DDIM of diffusers steps by floor(1000/n), off its own grid where that is rounded
NET = {
    **SMALL["network"], "multipliers": [1, 2], "augment": False, "classes": 0, "attention": [4], "head_channels": 8,
}  # fmt: skip
TRAIN = {**SMALL["train"], "images": 640, "augment": None, "label_dropout": 0.0, "lr": 5e-3, "warmup": 0}
DDPM = {
    "process": {"kind": "ddpm"}, "target": {"kind": "eps"}, "precondition": {"kind": "none"},
    "levels": {"kind": "uniform_time"}, "weighting": {"kind": "simple"}, "network": NET, "train": TRAIN,
    "samplers": {"own": {"grid": {"kind": "trailing", "steps": STEPS}, "solver": {"kind": "euler"}}},
}  # fmt: skip
KARRAS = {"own": {"grid": {"kind": "karras", "steps": STEPS}, "solver": {"kind": "euler"}}}
EDM = {"network": NET, "train": TRAIN, "samplers": KARRAS}
RUNS = {
    "eps": DDPM,
    "v-zero-snr": {**DDPM, "target": {"kind": "v"}, "process": {"kind": "ddpm", "rescale_betas_zero_snr": True}},
    "x0-cosine": {
        **DDPM, "target": {"kind": "x0"}, "process": {"kind": "ddpm", "betas": {"kind": "squaredcos_cap_v2"}},
    },
    "eps-ve": {**DDPM, "process": {"kind": "ddpm", "scaling": "ve"}},
    "labels": {**DDPM, "network": {**NET, "classes": 4}, "train": {**TRAIN, "label_dropout": 0.1}},
    "edm": EDM,
}  # fmt: skip


def theirs(folder, x, labels, steps=STEPS):
    """The images that diffusers makes of the folder, from the state x."""
    if (folder / "model_index.json").exists():
        pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
        network, scheduler = pipeline.unet, pipeline.scheduler
    else:
        network = diffusers.UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
        config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        out = network.eval()(scheduler.scale_model_input(x, t), t, labels).sample
        x = scheduler.step(out, t, x).prev_sample
    return x


@pytest.mark.parametrize("name", RUNS)
@torch.no_grad()
def test_diffusers_makes_the_same_images(name, tmp_path):
    """From the same noise, to 1e-4 in [-1, 1]; the null embedding of the time is left behind."""
    path = write_config(tmp_path, **RUNS[name])
    snrkit(tmp_path, "train", "-q")
    run = tmp_path / "runs" / "small"
    found = json.loads(snrkit(tmp_path, "export", str(run), "--json", plain=True).stdout)
    assert found["weights"] == "ema-1000"
    opened = open_experiment(load_experiment(path), WORLD)
    samples, sampler = trajectories(opened, open_model(opened, Run(run))), opened.experiment.samplers["own"]
    (batch,) = samples.generate(sampler, [list(range(8))])
    _, x, cond, _ = samples.begin(sampler, samples.open(sampler), list(range(8)))
    made = theirs(run / "export" / "diffusers", x.float(), cond.labels)
    assert batch.x0.abs().max() > 0.1
    torch.testing.assert_close(batch.x0.float(), made, rtol=0, atol=1e-4 * max(1, float(made.abs().max())))
    text = (run / "export/diffusers/unet/config.json").read_text()
    assert "null" not in json.loads(text)
    again = snrkit(tmp_path, "export", str(run), plain=True, check=False)
    assert again.returncode == 1
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"network": {"kind": "dit", "dim": 16, "heads": 2, "depth": 1, "patch": 2}},
            "only the unet is one of diffusers'",
        ),
        ({"network": {**NET, "time_scale": 1000.0}}, "reads 1000 times the time"),
        (
            {"process": {"kind": "flow"}, "target": {"kind": "flow"}, "samplers": {}},
            "no scheduler gives the times of a flow process",
        ),
        ({"precondition": {"kind": "edm"}}, "has the preconditioning edm"),
        ({"target": {"kind": "score"}}, "has the target score"),
    ],
)
def test_what_diffusers_has_no_place_for_is_refused(changes, said):
    """With the reason."""
    assert said in unfit(parse_experiment({**SMALL, **DDPM, **changes}, "small"))


def test_extra_scalars_are_refused():
    """A pipeline could not tell them."""
    assert "is told logsnr_noisy, logsnr_clean too" in unfit(parse_experiment({**SMALL, **SPECTRAL}, "small"))


def test_an_export_that_fails_leaves_nothing(tmp_path):
    """An absent run, and an unknown target."""
    onnx = ("export", "nowhere", "--to", "onnx"), "--to onnx: choose one of diffusers, snrkit"
    for arguments, said in ((("export", "nowhere"), "is not a run directory"), onnx):
        done = snrkit(tmp_path, *arguments, plain=True, check=False)
        assert done.returncode == 1
        assert said in done.stderr
    assert not list(tmp_path.iterdir())
