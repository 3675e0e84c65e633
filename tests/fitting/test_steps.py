"""Fitted steps: bit for bit the base where nothing is added, exact where theory says so, nearer than rivals else."""

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.data.toy import gaussian_denoiser
from snrkit.diffusion.prediction import X0
from snrkit.diffusion.process import Edm, Flow
from snrkit.fitting.steps import FittingSteps, fit_steps
from snrkit.sampling.corrections import Dcw, EpsilonScaling
from snrkit.sampling.flow import fine_flow, rms
from snrkit.sampling.grid import Karras, UniformLogsnr, UniformTime
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, OpenedSampler, Sampler, bare, dry_run, named_fit, open_with, takes_fit
from snrkit.sampling.solvers import Deis, Dpm2, Dpmpp2m, Dpmpp3m, Euler, Fitted, Heun, Ipndm, IpndmV, Unipc
from snrkit.sampling.step import GivenFit, no_fit
from tests.exact import THREE, mixture, run

BASES = [Euler(), Heun(), Dpm2(), Dpmpp2m(), Dpmpp3m(), Unipc(), Ipndm(), IpndmV(), Deis()]
TWICE = ("heun", "dpm_2")  # evaluations a step
GRID = UniformLogsnr(steps=6, logsnr_min=-6, logsnr_max=6)


def first(process, levels, shape, noises=64, seed=3):
    draws = torch.Generator().manual_seed(seed)
    return start(process, torch.randn(noises, *shape, generator=draws, dtype=torch.float64), levels[0])


def fitted(denoise, levels, x, value=None):
    """(The table of a solver fitted on x, the solver with it)."""
    value = value or Fitted()
    fitting = FittingSteps(fine_flow(denoise, levels, x))
    opened = OpenedSampler(tuple(levels), value.with_fit(fitting), ())
    table = fit_steps(denoise, opened, fitting, x, value.terms)
    return table, value.with_fit(table.fit)


@pytest.mark.parametrize("base", BASES, ids=lambda b: b.kind)
@pytest.mark.parametrize("bands", ["none", "haar"])
def test_without_gain_it_is_its_base_bit_for_bit(base, bands):
    """Coefficients of 0, which a ridge of infinite strength gives, leave every state as the base makes it."""
    denoise, levels = mixture(Edm()), GRID.levels(Edm())
    x, value = first(Edm(), levels, (1, 2, 2)), Fitted(base=base, bands=bands)
    assert torch.equal(run(value.with_fit(no_fit(6, value.terms)), denoise, levels, x), run(base, denoise, levels, x))


@pytest.mark.parametrize("process", THREE.values(), ids=lambda p: p.kind)
def test_two_variances_need_no_history_and_three_need_one(process):
    """Exact on Gaussian data: along each mode x0_hat and eps_hat are multiples of the state.

    Two terms reach any two multiples, so that the flow of data with two variances is followed exactly from the first
    step on, without history; with the eps before it, one of three variances from the second.
    """
    levels = GRID.levels(process)
    for variances, history, from_step in (((0.5, 0.05), 0, 0), ((0.5, 0.05, 0.005), 1, 1)):
        shape = (len(variances), 1, 1)
        denoise = gaussian_denoiser(process, 0.0, torch.tensor(variances).reshape(shape), shape)
        x, value = first(process, levels, shape), Fitted(base=Euler(), history=history)
        flow = fine_flow(denoise, levels, x)
        fitting = FittingSteps(flow)
        states, solver = [x], value.with_fit(fitting)
        states += [step.x_next for step in sample(denoise, solver, levels, x)]
        errors = [rms(state - wanted) for state, wanted in zip(states, flow.states, strict=True)]
        euler = rms(run(Euler(), denoise, levels, x) - flow.states[-1])
        assert all(error < 1e-6 for error in errors[from_step + 2 :]), errors
        assert euler > 0.02


