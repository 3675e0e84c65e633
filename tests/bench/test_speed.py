"""Speed as ratios against a named baseline, the median over interleaved pairs (`make bench`); never a unit test."""

import io
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snrkit.base.distributed import World
from snrkit.base.wavelet import Bands, dwt2, idwt2
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond, Prediction
from snrkit.diffusion.process import Edm
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Model, open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import sample_steps, trajectories
from snrkit.networks import UNet, make_network
from snrkit.sampling.corrections import Dcw
from snrkit.sampling.grid import Karras
from snrkit.sampling.sampler import Dummy, Sampler, open_with
from snrkit.sampling.solvers import Dpmpp2m, Euler
from snrkit.sampling.step import Call, Position, Step
from snrkit.spectral.grid import Spectral, SpectralGrid
from snrkit.spectral.measure import spectra_of
from snrkit.spectral.model import fit_spectrum_model
from snrkit.spectral.schedule import power_spectra
from snrkit.training.train import make_state, train
from tests.bench.pairs import ratio
from tests.opened import open_network, open_task
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))


def untrained(denoiser):
    return Model(denoiser, Weights("network", 0, ""), Run(Path("unused")))


@pytest.fixture(scope="module")
def opened():
    torch.set_num_threads(2)
    yield open_experiment(load_experiment("configs/digits.yaml"), WORLD)
    torch.set_num_threads(1)


def test_sampling_loop_over_bare_network_calls(benchmark, opened):
    """One Heun trajectory of 35 evaluations at batch 250, against 35 calls of the same network: at most 2 %."""
    network = open_network(opened).eval().requires_grad_(False)
    e = opened.experiment
    sampler = e.samplers["heun-35"]
    ready = open_with(sampler, e.process, Dummy(e.process))
    denoiser = NetworkDenoiser(network, e.process, e.target, e.precondition, opened.data.sigma_data)
    ready, x, cond, noise = trajectories(opened, untrained(denoiser)).begin(sampler, ready, range(250))
    small, time_input = x.float(), torch.rand(250)

    def ours():
        for _ in sample_steps(denoiser, ready, x, noise, cond):
            pass

    @torch.no_grad()
    def bare():
        for _ in range(35):
            network(small, time_input, cond)

    ratio(benchmark, ours, bare, rounds=7, bound=1.02)


def test_a_corrected_sampler_over_the_bare_one(benchmark, opened):
    """Euler with 13 evaluations at batch 250 on the digits' network, with Haar DCW in both bands: at most 1 % more."""
    network = open_network(opened).eval().requires_grad_(False)
    e = opened.experiment
    denoiser = NetworkDenoiser(network, e.process, e.target, e.precondition, opened.data.sigma_data)
    bare = Sampler(grid=Karras(steps=13), solver=Euler())
    readies = [
        open_with(bare.model_copy(update={"corrections": corrections}), e.process, Dummy(e.process))
        for corrections in ((Dcw(low=0.01, high=0.01),), ())
    ]
    _, x, cond, noise = trajectories(opened, untrained(denoiser)).begin(bare, readies[0], range(250))

    def walk(ready):
        for _ in sample_steps(denoiser, ready, x, noise, cond):
            pass

    ratio(benchmark, lambda: walk(readies[0]), lambda: walk(readies[1]), rounds=15, bound=1.01)


def test_training_loop_over_a_bare_loop(benchmark, opened):
    """Eight steps of the generator against eight hand-written ones (loss, backward, clip, AdamW, EMA): at most 3 %."""
    task = open_task(opened)
    state = make_state(task, open_network(opened))
    steps = train(task, state)

    network = open_network(opened).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in network.parameters()]
    pixels = opened.data.dataset.x0(opened.data.split.train)
    labels = opened.data.dataset.labels[torch.tensor(opened.data.split.train)]
    s = opened.data.sigma_data

    def bare_step():
        rows = torch.randint(len(pixels), (128,))
        x0, eps = pixels[rows], torch.randn(128, 1, 8, 8)
        sigma = torch.exp(1.2 * torch.randn(128) - 1.2)[:, None, None, None]
        drop, blind = torch.rand(128) < 0.1, torch.rand(128) < 0.1
        d = sigma**2 + s**2
        told = (sigma.flatten().log() / 4).masked_fill(blind, torch.nan)
        output = network((x0 + sigma * eps) * d.rsqrt(), told, Cond(labels=labels[rows].masked_fill(drop, -1)))
        wanted = (sigma * x0 - s**2 * eps) / (s * d.sqrt())
        loss = (output - wanted).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 0.01)
        return float(loss.detach())

    ratio(benchmark, lambda: [next(steps) for _ in range(8)], lambda: [bare_step() for _ in range(8)], 15, 1.03)


