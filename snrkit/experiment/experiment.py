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

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.value import Value
from snrkit.checkpoints.foreign import DERIVED, sections
from snrkit.checkpoints.models import AnyModel, kinds_of
from snrkit.data import AnySource
from snrkit.diffusion.denoiser import AnyPrecondition
from snrkit.diffusion.prediction import AnyTarget, Eps, Score
from snrkit.diffusion.process import AnyProcess, Ddpm, Flow
from snrkit.experiment.faults import CUT, describe, prune
from snrkit.experiment.yaml_files import apply_settings, read_yaml
from snrkit.metrics.config import MetricsConfig
from snrkit.networks import AnyNetwork, Foreign, Mlp
from snrkit.sampling.grid import ImageGrid
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
from snrkit.spectral.faults import spectral_faults
from snrkit.training.ema import afterwards_faults, made_afterwards
from snrkit.training.level_samplers import AnyLevels, LevelSampler, LevelsOfData
from snrkit.training.objective import LOWEST_LOGSNR
from snrkit.training.perturb import MixFlow
from snrkit.training.train import TrainConfig
from snrkit.training.weighting import AnyWeighting

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DRAWS = 4000  # of levels, that a weighting is tried at
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

    def capabilities(self) -> Capabilities:
        """What the trained model can be asked."""
        labels = self.network.classes > 0
        if isinstance(self.network, Foreign):
            return Capabilities(labels, self.network.null_label, False)
        return Capabilities(labels, labels and self.train.label_dropout > 0, self.train.noise_dropout > 0)

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
    if train.label_dropout and not e.network.classes:
        yield "train.label_dropout: has no effect without labels; set network.classes or drop it"
    if (train.augment is None) == e.network.augment:
        yield "train.augment: needs network.augment: true, and the other way round"
    yield from _weighting_faults(e)
    if e.compute.checkpointing and isinstance(e.network, Mlp):
        yield "compute.checkpointing: has no effect on an mlp, which has no blocks; drop it"
    yield from spectral_faults(
        e.levels, getattr(e.weighting, "bias", None), {name: sampler.grid for name, sampler in e.samplers.items()},
        classes=e.network.classes, scalars=e.network.scalars, augmented=train.augment is not None,
    )  # fmt: skip
    if isinstance(train.perturb, MixFlow) and not isinstance(e.process, Flow):
        yield f"train.perturb: mixflow is about the straight line of flow matching, not {e.process.kind}"
    names = [value.name for value in train.averages]
    if len(set(names)) < len(names):
        yield "train.averages: two averages have the same name; give them other half-lives, decays or widths"


def _weighting_faults(e: Experiment) -> Iterable[str]:
    """A weight that is not finite somewhere where training looks."""
    sampler: LevelSampler = e.levels.widest() if isinstance(e.levels, LevelsOfData) else e.levels
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
            dry_run(sampler, e.process, e.target, (1, 2, 2), e.levels)
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
    if e.sample.labels is not None and e.sample.labels >= e.network.classes:
        yield f"sample.labels: {e.sample.labels} is not below network.classes = {e.network.classes}"


def _start_faults(name: str, sampler: Sampler, process: AnyProcess) -> Iterable[str]:
    """A grid that starts short of a table's pure noise (Lin et al. 2024); one of each image's own may."""
    if (
        not isinstance(sampler.grid, ImageGrid)
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
