"""The handwritten digits that scikit-learn ships: 1,797 real grey images of 8x8, ten classes, no download."""

from typing import Literal

import numpy as np
import torch

from snrkit.data.dataset import Dataset, Source, memory_dataset


class Digits(Source):
    """scikit-learn's `load_digits` (UCI optical digits, test part); grey levels 0..16 spread over 0..255."""

    kind: Literal["digits"] = "digits"

    def open(self) -> Dataset:
        """1,797 images (1, 8, 8) with labels 0..9."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        return memory_dataset("digits", torch.from_numpy(pixels)[:, None], torch.from_numpy(bunch.target).long())