PLAIN = {"averages": [{"half_life": 5000}], "clip": None, "noise_dropout": 0.0, "label_dropout": 0.0}
KNOBS = {
    "ema over none": ({}, {"averages": []}),
    "three averages": ({"averages": [{"half_life": 5000}, {"kind": "power", "width": 0.05}, {"kind": "power"}]}, {}),
    "global norm": ({"clip": 1.0}, {}),
    "per layer": ({"clip": {"kind": "per_layer"}}, {}),
    "per unit": ({"clip": {"kind": "per_unit"}}, {}),
    "value": ({"clip": {"kind": "value"}}, {}),
    "agc": ({"clip": {"kind": "agc"}}, {}),
    "normalize": ({"clip": {"kind": "normalize"}}, {}),
    "importance": ({"importance": {}}, {}),
    "balance": ({"balance": {}}, {}),
    "uncertainty": ({"uncertainty": {}}, {}),
    "dropouts": ({"label_dropout": 0.1, "noise_dropout": 0.1}, {}),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_over_plain_adamw_and_ema(benchmark, opened, knob):
    """Single steps with one knob against those of AdamW and one average (or, for ema, of AdamW alone): at most 2 %."""
    steps = []
    for changes in KNOBS[knob]:
        content = opened.experiment.model_dump(mode="json")
        content["train"] |= {**PLAIN, **changes, "images": 10**9}
        e = open_experiment(parse_experiment(content, "bench"), WORLD)
        task = open_task(e)
        steps.append(train(task, make_state(task, open_network(e))))
    ratio(benchmark, lambda: next(steps[0]), lambda: next(steps[1]), 480, 1.02)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_from_files_over_memory(benchmark, tmp_path, monkeypatch, workers):
    """Single steps at 64x64, images read from a zip by threads or by so many processes: at most 1/0.95 of the time."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 64, 64, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for index, image in enumerate(pixels):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG", compress_level=0)
            archive.writestr(f"{index:08d}.png", content.getvalue())
    steps = []
    for largest, reading in ((10, workers), (2**30, 0)):
        monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", largest)
        data = {"kind": "zip", "path": str(tmp_path / "set.zip"), "sigma_data": 0.5, "workers": reading}
        network = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 4}
        train_part = {**PLAIN, "images": 10**9, "batch": 32}
        content = {**SMALL, "data": data, "network": network, "train": train_part, "samplers": {}}
        e = open_experiment(parse_experiment(content, "bench"), WORLD)
        task = open_task(e)
        steps.append(train(task, make_state(task, open_network(e))))
    ratio(benchmark, lambda: next(steps[0]), lambda: next(steps[1]), 24, 1 / 0.95)


def spectral(opened, **changes):
    """The digits' experiment with levels of every image's own, which the network is told the ends of."""
    content = opened.experiment.model_dump(mode="json")
    content |= {"process": {"kind": "vp"}, "target": {"kind": "v"}, "levels": {"kind": "spectral"}, "samplers": {},
                "weighting": {"kind": "sigmoid", "bias": {"kind": "spectral", "at": -1.0}}}  # fmt: skip
    content["train"] |= {**PLAIN, "images": 10**9}
    content["network"]["scalars"] = ["logsnr_noisy", "logsnr_clean"]
    content |= changes
    if changes:
        content["network"]["scalars"] = []
    return open_experiment(parse_experiment(content, "bench"), WORLD)


def test_spectral_levels_over_the_process_s_own(benchmark, opened):
    """Single training steps at levels of every image's own, told and weighed so, against uniform t: at most 2 %."""
    steps = []
    for changes in ({}, {"levels": {"kind": "uniform_time"}, "weighting": {"kind": "sigmoid", "bias": -1.0}}):
        e = spectral(opened, **changes)
        task = open_task(e)
        steps.append(train(task, make_state(task, open_network(e))))
    ratio(benchmark, lambda: next(steps[0]), lambda: next(steps[1]), 480, 1.02)


def test_a_grid_of_every_image_over_one_for_all(benchmark, opened):
    """Sixteen steps of dpmpp_2m at batch 250, spectra drawn and grids laid out included: at most 2 %."""
    found = spectral(opened)
    e, network = found.experiment, open_network(found).eval().requires_grad_(False)
    denoiser = NetworkDenoiser(network, e.process, e.target, e.precondition, found.sigma_data)
    known = Spectral(fit_spectrum_model(found.measured.once(spectra_of)), e.levels, True)
    runs = []
    for scope in ("instance", "dataset"):
        sampler = Sampler(grid=SpectralGrid(steps=16, scope=scope), solver=Dpmpp2m())
        dummy = Dummy(e.process)
        dummy_ready = open_with(sampler, e.process, dummy)
        runs.append((sampler, replace(dummy_ready, placement=known.placement(sampler.grid, e.process))))

    def walk(sampler, ready):
        own, x, cond, noise = trajectories(found, untrained(denoiser)).begin(sampler, ready, range(250))
        for step in sample_steps(denoiser, own, x, noise, cond):
            x = step.x_next

    ratio(benchmark, lambda: walk(*runs[0]), lambda: walk(*runs[1]), rounds=15, bound=1.02)


def test_spectra_over_their_transforms(benchmark, two_threads):
    """Power by ring of 2,000 images of 3x32x32 against their Fourier transforms alone: at most three times as long."""
    x0 = torch.randn(2000, 3, 32, 32)
    begin = time.perf_counter()
    for _ in range(25):
        power_spectra(x0)
    print(f"\n50,000 images of 3x32x32: {time.perf_counter() - begin:.1f} s")
    ratio(benchmark, lambda: power_spectra(x0), lambda: torch.fft.fft2(x0, norm="ortho"), rounds=15, bound=3)


BARE = """
import typer
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
{commands}
app()
"""


def test_help_over_a_bare_typer_app(benchmark, tmp_path):
    """`snrkit --help` against a Typer app of as many empty commands: at most 1.5 times."""
    commands = "\n".join(f"@app.command()\ndef c{i}(n: int = 0) -> None:\n    'A command.'\n" for i in range(8))
    script = tmp_path / "bare.py"
    script.write_text(BARE.format(commands=commands))

    def ours():
        subprocess.run([sys.executable, "-m", "snrkit", "--help"], check=True, capture_output=True)

    def bare():
        subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True)

    ratio(benchmark, ours, bare, rounds=15, bound=1.5)


