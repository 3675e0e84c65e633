"""The tables of studies/spectral/tables.md, from runs of `make spectral-study`: python tables.py runs > the page."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from snrkit.commands.sweep import SamplerRow, load_sweep, stored_row, sweep_trials
from snrkit.metrics.paired import Difference, against, verdict
from snrkit.reports.blocks import Table, interval, markdown

HERE = Path(__file__).parent
LESS = {  # which arms are subtracted from which
    "spectral": "dataset class untold cosine cosine-even cosine-shifted cosine-interpolated edm bounds-even "
    "bounds-cosine without-mean-brightness direct frequency power",
    "class": "dataset",
    "untold": "dataset",
    "dataset": "cosine edm bounds-even bounds-cosine",
    "bounds-cosine": "cosine edm",
    "cosine-even": "cosine",
    "cosine-on-spectral": "cosine dataset",
    "bounds-cosine-on-spectral": "bounds-cosine dataset",
    "cosine-interpolated-on-spectral": "cosine-interpolated dataset",
    "edm-narrow": "edm",
    "edm-on-spectral": "edm edm-narrow dataset spectral cosine-on-spectral",
    "wide": "spectral cosine",
    "narrow": "spectral",
    "bias-0": "spectral",
    "bias-4": "spectral",
}
PAIRS = [(arm, other) for arm, others in LESS.items() for other in others.split()]
TITLES = {
    "spectral-bias": "The bias of the sigmoid weighting",
    "spectral-digits": "Digits, 8x8",
    "spectral-cifar10": "CIFAR-10, 32x32",
    "spectral-photos-16": "Photographs, 16x16",
    "spectral-photos-32": "Photographs, 32x32",
    "spectral-photos-64": "Photographs, 64x64",
}
BUDGETS = {"16k": 16_000, "32k": 32_000, "48k": 48_000, "": 64_000}  # suffix of an arm, and what it has seen
MORE = "-more"  # suffix of an arm whose images are others
LOOKED_AT = "euler-16"
BySeed = dict[int, SamplerRow]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return markdown(Table(tuple(head), list(map(tuple, rows))), Path())


def read(name: str, runs: Path) -> dict[str, dict[str, BySeed]]:
    """arm -> sampler -> seed -> what was found, of the rows that are made. `x-long` is x with more steps."""
    found: dict[str, dict[str, BySeed]] = {}
    rows = [(trial, stored_row(trial, runs)) for trial in sweep_trials(load_sweep(HERE / f"{name}.yaml"), name)]
    missing = sum(row is None for _, row in rows)
    if missing:
        print(f"{name}: {missing} of {len(rows)} rows are not made yet", file=sys.stderr)
    for trial, row in rows:
        arm = found.setdefault(trial.arm.removesuffix("-long"), {})
        for sampler, record in row.samplers.items() if row is not None else ():
            arm.setdefault(sampler, {})[trial.seed] = record
    return {arm: samplers for arm, samplers in found.items() if samplers}


def fd(by_seed: BySeed) -> dict[int, float]:
    """The distance of every seed."""
    return {seed: record.summary["fd"].mean for seed, record in by_seed.items()}


def spread(values: Sequence[float]) -> str:
    """Mean (least, most), or the one value."""
    return f"{fmean(values):.3f}" + (f" ({min(values):.3f}, {max(values):.3f})" if len(values) > 1 else "")


def less(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Mean difference over equal seeds with its paired 95 % t-interval; None without such."""
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    return against([one[seed] for seed in seeds], [other[seed] for seed in seeds])


def differences(
    found: Mapping[str, Mapping[str, BySeed]], title: str, measure: Callable[[BySeed], dict[int, float]]
) -> Iterator[str]:
    """Arms less arms by sampler, where both are made, and how many intervals leave out 0."""
    made = [(a, b) for a, b in PAIRS if a in found and b in found]
    samplers = list(dict.fromkeys(sampler for pair in made for arm in pair for sampler in found[arm]))
    cells = [[less(measure(found[a].get(s, {})), measure(found[b].get(s, {}))) for s in samplers] for a, b in made]
    known = [each for row in cells for each in row if each is not None]
    if not known:
        return
    clear = sum(verdict(each) in ("better", "worse") for each in known)
    yield f"{title} ({len(known)} intervals, {clear} without 0; by chance alone {len(known) / 20:.0f} would be):"
    names = [f"{a} less {b}" for a, b in made]
    yield table(["arms", *samplers], [[n, *(interval(d, 3) for d in row)]
                                      for n, row in zip(names, cells, strict=True)])  # fmt: skip


