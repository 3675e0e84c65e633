"""One experiment, one YAML: pure composition of Values, all of whose faults are found at once."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from snrkit.base.errors import ConfigError, SnrkitError, shown
from snrkit.base.faults import CUT, LONGEST, describe, prune, told
from snrkit.base.starters import file_of
from snrkit.base.value import LONGEST_PATH, Name, Seed, Value, different
from snrkit.checkpoints.models import AnyForeign, looks_like
from snrkit.data import AnySource
from snrkit.diffusion.denoiser import AnyPrecondition
from snrkit.diffusion.prediction import AnyTarget, Eps, Score
from snrkit.diffusion.process import AnyProcess, Ddpm
from snrkit.experiment.models import READ, AnyModel, FromElsewhere, TrainedHere
from snrkit.experiment.recipes import with_recipes
from snrkit.experiment.yaml_files import apply_settings, read_yaml
from snrkit.loggers import AnyLogger
from snrkit.metrics.config import MetricsConfig
from snrkit.networks import AnyTrained
from snrkit.networks.foreign import Foreign
from snrkit.sampling.grid import ImageGrid, Told
from snrkit.sampling.sampler import (
    CompareConfig,
    SampleConfig,
    Sampler,
    TuneConfig,
    missing_capabilities,
    parse_seeds,
)
from snrkit.shift.config import ShiftConfig
from snrkit.training.config import TrainConfig
from snrkit.training.ema import afterwards_faults, made_afterwards
from snrkit.training.level_samplers import AnyLevels
from snrkit.training.weighting import AnyWeighting

MOST_FAULTS = 30  # that are told at once
MOST_STEPS = 20_000  # of all samplers together, each of which is tried when a file is read


class ComputeConfig(Value):
    """How arithmetic is done; the same in every command."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on CUDA, else fp32; fp32 under `model`"
    )
    channels_last: bool = Field(
        default=False,
        description="keep states and weights in memory with their channels innermost, which CUDA may be faster with",
    )
    compile: bool | Literal["auto"] = Field(
        default=False,
        description="compile the network's blocks; auto: where all of train.images on CUDA take long enough",
    )
    deterministic: bool = Field(
        default=False,
        description="take those of torch's algorithms whose results repeat bit for bit, where there are any: "
        "slower on CUDA",
    )
    tf32: bool = Field(default=False, description="allow TF32 in float32 products on CUDA")
    checkpointing: bool = Field(
        default=False, description="recompute each block in the backward pass: less memory, more time"
    )


