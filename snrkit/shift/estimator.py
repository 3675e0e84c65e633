"""An estimator of the level of a state, q(logsnr | x).

A small network is shown forward samples alpha*x0 + sigma*eps of training images at levels uniform in logsnr between the
process's bounds, without being told the level, and says in which of K bins it lies (cross-entropy, the weight of a
level shared linearly between its two nearest bin centres). Its input is x over its root mean square, with ln of that as
one more number, so that it works in every scaling. Levels are drawn MARGIN nats beyond the bounds at both ends, so that
it can also say that a state lies outside. The recipe is snrkit's choice; Zhong et al. 2025 leave it open.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.base.ahead import behind
from snrkit.base.transfer import Reading, send
from snrkit.base.value import LARGEST_BATCH, WIDEST, Images, Value

CHUNK = 1024
MARGIN = 2.0  # nats


class EstimatorConfig(Value):
    """Size and training of the estimator of levels (snrkit fit-estimator)."""

    images: Images = Field(default=200_000, description="images that it is trained on, repeats counted")
    batch: int = Field(default=256, ge=2, le=LARGEST_BATCH, description="images of a training step")
    lr: float = Field(
        default=5e-3, gt=0, description="learning rate of AdamW at first, which falls to 0 as a half cosine"
    )
    bins: int = Field(
        default=64,
        ge=4,
        le=10_000,
        description="number of levels, even in logsnr, among which it says where a state is",
    )
    channels: int = Field(default=32, ge=4, le=WIDEST, description="channels of its first layer")


class LevelNetwork(nn.Module):
    """From states (B, C, H, W) to logits (B, K): two strided convolutions, then means and mean squares of features."""

    def __init__(self, image_channels: int, channels: int, bins: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.hidden = nn.Linear(6 * channels + 1, 4 * channels)
        self.out = nn.Linear(4 * channels, bins)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of x, float32."""
        size = x.float().flatten(1).square().mean(1).add(1e-12).sqrt()
        h = self.entry(x.float() / size[:, None, None, None])
        fine = h
        h = nn.functional.silu(self.down(nn.functional.silu(h)))
        h = h + nn.functional.silu(self.deep(h))
        features = [fine.square().mean((2, 3)).add(1e-6).log(), fine.mean((2, 3)), h.mean((2, 3)), h.std((2, 3))]
        joined = torch.cat([*features, size.log()[:, None]], 1)
        logits: Tensor = self.out(nn.functional.silu(self.hidden(joined)))
        return logits


@dataclass(frozen=True, slots=True)
class Estimator:
    """A fitted network with the centres (K,) of its bins, equally spaced in logsnr."""

    network: nn.Module
    centres: Tensor

    def log_q(self, x: Tensor) -> Tensor:
        """ln q (B, K) of every bin."""
        return torch.log_softmax(self.network(x), 1)

    def mean(self, states: Tensor) -> Tensor:
        """E_q[logsnr] (n,), float64, of states (n, C, H, W)."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            found = [
                self.log_q(part.to(device)).exp().double().cpu() @ self.centres for part in torch.split(states, CHUNK)
            ]
        return torch.cat(found)

    def log_density(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """ln q (B,) at logsnr () or (B,), interpolated between bin centres; the end bins hold beyond them."""
        place = send(self._place(logsnr).expand(len(x)), x.device)
        below = place.floor().clamp(0, len(self.centres) - 2).long()
        share = (place - below).float()
        logs = self.log_q(x)
        low, high = (logs.gather(1, (below + step)[:, None])[:, 0] for step in (0, 1))
        return low + share * (high - low)

    def gradient(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """The gradient (B, *) of ln q(logsnr | x) in x, in the dtype of x."""
        with torch.enable_grad():
            asked = x.detach().float().requires_grad_(True)
            (found,) = torch.autograd.grad(self.log_density(asked, logsnr).sum(), asked)
        return found.to(x.dtype)

    def targets(self, logsnr: Tensor) -> Tensor:
        """(B, K) shares of each level (B,) between its two nearest centres."""
        place = self._place(logsnr)
        below = place.floor().clamp(0, len(self.centres) - 2).long()
        share = (place - below)[:, None]
        out = torch.zeros(len(logsnr), len(self.centres), dtype=torch.float64)
        return out.scatter(1, below[:, None], 1 - share).scatter(1, below[:, None] + 1, share).float()

    def _place(self, logsnr: Tensor) -> Tensor:
        width = self.centres[1] - self.centres[0]
        return ((logsnr.cpu().double() - self.centres[0]) / width).clamp(0, len(self.centres) - 1)


def make_estimator(config: EstimatorConfig, bounds: tuple[float, float], image_channels: int, seed: int) -> Estimator:
    """A fresh estimator for levels between `bounds`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LevelNetwork(image_channels, config.channels, config.bins)
    return Estimator(network, torch.linspace(bounds[0] - MARGIN, bounds[1] + MARGIN, config.bins, dtype=torch.float64))


def fit(
    estimator: Estimator, batches: Iterator[tuple[Tensor, Tensor]], config: EstimatorConfig, device: torch.device
) -> Iterator[tuple[int, float]]:
    """Train on batches (states, logsnr), yielding (images, loss) of every step when the next has begun."""
    for seen, loss in behind(_steps(estimator, batches, config, device)):
        yield seen, loss.get()[0]
    estimator.network.eval().requires_grad_(False)


def _steps(
    estimator: Estimator, batches: Iterator[tuple[Tensor, Tensor]], config: EstimatorConfig, device: torch.device
) -> Iterator[tuple[int, Reading]]:
    """Each step's images and loss; cosine decay of the rate."""
    network = estimator.network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
    seen = 0
    while seen < config.images:
        x, logsnr = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 + math.cos(math.pi * seen / config.images)) / 2
        logs = torch.log_softmax(network(send(x, device)), 1)
        loss = -(send(estimator.targets(logsnr), device) * logs).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen += len(x)
        yield seen, Reading(loss.detach()[None])


@dataclass(frozen=True, slots=True)
class Calibration:
    """How good an estimator is on held-out forward samples."""

    error: float  # root mean square of E_q[logsnr] - logsnr, nats
    coverage: float  # probability that the level lies inside the central 90 % of q; 0.9 when calibrated


@torch.no_grad()
def calibrate(estimator: Estimator, states: Tensor, logsnr: Tensor) -> Calibration:
    """The calibration on states (n, C, H, W) of known levels (n,)."""
    device = next(estimator.network.parameters()).device
    q = torch.cat([estimator.log_q(part.to(device)).double().cpu() for part in torch.split(states, CHUNK)]).exp()
    top = q.cumsum(1)
    inside = (top.clamp(max=0.95) - (top - q).clamp(min=0.05)).clamp(min=0) / q.clamp(min=1e-30)
    coverage = (estimator.targets(logsnr).double() * inside).sum(1).mean()  # a bin's mass spread evenly over its range
    error = (q @ estimator.centres - logsnr).square().mean().sqrt()
    return Calibration(float(error), float(coverage))
