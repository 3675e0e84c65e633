"""What is asked of the network: a weighting, written on eps, as the factor of the loss on the network's own output F.

    loss = weight_F |F - F*|^2,    F* = (y - c_skip x)/c_out,
    weight_F = w_eps * c_out^2 alpha^2/(alpha*b - sigma*a)^2       (with EDM's preconditioning: w_eps alpha^2 s^2/d)

computed in float64 at max(logsnr, -40), so that a v-loss stays 1 and a min-SNR weight becomes 0 at zero terminal SNR.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snrkit.base.transfer import send
from snrkit.diffusion.denoiser import Coefficients, Precondition
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Cond, Target
from snrkit.diffusion.process import Process
from snrkit.training.level_samplers import LevelSampler, levels_of
from snrkit.training.weighting import Density, Simple, Weighting, weighting_of

LOWEST_LOGSNR = -40.0


def output_weight(
    level: Level,
    density: Density,
    *,
    process: Process,
    target: Target,
    precondition: Precondition,
    weighting: Weighting,
    sigma_data: float,
) -> Tensor:
    """weight_F (B,): the factor of the squared error of the network's own output, float64."""
    safe = process.level(level.logsnr.clamp(min=LOWEST_LOGSNR))
    a, b = target.direction(safe)
    c_out = precondition.coefficients(safe, target, process.scaling, sigma_data).c_out
    to_output = (c_out * safe.alpha / (safe.alpha * b - safe.sigma * a)) ** 2
    return weighting.weight(safe, density, sigma_data) * to_output


class _MeanSquare(torch.autograd.Function):
    """(output - wanted)^2 averaged over all but the first dimension, and its gradient, with few copies of the images.

    To the same bits as `(output - wanted).square().flatten(1).mean(1)`, which makes five.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, wanted: Tensor) -> Tensor:
        gap = output - wanted
        ctx.save_for_backward(gap)
        return gap.square().flatten(1).mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gap,) = ctx.saved_tensors
        return (2 * gap).mul_(broadcast(grad / gap[0].numel(), gap)), None


@dataclass(frozen=True, slots=True)
class Pair:
    """What a network is shown, x (B, *), and told, time (B,) float32, and what its own output F* (B, *) should be."""

    x: Tensor
    time: Tensor
    wanted: Tensor

    def error(self, output: Tensor) -> Tensor:
        """|F - F*|^2 (B,) float32 of an output (B, *), averaged over its dimensions."""
        error: Tensor = _MeanSquare.apply(output.float(), self.wanted)
        return error


@dataclass(frozen=True, slots=True)
class Objective:
    """What is asked of the network."""

    process: Process
    target: Target
    precondition: Precondition
    levels: LevelSampler
    weighting: Weighting
    sigma_data: float

    def of(self, images: Tensor) -> "Objective":
        """That of these images (B,) of the data set: with levels and a weighting of their own, where there are such."""
        return replace(self, levels=levels_of(self.levels, images), weighting=weighting_of(self.weighting, images))

    def logsnr(self, u: Tensor) -> Tensor:
        """Training levels (B,) of uniforms (B,), snapped to the process's table."""
        return self.process.snap(self.levels.logsnr(u, self.process))

    def pair(
        self,
        x0: Tensor,
        eps: Tensor,
        logsnr: Tensor,
        untold: Tensor,
        *,
        beyond: Tensor | None = None,
        stands: Tensor | None = None,
    ) -> Pair:
        """What the network is shown, told and asked of x0 and eps (B, *) at levels `logsnr` (B,).

        `untold` (B,) marks images whose level the network is not told. `beyond` (B, *) is further noise in the input of
        the network that its target does not contain (input perturbation); `stands` (B,) is the logsnr of the state, by
        default the one that is told.
        """
        told = self.process.level(logsnr)
        level = told if stands is None else self.process.level(stands)
        a, b = self.target.direction(level)
        alpha, sigma = level.scales(x0)
        state = alpha * x0 + sigma * (eps if beyond is None else eps + beyond)
        c = self._coefficients(told, state, untold)
        x = broadcast(c.c_in, x0) * state
        time = send(self.process.time(logsnr).masked_fill(untold, torch.nan).float(), x0.device)
        wanted = broadcast((a - c.c_skip * level.alpha) / c.c_out, x0) * x0
        wanted = wanted + broadcast((b - c.c_skip * level.sigma) / c.c_out, x0) * eps
        if beyond is not None:
            wanted = wanted - broadcast(c.c_skip * level.sigma / c.c_out, x0) * beyond
        return Pair(x, time, wanted)

    def _coefficients(self, told: Level, state: Tensor, untold: Tensor) -> Coefficients:
        """Of states (B, *), some of whose levels are not told."""
        known = self.precondition.coefficients(told, self.target, self.process.scaling, self.sigma_data)
        own = self.precondition.untold(state, known)
        if own is known:
            return known
        where = send(untold, state.device)
        return Coefficients(
            torch.where(where, own.c_in, send(known.c_in, state.device)),
            torch.where(untold, own.c_skip, known.c_skip),
            torch.where(untold, own.c_out, known.c_out),
        )

    def output_error(
        self,
        network: nn.Module,
        x0: Tensor,
        eps: Tensor,
        logsnr: Tensor,
        untold: Tensor,
        cond: Cond | None,
        *,
        beyond: Tensor | None = None,
        stands: Tensor | None = None,
    ) -> Tensor:
        """|F - F*|^2 (B,) float32 of a network, averaged over the dimensions of x0 (B, *); arguments as for `pair`."""
        pair = self.pair(x0, eps, logsnr, untold, beyond=beyond, stands=stands)
        return pair.error(network(pair.x, pair.time, cond))

    def weight(self, logsnr: Tensor) -> Tensor:
        """The factor (B,) of `output_error` in the loss, float64."""
        return self._output_weight(logsnr, self.weighting)

    def eps_weight(self, logsnr: Tensor) -> Tensor:
        """The factor (B,) that makes `output_error` the squared error of eps, float64."""
        return self._output_weight(logsnr, Simple())

    def _output_weight(self, logsnr: Tensor, weighting: Weighting) -> Tensor:
        return output_weight(
            self.process.level(logsnr),
            lambda: self.levels.density(logsnr, self.process),
            process=self.process,
            target=self.target,
            precondition=self.precondition,
            weighting=weighting,
            sigma_data=self.sigma_data,
        )
