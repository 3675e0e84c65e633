"""The tables of studies/training/tables.md, from runs of `make training-study`: python tables.py runs > the page."""

import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from snrkit.analysis.closed_form import difficulty
from snrkit.analysis.empirical import rank_correlation
from snrkit.commands.sweep import load_sweep, make_table, stored_row, sweep_trials
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import X0, Eps, Target, V
from snrkit.metrics.paired import Difference, against, holm
from snrkit.reports.blocks import Table, interval, markdown
from snrkit.reports.records import SweepTable
from snrkit.reports.sweep_table import arm_table

HERE = Path(__file__).parent
SWEEPS = {
    "training-knobs": "Targets, weightings, averages and clipping: 100,000 images",
    "levels": "Levels and what learns beside the network: EDM, 40,000 images",
    "flow-levels": "Levels under flow matching: 40,000 images",
    "vp-levels": "Levels, P2 and the score with target eps: vp, 40,000 images",
    "x0-weightings": "Weightings on x0: vp, 40,000 images",
    "x0-rates": "Weightings on x0 at three and ten times the learning rate: vp, 40,000 images",
    "rates": "Learning rates without clipping: vp, 40,000 images",
    "beta-tables": "Beta tables: target v, 40,000 images",
    "target-samplers": "Targets and samplers: the linear table, 40,000 images",
    "clipping": "Clippings at thirty times the learning rate: EDM, 40,000 images",
    "clipping-10": "Clippings at ten times the learning rate: EDM, 40,000 images",
    "averages": "Averages under a constant learning rate: 40,000 images",
    "score": "The score as a target: vp, 40,000 images",
    "haar": "Haar coefficients as states: EDM, 40,000 images",
    "qk": "Normalised queries and keys: a DiT, 40,000 images",
    "posterior-mean": "DDPM's posterior mean as a target: the linear table, 40,000 images",
    "convergence": "Weightings as training goes on: vp, a constant learning rate, 76,800 images",
}
PAIRS = {  # which arms are subtracted, beside each less the first
    "training-knobs": [
        ("raw", "ema-1000"),
        *((f"{target}-{kind}", f"{target}-unit") for target in ("x0", "eps", "v") for kind in ("p2", "min-snr", "edm")),
        ("v-unit", "eps-unit"), ("v-unit", "x0-unit"), ("x0-min-snr", "v-unit"), ("eps-p2", "eps-min-snr"),
        ("hot-global", "hot"),
    ],
    "levels": [("loguniform-importance", "loguniform"), ("loguniform", "uniform-sigma")],
    "vp-levels": [("score-edm", "eps-edm"), ("eps-edm", "uniform"), ("score", "uniform")],
    "x0-weightings": [
        ("log-snr", "min-snr"), ("snr-clip", "min-snr"), ("soft-min-snr", "min-snr"), ("min-snr", "constant"),
        ("snr-half", "constant"),
    ],
    "x0-rates": [(f"{kind}-10", "simple-10") for kind in ("min-snr", "max-snr", "snr-clip")],
    "rates": [(f"{target}-{times}", target) for target in ("eps", "x0", "v") for times in (3, 10)],
    "beta-tables": [(f"{table}-zero-snr", f"{table} trailing") for table in ("linear", "scaled", "geometric")],
    "target-samplers": [
        (f"{target} {grid}-{solver}", f"eps {grid}-{solver}")
        for target in ("v", "x0", "score")
        for grid in ("karras", "trailing", "logsnr")
        for solver in ("euler", "heun", "ancestral")
    ],
    "posterior-mean": [
        (f"posterior-mean{weight}", f"{target}{weight}") for target in ("eps", "v") for weight in ("", "-elbo")
    ],
    "qk": [("qk-10", "plain-10")],
    "score": [("normalised", "eps"), ("raw", "normalised"), ("raw-unclipped", "raw")],
    "convergence": [
        (f"eps-{kind}-{seen}", f"eps-{seen}")
        for kind in ("min-snr", "p2")
        for seen in (19, 38, 57, 76)
    ],
    "averages": [("snapshots", "raw"), ("snapshots-1000", "raw"), ("snapshots-4000", "raw")],
    "clipping": [("global", "agc"), ("per-unit", "global"), ("agc-per-layer", "global"), ("usual-rate", "per-unit")],
    "clipping-10": [("global", "agc"), ("per-unit", "global"), ("agc-per-layer", "global"), ("per-layer", "global")],
}  # fmt: skip
TOY_IMAGES = 1_000_192  # where 1,000,000 images in batches of 256 end
DIGITS_IMAGES, SIGMAS = 100_096, (30, 10, 3, 1, 0.3, 0.1)
SAME = {"scaled trailing": "scaled-linear trailing"}
TARGETS: dict[str, Target] = {"eps": Eps(), "x0": X0(), "v": V()}


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Markdown."""
    return markdown(Table(tuple(head), list(map(tuple, rows))), Path())


def arms(name: str, runs: Path) -> Iterator[str]:
    """One sweep: every arm, pairs of arms, what the trainings went through, what broke off."""
    sweep = load_sweep(HERE / f"{name}.yaml")
    rows = [(trial, row) for trial in sweep_trials(sweep, name) if (row := stored_row(trial, runs)) is not None]
    if not rows:
        return
    record = make_table(sweep, rows, sweep.settings)
    head, cells = arm_table(record)
    yield f"## {SWEEPS[name]}"
    yield f"`studies/training/{name}.yaml`, {len(rows)} of {len(sweep.arms) * len(sweep.seeds)} rows."
    wrong = {arm.split()[0] for pair in PAIRS.get(name, []) for arm in pair} - set(sweep.arms) - {"scaled"}
    assert not wrong, wrong
    yield table(head, iter(cells))
    yield pairs(record, PAIRS.get(name, []))
    if name == "target-samplers":
        yield "What a target is worth on a sampler beyond what it is worth on all, in ln FD: the interaction [95 %]."
        yield interactions(record)
    yield table(["arm", "mean gradient norm, seed by seed", "share of clipped steps"], steps(record))
    if record.failed:
        yield table(["broken off", "why"], iter(record.failed.items()))


def pairs(record: SweepTable, wanted: Sequence[tuple[str, str]]) -> str:
    """FD of one arm less another's, seed by seed on equal seeds; what Holm's correction over all of them leaves."""
    found = dict[str, tuple[int, Difference]]()
    for one, other in wanted:
        a, b = (record.arms.get(SAME.get(each, each)) for each in (one, other))
        if a is None or b is None:  # not made yet
            continue
        shared = [seed for seed in a.seeds if seed in b.seeds]
        fd = [[each.scores["fd"].values[each.seeds.index(seed)] for seed in shared] for each in (a, b)]
        found[f"{one} less {other}"] = len(shared), against(*fd)
    if not found:
        return ""
    rows = ((name, str(seeds), interval(each, 3)) for name, (seeds, each) in found.items())
    made = table(["arms", "seeds", f"{record.names['fd']} [95 %]"], rows)
    counts = {seeds for seeds, _ in found.values()}
    return (
        f"{made}\n\n{left({name: each for name, (_, each) in found.items()}, min(counts))}"
        if len(counts) == 1
        else made
    )


def left(differences: Mapping[str, Difference], seeds: int) -> str:
    """How many intervals clear 0, and which Holm's correction leaves."""
    clear = sum(
        each.low > 0 or each.high < 0 for each in differences.values() if each.low is not None and each.high is not None
    )
    kept = ", ".join(holm(differences, seeds)) or "none"
    return f"{clear} of {len(differences)} clear 0; Holm's correction over them leaves {kept}."


