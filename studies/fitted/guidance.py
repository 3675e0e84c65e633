"""Guidance: shift, coefficient by flow and scores of Euler under classifier-free guidance, plain and with DCW.

python studies/fitted/guidance.py tried RUNS > FILE       every weight, with seeds that choose the best one
python studies/fitted/guidance.py chosen RUNS > FILE      weights 0, 1, 3 and the best, with seeds that are reported
python studies/fitted/guidance.py results RUNS > FILE     what was found
"""

import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
NAME, STEPS, WEIGHTS, SHOWN = "fitted-edm-0", 13, (0, 0.25, 0.5, 1, 2, 3), (0, 1, 3)
SETTINGS = {
    "tune": {"seeds": "100000-100499", "noises": 128},
    "shift": {"images": 300, "probes": ["flow", "why"], "bootstrap": 1000},
    "metrics": {"features": "classifier", "ranges": 5, "more": ["fd_infinity"], "decide": "kid"},
}
PLAIN, DCW = "plain", "dcw"


def sampler(weight: float, corrected: bool) -> dict[str, object]:
    """Euler with so many steps, two evaluations each where it is guided."""
    corrections = [{"kind": "cfg", "weight": weight}] if weight else []
    dcw = [{"kind": "dcw", "pixel": 0.01}] if corrected else []
    return {"grid": {"kind": "karras", "steps": STEPS}, "solver": {"kind": "euler"}, "corrections": corrections + dcw}


def experiment(rows: dict[str, object], seeds: str) -> str:
    """A YAML of the model with rows."""
    base = str((HERE / "edm-0.yaml").resolve())
    content = {"base": base, "name": NAME, **SETTINGS, "sample": {"seeds": seeds, "batch": 500}, "samplers": rows}
    return yaml.safe_dump(content, sort_keys=False)


def tried(_: Path) -> str:
    """Every weight, plain and with DCW, whose coefficient is to be tuned."""
    rows = {f"tried-{how}-{weight}": sampler(weight, how == DCW) for weight in WEIGHTS for how in (PLAIN, DCW)}
    return experiment(rows, "101000-101999")


def kid(run: Path, row: str) -> float:
    """Of the seeds that choose."""
    return float(json.loads((run / f"metrics/{row}.json").read_text())["summary"]["kid"]["mean"])


def best(run: Path) -> dict[str, float]:
    """The weight of the least KID, by kind of row."""
    return {how: min(WEIGHTS, key=lambda w: kid(run, f"tried-{how}-{w}")) for how in (PLAIN, DCW)}


def chosen(run: Path) -> str:
    """The weights that are shown, and the best of each kind, with the coefficients that were found."""
    known, own = yaml.safe_load((run / "tune/tuned.yaml").read_text())["samplers"], best(run)
    rows = {f"{how}-{w}": known[f"tried-{how}-{w}"] for how in (PLAIN, DCW) for w in sorted({*SHOWN, own[how]})}
    return experiment(rows, "0-1999")


def results(run: Path) -> str:
    """Shift, distances and scores of the rows that are shown; coefficients of all."""
    own, rows = best(run), {}
    for name in yaml.safe_load(chosen(run))["samplers"]:
        shift, scores = (json.loads((run / f"{kind}/{name}.json").read_text()) for kind in ("shift", "metrics"))
        ranges = [{key: part.get(key) for key in ("fd", "kid", "fd_infinity")} for part in scores["ranges"]]
        keys = ("mean_norm_gap", "mean_norm_gap_null", "flow", "why")
        rows[name] = {**{key: shift[key] for key in keys}, "ranges": ranges}
    tuned = {w: json.loads((run / f"tune/tried-{DCW}-{w}.json").read_text())["found"]["flow"]["flow"] for w in WEIGHTS}
    selection = {f"{how}-{w}": kid(run, f"tried-{how}-{w}") for how in (PLAIN, DCW) for w in WEIGHTS}
    return json.dumps({"best": own, "rows": rows, "tuned": tuned, "selection_kid": selection}, indent=1) + "\n"


if __name__ == "__main__":
    what, runs = sys.argv[1:]
    print({"tried": tried, "chosen": chosen, "results": results}[what](Path(runs) / NAME), end="")