class Reaching:
    """A fit without a ridge: the coefficients with which each step comes nearest to a path."""

    def __init__(self, path):
        self.path, self.left = path, []

    def of(self, index, x_next, terms):
        wanted = (self.path[index + 1] - x_next).flatten()[:, None]
        columns = torch.stack([term.flatten() for term in terms], 1)
        found = torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
        self.left.append(rms(columns @ found - wanted))
        return found[:, 0].tolist()


def left_of(process, solver, history, corrections=()):
    """The largest rms that a step from Euler leaves of the path of a solver, on a mixture at 8 steps."""
    grid = UniformLogsnr(steps=8, logsnr_min=-6, logsnr_max=6) if process.kind == "flow" else Karras(steps=8)
    denoise, levels = mixture(process), grid.levels(process)
    x = first(process, levels, (1, 2, 2))
    path = [x, *(step.x_next for step in sample(denoise, solver, levels, x, corrections=corrections))]
    reaching = Reaching(path)
    run(Fitted(base=Euler(), history=history).with_fit(reaching), denoise, levels, x)
    return max(reaching.left)


@pytest.mark.parametrize("process", THREE.values(), ids=lambda p: p.kind)
def test_what_the_span_holds(process):
    """To 1e-12: DCW in pixels, a constant scaling of eps, and Adams-Bashforth on eps with history + 1 predictions."""
    for correction in (Dcw(pixel=0.05), EpsilonScaling(scale=1.02)):
        assert left_of(process, Euler(), 0, [correction]) < 1e-12
    for solver in (Ipndm(), IpndmV(k=4), IpndmV()):
        assert left_of(process, solver, solver.k - 1) < 1e-12


@pytest.mark.parametrize("process", THREE.values(), ids=lambda p: p.kind)
def test_what_the_span_does_not_hold(process):
    """The default ipndm with the default history, and solvers that remember an earlier x0_hat."""
    assert left_of(process, Ipndm(), Fitted().history) > 1e-4
    for solver in (Dpmpp2m(), Dpmpp3m(), Unipc()):
        assert left_of(process, solver, 3) > 1e-4


def test_what_was_fitted_samples_as_it_was_fitted():
    """The table, given, makes the states that fitting made, bit for bit, with bands too."""
    denoise, levels = mixture(Edm(), shape=(1, 4, 4), variance=0.1), Karras(steps=5).levels(Edm())
    x = first(Edm(), levels, (1, 4, 4))
    for value in (Fitted(), Fitted(bands="haar", history=1)):
        table, solver = fitted(denoise, levels, x, value)
        fitting = FittingSteps(fine_flow(denoise, levels, x))
        assert torch.equal(run(solver, denoise, levels, x), run(value.with_fit(fitting), denoise, levels, x))
        assert len(table.rows) == 5
        assert {len(row) for row in table.rows} == {value.terms}


@pytest.mark.parametrize("process", THREE.values(), ids=lambda p: p.kind)
@pytest.mark.parametrize("steps", [5, 7])
def test_it_is_nearer_to_the_flow_than_published_solvers(process, steps):
    """On first states that it was not fitted on, a mixture of broad bumps: at most .9 of the best of seven solvers."""
    grid = UniformTime(steps=steps) if process.kind == "flow" else Karras(steps=steps)
    denoise, levels = mixture(process, shape=(1, 4, 4), variance=0.06), grid.levels(process)
    x, fresh = (first(process, levels, (1, 4, 4), 128, seed) for seed in (3, 4))
    _, solver = fitted(denoise, levels, x)
    flow = fine_flow(denoise, levels, fresh).states[-1]
    others = {base.kind: rms(run(base, denoise, levels, fresh) - flow) for base in BASES if base.kind not in TWICE}
    assert rms(run(solver, denoise, levels, fresh) - flow) < 0.9 * min(others.values()), others


