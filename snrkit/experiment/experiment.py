"""One experiment, one YAML: pure composition of Values, all of whose faults are found at once."""

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.value import Value
from snrkit.checkpoints.foreign import DERIVED, sections
from snrkit.checkpoints.models import AnyModel, kinds_of
from snrkit.data import AnySource
from snrkit.diffusion.denoiser import AnyPrecondition
from snrkit.diffusion.level import ROUNDING_VARIANCE
from snrkit.diffusion.prediction import AnyTarget, Eps, Score
from snrkit.diffusion.process import AnyProcess, Ddpm, Flow
from snrkit.experiment.faults import CUT, describe, prune
from snrkit.experiment.yaml_files import apply_settings, read_yaml
from snrkit.metrics.config import MetricsConfig
from snrkit.networks import AnyNetwork, Foreign
from snrkit.sampling.sampler import (
    CompareConfig,
    SampleConfig,
    Sampler,
    TuneConfig,
    dry_run,
    missing_capabilities,
    parse_seeds,
)
from snrkit.sampling.step import Capabilities
from snrkit.shift.config import ShiftConfig
from snrkit.spectral.grid import UNTOLD, SpectralGrid
from snrkit.spectral.levels import SCALARS, SpectralLevels
from snrkit.spectral.tabulated import Tabulated
from snrkit.training.ema import afterwards_faults, made_afterwards
from snrkit.training.level_samplers import AnyLevels, LevelSampler
from snrkit.training.objective import LOWEST_LOGSNR
from snrkit.training.perturb import MixFlow
from snrkit.training.train import TrainConfig
from snrkit.training.weighting import AnyWeighting, Sigmoid, SpectralBias

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DRAWS = 4000  # of levels, that a weighting is tried at
# a spectrum with a wider schedule than any 8-bit image of up to 1024x1024 has
WIDEST = torch.tensor([[2.0**20, 2.0**20, ROUNDING_VARIANCE]], dtype=torch.float64)
FREE = ("save_every", "keep_last", "keep_every", "snapshot_every", "log_every", "holdout_every", "holdout_bins")


