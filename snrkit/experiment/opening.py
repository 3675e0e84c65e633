"""From an experiment to the resources it names: data, network, denoiser."""

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snrkit.base.distributed import World, free_memory, in_bytes
from snrkit.base.errors import ConfigError
from snrkit.base.gradual import Gradual, finished
from snrkit.checkpoints.codec import ALONE, Codec, load_codec
from snrkit.data.dataset import AsksShape
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.experiment import ComputeConfig, Experiment
from snrkit.experiment.images import OpenedData, opening_data
from snrkit.experiment.models import Origin, Parts, TrainedHere, Weights
from snrkit.experiment.run import Run
from snrkit.networks.adapted import AdaptedModule
from snrkit.networks.compiling import compiled
from snrkit.sampling.sampler import Sampler, parse_seeds
from snrkit.training.config import TrainConfig
from snrkit.training.level_samplers import AnyLevels, LevelSampler, LevelsOfData
from snrkit.training.objective import Objective
from snrkit.training.task import Scalars, Task
from snrkit.training.weighting import beside

COMPILED_FROM = 2000  # steps of training for which `compute.compile: auto` compiles
STATES = 32  # bytes for each number of an image: its state, and two that are drawn ahead, in float64; two of float32
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Setting:
    """A model's parts, the images that it is asked about, and where it is asked."""

    parts: Parts
    data: OpenedData
    compute: ComputeConfig  # with every `auto` resolved
    seed: int
    world: World

    def cost(self, sampler: Sampler) -> int:
        """Network calls per image of a sampler. SnrkitError for what cannot work on images of this shape."""
        return self.parts.cost(sampler, self.data.dataset.shape)

    def condition(self, rows: Tensor) -> Cond:
        """What the network is told of images of the data set (n,), nothing of it left to chance; on the CPU."""
        dataset, says = self.data.dataset, scalars(self)
        labels = None if dataset.labels is None else dataset.labels[rows]
        told = None if says is None else says.told(rows, torch.ones(len(rows)))
        return Cond(labels, told, self.parts.network.conditioning.unaugmented(len(rows)))


@dataclass(frozen=True, slots=True)
class Opened:
    """An experiment with every `auto` resolved, and its setting."""

    experiment: Experiment
    setting: Setting

    @property
    def data(self) -> OpenedData:
        """The images of the setting."""
        return self.setting.data

    @property
    def world(self) -> World:
        """The processes and the device of the setting."""
        return self.setting.world

    def network(self) -> nn.Module:
        """The network that the experiment trains, freshly initialised. ConfigError for a model from elsewhere."""
        return open_network(self.experiment.training, self.setting)

    def task(self) -> Task:
        """The surroundings of its training. ConfigError for a model from elsewhere."""
        return open_task(self.experiment.training, self.setting)


def open_experiment(experiment: Experiment, world: World) -> Opened:
    """Open the data, measure what is `auto`, and check that data and network fit; no network is made or loaded.

    Returns the experiment with every `auto` resolved, and its setting on the device of `world`. Sets torch's global
    switches (TF32, determinism) as `compute` says. DataError for images that cannot be read, ConfigError where images,
    network, grids or precision do not fit, SnrkitError for images that are all one constant.
    """
    return finished(opening_experiment(experiment, world))


def opening_experiment(experiment: Experiment, world: World) -> Gradual[Opened]:
    """As `open_experiment`, saying how many images are read and measured."""
    parts, samplers = experiment.model.parts, experiment.samplers.values()
    compute = resolve_precision(experiment.compute, world.device, parts.precision_known)
    set_compute(compute, world.device)
    exact = any(sampler.start == "exact" for sampler in samplers)
    codec = _codec(experiment.model, world.device)
    data = yield from opening_data(experiment.data, parts.network, codec, exact, world.device)
    if experiment.model.trains and experiment.training.train.augment is not None and not data.representation.exact:
        raise ConfigError("train.augment: latents of a warped image are no warped latents; drop it.")
    for made in (parts.levels, *(sampler.grid for sampler in samplers)):
        if isinstance(made, AsksShape):
            made.check(data.dataset.shape)
    resolved = experiment.model_copy(update={"compute": compute, "data": data.source})
    setting = Setting(parts, data, compute, experiment.seed, world)
    most = max(len(parse_seeds(experiment.sample.seeds)), experiment.shift.images)
    for name, batch in (("sample.batch", experiment.sample.batch), ("shift.batch", experiment.shift.batch)):
        check_batch(name, min(batch, most), setting)
    return Opened(resolved, setting)


def _codec(model: Origin, device: torch.device) -> Codec | None:
    """The autoencoder of a model that encodes images itself; in training one by one, so that resuming sees the same."""
    asked = model.autoencoder()
    if asked is None:
        return None
    return load_codec(asked, device, "latents.path", ALONE) if model.trains else load_codec(asked, device)


def check_batch(name: str, images: int, setting: Setting) -> None:
    """ConfigError where the device cannot hold the states of a batch, whose option has a name."""
    needed, there = STATES * images * math.prod(setting.data.dataset.shape), free_memory(setting.world.device)
    if needed > there:
        raise ConfigError(
            f"{name}: the states of {images:,} images take {in_bytes(needed)}, and {setting.world.device} has "
            f"{in_bytes(there)} free; take fewer at once."
        )


