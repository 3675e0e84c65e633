"""What a norm gap says of a sampler: on which side of its null it lies, and a sentence."""

from math import isfinite
from typing import Literal

from snrkit.shift.bootstrap import Number
from snrkit.shift.response import Response

Side = Literal["noisier", "cleaner", "hidden", "none", "unread"]


def side_of(gap: Number, null: Number, response: Response | None = None) -> Side:
    """What a norm gap and its null, means over levels, say of a sampler's states.

    The gap is 0 on held-out images and the null on those that were trained on, less where the network remembers them.
    Both are real, so that a shift is shown where the gap's interval lies beyond 0 and beyond the null's interval.
    Where it does not, none is shown, which is no proof that there is none. Of a network that is blind to the scale of
    its states (response.py) a gap can only say that they are noisier, never that they are cleaner or as they should be.
    """
    if not all(map(isfinite, (gap.value, gap.low, gap.high, null.value, null.low, null.high))):
        return "unread"
    if gap.low > max(0.0, null.high):
        return "noisier"
    if response is not None and response.blind:
        return "hidden"
    return "cleaner" if gap.high < min(0.0, null.low) else "none"


def verdict_on(gap: Number, null: Number, response: Response | None = None) -> str:
    """What `side_of` says, in one sentence."""
    side = side_of(gap, null, response)
    if side == "unread":
        return "Nothing can be said: the sampler's states or the network's answers are not finite."
    numbers = f"norm gap {gap.signed()} nats on average over levels, null {null.signed()}"
    if side == "hidden":
        assert response is not None
        return (
            f"The norm gap cannot say whether the sampler's states are at the levels it is told, as the network hardly "
            f"sees how large they are ({response.said()}); read the variance ratio: {numbers}."
        )
    if side == "none":
        return f"No shift is shown between the sampler's states and real images of the levels it is told: {numbers}."
    return f"The sampler's states look {side} than real images of the levels it is told: {numbers}."
