"""The training audit: are training pairs at the level that the network is told?

What the network is really given is taken at its door: its input, divided by c_in of the level that its time input
names, is regressed on the clean image it was made from, over many training pairs in bins of that level:

    alpha_hat = <x, x0>/<x0, x0>      sigma_hat^2 = mean (x - alpha_hat x0)^2      sigma_data_hat^2 = Var[x0]

Both are compared with the nominal alpha and sigma of the told level; the null is a ratio of 1. Input perturbation shows
as sigma_hat/sigma = sqrt(1 + gamma^2). Both together are the level that the state has, less the one told:

    difference = 2 ln(alpha_hat/alpha) - 2 ln(sigma_hat/sigma)     nats; below 0 states are noisier than told

`snrkit.audit` reads the same of the pairs of any training loop.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import MOST_HELD
from snrkit.diffusion.process import Process
from snrkit.shift.bootstrap import FEWEST, OF_BINS, OF_SIGMA_DATA, Bootstrap, Curve, Number, check_resampling
from snrkit.shift.probe import ProbeValue, Specimen
from snrkit.training.holdout import Pairs

BINS = 10
TOLERANCE = 0.01  # nats
UNTOLD = 0.1  # the share of pairs that tell no level, beyond which it is said
LEAST = 1e-12  # of a ratio, where noise makes it negative


@dataclass(frozen=True, slots=True)
class Audit:
    """Ratios to nominal by bins of the told logsnr with equally many pairs."""

    logsnr: list[float]
    pairs: int
    alpha: Curve  # alpha_hat / alpha; its null is 1
    sigma: Curve  # sigma_hat / sigma; its null is 1
    sigma_data: Number  # sigma_data_hat
    sigma_data_nominal: float


@dataclass(frozen=True, slots=True)
class PairsReading:
    """What training pairs have against what they are told, by bins of the told logsnr with equally many pairs."""

    logsnr: list[float]
    pairs: int
    untold: int  # pairs that tell no level, the clean image's or pure noise, which are left out
    alpha: Curve  # alpha_hat / alpha; its null is 1
    sigma: Curve  # sigma_hat / sigma; its null is 1
    difference: (
        Curve  # the logsnr that states have, less the one told, nats; its null is 0; intervals of all bins at once
    )
    confidence: float

    def beyond(self, tolerance: float = TOLERANCE) -> list[int]:
        """The bins whose interval of the difference lies wholly beyond `tolerance` nats."""
        bounds = enumerate(zip(self.difference.low, self.difference.high, strict=True))
        return [number for number, (low, high) in bounds if low > tolerance or high < -tolerance]

    @property
    def unread(self) -> int:
        """How many bins have no interval, as images without content show no alpha."""
        bounds = zip(self.difference.low, self.difference.high, strict=True)
        return sum(math.isnan(low) or math.isnan(high) for low, high in bounds)

    @property
    def left_out(self) -> str | None:
        """A sentence on the pairs that tell no level, where they are more than a tenth; None where they are not."""
        every = self.pairs + self.untold
        if self.untold <= UNTOLD * every:
            return None
        return f"{self.untold} of {every} pairs tell no level, of image and noise both, and nothing is said of them."

    @property
    def verdict(self) -> str:
        """One sentence on the pairs that tell a level, and one on the others where they are more than a tenth."""
        return " ".join(filter(None, (self._verdict(), self.left_out)))

    def _verdict(self) -> str:
        off, bins = self.beyond(), len(self.logsnr)
        if self.unread and not off:
            return f"Of {bins} bins of training pairs {self.unread} show no level, as their images hold nothing but 0."
        if not off:
            return f"Training pairs have the level that is told: no interval of {bins} lies beyond {TOLERANCE:g} nats."
        curve = self.difference
        worst = max(off, key=lambda number: max(curve.low[number], -curve.high[number]))
        return (
            f"Training pairs have another level than is told in {len(off)} of {bins} bins, most surely at logsnr "
            f"{self.logsnr[worst]:.2f}: {curve.value[worst]:+.3f} nats [{curve.low[worst]:+.3f}, "
            f"{curve.high[worst]:+.3f}]."
        )


def audit(
    pairs: Iterable[tuple[Tensor, Tensor, Tensor]],
    process: Process,
    *,
    bins: int = BINS,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairsReading:
    """Whether the pairs of a training loop are at the level that the network is told.

    `pairs` yields batches (x0, noisy, time) of what the loop trains with: clean images x0 (B, *), the state
    alpha*x0 + sigma*eps made of them in the scaling of `process`, before any c_in, and what the network is told, time
    (B,) or (), as `process.logsnr` reads it: the table's index on `Ddpm`, t in [0, 1] on `Flow`, ln(sigma)/4 on `Edm`.
    All are kept, on the CPU. Pairs are the unit of the bootstrap; 20 for each bin are the fewest. Intervals of alpha
    and sigma are each of `confidence`, those of the difference all together (Bonferroni).

    SnrkitError for tensors that do not fit together or are not finite, for too few pairs, and for fewer resamples than
    the confidence takes.
    """
    if bins < 1:
        raise SnrkitError(f"bins is {bins}; give 1 at least.")
    check_resampling("bootstrap", bootstrap, _of_all(confidence, bins))
    told = _gathered(pairs, process)
    if len(told.x0) < FEWEST * bins:
        raise SnrkitError(f"{len(told.x0)} pairs tell a level, and {bins} bins take {FEWEST * bins}; give more.")
    return read_pairs(told, bins, Bootstrap(bootstrap, confidence, seed))


def _gathered(pairs: Iterable[tuple[Tensor, Tensor, Tensor]], process: Process) -> Pairs:
    """The pairs that tell a level with image and noise, and how many do not."""
    parts, untold = list[tuple[Tensor, Tensor, Tensor]](), 0
    for batch in pairs:
        x0, x, logsnr = _checked(batch, process)
        known = logsnr.isfinite()
        untold += int((~known).sum())
        parts.append((x0[known], x[known], logsnr[known]))
    if not parts:
        raise SnrkitError("there are no pairs; yield (x0, noisy, time) of a training loop.")
    if len({part[0].shape[1:] for part in parts}) > 1:
        raise SnrkitError("batches of pairs have images of different shapes; give those of one shape.")
    x0, x, logsnr = (torch.cat(part) for part in zip(*parts, strict=True))
    return Pairs(x0, x, process.level(logsnr), untold)


def _checked(batch: tuple[Tensor, Tensor, Tensor], process: Process) -> tuple[Tensor, Tensor, Tensor]:
    """(x0, noisy, logsnr told) of a batch, on the CPU."""
    if not isinstance(batch, tuple | list) or len(batch) != 3 or not all(isinstance(part, Tensor) for part in batch):
        raise SnrkitError("a batch of pairs is (x0, noisy, time), three tensors.")
    x0, x, time = (part.detach().cpu() for part in batch)
    if x0.ndim < 2 or x0.shape != x.shape or time.shape not in ((), (len(x0),)):
        shapes = ", ".join(str(tuple(part.shape)) for part in (x0, x, time))
        raise SnrkitError(f"x0, noisy and time are {shapes}; give (B, *), (B, *) and (B,).")
    if not bool(x0.isfinite().all() and x.isfinite().all()):
        raise SnrkitError("x0 or noisy holds numbers that are not finite.")
    return x0, x, process.logsnr(time.double().expand(len(x0)))


def _of_all(confidence: float, bins: int) -> float:
    """The confidence of each of some intervals that all of them hold at once with `confidence`, at the least."""
    return 1 - (1 - confidence) / bins


def read_pairs(pairs: Pairs, bins: int, bootstrap: Bootstrap) -> PairsReading:
    """The reading of pairs that are gathered."""
    logsnr, found = _read(pairs, bins, bootstrap)
    alpha, sigma = (torch.stack(part) for part in zip(*found, strict=True))
    difference = 2 * (alpha.clamp(min=LEAST).log() - sigma.clamp(min=LEAST).log())
    wider = replace(bootstrap, confidence=_of_all(bootstrap.confidence, len(logsnr)))
    curves = bootstrap.curve(alpha), bootstrap.curve(sigma), wider.curve(difference)
    return PairsReading(logsnr, len(pairs.x0), pairs.untold, *curves, bootstrap.confidence)


def audit_probe(pairs: Pairs, sigma_data: float, bins: int, bootstrap: Bootstrap) -> Audit:
    """The readings of training pairs that were told a level, with that of sigma_data."""
    logsnr, found = _read(pairs, bins, bootstrap)
    x0 = pairs.x0.double().flatten(1)
    weights = bootstrap.weights(torch.arange(len(x0)), OF_SIGMA_DATA)
    first, second = weights @ x0.mean(1), weights @ x0.square().mean(1)
    return Audit(
        logsnr,
        len(x0),
        bootstrap.curve(torch.stack([a for a, _ in found])),
        bootstrap.curve(torch.stack([s for _, s in found])),
        bootstrap.number((second - first**2).sqrt()),
        sigma_data,
    )


def _read(pairs: Pairs, bins: int, bootstrap: Bootstrap) -> tuple[list[float], list[tuple[Tensor, Tensor]]]:
    """(mean told logsnr, (alpha_hat/alpha, sigma_hat/sigma)) by bins."""
    alpha, sigma = pairs.level.alpha, pairs.level.sigma
    x0, x = pairs.x0.double().flatten(1), pairs.x.double().flatten(1)
    order = pairs.level.logsnr.argsort()
    rows = torch.tensor_split(order, min(bins, len(order)))
    found: list[tuple[Tensor, Tensor]] = []
    for number, part in enumerate(rows):
        weights = bootstrap.weights(torch.arange(len(part)), OF_BINS + number)
        found.append(_bin(x0[part], x[part], alpha[part], sigma[part], weights))
    return [float(pairs.level.logsnr[part].mean()) for part in rows], found


def _bin(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_hat/alpha, sigma_hat/sigma), each (1 + R,), of one bin.

    Each pair is brought to unit nominal noise, z = x/sigma on s = alpha x0/sigma, so that the slope of z on s is
    alpha_hat/alpha and the spread of what is left is sigma_hat/sigma.
    """
    s, z = x0 * (alpha / sigma)[:, None], x / sigma[:, None]
    ss, sz, zz = ((p * q).mean(1) for p, q in ((s, s), (s, z), (z, z)))
    slope = (weights @ sz) / (weights @ ss)
    left = (weights @ zz) - slope * (weights @ sz)
    return slope, left.sqrt()


