"""The pictures and numbers of docs/gallery.md: python docs/gallery.py makes all of them anew, in minutes on one core.

Every correction is put on Euler with 13 evaluations of the demo's model. Those that leave the flow of the network as it
is (docs/fitted.md) are judged by the rms distance to it, from the same first states; guidance changes the flow, and is
judged by a score. What was found goes into gallery/gallery.json, a picture of each into gallery/, and the captions,
which are made of the JSON alone, into the page.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from snrkit.base.distributed import open_world
from snrkit.base.files import write_bytes, write_text
from snrkit.base.starters import STARTERS
from snrkit.commands.knobs import knobs
from snrkit.commands.tune_flow import FlowTools, coefficients_by_flow
from snrkit.data.dataset import memory_dataset
from snrkit.experiment.experiment import load_experiment
from snrkit.experiment.flows import FirstStates
from snrkit.experiment.opening import open_experiment, open_model
from snrkit.experiment.run import Run
from snrkit.experiment.scorer import Scorer, open_scorer
from snrkit.experiment.trajectories import Trajectories, trajectories
from snrkit.fitting.guard import guarded
from snrkit.metrics.paired import against, verdict
from snrkit.metrics.statistics import frechet
from snrkit.sampling.sampler import Sampler
from snrkit.shift.flow_distance import distance, per_state

HERE = Path(__file__).resolve().parent
PAGE, FOLDER = HERE / "gallery.md", HERE / "gallery"
RECORD = FOLDER / "gallery.json"
BASE = {"grid": {"kind": "karras", "steps": 13}, "solver": {"kind": "euler"}}
NOISES = 48  # first states that choose, and as many others that judge
SCORED, RANGES = 400, 5  # images of seeds that chose nothing, and the disjoint ranges they are scored in
TRIED = 300  # images of each weight of a guidance that is tried, of the tuning seeds
SHOWN, ACROSS = 10, 5  # images of a column, and side by side
ENLARGED, MARGIN, GAP, HEAD = 7, 4, 14, 22  # pixels: of one, between images, between columns, above


@dataclass(frozen=True, slots=True)
class Show:
    """A correction with the coefficients that are looked for, and the values that are tried, if it is a scan."""

    name: str  # of its picture
    correction: Mapping[str, Any]
    coefficients: tuple[str, ...]
    tried: tuple[float, ...] = ()  # none: by least squares, as tune --by flow does
    too_much: float | None = None  # none: five times as far from neutral
    guides: bool = False

    def sampler(self, values: Sequence[float] = ()) -> Sampler:
        """Euler with it; without values as it is without."""
        given = dict(zip(self.coefficients, values, strict=True)) if values else None
        corrections = [] if given is None else [{**self.correction, **given}]
        return Sampler.model_validate({**BASE, "corrections": corrections})


LIMITS = (2.0, 1.5, 1.2, 1.1, 1.05, 1.0, 0.95, 0.9)
SHOWS = (
    Show("dcw-pixel", {"kind": "dcw"}, ("pixel",)),
    Show("dcw-bands", {"kind": "dcw"}, ("low", "high")),
    Show("epsilon-scaling", {"kind": "epsilon_scaling"}, ("scale",)),
    Show("time-shift-paper", {"kind": "time_shift", "unit": "nats"}, ("window",), (0.1, 0.2, 0.4, 0.8), 0.95),
    Show(
        "time-shift-released",
        {"kind": "time_shift", "unit": "nats", "variant": "released"},
        ("window",),
        (0.02, 0.05, 0.1, 0.2, 0.4),
        1.2,
    ),
    Show("clip-x0", {"kind": "clip_x0"}, ("limit",), LIMITS, 0.5),
    Show("dynamic-threshold", {"kind": "dynamic_threshold"}, ("floor",), LIMITS, 0.5),
    Show("cfg", {"kind": "cfg"}, ("weight",), (0.5, 1.0, 2.0), 8.0, guides=True),
    Show("noise-awareness", {"kind": "noise_awareness"}, ("weight",), (0.5, 1.0, 2.0), 8.0, guides=True),
)


@dataclass(frozen=True)
class Bench:
    """The demo's model, and what its images are judged by."""

    samples: Trajectories
    tools: FlowTools

    @cached_property
    def states(self) -> tuple[FirstStates, FirstStates]:
        """First states that choose, and others that judge, with the flow from them."""
        return self.tools.states("euler-13", SHOWS[0].sampler())

    @cached_property
    def scorer(self) -> Scorer:
        """Features of the demo's classifier."""
        return open_scorer(self.samples.setting, self.tools.experiment.metrics)

    def images(self, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
        """The images (n, 1, 8, 8) uint8 of seeds."""
        with torch.no_grad():
            return self.samples.images(sampler, seeds)

    def fd(self, sampler: Sampler, seeds: Sequence[int]) -> float:
        """Frechet distance of the images of seeds to the training split."""
        images = memory_dataset("tried", self.images(sampler, seeds))
        return float(frechet(self.scorer.features(images, range(len(seeds))).gaussian, self.scorer.reference.gaussian))

    @cached_property
    def plain(self) -> list[float]:
        """The scores of the sampler without any correction."""
        return self.scores(SHOWS[0].sampler())

    def scores(self, sampler: Sampler) -> list[float]:
        """KID over disjoint ranges of the seeds that chose nothing."""
        images = memory_dataset("scored", self.images(sampler, range(SCORED)))
        return [score.values["kid"] for score in self.scorer.ranges(images)]


def open_bench() -> Bench:
    """The demo on the CPU."""
    settings = [f"tune.noises={NOISES}", f"metrics.ranges={RANGES}", "metrics.decide=kid"]
    experiment = load_experiment(STARTERS / "demo.yaml", settings)
    opened = open_experiment(experiment, open_world("cpu"))
    samples = trajectories(opened, open_model(opened, Run(Path("runs/demo"))))
    return Bench(samples, FlowTools(opened.experiment, samples))


def find(bench: Bench, show: Show) -> dict[str, Any]:
    """All that the gallery says of one correction."""
    choose = by_score if show.guides else by_scan if show.tried else by_least_squares
    best, how = choose(bench, show)
    much = beyond(show, best)
    scores = bench.scores(show.sampler(best))
    difference = against(scores, bench.plain)
    return {
        "correction": dict(show.correction),
        "coefficients": list(show.coefficients),
        "best": rounded(best),
        "too_much": rounded(much),
        **how,
        **({} if show.guides else from_flow(bench, show, best, much)),
        "kid": rounded([sum(bench.plain) / RANGES, sum(scores) / RANGES]),
        "kid_difference": rounded([value or 0.0 for value in (difference.mean, difference.low, difference.high)]),
        "verdict": verdict(difference),
    }


def by_least_squares(bench: Bench, show: Show) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The coefficients nearest to the flow, as snrkit tune --by flow finds them."""
    sampler = show.sampler((0.01,) * len(show.coefficients))  # any values: the search begins at neutral
    chosen = knobs(sampler, [f"0.{name}" for name in show.coefficients])
    _, found = coefficients_by_flow(bench.tools, show.name, sampler, chosen)
    best = tuple(number.value for number in found.values)
    return best, {"intervals": [rounded((number.low, number.high)) for number in found.values]}


def by_scan(bench: Bench, show: Show) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The value of those tried that is nearest to the flow, on the first states that choose."""
    chosen = bench.states[0]
    found = {value: rms_of(chosen, show.sampler((value,))) for value in show.tried}
    return (min(found, key=lambda value: found[value]),), {"tried": pairs(found)}


def by_score(bench: Bench, show: Show) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The weight of those tried whose images have the least Frechet distance, on tuning seeds."""
    seeds = range(100_000, 100_000 + TRIED)
    found = {0.0: bench.fd(show.sampler(), seeds)}
    found |= {value: bench.fd(show.sampler((value,)), seeds) for value in show.tried}
    return (min(show.tried, key=lambda value: found[value]),), {"tried_fd": pairs(found)}


def from_flow(bench: Bench, show: Show, best: Sequence[float], much: Sequence[float]) -> dict[str, Any]:
    """How far from the flow the three are, on first states that chose nothing, and what the guard says of the best."""
    states = bench.states[1]
    plain, moved = (walked(states, sampler) for sampler in (show.sampler(), show.sampler(best)))
    guard = guarded(plain, moved, states.flow.states[-1], states.flow.error)
    too_far = rms_of(states, show.sampler(much))
    return {"rms": rounded((guard.base.value, guard.fitted.value, too_far)), "nearer": guard.helps}


def walked(states: FirstStates, sampler: Sampler) -> Tensor:
    """The clean states of a sampler."""
    with torch.no_grad():
        return states.walked(states.opened(sampler))


def rms_of(states: FirstStates, sampler: Sampler) -> float:
    """The rms distance of a sampler's images to the flow."""
    return distance(per_state(walked(states, sampler) - states.flow.states[-1]), states.flow.error).value


def beyond(show: Show, best: Sequence[float]) -> tuple[float, ...]:
    """Coefficients that are too large: five times as far from neutral, where nothing else is said."""
    if show.too_much is not None:
        return (show.too_much,)
    neutral = [knob.range.neutral for knob in knobs(show.sampler(best), [f"0.{name}" for name in show.coefficients])]
    return tuple(n + 5 * (b - n) for n, b in zip(neutral, best, strict=True))


def rounded(values: Sequence[float]) -> list[float]:
    """To four digits."""
    return [float(f"{value:.4g}") for value in values]


def pairs(found: Mapping[float, float]) -> list[list[float]]:
    """[value, what was found at it]."""
    return [rounded(pair) for pair in found.items()]


def picture(columns: Mapping[str, Tensor]) -> bytes:
    """Named columns of images (SHOWN, 1, H, W) uint8 side by side, as a PNG."""
    blocks = {name: sheet(images) for name, images in columns.items()}
    height, width = next(iter(blocks.values())).shape
    canvas = Image.new("L", (len(blocks) * (width + GAP) - GAP, height + HEAD), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for place, (name, block) in enumerate(blocks.items()):
        left = place * (width + GAP)
        draw.text((left, 1), name, fill=0, font=font)
        canvas.paste(Image.fromarray(block), (left, HEAD))
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def sheet(images: Tensor) -> np.ndarray[Any, Any]:
    """Images in rows of ACROSS, every pixel enlarged."""
    large = images[:, 0].repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)
    framed = torch.nn.functional.pad(large, (0, MARGIN, 0, MARGIN), value=255)
    count, height, width = framed.shape
    rows = framed.reshape(count // ACROSS, ACROSS, height, width).permute(0, 2, 1, 3)
    return rows.reshape(-1, ACROSS * width).numpy()


def drawn(bench: Bench, show: Show, found: Mapping[str, Any]) -> bytes:
    """The picture of one correction."""
    seeds = range(SHOWN)
    best = "best tried: " if show.tried else "best: "
    columns = {
        "neutral": bench.images(show.sampler(), seeds),
        best + values(found, "best"): bench.images(show.sampler(found["best"]), seeds),
        "too much: " + values(found, "too_much"): bench.images(show.sampler(found["too_much"]), seeds),
    }
    return picture(columns)


def values(found: Mapping[str, Any], which: str) -> str:
    """Coefficients with their names."""
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(found["coefficients"], found[which], strict=True))


def caption(found: Mapping[str, Any]) -> str:
    """What is said below a picture: every number of the page comes from here, and so from the JSON."""
    best, much = values(found, "best"), values(found, "too_much")
    (plain, score), (mean, low, high) = found["kid"], found["kid_difference"]
    end = (
        f"KID-digits {plain:.4f} without it and {score:.4f} with it, difference {mean:+.4f} [{low:+.4f}, "
        f"{high:+.4f}]: {found['verdict']}."
    )
    if "tried_fd" in found:
        tried = ", ".join(f"{fd:.3f} at {value:g}" for value, fd in found["tried_fd"])
        none = " (none is better than 0)" if min(fd for _, fd in found["tried_fd"]) == found["tried_fd"][0][1] else ""
        return f"Best of the weights tried: {best}; too much: {much}. FD-digits by weight: {tried}{none}. {end}"
    near, moved, far = found["rms"]
    if "intervals" in found:
        how = " and ".join(f"[{one:.4g}, {other:.4g}]" for one, other in found["intervals"])
        how = f"by least squares, 95 % interval {how}"
    else:
        how = "nearest of " + ", ".join(f"{value:g}" for value, _ in found["tried"])
    guard = "shown to be nearer" if found["nearer"] else "not shown to be nearer"
    return (
        f"Best: {best} ({how}); too much: {much}. Rms distance to the flow: neutral {near:.4f}, best {moved:.4f} "
        f"({guard}), too much {far:.4f}. {end}"
    )


def settled(page: str, record: Mapping[str, Any]) -> str:
    """The page with the caption of every picture made anew: the paragraph that follows it."""
    for name, found in record.items():
        below, text = re.compile(rf"(\(gallery/{name}\.png\)\n\n)(?:.+\n)+"), "\n".join(wrap(caption(found), 120))
        page = below.sub(lambda old, text=text: f"{old[1]}{text}\n", page)  # type: ignore[misc]
    return page


def main() -> None:
    """Make everything anew."""
    bench, record = open_bench(), dict[str, Any]()
    for show in SHOWS:
        record[show.name] = find(bench, show)
        write_bytes(FOLDER / f"{show.name}.png", drawn(bench, show, record[show.name]))
        print(f"{show.name}: {caption(record[show.name])}", flush=True)
    write_text(RECORD, json.dumps(record, indent=1) + "\n")
    write_text(PAGE, settled(PAGE.read_text(), record))


if __name__ == "__main__":
    main()
