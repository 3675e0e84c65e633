"""Folders that diffusers saves: a pipeline, or a model beside its scheduler. Needs the extra `diffusers`.

The scheduler's configuration says how the network was trained: its table of levels (the scheduler's own
`alphas_cumprod`), what it predicts, and in which scaling its states are. The model's says shape and labels. Weights are
read as safetensors, or by torch's reader that runs no code; nothing is downloaded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.betas import TrainedBetas
from snrkit.checkpoints.foreign import LEARNED, Described
from snrkit.checkpoints.texts import KINDS, Texted, find_texts
from snrkit.denoiser import AnyPrecondition, EdmPrecondition, NoPrecondition
from snrkit.errors import ConfigError
from snrkit.networks.foreign import Foreign
from snrkit.prediction import X0, AnyTarget, Cond, Eps, FlowVelocity, V
from snrkit.process import AnyProcess, Ddpm, Edm, Flow
from snrkit.value import Value

TARGETS: dict[str, AnyTarget] = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}
PLAIN = NoPrecondition()
RENAMED: dict[tuple[str, str], str] = {  # classes of older folders, by the norm that told them apart
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel"
}
PARTS = ("unet", "transformer")
LARGEST_JSON = 2**20  # bytes
LONGEST_TABLE = 10**5  # entries
LARGEST_NUMBER, MOST_LAYERS = 2**24, 200  # in a configuration
LAYERS = ("layers_per_block", "num_layers", "num_single_layers")


class DiffusersModel(Value):
    """A folder of diffusers, with a UNet2DModel, a DiTTransformer2DModel, or a transformer of SD3, FLUX or Sana."""

    kind: Literal["diffusers"] = "diffusers"
    path: Path
    scheduler: Path | None = Field(None, description="folder of its scheduler_config.json; default: beside the model")
    null_label: int | None = Field(None, ge=0, description="the label that means none, where guidance drops it")
    vae: Path | None = Field(None, description="folder of its autoencoder; default: the pipeline's own, if it has one")
    prompts: Path | None = Field(None, description="safetensors of text embeddings, for SD3, FLUX and Sana")
    sides: tuple[int, int] | None = Field(None, description="of latents; default: the configuration's sample_size")
    guidance: float = Field(3.5, description="what FLUX's distilled guidance is told")

    def describe(self) -> Described:
        """Read the configurations of model and scheduler."""
        name, config = class_of(self._folder() / "config.json", self.path)
        clock = _clock(diffusers_package(), self._scheduler())
        network = self._network(name, config)
        learned = config.get("out_channels") == 2 * network.shape[0]
        notes = clock.notes + ((LEARNED,) if learned else ())
        network = network.model_copy(update={"notes": notes})
        return Described(clock.process, clock.target, clock.precondition, network, clock.sigma_data)

    def load(self) -> nn.Module:
        """The network with its weights."""
        package, folder = diffusers_package(), self._folder()
        name, config = class_of(folder / "config.json", self.path)
        clock, network = _clock(package, self._scheduler()), self._network(name, config)
        inner = pretrained(package, name, config, folder, "path")
        if name in KINDS:
            return Texted(inner.float(), name, find_texts(self.prompts, name), clock.factor, self.guidance)
        null = network.classes if self.null_label is None else self.null_label
        return Adapted(inner.float(), network, null, clock)

    def autoencoder(self) -> Path | None:
        """Where the autoencoder is, for a latent model."""
        own = self.path / "vae"
        return self.vae or (own if own.is_dir() else None)

    def _network(self, name: str, config: Mapping[str, Any]) -> Foreign:
        """Shape and labels."""
        shape = _shape(config, self.sides, KINDS[name].packed if name in KINDS else 1)
        if name in KINDS:
            texts = find_texts(self.prompts, name)
            return Foreign(shape=shape, classes=texts.classes, null_label=texts.negative and texts.classes > 0)
        if self.prompts is not None:
            raise ConfigError(f"model.prompts: has no effect on a {name}, which is told no text; drop it.")
        return _labelled(name, config, shape, self.null_label)

    def _folder(self) -> Path:
        """Where the model's own config.json is."""
        if not self.path.is_dir():
            raise ConfigError(f"model.path: {self.path} is no folder; diffusers saves folders with a config.json.")
        return next((self.path / part for part in PARTS if (self.path / part).is_dir()), self.path)

    def _scheduler(self) -> Path:
        places = [self.path / "scheduler", self._folder(), self.path.parent / "scheduler"]
        for place in places if self.scheduler is None else [self.scheduler]:
            if (place / "scheduler_config.json").is_file():
                return place / "scheduler_config.json"
        raise ConfigError(
            f"model.scheduler: no scheduler_config.json in {self.scheduler or places[0]}; name the folder that has it, "
            "as it says which noise the network was trained at."
        )


