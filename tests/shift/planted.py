"""Errors of known size, and how often the intervals of every reading hold the truth: `python -m tests.shift.planted`.

The data are Gaussian with a variance of their own in each Haar band, and every network and solver here is linear, so
that all readings are functions of second moments. The truth of a reading is the reading itself on a population: states
+-sqrt(D v_d) e_d along the coordinates d, whose second moments are those of the Gaussian without error. A repeat draws
first states, held-out images, training images and noise anew.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor

from snrkit.base.frequency import haar
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.diffusion.process import Edm
from snrkit.sampling.grid import Karras
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import Dummy, Sampler, open_with
from snrkit.sampling.solvers import Euler, Heun
from snrkit.sampling.step import Deterministic
from snrkit.shift.arms import Arm, LevelStates, forward_arm, make_arm, reverse_arm
from snrkit.shift.bootstrap import Bootstrap, Number
from snrkit.shift.horizon import horizon_arms, read_horizon
from snrkit.shift.measure import Reference, compare_arms
from snrkit.shift.reference import even_shares, make_reference
from snrkit.shift.why import WhyProbe

SHAPE, DIMS = (1, 4, 4), 16
VIEW = haar(SHAPE)
BASIS = VIEW.coordinates(torch.eye(DIMS, dtype=torch.float64).reshape(DIMS, *SHAPE))  # of each pixel
SPREAD = torch.tensor([1.5, 0.25, 0.25, 0.05], dtype=torch.float64)[VIEW.parts]  # Var[x0] (D,)
PROCESS, CPU = Edm(), torch.device("cpu")
COPIES = 64  # of a population, as a variance takes out a mean
IMAGES, TRAINED = 120, 2000


def images_of(coordinates: Tensor) -> Tensor:
    """(n, C, H, W) of coordinates (n, D)."""
    return (coordinates @ BASIS.T).reshape(-1, *SHAPE)


def population(variances: Tensor) -> Tensor:
    """Images whose second moments are those of a Gaussian with variances (D,) along the coordinates."""
    axes = torch.diag((DIMS * variances).sqrt())
    return images_of(torch.cat([axes, -axes]).repeat(COPIES, 1))


def drawn(variances: Tensor, count: int, seed: int) -> Tensor:
    """Images of that Gaussian."""
    draws = torch.randn(count, DIMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images_of(draws * variances.sqrt())


def variances_at(level: Level) -> Tensor:
    """Of real images noised to a level (D,)."""
    return level.alpha**2 * SPREAD + level.sigma**2


class Losing(Deterministic):
    """Heun's steps, of which each loses a share of the state."""

    kind: str = "losing"
    share: float = 0.005
    order: int = 2

    def step(self, denoise, x, position, memory, noise):  # type: ignore[no-untyped-def]
        x_next, calls, memory = Heun().step(denoise, x, position, memory, noise)
        return (1 - self.share) * x_next, calls, memory


@dataclass(frozen=True)
class Case:
    """What is wrong, and with how many steps it is sampled."""

    told: float = 0.0  # nats by which the network takes its states to be cleaner than they are
    share: float = 0.0  # by which its x0 is too large in one band, at levels of the span
    band: str = "hh"
    span: tuple[float, float] = (-2.0, 2.0)
    solver: object = field(default_factory=Heun)
    steps: int = 18

    def denoiser(self) -> Wrapped:
        """The exact denoiser of the data with the planted error."""

        def answer(x, level, told, cond):  # type: ignore[no-untyped-def]
            seen = PROCESS.level(level.logsnr + self.told)
            gain = seen.alpha * SPREAD / variances_at(seen)
            inside = self.span[0] <= float(level.logsnr.flatten()[0]) <= self.span[1]
            hit = VIEW.parts == VIEW.names.index(self.band)
            gain = gain * (1 + self.share * inside * hit)
            x0 = images_of((x.double().flatten(1) @ BASIS) * gain)
            return Prediction(x0, (x - level.alpha * x0) / level.sigma)

        return Wrapped(PROCESS, answer)


CASES = {
    "none": Case(),
    "told 0.1 nats too clean": Case(told=0.1),
    "told 0.2 nats too noisy": Case(told=-0.2),
    "x0 5 % too large in hh": Case(share=0.05),
    "Euler, 18 steps": Case(solver=Euler()),
    "a solver that loses 0.5 % a step": Case(solver=Losing()),
}


@dataclass(frozen=True)
class Draw:
    """First states, held-out and training images; their noise is drawn where `seed` is given, or a population's."""

    first: Tensor
    held: Tensor
    trained: Tensor
    seed: int | None

    def forward(self, denoise: Wrapped, levels: tuple[Level, ...], of: Tensor, known: Reference, key: int) -> Arm:
        """The forward arm of held-out or training images."""
        reader, groups = known.reader(levels, {}), torch.arange(len(of))
        if self.seed is not None:
            return forward_arm(denoise, levels, of, groups, Cond(), key=(self.seed, key), batch=len(of), device=CPU,
                               reader=reader)  # fmt: skip
        found = []
        for index, level in enumerate(levels):
            states, kept = population(variances_at(level)), LevelStates(groups, reader)
            kept.add(states, denoise(states, level))
            found.append(kept.read(index))
        return make_arm(found, groups)


