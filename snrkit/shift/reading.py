"""A measurement as a script or a notebook holds it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from snrkit.base.errors import SnrkitError
from snrkit.base.records import FLAT, to_json
from snrkit.shift.bootstrap import Number
from snrkit.shift.files import columns, figure_of
from snrkit.shift.measure import Shift
from snrkit.shift.response import Response
from snrkit.shift.verdict import verdict_on

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
