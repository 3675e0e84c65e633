"""What type checkers without plugins must accept, and no test runs: built-ins where their protocols are asked for.

`make check` reads this file with mypy and pyright as a user's own script.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import snrkit
from snrkit.diffusion.denoiser import Precondition
from snrkit.diffusion.prediction import SAME, Same
from snrkit.sampling.grid import Grid
from snrkit.sampling.step import Call, Memory, Noise, Position

processes: list[snrkit.Process] = [
    snrkit.Ddpm(steps=100),
    snrkit.Edm(sigma_max=40.0),
    snrkit.Flow(logsnr_shift=-1.0),
    snrkit.Vp(clock="logsnr"),
]
targets: list[snrkit.Target] = [snrkit.X0(), snrkit.Eps(), snrkit.V(), snrkit.FlowVelocity(), snrkit.Score()]
preconditions: list[Precondition] = [
    snrkit.NoPrecondition(),
    snrkit.EdmPrecondition(),
    snrkit.EdmBlindPrecondition(),
    snrkit.RawPrecondition(),
]
grids: list[Grid] = [
    snrkit.Karras(steps=18),
    snrkit.UniformTime(),
    snrkit.Trailing(steps=10),
    snrkit.Leading(offset=1),
    snrkit.UniformLogsnr(logsnr_min=-6.0),
    snrkit.Polyexponential(),
    snrkit.BetaSigma(alpha=0.5),
    snrkit.KlOptimal(),
    snrkit.VpSigmas(),
    snrkit.IddpmSigmas(),
]
solvers: list[snrkit.Solver] = [
    snrkit.Euler(),
    snrkit.Heun(),
    snrkit.Ancestral(eta=0.5),
    snrkit.Churn(s_churn=40.0),
    snrkit.Dpmpp2m(),
    snrkit.Dpmpp3m(published=True),
    snrkit.Deis(variable="logsnr"),
    snrkit.Dpm2(),
    snrkit.Dpmpp2mSde(eta=0.5),
    snrkit.Dpmpp2sAncestral(),
    snrkit.Dpmpp3mSde(),
    snrkit.DpmppSde(),
    snrkit.Unipc(p=3),
    snrkit.Ipndm(),
    snrkit.IpndmV(),
]
corrections: list[snrkit.Correction] = [
    snrkit.Dcw(low=0.01),
    snrkit.EpsilonScaling(scale=1.003),
    snrkit.TimeShift(window=2),
    snrkit.ClassifierFreeGuidance(weight=1.0),
    snrkit.NoiseAwareness(weight=0.5),
    snrkit.ClipX0(eps="kept"),
    snrkit.DynamicThreshold(),
    snrkit.Gain(gain=0.01),
]
sampler = snrkit.Sampler(
    grid=snrkit.Karras(steps=4), solver=snrkit.AnalyticDpm(), corrections=(snrkit.X0Rescale(share=0.5),)
)


class Midpoint:
    """A solver of one's own."""

    order = 1
    renews = 0.0

    def step(
        self, denoise: snrkit.Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Asks once."""
        prediction = denoise(x, position.here)
        return prediction.x0, (Call(position.here, prediction),), None


class Halved:
    """A correction of one's own."""

    def after(self, step: snrkit.Step) -> Tensor:
        """Half the state."""
        return step.x_next / 2


class Blind:
    """A denoiser of one's own."""

    @property
    def process(self) -> snrkit.Process:
        """Straight lines."""
        return snrkit.Flow()

    def __call__(
        self,
        x: Tensor,
        level: snrkit.Level,
        *,
        told: snrkit.Level | Same | None = SAME,
        cond: snrkit.Cond | None = None,
    ) -> snrkit.Prediction:
        """It says that all is noise."""
        return snrkit.Prediction(torch.zeros_like(x), x)


def network(x: Tensor, time: Tensor) -> Tensor:
    """A network that is a function."""
    return x * time[:, None]


levels: tuple[snrkit.Level, ...] = snrkit.Karras(steps=4).levels(processes[1])
own: Callable[[], list[snrkit.Step]] = lambda: list(  # noqa: E731 - never called
    snrkit.sample(Blind(), Midpoint(), levels, torch.zeros(2, 3), corrections=(Halved(),))
)
wrapped: snrkit.Denoiser = snrkit.wrap(network, processes[2], targets[3], precondition=preconditions[0])
