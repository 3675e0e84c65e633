"""Coefficients of all steps at once, by gradient descent through the network: bespoke solvers (docs/fitted.md).

    R(c) = E_z |X_K(z; c) - X*(z)|^2 / d

over the coefficients of every step, as in Shaul et al. 2024 (arXiv 2403.01329); fitting/steps.py makes each step near
to the flow in turn instead, without a gradient. The gradient is taken through all steps, so that it holds what every
evaluation of a batch keeps for its backward pass; by L-BFGS with a line search, which never goes further away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.fitting.steps import FittedTable
from snrkit.sampling.flow import in_rows
from snrkit.sampling.step import Fit

Walk = Callable[[Fit, slice], Tensor]
"""The clean states (n, *) of some first states under coefficients."""


@dataclass(frozen=True, slots=True)
class Learning:
    """Coefficients (steps, terms) that gradients are asked of."""

    table: Tensor

    def of(self, index: int, x_next: Tensor, terms: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of step `index`, each ()."""
        return self.table[index, : len(terms)].unbind()


def learn(walk: Walk, flow: Tensor, steps: int, terms: int, rounds: int, batch: int) -> FittedTable:
    """The coefficients that bring clean states nearest to `flow` (M, *), from none on. SnrkitError: not finite."""
    table = torch.zeros(steps, terms, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([table], max_iter=rounds, history_size=rounds, line_search_fn="strong_wolfe")

    def distance() -> float:
        descent.zero_grad()
        total = 0.0
        for rows in in_rows(len(flow), batch):
            part = (walk(Learning(table), rows) - flow[rows]).double().square().sum() / flow.numel()
            part.backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
        return total

    with torch.enable_grad():
        descent.step(distance)  # type: ignore[no-untyped-call]
    found = table.detach()
    if not bool(found.isfinite().all()):
        raise SnrkitError("the states of a step are not finite or too large, and nothing is learned from them.")
    return FittedTable(tuple(map(tuple, found.tolist())), (1.0,) * steps)
