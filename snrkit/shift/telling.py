"""The level that a network is told against the level that the state has, call by call, without an image.

A solver is linear in its state, in what the network says and in the noise that it draws. So a state is kept as its
coefficients on a basis, the image x0, the noise it begins with, and every noise that is drawn later, one pixel each:

    alpha = the pixel of x0        sigma^2 = the sum of squares of the others        logsnr = ln(alpha^2/sigma^2)

The network is one that knows the image: it answers so that whoever reads the answer at the level where he holds the
state finds x0. What a state's level then is, is the solver's own doing, to rounding: nothing is estimated and no
network is run. Below 0 a difference says that the state is noisier than the network is told.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snrkit.diffusion.level import Level, Scaling
from snrkit.diffusion.prediction import Cond, Denoiser, Prediction, Same, Wrapped, from_x0
from snrkit.diffusion.process import Process
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler

IMAGE = 0.5  # the image's pixel, inside of what samplers clip to
DRAWS = 4  # of noise in one call, at most


@dataclass(frozen=True, slots=True)
class Telling:
    """One call of a network."""

    time: float  # as the network reads it
    told: float  # logsnr of that time
    state: float  # logsnr of the state
    difference: float  # state less told, nats; 0 where both are pure noise
    scale: float  # ln of the size of what the network is shown over that of its training, nats


@dataclass(frozen=True, slots=True)
class Walked:
    """A sampler's way: its calls in order.

    `begun` compares the noise that it begins with, which holds no image, with that of the first level told, as a
    difference of logsnr at equal alpha; None where it does not begin with noise. `end` is the logsnr of the last state.
    """

    name: str
    steps: int
    begun: float | None
    calls: tuple[Telling, ...]
    end: float

    @property
    def worst(self) -> float:
        """The difference that is farthest from 0; NaN where one cannot be read."""
        differences = [call.difference for call in self.calls]
        return math.nan if any(map(math.isnan, differences)) else max(differences, key=abs, default=0.0)

    @property
    def unread(self) -> list[int]:
        """The places of the calls whose level or size cannot be read, as a state or a time that is NaN has none."""
        return [place for place, call in enumerate(self.calls) if math.isnan(call.difference + call.scale)]

    def beyond(self, tolerance: float) -> list[str]:
        """What lies beyond `tolerance` nats, in words: the beginning, levels, and the scale of what is shown.

        What cannot be read is among it, as nobody has shown that it is what is told.
        """
        found = []
        if self.begun is not None and math.isnan(self.begun):
            found.append("begins with noise whose level cannot be read")
        if self.begun is not None and abs(self.begun) > tolerance:
            found.append(f"begins with noise that is {_nats(self.begun)} of the level told")
        off, level = _farthest([call.difference for call in self.calls], tolerance)
        if off:
            found.append(
                f"{off} of {len(self.calls)} calls tell another level than the state's, most of all call "
                f"{level + 1}, whose state is {_nats(self.calls[level].difference)} of the level told"
            )
        sizes, size = _farthest([call.scale for call in self.calls], tolerance)
        if sizes:
            found.append(
                f"{sizes} of {len(self.calls)} calls show another size than training, most of all call "
                f"{size + 1}, by {self.calls[size].scale:+.4f} nats"
            )
        if unread := self.unread:
            found.append(
                f"{len(unread)} of {len(self.calls)} calls cannot be read, as the state or the time is not finite; the "
                f"first is call {unread[0] + 1}"
            )
        return found


def _farthest(values: Sequence[float], tolerance: float) -> tuple[int, int]:
    """(How many values lie farther from 0 than `tolerance`, the place of the farthest)."""
    places = [place for place, value in enumerate(values) if abs(value) > tolerance]
    return len(places), max(places, key=lambda place: abs(values[place]), default=0)


def _nats(difference: float) -> str:
    return f"{abs(difference):.4f} nats to the {'noisy' if difference < 0 else 'clean'} side"


@dataclass(slots=True)
class Canvas:
    """States as coefficients, tensors (1, 1, 1, W) float64: pixel 0 is the image, each further one a noise."""

    width: int
    drawn: int = field(default=0)

    @property
    def image(self) -> Tensor:
        """x0."""
        x = torch.zeros(1, 1, 1, self.width, dtype=torch.float64)
        x[..., 0] = IMAGE
        return x

    def noise(self, like: Tensor | None = None) -> Tensor:
        """A noise that is independent of all others, in the dtype of `like`."""
        self.drawn += 1
        assert self.drawn < self.width
        x = torch.zeros(1, 1, 1, self.width, dtype=torch.float64 if like is None else like.dtype)
        x[..., self.drawn] = 1
        return x

    def read(self, x: Tensor) -> Level:
        """The level that a state has, whatever its scaling."""
        flat = x.detach().double().flatten()
        alpha, sigma = flat[0].abs() / IMAGE, flat[1:].norm()
        return Level(2 * (alpha / sigma).log(), alpha, sigma)


def canvas_of(calls: int) -> Canvas:
    """One that is large enough for so many calls."""
    return Canvas(2 + DRAWS * (calls + 1))


def size(level: Level, scaling: Scaling) -> float:
    """ln of how much larger a state is than one of its logsnr in a scaling, nats. `ve` is known by its image alone."""
    if scaling == "vp":
        return math.log(math.hypot(float(level.alpha), float(level.sigma)))
    return math.log(float(level.alpha) + (float(level.sigma) if scaling == "flow" else 0.0))


def difference(state: float, told: float) -> float:
    """The state's logsnr less the one told; 0 where both are the same end."""
    return 0.0 if state == told else state - told


def begun(sigma: float, told: Level) -> float:
    """The noise of a first state, which has no image, against that of the level told, as a difference of logsnr."""
    return 2 * math.log(float(told.sigma) / sigma)


def walk(name: str, ready: OpenedSampler, process: Process) -> Walked:
    """What a sampler of ours tells its network, and what its states have, at the levels that stand for all images.

    Corrections change a state by what they see in it, and are left out; so is what is told beside the level.
    """
    levels = ready.typical
    canvas, calls = canvas_of(3 * len(levels)), list[Telling]()
    x0, noise, first = canvas.image, canvas.noise(), levels[0]
    oracle = _knowing(x0, process, _keeper(canvas, process, calls))
    x, final = first.alpha * x0 + first.sigma * noise, first
    for step in sample(oracle, ready.solver, levels, x, noise=canvas.noise):
        final = canvas.read(step.x_next)
    start = 1.0 if process.scaling == "vp" and not ready.varies else float(first.sigma)
    return Walked(name, len(levels) - 1, begun(start, first), tuple(calls), float(final.logsnr))


def _keeper(canvas: Canvas, process: Process, calls: list[Telling]) -> Callable[[Tensor, Level], None]:
    """What notes a call: its state and the level that is told, through the network's clock in its precision."""

    def note(x: Tensor, told: Level) -> None:
        time = process.time(told.logsnr).float()
        read, heard = canvas.read(x), float(process.logsnr(time.double()))
        state = float(read.logsnr)
        calls.append(Telling(float(time), heard, state, difference(state, heard), size(read, process.scaling)))

    return note


def _knowing(x0: Tensor, process: Process, note: Callable[[Tensor, Level], None]) -> Denoiser:
    """A denoiser that knows the image."""

    def answer(x: Tensor, level: Level, told: Level | Same | None, cond: Cond | None) -> Prediction:
        if told is not None:
            note(x, told if isinstance(told, Level) else level)
        return from_x0(x, x0, level)

    return Wrapped(process, answer)
