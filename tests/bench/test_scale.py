"""What models of size cost beside their network, as ratios against named baselines (`make bench`)."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import snrkit
from snrkit.base.distributed import World
from snrkit.commands.sample import encode
from snrkit.data.dataset import memory_dataset
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import make_extractor
from snrkit.metrics.features import extract
from snrkit.networks import UNet, make_network
from snrkit.sampling.grid import Karras
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Euler
from snrkit.training import batches
from snrkit.training.train import make_state, train
from tests.bench.pairs import ratio
from tests.metrics.test_metrics import seeded_inception
from tests.opened import open_task

WORLD = World(0, 1, torch.device("cpu"))


class Nothing(nn.Module):
    """A network that costs nothing."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x, time, cond=None):
        return self.w.expand(x.shape)


def task_of(side, **train):
    """The training of colour images with two classes, which are mirrored at random."""
    content = {
        "name": "bench", "process": {"kind": "edm"}, "target": {"kind": "x0"}, "precondition": {"kind": "edm"},
        "data": {"kind": "mixture", "shape": [3, side, side], "count": 2000, "components": 2, "flip": True},
        "levels": {"kind": "lognormal"}, "weighting": {"kind": "edm"}, "samplers": {},
        "network": {"kind": "unet", "channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "groups": 8, "classes": 2},
        "train": {"images": 10**9, "batch": 512, "label_dropout": 0.1, "averages": [], "clip": None, **train},
    }  # fmt: skip
    if train.get("augment"):
        content["network"]["augment"] = True
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2000, 3, side, side), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, 2, (2000,), generator=rng)
    opened = open_experiment(parse_experiment(content, "bench"), WORLD)
    return opened, replace(open_task(opened), dataset=memory_dataset("memory", pixels, labels))


@pytest.mark.parametrize("augment", [None, {"kind": "edm"}], ids=["plain", "augmented"])
@pytest.mark.parametrize("side", [32, 64])
def test_main_thread_of_training_over_making_its_batches_there(benchmark, monkeypatch, side, augment):
    """CPU time of the main thread for a step of 512 images, threads ahead against none: at most 15 %."""
    _, task = task_of(side, augment=augment)
    ours = train(task, make_state(task, Nothing()))
    with monkeypatch.context() as patch:
        patch.setattr(batches, "ahead", lambda make, keys, _: map(make, keys))
        alone = train(task, make_state(task, Nothing()))
        next(alone)
    ratio(benchmark, lambda: next(ours), lambda: next(alone), rounds=10, bound=0.15, clock=time.thread_time)


def test_training_a_unet_of_a_million_weights_over_a_bare_loop(benchmark, two_threads):
    """A step of 128 images of 3x32x32 against a hand-written one with its draws in series: at most 1 % more."""
    opened, task = task_of(32, batch=128, averages=[{"half_life": 5000}], clip=1.0)
    steps = train(task, make_state(task, make_network(opened.experiment.network, (3, 32, 32), 0)))
    network = make_network(opened.experiment.network, (3, 32, 32), 0).train()
    assert 0.8e6 <= sum(p.numel() for p in network.parameters()) <= 1.5e6
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in network.parameters()]
    pixels, labels, s = task.dataset.x0(task.train), task.dataset.labels[torch.tensor(task.train)], 0.5

    def bare_step():
        rows = torch.randint(len(pixels), (128,))
        x0, eps = pixels[rows], torch.randn(128, 3, 32, 32)
        x0 = torch.where((torch.rand(128) < 0.5)[:, None, None, None], x0.flip(3), x0)
        sigma = torch.exp(1.2 * torch.randn(128) - 1.2)[:, None, None, None]
        told, drop, d = sigma.flatten().log() / 4, torch.rand(128) < 0.1, sigma**2 + s**2
        output = network((x0 + sigma * eps) * d.rsqrt(), told, snrkit.Cond(labels=labels[rows].masked_fill(drop, -1)))
        loss = (output - (sigma * x0 - s**2 * eps) / (s * d.sqrt())).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 0.01)
        return float(loss.detach())

    ratio(benchmark, lambda: next(steps), bare_step, rounds=60, bound=1.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(A folder of 160 PNGs of 256x256 as `snrkit sample` writes them, their pixels)."""
    small = torch.randn(160, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(small, size=256, mode="bicubic")
    pixels = (smooth * 60 + 128).clamp(0, 255).to(torch.uint8)
    folder = SampleFolder(tmp_path_factory.mktemp("samples"))
    folder.add({"a": 1}, {seed: encode(image) for seed, image in enumerate(pixels)}, 0)
    folder.gather({"a": 1})
    return folder, pixels


def test_scoring_pngs_over_the_extractor_alone(benchmark, folder, tmp_path, two_threads):
    """Features of Inception's shape of PNGs of 256x256, against those of decoded images: at most 5 % more."""
    samples, pixels = folder
    weights = seeded_inception(tmp_path)
    data = memory_dataset("memory", pixels)
    extractor = make_extractor(MetricsConfig(features="inception", weights=weights), data, None, WORLD.device)
    images = samples.dataset(range(len(pixels)), tuple(pixels.shape[1:]))
    ratio(
        benchmark,
        lambda: extract(extractor, images, range(len(pixels)), 16, WORLD),
        lambda: [extractor.run(part) for part in torch.split(pixels, 16)],
        rounds=4,
        bound=1 / 0.95,
    )  # fmt: skip


def test_measuring_over_bare_network_calls(benchmark, two_threads):
    """`snrkit.measure` of 40 images of 3x64x64 at 4 levels, against as many calls of its U-Net: at most 10 % more."""
    shape, images, steps = (3, 64, 64), 40, 4
    network = make_network(UNet(channels=32, multipliers=(1, 2, 2), blocks=1, groups=8), shape, 0)
    network.eval().requires_grad_(False)
    denoiser = snrkit.wrap(network, snrkit.Edm(), snrkit.X0(), precondition=snrkit.EdmPrecondition())
    real = torch.rand(2, images, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, time_input = torch.randn(images, *shape), torch.zeros(images)

    def ours():
        sampler = Sampler(grid=Karras(steps=steps), solver=Euler())
        snrkit.measure(denoiser, sampler, trained=real[0], held=real[1], images=images, batch=images, bootstrap=100)

    @torch.no_grad()
    def bare():
        for _ in range(5 * steps):  # trajectories, two sorts of real images, and these scaled either way
            network(x, time_input, None)

    ratio(benchmark, ours, bare, rounds=4, bound=1.1)