class ComputeConfig(Value):
    """How arithmetic is done; the same in every command."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on CUDA, else fp32; fp32 under `model`"
    )
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    tf32: bool = Field(default=False, description="allow TF32 in float32 products on CUDA")
    checkpointing: bool = Field(
        default=False, description="recompute each block in the backward pass: less memory, more time"
    )


class Experiment(Value):
    """One model and the samplers to compare on it.

    `model` is one from elsewhere, and brings all that follows up to `train`.
    """

    name: str
    seed: int = Field(default=0, ge=0)
    data: AnySource
    model: AnyModel | None = None
    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition
    levels: AnyLevels
    weighting: AnyWeighting
    network: AnyNetwork
    train: TrainConfig
    compute: ComputeConfig = ComputeConfig()
    samplers: dict[str, Sampler] = Field(default_factory=dict)
    sample: SampleConfig = SampleConfig()
    shift: ShiftConfig = ShiftConfig()
    metrics: MetricsConfig = MetricsConfig()
    tune: TuneConfig = TuneConfig()
    compare: CompareConfig = CompareConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                "a name begins with a letter or digit and goes on with these, '.', '_' and '-'; it becomes a folder"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        faults = [*_training_faults(self), *_sampler_faults(self)]
        if faults:
            raise ValueError(CUT.join(faults))
        return self

    @property
    def spectral(self) -> SpectralLevels | None:
        """The levels, where they follow spectra."""
        return self.levels if isinstance(self.levels, SpectralLevels) else None

    def capabilities(self) -> Capabilities:
        """What the trained model can be asked."""
        takes = self.network.conditioning
        if isinstance(self.network, Foreign):
            return Capabilities(takes.classes > 0, takes.unlabelled, takes.untold)
        unlabelled = takes.classes > 0 and takes.unlabelled and self.train.label_dropout > 0
        return Capabilities(takes.classes > 0, unlabelled, takes.untold and self.train.noise_dropout > 0)

    def training_part(self) -> dict[str, Any]:
        """What decides the trained weights; a run directory holds one such part for good."""
        kept = {"seed", "data"} | (set(DERIVED) if self.model is None else {"model"})
        part = self.model_dump(mode="json", include=kept)
        for free in FREE if self.model is None else ():
            part["train"].pop(free)
        if self.model is None and self.train.decay in (
            "constant",
            "rsqrt",
        ):  # the length does not shape what came before: a run may be extended
            part["train"].pop("images")
        for place in ("workers", "path", "root", "download"):  # the content is compared by its fingerprint instead
            part["data"].pop(place, None)
        return part


def _training_faults(e: Experiment) -> Iterable[str]:
    if (
        isinstance(e.target, Eps | Score)
        and isinstance(e.process, Ddpm)
        and float(e.process.table()[-1]) == -float("inf")
    ):
        yield f"target: {e.target.kind} says nothing about the image at zero terminal SNR; use x0, v or flow"
    if e.model is not None:
        return
    if isinstance(e.network, Foreign):
        yield "network: foreign is what `model` brings; name another kind"
    train = e.train
    if train.batch % (train.slice * train.accumulate):
        unit = train.slice * train.accumulate
        below, above = train.batch // unit * unit, (train.batch // unit + 1) * unit
        near = f"{below} or {above}" if below else str(above)
        yield f"train.batch: {train.batch} is not a multiple of slice * accumulate = {unit}; take {near}"
    yield from _network_faults(e)
    yield from _weighting_faults(e)
    yield from _spectral_faults(e)
    if isinstance(train.perturb, MixFlow) and not isinstance(e.process, Flow):
        yield f"train.perturb: mixflow is about the straight line of flow matching, not {e.process.kind}"
    names = [value.name for value in train.averages]
    if len(set(names)) < len(names):
        yield "train.averages: two averages have the same name; give them other half-lives, decays or widths"


def _network_faults(e: Experiment) -> Iterable[str]:
    """What training asks of a network that it does not take or cannot do."""
    takes, train, options = e.network.conditioning, e.train, type(e.network).model_fields
    its = f"a network of kind {e.network.kind}"
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
    if e.compute.checkpointing and not e.network.blockwise:
        yield f"compute.checkpointing: has no effect on {its}, whose blocks it cannot compute again; drop it"


def _spectral_faults(e: Experiment) -> Iterable[str]:
    """What spectral levels ask of the rest, and what asks for them."""
    spectral, scalars = e.spectral is not None, e.network.conditioning.scalars
    if scalars and scalars != SCALARS:
        yield f"network.scalars: unknown; they are [{', '.join(SCALARS)}], in this order, or none"
    elif scalars and (e.spectral is None or e.spectral.scope != "instance"):
        yield (
            "network.scalars: only levels of kind spectral and scope instance provide them (those of a class would "
            "tell the label, also where guidance drops it, and the data set's are one for all); drop them"
        )
    if spectral and e.train.augment is not None:
        yield "train.augment: changes images, whose spectra levels of kind spectral have measured as they lie; drop it"
    if e.spectral is not None and e.spectral.scope == "class" and not e.network.conditioning.classes:
        yield "levels.scope: class needs a network with classes, for when it samples; set network.classes"
    for name, sampler in e.samplers.items():
        grid = sampler.grid
        if isinstance(grid, SpectralGrid) and grid.scope == "class" and not e.network.conditioning.classes:
            yield f"samplers.{name}.grid.scope: class needs a network with classes; take instance or dataset"
        if isinstance(grid, SpectralGrid) and grid.scale != 1 and not scalars:
            yield f"samplers.{name}.grid.scale: {UNTOLD}; drop it"
    if isinstance(e.weighting, Sigmoid) and isinstance(e.weighting.bias, SpectralBias) and not spectral:
        yield "weighting.bias: kind spectral follows levels of kind spectral; give a number"


def _widest(levels: SpectralLevels) -> Tensor:
    """A schedule as wide as any 8-bit image's (1, 2)."""
    noisy, clean = levels.schedule.ends(WIDEST)
    return torch.stack([clean, noisy], 1)


def _weighting_faults(e: Experiment) -> Iterable[str]:
    """A weight that is not finite somewhere where training looks."""
    sampler: LevelSampler = e.levels if not isinstance(e.levels, SpectralLevels) else Tabulated(_widest(e.levels))
    draws = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    try:
        logsnr = e.process.snap(sampler.logsnr(draws, e.process))
    except SnrkitError as error:
        yield f"levels ({e.levels.kind}): {error}"
        return
    level = e.process.level(logsnr.clamp(min=LOWEST_LOGSNR))
    weight = e.weighting.weight(level, lambda: sampler.density(logsnr, e.process), 1.0)
    wrong = ~(weight.isfinite() & (weight >= 0))
    if wrong.any():
        yield (
            f"weighting: {e.weighting.kind} gives {float(weight[wrong][0]):g} at logsnr {float(logsnr[wrong][0]):g}, "
            f"which {e.levels.kind} draws on this process; choose another weighting"
        )


def _sampler_faults(e: Experiment) -> Iterable[str]:
    for name, sampler in e.samplers.items():
        if not NAME.fullmatch(name):
            yield f"samplers.{name}: a name is letters, digits, '.', '_' and '-'; it becomes a file name"
        for index, why in missing_capabilities(sampler, e.capabilities()):
            yield f"samplers.{name}.corrections.{index} ({sampler.corrections[index].kind}): {why}"
        try:
            dry_run(sampler, e.process, e.target, (1, 2, 2), e.spectral)
        except SnrkitError as error:
            yield f"samplers.{name}: {error}"
        yield from _start_faults(name, sampler, e.process)
    seeds = len(parse_seeds(e.sample.seeds))
    if e.samplers and seeds < 2 * e.metrics.ranges:
        yield f"metrics.ranges: {e.metrics.ranges} ranges need at least {2 * e.metrics.ranges} seeds, not {seeds}"
    known = {value.name for value in e.train.averages} | {"network"}
    chosen = e.sample.average
    if chosen is not None and made_afterwards(chosen):
        yield from (f"sample.average: {fault}" for fault in afterwards_faults(chosen))
    elif chosen is not None and chosen not in known:
        yield f"sample.average: unknown weights '{e.sample.average}'. Known: {', '.join(sorted(known))}"
    classes = e.network.conditioning.classes
    if e.sample.labels is not None and e.sample.labels >= classes:
        yield f"sample.labels: {e.sample.labels} is not below network.classes = {classes}"


