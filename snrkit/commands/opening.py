"""Opening an experiment and its model for a command: shown while it lasts, and what a user should know is said once.

Of the images what was changed as they were read, of a model whose code is the user's own that it is run. What is opened
counts for the bars of progress.py what the network evaluates and what is read of the images.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor

from snrkit.base.distributed import World
from snrkit.commands.progress import EVALUATIONS, READINGS, bar, count, follow, loading, log
from snrkit.data import AnySource, Latents
from snrkit.data.dataset import Dataset, Reader
from snrkit.data.measured import Measured
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.images import OpenedData
from snrkit.experiment.models import FromElsewhere
from snrkit.experiment.opening import Model, Opened, Setting, open_model, opening_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.scorer import Scorer, opening_scorer
from snrkit.metrics.config import MetricsConfig


def open_aloud(experiment: Experiment, world: World, quiet: bool = False) -> Opened:
    """As open_experiment; the leading process says what was changed of the images."""
    with bar(f"opening {experiment.name}", shown=world.leads and not quiet):
        opened = follow(opening_experiment(experiment, world), world.leads and not quiet)
    say_conversions(opened.data.labelled, world)
    return replace(opened, setting=replace(opened.setting, data=_counting(opened.data)))


def _counting(data: OpenedData) -> OpenedData:
    """The same images, with what is read of them counted."""
    dataset = counted(data.dataset)
    measured = Measured(dataset, data.measured.split, data.measured.device)
    return replace(data, dataset=dataset, labelled=counted(data.labelled), measured=measured)


def counted(dataset: Dataset) -> Dataset:
    """The same images, with what is read of them counted."""
    return replace(dataset, pixels=_Counted(dataset.pixels))


@dataclass(frozen=True, slots=True)
class _Counted:
    """Reads images, and counts them; a plain object, as ImageReader is."""

    read: Reader

    def __call__(self, indices: Sequence[int]) -> Tensor:
        found = self.read(indices)
        count(READINGS, len(indices))
        return found


def open_model_aloud(opened: Opened, run: Run, images: int | None = None) -> Model:
    """As open_model; the leading process says which file of code is run for it. Its evaluations are counted."""
    model = opened.experiment.model
    if isinstance(model, FromElsewhere) and model.code is not None and opened.world.leads:
        _say(f"model: the code of {model.code} is run, as kind {model.source.kind} asks")
    with bar("opening the model", shown=opened.world.leads):
        found = open_model(opened, run, images)
    network = found.denoiser.module if isinstance(found.denoiser, NetworkDenoiser) else None
    if network is not None:
        network.register_forward_hook(_evaluated)
    return found


def open_scorer_aloud(setting: Setting, config: MetricsConfig, shown: bool) -> Scorer:
    """As open_scorer; what scores need is imported first, which takes seconds, and its modules are counted."""
    with loading("importing what scores need", shown):
        for name in ("torch_fidelity.metric_isc", "torch_fidelity.metric_prc"):
            importlib.import_module(name)
    return follow(opening_scorer(setting, config), shown)


def _evaluated(network: object, given: tuple[Any, ...], answer: object) -> None:
    """After an evaluation of the network, of states (B, *) that come first."""
    count(EVALUATIONS, len(given[0]))


def confirm_images(source: AnySource, world: World) -> None:
    """Before a training on latents begins: read the images that it names, and refuse others, DataError; said once."""
    if isinstance(source, Latents) and source.unread and world.leads:
        _say("data.of: its images are read once, to see that the latents are of these")
        with bar("reading the images of the latents"):
            source.confirm()


def say_conversions(dataset: Dataset, world: World) -> None:
    """What was changed of images as they were read, in one line, unless this process said it before."""
    if world.leads and dataset.conversions:
        changes = ", ".join(f"{count:,} {words}" for words, count in dataset.conversions.items())
        _say(f"data: of the images read, {changes}")


@cache
def _say(line: str) -> None:
    log.warning(line)
