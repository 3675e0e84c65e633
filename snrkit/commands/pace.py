"""How long work takes here, by the pace of a few evaluations or steps, of which nothing is kept."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from snrkit.commands.opening import open_model_aloud
from snrkit.commands.progress import bar
from snrkit.experiment.models import TrainedHere
from snrkit.experiment.opening import AUTOCAST, Opened, open_network
from snrkit.experiment.run import Run
from snrkit.experiment.trajectories import Trajectories, trajectories
from snrkit.networks.config import Conditioning
from snrkit.sampling.sampler import Sampler, parse_seeds

TRIED = {"cpu": 64, "cuda": 256}  # images of a step, at most, by which the pace of a training is known
SPENT, MOST = 4.0, 20  # seconds of tries after one that warms up, and how many at most


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several tries, as others may be held up by what else the machine does.

    The work ends with a number, for which devices wait.
    """
    taken: list[float] = []
    with bar("measuring the pace", unit="tries") as here:
        while len(taken) < 2 or (sum(taken[1:]) < SPENT and len(taken) <= MOST):
            begun = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begun)
            here.update(len(taken))
    return min(taken[1:])


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
    batch = min(batch, TRIED.get(device.type, TRIED["cuda"]))
    x = torch.linspace(-1, 1, batch * math.prod(shape), device=device).reshape(batch, *shape)
    cond, at = takes.zeros(batch).to(device), torch.zeros(batch, device=device)

    def step() -> float:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = network(x, at, cond).float().square().mean()
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    return batch / _fastest(step)


@torch.no_grad()
def sampling_takes(opened: Opened, evaluations: int) -> str:
    """How long so many evaluations of an image are, by a few of the network, which need not be trained yet."""
    e, setting = opened.experiment, opened.setting
    if isinstance(e.model, TrainedHere):
        network, takes = open_network(e.model, setting).to(setting.world.device), setting.parts.network.conditioning
        autocast, shape = AUTOCAST[setting.compute.precision], setting.data.dataset.shape
        each = 1 / training_pace(network, shape, e.sample.batch, setting.world.device, takes, autocast)
    else:
        samples, sampler = trajectories(opened, open_model_aloud(opened, Run(Path()))), next(iter(e.samplers.values()))
        each = evaluation_seconds(samples, sampler, parse_seeds(e.sample.seeds)[: e.sample.batch])
    return f"{evaluations:,} evaluations of an image take about {duration(each * evaluations)} here"


@torch.no_grad()
def evaluation_seconds(samples: Trajectories, sampler: Sampler, seeds: Sequence[int]) -> float:
    """Seconds that the network takes for one image of a batch of `seeds`, at the first level of a sampler."""
    own, x, cond, _ = samples.begin(sampler, samples.open(sampler), seeds)
    denoise = samples.model.denoiser
    return _fastest(lambda: float(denoise(x, own.levels[0], cond=cond).x0.sum())) / len(seeds)
