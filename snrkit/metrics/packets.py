"""Wavelet packets of images: features without a network, for the Frechet wavelet distance.

A Haar transform that goes on in all four bands, L levels deep, cuts an image (C, H, W) into 4^L packets of C H W / 4^L
coefficients, each a band of frequencies with its place in the image. The distance (FWD; Veeramacheneni, Wolter, Kuehne
& Gall 2024, arXiv:2312.15289) is the mean over packets of the Frechet distance of their coefficients over the images,

    FWD = 4^-L sum_p |mu_p - nu_p|^2 + Tr(S_p + T_p - 2 (S_p^1/2 T_p S_p^1/2)^1/2),

of pixels in [0, 1]. As there, the wavelet is Haar and L is 4, or as many levels as the sides can be halved; the
transform is orthonormal, so that products and distances of coefficients are those of pixels.
"""

import torch
from torch import Tensor

from snrkit.base.wavelet import haar_coefficients

MOST_LEVELS = 4


def levels_of(shape: tuple[int, int, int]) -> int:
    """How often both sides of images (C, H, W) can be halved, at most MOST_LEVELS."""
    _, height, width = shape
    return next(level for level in range(MOST_LEVELS, -1, -1) if height % 2**level == width % 2**level == 0)


def packet_coefficients(x0: Tensor) -> Tensor:
    """Images (n, C, H, W) in [-1, 1] -> coefficients (n, C H W) of their pixels in [0, 1], one packet after another."""
    coefficients = (x0.double() + 1) / 2
    for _ in range(levels_of((x0.shape[1], x0.shape[2], x0.shape[3]))):
        coefficients = haar_coefficients(coefficients)  # its bands stand before earlier ones and before the channels
    return coefficients.flatten(1).to(torch.float32)