def test_bands_are_dcw_with_a_coefficient_for_each_step():
    """A table of DCW makes what DCW makes: with the same coefficients at all steps it is DCW."""
    denoise, levels = mixture(Edm(), shape=(1, 4, 4)), GRID.levels(Edm())
    x, table = first(Edm(), levels, (1, 4, 4)), Dcw(schedule={"kind": "table"})
    given = table.with_fit(GivenFit(((0.03, -0.01),) * 6))
    found = run(Euler(), denoise, levels, x, corrections=[given])
    wanted = run(Euler(), denoise, levels, x, corrections=[Dcw(low=0.03, high=-0.01)])
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    neutral = table.with_fit(no_fit(6, 2))
    assert torch.equal(run(Euler(), denoise, levels, x, corrections=[neutral]), run(Euler(), denoise, levels, x))


def test_a_table_of_dcw_is_fitted_as_steps_are():
    """It comes nearer to the flow than the base does, on first states that it was not fitted on."""
    denoise, levels = mixture(Edm(), shape=(1, 4, 4), variance=0.1), Karras(steps=7).levels(Edm())
    x, fresh = (first(Edm(), levels, (1, 4, 4), 128, seed) for seed in (3, 4))
    value = Dcw(schedule={"kind": "table"})
    flow = fine_flow(denoise, levels, x)
    fitting = FittingSteps(flow)
    table = fit_steps(denoise, OpenedSampler(levels, Euler(), (value.with_fit(fitting),)), fitting, x, value.terms)
    truth = fine_flow(denoise, levels, fresh).states[-1]
    by_table = rms(run(Euler(), denoise, levels, fresh, corrections=[value.with_fit(table.fit)]) - truth)
    assert by_table < 0.9 * rms(run(Euler(), denoise, levels, fresh) - truth)
    assert table.rows[-1] == (0.0, 0.0)  # into the clean level, where DCW does not act


def test_a_sampler_says_that_it_takes_a_fit_and_what_its_base_is():
    """The fit is named by the definition; the base of a comparison has neither; it costs what the base does."""
    sampler = Sampler(grid=Karras(steps=5), solver=Fitted(base=Unipc()))
    table = Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(Dcw(schedule={"kind": "table"}),))
    assert takes_fit(sampler)
    assert takes_fit(table)
    assert not takes_fit(bare(table))
    assert bare(sampler) == Sampler(grid=Karras(steps=5), solver=Unipc())
    assert (named_fit(sampler).steps, named_fit(sampler).terms, named_fit(table).terms) == (5, 4, 2)
    assert named_fit(sampler) != named_fit(sampler.model_copy(update={"grid": Karras(steps=5, rho=6)}))
    assert dry_run(sampler, Edm(), X0(), (1, 4, 4)) == 5
    dummy = Dummy(Edm())
    open_with(sampler, Edm(), dummy)
    assert dummy.named == [named_fit(sampler)]


@pytest.mark.parametrize(
    ("solver", "corrections", "said"),
    [
        (Fitted(), (Dcw(low=0.1),), "fitted is fitted to the flow.*dcw changes"),
        (Fitted(), (Dcw(schedule={"kind": "table"}),), "fitted is fitted.*dcw changes"),
        (Euler(), (Dcw(schedule={"kind": "table"}), EpsilonScaling(scale=1.1)), "dcw is fitted.*epsilon_scaling"),
    ],
)
def test_what_is_fitted_stands_alone(solver, corrections, said):
    """Beside what changes the same steps it is refused."""
    with pytest.raises(ValueError, match=said):
        Sampler(grid=Karras(steps=5), solver=solver, corrections=corrections)


def test_a_table_has_no_other_coefficients():
    """DCW's own are left out."""
    with pytest.raises(ValueError, match="drop pixel, low and high"):
        Dcw(low=0.1, schedule={"kind": "table"})


def test_one_step_of_dcw_has_nothing_to_fit():
    """The only step goes into the clean level."""
    denoise, levels = mixture(Flow()), UniformTime(steps=1).levels(Flow())
    x, value = first(Flow(), levels, (1, 2, 2)), Dcw(schedule={"kind": "table"})
    fitting = FittingSteps(fine_flow(denoise, levels, x))
    with pytest.raises(SnrkitError, match="no step of this sampler takes coefficients"):
        fit_steps(denoise, OpenedSampler(levels, Euler(), (value.with_fit(fitting),)), fitting, x, 2)
