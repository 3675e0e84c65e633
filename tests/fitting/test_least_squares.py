"""Least squares with a share by leaving one out: against plain solutions, brute force, and what is known to be best."""

import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.fitting.least_squares import fit_terms

DRAWS = torch.Generator().manual_seed(11)


def made(states, dims, terms, noise):
    """Terms and what they make, with noise."""
    f = [torch.randn(states, dims, generator=DRAWS, dtype=torch.float64) for _ in range(terms)]
    wanted = sum((k + 1.0) * term for k, term in enumerate(f))
    return f, wanted + noise * torch.randn(states, dims, generator=DRAWS, dtype=torch.float64)


def test_what_terms_make_exactly_is_found_exactly():
    """Without noise the share is 1."""
    terms, wanted = made(20, 6, 3, 0.0)
    solved = fit_terms(terms, wanted)
    assert solved.coefficients == pytest.approx((1.0, 2.0, 3.0), abs=1e-12)
    assert solved.share == pytest.approx(1.0, abs=1e-12)


def test_the_plain_solution_is_that_of_lstsq():
    """The coefficients over the share."""
    terms, wanted = made(15, 8, 3, 2.0)
    solved = fit_terms(terms, wanted)
    plain = torch.linalg.lstsq(torch.stack([t.flatten() for t in terms], 1), wanted.flatten()[:, None]).solution
    assert torch.allclose(torch.tensor(solved.coefficients) / solved.share, plain[:, 0].float(), atol=1e-6)


def test_the_share_is_that_of_brute_force():
    """The least of the error left out, over a fine grid of shares, each image left out in turn."""
    terms, wanted = made(9, 3, 4, 8.0)
    solved = fit_terms(terms, wanted)
    shares, errors = torch.linspace(0, 1, 2001, dtype=torch.float64), torch.zeros(2001, dtype=torch.float64)
    for image in range(9):
        rest = [i for i in range(9) if i != image]
        plain = torch.linalg.lstsq(torch.stack([t[rest].flatten() for t in terms], 1), wanted[rest].flatten()[:, None])
        said = torch.stack([t[image] for t in terms], 1) @ plain.solution[:, 0]
        errors += (wanted[image] - shares[:, None] * said).square().sum(1)
    assert solved.share == pytest.approx(float(shares[errors.argmin()]), abs=5e-4)
    assert 0 < solved.share < 1


def test_the_ridge_in_the_metric_of_the_terms_is_a_share():
    """min |y - sum c f|^2 + mu c' G c has the solution 1/(1 + mu) of the plain one."""
    terms, wanted = made(10, 5, 2, 1.0)
    f, y = torch.stack([t.flatten() for t in terms], 1), wanted.flatten()
    gram = f.T @ f
    for mu in (0.1, 1.0, 7.0):
        ridge = torch.linalg.solve(gram + mu * gram, f.T @ y)
        assert torch.allclose(ridge, torch.linalg.solve(gram, f.T @ y) / (1 + mu), atol=1e-12)


def test_what_is_not_there_is_not_found():
    """Where the terms say nothing of what is wanted, most of the time nothing is taken: 0 exactly in some cases."""
    shares, draws = [], torch.Generator().manual_seed(0)  # of its own: other tests may have run before, or not
    for _ in range(400):
        terms = [torch.randn(12, 1, generator=draws, dtype=torch.float64) for _ in range(3)]
        wanted = torch.randn(12, 1, generator=draws, dtype=torch.float64)
        shares.append(fit_terms(terms, wanted).share)
    assert sum(share == 0 for share in shares) >= 200


def test_terms_that_are_the_same_or_nothing_are_no_trouble():
    """A term twice shares the coefficient; one of zeros gets 0; all zeros give none."""
    (term,), wanted = made(10, 4, 1, 0.0)
    nothing = torch.zeros_like(term)
    found = fit_terms([term, term, nothing], wanted).coefficients
    assert found == pytest.approx((0.5, 0.5, 0.0), abs=1e-9)
    assert fit_terms([nothing], wanted).coefficients == (0.0,)


def test_a_share_of_nothing_is_exact_zeros():
    """Terms that have nothing to do with what is wanted, whose share is 0, get 0.0 and not -0.0."""
    term = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = fit_terms([term], torch.tensor([[0.0, -1.0], [2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))
    assert found.share == 0
    assert [str(coefficient) for coefficient in found.coefficients] == ["0.0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_sums_that_are_not_finite_are_refused(value):
    """Of a term or of what is wanted, in one sentence; before, coefficients were NaN at a share of 0."""
    (term,), wanted = made(10, 4, 1, 0.0)
    for place in (0, 1):
        pair = [term.clone(), wanted.clone()]
        pair[place][3] = value
        if value == 1e200 and place:
            continue  # what is wanted is not squared
        with pytest.raises(SnrkitError, match="not finite or too large"):
            fit_terms(pair[:1], pair[1])