class Experiment(Value):
    """One model and the samplers to compare on it.

    In a file the parts of a model that is trained here stand side by side with the rest; `model` there is one from
    elsewhere, and brings process, target, precondition and network.
    """

    name: Name = Field(
        description="name of the experiment and of its run directory; default: that of the file, without its ending"
    )
    seed: Seed = Field(
        default=0,
        description="seed of initial weights and of all draws of training and measurement; images have their own "
        "(sample.seeds)",
    )
    data: AnySource = Field(description="images to train on, to hold out and to compare with")
    model: AnyModel
    compute: ComputeConfig = Field(
        default=ComputeConfig(), description="precision, memory and repeatability of arithmetic, in all commands"
    )
    samplers: dict[Name, Sampler] = Field(
        default_factory=dict, max_length=100, description="samplers to compare, by name"
    )
    sample: SampleConfig = Field(
        default=SampleConfig(), description="which images each sampler makes, and with which weights"
    )
    shift: ShiftConfig = Field(default=ShiftConfig(), description="what measure-shift measures, and on how many images")
    metrics: MetricsConfig = Field(
        default=MetricsConfig(), description="features and scores by which images are compared"
    )
    tune: TuneConfig = Field(
        default=TuneConfig(), description="seeds and first states on which tune, design and certify choose"
    )
    compare: CompareConfig = Field(
        default=CompareConfig(), description="what compare sets beside the samplers, and how it takes their times"
    )
    log: tuple[AnyLogger, ...] = Field(
        default=(),
        max_length=10,
        description="where numbers and pictures go beside the run directory, each kind once; of no effect on them",
    )

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, content: Any) -> Any:
        """As in a file: the parts of a model that is trained here gathered into one."""
        if not isinstance(content, Mapping) or content.get("model") is not None:
            return content
        rest = {key: value for key, value in content.items() if key not in PARTS and key != "model"}
        return {**rest, "model": {"kind": "trained", **{key: content[key] for key in PARTS if key in content}}}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in a file."""
        written: dict[str, Any] = {}
        for key, value in handler(self).items():
            if key == "model":
                written |= {"model": value["source"]} if value.pop("kind") == "elsewhere" else value
            else:
                written[key] = value
        return written

    @field_validator("samplers")
    @classmethod
    def _few_enough(cls, samplers: dict[str, Sampler]) -> dict[str, Sampler]:
        different(samplers)
        steps = sum(sampler.grid.steps for sampler in samplers.values())
        if steps > MOST_STEPS:
            raise ValueError(f"they take {steps:,} steps together, more than {MOST_STEPS:,}; spread them over files")
        return samplers

    @field_validator("log")
    @classmethod
    def _each_once(cls, loggers: tuple[AnyLogger, ...]) -> tuple[AnyLogger, ...]:
        kinds = [logger.kind for logger in loggers]
        if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise ValueError(f"two of kind {twice[0]}; give each kind once")
        return loggers

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        faults = [*_target_faults(self), *self.model.faults(self.compute.checkpointing), *_sampler_faults(self)]
        if faults:
            raise ValueError(CUT.join(faults))
        return self

    @property
    def process(self) -> AnyProcess:
        return self.model.parts.process

    @property
    def target(self) -> AnyTarget:
        """The model's."""
        return self.model.parts.target

    @property
    def precondition(self) -> AnyPrecondition:
        """The model's."""
        return self.model.parts.precondition

    def cautions(self, images: int) -> tuple[str, ...]:
        """What to know of the network before any of it is believed, if it was trained here, on so many images."""
        return tuple(self.train.cautions(images)) if self.model.trains else ()

    @property
    def network(self) -> AnyTrained | Foreign:
        """The model's."""
        return self.model.parts.network

    @property
    def training(self) -> TrainedHere:
        """What trains the model. ConfigError for one from elsewhere, of whose training nothing is known."""
        if isinstance(self.model, TrainedHere):
            return self.model
        raise ConfigError("model: one from elsewhere is taken as it is; this needs an experiment that trains its own.")

    @property
    def levels(self) -> AnyLevels:
        return self.training.levels

    @property
    def weighting(self) -> AnyWeighting:
        """How much levels count in training."""
        return self.training.weighting

    @property
    def train(self) -> TrainConfig:
        """How the model is trained."""
        return self.training.train

    def training_part(self) -> dict[str, Any]:
        """What decides the trained weights; a run directory holds one such part for good."""
        return {"seed": self.seed, "data": self.data.identity(), **self.model.identity()}


BROUGHT = (*READ, "network", "latents")  # parts of a model from elsewhere that is trained on
PARTS = tuple(name for name in TrainedHere.model_fields if name != "kind")


def _target_faults(e: Experiment) -> Iterable[str]:
    process, target = e.process, e.target
    blind = isinstance(target, Eps | Score)
    if blind and isinstance(process, Ddpm) and float(process.table()[-1]) == -math.inf:
        yield f"target: {target.kind} says nothing about the image at zero terminal SNR; use x0, v or flow"


