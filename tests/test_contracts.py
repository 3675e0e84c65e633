"""Contracts in full: what a test defines for itself goes through every command and is seen wherever others are.

Each of these was a second half that nobody had written down: a solver got the reference of another, a correction's
weights stayed out of the manifest.
"""

import json
from pathlib import Path
from shutil import rmtree
from typing import ClassVar, Literal

import pytest
import torch
import yaml

from snrkit.base.value import Value
from snrkit.checkpoints.foreign import Described
from snrkit.data.dataset import Source, memory_dataset
from snrkit.diffusion.denoiser import EdmPrecondition
from snrkit.diffusion.prediction import X0
from snrkit.diffusion.process import Edm
from snrkit.experiment.experiment import Experiment, parse_experiment
from snrkit.experiment.models import FromElsewhere, TrainedHere
from snrkit.networks.foreign import Foreign
from snrkit.sampling.grid import UniformLogsnr
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers.ancestral import Ancestral
from snrkit.sampling.step import NamedWeights, Range
from snrkit.training.level_samplers import LogNormal
from snrkit.training.weighting import EdmWeighting
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
        assert [(Path(run).name, images) for run, _, images, _ in made()] == [("other", 320)]
        snrkit(tmp_path, "train", "-q", *other, "--set", "train.images=640")
        again = snrkit(tmp_path, command, "-q", check=False)
        if command == "sample":
            rmtree(tmp_path / "runs/other")
            snrkit(tmp_path, "train", "-q", *other, "--set", "seed=6")
            retrained = snrkit(tmp_path, command, "-q", check=False)
            scored = snrkit(tmp_path, "eval-fid", "-q", check=False)
    if command == "sample":
        for refused in (again, retrained, scored):  # the last two: as many images seen, by other weights
            assert refused.returncode == 1
            assert "(named differ)" in refused.stderr
    else:
        assert again.returncode == 0
        assert [images for _, _, images, _ in made()] == [640]