def resolve_precision(compute: ComputeConfig, device: torch.device, known: bool = True) -> ComputeConfig:
    """`auto` made concrete: bf16 where a CUDA device has it, else fp32.

    fp32 too where it is not `known` in which precision a model was trained: rounding would be measured as shift.
    """
    if compute.precision != "auto":
        return compute
    quick = device.type == "cuda" and known and torch.cuda.is_bf16_supported()
    chosen = "bf16" if quick else "fp32"
    return compute.model_copy(update={"precision": chosen})


def set_compute(compute: ComputeConfig, device: torch.device) -> None:
    """Set torch's global switches as the experiment says."""
    if compute.precision == "fp16" and device.type != "cuda":
        raise ConfigError("compute.precision: fp16 needs a CUDA device; use bf16 or fp32 here.")
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
    if torch.are_deterministic_algorithms_enabled() != compute.deterministic:  # importing a compiler takes seconds
        torch.use_deterministic_algorithms(compute.deterministic, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = compute.tf32
    torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cudnn.benchmark = device.type == "cuda" and not compute.deterministic


def open_network(training: TrainedHere, setting: Setting) -> nn.Module:
    """The network that is trained, freshly initialised from the experiment's seed. ConfigError: it fits nowhere."""
    training.check_size(setting.data.dataset.shape)
    return training.make(setting.data.dataset.shape, setting.seed, setting.compute.checkpointing)


def open_task(training: TrainedHere, setting: Setting) -> Task:
    """The surroundings of training."""
    data, compute, world, train = setting.data, setting.compute, setting.world, training.train
    levels = level_sampler(training.levels, data)
    weighting, parts = beside(training.weighting, levels), training.parts
    objective = Objective(parts.process, parts.target, parts.precondition, levels, weighting, data.sigma_data)
    if (train.batch // train.slice) % (world.size * train.accumulate):
        raise ConfigError(
            f"train.batch: {train.batch // train.slice} slices of {train.slice} images do not divide over "
            f"{world.size} processes times accumulate {train.accumulate}; change batch, slice or processes."
        )
    return Task(
        train,
        objective,
        data.dataset,
        data.split.train,
        data.split.held,
        setting.seed,
        world,
        flip=data.source.flip,
        workers=data.source.workers,
        autocast=AUTOCAST[compute.precision],
        channels_last=compute.channels_last,
        compile=_worth_compiling(train, world.device) if compute.compile == "auto" else compute.compile,
        dropout=training.network.stochastic,
        scalars=scalars(setting),
        representation=data.representation,
    )


def _worth_compiling(train: TrainConfig, device: torch.device) -> bool:
    """Whether training goes on for longer on a GPU than compiling its network takes."""
    return device.type == "cuda" and train.images >= COMPILED_FROM * train.batch


def level_sampler(levels: AnyLevels, data: OpenedData) -> LevelSampler:
    """Where training looks; where that is another place for every image, made of the images once."""
    return data.measured.once(levels.open) if isinstance(levels, LevelsOfData) else levels


def scalars(setting: Setting) -> Scalars | None:
    """What the network is told of each image beside level and label, by the level sampler; None where it takes none."""
    levels = setting.parts.levels
    if levels is None or not setting.parts.network.conditioning.scalars:
        return None
    says = level_sampler(levels, setting.data)
    return says if isinstance(says, Scalars) else None


@dataclass(frozen=True, slots=True)
class Model:
    """A denoiser with the weights it was made from."""

    denoiser: Denoiser
    made_of: Weights
    run: Run

    @property
    def weights(self) -> str:
        """The name of an average, or network."""
        return self.made_of.name

    @property
    def images(self) -> int:
        """Seen by the checkpoint."""
        return self.made_of.images


def open_model(opened: Opened, run: Run, images: int | None = None) -> Model:
    """The denoiser of the newest checkpoint or that at `images`; weights: the longest average, or sample.average."""
    e = opened.experiment
    at = e.sample.checkpoint if images is None else images
    return open_weights(opened.setting, e, run, at, e.sample.average)


def open_weights(
    setting: Setting, trained: Experiment, run: Run, images: int | None = None, average: str | None = None
) -> Model:
    """The denoiser of any run of `trained`, on images as those of the setting."""
    compute, parts = setting.compute, trained.model.parts
    found = trained.model.find(run, images, average)
    network = trained.model.load(run, found, setting.data.dataset.shape, trained.seed)
    if parts.capabilities.spread:
        assert isinstance(network, AdaptedModule)
        network.tells_spread = True
    memory = torch.channels_last if compute.channels_last else torch.preserve_format
    network = network.to(device=setting.world.device).to(memory_format=memory).eval().requires_grad_(False)
    denoiser = NetworkDenoiser(
        compiled(network) if compute.compile is True else network,
        parts.process,
        parts.target,
        parts.precondition,
        float(trained.data.sigma_data),
        autocast=AUTOCAST[compute.precision],
        learned_variance=parts.capabilities.spread,
    )
    return Model(denoiser, found, run)
