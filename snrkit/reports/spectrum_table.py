"""The table of `snrkit analyze --spectrum`."""

from collections.abc import Sequence
from typing import Any


def spectrum_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as text: medians with the range that holds 99 % of the images."""

    def middle(values: Sequence[float]) -> str:
        return f"{values[1]:.2f} ({values[0]:.2f} to {values[2]:.2f})"

    rows = [
        ("slope of the mean spectrum", f"{record['slope']:.2f}"),
        ("slopes of single images", middle(record["slope_of_images"])),
        ("power of the mean brightness over ring 1's, median", f"{record['mean_brightness_over_ring_1']:.1f}"),
    ]
    rows.append(("kappa of the ends below", " to ".join(f"{kappa:g}" for kappa in record["kappa"])))
    for dc, ends in record["ends"].items():
        what = "with the mean brightness" if dc == "include" else "without it"
        rows.append((f"noisy end, logsnr, {what}", middle(ends["noisy"])))
        rows.append((f"clean end, {what}", middle(ends["clean"])))
        rows.append((f"ends of the mean spectrum, {what}", " to ".join(f"{end:.2f}" for end in ends["of_the_mean"])))
    return rows
