"""How long work takes here, by the pace of a few evaluations or steps, of which nothing is kept."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from snrkit.commands.opening import open_model_aloud
from snrkit.commands.progress import bar
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.models import FromElsewhere, TrainedHere
from snrkit.experiment.opening import AUTOCAST, Opened, open_network
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import Trajectories, trajectories
from snrkit.networks.config import Conditioning
from snrkit.sampling.grid import UniformLogsnr
from snrkit.sampling.sampler import Sampler, parse_seeds
from snrkit.sampling.solvers import Euler

TRIED = {"cpu": 64, "cuda": 256}  # images of a step, at most, by which the pace of a training is known
FIRST, LONG = 4, 0.5  # images of the first step, and seconds of one that is not made larger
SPENT, MOST = 4.0, 20  # seconds of tries after one that warms up, and how many at most


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def rate(pace: float) -> str:
    """Images a second, to two digits at least."""
    return f"{pace:,.0f}" if pace >= 10 else f"{pace:.2g}"


def _fastest(work: Callable[[], object], spent: float = SPENT) -> float:
    """Seconds of the fastest of several tries, as others may be held up by what else the machine does.

    The work ends with a number, for which devices wait.
    """
    taken: list[float] = []
    with bar("measuring the pace", unit="tries") as here:
        while len(taken) < 2 or (sum(taken[1:]) < spent and len(taken) <= MOST):
            taken.append(_timed(work))
            here.update(len(taken))
    return min(taken[1:])


def _timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def training_pace(
    network: nn.Module,
    shape: Sequence[int],
    batch: int,
    device: torch.device,
    takes: Conditioning,
    autocast: torch.dtype | None,
) -> float:
    """Images a second of steps forward and backward of a network on `device`, on up to `batch` images (C, H, W).

    Forward alone where gradients are off.
    """
    most = min(batch, TRIED.get(device.type, TRIED["cuda"]))
    whole = torch.linspace(-1, 1, most * math.prod(shape), device=device).reshape(most, *shape)

    def step(images: int) -> float:
        cond, at = takes.zeros(images).to(device), torch.zeros(images, device=device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = network(whole[:images], at, cond).float().square().mean()
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    images = min(most, FIRST)
    while images < most and _fastest(partial(step, images), 0.0) < LONG:
        images = min(most, 2 * images)
    return images / _fastest(partial(step, images))


def runs_code(e: Experiment) -> str:
    """Why no pace is measured where opening the model would run code that it brings; nothing for other models."""
    if not isinstance(e.model, FromElsewhere) or e.model.code is None:
        return ""
    return f"how long they take is not tried, as {e.model.code} would be run"


@torch.no_grad()
def sampling_takes(opened: Opened, evaluations: int) -> str:
    """How long so many evaluations of an image are, by a few of the network, which need not be trained yet."""
    e, setting = opened.experiment, opened.setting
    if untried := runs_code(e):
        return f"{evaluations:,} evaluations of an image; {untried}"
    if isinstance(e.model, TrainedHere):
        network, takes = open_network(e.model, setting).to(setting.world.device), setting.parts.network.conditioning
        autocast, shape = AUTOCAST[setting.compute.precision], setting.data.dataset.shape
        each = 1 / training_pace(network, shape, e.sample.batch, setting.world.device, takes, autocast)
    else:
        samples = trajectories(opened, open_model_aloud(opened, Run(Path())))
        sampler = Sampler(grid=UniformLogsnr(steps=1), solver=Euler())  # which asks for nothing beside the model
        each = evaluation_seconds(samples, sampler, parse_seeds(e.sample.seeds)[: e.sample.batch])
    took = duration(each * evaluations / setting.world.size)
    return f"{evaluations:,} evaluations of an image take about {took} here; shifts and scores are not counted"


@torch.no_grad()
def evaluation_seconds(samples: Trajectories, sampler: Sampler, seeds: Sequence[int]) -> float:
    """Seconds that the network takes for one image of a batch of `seeds`, at the first level of a sampler."""
    own, x, cond, _ = samples.begin(sampler, samples.open(sampler), seeds)
    denoise = samples.model.denoiser
    return _fastest(lambda: float(denoise(x, own.levels[0], cond=cond).x0.sum())) / len(seeds)
