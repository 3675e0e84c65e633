"""The tables of studies/corrections/tables.md, read from the runs of run.sh: python tables.py runs > the page."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from snrkit.base.records import to_json
from snrkit.metrics.paired import against
from snrkit.reports.blocks import Table, markdown

FAMILIES = {
    "corrections-edm": "EDM",
    "corrections-ddpm": "DDPM",
    "corrections-flow": "Flow matching",
    "corrections-perturbed": "Input perturbation",
    "corrections-fine-tuned": "A fine-tuned model",
    "cifar10": "CIFAR-10",
}
PAIRS = {  # which rows are subtracted, beside each row less its base
    "corrections-edm": [
        ("ipndm-7", "pixel-7"), ("ipndm-13", "high-13"), ("ipndm-21", "pixel-21"), ("double-13", "pixel-13"),
        ("high-13", "pixel-13"), ("low-13", "pixel-13"), ("es-13", "pixel-13"),
    ],
    "corrections-ddpm": [("ipndm-20", "euler-20"), ("unipc-20", "euler-20")],
    "corrections-flow": [(f"{solver}-13", "gap-13") for solver in ("heun", "dpmpp_3m", "unipc", "ipndm")],
    "corrections-fine-tuned": [("nag-26", "weaker-26"), ("nag-26", "cfg-26")],
    "cifar10": [
        ("pixel-13", "es-13"), ("double-13", "pixel-13"), ("low-13", "pixel-13"), ("high-13", "pixel-13"),
        *((f"{solver}-13", "pixel-13") for solver in ("heun", "dpmpp_3m", "unipc", "ipndm")),
        *((row, "double-13") for row in ("ipndm-7", "heun-13", "dpmpp_3m-13", "unipc-13", "ipndm-13")),
    ],
}  # fmt: skip
SOLVERS = ("euler", "dpmpp-2m", "heun", "ancestral", "churn")
COSTS = (9, 10, 19, 20, 49, 50, 199, 200)  # of the configs shift-*.yaml
SHIFTS = ("norm_gap", "log_variance_ratio")
BANDS = ("ll", "lh", "hl", "hh")
SCORED = {"fd": "fd", "inception_score": "is", "kid": "kid"}  # with the key of each name


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Markdown."""
    return markdown(Table(tuple(head), list(map(tuple, rows))), Path())


def interval(found: dict[str, Any] | None, key: str = "value") -> str:
    """A figure with its interval."""
    if found is None or None in (found[key], found["low"], found["high"]):
        return "-"
    return f"{found[key]:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def scores(compared: dict[str, Any]) -> str:
    """What `snrkit compare` found, row by row."""
    names = compared["names"]

    def rows() -> Iterator[Sequence[str]]:
        for row in compared["rows"]:
            fd, less = row["summary"]["fd"], row.get("difference", {}).get("fd")
            moved = row.get("shift_change", {})
            yield [
                row["name"], str(row["nfe"]), f"{fd['mean']:.3f} ({fd['min']:.3f}, {fd['max']:.3f})",
                "-" if less is None else f"{interval(less, 'mean')} ({row['base']})",
                f"{row['summary']['inception_score']['mean']:.2f}", f"{row['summary']['kid']['mean']:+.4f}",
                f"{row['mean_log_variance_ratio']['value']:+.3f}",
                change(moved.get("norm_gap")), change(moved.get("log_variance_ratio")),
            ]  # fmt: skip

    head = ["sampler", "NFE", f"{names['fd']} (min, max)", "less its base's [95 %]", names["is"], names["kid"],
            "ln variance ratio", "size of norm gap, base to row", "size of ln variance ratio, base to row"]  # fmt: skip
    return table(head, rows())


def change(found: dict[str, Any] | None) -> str:
    """The size of a shift at the base and at the row."""
    if found is None:
        return "-"
    verdict = f" *{found['verdict']}*" if found["verdict"] in ("smaller", "larger") else ""
    return f"{found['base']:.3f} to {found['row']:.3f}{verdict}"


