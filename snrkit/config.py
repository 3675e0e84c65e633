"""One experiment, one YAML: pure composition of Values, and messages that name every fault at once.

`base: other.yaml` inherits from one parent (mappings merge, all else replaces); `--set a.b=c` comes last.
"""

import copy
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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
from snrkit.metrics.config import MetricsConfig
from snrkit.networks import AnyNetwork, Foreign, Mlp
from snrkit.sampling.sampler import CompareConfig, SampleConfig, Sampler, TuneConfig, lacking, parse_seeds, rehearse
from snrkit.sampling.step import Abilities
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
CUT = "\n"  # between the faults that one validator found


class ComputeConfig(Value):
    """How arithmetic is done; the same in every command."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on CUDA, else fp32; fp32 under `model`"
    )
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    tf32: bool = Field(False, description="allow TF32 in float32 products on CUDA")
    checkpointing: bool = Field(False, description="recompute each block in the backward pass: less memory, more time")


class Experiment(Value):
    """One model and the samplers to compare on it.

    `model` is one from elsewhere, and brings all that follows up to `train`.
    """

    name: str
    seed: int = Field(0, ge=0)
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

    def abilities(self) -> Abilities:
        """What the trained model can be asked."""
        labels = self.network.classes > 0
        if isinstance(self.network, Foreign):
            return Abilities(labels, self.network.null_label, False)
        return Abilities(labels, labels and self.train.label_dropout > 0, self.train.noise_dropout > 0)

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
    yield from _spectral_faults(e)
    if isinstance(train.perturb, MixFlow) and not isinstance(e.process, Flow):
        yield f"train.perturb: mixflow is about the straight line of flow matching, not {e.process.kind}"
    names = [value.name for value in train.averages]
    if len(set(names)) < len(names):
        yield "train.averages: two averages have the same name; give them other half-lives, decays or widths"


def _spectral_faults(e: Experiment) -> Iterable[str]:
    """What spectral levels ask of the rest, and what asks for them."""
    spectral, scalars = e.spectral is not None, e.network.scalars
    if scalars and scalars != SCALARS:
        yield f"network.scalars: unknown; they are [{', '.join(SCALARS)}], in this order, or none"
    elif scalars and (e.spectral is None or e.spectral.scope != "instance"):
        yield (
            "network.scalars: only levels of kind spectral and scope instance provide them (those of a class would "
            "tell the label, also where guidance drops it, and the data set's are one for all); drop them"
        )
    if spectral and e.train.augment is not None:
        yield "train.augment: changes images, whose spectra levels of kind spectral have measured as they lie; drop it"
    if e.spectral is not None and e.spectral.scope == "class" and not e.network.classes:
        yield "levels.scope: class needs a network with classes, for when it samples; set network.classes"
    for name, sampler in e.samplers.items():
        grid = sampler.grid
        if isinstance(grid, SpectralGrid) and grid.scope == "class" and not e.network.classes:
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
        for index, why in lacking(sampler, e.abilities()):
            yield f"samplers.{name}.corrections.{index} ({sampler.corrections[index].kind}): {why}"
        try:
            rehearse(sampler, e.process, e.target, (1, 2, 2), e.spectral)
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


MOST_VALUES = 100_000  # of one file, written out


def _values(node: Any, known: dict[int, float]) -> float:
    """How many values a YAML node stands for, with what its aliases stand for; infinitely many within itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and aliases that stand for more than a file can hold."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if _values(node, {}) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"it stands for more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a file with its `base:` merged in. ConfigError when unreadable or circular."""
    if path.resolve() in children:
        raise ConfigError(f"{path}: base leads back to itself; remove one base")
    content = read_mapping(path)
    base = content.pop("base", None)
    if base is None:
        return content
    return merge(read_yaml(path.parent / str(base), (*children, path.resolve())), content)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a file holds. ConfigError when unreadable."""
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give --config the path of a YAML file.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested more deeply than any experiment.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give --config the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: an experiment is a mapping of keys such as name, data and process.")
    return content


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """`child` over `parent`: mappings merge unless `kind` changes, all else replaces."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        merged[key] = value
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and old.get("kind") == value.get("kind", old.get("kind"))
        ):
            merged[key] = merge(old, value)
    return merged


def apply_settings(content: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`content` with every 'a.b=c' applied; c is read as YAML, numbers of the path index lists."""
    result: Any = dict(content)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting}: write it as path=value, such as train.lr=1e-3.")
        try:
            value = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, RecursionError):
            raise ConfigError(f"--set {setting}: '{text}' is not valid YAML.") from None
        result = _put(result, path.split("."), value, setting)
    return dict(result)


