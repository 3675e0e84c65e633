"""Folders that diffusers saves: a pipeline, or a model beside its scheduler. Needs the extra `diffusers`.

The scheduler's configuration says how the network was trained: its table of levels (the scheduler's own
`alphas_cumprod`), what it predicts, and in which scaling its states are. The model's says shape and labels.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from snrkit.base.errors import ConfigError, ValueFaultError, reason_of, with_article
from snrkit.base.value import LARGEST_SIDE, LONGEST_TABLE, MOST_LABELS, Label, Place, Side, Value
from snrkit.checkpoints.folders import absent, class_of, find_weights, pretrained
from snrkit.checkpoints.foreign import LEFT_OUT, Autoencoder, Described
from snrkit.checkpoints.texts import KINDS, Texted, find_texts
from snrkit.diffusion.betas import TrainedBetas
from snrkit.diffusion.denoiser import AnyPrecondition, EdmPrecondition, NoPrecondition
from snrkit.diffusion.prediction import X0, AnyTarget, Eps, FlowVelocity, V
from snrkit.diffusion.process import AnyProcess, Ddpm, Edm, Flow
from snrkit.networks.adapted import Adapted, AdaptedModule, LinearClock
from snrkit.networks.foreign import Foreign
from snrkit.networks.of_diffusers import DiffusersModule, DiffusersNetwork, diffusers_package, plain_config

TARGETS: dict[str, AnyTarget] = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}
PLAIN = NoPrecondition()
PARTS, CODECS = ("unet", "transformer"), ("vae", "vqvae")  # folders of a pipeline
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "uniform_time"}  # as grids are called here
OWN_LEADING = ("DDIM", "DDPM", "PNDM", "Euler", "Heun", "LMS", "KDPM2")  # others space by n + 1 under that name
DISTILLED = ("LCMScheduler", "TCDScheduler")  # their networks are read through scales of their own


class DiffusersModel(Value):
    """A folder of diffusers, with a UNet2DModel, a DiTTransformer2DModel, or a transformer of SD3, FLUX or Sana."""

    kind: Literal["diffusers"] = "diffusers"
    path: Place = Field(description="folder of a pipeline, or of a model beside its scheduler")
    scheduler: Place | None = Field(
        default=None, description="folder of its scheduler_config.json; default: beside the model"
    )
    null_label: Label | None = Field(default=None, description="the label that means none, where guidance drops it")
    vae: Place | None = Field(
        default=None, description="folder of its autoencoder; default: the pipeline's own, if it has one"
    )
    prompts: Place | None = Field(default=None, description="safetensors of text embeddings, for SD3, FLUX and Sana")
    sides: tuple[Side, Side] | None = Field(
        default=None, description="height and width of its states; default: the configuration's sample_size"
    )
    guidance: float | None = Field(default=None, description="what FLUX's distilled guidance is told; default: 3.5")

    def describe(self) -> Described:
        """Read the configurations of model and scheduler."""
        _, config, network, clock = self._read()
        learned = config.get("out_channels") == 2 * network.shape[0]
        notes = clock.notes + ((LEFT_OUT,) if learned else ())
        network = network.model_copy(update={"notes": notes})
        return Described(clock.process, clock.target, clock.precondition, network, clock.sigma_data)

    def load(self) -> nn.Module:
        """The network with its weights."""
        name, config, network, clock = self._read()
        inner = pretrained(name, config, self._folder(), "model.path").float()
        if name in KINDS:
            told = 3.5 if self.guidance is None else self.guidance
            return Texted(inner, name, find_texts(self.prompts, name, config), clock.factor, told)
        value = self._adapted(name, config, network, clock)
        assert isinstance(value.inner, DiffusersNetwork)
        return AdaptedModule(value, DiffusersModule(value.inner, inner))

    def architecture(self) -> Adapted:
        """By the two configurations."""
        name, config, network, clock = self._read()
        if name in KINDS:
            raise ConfigError(
                f"model.path: a {name} is told texts that lie in a file, without which nothing rebuilds it: it can be "
                "sampled and measured, but not be trained on."
            )
        return self._adapted(name, config, network, clock)

    def _adapted(self, name: str, config: Mapping[str, Any], network: Foreign, clock: "Clock") -> Adapted:
        null = network.classes if self.null_label is None else self.null_label
        try:
            inner = DiffusersNetwork(
                name="DiTTransformer2DModel" if name == "DiTTransformer2DModel" else "UNet2DModel",
                config=plain_config(name, config),
                classes=network.classes,
                null_label=null if network.null_label else None,
            )
        except ValueFaultError as error:
            raise ConfigError(f"model.path: config.json of {self.path}: {error.said[:200]}.") from None
        return Adapted(shape=network.shape, inner=inner, clock=LinearClock(factor=clock.factor), sign=clock.sign)

    def _read(self) -> tuple[str, Mapping[str, Any], Foreign, "Clock"]:
        """(the model's class, its configuration, shape and labels, what its scheduler says)."""
        name, config = class_of(self._folder() / "config.json", self.path)
        find_weights(self._folder(), "model.path")
        network = self._network(name, config)
        return name, config, network, _clock(self._scheduler(), _tokens(name, config, network))

    def spacing(self) -> dict[str, Any]:
        """The kind of grid that its scheduler walks, with options; uniform in time where it says no other."""
        name, config = class_of(self._scheduler(), self.path, "model.scheduler")
        kind = SPACINGS.get(str(config.get("timestep_spacing")), "uniform_time")
        if kind != "leading":
            return {"kind": kind}
        offset = config.get("steps_offset", 0)
        return {"kind": kind, "offset": offset} if name.startswith(OWN_LEADING) else {"kind": "uniform_time"}

    def autoencoder(self) -> Autoencoder | None:
        """The pipeline's own, or the one that is given."""
        own = next((self.path / part for part in CODECS if (self.path / part).is_dir()), None)
        place = self.vae or own
        return None if place is None else Autoencoder(path=place)

    def _network(self, name: str, config: Mapping[str, Any]) -> Foreign:
        """Shape and labels."""
        if self.guidance is not None and not config.get("guidance_embeds"):
            raise ConfigError(f"model.guidance: has no effect on this {name}, which is not told it; drop it.")
        packed = _packed(name)
        shape = _shape(config, self.sides, packed)
        if name in KINDS:
            texts = find_texts(self.prompts, name, config)
            if packed > 1 and (shape[1] % 2 or shape[2] % 2):
                raise ConfigError(f"model.sides: a {name} takes latents by twos, and they are {shape[1]}x{shape[2]}.")
            return Foreign(shape=shape, classes=texts.classes, null_label=texts.negative)
        if self.prompts is not None:
            raise ConfigError(f"model.prompts: has no effect on a {name}, which is told no text; drop it.")
        return _labelled(name, config, shape, self.null_label)

    def _folder(self) -> Path:
        """Where the model's own config.json is."""
        if not self.path.is_dir():
            raise ConfigError(f"model.path: {absent(self.path)}.")
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


def _shape(config: Mapping[str, Any], sides: tuple[Side, Side] | None, packed: int) -> tuple[int, int, int]:
    """(C, H, W) of a model's states."""
    try:
        size = config["sample_size"] if sides is None else sides
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = int(config["in_channels"]) // packed, int(height), int(width)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ConfigError(
            "model.sides: the model's config.json does not say the size of its states; give sides: [H, W]."
        ) from None
    if not all(1 <= length <= LARGEST_SIDE for length in shape):
        raise ConfigError("model.path: the model's config.json describes no network of a possible size.")
    return shape