def differences(compared: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> str:
    """Pairs of rows, range by range on equal seeds."""
    ranges = {row["name"]: row["ranges"] for row in compared["rows"]}

    def rows() -> Iterator[Sequence[str]]:
        for one, other in (pair for pair in pairs if set(pair) <= set(ranges)):
            yield [f"{one} less {other}", *(interval(less(ranges[one], ranges[other], key), "mean") for key in SCORED)]

    return table(["rows", *(compared["names"][name] for name in SCORED.values())], rows())


def less(one: list[dict[str, Any]], other: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The mean difference of a score over the ranges of two rows, with its interval."""
    found: dict[str, Any] = to_json(against([part[key] for part in one], [part[key] for part in other]))
    return found


def coefficients(run: Path, compared: dict[str, Any]) -> str:
    """What `snrkit tune` chose by each method."""

    def rows() -> Iterator[Sequence[str]]:
        for row in compared["rows"]:
            path = run / "tune" / f"{row['name']}.json"
            record = json.loads(path.read_text()) if path.exists() else {"parameters": []}
            for place, name in enumerate(record["parameters"]):
                found = [record["found"].get(method) for method in ("predicted", "gap", "fd")]
                values = ("-" if f is None else f"{f['values'][place]:.4g}" for f in found)
                score = "-" if found[-1] is None else f"{found[-1]['fd_on_tuning_seeds']:.4f}"
                yield [row["name"], name.split(".")[-1], *values, score]

    head = ["sampler", "coefficient", "predicted", "gap", "best FD", "FD there, on the tuning seeds"]
    return table(head, rows())


def measured(run: Path) -> list[dict[str, Any]]:
    """The shifts of the five solvers without corrections, by solver and cost."""
    found = [json.loads(path.read_text()) for path in sorted((run / "shift").glob("*.json"))]
    found = [r for r in found if r["sampler"] == f"{r['sampler'].rsplit('-', 1)[0]}-{r['nfe']}" and r["nfe"] in COSTS]
    return sorted(found, key=lambda r: (SOLVERS.index(r["sampler"].rsplit("-", 1)[0]), r["nfe"]))


def shifts(run: Path) -> str:
    """What `snrkit measure-shift` found, means over levels."""

    def rows() -> Iterator[Sequence[str]]:
        for r in measured(run):
            cells = [
                f"{interval(r[key])} ({r[f'{key}_null']['value']:+.3f})"
                for key in ("mean_norm_gap", "mean_log_variance_ratio", "mean_nearest")
            ]
            read = r["estimator"] or {"mean_shift": None, "levels_read": 0}
            yield [r["sampler"], *cells, interval(read["mean_shift"]), f"{read['levels_read']} of {len(r['logsnr'])}"]

    head = ["sampler", "norm gap (null)", "ln variance ratio (null)", "nearest level (null)",
            "estimator less its null", "levels read"]  # fmt: skip
    return table(head, rows())


def bands(run: Path) -> str:
    """Where the intervals of the four Haar bands have nothing in common, and the largest ratio of two bands."""

    def parted(ratios: dict[str, Any], level: int) -> bool:
        lows, highs = ([ratios[band][end][level] for band in BANDS] for end in ("low", "high"))
        return bool(max(lows) > min(highs))

    def rows() -> Iterator[Sequence[str]]:
        for r in measured(run):
            ours, null, count = r["part_ratio"], r["part_ratio_null"], len(r["logsnr"])
            at = [{b: ours[b]["value"][k] / null[b]["value"][k] for b in BANDS} for k in range(count)]
            widest = max(range(count), key=lambda k: max(at[k].values()) / min(at[k].values()))
            high, low = (end(at[widest], key=at[widest].__getitem__) for end in (max, min))
            times = [f"{sum(parted(ratios, k) for k in range(count))} of {count}" for ratios in (ours, null)]
            yield [
                r["sampler"], *times,
                f"{at[widest][high] / at[widest][low]:.2f} ({high} {at[widest][high]:.2f}, {low} "
                f"{at[widest][low]:.2f}, at logsnr {r['logsnr'][widest]:.1f})",
            ]  # fmt: skip

    head = ["sampler", "levels where bands part", "on held-out images", "largest ratio of two bands, over its null"]
    return table(head, rows())


def causes(run: Path) -> str:
    """The deeper probes of the samplers that were asked for them."""

    def rows() -> Iterator[Sequence[str]]:
        for path in sorted((run / "shift").glob("*.json")):
            r = json.loads(path.read_text())
            if not all(r.get(probe) for probe in ("why", "horizon", "window", "audit", "amplification")):
                continue
            why, audit = r["why"], r["audit"]
            parts = [interval(why[q][f"mean_{who}"]) for q in SHIFTS for who in ("network", "solver")]
            ahead = [interval(r["horizon"][f"mean_{q}"]) for q in SHIFTS]
            window = r["window"]
            told = " ".join(interval(window[f"mean_equivalent_shift{end}"]) for end in ("", "_null"))
            pairs = [f"{min(audit[q]['value']):.3f} to {max(audit[q]['value']):.3f}" for q in ("alpha", "sigma")]
            held = [low <= 1 <= high for q in ("alpha", "sigma")
                    for low, high in zip(audit[q]["low"], audit[q]["high"], strict=True)]  # fmt: skip
            pairs.append(f"{sum(held)} of {len(held)}")
            gain = max(r["amplification"]["gain"]["all"]["value"])
            yield [r["sampler"], *parts, *ahead, told, *pairs, f"{gain:.2f}"]

    head = ["sampler", "norm gap by the network", "by the solver", "ln variance by the network", "by the solver",
            "one step from right states: norm gap", "ln variance", "equivalent shift of the window, and its null",
            "audit: alpha over nominal", "sigma over nominal", "of their intervals hold 1",
            "largest gain of an error"]  # fmt: skip
    return table(head, rows())


def page(runs: Path) -> Iterator[str]:
    """All tables."""
    yield "# Corrections at equal cost: the tables"
    yield ("Written by `studies/corrections/tables.py` from the runs of `make corrections-study`; what they mean is in "
           "[corrections-study.md](README.md).")  # fmt: skip
    for name, title in FAMILIES.items():
        path = runs / name / "compare.json"
        if not path.exists():
            continue
        compared = json.loads(path.read_text())
        compared["names"] = {key: label.removesuffix(".zip") for key, label in compared["names"].items()}
        yield f"## {title}"
        yield scores(compared)
        yield differences(compared, PAIRS[name]) if name in PAIRS else ""
        yield coefficients(path.parent, compared)
    yield "## The shift of five solvers, without corrections"
    yield ("Means over levels, with 95 % bootstrap intervals (300 trajectories) and nulls; nats, of logsnr for the "
           "nearest level and for the estimator. Negative in the last two: states are noisier than told. *levels "
           "read*: where the estimator responds.")  # fmt: skip
    for name in ("corrections-edm", "corrections-flow", "corrections-ddpm"):
        if (runs / name / "shift").exists():
            yield f"### {FAMILIES[name]}"
            yield shifts(runs / name)
            yield bands(runs / name)
            yield causes(runs / name)


if __name__ == "__main__":
    print("\n\n".join(block for block in page(Path(sys.argv[1])) if block))
