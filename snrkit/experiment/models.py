"""What an experiment's model is: one that is trained here, or one from elsewhere.

Both give the same parts, from which denoisers, grids and measurements are made; only what trains asks for more.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import ConfigError, RunError, SnrkitError, ValueFaultError, reason_of
from snrkit.base.hub import fetched, on_hub
from snrkit.base.outline import outlined
from snrkit.base.tensors import not_finite
from snrkit.base.value import Value
from snrkit.checkpoints.foreign import Autoencoder, Described, Rebuilt, RunsCode, weights_of
from snrkit.checkpoints.models import AnyForeign
from snrkit.checkpoints.ours import checksum_of, list_checkpoints, load_checkpoint, newest_checkpoint
from snrkit.diffusion.denoiser import AnyPrecondition, EdmBlindPrecondition
from snrkit.diffusion.prediction import AnyTarget, PosteriorMean, Score
from snrkit.diffusion.process import AnyProcess, Ddpm, Flow
from snrkit.experiment.run import Run
from snrkit.networks import AnyTrained, check_storable, make_network, set_checkpointing
from snrkit.networks.foreign import Foreign
from snrkit.sampling.sampler import Sampler, dry_run
from snrkit.sampling.step import Capabilities
from snrkit.spectral.faults import training_faults
from snrkit.spectral.levels import SpectralBias
from snrkit.training.config import TrainConfig
from snrkit.training.ema import AnyAveraging, longest, made_afterwards
from snrkit.training.level_samplers import AnyLevels, widest
from snrkit.training.objective import LOWEST_LOGSNR
from snrkit.training.perturb import MixFlow
from snrkit.training.weighting import AnyWeighting

DRAWS = 4000  # of levels, that a weighting is tried at
FREE = ("save_every", "keep_last", "keep_every", "snapshot_every", "log_every", "holdout_every", "holdout_bins")
LATER = {"pairing": None, "stable_target": False}  # keys of `train` that came later: with these, earlier results stay


def without_later(train: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `train` as it was told before the keys of LATER were there, where they are as if they were not."""
    return {key: value for key, value in train.items() if key not in LATER or value != LATER[key]}


@dataclass(frozen=True, slots=True)
class Parts:
    """What every model has: how its states and its network's output are to be read."""

    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition
    network: AnyTrained | Foreign
    levels: AnyLevels | None  # where its training looked; None where that is not known
    capabilities: Capabilities
    precision_known: bool  # whether it is known in which precision it was trained

    def cost(self, sampler: Sampler, shape: tuple[int, int, int] = (1, 2, 2)) -> int:
        """Network calls per image (C, H, W) of a sampler. SnrkitError for whatever cannot work."""
        return dry_run(sampler, self.process, self.target, shape, self.levels)


@dataclass(frozen=True, slots=True)
class Weights:
    """Which weights of a model: the name of an average, or network, or of files; and the images that they have seen."""

    name: str
    images: int  # 0 where that is not known
    checksum: str  # tells weights of one name and count apart


class Origin(Protocol):
    """Where an experiment's model comes from, and all that any command asks of it."""

    trains: ClassVar[bool]  # whether the experiment trains it

    @property
    def parts(self) -> Parts:
        """What it is. ConfigError where a file cannot be read."""

    @property
    def averages(self) -> tuple[AnyAveraging, ...]:
        """The averages of weights that its training keeps."""

    def identity(self) -> dict[str, Any]:
        """What decides its weights beside seed and data, as plain data: a run directory holds one such model."""

    def faults(self, checkpointing: bool) -> Iterable[str]:
        """What is wrong between its parts."""

    def autoencoder(self) -> Autoencoder | None:
        """Of a latent model; None where states are images."""

    def find(self, run: Run, images: int | None, average: str | None) -> Weights:
        """Which weights are meant: the newest and the longest average where None. RunError where there are none."""

    def load(self, run: Run, weights: Weights, shape: tuple[int, int, int], seed: int) -> nn.Module:
        """The network with these weights, for states of `shape`, on the CPU. RunError where they do not fit."""


READ = ("process", "target", "precondition")  # parts that a file says of itself, beside its network