def section(name: str, runs: Path) -> Iterator[str]:
    """One sweep: distances by arm and sampler, arms less arms, what the images look like, and over the training."""
    found = read(name, runs)
    whole = {arm: samplers for arm, samplers in found.items() if not arm.endswith((*filter(None, BUDGETS), MORE))}
    if not whole:
        return
    samplers = list(dict.fromkeys(sampler for arm in whole.values() for sampler in arm))
    records = [record for arm in whole.values() for by_seed in arm.values() for record in by_seed.values()]
    seeds = sorted({seed for arm in whole.values() for by_seed in arm.values() for seed in by_seed})
    yield f"## {TITLES[name]}"
    yield (f"`studies/spectral/{name}.yaml`, training seeds {', '.join(map(str, seeds))}. {records[0].names['fd']}, "
           "mean (least, most) over the seeds:")  # fmt: skip
    yield table(["arm", *samplers], [[arm, *(cell(of.get(s), fd) for s in samplers)] for arm, of in whole.items()])
    yield from differences(whole, "Differences, seed by seed", fd)
    others = {arm.removesuffix(MORE): samplers for arm, samplers in found.items() if arm.endswith(MORE)}
    yield from differences(others, "The same of 2,000 other images, seeds 1000-2999", fd)
    yield "Root mean square over the rings of ln power, images over data; mean (least, most):"
    yield table(["arm", *samplers], [[arm, *(cell(of.get(s), off) for s in samplers)] for arm, of in whole.items()])
    yield from differences(whole, "Differences of that", off)
    shown = LOOKED_AT if LOOKED_AT in samplers else samplers[-1]
    yield f"Power by ring and spread of mean brightness, images over data, {shown}:"
    yield table(["arm", "power", "brightness"], [[arm, *looks(of[shown])] for arm, of in whole.items() if shown in of])
    yield from budgets(found)


def off(by_seed: BySeed) -> dict[int, float]:
    """How far the power by ring is off, of every seed."""
    found = {}
    for seed, record in by_seed.items():
        found[seed] = math.sqrt(fmean(math.log(ring) ** 2 for ring in record.looks.power))
    return found


def cell(by_seed: BySeed | None, measure: Callable[[BySeed], dict[int, float]]) -> str:
    """One arm and sampler."""
    return spread(list(measure(by_seed).values())) if by_seed else "-"


def looks(by_seed: BySeed) -> tuple[str, str]:
    """(power of every ring, spread of brightness), means over the seeds."""
    rings = zip(*(record.looks.power for record in by_seed.values()), strict=True)
    power = " ".join(f"{fmean(ring):.2f}" for ring in rings)
    return power, f"{fmean(record.looks.brightness for record in by_seed.values()):.2f}"


def budgets(found: Mapping[str, Mapping[str, BySeed]]) -> Iterator[str]:
    """Distances against images seen, and the mean difference over that curve."""
    curves: dict[str, list[dict[int, float]]] = {}
    for arm in found:
        base = arm.removesuffix("-16k")
        if base != arm:
            (sampler,) = found[arm]
            curves[base] = [fd(found[f"{base}-{k}" if k else base][sampler]) for k in BUDGETS]
    if not curves:
        return
    yield f"Against images seen, one training with checkpoints, {sampler}:"
    head = [f"{images:,}" for images in BUDGETS.values()]
    yield table(["arm", *head], [[arm, *(spread(list(v.values())) for v in c)] for arm, c in curves.items()])
    area = {arm: {seed: mean_over_images([v[seed] for v in c]) for seed in c[0]} for arm, c in curves.items()}
    rows = [[f"{a} less {b}", interval(difference, 3)] for a, b in combinations(curves, 2)
            if (difference := less(area[a], area[b]))]  # fmt: skip
    yield table(["area between the curves over its width", "FD [95 %]"], rows)


def mean_over_images(values: Sequence[float]) -> float:
    """The mean of a curve over the images seen, linear between its points."""
    images = list(BUDGETS.values())
    parts = [(b - a) * (u + v) / 2 for a, b, u, v in zip(images, images[1:], values, values[1:], strict=False)]
    return sum(parts) / (images[-1] - images[0])


def page(runs: Path) -> Iterator[str]:
    """All tables."""
    yield "# Spectral schedules: the tables"
    yield ("Written by `studies/spectral/tables.py` from the runs of `make spectral-study`; what they mean is in "
           "[spectral-study.md](README.md). Brackets: paired 95 % t-intervals over training seeds, which leave "
           "out the noise of the images, the same seeds in every arm; of so many differences several clear 0 by "
           "chance. No score here is an FID.")  # fmt: skip
    for name in TITLES:
        yield from section(name, runs)


if __name__ == "__main__":
    print("\n\n".join(page(Path(sys.argv[1]))))
