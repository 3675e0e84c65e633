"""How far from the network's own flow a sampler's images are: the rms distance to its fine trajectory, from the same
first states (sampling/flow.py).

It is a bound: samples and flow are a coupling, so that W2(samples, data) <= W2(flow, data) + sqrt(d) rms, d the numbers
of an image.
"""

import json
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.value import MOST_HELD
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.flow import WALKED_STATES, Flow, fine_flow, in_parts, in_rows
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler, guidance_of
from snrkit.shift.bootstrap import Number
from snrkit.shift.probe import Circumstances, ProbeValue, Sizes, Specimen

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class FlowDistance:
    """Of the clean states of one sampler; for each number of an image."""

    images: int
    distance: Number  # rms, with its interval
    variance: float  # mean square of the samples over that of the flow
    reference: float  # rms error of the flow itself
    logsnr: list[float]  # of the levels that steps end at, but for the clean one
    at_levels: list[float]  # rms distance of the states there


def per_state(x: Tensor) -> Tensor:
    """Mean squares (M,) of x (M, *) on the CPU."""
    return x.double().flatten(1).square().mean(1).cpu()


def distance(squares: Tensor, error: float) -> Number:
    """The rms of distances with mean squares (M,), and its two-sided interval, wider by the reference's rms error.

    NaN, bounds included, where a state or the reference is not finite.
    """
    mean = float(squares.mean())
    reach = student(len(squares) - 1, (1 + CONFIDENCE) / 2) * float(squares.std()) / math.sqrt(len(squares))
    if not math.isfinite(mean + reach + error):
        return Number(math.nan, math.nan, math.nan)
    low, high = (math.sqrt(max(0.0, mean + way * reach)) for way in (-1, 1))
    return Number(math.sqrt(mean), max(0.0, low - error), high + error)


def student(freedom: int, level: float) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, level))


class FlowProbe(ProbeValue):
    """The distance of a sampler that draws no noise to the network's own flow."""

    kind: Literal["flow"] = "flow"
    images: int = Field(default=128, ge=8, le=MOST_HELD, description="first states whose flow is followed")

    record: ClassVar[type[FlowDistance]] = FlowDistance
    columns: ClassVar[tuple[str, ...]] = ("rms distance to the flow", "variance over the flow's")
    guide: ClassVar[str] = (
        "Flow: the network's own fine trajectory from the same first states; how far from it the sampler's images are "
        "bounds what its steps cost, whatever the network is worth."
    )

    def missing(self, given: Circumstances) -> str | None:
        """One grid for all images, as its steps are cut."""
        if given.one_grid:
            return None
        return f"cuts the steps of one grid for all images; give samplers.{given.sampler}.grid scope: dataset"

    def memory(self, sizes: Sizes) -> int:
        """Of flows, which samplers of the same levels share, of a walk, and of first and clean states."""
        states = sizes.levels + 2 + WALKED_STATES
        return 8 * sizes.dimensions * min(self.images, sizes.trajectories) * states

    def read(self, specimen: Specimen) -> FlowDistance | None:
        """Of the first trajectories; None for a solver that draws noise."""
        s, seeds = specimen, specimen.seeds[: self.images]
        if s.ready.solver.renews != 0:
            return None
        own, x, cond, _ = s.equipment.begin(s.sampler, s.ready, seeds)
        denoise, guidance = in_parts(s.denoise, s.batch), guidance_of(s.sampler, s.ready)
        asked = [c.model_dump(mode="json") for c in s.sampler.corrections]
        key = ("flow", s.levels_key, s.sampler.start, json.dumps(asked) if guidance else "")
        with torch.no_grad():
            flow = s.equipment.once(key, lambda: fine_flow(denoise, own.levels, x, cond, guidance, batch=s.batch))
            clean, along = _beside(denoise, own, x, cond, flow, s.batch)
        return read_distance(clean, flow, [float(level.logsnr) for level in own.levels[1:-1]], along)

    def cells(self, record: FlowDistance) -> tuple[str, ...]:
        return record.distance.plain(), f"{record.variance:.3f}"


def _variance(x: Tensor) -> Tensor:
    """Over states (M, *), summed over the numbers of each."""
    return x.double().flatten(1).var(0).sum()


def _beside(
    denoise: Denoiser, own: OpenedSampler, x: Tensor, cond: Cond, flow: Flow, batch: int
) -> tuple[Tensor, list[float]]:
    """(The clean states (M, *) of a sampler, its rms distance to the flow at each noisy level that a step ends at)."""
    clean, squares = torch.empty_like(x), torch.zeros(len(flow.states), dtype=torch.float64, device=x.device)
    for rows in in_rows(len(x), batch):
        walk = sample(denoise, own.solver, own.levels, x[rows], corrections=own.corrections, cond=cond.at(rows))
        for place, step in enumerate(walk, 1):
            clean[rows] = step.x_next
            squares[place] += (step.x_next - flow.states[place][rows]).square().sum()
    return clean, (squares[1:-1] / x.numel()).sqrt().tolist()


def read_distance(clean: Tensor, flow: Flow, logsnr: list[float], along: list[float]) -> FlowDistance:
    """The reading of clean states (M, *) beside the flow from the same first ones, and of rms distances on the way."""
    squares = per_state(clean - flow.states[-1])
    share = float(_variance(clean) / _variance(flow.states[-1]))
    return FlowDistance(len(squares), distance(squares, flow.error), share, flow.error, logsnr, along)
