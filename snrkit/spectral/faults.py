"""What spectral levels and biases ask of the rest of a training, and what asks for them."""

from collections.abc import Iterable, Sequence

from snrkit.spectral.grid import spectral_levels
from snrkit.spectral.levels import SCALARS, SpectralBias


def training_faults(
    levels: object, bias: object, classes: int, scalars: Sequence[str], augmented: bool
) -> Iterable[str]:
    """Of levels and the bias of a weighting beside a network of these classes and scalars, one sentence each."""
    spectral = spectral_levels(levels)
    if scalars and tuple(scalars) != SCALARS:
        yield f"network.scalars: unknown; they are [{', '.join(SCALARS)}], in this order, or none"
    elif scalars and (spectral is None or spectral.scope != "instance"):
        yield (
            "network.scalars: only levels of kind spectral and scope instance provide them (those of a class would "
            "tell the label, also where guidance drops it, and the data set's are one for all); drop them"
        )
    if spectral is not None and augmented:
        yield "train.augment: changes images, whose spectra levels of kind spectral have measured as they lie; drop it"
    if spectral is not None and spectral.scope == "class" and not classes:
        yield "levels.scope: class needs a network with classes, for when it samples; set network.classes"
    if isinstance(bias, SpectralBias) and spectral is None:
        yield "weighting.bias: kind spectral follows levels of kind spectral; give a number"
