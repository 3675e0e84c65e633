"""A measurement as JSON, CSV and PNG."""

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from snrkit.shift.measure import Curve, Shift


def as_record(shift: Shift, **facts: Any) -> dict[str, Any]:
    """The measurement with the facts needed to compare it, as plain JSON."""
    return {**facts, **asdict(shift)}


def as_csv(shift: Shift) -> str:
    """One row a level."""
    curves = {name: value for name, value in vars_of(shift).items() if isinstance(value, Curve)}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["logsnr", "norm_reverse", "norm_forward", *(f"{n}{e}" for n in curves for e in ("", "_low", "_high"))]
    )
    for i, logsnr in enumerate(shift.logsnr):
        row = [logsnr, shift.norm_reverse[i], shift.norm_forward[i]]
        writer.writerow(row + [v for c in curves.values() for v in (c.value[i], c.low[i], c.high[i])])
    return out.getvalue()


def vars_of(shift: Shift) -> dict[str, Any]:
    """The fields of a measurement by name."""
    return {name: getattr(shift, name) for name in Shift.__dataclass_fields__}


def as_png(shift: Shift, title: str) -> bytes:
    """Norms, norm gap and variance ratio against logsnr, each with its null."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    norms, gaps, ratios = figure.subplots(1, 3)
    for name, curve, colour in (
        ("reverse", shift.rms_reverse, "C3"),
        ("forward, held-out", shift.rms_forward, "C0"),
        ("forward, training", shift.rms_train, "C7"),
    ):
        _draw(norms, shift.logsnr, curve, colour, name)
    _draw(gaps, shift.logsnr, shift.norm_gap, "C3", "reverse over forward")
    _draw(gaps, shift.logsnr, shift.norm_gap_null, "C7", "null: training over held-out")
    _draw(ratios, shift.logsnr, shift.variance_ratio, "C3", "reverse")
    _draw(ratios, shift.logsnr, shift.variance_ratio_null, "C7", "null: held-out")
    gaps.axhline(0, color="black", linewidth=0.5)
    ratios.axhline(1, color="black", linewidth=0.5)
    for axes, label in ((norms, "rms of eps_hat"), (gaps, "norm gap, nats"), (ratios, "variance ratio")):
        axes.set(xlabel="logsnr, nats (noise left, image right)", ylabel=label)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw(axes: Any, x: list[float], curve: Curve, colour: str, name: str) -> None:
    x = [value if math.isfinite(value) else math.nan for value in x]  # pure noise has no place on this axis
    axes.plot(x, curve.value, color=colour, marker=".", markersize=4, linewidth=1, label=name)
    axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