def interactions(record: SweepTable) -> str:
    """Two-way interactions of targets and samplers, seed by seed: ln FD less the means of target and of sampler."""
    split = {name: name.split(" ", 1) for name in record.arms}
    targets, samplers = (list(dict.fromkeys(each[k] for each in split.values())) for k in (0, 1))
    cells = [[record.arms.get(f"{t} {s}") for s in samplers] for t in targets]
    if any(cell is None or cell.seeds != cells[0][0].seeds for row in cells for cell in row):
        return "Not all seeds of all arms are there yet."
    fd = np.log([[cell.scores["fd"].values for cell in row] for row in cells])
    own = fd - fd.mean(0, keepdims=True) - fd.mean(1, keepdims=True) + fd.mean((0, 1), keepdims=True)
    none = [0.0] * fd.shape[2]
    found = {f"{t} {s}": against(list(own[i, k]), none) for i, t in enumerate(targets) for k, s in enumerate(samplers)}
    rows = ((s, *(interval(found[f"{t} {s}"], 3) for t in targets)) for s in samplers)
    return f"{table(['sampler', *targets], rows)}\n\n{left(found, fd.shape[2])}"


def steps(record: SweepTable) -> Iterator[Sequence[str]]:
    """Norms and clipped steps of every arm."""
    for name, arm in record.arms.items():
        norms = ", ".join("-" if norm is None else f"{norm:.3g}" for norm in arm.grad_norm)
        yield name, norms, ", ".join("-" if share is None else f"{share:.2f}" for share in arm.clipped_share)


