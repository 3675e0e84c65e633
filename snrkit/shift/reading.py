"""A measurement as a script or a notebook holds it."""

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

from snrkit.base.errors import SnrkitError
from snrkit.base.records import FLAT, to_json
from snrkit.shift.bootstrap import Number
from snrkit.shift.files import columns, figure_of
from snrkit.shift.measure import Shift
from snrkit.shift.response import Response

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, slots=True, repr=False)
class ShiftReading:
    """How far a sampler's states are from the levels that the network is told, with a null (snrkit.shift.measure)."""

    shift: Shift = field(metadata=FLAT)
    confidence: float  # of every interval
    response: Response | None = None  # of the network to the scale of states, on held-out images

    @property
    def verdict(self) -> str:
        """One sentence on the norm gap, as `verdict_on` has it."""
        return verdict_on(self.shift.mean_norm_gap, self.shift.mean_norm_gap_null, self.response)

    @property
    def readings(self) -> dict[str, tuple[Number, Number]]:
        """(reading, its null) of each mean over levels, by its name and unit."""
        shift = self.shift
        return {
            "norm gap, nats": (shift.mean_norm_gap, shift.mean_norm_gap_null),
            "ln variance ratio": (shift.mean_log_variance_ratio, shift.mean_log_variance_ratio_null),
            "nearest level, nats": (shift.mean_nearest, shift.mean_nearest_null),
        }

    def to_dict(self) -> dict[str, object]:
        """All of it as JSON holds it, with the keys that measure-shift writes; what could not be read is None."""
        found: dict[str, object] = to_json(self)
        return {"verdict": self.verdict, **found}

    def to_frame(self) -> "DataFrame":
        """One row a level, with the columns of measure-shift's CSV. SnrkitError where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise SnrkitError("to_frame needs pandas; pip install pandas, or take to_dict.") from None
        return DataFrame(columns(self.shift))

    def plot(self) -> "Figure":
        """Every reading against logsnr with its null, under the verdict."""
        figure = figure_of(self.shift)
        figure.suptitle(self.verdict, fontsize=9)
        return figure

    def __repr__(self) -> str:
        rows = (f"  {name:20}{own.signed()}   null {null.signed()}" for name, (own, null) in self.readings.items())
        return "\n".join([f"Shift of {self._size()}", *rows, f"  {self.verdict}"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td>{own.signed()}</td><td>{null.signed()}</td></tr>"
            for name, (own, null) in self.readings.items()
        )
        head = "<tr><th>mean over levels</th><th>reading</th><th>null</th></tr>"
        return f"<p><b>{self.verdict}</b></p><table>{head}{rows}</table><p>{self._size()}</p>"

    def _size(self) -> str:
        levels, shift = len(self.shift.logsnr), self.shift
        read = f"the nearest level read at {shift.nearest_levels}"
        return f"{shift.images} images, {levels} levels ({read}), {self.confidence:.0%} intervals"


def verdict_on(gap: Number, null: Number, response: Response | None = None) -> str:
    """What a norm gap and its null, means over levels, say in one sentence.

    The gap is 0 on held-out images and the null on those that were trained on, less where the network remembers them.
    Both are real, so that a shift is shown where the gap's interval lies beyond 0 and beyond the null's interval.
    Where it does not, none is shown, which is no proof that there is none. Of a network that is blind to the scale of
    its states (response.py) a gap can only say that they are noisier, never that they are cleaner or as they should be.
    """
    if not all(map(isfinite, (gap.value, gap.low, gap.high, null.value, null.low, null.high))):
        return "Nothing can be said: the sampler's states or the network's answers are not finite."
    numbers = f"norm gap {gap.signed()} nats on average over levels, null {null.signed()}"
    if gap.low > max(0.0, null.high):
        return f"The sampler's states look noisier than real images of the levels it is told: {numbers}."
    if response is not None and response.blind:
        return (
            f"The norm gap cannot say whether the sampler's states are at the levels it is told, as the network hardly "
            f"sees how large they are ({response.said()}); read the variance ratio: {numbers}."
        )
    if gap.high < min(0.0, null.low):
        return f"The sampler's states look cleaner than real images of the levels it is told: {numbers}."
    return f"No shift is shown between the sampler's states and real images of the levels it is told: {numbers}."