def _labelled(name: str, config: Mapping[str, Any], shape: tuple[int, int, int], null_label: int | None) -> Foreign:
    """Shape and labels of a model that is told labels or nothing."""
    if name == "DiTTransformer2DModel":
        return Foreign(shape=shape, classes=_whole(config, "num_embeds_ada_norm") or 1000, null_label=True)
    if name == "UNet2DModel":
        for key, known in (("class_embed_type", (None,)), ("time_embedding_type", ("positional", "fourier"))):
            if config.get(key, known[0]) not in known:
                raise ConfigError(f"model.path: a UNet2DModel whose {key} is {config[key]!r} cannot be asked here.")
        labels = _whole(config, "num_class_embeds")
        if null_label is not None and null_label != labels - 1:
            raise ConfigError(f"model.null_label: the model has {labels} labels, and only its last can mean none.")
        return Foreign(shape=shape, classes=labels - (null_label is not None), null_label=null_label is not None)
    these = ", ".join(("UNet2DModel", "DiTTransformer2DModel", *KINDS))
    raise ConfigError(f"model.path: {with_article(name)} cannot be read; these can: {these}.")


def _whole(config: Mapping[str, Any], key: str) -> int:
    """A count, 0 where there is none."""
    found = config.get(key) or 0
    if not isinstance(found, int) or not 0 <= found <= MOST_LABELS:
        raise ConfigError(f"model.path: {key} of the model's config.json is {str(found)[:40]!r}, and no count.")
    return found