def curve(path: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(logsnr, y) of one curve of a chart's CSV."""
    rows = [row for row in list(csv.reader(path.read_text().splitlines()))[1:] if row[0] == name]
    x, y = (torch.tensor([float(row[k]) for row in rows], dtype=torch.float64) for k in (1, 2))
    return x, y


def per_unit(target: str, logsnr: torch.Tensor) -> torch.Tensor:
    """What the squared error of x0 is multiplied with to be that of the target, vp."""
    a, b = TARGETS[target].direction(level := level_of(logsnr, "vp"))
    return ((a * level.sigma - b * level.alpha) / level.sigma) ** 2


def excess(runs: Path) -> Iterator[str]:
    """The excess error of every target over the exact denoiser, level by level, and what it goes along with."""
    folders = {arm: sorted(runs.glob(f"targets-{arm}-?/analysis")) for arm in ("eps", "x0", "v", "edm")}
    if not all(folders.values()):
        return
    analyses = {arm: [read(path, TOY_IMAGES) for path in paths] for arm, paths in folders.items()}
    found = {arm: [curve(path / "run-excess.csv", "x0") for path in paths] for arm, paths in folders.items()}
    logsnr = found["eps"][0][0]
    yield "## Which levels each target learns: excess error on the toy mixture"
    yield ("|x0_hat less the exact one|^2 per dimension, mean over the seeds (least, most), after 1,000,000 images "
           "with a weight of 1 on the target itself; `edm` under its own preconditioning and weighting.")  # fmt: skip

    def rows() -> Iterator[Sequence[str]]:
        for k in range(0, len(logsnr), 2):
            yield f"{float(logsnr[k]):.1f}", *(spread([float(y[k]) for _, y in each]) for each in found.values())

    yield table(["logsnr", *found], rows())
    yield "In each target's own units:"

    def own() -> Iterator[Sequence[str]]:
        for k in range(0, len(logsnr), 2):
            scale = {target: float(per_unit(target, logsnr)[k]) for target in TARGETS}
            yield f"{float(logsnr[k]):.1f}", *(spread([scale[t] * float(y[k]) for _, y in found[t]]) for t in TARGETS)

    yield table(["logsnr", *TARGETS], own())
    yield "Spearman's rank correlation, over levels, of the excess error in the target's own units with closed forms:"
    variance = analyses["eps"][0]["variance"]
    yield table(["target", "information", "|correlation|", "gradient scale"], ranks(found, logsnr, variance))
    yield "And, over levels too, of single images' gradients in the output layer, from each run's analysis:"
    yield table(["arm", *FACTS.values()], facts(analyses))


FACTS = {  # of an analysis, and what the table calls them
    "Rank correlation of gradient norm with the residual, Gaussian": "gradient norm with the Gaussian residual",
    "Rank correlation of gradient norm with the residual, this run's": "with the run's own residual",
    "Rank correlation of gradient signal to noise with an untrained network's": "signal to noise with that untrained",
}


def read(folder: Path, images: int) -> dict[str, Any]:
    """The analysis of a training of `images`; SystemExit where it is absent or of an earlier state."""
    path = folder / "index.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"facts": {}}
    if not record["facts"].get("Weights", "").endswith(f" at {images} images"):
        sys.exit(f"{path} is not of the end of the training; run snrkit analyze --config {folder.parent}/config.yaml")
    return record


def facts(analyses: dict[str, list[dict[str, Any]]]) -> Iterator[Sequence[str]]:
    """What the analyses have under the names of FACTS, seed by seed."""
    for arm, found in analyses.items():
        yield arm, *(", ".join(each["facts"][fact] for each in found) for fact in FACTS)


def ranks(
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]], logsnr: torch.Tensor, variance: float
) -> Iterator[Sequence[str]]:  # fmt: skip
    """Of each target's excess error, seed by seed."""
    for name, target in TARGETS.items():
        closed = difficulty(level_of(logsnr, "vp"), target, variance)
        own = [per_unit(name, logsnr) * y for _, y in found[name]]
        curves = (closed.information, closed.correlation.abs(), closed.gradient_scale)
        yield name, *(", ".join(f"{rank_correlation(each, y):+.2f}" for y in own) for each in curves)


