"""SA-Solver against its paper's equations, their integrals taken by quadrature."""

import math

import pytest
import torch
from scipy.integrate import quad

from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.sampling.grid import Karras
from snrkit.sampling.solvers import Dpmpp3mSde, Euler, SaSolver
from tests.exact import mixture, run, tensor


def levels_of(process, steps=7):
    return (*Karras(steps=steps).levels(process)[:-1], process.level(tensor(math.inf)))


def lagrange(nodes, j, at):
    """The j-th polynomial of Lagrange through nodes."""
    return math.prod((at - node) / (nodes[j] - node) for i, node in enumerate(nodes) if i != j)


def adams(x, here, there, values, nodes, tau, draw):
    """Equations 14 and 17: from `x` at `here`, with predictions of x0 `values` at half-logsnr `nodes`."""
    low, high = (float(level.logsnr) / 2 for level in (here, there))
    linear = float(there.sigma / here.sigma) * math.exp(-(tau**2) * (high - low))
    found = linear * x + there.sigma * math.sqrt(1 - math.exp(-2 * tau**2 * (high - low))) * draw
    for j, value in enumerate(values):
        kernel = lambda lam, j=j: math.exp(-(tau**2) * (high - lam)) * math.exp(lam) * lagrange(nodes, j, lam)  # noqa: E731
        found = found + float(there.sigma) * (1 + tau**2) * quad(kernel, low, high, epsabs=1e-13)[0] * value
    return found


def by_equations(denoise, levels, x, predictor, corrector, tau, draws):
    """PEC: predict, evaluate, correct; fewer predictions at the start, and in the last steps."""
    values, nodes = [denoise(x, levels[0]).x0], [float(levels[0].logsnr) / 2]
    for i in range(len(levels) - 2):
        here, there, left = levels[i], levels[i + 1], len(levels) - 2 - i
        used = min(predictor, len(values), left + 1)
        draw = next(draws)
        ahead = adams(x, here, there, values[-used:][::-1], nodes[-used:][::-1], tau, draw)
        values.append(denoise(ahead, there).x0)
        nodes.append(float(there.logsnr) / 2)
        if corrector:
            used = min(corrector, len(values))
            x = adams(x, here, there, values[-used:][::-1], nodes[-used:][::-1], tau, draw)
        else:
            x = ahead
    return values[-1]


@pytest.mark.parametrize("process", [Edm(), Ddpm(), Flow()], ids=lambda process: process.kind)
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 0), (3, 4), (2, 2), (1, 3), (4, 4)])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_it_is_the_published_update(process, predictor, corrector, tau):
    """Of every order, with the same noise in predictor and corrector, to 1e-8."""
    levels = levels_of(process)
    draws = torch.randn(8, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = draws[0] * levels[0].sigma
    mine = iter(draws[1:])
    solver = SaSolver(predictor=predictor, corrector=corrector, eta=tau**2)
    found = run(solver, mixture(process), levels, x, noise=lambda _: next(mine))
    wanted = by_equations(mixture(process), levels, x, predictor, corrector, tau, iter(draws[1:]))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_corrector_it_is_what_is_there_already(eta):
    """Of one prediction without noise Euler, of three DPM-Solver++ 3M of the SDE but for its last steps."""
    process = Edm()
    levels, x = levels_of(process)[:-2], torch.randn(2, 1, 2, 2, dtype=torch.float64) * 80

    def ends(solver):
        draws = torch.Generator().manual_seed(3)
        return run(solver, mixture(process), levels, x, lambda s: torch.randn(s.shape, generator=draws, dtype=s.dtype))

    three = ends(SaSolver(predictor=3, corrector=0, eta=eta)), ends(Dpmpp3mSde(eta=eta))
    torch.testing.assert_close(*three, rtol=1e-10, atol=1e-10)
    if eta == 0:
        torch.testing.assert_close(ends(SaSolver(predictor=1, corrector=0, eta=0)), ends(Euler()))


def test_a_corrector_needs_the_step_s_own_prediction():
    """One prediction alone would be that at the end."""
    with pytest.raises(ValueError, match="give 0, or 2 to 4"):
        SaSolver(corrector=1)
