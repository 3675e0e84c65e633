"""Random streams by key: every draw is keyed by what it is for, never by what was drawn before.

NumPy's Philox on the CPU, as torch's CPU generator keeps only 32 bits of a seed.
"""

import numpy as np

# what a stream is for
TRAIN, IMAGE, HOLDOUT, BOOTSTRAP, FORWARD, DROPOUT, DATA, CLASSIFIER, SUBSET, ESTIMATOR = range(1, 11)
UNCERTAINTY, ANALYSIS, SPECTRUM = 11, 12, 13


def stream(*key: int) -> np.random.Generator:
    """The generator of a key of non-negative integers below 2^64; no two keys share one.

    SeedSequence pads with zeros and splits large integers, so the key is written out in words of 32 bits, its length
    first.
    """
    words = [word for number in key for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), *words])))