def spread(values: Sequence[float]) -> str:
    """Mean (least, most)."""
    return f"{fmean(values):.2e} ({min(values):.1e}, {max(values):.1e})"


def readings(runs: Path) -> Iterator[str]:
    """What a classifier sees of x0_hat in EDM's own runs, made without the label, seed by seed."""
    folders = sorted(runs.glob("training-knobs-edm-edm-?/analysis"))
    if not folders:
        return
    yield "## What a classifier sees of x0_hat: EDM, 100,000 images"
    yield "Digits read right at sigma, and sigma where half are; distance in features at logsnr, and where it halves."

    def rows() -> Iterator[Sequence[str]]:
        for folder in folders:
            read(folder, DIGITS_IMAGES)
            (x, right), (_, apart) = (
                curve(folder / f"run-{name}.csv", "x0_hat, label not told") for name in ("accuracy", "features")
            )
            sigma = math.exp(-crossing(x, right, 0.5) / 2)
            cells = [f"{np.interp(-2 * math.log(s), x, right):.3f}" for s in SIGMAS]
            cells += [f"{sigma:.2f}", *(f"{np.interp(at, x, apart):.3f}" for at in (float(x[0]), 0, 2, 4))]
            yield folder.parent.name[-1], *cells, f"{crossing(x, -apart, -float(apart[0]) / 2):.2f}"

    head = [f"right at {s:g}" for s in SIGMAS] + ["half at sigma"]
    yield table(["seed", *head, "apart, noisy end", "at 0", "at 2", "at 4", "halves at logsnr"], rows())


def crossing(x: torch.Tensor, y: torch.Tensor, at: float) -> float:
    """Where y, at rising x, first exceeds `at`, linear between points."""
    k = int((y > at).int().argmax())
    return float(np.interp(at, y[k - 1 : k + 1], x[k - 1 : k + 1]))


def page(runs: Path) -> Iterator[str]:
    """All tables."""
    yield "# Training knobs: the tables"
    yield ("Written by `studies/training/tables.py` from the runs of `make training-study`; what they mean is in "
           "[training-knobs.md](README.md). Brackets: paired 95 % t-intervals over the seeds, which "
           "leave out the noise of the images, the same seeds in every arm; of a hundred arms several clear 0 by "
           "chance.")  # fmt: skip
    for made in [*map(partial(arms, runs=runs), SWEEPS), excess(runs), readings(runs)]:
        yield from made


if __name__ == "__main__":
    print("\n\n".join(part for part in page(Path(sys.argv[1])) if part))