def _sampler_faults(e: Experiment) -> Iterable[str]:
    for name, sampler in e.samplers.items():
        if isinstance(sampler.grid, ImageGrid):
            takes = e.network.conditioning
            asked = sampler.grid.faults(takes.classes, takes.scalars)
            yield from (f"samplers.{name}.grid.{fault}" for fault in asked)
        told = _told_faults(sampler.told_spectrum, e.network.conditioning.classes, e.network.conditioning.scalars)
        yield from (f"samplers.{name}.told_spectrum: {fault}" for fault in told)
        for where, why in missing_capabilities(sampler, e.model.parts.capabilities):
            yield f"samplers.{name}.{where}: {why}"
        try:
            e.model.parts.cost(sampler)
        except SnrkitError as error:
            yield f"samplers.{name}: {error}"
        yield from _start_faults(name, sampler, e.process)
    seeds = len(parse_seeds(e.sample.seeds))
    if e.samplers and seeds < 2 * e.metrics.ranges:
        yield f"metrics.ranges: {e.metrics.ranges} ranges need at least {2 * e.metrics.ranges} seeds, not {seeds}"
    known = {value.name for value in e.model.averages} | {"network"}
    chosen = e.sample.average
    if chosen is not None and made_afterwards(chosen):
        yield from (f"sample.average: {fault}" for fault in afterwards_faults(chosen))
    elif chosen is not None and chosen not in known:
        yield f"sample.average: unknown weights '{e.sample.average}'. Known: {', '.join(sorted(known))}"
    classes = e.network.conditioning.classes
    if e.sample.labels is not None and e.sample.labels >= classes:
        yield f"sample.labels: {e.sample.labels} is not below network.classes = {classes}"


def _told_faults(told: Told | None, classes: int, scalars: Sequence[str]) -> Iterable[str]:
    """What a sampler asks that a network of these classes and scalars is not told."""
    if told is not None and not scalars:
        yield "the network is told no ends of schedules (network.scalars), so of no spectrum; drop it"
    if told == "class" and not classes:
        yield "class needs a network with classes; take instance or dataset"


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
    """The experiment of a YAML file, or of `demo`. ConfigError lists all faults, one a line."""
    path = file_of(Path(path))
    content = apply_settings(read_yaml(path), settings)
    if "arms" in content:
        raise ConfigError(f"{path} is a sweep, as it has arms; run snrkit sweep {path}, or name its base.")
    content.setdefault("name", path.stem)
    return parse_experiment(content, str(path))


def parse_experiment(content: Mapping[str, Any], where: str) -> Experiment:
    """The experiment of a mapping, as a file has it."""
    content = with_recipes(_with_origin(_with_model(content, where), where), where)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        found = _faults(error)
        lines = [line for fault in found[: MOST_FAULTS + 1] for line in describe(fault, where, AsWritten)]
        if len(found) <= MOST_FAULTS:
            lines += _faults_of_the_rest(content, found, where)
        lines = list(dict.fromkeys(lines))
        more = [f"{where}: there are more faults than these {MOST_FAULTS}"] if len(lines) > MOST_FAULTS else []
        raise ConfigError("\n".join([*lines[:MOST_FAULTS], *more])) from None


def _faults(error: ValidationError) -> list[dict[str, Any]]:
    """Its faults, each where a file has what is wrong."""
    return [{**fault, "loc": _written(fault["loc"])} for fault in told(error.errors())]


