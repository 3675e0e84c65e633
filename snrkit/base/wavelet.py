"""One-level separable wavelet transforms of images, as matrices, with filters and padding of PyWavelets.

A one-level transform of a signal of n samples is linear: an analysis matrix (2, m, n) gives m low and m high
coefficients, a synthesis matrix (2, n, m) takes them back, and synthesis @ analysis is the identity for every
orthogonal or biorthogonal wavelet, every padding mode and every n > 1. Built once per (wavelet, padding, n) in float64,
they turn transforms into matrix products on any device:

    low[k] = sum_j dec_lo[j] extended[2k + 1 - j],    signal[i] = sum_k low[k] rec_lo[i - 2k + L - 2] + (high likewise)

(L taps; `extended` is the padded signal), as pywt.dwt and pywt.idwt define them; `periodization` is circular instead.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pywt
import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.transfer import send

Array = np.ndarray[Any, Any]
WAVELETS = tuple(name for name in pywt.wavelist(kind="discrete") if name != "dmey")
PADDINGS = tuple(pywt.Modes.modes)


@dataclass(frozen=True, slots=True)
class Bands:
    """The four bands of images, each (..., h, w); the first letter names the filter over rows' index, y."""

    ll: Tensor
    lh: Tensor
    hl: Tensor
    hh: Tensor


def check_wavelet(name: str, padding: str) -> None:
    """Refuse what has no exact one-level transform here: SnrkitError."""
    if name == "dmey":
        raise SnrkitError("wavelet dmey does not reconstruct exactly; choose haar, db4, sym8, bior2.2 or another")
    if name not in WAVELETS:
        raise SnrkitError(f"unknown wavelet '{name}'. Known: haar, db1-db38, sym2-sym20, coif1-coif17, bior*, rbio*")
    if padding not in PADDINGS:
        raise SnrkitError(f"unknown padding '{padding}'. Known: {', '.join(PADDINGS)}")


@lru_cache(maxsize=64)
def matrices(name: str, padding: str, count: int) -> tuple[Tensor, Tensor]:
    """(analysis (2, m, n), synthesis (2, n, m)) of signals of n = `count` samples, float64."""
    check_wavelet(name, padding)
    if count < 2:
        raise SnrkitError(f"a wavelet transform needs at least 2 pixels a side, not {count}")
    wavelet = pywt.Wavelet(name)
    taps = wavelet.dec_len
    decompose = np.array([wavelet.dec_lo, wavelet.dec_hi])
    rebuild = np.array([wavelet.rec_lo, wavelet.rec_hi])
    if padding == "periodization":
        return _circular(decompose, rebuild, count)
    extended = np.stack([pywt.pad(unit, taps, padding) for unit in np.eye(count)], 1)
    length = (count + taps - 1) // 2
    rows = 2 * np.arange(length)[:, None] + 1 - np.arange(taps) + taps  # where tap j of coefficient k looks
    analysis = np.einsum("bj,kjn->bkn", decompose, extended[rows])
    lag = np.arange(count)[:, None] - 2 * np.arange(length) + taps - 2
    synthesis = np.where((lag >= 0) & (lag < taps), rebuild[:, lag.clip(0, taps - 1)], 0.0)
    return torch.from_numpy(analysis), torch.from_numpy(synthesis)