def dcw_step(*shape):
    """A finished edm step on a float32 state, and the correction to be timed."""
    process = Edm()
    here, there = (process.level(torch.tensor(v, dtype=torch.float64)) for v in (-2.0, 0.0))
    x, x0 = torch.randn(2, *shape)
    return Step(Position(0, (here, there), here, there), x, (Call(here, Prediction(x0, x0)),), x), x, x0


def through_the_filter_bank(x, x0, low, high):
    """The same gains by two transforms, a correction of every band, and an inverse."""
    a, b = dwt2(x), dwt2(x0)
    moved = [
        band + gain * (band - other)
        for gain, band, other in zip(
            (low, high, high, high), (a.ll, a.lh, a.hl, a.hh), (b.ll, b.lh, b.hl, b.hh), strict=True
        )
    ]
    return idwt2(Bands(*moved), tuple(x.shape[-2:]))


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (1, 16, 128, 128)], ids=["32x32", "flux latents"])
@pytest.mark.parametrize(("low", "high"), [(0.05, 0.0), (0.05, 0.03)], ids=["low", "double"])
def test_haar_dcw_over_transforms(benchmark, low, high, shape):
    """The projection of the difference against two transforms and an inverse, float32: at most a third of the time."""
    step, x, x0 = dcw_step(*shape)
    correction = Dcw(low=low, high=high)
    torch.testing.assert_close(correction.after(step), through_the_filter_bank(x, x0, low, high), rtol=1e-4, atol=1e-5)
    ratio(benchmark, lambda: repeat(lambda: correction.after(step)),
          lambda: repeat(lambda: through_the_filter_bank(x, x0, low, high)), rounds=15, bound=1 / 3)  # fmt: skip


def repeat(run, times=20):
    for _ in range(times):
        run()


def test_haar_dcw_over_a_network_step(benchmark, two_threads):
    """DCW alone against one forward pass of a U-Net of 6 to 10 million parameters at 32x32, batch 64: at most 0.2 %."""
    network = make_network(UNet(channels=64, multipliers=(1, 2, 2), blocks=2), (3, 32, 32), 0).eval()
    count = sum(p.numel() for p in network.parameters())
    assert 6e6 <= count <= 10e6, count
    step, x, _ = dcw_step(64, 3, 32, 32)
    correction, time_input = Dcw(low=0.05, high=0.03), torch.zeros(64)

    @torch.no_grad()
    def forward():
        network(x, time_input, None)

    ratio(benchmark, lambda: correction.after(step), forward, rounds=5, bound=0.002)
