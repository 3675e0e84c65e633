"""What a perfect sampler would score: the plain Frechet distance between real images and other real ones.

n' images of the reference, n' = min(n, half of those whose features are known), are set against the rest, r - n' of
them. Both are of one distribution, so that the distance is all excess, c (1/n' + 1/(r - n')) to first order, and n new
real images against the m of the whole reference would have

    floor = distance * (1/n + 1/m) / (1/n' + 1/(r - n')).

A sampler's distance is to be read against it: what lies above is its own, what lies at the floor says that n images
cannot tell.
"""

from torch import Tensor

from snrkit.metrics.extrapolation import shuffled
from snrkit.metrics.statistics import frechet, gaussian_of


def frechet_floor(features: Tensor, shape: tuple[int, ...], images: int, reference: int) -> float | None:
    """The floor for `images` against all `reference` images, of which `features` (r, dim) are known.

    None where half of them, too few for as many as `images`, are also no more than the features, as the excess is then
    no multiple of 1/n any more.
    """
    count = min(images, len(features) // 2)
    if count < 2 or (count < images and count <= shape[-1]):
        return None
    rows = shuffled(features)
    found = frechet(gaussian_of(rows[:count], shape), gaussian_of(rows[count:], shape))
    return found * (1 / images + 1 / reference) / (1 / count + 1 / (len(rows) - count))