def _circular(decompose: Array, rebuild: Array, count: int) -> tuple[Tensor, Tensor]:
    """The transform on a circle of an even number of samples; an odd signal repeats its last one."""
    taps, even = decompose.shape[1], count + count % 2
    extended = np.eye(count)[np.minimum(np.arange(even), count - 1)]
    length = even // 2
    rows = (2 * np.arange(length)[:, None] + taps // 2 - np.arange(taps)) % even
    analysis = np.einsum("bj,kjn->bkn", decompose, extended[rows])
    synthesis = np.zeros((2, even, length))
    for tap in range(taps):
        where = (2 * np.arange(length) + tap + 1 - taps // 2) % even
        synthesis[:, where, np.arange(length)] += rebuild[:, tap, None]
    return torch.from_numpy(analysis), torch.from_numpy(np.ascontiguousarray(synthesis[:, :count]))


def _like(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix in the dtype and on the device of x."""
    return send(matrix.to(x.dtype), x.device)


def dwt2(x: Tensor, name: str = "haar", padding: str = "zero") -> Bands:
    """The bands of images x (..., H, W), as pywt.dwt2 gives (cA, (cH, cV, cD)) = (ll, (hl, lh, hh)) of rows."""
    down, across = (_like(matrices(name, padding, n)[0], x) for n in x.shape[-2:])
    low, high = down[0] @ x, down[1] @ x
    return Bands(low @ across[0].mT, low @ across[1].mT, high @ across[0].mT, high @ across[1].mT)


def idwt2(bands: Bands, shape: tuple[int, int], name: str = "haar", padding: str = "zero") -> Tensor:
    """The images (..., H, W) of `shape` that have these bands."""
    down, across = (_like(matrices(name, padding, n)[1], bands.ll) for n in shape)
    low = bands.ll @ across[0].mT + bands.lh @ across[1].mT
    high = bands.hl @ across[0].mT + bands.hh @ across[1].mT
    return down[0] @ low + down[1] @ high


def haar_coefficients(x: Tensor) -> Tensor:
    """The bands ll, lh, hl, hh of images x (n, C, H, W), one behind the other: (n, 4C, H/2, W/2); H and W are even.

    Each 2x2 block (a b; c d) becomes (a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d)/2, so that the
    transform is orthonormal and its own inverse. It is `dwt2` with Haar, without its rounding of square roots.
    """
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    return torch.cat(_hadamard(a, b, c, d), 1)


def haar_images(coefficients: Tensor) -> Tensor:
    """The images (n, C, H, W) of these coefficients (n, 4C, H/2, W/2)."""
    a, b, c, d = _hadamard(*coefficients.chunk(4, 1))
    rows = [torch.stack(pair, -1).flatten(-2) for pair in ((a, b), (c, d))]
    return torch.stack(rows, -2).flatten(-3, -2)


def _hadamard(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The orthonormal Hadamard transform of four numbers, halved before they are added: it is its own inverse."""
    above, below = (a + b) / 2, (c + d) / 2
    left, right = (a - b) / 2, (c - d) / 2
    return above + below, left + right, above - below, left - right


@lru_cache(maxsize=64)
def _low_projection(name: str, padding: str, count: int) -> Tensor:
    analysis, synthesis = matrices(name, padding, count)
    return synthesis[0] @ analysis[0]


def low_part(x: Tensor, name: str = "haar", padding: str = "zero") -> Tensor:
    """What the low band alone rebuilds of images x (..., H, W); x minus it is what the three high bands rebuild.

    With Haar and even sides it is each 2x2 block's mean, whatever the padding.
    """
    height, width = x.shape[-2:]
    if min(height, width) < 2:
        raise SnrkitError(f"a wavelet transform needs at least 2 pixels a side, not {height}x{width}")
    if _in_blocks(x, name):
        return _block_means(x)[..., None, :].expand(*x.shape[:-2], height // 2, 2, width).reshape(x.shape)
    down, across = (_like(_low_projection(name, padding, n), x) for n in (height, width))
    return down @ x @ across.mT


def add_bands(x: Tensor, difference: Tensor, low: Tensor, high: Tensor, name: str, padding: str) -> Tensor:
    """x + low L d + high (d - L d) for images x and d = `difference` (B, C, H, W), L d = low_part(d).

    The gains broadcast against images, the same for all pixels of one.
    """
    nothing = high.device.type == "cpu" and not bool((high != 0).any())  # elsewhere to look is to wait
    moved = x if nothing else x + high * difference
    if min(x.shape[-2:]) < 2 or not _in_blocks(x, name):
        return moved + (low - high) * low_part(difference, name, padding)
    rows = (low - high) * _block_means(difference)
    paired: Tensor = moved.unflatten(-2, (x.shape[-2] // 2, 2))  # type: ignore[no-untyped-call]  # no copy of the means
    return (paired + rows[..., None, :]).reshape(x.shape)


def _in_blocks(x: Tensor, name: str) -> bool:
    return name in ("haar", "db1") and x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0


def _block_means(x: Tensor) -> Tensor:
    """Means of 2x2 blocks, (..., H/2, W): each twice, along the row. Strided sums, as pooling is slow on a CPU."""
    rows = x[..., 0::2, :] + x[..., 1::2, :]
    means = (rows[..., 0::2] + rows[..., 1::2]) / 4
    return means[..., None].expand(*means.shape, 2).reshape(rows.shape)
