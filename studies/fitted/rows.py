"""The rows of the study: YAMLs with every sampler at every number of evaluations, and the JSON that tables are made of.

python studies/fitted/rows.py samplers MODEL RUNS > FILE      what is tuned, of studies/fitted/MODEL.yaml
python studies/fitted/rows.py final MODEL RUNS > FILE         with coefficients and designed grids, of the run
python studies/fitted/rows.py results MODEL RUNS > FILE       distances and scores of all rows
python studies/fitted/rows.py whole MODEL RUNS > FILE         FD-infinity of all images of a row at once
"""

import json
import os
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
EVALUATIONS = (5, 7, 9, 13, 20)
EULER, IPNDM = {"kind": "euler"}, {"kind": "ipndm"}
ROWS = {  # solver, corrections
    "euler": (EULER, []),
    "dcw-score": (EULER, [{"kind": "dcw", "pixel": 0.01}]),
    "dcw-predicted": (EULER, [{"kind": "dcw", "pixel": 0.01}]),
    "dcw-flow": (EULER, [{"kind": "dcw", "pixel": 0.01}]),
    "dcw-table": (EULER, [{"kind": "dcw", "schedule": {"kind": "table"}}]),
    "gain-flow": (EULER, [{"kind": "gain", "gain": 0.01}]),
    "ipndm": (IPNDM, []),
    "unipc": ({"kind": "unipc"}, []),
    "dpmpp-3m": ({"kind": "dpmpp_3m", "published": True}, []),
    "fitted": ({"kind": "fitted"}, []),
    "fitted-by-band": ({"kind": "fitted", "bands": "haar", "history": 1}, []),
}
SETTINGS = {
    "sample": {"seeds": "0-1999", "batch": 500},
    "tune": {"seeds": "100000-100499", "noises": 128},
    "shift": {"images": 300, "probes": ["flow"], "bootstrap": 1000},
    "metrics": {"features": "classifier", "ranges": 5, "more": ["fd_infinity"]},
}
OF_MODEL = {  # an image costs ten times as much
    "cifar10": {
        "data": {"path": str(Path(os.environ.get("CIFAR10", "data/cifar10-train.zip")).absolute())},
        "sample": {"seeds": "0-449", "batch": 150},
        "tune": {"seeds": "100000-100149", "noises": 48},
        "shift": {"images": 48, "batch": 48, "probes": ["flow"], "bootstrap": 1000},
        "metrics": {"features": "classifier", "ranges": 3, "more": ["fd_infinity"]},
    }
}


def samplers(model: str) -> dict[str, object]:
    """Every row at every number of evaluations."""
    grid = "karras" if model.startswith(("edm", "cifar10")) else "uniform_time"
    return {
        f"{name}-{count}": {"grid": {"kind": grid, "steps": count}, "solver": solver, "corrections": corrections}
        for count in EVALUATIONS
        for name, (solver, corrections) in ROWS.items()
    }


def experiment(model: str, rows: dict[str, object]) -> str:
    """A YAML of a model with rows."""
    settings = {**SETTINGS, **OF_MODEL.get(model, {})}
    content = {"base": str((HERE / f"{model}.yaml").resolve()), "name": f"fitted-{model}", **settings, "samplers": rows}
    return yaml.safe_dump(content, sort_keys=False)


def final(model: str, run: Path) -> str:
    """The rows with what was chosen for them, and the designed ones."""
    rows = yaml.safe_load((run / "tune/tuned.yaml").read_text())["samplers"]
    for count in EVALUATIONS:
        label = f"euler-{count}-designed-{count}"
        made = yaml.safe_load((run / f"design/{label}.yaml").read_text())["samplers"]
        rows[f"designed-{count}"] = made[label]
    return experiment(model, rows)


def results(model: str, run: Path) -> str:
    """What was found of every row."""
    found = {}
    for count in EVALUATIONS:
        for name in (*ROWS, "designed"):
            row = f"{name}-{count}"
            shift = json.loads((run / f"shift/{row}.json").read_text())
            scores = json.loads((run / f"metrics/{row}.json").read_text())
            ranges = [
                {key: part.get(key) for key in ("fd", "kid", "fd_infinity", "inception_score")}
                for part in scores["ranges"]
            ]
            found[row] = {"flow": shift["flow"], "norm_gap": shift["mean_norm_gap"], "ranges": ranges}
    tuned = {path.stem: json.loads(path.read_text())["found"] for path in sorted(run.glob("tune/*.json"))}
    return json.dumps({"model": model, "rows": found, "tuned": tuned}, indent=1) + "\n"


def whole(model: str, run: Path) -> str:
    """FD-infinity with its interval, scored with one range, where those of several are too small for it."""
    found = {}
    for count in EVALUATIONS:
        for name in (*ROWS, "designed"):
            entry = json.loads((run / f"metrics/{name}-{count}.json").read_text())["summary"]["fd_infinity"]
            half = 1.96 * (entry["error"]["own"] ** 2 + entry["error"]["common"] ** 2) ** 0.5
            found[f"{name}-{count}"] = {
                "value": entry["mean"],
                "low": entry["mean"] - half,
                "high": entry["mean"] + half,
            }
    return json.dumps({"model": model, "fd_infinity": found}, indent=1) + "\n"


if __name__ == "__main__":
    what, name, runs = sys.argv[1:]
    folder = Path(runs) / f"fitted-{name}"
    made = {"samplers": lambda: experiment(name, samplers(name)), "final": lambda: final(name, folder)}
    of = {"results": lambda: results(name, folder), "whole": lambda: whole(name, folder)}
    print({**made, **of}[what](), end="")