class AuditProbe(ProbeValue):
    """Whether training pairs are at the level that the network is told; the same for all samplers of a run."""

    kind: Literal["audit"] = "audit"
    pairs: int = Field(default=8192, ge=64, le=MOST_HELD, description="training pairs behind the audit")

    record: ClassVar[type[Audit]] = Audit
    columns: ClassVar[tuple[str, ...]] = ()
    guide: ClassVar[str] = ""

    def read(self, specimen: Specimen) -> Audit | None:
        """None for a network that was trained elsewhere."""
        return specimen.equipment.once(self, lambda: self._audit(specimen))

    def _audit(self, s: Specimen) -> Audit | None:
        pairs = s.equipment.pairs(self.pairs)
        return None if pairs is None else audit_probe(pairs, s.sigma_data, BINS, s.bootstrap)

    def cells(self, record: Audit) -> tuple[str, ...]:
        """None: it is said once for all samplers."""
        return ()

    def remark(self, records: Sequence[Audit]) -> str:
        """What lies farthest from 1, and how many intervals hold it."""
        found, parts = records[0], []
        for name, curve in (("alpha", found.alpha), ("sigma", found.sigma)):
            held = sum(low <= 1 <= high for low, high in zip(curve.low, curve.high, strict=True))
            worst = max(curve.value, key=lambda v: abs(v - 1))
            parts.append(
                f"{name} over nominal: farthest from 1 is {worst:.4f}, {held} of {len(curve.value)} intervals hold 1"
            )
        return (
            f"Training audit on {found.pairs} training pairs, by bins of the told level: {'; '.join(parts)}; "
            f"sigma_data {found.sigma_data.signed().lstrip('+')} against {found.sigma_data_nominal:.4f} as configured."
        )