def pretrained(package: ModuleType, name: str, config: Mapping[str, Any], folder: Path, key: str) -> Any:
    """The module of a class with the weights of a folder, which `model.<key>` names. ConfigError without them."""
    kind = getattr(package, name)
    check_size(kind, config, folder)
    try:
        lean = package.utils.is_accelerate_available()
        return kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=lean)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.{key}: {folder} has no weights that {name} can read ({reason}).") from None


def check_size(kind: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a configuration of a larger network than the folder's weights can fill, before it takes memory."""
    whole = [value for value in config.values() if isinstance(value, int)]
    layers = [config[key] for key in LAYERS if isinstance(config.get(key), int)]
    rows = [len(value) for value in config.values() if isinstance(value, list)]
    if max(whole, default=0) > LARGEST_NUMBER or max([*layers, *rows], default=0) > MOST_LAYERS:
        raise ConfigError(f"model.path: {folder / 'config.json'} describes no network of a possible size.")
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in kind.from_config(config).parameters())
    except (TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.path: {folder / 'config.json'} describes no network ({reason}).") from None
    if count > stored:  # a byte for each, at the least
        raise ConfigError(f"model.path: {folder} has {stored:,} bytes of weights, for a network of {count:,} numbers.")


def diffusers_package() -> ModuleType:
    """The package; ConfigError says how to install it."""
    try:
        import diffusers
    except ImportError:
        raise ConfigError("the package diffusers is not installed; pip install 'snrkit[diffusers]'.") from None
    return diffusers


def class_of(path: Path, asked: Path) -> tuple[str, dict[str, Any]]:
    """(the class that a configuration names, the configuration)."""
    if not path.is_file():
        raise ConfigError(f"model.path: {asked} has no {path.name}, as folders of diffusers have.")
    if path.stat().st_size > LARGEST_JSON:
        raise ConfigError(f"model.path: {path} is too large for a configuration.")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError):
        raise ConfigError(f"model.path: {path} is not valid JSON.") from None
    if not isinstance(content, dict) or not isinstance(content.get("_class_name"), str):
        raise ConfigError(f"model.path: {path} names no class (_class_name), as folders of diffusers do.")
    renamed = RENAMED.get((content["_class_name"], str(content.get("norm_type"))))
    return renamed or content["_class_name"], content


def _shape(config: Mapping[str, Any], sides: tuple[int, int] | None, packed: int) -> tuple[int, int, int]:
    """(C, H, W) of a model's states."""
    try:
        size = config["sample_size"] if sides is None else sides
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return int(config["in_channels"]) // packed, int(height), int(width)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            "model.sides: the model's config.json does not say the size of its states; give sides: [H, W]."
        ) from None


def _labelled(name: str, config: Mapping[str, Any], shape: tuple[int, int, int], null_label: int | None) -> Foreign:
    """Shape and labels of a model that is told labels or nothing."""
    if name == "DiTTransformer2DModel":
        return Foreign(shape=shape, classes=int(config.get("num_embeds_ada_norm") or 1000), null_label=True)
    if name == "UNet2DModel":
        labels = int(config.get("num_class_embeds") or 0)
        if null_label is not None and null_label != labels - 1:
            raise ConfigError(f"model.null_label: the model has {labels} labels, and only its last can mean none.")
        return Foreign(shape=shape, classes=labels - (null_label is not None), null_label=null_label is not None)
    known = ", ".join(("UNet2DModel", "DiTTransformer2DModel", *KINDS))
    raise ConfigError(f"model.path: a {name} cannot be read; these can: {known}.")


@dataclass(frozen=True, slots=True)
class Clock:
    """What a scheduler says of how its network was trained."""

    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition = PLAIN
    factor: float = 1.0  # from snrkit's time to the network's
    sign: float = 1.0  # of its output
    sigma_data: float | None = None
    notes: tuple[str, ...] = ()


