"""The model of spectra: what it draws is like what it was fitted to, class by class, and within its range."""

import torch

from snrkit.spectral.model import RANGE, fit_spectrum_model, load_spectrum_model
from snrkit.spectral.spectra import Spectra

RINGS = 9


def spectra(count=2000, shift=0.0, seed=0, classes=0):
    """Log-normal spectra falling as k^-2, with correlated rings; class c is brighter by `shift` c."""
    draws = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, dtype=torch.float64, generator=draws)
    k = torch.arange(1, RINGS + 1, dtype=torch.float64).log()
    labels = torch.arange(count) % classes if classes else None
    phi = 3 - 2 * k + 0.5 * z[:, :1] + 0.3 * z[:, 1:] * (k - k.mean())
    if labels is not None:
        phi = phi + shift * labels[:, None]
    return Spectra(phi.exp(), torch.arange(count), labels, classes)


def drawn(model, count=4000, labels=None):
    draws = torch.Generator().manual_seed(1)
    u = torch.rand(count, dtype=torch.float64, generator=draws)
    z = torch.randn(count, len(model.axes), dtype=torch.float64, generator=draws)
    return model.draw(u, z, labels).log()


def test_draws_have_the_moments_of_what_was_fitted():
    """Mean and covariance of ln P, for log-normal spectra."""
    data = spectra()
    found, phi = drawn(fit_spectrum_model(data)), data.power.log()
    torch.testing.assert_close(found.mean(0), phi.mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(found.T.cov(), phi.T.cov(), rtol=0, atol=0.04)


def test_draws_stay_within_the_training_range():
    """Ring by ring, between its 0.5 and 99.5 % quantiles."""
    data = spectra(400)
    found, phi = drawn(fit_spectrum_model(data)), data.power.log()
    for share, over in zip(RANGE, (-1, 1), strict=True):
        bound = torch.quantile(phi, share, dim=0)
        assert (over * (found - bound) <= 1e-12).all()
        assert (over * (found - bound) == 0).any()


def test_classes_have_their_own_and_no_label_the_mixture():
    """Three classes four apart: draws of one are of it, draws without label of all in equal parts."""
    data = spectra(1800, shift=4.0, classes=3)
    model = fit_spectrum_model(data)
    for label in range(3):
        found = drawn(model, 600, torch.full((600,), label))[:, 0]
        assert float(((found - 3 - 4 * label).abs() < 2).double().mean()) > 0.98
    for nothing in (None, torch.full((4000,), -1)):
        shares = torch.histc((drawn(model, 4000, nothing)[:, 0] - 3) / 4, 3, -0.5, 2.5) / 4000
        torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.03)


def test_an_image_is_drawn_by_its_own_numbers():
    """In a batch or alone, but for rounding; tensors bring the model back."""
    model = fit_spectrum_model(spectra(500))
    u, z = torch.rand(6, dtype=torch.float64), torch.randn(6, len(model.axes), dtype=torch.float64)
    together = model.draw(u, z, None)
    again = load_spectrum_model(model.tensors())
    for k in range(6):
        torch.testing.assert_close(again.draw(u[k : k + 1], z[k : k + 1], None)[0], together[k], rtol=1e-12, atol=0)


def test_one_image_and_equal_images_are_drawn_as_they_are():
    """Nothing to vary: every draw is the image."""
    one = spectra(1)
    for data in (one, Spectra(one.power.expand(50, -1), torch.arange(50), None, 0)):
        found = drawn(fit_spectrum_model(data), 20)
        torch.testing.assert_close(found, one.power.log().expand(20, -1), rtol=0, atol=1e-9)
