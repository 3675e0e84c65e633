"""From an experiment to the resources it names: data, network, denoiser."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from types import FrameType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError, SnrkitError, Stopped
from snrkit.base.files import disk_errors, write_bytes
from snrkit.checkpoints.codec import Codec, encoded, load_codec
from snrkit.data.dataset import Dataset, Moments, Split, moments, restrict, split
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.experiment import ComputeConfig, Experiment
from snrkit.experiment.run import Run
from snrkit.networks import AnyNetwork
from snrkit.networks.embed import AUGMENT_PARAMETERS
from snrkit.networks.foreign import Foreign
from snrkit.spectral.grid import SpectralGrid
from snrkit.spectral.levels import SpectralLevels, Tables, told_ends
from snrkit.spectral.measure import measure_spectra
from snrkit.spectral.model import SpectrumModel, fit_spectrum_model, load_spectrum_model
from snrkit.spectral.schedule import check_square
from snrkit.spectral.spectra import Spectra
from snrkit.spectral.tabulated import Tabulated
from snrkit.training.level_samplers import LevelSampler
from snrkit.training.objective import Objective
from snrkit.training.train import Task

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Opened:
    """An experiment with its data open and every `auto` resolved."""

    experiment: Experiment
    dataset: Dataset  # as the network sees it: without labels where it takes none
    labelled: Dataset  # the images as the source gives them, for metrics
    split: Split
    moments: Moments | None  # where something needs them
    world: World
    spectra: Callable[[], Spectra]  # of all images, measured when first asked for
    codec: Codec | None = None  # between images and states, for latent models

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation, as given or as measured."""
        return float(self.experiment.data.sigma_data)

    @property
    def ways(self) -> tuple[bool, ...]:
        """The values of `mirrored` that together show every image as training does."""
        return (False, True) if self.experiment.data.flip else (False,)

    def images(self, x0: Tensor) -> Tensor:
        """The images that clean states (n, *) are."""
        return x0 if self.codec is None else self.codec.decode(x0)

    def shown(self, rows: Sequence[int], mirrored: bool = False) -> Tensor:
        """Images (n, C, H, W) as training shows them: with data.flip every second is mirrored, or every other one."""
        x0 = self.dataset.x0(rows)
        if not self.experiment.data.flip:
            return x0
        turned = (torch.arange(len(x0)) % 2 == 1) != mirrored
        return torch.where(turned[:, None, None, None], x0.flip(3), x0)


def open_experiment(experiment: Experiment, world: World) -> Opened:
    """Open the data, measure what is `auto`, and check that data and network fit."""
    compute = resolve_precision(experiment.compute, world.device, experiment.model.parts.precision_known)
    experiment = experiment.model_copy(update={"compute": compute})
    set_compute(experiment.compute, world.device)
    dataset = experiment.data.open()
    if experiment.data.only is not None:
        dataset = restrict(dataset, experiment.data.only)
    if experiment.data.workers and not dataset.streams:
        raise ConfigError(f"data.workers: has no effect, as {dataset.name} is held in memory; drop it.")
    images, codec = dataset, _codec(experiment, world.device)
    dataset = dataset if codec is None else encoded(dataset, codec)
    _check_fit(experiment.network, dataset, codec is not None)
    parts = split(dataset.count, experiment.data.holdout)
    measured = None
    if experiment.data.sigma_data == "auto" or any(s.start == "exact" for s in experiment.samplers.values()):
        measured = moments(dataset, parts.train)
    if experiment.data.sigma_data == "auto":
        assert measured is not None
        if measured.variance <= 0:
            raise SnrkitError(f"{dataset.name}: all images are one constant; give data.sigma_data as a number.")
        data = experiment.data.model_copy(update={"sigma_data": round(measured.sigma_data, 6)})
        experiment = experiment.model_copy(update={"data": data})
    seen = dataset if experiment.network.classes else replace(dataset, labels=None, classes=0)
    if experiment.spectral or any(isinstance(s.grid, SpectralGrid) for s in experiment.samplers.values()):
        check_square(dataset.shape)
    spectra = cache(partial(measure_spectra, dataset, parts, world.device))
    return Opened(experiment, seen, images, parts, measured, world, spectra, codec)


def _check_fit(network: AnyNetwork | Foreign, dataset: Dataset, latent: bool) -> None:
    """ConfigError where a network has other shapes or labels than its states; `latent`: these are an autoencoder's."""
    classes = network.classes
    if isinstance(network, Foreign) and network.shape != dataset.shape:
        ours, theirs = _shape(dataset.shape), _shape(network.shape)
        if latent:
            raise ConfigError(f"model.vae: its latents of these images are {ours}, and the model's states {theirs}.")
        raise ConfigError(f"data: images are {ours}, and the model's {theirs}; give images of that size.")
    if isinstance(network, Foreign) and classes not in (0, dataset.classes):
        raise ConfigError(
            f"data: the model has {classes} labels, but {dataset.name} has {dataset.classes}; use images with the "
            "model's labels, or name its last label by model.null_label where that means none."
        )
    if classes and classes != dataset.classes:
        raise ConfigError(
            f"network.classes: {classes}, but {dataset.name} has {dataset.classes}; set it to that, or 0."
        )