class Stripes(Source):
    """Grey stripes of random width: a data set of one class."""

    kind: Literal["stripes"] = "stripes"
    count: int = 400

    def open(self):
        widths = 1 + torch.arange(self.count) % 4
        rows = (torch.arange(8)[None] // widths[:, None]) % 2
        return memory_dataset("stripes", (rows[:, None, :, None] * 255).expand(-1, 1, -1, 8).to(torch.uint8))


class Even(Value):
    """A grid of even steps in logsnr under another name."""

    kind: Literal["even"] = "even"
    steps: int = 4

    def levels(self, process):
        return UniformLogsnr(steps=self.steps).levels(process)


class Tenfold(Value):
    """The weighting of EDM, so many times."""

    kind: Literal["tenfold"] = "tenfold"
    times: float = 1.0

    def weight(self, level, density, sigma_data):
        return self.times * EdmWeighting().weight(level, density, sigma_data)


class Moved(Value):
    """The level sampler of EDM, moved."""

    kind: Literal["moved"] = "moved"
    mean: float = -1.2

    def logsnr(self, u, process):
        return LogNormal(mean=self.mean).logsnr(u, process)

    def density(self, logsnr, process):
        return LogNormal(mean=self.mean).density(logsnr, process)


class Bright(Value):
    """Levels that must have seen the images."""

    kind: Literal["bright"] = "bright"

    def open(self, images):
        return LogNormal(mean=float(images.dataset.x0(range(5)).mean()))


class Constant(Value):
    """A model from elsewhere without a file format: EDM's preconditioning round a network that answers 0."""

    kind: Literal["constant"] = "constant"
    path: Path

    def describe(self):
        return Described(Edm(), X0(), EdmPrecondition(), Foreign(shape=(1, 8, 8)), sigma_data=0.5)

    def autoencoder(self):
        return None

    def load(self):
        return Zero()


class Zero(torch.nn.Module):
    def forward(self, x, time, cond=None):
        return torch.zeros_like(x)


def test_a_new_data_set_and_a_new_grid_go_the_whole_way(tmp_path):
    """From a file that names them to scores, shifts and the report; the grid samples as the one that it copies."""
    samplers = {
        name: {"grid": {"kind": kind, "steps": 4}, "solver": {"kind": "euler"}}
        for name, kind in (("mine", "even"), ("twin", "uniform_logsnr"))
    }
    network = {**SMALL["network"], "classes": 0}
    with member(Experiment, "data", Stripes), member(Sampler, "grid", Even):
        small(tmp_path, samplers=samplers, data={"kind": "stripes"}, network=network,
              train={**TRAIN, "label_dropout": 0.0})  # fmt: skip
        for command in ("train", "sample", "measure-shift", "eval-fid"):
            snrkit(tmp_path, command, "-q")
        snrkit(tmp_path, "report")
    run = tmp_path / "runs/small"
    assert (run / "samples/mine.png").read_bytes() == (run / "samples/twin.png").read_bytes()
    assert "stripes, training split" in json.loads((run / "metrics/mine.json").read_text())["reference"]
    assert "Data stripes" in (run / "report.md").read_text()


class Dimmed(Value):
    """A correction that scales the state; a model without labels it refuses."""

    kind: Literal["dimmed"] = "dimmed"
    by: float = 0.0
    tunable: ClassVar[dict[str, Range]] = {"by": Range(0.0, 0.0, 0.4, coarse=0.2, fine=0.1)}

    def after(self, step):
        return step.x_next * (1 - self.by)

    def missing(self, model):
        return None if model.labels else "needs labels"


def test_a_new_correction_is_tuned_and_refused_where_it_cannot_act(tmp_path):
    """`tune` looks for its coefficient in its range; a model that it does not allow is named."""
    sampler = {"grid": GRID, "solver": {"kind": "euler"}, "corrections": [{"kind": "dimmed", "by": 0.1}]}
    with member(Sampler, "corrections", Dimmed):
        small(tmp_path, samplers={"mine": sampler}, tune={"seeds": "1000-1063"})
        snrkit(tmp_path, "train", "-q")
        snrkit(tmp_path, "tune", "-q", "--by", "fd")
        found = json.loads((tmp_path / "runs/small/tune/mine.json").read_text())
        plain = ["--set", "network.classes=0", "--set", "train.label_dropout=0"]
        refused = snrkit(tmp_path, "sample", *plain, check=False)
    assert found["parameters"] == ["corrections.0.by"]
    assert 0 <= found["found"]["fd"]["values"][0] <= 0.4
    assert "(dimmed): needs labels" in refused.stderr


def test_a_new_weighting_and_a_new_level_sampler_train(tmp_path):
    """As the ones that they copy, bit for bit; with other options elsewhere, which the run directory holds apart."""
    train = {**TRAIN, "log_every": 64}
    arms = {
        "mine": ({"kind": "moved"}, {"kind": "tenfold"}), "twin": ({"kind": "lognormal"}, {"kind": "edm"}),
        "moved": ({"kind": "moved", "mean": 1.0}, {"kind": "edm"}),
        "more": ({"kind": "moved"}, {"kind": "tenfold", "times": 10.0}),
    }  # fmt: skip
    losses = {}
    with member(TrainedHere, "levels", Moved), member(TrainedHere, "weighting", Tenfold):
        for name, (levels, weighting) in arms.items():
            small(tmp_path, name=name, levels=levels, weighting=weighting, train=train)
            snrkit(tmp_path, "train", "-q")
            lines = (tmp_path / "runs" / name / "train.jsonl").read_text().splitlines()
            losses[name] = [found["loss"] for line in lines if "loss" in (found := json.loads(line))]
        refused = snrkit(tmp_path, "train", "-q", "--set", "weighting.times=3", check=False)
    assert losses["mine"] == losses["twin"]
    assert losses["moved"] != losses["twin"]
    assert losses["more"][0] == pytest.approx(10 * losses["twin"][0], rel=1e-6)
    assert "weighting" in refused.stderr


def test_levels_of_the_data_need_nothing_but_to_be_opened(tmp_path):
    """They train at what they opened, bit for bit."""
    train, losses = {**TRAIN, "log_every": 64}, []
    mean = float(parse_experiment(SMALL, "small").data.open().x0(range(5)).mean())
    with member(TrainedHere, "levels", Bright):
        for levels in ({"kind": "bright"}, {"kind": "lognormal", "mean": mean}):
            small(tmp_path, name=levels["kind"], levels=levels, train=train)
            snrkit(tmp_path, "train", "-q")
            lines = (tmp_path / "runs" / levels["kind"] / "train.jsonl").read_text().splitlines()
            losses.append([found["loss"] for line in lines if "loss" in (found := json.loads(line))])
    assert losses[0] == losses[1]


def test_a_new_kind_of_model_from_elsewhere_goes_the_whole_way(tmp_path):
    """It brings process, target, preconditioning and sigma_data; its images are those of Gaussian data, whose mean is
    the best answer of a network that says 0."""
    (tmp_path / "weights").write_text("none are needed")
    content = {key: SMALL[key] for key in ("shift", "metrics", "sample", "samplers")}
    content |= {"name": "small", "model": {"kind": "constant", "path": str(tmp_path / "weights")},
                "data": {**SMALL["data"], "sigma_data": 0.5}}  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    with member(FromElsewhere, "source", Constant):
        for command in ("sample", "measure-shift", "eval-fid"):
            snrkit(tmp_path, command, "-q")
        snrkit(tmp_path, "report")
        refused = snrkit(tmp_path, "train", "-q", check=False)
    run = tmp_path / "runs/small"
    page = (run / "report.md").read_text()
    assert "a model from elsewhere, constant at" in page
    assert "| euler |" in page
    assert json.loads((run / "samples/euler/manifest.json").read_text())["weights"].startswith("constant-")
    assert "taken as it is" in refused.stderr
