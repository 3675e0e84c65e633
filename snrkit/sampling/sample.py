"""The sampling loop, the only one in the package, as a generator of steps.

Saving, measuring and progress are the caller's `for`:

    for step in sample(denoise, Heun(), grid.levels(process), x, noise=noise):
        ...

Corrections act through one hook each (step.py). Those of belief wrap in list order, the first innermost; those of state
apply in list order after the step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.diffusion.process import Process
from snrkit.sampling.step import (
    BeliefCorrection,
    Correction,
    LevelCorrection,
    Memory,
    Noise,
    Position,
    Solver,
    StateCorrection,
    Step,
)


def no_noise(x: Tensor) -> Tensor:
    """The noise of a sampler that promises to draw none."""
    raise SnrkitError("this solver draws noise: pass noise= to sample()")


def sample(
    denoise: Denoiser,
    solver: Solver,
    levels: Sequence[Level],
    x: Tensor,
    *,
    corrections: Sequence[Correction] = (),
    noise: Noise = no_noise,
    cond: Cond | None = None,
    steps: range | None = None,
) -> Iterator[Step]:
    """Walk from levels[0], where the state is `x` (B, *), to levels[-1], yielding every step.

    `steps`: only these of the grid, contiguous; `x` is then the state where the first of them begins. Autograd is as
    the caller has it: wrap the loop in torch.no_grad() unless gradients are wanted.
    """
    if not isinstance(corrections, Sequence):
        raise SnrkitError("corrections is a list, such as [Dcw(low=0.01)]")
    for correction in corrections:
        if not isinstance(correction, BeliefCorrection | LevelCorrection | StateCorrection):
            raise SnrkitError(f"{correction!r} is no correction: it has none of wrap, move and after")
    belief = [c for c in corrections if isinstance(c, BeliefCorrection)]
    moves = [c for c in corrections if isinstance(c, LevelCorrection)]
    state = [c for c in corrections if isinstance(c, StateCorrection)]
    grid, memory = tuple(levels), None
    for index in range(len(grid) - 1) if steps is None else steps:
        here, there = grid[index], grid[index + 1]
        position = Position(index, grid, here, there)
        for move in moves:
            position = move.move(x, position, denoise.process)
        step, memory = _step(informed(wrapped(denoise, belief, position), cond), solver, x, position, memory, noise)
        for correction in state:
            step = replace(step, x_next=correction.after(step))
        made, x = [step], step.x_next
        del step
        yield made.pop()  # while it waits for its caller a walk holds its state alone


def _step(
    denoise: Denoiser, solver: Solver, x: Tensor, position: Position, memory: Memory, noise: Noise
) -> tuple[Step, Memory]:
    x_next, calls, memory = solver.step(denoise, x, position, memory, noise)
    return Step(position, x, calls, x_next), memory


def wrapped(denoise: Denoiser, corrections: Sequence[BeliefCorrection], position: Position) -> Denoiser:
    """`denoise` wrapped by every correction of belief, the first innermost."""
    for correction in corrections:
        denoise = correction.wrap(denoise, position)
    return denoise


def informed(denoise: Denoiser, cond: Cond | None) -> Denoiser:
    """`denoise` with its condition bound, as solvers ask it; outermost, so that guidance still sees the condition."""
    if cond is None:
        return denoise

    def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, _: Cond | None = None) -> Prediction:
        return denoise(x, level, told=told, cond=cond)

    return rewrap(denoise, answer)


def start(process: Process, noise: Tensor, level: Level, variance: float | None = None) -> Tensor:
    """The state from which sampling begins: float64 (B, *) from standard normal `noise`.

    As published: n in vp, sigma*n in ve and flow (where sigma is 1 at t = 1). With the data's `variance` given, the
    exact marginal of centred Gaussian data, sqrt(alpha^2 variance + sigma^2) n, for controls.
    """
    noise = noise.to(torch.float64)
    alpha, sigma = level.scales(noise)
    if variance is not None:
        return torch.sqrt(alpha**2 * variance + sigma**2) * noise
    return noise if process.scaling == "vp" else sigma * noise
