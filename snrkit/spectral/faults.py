"""What spectral levels, grids and biases ask of the rest of an experiment, and what asks for them."""

from collections.abc import Iterable, Mapping, Sequence

from snrkit.spectral.grid import UNTOLD, SpectralGrid, spectral_levels
from snrkit.spectral.levels import SCALARS, SpectralBias


def spectral_faults(
    levels: object, bias: object, grids: Mapping[str, object],
    *, classes: int, scalars: Sequence[str], augmented: bool,
) -> Iterable[str]:  # fmt: skip
    """Of an experiment's levels, the bias of its weighting and the grids of its samplers by name.

    `classes` and `scalars` are the network's; `augmented`: whether training changes images.
    """
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
    for name, grid in grids.items():
        if isinstance(grid, SpectralGrid) and grid.scope == "class" and not classes:
            yield f"samplers.{name}.grid.scope: class needs a network with classes; take instance or dataset"
        if isinstance(grid, SpectralGrid) and grid.scale != 1 and not scalars:
            yield f"samplers.{name}.grid.scale: {UNTOLD}; drop it"
    if isinstance(bias, SpectralBias) and spectral is None:
        yield "weighting.bias: kind spectral follows levels of kind spectral; give a number"
