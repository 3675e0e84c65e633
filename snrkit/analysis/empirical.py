"""What a trained denoiser says of the data: errors, information and gradients, level by level.

    I-MMSE       I(x0; x) at logsnr l = 1/2 of the integral of snr * mse up to l          (Guo et al. 2005)
    eps          I(eps; x)(l) = I(x0; x)(l) - l/2 - h
    v, in vp     I(v; x)(l) = I(x0; x)(l) + I(x0; x)(-l) + ln(alpha sigma) - h

in nats per dimension, with h = h(x0) - ln(2 pi e)/2 fixed by I(eps; x) = 0 at the cleanest level read, which leaves
what eps and v still carry there. A denoiser's mse is at least the Bayes error, so that its information is an upper
bound on x0's; of eps's and v's, where an excess at the clean end enters with the other sign, it is none. Those two need
a density: snr * mse -> 1 at the clean end. Curves stop at the rounding to 8 bits (logsnr 12.2), and speak of the data
with that noise.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.level import ROUNDING_VARIANCE, Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.diffusion.process import Process

ROUNDING = -math.log(ROUNDING_VARIANCE)  # 12.18, the logsnr at which the noise is that of rounding to 8 bits
RESOLVED = 0.05
FLAT = 1e-9  # relative range of a curve that is no curve
Batch = tuple[Tensor, Cond]


def guesses(
    denoise: Denoiser, level: Level, batches: Sequence[Batch], noise: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(x0, x, x0_hat) of every batch, its images noised to `level` ()."""
    for x0, cond in batches:
        x = noised(x0, level, noise)
        yield x0, x, denoise(x, level, cond=cond).x0


def noised(x0: Tensor, level: Level, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """alpha x0 + sigma noise(x0)."""
    alpha, sigma = level.scales(x0)
    return alpha * x0 + sigma * noise(x0)


def x0_errors(
    denoise: Denoiser, process: Process, batches: Sequence[Batch], logsnr: Tensor, noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """|x0_hat - x0|^2 per dimension (L, n) of images in batches at levels (L,)."""
    rows = []
    for value in logsnr:
        made = guesses(denoise, process.level(value), batches, noise)
        rows.append(torch.cat([(guess - x0).double().square().flatten(1).mean(1).cpu() for x0, _, guess in made]))
    return torch.stack(rows)


@dataclass(frozen=True, slots=True)
class Information:
    """Nats per dimension of x0, eps and v in x, each (L,), and x0's gain per nat of logsnr."""

    x0: Tensor
    eps: Tensor
    v: Tensor
    density: Tensor


def information(logsnr: Tensor, mse: Tensor) -> Information:
    """Of mse (L,) per dimension of x0 at rising levels (L,), which lie evenly and symmetrically round 0."""
    assert torch.allclose(logsnr, -logsnr.flip(0))
    density = torch.exp(logsnr) * mse / 2
    below = density[0]  # where mse no longer changes, snr * mse integrates to itself
    steps = (density[1:] + density[:-1]) / 2 * logsnr.diff()
    x0 = below + torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    h = float(x0[-1] - logsnr[-1] / 2)
    eps = x0 - logsnr / 2 - h
    both = (nn.functional.logsigmoid(logsnr) + nn.functional.logsigmoid(-logsnr)) / 2  # ln(alpha sigma) in vp
    return Information(x0, eps, x0 + x0.flip(0) + both - h, density)


def has_density(found: Information) -> bool:
    """Whether the data look like a density at the cleanest level, where snr * mse is then 1, to five percent."""
    return abs(float(found.density[-1]) * 2 - 1) < RESOLVED


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, with mean ranks for ties: 1 where both rise together. NaN where one is constant but for rounding."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    parts = (one, other)
    if any(not bool(p.isfinite().all()) or float(p.max() - p.min()) <= FLAT * float(p.abs().max()) for p in parts):
        return math.nan
    return float(torch.corrcoef(torch.stack([torch.from_numpy(rankdata(p.numpy())) for p in parts]))[0, 1])


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of single images' losses at one level: root mean square norm, and |mean|^2 over the trace of the covariance."""

    norm: float
    signal_to_noise: float


def gradients(losses: Callable[[Tensor], Tensor], count: int, weights: Sequence[nn.Parameter]) -> Gradients:
    """From the gradients of `losses(index)` (), index () of `count` images, in `weights`; the mean's own noise is off.

    |mean|^2 of n samples exceeds the true one by tr Cov/n.
    """
    rows = []
    for index in torch.arange(count):
        found = torch.autograd.grad(losses(index), list(weights))
        rows.append(torch.cat([part.detach().double().cpu().flatten() for part in found]))
    each = torch.stack(rows)
    spread = float((each - each.mean(0)).square().sum()) / (count - 1)
    mean = max(0.0, float(each.mean(0).square().sum()) - spread / count)
    return Gradients(math.sqrt(float(each.square().sum(1).mean())), mean / spread if spread > 0 else math.nan)


def symmetric_levels(process: Process, count: int, reach: float = ROUNDING) -> Tensor:
    """Evenly spaced logsnr (count,) from -reach to reach, held within what the process was trained on."""
    low, high = process.bounds
    reach = min(reach, -low, high)
    if reach <= 0:
        raise SnrkitError(f"analyze needs levels on both sides of logsnr 0; this process has {low:.1f} to {high:.1f}")
    return torch.linspace(-reach, reach, count, dtype=torch.float64)


def level_of_share(logsnr: Tensor, density: Tensor, share: float) -> float:
    """The logsnr below which `share` of the information lies; density (L,) per nat at even levels (L,)."""
    pieces = (density[1:] + density[:-1]) / 2 * logsnr.diff()
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
    return float(np.interp(share * float(steps[-1]), steps.numpy(), logsnr.numpy()))