@dataclass(frozen=True, slots=True)
class Clock:
    """What a scheduler says of how its network was trained."""

    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition = PLAIN
    factor: float = 1.0  # from snrkit's time to the network's
    sign: Literal[1, -1] = 1  # of its output
    sigma_data: float | None = None
    notes: tuple[str, ...] = ()


def _packed(name: str) -> int:
    """How many latents of a channel a model's own input has in one."""
    return KINDS[name].packed if name in KINDS else 1


def _tokens(name: str, config: Mapping[str, Any], network: Foreign) -> int:
    """How many tokens a transformer makes of a state, by which its scheduler may shift the time."""
    packed = _packed(name)
    patch = packed if packed > 1 else (_whole(config, "patch_size") or 1) ** 2
    return network.shape[1] * network.shape[2] // patch


def _clock(path: Path, tokens: int) -> Clock:
    made = open_scheduler(path)
    with _refused(path, type(made).__name__, "model.scheduler"):
        return clock_of(made, str(path), tokens)


def open_scheduler(path: Path, key: str = "model.scheduler") -> Any:
    """The scheduler of a scheduler_config.json, a class of the installed diffusers. ConfigError begins with `key`."""
    package, (name, config) = diffusers_package(), class_of(path, path, key)
    maker, base = getattr(package, name, None), package.SchedulerMixin
    if isinstance(maker, type) and (needed := getattr(maker, "_backends", None)):  # in place of a class it has not
        raise ConfigError(f"{key}: {name} needs {' and '.join(needed)}, which pip installs.")
    if not isinstance(maker, type) or not issubclass(maker, base):
        raise ConfigError(f"{key}: {name} is no scheduler of the installed diffusers {package.__version__}.")
    whole = [value for value in config.values() if isinstance(value, int)]
    rows = [len(value) for value in config.values() if isinstance(value, list)]
    if max([*whole, *rows], default=0) > LONGEST_TABLE:
        raise ConfigError(f"{key}: {path} asks for more than {LONGEST_TABLE:,} of something.")
    with _refused(path, name, key):
        return maker.from_config(config)  # type: ignore[attr-defined]


@contextmanager
def _refused(path: Path, name: str, key: str) -> Iterator[None]:
    """What a scheduler's class says of a configuration, as ConfigError."""
    try:
        yield
    except ValueFaultError as error:
        raise ConfigError(f"{key}: the noise in {path} is refused by {name} ({error.said}).") from None
    except (TypeError, ValueError, RuntimeError, NotImplementedError, ArithmeticError, LookupError) as error:
        raise ConfigError(f"{key}: {path} is refused by {name} ({reason_of(error)}).") from None


