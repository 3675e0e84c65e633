"""The response: does the network see how large its states are?

The norm gap reads states through the network, so it shows only what the network answers to. Held-out images noised to a
level are scaled by c = 0.9 and 1.1 and put to the network as states of that level. With S(c) = E|eps_hat(c x)|^2

    response = mean over c of |ln S(c) - ln S(1)| / |ln c^2|

is by how many nats the norm gap moves for one nat of the states' variance. Its value is known where a network is exact:

    centred Gaussian data   eps_hat is linear, S(c) = c^2 S(1), and the response is 1 at every level, in every process,
                            for every covariance
    of mean m               S(c)/S(1) = c^2 + (1 - c)^2 k with k = alpha^2 |m|^2/(alpha^2 v + sigma^2), v the variance:
                            0.88 at the least (k = 19), more where the mean outweighs the rest
    blind                   a network that divides its input by that input's own statistics, and is read as eps,
                            answers c x as it answers x: 0

Both directions are taken, as a network that knows where images lie finds more noise on either side of them, and the two
would cancel in a slope. The mean over levels, of no level more than 1, is the share of a shift in variance that the
mean norm gap shows. Below SEEN, one half, the gap hides more than it shows: a gap at its null then does not say that
states are at their level, and one that is tuned to 0 leaves them off it. Such a network is called blind here. (U-Nets
with group norms need not be: one of EDM's kind and one that predicts eps, trained on digits, answer 0.9 to 1 where
noise dominates, 0.5 or less at one level or two where the image shows, and more than 1 at the clean end.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.streams import FORWARD_HELD
from snrkit.base.transfer import send
from snrkit.base.value import MOST_HELD
from snrkit.diffusion.prediction import Denoiser
from snrkit.shift.arms import Arm, mean_square, noise_of, with_noise
from snrkit.shift.bootstrap import FEWEST, OF_FORWARD, Bootstrap, Curve, Number
from snrkit.shift.examine import Side
from snrkit.shift.probe import ProbeValue, Specimen

SCALES = (0.9, 1.1)
SEEN = 0.5  # of what the exact denoiser of centred Gaussian data answers
RESPONSE_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Response:
    """By how many nats the norm gap moves for one nat of the states' variance: 1 for exact denoisers of Gaussians."""

    images: int
    levels: Curve
    mean: Number  # over levels, none of which counts for more than 1

    @property
    def blind(self) -> bool:
        """Whether the interval of the mean lies below SEEN."""
        return self.mean.high < SEEN

    @property
    def blind_levels(self) -> int:
        """At how many levels the interval lies below SEEN."""
        return sum(high < SEEN for high in self.levels.high)

    def said(self) -> str:
        """What it is, for a sentence."""
        value, low, high = self.mean.value, self.mean.low, self.mean.high
        return f"response {value:.2f} [{low:.2f}, {high:.2f}] of 1, below {SEEN} at {self._share()}"

    def _share(self) -> str:
        return f"{self.blind_levels} of {len(self.levels.value)} levels"


@torch.no_grad()
def scaled_squares(denoise: Denoiser, held: Side, *, key: Sequence[int], batch: int, device: torch.device) -> Tensor:
    """(2, L, n) mean over dimensions of eps_hat^2 of forward states times each of SCALES.

    The states are those of `forward_arm` for the same side and key.
    """
    x0, found = held.x0(), torch.empty(len(SCALES), len(held.levels), len(held.rows), dtype=torch.float64)
    parts = torch.split(torch.arange(len(x0)), batch)
    for index, level in enumerate(held.levels):
        for part, noise in noise_of((*key, index), x0.shape[1:], parts):
            state = send(with_noise(x0[part], level.at(part), noise), device)
            for place, scale in enumerate(SCALES):
                answer = denoise(scale * state, level.at(part), cond=held.cond.at(part).to(device))
                found[place, index, part] = mean_square(answer.eps).cpu()
    return found


def read_response(scaled: Tensor, forward: Tensor, groups: Tensor, bootstrap: Bootstrap) -> Response:
    """The reading of squares (2, L, n) of scaled states and (L, n) of states as they are, of images `groups` (n,)."""
    weights = bootstrap.weights(groups, OF_FORWARD).T
    moved = ((scaled @ weights).log() - (forward @ weights).log()).abs()
    each = torch.tensor([abs(2 * math.log(scale)) for scale in SCALES], dtype=torch.float64)
    response = (moved / each[:, None, None]).mean(0)
    return Response(len(groups), bootstrap.curve(response), bootstrap.number(response.clamp(max=1).mean(0)))


def measure_response(
    denoise: Denoiser, held: Side, forward: Arm, bootstrap: Bootstrap, *, seed: int, batch: int, device: torch.device
) -> Response:
    """The response on the images of `held`, which are the first of the forward arm: two calls a level for each."""
    key, count = FORWARD_HELD.key(seed), len(held.rows)
    scaled = scaled_squares(denoise, held, key=key, batch=batch, device=device)
    return read_response(scaled, forward.eps_square[:, :count], held.rows, bootstrap)


class ResponseProbe(ProbeValue):
    """How the network answers to states that are a tenth too small or too large."""

    kind: Literal["response"] = "response"
    images: int = Field(
        default=RESPONSE_IMAGES,
        ge=FEWEST,
        le=MOST_HELD,
        description="held-out images, of which there are as many as trajectories",
    )

    record: ClassVar[type[Response]] = Response
    columns: ClassVar[tuple[str, ...]] = ("response to scale",)
    guide: ClassVar[str] = (
        "Response: by how many nats the norm gap moves for one nat of the states' variance, 1 for an exact denoiser of "
        "Gaussian data, taken on held-out images scaled by 0.9 and 1.1, no level counting for more than 1 in the mean; "
        f"where its interval lies below {SEEN} the network is blind to scale, and a norm gap at its null does not say "
        "that states are at their level."
    )

    def read(self, specimen: Specimen) -> Response:
        """On the first images of the forward arm; samplers of the same levels share it."""
        return specimen.equipment.once((self, specimen.levels_key), lambda: self._read(specimen))

    def _read(self, s: Specimen) -> Response:
        rows = s.forward.groups[: self.images]
        own, cond = s.equipment.placed(s.ready, rows)
        held = Side(lambda: s.equipment.shown(rows), rows, own.levels[:-1], cond)
        return measure_response(s.denoise, held, s.forward, s.bootstrap, seed=s.seed, batch=s.batch, device=s.device)

    def cells(self, record: Response) -> tuple[str, ...]:
        """The mean over levels, and where it is too little."""
        share = f", blind at {record.blind_levels} of {len(record.levels.value)} levels" if record.blind_levels else ""
        return (f"{record.mean.signed()}{share}",)

    def warning(self, record: Response) -> str | None:
        """That a norm gap of such a network says little."""
        if not record.blind:
            return None
        return (
            f"the network hardly sees how large its states are ({record.said()}), so a norm gap at its null does not "
            "say that they are at the level it is told, and neither does a nearest level above the nominal one; read "
            "the variance ratio"
        )
