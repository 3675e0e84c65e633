"""Whether a pipeline of diffusers walks as a certificate's recipe was certified, read from what it does.

Pipelines call their guidance by different names, or have none for it, so it is read where it acts. With c and u what
the network says with the condition and without, guidance of weight w hands the scheduler

    out = c + w (c - u),

`guidance_scale` being 1 + w. A pipeline asks for c and u in one batch or in two calls, in either order; some step the
doubled batch, whose halves are the same. The equation is held against every step, so that a weight that changes, a
rescale or a third branch is seen. The weight is the least-squares one: rounding of N numbers moves it by about
eps |c| / |c - u| / sqrt(N).

The network must have been asked at c_in x, x being the state that the scheduler steps from; the steps must be all those
of the certified levels, each ending where the next begins, and the last at the clean image; and the scheduler's step
must be given nothing that alters it, such as eta or s_churn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.level import Level, broadcast
from snrkit.pipelines import scales_of
from snrkit.sampling.step import Position

NEAR = 0.01  # nats, of the levels of a pipeline from those that were certified
GIVEN = ("model_output", "timestep", "sample", "generator", "return_dict")  # what may be given to a step
NEUTRAL = {"s_noise": 1.0, "s_tmax": math.inf}  # what leaves a step as it is; None or 0 for other arguments
STATE = ("sample", "hidden_states")  # what networks call the state that they are asked at


@dataclass(frozen=True, slots=True)
class Branches:
    """c, u and out (B, *) of a step, if a pipeline makes it so; `eps` is that of the coarsest format among them."""

    c: Tensor
    u: Tensor
    out: Tensor
    eps: float

    @property
    def spread(self) -> float:
        """The rms of c - u; 0 where the two are one."""
        return _rms(self.c - self.u)

    def weight(self) -> float:
        """The w nearest to out = c + w (c - u) by least squares; 0 where c is u."""
        d = self.c - self.u
        square = float((d * d).sum())
        return float(((self.out - self.c) * d).sum()) / square if square else 0.0

    def holds(self, weight: float) -> bool:
        """Whether out is c + w (c - u) to rounding, and w this weight; False if c is u and the weight is not 0."""
        size, spread = _rms(self.c), self.spread
        if spread == 0 and weight:
            return False
        near = 4 * self.eps * (size + (1 + abs(weight)) * spread)
        if _rms(self.out - self.c - weight * (self.c - self.u)) > near:
            return False
        mean = 4 * self.eps * (size / spread + 1 + abs(weight)) / math.sqrt(self.c.numel()) if spread else 0.0
        return abs(self.weight() - weight) <= 1e-4 * (1 + abs(weight)) + mean


def branches(said: Tensor, out: Tensor, x: Tensor) -> list[Branches]:
    """Every way in which `out` (B, *), for states x (B, *), may come of all that the network said (B or 2B, *)."""
    eps, half = _coarsest(said, out), len(out) // 2
    said, out = said.to(out.device).double(), out.double()
    if said.shape[1:] != out.shape[1:]:
        return []
    doubled = 2 * half == len(out) and torch.equal(x[:half], x[half:]) and torch.equal(out[:half], out[half:])
    if len(said) == len(out):
        plain = [Branches(said, said, out, eps)]
        return [*plain, *_both(said, out[:half], eps)] if doubled else plain
    return _both(said, out, eps) if len(said) == 2 * len(out) else []


def _both(said: Tensor, out: Tensor, eps: float) -> list[Branches]:
    a, b = said.chunk(2)
    return [Branches(a, b, out, eps), Branches(b, a, out, eps)]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _coarsest(*tensors: Tensor) -> float:
    return max(torch.finfo(x.dtype).eps for x in tensors)


class SameWalk:
    """Refuses a step of a pipeline that is not of the walk that was certified. It changes nothing.

    `weight` is the recipe's guidance, `logsnr` its levels but for the clean one, NaN for pure noise.
    """

    def __init__(self, path: Path, pipeline: Any, network: nn.Module, weight: float, logsnr: Sequence[float]) -> None:
        self.path, self.pipeline, self.scheduler = path, pipeline, pipeline.scheduler
        self.weight = weight
        self.wanted = [-math.inf if math.isnan(value) else value for value in logsnr]
        self._steps: Any = None  # the scheduler's, of the call that is under way
        self._last = -1
        self._seen: list[tuple[Any, Any]] = []  # (asked, said) of the network's calls since the last step
        self._handle = network.register_forward_hook(self._note, with_kwargs=True)

    def remove(self) -> None:
        """Look at the network no more."""
        self._handle.remove()

    def check(self, position: Position, given: Mapping[str, Any]) -> None:
        """SnrkitError for a step that is another than the certified one."""
        self._renew()
        seen, self._seen = self._seen, []
        if position.index not in (0, self._last + 1):
            raise SnrkitError(
                f"{self.path} is for all steps in order, and the pipeline goes to step {position.index + 1} of "
                f"{len(position.grid) - 1} after step {self._last + 1}; call it for the whole walk."
            )
        self._last = position.index
        if position.index == 0:
            self._check_levels(position.grid)
        self._check_end(position)
        self._check_arguments(given)
        asked, said = self._read(seen, given["sample"])
        self._check_asked(asked, given["sample"], position.here)
        self._check_guidance(said, given["model_output"], given["sample"])

    def _note(self, network: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        if self.pipeline.scheduler is not self.scheduler:
            raise SnrkitError(
                f"{self.path} stands at a {type(self.scheduler).__name__} that the pipeline has no more; put it in "
                "again."
            )
        self._renew()
        asked = args[0] if args else next((named[key] for key in STATE if key in named), None)
        self._seen.append((asked, output[0] if isinstance(output, tuple) else getattr(output, "sample", None)))

    def _renew(self) -> None:
        """Forget what a call before left behind; each call sets the scheduler's steps."""
        if self.scheduler.timesteps is not self._steps:
            self._steps, self._last, self._seen = self.scheduler.timesteps, -1, []

    def _check_levels(self, grid: Sequence[Level]) -> None:
        walked = [float(level.logsnr) for level in grid[:-1]]
        if len(walked) != len(self.wanted) or not all(map(_near, walked, self.wanted)):
            raise SnrkitError(
                f"{self.path} is for {len(self.wanted)} steps from {self.wanted[0]:.2f} to {self.wanted[-1]:.2f} nats, "
                f"and the pipeline walks {len(walked)} from {walked[0]:.2f} to {walked[-1]:.2f}; set the scheduler's "
                "steps and spacing as they were certified."
            )
        if not grid[-1].is_clean():
            raise SnrkitError(
                f"{self.path} is for steps that end at the clean image, and this scheduler's end at "
                f"{float(grid[-1].logsnr):.2f} nats; set its final_sigmas_type, set_alpha_to_one or timestep_spacing "
                "so that they end there."
            )

    def _check_end(self, position: Position) -> None:
        ends, begins = float(position.there.logsnr), float(position.grid[position.index + 1].logsnr)
        if not _near(ends, begins):
            raise SnrkitError(
                f"{self.path} is for steps that end where the next begins, and step {position.index + 1} of this "
                f"scheduler ends at {ends:.2f} nats and the next begins at {begins:.2f}; set its timestep_spacing to "
                "leading."
            )

    def _check_arguments(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            number = isinstance(value, int | float)
            if name in GIVEN or value is None or (number and value == NEUTRAL.get(name, 0)):
                continue
            raise SnrkitError(
                f"{self.path} is for the scheduler's plain step, and the pipeline gives it {name} = "
                f"{format(value, 'g') if number else 'a ' + type(value).__name__}, which makes another; leave that out."
            )

    def _read(self, seen: Sequence[tuple[Any, Any]], x: Tensor) -> tuple[Tensor, Tensor]:
        """(What the network was asked, what it said), of all calls of a step, one after the other in dimension 0."""
        whole = all(isinstance(part, Tensor) and part.shape[2:] == x.shape[2:] for pair in seen for part in pair)
        if not seen or not whole:
            raise SnrkitError(
                f"{self.path}: what the network said before this step cannot be seen, and so not how it is guided; the "
                "pipeline must call the network that it had when the certificate was put in."
            )
        return torch.cat([asked for asked, _ in seen]), torch.cat([said for _, said in seen])

    def _check_asked(self, asked: Tensor, x: Tensor, here: Level) -> None:
        wanted = (broadcast(scales_of(self.scheduler, here).c_in, x) * x).double()
        near = 16 * _coarsest(asked, x) * _rms(wanted)
        same = asked.shape[1:] == x.shape[1:] and len(asked) % len(x) == 0
        if not same or any(_rms(part.double() - wanted) > near for part in asked.chunk(len(asked) // len(x))):
            raise SnrkitError(
                f"{self.path} is for steps from the states that the network is asked at, and a "
                f"{type(self.pipeline).__name__} under a {type(self.scheduler).__name__} asks it at others; choose "
                "another scheduler."
            )

    def _check_guidance(self, said: Tensor, out: Tensor, x: Tensor) -> None:
        channels = x.shape[1]  # the rest is a learned variance
        found = branches(said[:, :channels], out[:, :channels], x)
        other = getattr(self.pipeline, "do_perturbed_attention_guidance", False)
        if not other and any(one.holds(self.weight) for one in found):
            return
        weights = [weight for one in found if one.holds(weight := one.weight())]
        if other or not weights:
            raise SnrkitError(
                f"{self.path} is for a guidance scale of {1 + self.weight:g}, and what the scheduler is given is not "
                "what the network said, nor classifier-free guidance of it; leave out other guidance and rescaling."
            )
        raise SnrkitError(
            f"{self.path} is for a guidance scale of {1 + self.weight:g}, and the pipeline has {1 + max(weights):g}; "
            "certify that one."
        )


def _near(a: float, b: float) -> bool:
    return a == b or abs(a - b) < NEAR