def clock_of(made: Any, path: str, tokens: int) -> Clock:
    """What a scheduler is to its network, of states of so many tokens. ConfigError where that is not known."""
    name, predicted = type(made).__name__, made.config.get("prediction_type", "epsilon")
    if made.config.get("timestep_type") == "continuous":
        raise ConfigError(f"model.scheduler: {path} has timestep_type continuous, whose clock is not known here.")
    if name.startswith("FlowMatch") or predicted == "flow_prediction":
        return _flow(made, tokens)
    if name.startswith("EDM"):
        return _edm(made, predicted)
    if not hasattr(made, "alphas_cumprod") or name in DISTILLED:
        raise ConfigError(f"model.scheduler: how a network under {name} was trained is not known here.")
    if predicted not in TARGETS:
        raise ConfigError(f"model.scheduler: prediction_type {predicted} is not known; {', '.join(TARGETS)} are.")
    return Clock(table_of(made), TARGETS[predicted], notes=_limits(made))


def table_of(scheduler: Any) -> Ddpm:
    """A scheduler's own alphas_cumprod; in ve scaling where it keeps states so."""
    abar = scheduler.alphas_cumprod.double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scaling: Literal["vp", "ve"] = "vp" if float(scheduler.init_noise_sigma) == 1 else "ve"
    return Ddpm(betas=TrainedBetas(values=tuple((1 - abar / before).tolist())), steps=len(abar), scaling=scaling)


def _limits(scheduler: Any) -> tuple[str, ...]:
    """The correction that does what the scheduler does to x0; with the default sample_max_value, 1, that is a clip."""
    config = scheduler.config
    if config.get("thresholding") and config.get("sample_max_value", 1.0) > 1:
        share = config["dynamic_thresholding_ratio"]
        found = f"{{kind: dynamic_threshold, percentile: {share}}}, but for its largest threshold,"
    elif config.get("thresholding") or config.get("clip_sample"):
        limit = 1.0 if config.get("thresholding") else config["clip_sample_range"]
        kept = ", eps: kept" if type(scheduler).__name__ == "DDIMScheduler" else ""
        found = f"{{kind: clip_x0, limit: {limit}{kept}}}"
    else:
        return ()
    return (f"its pipeline limits x0, as the correction {found} does",)


def _flow(scheduler: Any, tokens: int) -> Clock:
    """The network reads t times the number of training steps. A shift moves what pipelines visit, not the clock.

    Multistep schedulers of diffusers cut what they tell to whole numbers, up to 1/1000 below the level; here none is.
    """
    config, notes = scheduler.config, tuple[str, ...]()
    shift = float(config.get("shift", config.get("flow_shift", 1.0)))
    if config.get("use_dynamic_shifting") and "base_shift" in config:
        shift = dynamic_shift(config, tokens)
        notes = (f"its pipeline shifts t by {shift:g}: levels follow, as logsnr_shift",)
    elif shift != 1:
        notes = (
            f"its pipeline shifts t by {shift:g}: levels follow, as logsnr_shift; left to itself its scheduler "
            "shifts its last level, too, and so ends nearer to clean than uniform_time",
        )
    process = Flow(logsnr_shift=-2 * float(torch.tensor(shift, dtype=torch.float64).log()))
    return Clock(process, FlowVelocity(), factor=float(config.num_train_timesteps), notes=notes)


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """What FLUX's pipeline shifts t by for states of so many tokens: mu, linear in them, or e^mu."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)  # what pipelines take, too
    mu = least + (most - least) / (many - few) * (tokens - few)
    return float(math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu)


def _edm(scheduler: Any, predicted: str) -> Clock:
    config = scheduler.config
    process = Edm(sigma_min=config.sigma_min, sigma_max=config.sigma_max)
    sign: Literal[1, -1] = -1 if predicted == "v_prediction" else 1
    return Clock(process, X0(), EdmPrecondition(), sign=sign, sigma_data=float(config.sigma_data))
