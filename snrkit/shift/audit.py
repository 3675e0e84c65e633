"""The training audit: are training pairs at the level that the network is told?

What the network is really given is taken at its door: its input, divided by c_in of the level that its time input
names, is regressed on the clean image it was made from, over many training pairs in bins of that level:

    alpha_hat = <x, x0>/<x0, x0>      sigma_hat^2 = mean (x - alpha_hat x0)^2      sigma_data_hat^2 = Var[x0]

Both are compared with the nominal alpha and sigma of the told level; the null is a ratio of 1. Input perturbation shows
as sigma_hat/sigma = sqrt(1 + gamma^2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.value import MOST_HELD
from snrkit.shift.bootstrap import OF_BINS, OF_SIGMA_DATA, Bootstrap, Curve, Number
from snrkit.shift.probe import ProbeValue, Specimen
from snrkit.training.holdout import Pairs

BINS = 10


@dataclass(frozen=True, slots=True)
class Audit:
    """Ratios to nominal by bins of the told logsnr with equally many pairs."""

    logsnr: list[float]
    pairs: int
    alpha: Curve  # alpha_hat / alpha; its null is 1
    sigma: Curve  # sigma_hat / sigma; its null is 1
    sigma_data: Number  # sigma_data_hat
    sigma_data_nominal: float


def audit(pairs: Pairs, sigma_data: float, bins: int, bootstrap: Bootstrap) -> Audit:
    """The readings of training pairs that were told a level."""
    alpha, sigma = pairs.level.alpha, pairs.level.sigma
    x0, x = pairs.x0.double().flatten(1), pairs.x.double().flatten(1)
    order = pairs.level.logsnr.argsort()
    rows = torch.tensor_split(order, min(bins, len(order)))
    found: list[tuple[Tensor, Tensor]] = []
    for number, part in enumerate(rows):
        weights = bootstrap.weights(torch.arange(len(part)), OF_BINS + number)
        found.append(_bin(x0[part], x[part], alpha[part], sigma[part], weights))
    weights = bootstrap.weights(torch.arange(len(x0)), OF_SIGMA_DATA)
    first, second = weights @ x0.mean(1), weights @ x0.square().mean(1)
    return Audit(
        [float(pairs.level.logsnr[part].mean()) for part in rows],
        len(x0),
        bootstrap.curve(torch.stack([a for a, _ in found])),
        bootstrap.curve(torch.stack([s for _, s in found])),
        bootstrap.number((second - first**2).sqrt()),
        sigma_data,
    )


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
        return None if pairs is None else audit(pairs, s.sigma_data, BINS, s.bootstrap)

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