@contextmanager
def _possible(path: Path) -> Iterator[None]:
    """ConfigError where what a model's file says is none of the Values that it should be."""
    try:
        yield
    except ValueFaultError as error:
        raise ConfigError(f"model.path: {path} describes what is impossible ({error.said}).") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where, said = ".".join(map(str, fault["loc"])), str(fault["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"model.path: {path} describes an impossible {where} ({said}).") from None


class FromElsewhere(Value):
    """A model from elsewhere, which is taken as it is."""

    kind: Literal["elsewhere"] = "elsewhere"
    source: AnyForeign
    trains: ClassVar[bool] = False

    @cached_property
    def described(self) -> Described:
        """What its configuration says, read once."""
        with _possible(self.source.path):
            return self.here.describe()

    @cached_property
    def here(self) -> AnyForeign:
        """The source with its files on this machine. ConfigError where they cannot be fetched."""
        if self.code is not None and on_hub(self.code):
            raise ConfigError("model.module: code of the Hub is not run; fetch it, read it, and name your copy.")
        try:
            return fetched(self.source)
        except ConfigError as error:
            raise ConfigError(f"model.path: {error}") from None

    @property
    def code(self) -> Path | None:
        """The user's own file that opening it runs; None for models that are read without running anything."""
        return self.source.code if isinstance(self.source, RunsCode) else None

    def to_train(self) -> dict[str, Value | None]:
        """What is taken over of it to train it further, by the keys of a file. ConfigError where it cannot be."""
        found, source = self.described, self.here
        if not isinstance(source, Rebuilt):
            raise ConfigError(f"model.kind: a model of kind {source.kind} cannot be trained on.")
        with _possible(source.path):
            network = source.architecture()
        return {**{part: getattr(found, part) for part in READ}, "network": network, "latents": source.autoencoder()}

    @property
    def parts(self) -> Parts:
        found = self.described
        takes = found.network.conditioning
        able = Capabilities(
            takes.classes > 0, takes.unlabelled, takes.untold, takes.attends, found.network.learned_variance
        )
        return Parts(found.process, found.target, found.precondition, found.network, None, able, False)

    @property
    def averages(self) -> tuple[AnyAveraging, ...]:
        return ()

    def identity(self) -> dict[str, Any]:
        return {"model": self.source.model_dump(mode="json")}

    def faults(self, checkpointing: bool) -> Iterable[str]:
        return ()

    def autoencoder(self) -> Autoencoder | None:
        return self.here.autoencoder()

    def find(self, run: Run, images: int | None, average: str | None) -> Weights:
        _ = self.here  # refuses what may not be fetched
        name = weights_of(self.source)
        return Weights(name, 0, name)

    def load(self, run: Run, weights: Weights, shape: tuple[int, int, int], seed: int) -> nn.Module:
        return self.loaded()

    def loaded(self) -> nn.Module:
        """The network with its weights, on the CPU. RunError where these are not finite."""
        network = self.here.load()
        if wrong := not_finite(dict(network.named_parameters())):
            raise RunError(f"the model at {self.source.path} has weights that are not finite, {wrong} for one.")
        return network


class TrainedHere(Value):
    """A model that this experiment trains."""

    kind: Literal["trained"] = "trained"
    process: AnyProcess = Field(
        description="how a state mixes image and noise, at which levels, and the time that stands for a level"
    )
    target: AnyTarget = Field(description="what the network is trained to predict")
    precondition: AnyPrecondition = Field(
        description="how the network's input and output are scaled: c_in, c_skip and c_out of Karras et al. 2022"
    )
    levels: AnyLevels = Field(description="where training looks: the density of its noise levels")
    weighting: AnyWeighting = Field(description="how much each level counts in the loss, whatever the target")
    network: AnyTrained = Field(description="kind and size of the network that is trained")
    latents: Autoencoder | None = Field(
        default=None, description="the autoencoder whose latents of the images are the states; default: the images are"
    )
    train: TrainConfig = Field(description="length, rate, safeguards and checkpoints of training")
    trains: ClassVar[bool] = True

    @property
    def parts(self) -> Parts:
        takes, train = self.network.conditioning, self.train
        unlabelled = takes.classes > 0 and takes.unlabelled and train.label_dropout > 0
        able = Capabilities(takes.classes > 0, unlabelled, takes.untold and train.noise_dropout > 0, takes.attends)
        return Parts(self.process, self.target, self.precondition, self.network, self.levels, able, True)

    @property
    def averages(self) -> tuple[AnyAveraging, ...]:
        return self.train.averages

    def identity(self) -> dict[str, Any]:
        part = self.model_dump(mode="json", exclude={"kind"})
        part["train"] = without_later(part["train"])
        for free in FREE:
            part["train"].pop(free)
        if self.train.decay in ("constant", "rsqrt"):  # the length does not shape what came before: it may be extended
            part["train"].pop("images")
        if self.latents is not None:  # whose content the fingerprint of the states says
            part["latents"].pop("path")
        return part

    def faults(self, checkpointing: bool) -> Iterable[str]:
        train = self.train
        if train.batch % (train.slice * train.accumulate):
            unit = train.slice * train.accumulate
            below, above = train.batch // unit * unit, (train.batch // unit + 1) * unit
            near = f"{below} or {above}" if below else str(above)
            yield f"train.batch: {train.batch} is not a multiple of slice * accumulate = {unit}; take {near}"
        yield from _target_faults(self)
        yield from _blind_faults(self)
        yield from _network_faults(self, checkpointing)
        yield from _weighting_faults(self)
        takes, bias = self.network.conditioning, getattr(self.weighting, "bias", None)
        yield from training_faults(self.levels, bias, takes.classes, takes.scalars, augmented=train.augment is not None)
        if self.latents is not None and train.augment is not None:
            yield "train.augment: latents of a changed image are no changed latents; drop it"
        if isinstance(train.perturb, MixFlow) and not isinstance(self.process, Flow):
            yield f"train.perturb: mixflow is about the straight line of flow matching, not {self.process.kind}"
        if train.pairing is not None and (takes.classes or takes.scalars):
            yield (
                f"train.pairing: {train.pairing.kind} makes noise depend on what the network is told of an image "
                "(labels, scalars), and sampling does not; drop it, or what is told"
            )
        if train.stable_target:
            yield from _stable_target_faults(self)
        names = [value.name for value in train.averages]
        if len(set(names)) < len(names):
            yield "train.averages: two averages have the same name; give them other half-lives, decays or widths"

    def autoencoder(self) -> Autoencoder | None:
        return self.latents

    def find(self, run: Run, images: int | None, average: str | None) -> Weights:
        chosen = longest(self.train.averages, self.train.batch)
        name = average or (chosen.name if chosen else "network")
        path = checkpoint_path(run, images, name)
        return Weights(name, int(path.name), checksum_of(path, name))

    def load(self, run: Run, weights: Weights, shape: tuple[int, int, int], seed: int) -> nn.Module:
        self.check_size(shape)
        network = self.make(shape, seed)
        fill(network, run, weights)
        return network

    def check_size(self, shape: tuple[int, int, int]) -> None:
        """Refuse, before any memory is taken, a network that this machine cannot hold: ConfigError."""
        with outlined():
            count = sum(p.numel() for p in self.make(shape, 0).parameters())
        if (needed := 4 * count) > (there := free_memory(torch.device("cpu"))):
            raise ConfigError(
                f"network: {count:,} parameters take {in_bytes(needed)}, and this machine has {in_bytes(there)} free; "
                "make the network smaller."
            )

    def make(self, shape: tuple[int, int, int], seed: int, checkpointing: bool = False) -> nn.Module:
        """The network, freshly initialised. ConfigError where it cannot take such images."""
        try:
            network = make_network(self.network, shape, seed)
        except ValueError as error:
            raise ConfigError(f"network: {error}.") from None
        check_storable(network)
        set_checkpointing(network, checkpointing)
        return network


AnyModel = Annotated[TrainedHere | FromElsewhere, Field(discriminator="kind")]


def _target_faults(model: TrainedHere) -> Iterable[str]:
    """A posterior mean of another table than that of the process."""
    target, process = model.target, model.process
    if not isinstance(target, PosteriorMean):
        return
    if not isinstance(process, Ddpm):
        yield f"target: posterior_mean is of a table of levels, and process {process.kind} has none; take ddpm"
    elif (target.betas, target.steps) != (process.betas, process.steps):
        yield "target: posterior_mean is of another table than the process; give it the same betas and steps"


def _blind_faults(model: TrainedHere) -> Iterable[str]:
    """What asks for the level, or learns from losses, of images of a branch that says y itself instead of F."""
    train = model.train
    if not train.noise_dropout or not isinstance(model.precondition, EdmBlindPrecondition):
        return
    if isinstance(model.target, Score):
        yield "precondition: edm_blind has the untold branch say the score as it is, which grows as 1/sigma; use edm"
    for key in ("importance", "balance", "uncertainty"):
        if getattr(train, key) is not None:
            yield (
                f"train.{key}: it learns from losses, and with precondition edm_blind those of untold images are in "
                "other units; drop it, or use edm"
            )


def _network_faults(model: TrainedHere, checkpointing: bool) -> Iterable[str]:
    """What training asks of a network that it does not take or cannot do."""
    network, train = model.network, model.train
    takes, options = network.conditioning, type(network).model_fields
    its = f"a network of kind {network.kind}"
    if train.label_dropout and not takes.classes:
        remedy = "set network.classes or drop it" if "classes" in options else f"{its} takes none; drop it"
        yield f"train.label_dropout: has no effect without labels; {remedy}"
    elif train.label_dropout and not takes.unlabelled:
        yield f"train.label_dropout: {its} cannot be asked without a label (-1 in labels); drop it"
    if train.noise_dropout and not takes.untold:
        yield f"train.noise_dropout: {its} cannot be asked without the level (a NaN in time); drop it"
    if train.augment is not None and "augment" not in options:
        yield f"train.augment: {its} cannot be told of augmentation, which would leak into its images; drop it"
    elif (train.augment is None) == takes.augment:
        yield "train.augment: needs network.augment: true, and the other way round"
    if checkpointing and not network.blockwise:
        yield f"compute.checkpointing: has no effect on {its}, whose blocks it cannot compute again; drop it"


def _stable_target_faults(model: TrainedHere) -> Iterable[str]:
    """What makes the images that a state could be of others than those of a slice."""
    train = model.train
    others = {
        "train.noise_dropout": (train.noise_dropout, "without the level"),
        "train.perturb": (train.perturb, "of a state that is wrong on purpose"),
        "train.augment": (train.augment, "of one transform"),
        "network.scalars": (model.network.conditioning.scalars, "of one scalar"),
        "train.pairing": (train.pairing, "of noise that depends on images"),
        "levels.scope": (getattr(model.levels, "scope", "dataset") != "dataset", "of images with levels of their own"),
        "weighting.bias": (isinstance(getattr(model.weighting, "bias", 0), SpectralBias), "of images weighed apart"),
    }
    for key, (there, what) in others.items():
        if there:
            yield f"train.stable_target: the mean {what} is another than that of a slice; drop it or {key}"


def _weighting_faults(model: TrainedHere) -> Iterable[str]:
    """A weight that is not finite somewhere where training looks."""
    levels, process = model.levels, model.process
    sampler = widest(levels)
    if sampler is None:
        return
    draws = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    try:
        logsnr = process.snap(sampler.logsnr(draws, process))
    except SnrkitError as error:
        yield f"levels ({levels.kind}): {error}"
        return
    level = process.level(logsnr.clamp(min=LOWEST_LOGSNR))
    weight = model.weighting.weight(level, lambda: sampler.density(logsnr, process), 1.0)
    wrong = ~(weight.isfinite() & (weight >= 0))
    if wrong.any():
        yield (
            f"weighting: {model.weighting.kind} gives {float(weight[wrong][0]):g} at logsnr "
            f"{float(logsnr[wrong][0]):g}, which {levels.kind} draws on this process; choose another weighting"
        )


def checkpoint_path(run: Run, images: int | None, name: str = "network") -> Path:
    """The newest checkpoint or that at `images`, of what `snrkit average` made where that made it. RunError if none."""
    folder = run.averages(name) if made_afterwards(name) else run.checkpoints
    path = newest_checkpoint(folder) if images is None else folder / f"{images:09d}"
    if path is None and made_afterwards(name):
        raise RunError(f"{run.path} has no weights called '{name}'; make them with snrkit average.")
    if path is None:
        raise RunError(f"{run.path} has no checkpoint; run: snrkit train <the same file>.")
    if not path.is_dir():
        known = ", ".join(str(int(p.name)) for p in list_checkpoints(folder)) or "none"
        raise RunError(
            f"{run.path} has no checkpoint at {images} images; it has {known} (train.keep_last and train.keep_every "
            "decide how many are kept)."
        )
    return path


def read_weights(run: Run, weights: Weights) -> Mapping[str, Tensor]:
    """The tensors of weights that were trained in a run."""
    return load_checkpoint(checkpoint_path(run, weights.images, weights.name), only=weights.name).tensors[weights.name]


def fill(network: nn.Module, run: Run, weights: Weights) -> None:
    """Give a network the weights of a run. RunError where they are of another network."""
    try:
        network.load_state_dict(dict(read_weights(run, weights)))
    except RuntimeError as error:
        raise RunError(f"the checkpoint in {run.checkpoints} is of another network ({reason_of(error)}).") from None