def whole(levels: tuple[Level, ...]) -> Draw:
    """The population."""
    images = population(SPREAD)
    return Draw(population(variances_at(levels[0])), images, images, None)


def repeat(levels: tuple[Level, ...], seed: int) -> Draw:
    """A sample of it."""
    first = drawn(variances_at(levels[0]), IMAGES, 10 * seed)
    return Draw(first, drawn(SPREAD, IMAGES, 10 * seed + 1), drawn(SPREAD, TRAINED, 10 * seed + 2), seed)


def readings(case: Case, draw_of: Callable[[tuple[Level, ...]], Draw], resamples: int = 200) -> dict[str, Number]:
    """Every reading of a case, by name."""
    solver: object = case.solver if not isinstance(case.solver, Losing) else Heun()
    sampler, denoise = Sampler(grid=Karras(steps=case.steps), solver=solver), case.denoiser()
    ready = replace(open_with(sampler, PROCESS, Dummy(PROCESS)), solver=case.solver)
    levels, boot = ready.levels[:-1], Bootstrap(resamples, 0.95, 0)
    draw = draw_of(levels)
    weighted = lambda: iter([(draw.trained, even_shares(len(draw.trained)))])  # noqa: E731
    known = make_reference(PROCESS, weighted, draw.held)

    def walk(sampler, own, places, reader):  # type: ignore[no-untyped-def]
        steps = lambda d: sample(d, own.solver, own.levels, draw.first)  # noqa: E731
        return reverse_arm(denoise, [steps], places, len(draw.first), reader)

    reverse = walk(sampler, ready, range(len(levels)), known.reader(levels, {}))
    forward, train = (draw.forward(denoise, levels, of, known, key) for key, of in enumerate((draw.held, draw.trained)))
    shift = compare_arms(reverse, forward, train, levels, known, boot)
    why = WhyProbe().read(SimpleNamespace(  # type: ignore[arg-type]
        sampler=sampler, ready=ready, denoise=denoise, levels=levels, reverse=reverse, reference=known, bootstrap=boot,
        forward=forward, equipment=SimpleNamespace(walk=walk),
    ))  # fmt: skip
    return {
        "norm gap": shift.mean_norm_gap,
        "its null": shift.mean_norm_gap_null,
        "ln variance ratio": shift.mean_log_variance_ratio,
        "its null ": shift.mean_log_variance_ratio_null,
        "nearest level": shift.mean_nearest,
        "its null  ": shift.mean_nearest_null,
        "norm gap of the network": why.norm_gap.mean_network,
        "norm gap of the solver": why.norm_gap.mean_solver,
        "ln variance ratio of the network": why.log_variance_ratio.mean_network,
        "ln variance ratio of the solver": why.log_variance_ratio.mean_solver,
        **(_short(denoise, ready, draw, forward, known, boot) if draw.seed is not None else {}),
    }


def _short(denoise, ready, draw, forward, known, boot) -> dict[str, Number]:  # type: ignore[no-untyped-def]
    """The short horizon, whose noise is drawn."""
    reader = known.pixel_reader(ready.levels[1:-1])
    arms = horizon_arms(
        denoise, ready, draw.held, forward, Cond(), 1, range(len(draw.held)), reader, key=(draw.seed, 0), batch=IMAGES,
        device=CPU,
    )  # fmt: skip
    found = read_horizon(*arms, ready, 1, known, boot)
    return {"one step: norm gap": found.mean_norm_gap, "one step: ln variance ratio": found.mean_log_variance_ratio}


def one_step(case: Case) -> dict[str, float]:
    """The truth of the short horizon: one step from states of the right variances."""
    levels, denoise = Karras(steps=case.steps).levels(PROCESS), case.denoiser()
    gaps, ratios = [], []
    for index, (here, there) in enumerate(pairwise(levels[:-1])):
        right, x = population(variances_at(there)), population(variances_at(here))
        (step,) = sample(denoise, case.solver, levels, x, steps=range(index, index + 1))
        square = [float(denoise(states, there).eps.square().mean()) for states in (step.x_next, right)]
        gaps.append(math.log(square[0] / square[1]))
        ratios.append(math.log(float(step.x_next.square().mean() / right.square().mean())))
    return {"one step: norm gap": sum(gaps) / len(gaps), "one step: ln variance ratio": sum(ratios) / len(ratios)}


def truths(case: Case) -> dict[str, float]:
    """Of every reading."""
    return {**{name: number.value for name, number in readings(case, whole, 100).items()}, **one_step(case)}


def trials(case: Case, count: int) -> Iterator[dict[str, Number]]:
    """The readings of so many repeats."""
    for seed in range(1, count + 1):
        yield readings(case, partial(repeat, seed=seed))


def main(count: int) -> None:
    """One row for each reading of each case."""
    print("| planted | reading | truth | mean of readings | intervals that hold it |\n|---|---|---|---|---|")
    for name, case in CASES.items():
        true, held, sums = truths(case), Counter[str](), Counter[str]()
        for found in trials(case, count):
            for reading, number in found.items():
                held[reading] += number.low <= true[reading] <= number.high
                sums[reading] += number.value
        for reading, value in true.items():
            print(f"| {name} | {reading} | {value:+.4f} | {sums[reading] / count:+.4f} | {held[reading]} of {count} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