def _written(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Where a file has what stands at a place of the experiment."""
    loc = tuple(part for part in loc if part != "[key]")  # pydantic's mark of a key that is wrong itself
    return loc[2:] if loc[:2] == ("model", "trained") else loc


def _with_model(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The mapping with its `model` described. ConfigError where that cannot be read, or parts are given beside it."""
    if content.get("model") is None:
        return content
    if given := [key for key in PARTS if key in content]:
        raise ConfigError(f"{where}: {given[0]}: has no effect, as `model` brings its own; drop {', '.join(given)}")
    model = _model_at(("model",), content["model"], where)
    with _read_of(model, (), where):
        sigma_data = model.described.sigma_data
    return {**content, "model": model, "data": _with_sigma_data(content, sigma_data, where)}


def _with_origin(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The mapping with the parts of the model from elsewhere that is to be trained on, read from its file.

    Where all of them are given, as in a resolved file, the model's file is not looked at.
    """
    train = content.get("train")
    asked = train.get("resume_from") if isinstance(train, Mapping) else None
    if not isinstance(asked, Mapping) or asked.get("model") is None or asked.get("run") is not None:
        return content
    given = [part for part in BROUGHT if part in content]
    if len(given) == len(BROUGHT):
        return content
    if given:
        raise ConfigError(
            f"{where}: {given[0]}: has no effect, as train.resume_from.model brings its own; drop {', '.join(given)}"
        )
    model = _model_at(("train", "resume_from", "model"), asked["model"], where)
    with _read_of(model, ("train", "resume_from"), where):
        parts, sigma_data = model.to_train(), model.described.sigma_data
    return {**content, **parts, "data": _with_sigma_data(content, sigma_data, where)}


def _model_at(loc: tuple[str, ...], content: Any, where: str) -> FromElsewhere:
    """The model from elsewhere that stands at a place of a file. ConfigError lists its faults."""
    try:
        return FromElsewhere.model_validate({"source": content})
    except ValidationError as error:
        faults = [{**fault, "loc": (*loc, *fault["loc"][1:])} for fault in error.errors()]
        raise ConfigError("\n".join(line for f in faults for line in describe(f, where, AsWritten))) from None


@contextmanager
def _read_of(model: FromElsewhere, above: tuple[str, ...], where: str) -> Iterator[None]:
    """Faults of a model's file with the place where `model` stands in a file, and the kind that it looks like."""
    try:
        yield
    except ConfigError as error:
        text, other = str(error), looks_like(model.source.path, model.source.kind)
        at = ".".join((*above, text)) if text.startswith("model.") else text
        raise ConfigError(shown(f"{where}: {at}{other}", LONGEST)) from None


def _with_sigma_data(content: Mapping[str, Any], sigma_data: float | None, where: str) -> dict[str, Any]:
    """`data` with the standard deviation that a model was trained with. ConfigError where another is given."""
    if not isinstance(content.get("data"), Mapping):
        raise ConfigError(f"{where}: data: it needs a mapping, such as {{kind: ...}}, also beside a model")
    data = dict(content["data"])
    if sigma_data is not None:
        if data.setdefault("sigma_data", sigma_data) not in ("auto", sigma_data):
            raise ConfigError(f"{where}: data.sigma_data: the model was trained with {sigma_data:g}; drop it")
        data["sigma_data"] = sigma_data
    return data


def _faults_of_the_rest(content: Mapping[str, Any], faults: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Faults between fields, which pydantic looks for only once every field is right: without those that are wrong."""
    rest: Any = {key: copy.deepcopy(value) for key, value in content.items() if key != "model"}
    rest |= {"model": content["model"]} if "model" in content else {}
    for fault in faults:
        prune(rest, fault["loc"])
    try:
        Experiment.model_validate(rest)
    except ValidationError as second:
        between = [fault for fault in _faults(second) if fault["type"] == "value_error"]
        return [line for fault in between for line in describe(fault, where, AsWritten)]
    return []


def as_written() -> type[Value]:
    """The class of an experiment as a file has it: what words faults and makes the schema of files."""
    fields: dict[str, Any] = {}
    for name, field in Experiment.model_fields.items():
        if name == "model":
            fields["model"] = (
                AnyForeign | None,
                Field(default=None, description=f"a model that somebody else trained, in place of {', '.join(PARTS)}"),
            )
            parts = {part: TrainedHere.model_fields[part] for part in PARTS}
            fields |= {part: (field.annotation, field) for part, field in parts.items()}
        else:
            fields[name] = (field.annotation, field)
    made: type[Value] = create_model("Experiment", __base__=Value, __doc__=Experiment.__doc__, **fields)
    return made


AsWritten = as_written()


def file_schema() -> dict[str, Any]:
    """The JSON schema of experiment files: as of the experiment, with `base`, from which any key may come."""
    schema = AsWritten.model_json_schema()
    schema.pop("required", None)
    schema["properties"]["base"] = {
        "type": "string",
        "maxLength": LONGEST_PATH,
        "description": "another file to inherit from",
    }
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
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, width=120)