def _codec(experiment: Experiment, device: torch.device) -> Codec | None:
    """Between images and states, for a latent model."""
    asked = experiment.model.autoencoder()
    if asked is None:
        return None
    if experiment.data.flip:
        raise ConfigError("data.flip: latents of a mirrored image are no mirrored latents; drop it.")
    return load_codec(asked, device)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


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
    torch.use_deterministic_algorithms(compute.deterministic, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = compute.tf32
    torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cudnn.benchmark = device.type == "cuda" and not compute.deterministic


def open_network(opened: Opened) -> nn.Module:
    """The network that the experiment trains, freshly initialised from its seed."""
    e = opened.experiment
    return e.training.make(opened.dataset.shape, e.seed, e.compute.checkpointing)


def open_task(opened: Opened) -> Task:
    """The surroundings of training. ConfigError for a model from elsewhere."""
    e, compute = opened.experiment, opened.experiment.compute
    tables = spectral_tables(opened)
    objective = Objective(e.process, e.target, e.precondition, level_sampler(opened), e.weighting, opened.sigma_data)
    if (e.train.batch // e.train.slice) % (opened.world.size * e.train.accumulate):
        raise ConfigError(
            f"train.batch: {e.train.batch // e.train.slice} slices of {e.train.slice} images do not divide over "
            f"{opened.world.size} processes times accumulate {e.train.accumulate}; change batch, slice or processes."
        )
    return Task(
        e.train, objective, opened.dataset, opened.split.train, opened.split.held, e.seed, opened.world,
        flip=e.data.flip, workers=e.data.workers, autocast=AUTOCAST[compute.precision],
        channels_last=compute.channels_last, compile=compute.compile,
        dropout=getattr(e.network, "dropout", 0.0) > 0, tables=tables, tells_ends=bool(e.network.scalars),
    )  # fmt: skip


def spectral_tables(opened: Opened) -> Tables | None:
    """The schedules of all images, where levels are spectral."""
    levels = opened.experiment.spectral
    return None if levels is None else levels.tables(opened.spectra())


def level_sampler(opened: Opened) -> LevelSampler:
    """Where training looks: with spectral levels, the schedule of the mean spectrum."""
    levels = opened.experiment.levels
    if not isinstance(levels, SpectralLevels):
        return levels
    return Tabulated(levels.schedule.table(opened.spectra().mean[None]))


def condition_of(opened: Opened, rows: Tensor) -> Cond:
    """What the network is told of images of the data set (n,): labels, the ends of their schedules; on the CPU."""
    e, dataset = opened.experiment, opened.dataset
    labels = None if dataset.labels is None else dataset.labels[rows]
    augment = torch.zeros(len(rows), AUGMENT_PARAMETERS) if e.network.augment else None
    ends = None
    if e.network.scalars and e.spectral is not None:
        power, of_image = opened.spectra().scoped(e.spectral.scope)
        ends = told_ends(*e.spectral.schedule.ends(power[of_image[rows]]))
    return Cond(labels, ends, augment)


def open_spectrum_model(opened: Opened, run: Run) -> SpectrumModel:
    """The run's model of spectra, fitted to the images it is trained on and written when first asked for."""
    world = opened.world
    if not run.spectra.exists() and world.leads:
        model = fit_spectrum_model(opened.spectra())
        with disk_errors(f"writing {run.spectra}", "free space and run the same command again"):
            write_bytes(run.spectra, save(model.tensors()))
    world.barrier()
    try:
        found = load_spectrum_model(load(run.spectra.read_bytes()))
    except (OSError, SafetensorError, TypeError):
        raise RunError(f"{run.spectra} is damaged; delete it and run the same command again.") from None
    shape = (opened.dataset.shape[1] // 2 + 1, opened.dataset.classes if opened.dataset.labels is not None else 0)
    if (len(found.mean), len(found.class_means)) != shape:
        raise RunError(f"{run.spectra} is of other images; delete it and run the same command again.")
    return found


@dataclass(frozen=True, slots=True)
class Model:
    """A denoiser with the weights it was made from."""

    denoiser: Denoiser
    weights: str  # the name of an average, or network
    images: int  # seen by the checkpoint
    run: Run


def open_model(opened: Opened, run: Run, images: int | None = None) -> Model:
    """The denoiser of the newest checkpoint or that at `images`; weights: the longest average, or sample.average."""
    e = opened.experiment
    return open_weights(opened, e, run, e.sample.checkpoint if images is None else images, e.sample.average)


def open_weights(
    opened: Opened, trained: Experiment, run: Run, images: int | None = None, average: str | None = None
) -> Model:
    """The denoiser of any run of `trained`, on images as those of `opened`."""
    e = opened.experiment
    found = trained.model.find(run, images, average)
    network = trained.model.load(run, found, opened.dataset.shape, trained.seed)
    memory = torch.channels_last if e.compute.channels_last else torch.preserve_format
    network = network.to(device=opened.world.device).to(memory_format=memory).eval().requires_grad_(False)
    caller = torch.compile(network) if e.compute.compile else network
    denoiser = NetworkDenoiser(
        caller, trained.process, trained.target, trained.precondition, float(trained.data.sigma_data),
        autocast=AUTOCAST[e.compute.precision],
    )  # fmt: skip
    return Model(denoiser, found.name, found.images, run)


class Stop:
    """Whether the user or the system asked us to stop."""

    asked = False

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal; the second of its kind ends the process at once."""
        self.asked = True
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within the block SIGINT and SIGTERM set a flag instead of ending the process."""
    stop = Stop()
    before = {s: signal.signal(s, stop.ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Within the block ctrl-C ends the command with a sentence that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {what} so far is kept. To go on, run the same command again.") from None