def _put(node: Any, path: Sequence[str], value: Any, setting: str) -> Any:
    if not path:  # an empty mapping empties; any other merges as a child's would
        return merge({"": node}, {"": value})[""] if value != {} else {}
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--set {setting}: '{key}' is not an index of a list of {len(node)}.")
        return [_put(v, rest, value, setting) if i == int(key) else v for i, v in enumerate(node)]
    old = dict(node) if isinstance(node, Mapping) else {}
    return {**old, key: _put(old.get(key), rest, value, setting)}


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
        faults = [line for fault in error.errors() for line in _describe(dict(fault), where)]
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
        raise ConfigError("\n".join(line for fault in faults for line in _describe(fault, where))) from None
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
        _prune(rest, fault["loc"])
    try:
        Experiment.model_validate(rest)
    except ValidationError as second:
        between = [dict(fault) for fault in second.errors() if fault["type"] == "value_error"]
        return [line for fault in between for line in _describe(fault, where)]
    return []


def _prune(node: Any, loc: Sequence[str | int]) -> None:
    """Delete the entry at `loc`; parts of `loc` that name a kind are no keys."""
    *path, last = loc or ("",)
    for key in path:
        if isinstance(node, dict):
            node = node.get(key, node)
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
    if isinstance(node, dict):
        node.pop(last, None)


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


def _describe(fault: dict[str, Any], where: str) -> Iterable[str]:
    place, owner = _locate(fault["loc"], fault["type"])
    at = f"{where}: {place}: " if place else f"{where}: "
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        key = str(fault["loc"][-1])
        yield f"{at}unknown key '{key}'.{_suggest(key, known)} Known keys: {', '.join(known)}"
    elif kind == "union_tag_invalid":
        yield f"{at}unknown kind '{context['tag']}'. Known kinds: {context['expected_tags'].replace(chr(39), '')}"
    elif kind == "missing":
        yield f"{at}missing key '{fault['loc'][-1]}'"
    elif kind == "value_error":
        for line in str(context["error"]).split(CUT):
            yield f"{at}{line}"
    elif kind in ("model_attributes_type", "model_type", "dict_type", "union_tag_not_found"):
        kinds = _options(_annotation(fault["loc"]))
        inner, rest = ("kind: ...", f" Known kinds: {', '.join(kinds)}") if kinds else ("key: value", "")
        yield f"{at}it needs a mapping, such as {{{inner}}}, not {fault['input']!r}.{rest}"
    else:
        message = fault["msg"][0].lower() + fault["msg"][1:]
        yield f"{at}{message}, not {fault['input']!r}"


def _annotation(loc: Sequence[str | int]) -> Any:
    """The type that stands at a path."""
    current: Any = Experiment
    for part in loc:
        options = _options(current)
        current = options[str(part)] if part in options else _inside(current, part)
    return current


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _locate(loc: Sequence[str | int], kind: str) -> tuple[str, type[Value] | None]:
    """(the path as a user writes it, with kinds in brackets; the class that holds its last key)."""
    words: list[str] = []
    current: Any = Experiment
    ends_in_key = kind in ("extra_forbidden", "missing")
    for part in loc[:-1] if ends_in_key else loc:
        options = _options(current)
        if part in options:
            current = options[str(part)]
            words[-1:] = [f"{words[-1]} ({part})"] if words else [f"({part})"]
            continue
        words.append(str(part))
        current = _inside(current, part)
    owner = current if isinstance(current, type) and issubclass(current, Value) else None
    return ".".join(words), owner


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _options(annotation: Any) -> dict[str, Any]:
    """The classes of a union by kind."""
    annotation = _plain(annotation)
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    values = [m for m in members if isinstance(m, type) and issubclass(m, Value) and "kind" in m.model_fields]
    return {str(m.model_fields["kind"].default): m for m in values}


def _inside(annotation: Any, part: str | int) -> Any:
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Value):
        field = annotation.model_fields.get(str(part))
        if field is None:
            return None
        annotation = field.annotation
        only = [m for m in get_args(annotation) if m is not type(None)]
        return only[0] if get_origin(annotation) in (Union, types.UnionType) and len(only) == 1 else annotation
    arguments = get_args(annotation)
    return arguments[-1 if get_origin(annotation) is dict else 0] if arguments else None
