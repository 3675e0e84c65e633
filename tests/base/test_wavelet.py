"""Wavelets: equality with PyWavelets for every family and padding, and reconstruction."""

import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import SnrkitError
from snrkit.base.wavelet import PADDINGS, WAVELETS, Bands, check_wavelet, dwt2, idwt2, low_part

SIZES = [(8, 8), (9, 6), (5, 7), (2, 3)]


def theirs(x, wavelet, padding):
    low, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), wavelet, padding)
    return Bands(*(torch.from_numpy(band) for band in (low, vertical, horizontal, diagonal)))


def back(bands, wavelet, padding):
    details = (bands.hl.numpy(), bands.lh.numpy(), bands.hh.numpy())
    return torch.from_numpy(pywt.idwt2((bands.ll.numpy(), details), wavelet, padding))


@pytest.mark.parametrize("padding", PADDINGS)
def test_every_wavelet_equals_pywavelets(padding):
    """Both directions in float64 to 1e-12 and float32 to 2e-6 of the largest coefficient; the low part likewise."""
    rng = torch.Generator().manual_seed(0)
    for wavelet in WAVELETS:
        for height, width in SIZES:
            x = torch.randn(2, 3, height, width, generator=rng, dtype=torch.float64)
            wanted = theirs(x, wavelet, padding)
            size = max(float(getattr(wanted, name).abs().max()) for name in Bands.__slots__)
            for dtype, within in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
                found = dwt2(x.to(dtype), wavelet, padding)
                assert found.ll.dtype == dtype
                for name in Bands.__slots__:
                    close(getattr(found, name), getattr(wanted, name), within * size, (wavelet, height, width))
                rebuilt = idwt2(found, (height, width), wavelet, padding)
                close(rebuilt, back(wanted, wavelet, padding)[..., :height, :width], within * size, (wavelet, height))
                close(rebuilt, x, 1e-9 * size if dtype == torch.float64 else within * size, (wavelet, height, width))
            empty = (None, None, None)
            low = pywt.idwt2((wanted.ll.numpy(), empty), wavelet, padding)[..., :height, :width]
            close(low_part(x, wavelet, padding), torch.from_numpy(low), 1e-12 * size, (wavelet, height, width))


def close(found, wanted, within, where):
    assert found.shape == wanted.shape, where
    assert float((found.double() - wanted).abs().max()) <= within, where


@given(height=st.integers(1, 6), width=st.integers(1, 6))
def test_haar_low_part_is_the_mean_of_blocks(height, width):
    """For even sides: 2x2 average, repeated; the fast path equals the matrices whatever the padding."""
    x = torch.randn(2, 3, 2 * height, 2 * width, dtype=torch.float64)
    blocks = x.reshape(2, 3, height, 2, width, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(low_part(x), blocks, rtol=0, atol=1e-14)
    bands = dwt2(x, "haar", "symmetric")
    only = Bands(bands.ll, *(torch.zeros_like(bands.ll),) * 3)
    torch.testing.assert_close(low_part(x), idwt2(only, x.shape[-2:], "haar", "symmetric"), rtol=0, atol=1e-14)


def test_haar_keeps_the_variance_of_noise():
    """Orthonormal: the energy of the bands is that of the image, which the readings by band rely on."""
    x = torch.randn(4, 1, 8, 6, dtype=torch.float64)
    bands = dwt2(x)
    total = sum(band.square().sum() for band in (bands.ll, bands.lh, bands.hl, bands.hh))
    torch.testing.assert_close(total, x.square().sum())


@pytest.mark.parametrize(
    ("wavelet", "padding", "said"),
    [
        ("dmey", "zero", "does not reconstruct"),
        ("haarr", "zero", "unknown wavelet"),
        ("haar", "mirror", "unknown padd"),
    ],
)
def test_what_has_no_exact_transform_is_refused(wavelet, padding, said):
    """dmey's filters do not reconstruct; unknown names are named."""
    with pytest.raises(SnrkitError, match=said):
        check_wavelet(wavelet, padding)


def test_one_pixel_has_no_bands():
    """An image of one row or column is refused in a sentence."""
    for shape in ((1, 1), (1, 8), (8, 1)):
        for wavelet in ("haar", "db4"):
            with pytest.raises(SnrkitError, match="at least 2 pixels"):
                low_part(torch.zeros(1, 1, *shape), wavelet)