def _clock(package: ModuleType, path: Path) -> Clock:
    name, config = class_of(path, path)
    maker, base = getattr(package, name, None), package.SchedulerMixin
    if not isinstance(maker, type) or not issubclass(maker, base):
        raise ConfigError(f"model.scheduler: {name} is no scheduler of the installed diffusers {package.__version__}.")
    whole = [value for value in config.values() if isinstance(value, int)]
    rows = [len(value) for value in config.values() if isinstance(value, list)]
    if max([*whole, *rows], default=0) > LONGEST_TABLE:
        raise ConfigError(f"model.scheduler: {path} asks for more than {LONGEST_TABLE:,} of something.")
    try:
        made: Any = maker.from_config(config)  # type: ignore[attr-defined]
        return _read(made, name, path)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.scheduler: {path} is refused by {name} ({reason}).") from None


def _read(made: Any, name: str, path: Path) -> Clock:
    """What a scheduler is to its network."""
    predicted = made.config.get("prediction_type", "epsilon")
    if made.config.get("timestep_type") == "continuous":
        raise ConfigError(f"model.scheduler: {path} has timestep_type continuous, whose clock is not known here.")
    if name.startswith("FlowMatch") or predicted == "flow_prediction":
        return _flow(made)
    if name.startswith("EDM"):
        return _edm(made, predicted)
    if not hasattr(made, "alphas_cumprod"):
        raise ConfigError(f"model.scheduler: how a network under {name} was trained is not known here.")
    if predicted not in TARGETS:
        raise ConfigError(f"model.scheduler: prediction_type {predicted} is not known; {', '.join(TARGETS)} are.")
    return Clock(_table(made), TARGETS[predicted], notes=_limits(made))


def _table(scheduler: Any) -> Ddpm:
    """Its own alphas_cumprod; in ve scaling where it keeps states so."""
    abar = scheduler.alphas_cumprod.double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scaling: Literal["vp", "ve"] = "vp" if float(scheduler.init_noise_sigma) == 1 else "ve"
    return Ddpm(betas=TrainedBetas(values=tuple((1 - abar / before).tolist())), steps=len(abar), scaling=scaling)


def _limits(scheduler: Any) -> tuple[str, ...]:
    config = scheduler.config
    if config.get("thresholding"):
        share = config["dynamic_thresholding_ratio"]
        return (f"its pipeline limits x0: add the correction {{kind: dynamic_threshold, percentile: {share}}}",)
    if config.get("clip_sample"):
        return (f"its pipeline limits x0: add the correction {{kind: clip_x0, limit: {config['clip_sample_range']}}}",)
    return ()


def _flow(scheduler: Any) -> Clock:
    """The network reads t times the number of training steps. A shift moves what pipelines visit, not the clock."""
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        note = "its pipeline shifts t by the size of the image, which is not done here"
        return Clock(Flow(), FlowVelocity(), factor=float(config.num_train_timesteps), notes=(note,))
    shift = float(config.get("shift", config.get("flow_shift", 1.0)))
    notes = () if shift == 1 else (f"its pipeline shifts t by {shift:g}: levels follow, as logsnr_shift",)
    process = Flow(logsnr_shift=-2 * float(torch.tensor(shift, dtype=torch.float64).log()))
    return Clock(process, FlowVelocity(), factor=float(config.num_train_timesteps), notes=notes)


def _edm(scheduler: Any, predicted: str) -> Clock:
    config = scheduler.config
    process = Edm(sigma_min=config.sigma_min, sigma_max=config.sigma_max)
    sign = -1.0 if predicted == "v_prediction" else 1.0
    return Clock(process, X0(), EdmPrecondition(), sign=sign, sigma_data=float(config.sigma_data))


class Adapted(nn.Module):
    """A model of diffusers under snrkit's call."""

    def __init__(self, inner: nn.Module, network: Foreign, null: int, clock: Clock) -> None:
        super().__init__()
        self.inner, self.labelled, self.null = inner, network.classes > 0, null
        self.channels, self.factor, self.sign = network.shape[0], clock.factor, clock.sign

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, H, W), time (B,) -> the same."""
        told: dict[str, Tensor] = {}
        if self.labelled:
            none = torch.full((len(x),), -1) if cond is None or cond.labels is None else cond.labels
            told["class_labels"] = torch.where(none < 0, self.null, none).to(x.device)
        out: Tensor = self.inner(x, time * self.factor, **told, return_dict=False)[0]
        return self.sign * out[:, : self.channels]
