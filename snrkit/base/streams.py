"""Random streams: every draw is keyed by what it is for, never by what was drawn before.

All streams of the package are named here, each with what its key is made of; a test proves that no two names can share
a key. NumPy's Philox on the CPU, as torch's CPU generator keeps only 32 bits of a seed.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Stream:
    """What a stream is for. Its key is (purpose, first argument, part, further arguments), of non-negative integers."""

    purpose: int
    arguments: tuple[str, ...] = ()
    part: int | None = None  # tells uses of one purpose apart
    least: int = 0  # of the first argument

    def key(self, *arguments: int) -> tuple[int, ...]:
        """The key of these arguments, or its beginning where the last ones are missing."""
        assert len(arguments) <= len(self.arguments)
        assert all(argument >= self.least for argument in arguments[:1])
        fixed = () if self.part is None else (self.part,)
        return (self.purpose, *arguments[:1], *fixed, *arguments[1:])

    def open(self, *arguments: int) -> np.random.Generator:
        """The generator of these arguments."""
        assert len(arguments) == len(self.arguments)
        return generator(*self.key(*arguments))


# training
TRAIN = Stream(1, ("seed", "step", "slice"))
HOLDOUT = Stream(3, ("seed",))
DROPOUT = Stream(6, ("seed", "step", "slice"))
UNCERTAINTY = Stream(11, ("seed",))
LATENTS_TRAIN = Stream(16, ("seed", "step", "slice"))  # of the posterior of each image
# images that are sampled
IMAGE = Stream(2, ("seed",))
SPECTRUM = Stream(13, ("seed",))
# noise on images that exist
FORWARD_HELD = Stream(5, ("seed", "level"), part=0)
FORWARD_TRAIN = Stream(5, ("seed", "level"), part=1)
FORWARD_STATISTICS = Stream(5, ("seed", "level"), part=2)
WINDOW = Stream(5, ("seed",), part=3)
RESPONSE = Stream(5, ("seed",), part=5)  # of the estimator of levels
PERTURBATION = Stream(5, ("seed",), part=4)  # whose amplification is measured
PIPELINE = Stream(5, ("level",))
ESTIMATOR_TRAIN = Stream(10, ("seed", "step"), part=0)
ESTIMATOR_HELD = Stream(10, ("seed", "step"), part=1)
# which images
MATCHING = Stream(9, ("count",), least=3)
MEMORISATION = Stream(9, part=1)
STATISTICS = Stream(9, part=2)
KEPT_FEATURES = Stream(14, ("count",))
# analysis of a run
ANALYSIS_HELD = Stream(12, part=1)
ANALYSIS_TRAIN = Stream(12, part=2)
ANALYSIS_GRADIENTS = Stream(12, part=3)
ANALYSIS_LABELS = Stream(12, part=4)
ANALYSIS_RECONSTRUCTION = Stream(12, part=5)
ANALYSIS_EXCESS = Stream(12, part=6)
ANALYSIS_ERRORS = Stream(15, ("seed",))
# data sets that are made, extractors, resamples
PHOTOS = Stream(7, ("seed", "size"), part=0)
GAUSSIAN = Stream(7, ("seed",), part=1)
MIXTURE_MEANS = Stream(7, ("seed",), part=2)
MIXTURE = Stream(7, ("seed",), part=3)
LATENTS_FIXED = Stream(16, ("image",))  # the draw of an image wherever training does not draw anew
CLASSIFIER = Stream(8)
BOOTSTRAP = Stream(4, ("seed", "arm"))
# scores
PARTS = Stream(17, ("count",), part=0)
DIRECTIONS = Stream(17, ("dim",), part=1)


def generator(*key: int) -> np.random.Generator:
    """The generator of a key of non-negative integers below 2^64; no two keys share one.

    SeedSequence pads with zeros and splits large integers, so the key is written out in words of 32 bits, its length
    first.
    """
    words = [word for number in key for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), *words])))