def _start_faults(name: str, sampler: Sampler, process: AnyProcess) -> Iterable[str]:
    """A grid that starts short of a table's pure noise (Lin et al. 2024); a spectral one does so on purpose."""
    if (
        not isinstance(sampler.grid, SpectralGrid)
        and isinstance(process, Ddpm)
        and float(process.table()[-1]) == -math.inf
    ):
        try:
            start = float(sampler.grid.levels(process)[0].logsnr)
        except SnrkitError:
            return  # said elsewhere
        if start != -math.inf:
            yield (
                f"samplers.{name}.grid ({sampler.grid.kind}): starts at logsnr {start:.2f}, where the image still "
                "shows, while the table ends at pure noise; use trailing or uniform_time"
            )


def load_experiment(path: Path | str, settings: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file. ConfigError lists all faults, one a line."""
    content = apply_settings(read_yaml(Path(path)), settings)
    content.setdefault("name", Path(path).stem)
    return parse_experiment(content, str(path))


def parse_experiment(content: Mapping[str, Any], where: str) -> Experiment:
    """The experiment of a mapping."""
    content = _with_model(content, where)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        faults = [line for fault in error.errors() for line in describe(fault, where, Experiment)]
        faults += _faults_of_the_rest(content, error, where)
        raise ConfigError("\n".join(dict.fromkeys(faults))) from None


def _with_model(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The mapping with all that its `model` brings. ConfigError where that cannot be read, or is given too."""
    if content.get("model") is None:
        return content
    if given := [key for key in DERIVED if key in content]:
        raise ConfigError(f"{where}: {given[0]}: has no effect, as `model` brings its own; drop {', '.join(given)}")
    try:
        described = TypeAdapter(AnyModel).validate_python(content["model"]).describe()
    except ValidationError as error:
        faults = [{**fault, "loc": ("model", *fault["loc"])} for fault in error.errors()]
        raise ConfigError("\n".join(line for fault in faults for line in describe(fault, where, Experiment))) from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}{_other_kind(content['model'])}") from None
    if not isinstance(content.get("data"), Mapping):
        raise ConfigError(f"{where}: data: it needs a mapping, such as {{kind: ...}}, also beside a model")
    data = dict(content["data"])
    if described.sigma_data is not None:
        if data.setdefault("sigma_data", described.sigma_data) not in ("auto", described.sigma_data):
            raise ConfigError(f"{where}: data.sigma_data: the model was trained with {described.sigma_data:g}; drop it")
        data["sigma_data"] = described.sigma_data
    return {**content, **sections(described), "data": data}


def _other_kind(model: Mapping[str, Any]) -> str:
    """The kind that a file looks like, where it is not the one that was named."""
    kinds = kinds_of(Path(model["path"]))
    return "" if not kinds or model["kind"] in kinds else f" It looks like kind: {' or '.join(kinds)}."


def _faults_of_the_rest(content: Mapping[str, Any], error: ValidationError, where: str) -> list[str]:
    """Faults between fields, which pydantic looks for only once every field is right: without those that are wrong."""
    rest: Any = copy.deepcopy(dict(content))
    for fault in error.errors():
        prune(rest, fault["loc"])
    try:
        Experiment.model_validate(rest)
    except ValidationError as second:
        between = [dict(fault) for fault in second.errors() if fault["type"] == "value_error"]
        return [line for fault in between for line in describe(fault, where, Experiment)]
    return []


def file_schema() -> dict[str, Any]:
    """The JSON schema of experiment files: as of the experiment, with `base`, from which any key may come."""
    schema = Experiment.model_json_schema()
    schema.pop("required", None)
    schema["properties"]["base"] = {"type": "string", "description": "another file to inherit from"}
    return schema


def parse_metrics(settings: Sequence[str]) -> MetricsConfig:
    """The metrics of `--set` values alone, such as features=inception, for scoring without an experiment."""
    try:
        return MetricsConfig.model_validate(apply_settings({}, settings))
    except ValidationError as error:
        known = ", ".join(MetricsConfig.model_fields)
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise ConfigError(f"--set: {faults}. Known keys here: {known}") from None


def dump_yaml(experiment: Experiment) -> str:
    """The resolved experiment, every default written out."""
    brought = set() if experiment.model is None else set(DERIVED)
    return yaml.safe_dump(experiment.model_dump(mode="json", exclude=brought), sort_keys=False, width=120)
