"""Power spectra of images, and noise schedules made of them.

    S(u, v) = mean over channels of |DFT|^2, orthonormal        P_k = mean of S where round(sqrt(u^2 + v^2)) = k

for k = 0 ... N/2 (corners are left out), so that white noise of variance 1 has P_k = 1 in every ring, and ring k stands
at SNR e^logsnr P_k. A schedule walks down the envelope Q_k = max_{j >= k} P_j, k = 1 ... K, since spectra of single
images do not fall throughout. With kappa(t) from kappa_max to kappa_min in equal ratios, at time t it puts frequency
f(t) at SNR kappa(t):

    logsnr(t) = ln kappa(t) - ln Q(f(t)),        f(0) = K,  f(1) = 1

    spectral_freq    f falls evenly: equal time for every frequency
    spectral_power   f falls so that equal times pass equal power (of rings 1 ... K; the mean brightness is no ring)
    spectral_mixed   the mean of the two logsnr
    spectral_even    logsnr falls evenly between the same ends, for comparison

Its ends are bounds: at t = 1 the strongest ring is buried (SNR kappa_min), at t = 0 the finest is resolved (kappa_max).

A reconstruction after Esteves & Makadia 2026; the constants are ours, as theirs are not known to us.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.diffusion.level import ROUNDING_VARIANCE

POINTS = 257  # of a tabulated schedule


def ring_members(side: int) -> Tensor:
    """(N, N, N/2 + 1) float64, 1 where a frequency of N x N images is in a ring; corners are in none."""
    frequency = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).round()
    return (radius[..., None] == torch.arange(side // 2 + 1)).double()


def check_square(shape: tuple[int, int, int]) -> None:
    """SnrkitError for images without rings, which are circles in cycles per image, alike along both sides."""
    _, height, width = shape
    if height != width or height < 4:
        raise SnrkitError(
            f"images of {height}x{width} have no spectrum by rings: that needs squares of at least 4x4 pixels; crop or "
            "pad them"
        )


def power_spectra(x0: Tensor) -> Tensor:
    """P (B, N/2 + 1) float64 of images x0 (B, C, N, N) in [-1, 1], on their device; at least ROUNDING_VARIANCE."""
    check_square((x0.shape[1], x0.shape[2], x0.shape[3]))
    members = ring_members(x0.shape[-1]).flatten(0, 1).to(x0.device)
    power = torch.fft.fft2(x0.float(), norm="ortho").abs().square().mean(1).flatten(1).double()
    means: Tensor = power @ members / members.sum(0)
    return means.clamp(min=ROUNDING_VARIANCE)


class SpectralSchedule(Value):
    """How logsnr falls over t for an image of known power spectrum."""

    kind: Literal["spectral_freq", "spectral_power", "spectral_mixed", "spectral_even"] = "spectral_mixed"
    kappa_min: float = Field(default=0.01, gt=0, description="SNR of the strongest ring at the noisy end")
    kappa_max: float = Field(default=100.0, gt=0, description="SNR of the finest ring at the clean end")
    dc: Literal["include", "exclude"] = Field(
        default="include", description="whether the mean brightness is to be buried too"
    )
    logsnr_max: float | None = Field(default=13.3, description="no cleaner end than this, nats (VDM's); null: no bound")

    @model_validator(mode="after")
    def _ordered(self) -> "SpectralSchedule":
        if self.kappa_min >= self.kappa_max:
            raise ValueError(f"kappa_min {self.kappa_min:g} must be below kappa_max {self.kappa_max:g}")
        return self

    def envelope(self, power: Tensor) -> Tensor:
        """Q (B, K) of spectra P (B, K + 1): the largest power at or beyond each ring, as the bounds take it."""
        envelope = _envelope(power)
        if self.dc == "include":
            envelope = torch.cat([torch.maximum(envelope[:, :1], power[:, :1]), envelope[:, 1:]], 1)
        if self.logsnr_max is None:
            return envelope
        return envelope.clamp(min=self.kappa_max * math.exp(-self.logsnr_max))

    def ends(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """(logsnr(1), logsnr(0)), each (B,), of spectra P (B, K + 1)."""
        envelope = self.envelope(power)
        return math.log(self.kappa_min) - envelope[:, 0].log(), math.log(self.kappa_max) - envelope[:, -1].log()

    def logsnr(self, power: Tensor, t: Tensor) -> Tensor:
        """(B, T) of spectra P (B, K + 1) at times t (T,) in [0, 1]; strictly falling in t."""
        envelope, t = self.envelope(power), t.to(power)
        kappa = (1 - t) * math.log(self.kappa_max) + t * math.log(self.kappa_min)
        by_frequency = kappa - _log_power(envelope, _by_frequency(envelope, t))
        by_power = kappa - _log_power(envelope, _by_power(_envelope(power), t))
        noisy, clean = (end[:, None] for end in self.ends(power))
        chosen = {
            "spectral_freq": by_frequency,
            "spectral_power": by_power,
            "spectral_even": clean + t * (noisy - clean),
            "spectral_mixed": (by_frequency + by_power) / 2,
        }
        return chosen[self.kind]

    def table(self, power: Tensor) -> Tensor:
        """(B, POINTS) at even times from 0 to 1."""
        return self.logsnr(power, torch.linspace(0, 1, POINTS, dtype=torch.float64))


def _envelope(power: Tensor) -> Tensor:
    """max_{j >= k} P_j (B, K) of spectra P (B, K + 1), k = 1 ... K."""
    return power[:, 1:].flip(1).cummax(1).values.flip(1)


def _by_frequency(envelope: Tensor, t: Tensor) -> Tensor:
    """f (B, T) = K - t (K - 1)."""
    rings = envelope.shape[1]
    return (rings - t * (rings - 1)).expand(len(envelope), -1)


def _by_power(envelope: Tensor, t: Tensor) -> Tensor:
    """f (B, T) with C(f) = 1 - t, C the power between ring 1 and f over the whole, linear between rings."""
    steps = (envelope[:, 1:] + envelope[:, :-1]) / 2
    passed = torch.cat([torch.zeros_like(envelope[:, :1]), steps.cumsum(1)], 1)
    share = passed / passed[:, -1:]
    rings = torch.arange(1, envelope.shape[1] + 1, dtype=envelope.dtype, device=envelope.device).expand_as(share)
    return interpolate((1 - t).expand(len(envelope), -1), share, rings)


def _log_power(envelope: Tensor, frequency: Tensor) -> Tensor:
    """ln Q (B, T) at frequencies (B, T), linear in ln f between rings."""
    rings = torch.arange(1, envelope.shape[1] + 1, dtype=envelope.dtype, device=envelope.device)
    return interpolate(frequency.log(), rings.log().expand_as(envelope), envelope.log())


def interpolate(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """(B, T) at x (B, T), linear between rising `known` (B, K), where the `values` (B, K) are."""
    right = torch.searchsorted(known.contiguous(), x.contiguous()).clamp(1, known.shape[1] - 1)
    low, high = known.gather(1, right - 1), known.gather(1, right)
    first, last = values.gather(1, right - 1), values.gather(1, right)
    part = ((x - low) / (high - low)).clamp(0, 1)
    return first + part * (last - first)
