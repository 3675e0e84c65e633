"""A measurement as JSON, CSV and PNG."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snrkit.base.records import FLAT, from_json, to_json
from snrkit.base.sealed import read_json
from snrkit.shift.bootstrap import Curve
from snrkit.shift.config import every_probe
from snrkit.shift.drawing import draw_curve, png
from snrkit.shift.measure import Shift
from snrkit.shift.response import Response
from snrkit.shift.verdict import Side, side_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Facts:
    """What a measurement was made of and with; probes of equal facts belong together."""

    sampler: str
    definition: Mapping[str, Any]  # of the sampler, as JSON has it
    nfe: int
    weights: str
    checkpoint_images: int
    held_out_images: int
    confidence: float
    seeds: str  # a fingerprint of them
    made: str  # a fingerprint of all that the trajectories depend on
    numerics: int


@dataclass(frozen=True, slots=True)
class ShiftRecord:
    """What measure-shift writes of one sampler; all its keys lie side by side in the file."""

    facts: Facts = field(metadata=FLAT)
    shift: Shift = field(metadata=FLAT)
    probes: Mapping[str, object] = field(metadata=FLAT)  # the record of every kind, None where there is none

    @property
    def side(self) -> Side:
        """On which side of its null the norm gap is shown to lie, if the network sees the scale of states."""
        response = self.probes.get("response")
        known = response if isinstance(response, Response) else None
        return side_of(self.shift.mean_norm_gap, self.shift.mean_norm_gap_null, known)


def warnings_of(probes: Mapping[str, object]) -> list[str]:
    """What the records of probes, by kind, warn of before the readings of their sampler are believed."""
    found = [(probe, probes.get(probe.kind)) for probe in every_probe()]
    texts = [probe.warning(record) for probe, record in found if record is not None]
    return [text for text in texts if text is not None]


def shift_record(content: Mapping[str, Any], where: Path) -> ShiftRecord:
    """The record of a file's content. SnrkitError names what does not fit."""
    own, kinds = {entry.name for entry in fields(Facts)}, {probe.kind: probe.record for probe in every_probe()}
    probes = {
        kind: None if content.get(kind) is None else from_json(record, content[kind], f"{where}: {kind}")
        for kind, record in kinds.items()
    }
    rest = {key: value for key, value in content.items() if key not in own and key not in kinds}
    facts = from_json(Facts, {key: value for key, value in content.items() if key in own}, where)
    return ShiftRecord(facts, from_json(Shift, rest, where), probes)


def probes_before(path: Path, facts: Facts) -> Mapping[str, object]:
    """What an earlier measurement of equal facts has found; nothing where there is none."""
    content = read_json(path) if path.exists() else {}
    alike = all(content.get(key) == value for key, value in to_json(facts).items())
    return shift_record(content, path).probes if alike else {}


def as_csv(shift: Shift) -> str:
    """One row a level."""
    out, found = io.StringIO(), columns(shift)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(found)
    writer.writerows(zip(*found.values(), strict=True))
    return out.getvalue()


def columns(shift: Shift) -> dict[str, list[float]]:
    """What a table of the measurement has, by name, with one entry a level."""
    curves = {name: value for name, value in vars_of(shift).items() if isinstance(value, Curve)}
    for part in shift.part_ratio:
        curves[f"variance_ratio_{part}"] = shift.part_ratio[part]
        curves[f"variance_ratio_{part}_null"] = shift.part_ratio_null[part]
    found = {"logsnr": shift.logsnr, "norm_reverse": shift.norm_reverse, "norm_forward": shift.norm_forward}
    for name, curve in curves.items():
        found |= {name: curve.value, f"{name}_low": curve.low, f"{name}_high": curve.high}
    return found


def vars_of(shift: Shift) -> dict[str, object]:
    """The fields of a measurement by name."""
    return {name: getattr(shift, name) for name in Shift.__dataclass_fields__}


def as_png(shift: Shift, title: str) -> bytes:
    """What `figure_of` draws, below a title."""
    return png(figure_of(shift), title)


def figure_of(shift: Shift) -> "Figure":
    """Norms, norm gap, variance ratios, nearest level and norms of x0_hat against logsnr, each with its null."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.6), layout="constrained")
    ((norms, gaps, ratios), (near, clean, parts)) = figure.subplots(2, 3)
    for name, curve, colour in (
        ("reverse", shift.rms_reverse, "C3"),
        ("forward, held-out", shift.rms_forward, "C0"),
        ("forward, training", shift.rms_train, "C7"),
    ):
        draw_curve(norms, shift.logsnr, curve, colour, name)
    draw_curve(gaps, shift.logsnr, shift.norm_gap, "C3", "reverse over forward")
    draw_curve(gaps, shift.logsnr, shift.norm_gap_null, "C7", "null: training over held-out")
    draw_curve(ratios, shift.logsnr, shift.variance_ratio, "C3", "reverse")
    draw_curve(ratios, shift.logsnr, shift.variance_ratio_null, "C7", "null: held-out")
    draw_curve(near, shift.logsnr, shift.nearest, "C3", "reverse")
    draw_curve(near, shift.logsnr, shift.nearest_null, "C7", "null: held-out")
    draw_curve(clean, shift.logsnr, shift.x0_rms_reverse, "C3", "reverse")
    draw_curve(clean, shift.logsnr, shift.x0_rms_forward, "C0", "forward, held-out")
    clean.axhline(shift.x0_rms_true.value, color="black", linewidth=0.5, label="true x0")
    for index, (name, curve) in enumerate((n, c) for n, c in shift.part_ratio.items() if not n.startswith("ring")):
        draw_curve(parts, shift.logsnr, curve, f"C{index}", name)
    for axes, null in ((gaps, 0), (ratios, 1), (near, 0), (parts, 1)):
        axes.axhline(null, color="black", linewidth=0.5)
    labels = ("rms of eps_hat", "norm gap, nats", "variance ratio", "nearest level - nominal, nats", "rms of x0_hat",
              "variance ratio by Haar band")  # fmt: skip
    for axes, label in zip((norms, gaps, ratios, near, clean, parts), labels, strict=True):
        axes.set(xlabel="logsnr, nats (noise left, image right)", ylabel=label)
        axes.legend(fontsize=7)
    return figure
