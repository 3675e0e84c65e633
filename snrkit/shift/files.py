"""A measurement as JSON, CSV and PNG."""

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from snrkit.shift.amplification import Amplification
from snrkit.shift.bootstrap import Curve
from snrkit.shift.measure import Shift
from snrkit.shift.window import Window


def as_record(shift: Shift, **facts: Any) -> dict[str, Any]:
    """The measurement with the facts needed to compare it, as plain JSON."""
    return {**facts, **asdict(shift)}


def as_csv(shift: Shift) -> str:
    """One row a level."""
    curves = {name: value for name, value in vars_of(shift).items() if isinstance(value, Curve)}
    for part in shift.part_ratio:
        curves[f"variance_ratio_{part}"] = shift.part_ratio[part]
        curves[f"variance_ratio_{part}_null"] = shift.part_ratio_null[part]
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
    """Norms, norm gap, variance ratios, nearest level and norms of x0_hat against logsnr, each with its null."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.6), layout="constrained")
    ((norms, gaps, ratios), (near, clean, parts)) = figure.subplots(2, 3)
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
    _draw(near, shift.logsnr, shift.nearest, "C3", "reverse")
    _draw(near, shift.logsnr, shift.nearest_null, "C7", "null: held-out")
    _draw(clean, shift.logsnr, shift.x0_rms_reverse, "C3", "reverse")
    _draw(clean, shift.logsnr, shift.x0_rms_forward, "C0", "forward, held-out")
    clean.axhline(shift.x0_rms_true.value, color="black", linewidth=0.5, label="true x0")
    for index, (name, curve) in enumerate((n, c) for n, c in shift.part_ratio.items() if not n.startswith("ring")):
        _draw(parts, shift.logsnr, curve, f"C{index}", name)
    for axes, null in ((gaps, 0), (ratios, 1), (near, 0), (parts, 1)):
        axes.axhline(null, color="black", linewidth=0.5)
    labels = ("rms of eps_hat", "norm gap, nats", "variance ratio", "nearest level - nominal, nats", "rms of x0_hat",
              "variance ratio by Haar band")  # fmt: skip
    for axes, label in zip((norms, gaps, ratios, near, clean, parts), labels, strict=True):
        axes.set(xlabel="logsnr, nats (noise left, image right)", ylabel=label)
        axes.legend(fontsize=7)
    return _png(figure, title)


def window_png(window: Window, amplification: Amplification | None, title: str) -> bytes:
    """The matrix of wrong levels, what they cost, and the gains of small errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4), layout="constrained")
    matrix, excess, gains = figure.subplots(1, 3)
    for axes, values, name in ((matrix, window.eps_square, "ln E|eps_hat|^2"), (excess, window.excess, "ln excess")):
        logs = [[math.log(v) if v > 0 else math.nan for v in row] for row in values]
        shown = axes.imshow(logs, origin="lower", aspect="auto")
        ticks = range(0, len(window.logsnr), max(1, len(window.logsnr) // 6))
        axes.set_xticks(ticks, [f"{window.logsnr[i]:.1f}" for i in ticks])
        axes.set_yticks(ticks, [f"{window.logsnr[i]:.1f}" for i in ticks])
        axes.set(xlabel="logsnr of the state", ylabel="logsnr told", title=name)
        figure.colorbar(shown, ax=axes)
    for index, (name, curve) in enumerate([] if amplification is None else amplification.gain.items()):
        assert amplification is not None
        _draw(gains, amplification.logsnr, curve, f"C{index}", name)
        known = [v if math.isfinite(v) else math.nan for v in amplification.logsnr]
        if name in amplification.gaussian:
            gains.plot(known, amplification.gaussian[name], color=f"C{index}", linestyle=":", linewidth=1)
    gains.set(xlabel="logsnr of the error", ylabel="gain in the image (dotted: Gaussian data)", yscale="log")
    if amplification is not None:
        gains.legend(fontsize=7)
    return _png(figure, title)


def _png(figure: Any, title: str) -> bytes:
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw(axes: Any, x: list[float], curve: Curve, colour: str, name: str) -> None:
    x = [value if math.isfinite(value) else math.nan for value in x]  # pure noise has no place on this axis
    axes.plot(x, curve.value, color=colour, marker=".", markersize=4, linewidth=1, label=name)
    axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
