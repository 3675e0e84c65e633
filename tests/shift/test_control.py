"""What one step of Euler's method does to the variance of any data."""

import pytest
import torch

from snrkit.data.toy import MixtureDenoiser
from snrkit.diffusion.process import Edm
from snrkit.sampling.solvers import Euler
from tests.exact import run

MEANS = torch.tensor([[-1.0, 0.4], [0.7, 0.2], [0.3, -1.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.04
BANDS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5  # low and high of two pixels


@pytest.mark.parametrize("sigma", [0.2, 0.7, 3.0])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_deficit_of_variance_is_the_square_of_the_step_times_the_error(sigma, share):
    """In each band of two pixels of a mixture, by quadrature; and the linear error, a Gaussian's, is never smaller."""
    process = Edm()
    denoise = MixtureDenoiser(
        process, MEANS.reshape(3, 1, 1, 2), torch.full((3,), SPREAD, dtype=torch.float64), WEIGHTS
    )
    here, there = (
        process.level(-2 * torch.tensor(value, dtype=torch.float64).log()) for value in (sigma, share * sigma)
    )
    axis = torch.linspace(-3 - 8 * sigma, 3 + 8 * sigma, 901, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    variance = SPREAD + sigma**2
    bumps = torch.exp(-(x[:, None] - MEANS).square().sum(-1) / (2 * variance)) / (2 * torch.pi * variance)
    density = (WEIGHTS * bumps).sum(1) * float(axis[1] - axis[0]) ** 2
    state = x.reshape(-1, 1, 1, 2)
    moved = run(Euler(), denoise, (here, there), state)
    x0_hat = denoise(state, here).x0

    def moments(values):
        return density @ (values.reshape(-1, 2) @ BANDS.T).square()

    second = WEIGHTS @ (MEANS @ BANDS.T).square() + SPREAD  # E x0^2 in each band
    mmse = second - moments(x0_hat)  # as E x0_hat^2 = E x0^2 - E (x0 - x0_hat)^2
    assert float(density.sum()) == pytest.approx(1, abs=1e-9)
    predicted = second + (share * sigma) ** 2 - (1 - share) ** 2 * mmse
    torch.testing.assert_close(moments(moved), predicted, rtol=1e-8, atol=1e-9)
    mean = WEIGHTS @ (MEANS @ BANDS.T)
    covariance = (
        BANDS
        @ (torch.einsum("k,ki,kj->ij", WEIGHTS, MEANS, MEANS) + SPREAD * torch.eye(2, dtype=torch.float64))
        @ BANDS.T
    )
    covariance -= torch.outer(mean, mean)
    linear = (
        covariance
        - covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2, dtype=torch.float64)) @ covariance
    )
    assert bool((mmse <= linear.diagonal() + 1e-9).all())
