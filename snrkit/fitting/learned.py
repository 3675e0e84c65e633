"""Coefficients of all steps at once, by gradient descent through the network: bespoke solvers (docs/fitted.md).

    L(c) = E_z ln |X_K(z; c) - X*(z)|^2 / d

over the coefficients of every step, the loss of Shaul et al. 2024 (arXiv 2403.01329), which no single far state
decides; fitting/steps.py makes each step near to the flow in turn instead, without a gradient. The gradient is taken
through all steps, so that it holds what every evaluation of a batch keeps for its backward pass; by L-BFGS with a line
search, in coefficients whose terms all have the same size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.kept import counting_kept
from snrkit.fitting.steps import FittedTable
from snrkit.sampling.flow import in_rows
from snrkit.sampling.step import Fit

Walk = Callable[[Fit, slice], Tensor]
"""The clean states (n, *) of some first states under coefficients."""
SMALLEST = 1e-30  # square distance to the flow whose logarithm is taken
TRIED = 0.01  # of the distance to the flow, by which a step is moved where a gradient is set beside a difference
AGREES, UNSEEN = 0.1, 1e-4  # what they may differ by: a share of the larger, and what rounding hides


@dataclass(frozen=True, slots=True)
class Learning:
    """Coefficients (steps, terms) that gradients are asked of."""

    table: Tensor

    def of(self, index: int, x_next: Tensor, terms: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of step `index`, each ()."""
        return self.table[index, : len(terms)].unbind()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """A fit that adds nothing, and sums the squares of each term."""

    squares: Tensor

    def of(self, index: int, x_next: Tensor, terms: Sequence[Tensor]) -> Sequence[float]:
        for place, term in enumerate(terms):
            self.squares[index, place] += float(term.double().square().sum())
        return (0.0,) * len(terms)


@dataclass(slots=True)
class _Descent:
    walk: Walk
    flow: Tensor
    batch: int
    scale: Tensor  # (steps, terms): coefficients are this times what is descended in
    place: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.place = torch.zeros_like(self.scale, requires_grad=True)

    def loss(self) -> float:
        """L, with its gradient; infinite and without one where states are not finite."""
        self.place.grad = torch.zeros_like(self.place)
        total = 0.0
        for rows in in_rows(len(self.flow), self.batch):
            part = self._of(rows).log().sum() / len(self.flow)
            part.backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
        if math.isfinite(total) and bool(self.place.grad.isfinite().all()):
            return total
        self.place.grad.zero_()
        return math.inf

    def _of(self, rows: slice) -> Tensor:
        gap = (self.walk(Learning(self.place * self.scale), rows) - self.flow[rows]).double()
        return gap.square().flatten(1).mean(1) + SMALLEST

    def check_memory(self) -> None:
        """Refuse batches whose backward pass this device cannot hold: ConfigError."""
        one, two = self._kept(1), self._kept(2)  # weights are in both
        needed, there = one + (two - one) * (min(self.batch, len(self.flow)) - 1), free_memory(self.flow.device)
        if needed > there:
            raise ConfigError(
                f"sample.batch: a backward pass through all steps needs {in_bytes(needed)} for {self.batch} first "
                f"states and {in_bytes(there)} are free; give a smaller batch, or use solver kind fitted."
            )

    def _kept(self, states: int) -> int:
        """Bytes for the backward pass of so many."""
        with counting_kept() as kept:
            self._of(slice(0, states))
        return kept.bytes

    def check_gradient(self) -> None:
        """Refuse a model whose answers come without their gradient, in part or whole: SnrkitError.

        By differences in the coefficients of the first step, of which every later answer depends.
        """
        with torch.no_grad():
            reach = TRIED * float(self._of(slice(0, len(self.flow))).mean().sqrt())
        self.loss()
        assert self.place.grad is not None
        for term, slope in enumerate((2 * reach * self.place.grad[0]).tolist()):
            fall = -self._beside(term, -reach) + self._beside(term, reach)
            if not abs(fall - slope) <= AGREES * max(abs(fall), abs(slope)) + UNSEEN:
                raise SnrkitError(
                    "the gradient through this sampler is not the slope of its distance to the flow: a part of the "
                    "model or of its guidance answers without one; use solver kind fitted."
                )

    @torch.no_grad()
    def _beside(self, term: int, by: float) -> float:
        """L with one coefficient of the first step moved."""
        self.place[0, term] = by
        total = sum(float(self._of(rows).log().sum()) for rows in in_rows(len(self.flow), self.batch))
        self.place[0, term] = 0
        return total / len(self.flow)


def learn(walk: Walk, flow: Tensor, steps: int, terms: int, rounds: int, batch: int) -> FittedTable:
    """The coefficients that bring clean states nearest to `flow` (M, *), from none on.

    ConfigError where a batch of the backward pass does not fit, SnrkitError for a model without a gradient.
    """
    sizes = _Sizes(torch.zeros(steps, terms, dtype=torch.float64))
    with torch.no_grad():
        for rows in in_rows(len(flow), batch):
            walk(sizes, rows)
    squares = sizes.squares / flow.numel()
    descent = _Descent(walk, flow, batch, torch.where(squares > 0, squares.rsqrt(), 1.0))
    with torch.enable_grad():
        descent.check_memory()
        descent.check_gradient()
        rule = torch.optim.LBFGS(
            [descent.place], max_iter=rounds, max_eval=4 * rounds, tolerance_grad=0, tolerance_change=1e-9,
            history_size=rounds, line_search_fn="strong_wolfe",
        )  # fmt: skip
        rule.step(descent.loss)  # type: ignore[no-untyped-call]
    found = (descent.place * descent.scale).detach()
    if not bool(found.isfinite().all()):
        raise SnrkitError("the states of a step are not finite or too large, and nothing is learned from them.")
    return FittedTable(tuple(map(tuple, found.tolist())), (1.0,) * steps)
