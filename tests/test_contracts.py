"""Contracts in full: what a test defines for itself goes through every command and is seen wherever others are.

Each of these was a second half that nobody had written down: a solver got the reference of another, a correction's
weights stayed out of the manifest.
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from snrkit.base.value import Value
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers.ancestral import Ancestral
from snrkit.sampling.step import NamedWeights
from tests.small import SMALL, snrkit, write_config
from tests.toys import member

GRID = {"kind": "karras", "steps": 4}
TRAIN = {**SMALL["train"], "images": 320}


class Renewing(Value):
    """DDPM's steps under another name: order 1, all of the posterior's noise renewed."""

    kind: Literal["renewing"] = "renewing"
    order: ClassVar[int] = 1
    renews: ClassVar[float] = 1.0

    def step(self, denoise, x, position, memory, noise):
        return Ancestral(eta=1.0).step(denoise, x, position, memory, noise)


class Leaning(Value):
    """A correction that moves the state a little towards what the weights of another run say."""

    kind: Literal["leaning"] = "leaning"
    run: Path

    def open(self, sources, levels):
        return OpenedLeaning(sources.denoiser(NamedWeights(self.run)))


class OpenedLeaning:
    """The same with the other model."""

    def __init__(self, other):
        self.other = other

    def after(self, step):
        return step.x_next + 0.05 * (self.other(step.x, step.position.here).x0 - step.calls[-1].prediction.x0)


def small(folder, **changes):
    """The small experiment in a file, trained for a moment."""
    (folder / "small.yaml").unlink(missing_ok=True)
    return write_config(folder, **{"train": TRAIN, **changes})


def test_a_new_solver_is_known_by_what_it_says_it_renews(tmp_path):
    """It samples, is measured beside the Gaussian chain that renews all noise, is scored, compared and reported."""
    samplers = {
        "mine": {"grid": GRID, "solver": {"kind": "renewing"}}, "twin": {"grid": GRID, "solver": {"kind": "ancestral"}},
        "flow": {"grid": GRID, "solver": {"kind": "euler"}},
    }  # fmt: skip
    with member(Sampler, "solver", Renewing):
        small(tmp_path, samplers=samplers, compare={"solvers": [], "timed_images": 2, "rounds": 1},
              shift={**SMALL["shift"], "probes": ["amplification"]})  # fmt: skip
        for command in ("train", "sample", "measure-shift", "eval-fid", "compare"):
            snrkit(tmp_path, command, "-q")
        snrkit(tmp_path, "report")
    run = tmp_path / "runs/small"
    shift = {name: json.loads((run / f"shift/{name}.json").read_text()) for name in samplers}
    gaussian = {name: record["amplification"]["gaussian"]["all"] for name, record in shift.items()}
    assert gaussian["mine"] == gaussian["twin"] != gaussian["flow"]
    assert shift["mine"]["norm_gap"] == shift["twin"]["norm_gap"]
    assert (run / "samples/mine.png").read_bytes() == (run / "samples/twin.png").read_bytes()
    for page in ("report.md", "compare.md"):
        assert "| mine |" in (run / page).read_text()


@pytest.mark.parametrize("command", ["sample", "compare"])
def test_images_depend_on_whatever_a_new_correction_opens(command, tmp_path):
    """When the weights that it names have been trained on, its images are refused (or made anew in a comparison)."""
    sampler = {"grid": GRID, "solver": {"kind": "euler"}}
    leaning = {**sampler, "corrections": [{"kind": "leaning", "run": str(tmp_path / "runs/other")}]}
    with member(Sampler, "corrections", Leaning):
        small(tmp_path, samplers={"leaning": leaning, "plain": sampler},
              compare={"solvers": [], "timed_images": 2, "rounds": 1})  # fmt: skip
        other = ["--set", "name=other", "--set", "seed=5"]
        snrkit(tmp_path, "train", "-q", *other)
        snrkit(tmp_path, "train", "-q")
        snrkit(tmp_path, command, "-q")
        folder = tmp_path / "runs/small" / ("samples" if command == "sample" else "compare/samples") / "leaning"
        made = lambda: json.loads((folder / "manifest.json").read_text())["named"]  # noqa: E731
        assert [(Path(run).name, images) for run, _, images in made()] == [("other", 320)]
        snrkit(tmp_path, "train", "-q", *other, "--set", "train.images=640")
        again = snrkit(tmp_path, command, "-q", check=False)
    if command == "sample":
        assert again.returncode == 1
        assert "(named differ)" in again.stderr
    else:
        assert again.returncode == 0
        assert [images for *_, images in made()] == [640]
