"""How long work takes here, by the pace of a few evaluations or steps, of which nothing is kept."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from snrkit.experiment.trajectories import Trajectories
from snrkit.networks.config import Conditioning
from snrkit.sampling.sampler import Sampler

TRIES = 3  # after one that warms up


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of TRIES, as others may be held up; work ends with a number, for which devices wait."""
    taken = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def training_pace(
    network: nn.Module,
    shape: Sequence[int],
    batch: int,
    device: torch.device,
    takes: Conditioning,
    autocast: torch.dtype | None,
) -> float:
    """Images a second of steps forward and backward of a network on `device`, on `batch` images (C, H, W)."""
    x = torch.linspace(-1, 1, batch * math.prod(shape), device=device).reshape(batch, *shape)
    cond, at = takes.zeros(batch).to(device), torch.zeros(batch, device=device)

    def step() -> float:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = network(x, at, cond).float().square().mean()
        loss.backward()
        return float(loss.detach())

    return batch / _fastest(step)


@torch.no_grad()
def evaluation_seconds(samples: Trajectories, sampler: Sampler, seeds: Sequence[int]) -> float:
    """Seconds that the network takes for one image of a batch of `seeds`, at the first level of a sampler."""
    own, x, cond, _ = samples.begin(sampler, samples.open(sampler), seeds)
    denoise = samples.model.denoiser
    return _fastest(lambda: float(denoise(x, own.levels[0], cond=cond).x0.sum())) / len(seeds)
