"""Coefficients of all steps at once: gradients, what they bring, and where they begin."""

import pytest
import torch

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.diffusion.prediction import rewrap
from snrkit.diffusion.process import Edm, Flow
from snrkit.fitting.learned import Learning, learn
from snrkit.fitting.steps import FittingSteps, fit_steps
from snrkit.sampling.flow import fine_flow, rms
from snrkit.sampling.grid import UniformLogsnr
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import OpenedSampler
from snrkit.sampling.solvers import Bns, Dpmpp2m, Euler, Fitted, Heun, Ipndm
from snrkit.sampling.step import no_fit
from tests.exact import mixture, run

GRID = UniformLogsnr(steps=4, logsnr_min=-5, logsnr_max=5)
STEPS = 4


@pytest.fixture
def problem():
    """(denoiser, levels, first states to learn on and others)."""
    draws = torch.Generator().manual_seed(5)
    levels = GRID.levels(Edm())
    noise = torch.randn(2, 48, 1, 2, 2, generator=draws, dtype=torch.float64)
    return mixture(Edm()), levels, *(start(Edm(), each, levels[0]) for each in noise)


def learned(denoise, levels, x, value, flow, batch=48):
    def walk(fit, rows):
        return run(value.with_fit(fit), denoise, levels, x[rows])

    return learn(walk, flow, STEPS, value.terms, value.rounds, batch)


@pytest.mark.parametrize("base", [Euler(), Heun(), Dpmpp2m(), Ipndm()], ids=lambda b: b.kind)
def test_without_coefficients_it_is_its_base_bit_for_bit(base, problem):
    denoise, levels, x, _ = problem
    value = Bns(base=base)
    assert torch.equal(
        run(value.with_fit(no_fit(STEPS, value.terms)), denoise, levels, x), run(base, denoise, levels, x)
    )


def test_gradients_are_those_of_central_differences(problem):
    """Of the distance to the flow, in every coefficient that a step takes; 0 in those of terms that it has not yet."""
    denoise, levels, x, _ = problem
    value, flow = Bns(base=Euler(), history=2), fine_flow(denoise, levels, x).states[-1]
    draws = torch.Generator().manual_seed(1)
    table = (0.05 * torch.randn(STEPS, value.terms, generator=draws, dtype=torch.float64)).requires_grad_()

    def distance(at):
        return (run(value.with_fit(Learning(at)), denoise, levels, x) - flow).square().mean()

    (found,) = torch.autograd.grad(distance(table), table)
    with torch.no_grad():
        for step in range(STEPS):
            for term in range(value.terms):
                beside = torch.zeros_like(table)
                beside[step, term] = 1e-5
                slope = (distance(table + beside) - distance(table - beside)) / 2e-5
                assert float(found[step, term]) == pytest.approx(float(slope), rel=1e-4, abs=1e-8)
    assert float(found[0, 2:].abs().max()) == 0
    assert float(found.abs().max()) > 1e-3


def test_it_comes_nearer_than_steps_that_are_fitted_in_turn(problem):
    """With the same terms, on the states that both were fitted on, in the mean logarithm of the distance.

    It alone asks for the end. On other states it beats its base too.
    """
    denoise, levels, x, others = problem
    flow = fine_flow(denoise, levels, x)
    in_turn = Fitted(base=Euler(), history=3)
    fitting = FittingSteps(flow)
    table = fit_steps(denoise, OpenedSampler(tuple(levels), in_turn.with_fit(fitting), ()), fitting, x, in_turn.terms)
    value = Bns(base=Euler(), history=3)
    ends = learned(denoise, levels, x, value, flow.states[-1])
    learnt, turned, plain = value.with_fit(ends.fit), in_turn.with_fit(table.fit), Euler()

    def far(solver, states, wanted):
        return float((run(solver, denoise, levels, states) - wanted).square().flatten(1).mean(1).log().mean())

    own, other, base = (far(solver, x, flow.states[-1]) for solver in (learnt, turned, plain))
    assert own < other - 0.5 < other < base
    elsewhere = fine_flow(denoise, levels, others).states[-1]
    assert far(learnt, others, elsewhere) < far(plain, others, elsewhere) - 1


def test_parts_of_the_states_give_the_same_coefficients(problem):
    """Gradients are summed over batches."""
    denoise, levels, x, _ = problem
    flow, value = fine_flow(denoise, levels, x).states[-1], Bns(base=Euler(), history=1, rounds=3)
    whole, parts = (learned(denoise, levels, x, value, flow, batch) for batch in (48, 13))
    torch.testing.assert_close(torch.tensor(whole.rows), torch.tensor(parts.rows), rtol=1e-6, atol=1e-9)


def test_its_steps_hold_every_combination_of_the_noise_and_all_predictions():
    """The paper's form: x_(k+1) = a x_0 + sum_j b_j eps_j for any a and b, by coefficients of x0_hat and eps."""
    denoise, levels = mixture(Flow()), GRID.levels(Flow())
    draws = torch.Generator().manual_seed(2)
    x = start(Flow(), torch.randn(8, 1, 2, 2, generator=draws, dtype=torch.float64), levels[0])

    class Reaching:
        """Coefficients by least squares to combinations that are drawn; keeps what is missed."""

        def __init__(self):
            self.past, self.missed = [], []

        def of(self, index, x_next, terms):
            self.past.append(terms[1])
            b = torch.randn(len(self.past) + 1, generator=draws, dtype=torch.float64)
            wanted = b[-1] * x + sum(w * eps for w, eps in zip(b, self.past, strict=False))
            columns = torch.stack([term.flatten() for term in terms], 1)
            missing = (wanted - x_next).flatten()[:, None]
            found = torch.linalg.lstsq(columns, missing, driver="gelsd").solution
            self.missed.append(rms(columns @ found - missing))
            return found.flatten().tolist()

    reaching = Reaching()
    for _ in sample(denoise, Bns(base=Euler()).with_fit(reaching), levels, x):
        pass
    assert len(reaching.missed) == STEPS
    assert max(reaching.missed) < 1e-9


def test_a_part_that_answers_without_its_gradient_is_refused(problem):
    """The network's own answers are detached: what is left of the gradient is no slope of the distance."""
    denoise, levels, x, _ = problem
    flow = fine_flow(denoise, levels, x).states[-1]
    cut = rewrap(denoise, lambda x, level, told, cond: denoise(x.detach(), level, told=told, cond=cond))
    with pytest.raises(SnrkitError, match="is not the slope of its distance to the flow"):
        learned(cut, levels, x, Bns(base=Euler(), history=1), flow)


def test_a_batch_whose_backward_pass_does_not_fit_is_refused(problem, monkeypatch):
    """By what autograd keeps for it: twice as much for twice the states."""
    denoise, levels, x, _ = problem
    flow, value = fine_flow(denoise, levels, x).states[-1], Bns(base=Euler(), history=1, rounds=1)
    needed = []
    for batch in (8, 16, 32):
        monkeypatch.setattr("snrkit.fitting.learned.in_bytes", lambda count: needed.append(count) or str(count))
        monkeypatch.setattr("snrkit.fitting.learned.free_memory", lambda device: 0)
        with pytest.raises(ConfigError, match=r"sample\.batch: a backward pass through all steps needs"):
            learned(denoise, levels, x, value, flow, batch)
    at_8, at_16, at_32 = needed[::2]
    assert at_32 - at_16 == 2 * (at_16 - at_8) > 0
    monkeypatch.setattr("snrkit.fitting.learned.free_memory", lambda device: at_8)
    learned(denoise, levels, x, value, flow, 8)
