"""What `measure-shift` measures, and on how much."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from snrkit.base.value import MOST_HELD, Batch, Value
from snrkit.shift.amplification import AmplificationProbe
from snrkit.shift.audit import AuditProbe
from snrkit.shift.bootstrap import FEWEST, FEWEST_RESAMPLES, fewest_resamples
from snrkit.shift.estimated_level import EstimatorProbe
from snrkit.shift.estimator import EstimatorConfig
from snrkit.shift.flow_distance import FlowProbe
from snrkit.shift.horizon import HorizonProbe
from snrkit.shift.probe import Probe, ProbeValue
from snrkit.shift.response import ResponseProbe
from snrkit.shift.why import WhyProbe
from snrkit.shift.window import WindowProbe

MOST_RESAMPLED = 10**9  # images in all resamples together

AnyProbe = Annotated[
    EstimatorProbe
    | WindowProbe
    | HorizonProbe
    | WhyProbe
    | FlowProbe
    | AmplificationProbe
    | AuditProbe
    | ResponseProbe,
    Field(discriminator="kind"),
]
"""In the order in which reports show them."""


def every_probe() -> tuple[Probe[Any], ...]:
    """One probe of every kind."""
    return tuple(kind() for kind in _kinds())


def _kinds() -> tuple[type[Any], ...]:
    return get_args(get_args(AnyProbe)[0])


class ShiftConfig(Value):
    """How many trajectories and images to compare, how sure to be, and which further probes to run.

    Norms, variances, nearest levels and the norms of x0_hat are always measured. In a file a probe is its kind, or a
    mapping of its kind and its options. An option may also stand beside `probes`, as `horizon_steps` does for `steps`
    of the probe horizon, and so a resolved file is written; that of a probe that is not asked for has no effect.
    """

    images: int = Field(
        default=1000, ge=FEWEST, le=MOST_HELD, description="sampled trajectories, and forward samples of each kind"
    )
    batch: Batch = Field(default=500, description="images whose states are made and read at once")
    bootstrap: int = Field(default=1000, ge=FEWEST_RESAMPLES, le=100_000, description="resamples behind each interval")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="probability with which each interval is to hold the true value"
    )
    probes: tuple[AnyProbe, ...] = Field(
        default=(WindowProbe(), HorizonProbe(), AmplificationProbe(), AuditProbe(), ResponseProbe()),
        max_length=20,
        description="what is read beside norms, variances and nearest levels: kinds, or mappings of kinds and "
        "their options",
    )
    estimator: EstimatorConfig = Field(
        default=EstimatorConfig(),
        description="size and training of the network that says the level of a state (snrkit fit-estimator)",
    )

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, content: Any) -> Any:
        """The options that stand beside the probes, given to them."""
        if not isinstance(content, Mapping):
            return content
        options = _options(_kinds())
        beside = {key: value for key, value in content.items() if key in options.model_fields}
        options.model_validate(beside)  # here, so that faults are found where the file has them
        rest = {key: value for key, value in content.items() if key not in beside}
        probes = content.get("probes", cls.model_fields["probes"].default)
        return rest | {"probes": [*_with_options(probes, beside)] if isinstance(probes, list | tuple) else probes}

    @field_validator("probes")
    @classmethod
    def _once(cls, probes: tuple[AnyProbe, ...]) -> tuple[AnyProbe, ...]:
        if len({probe.kind for probe in probes}) < len(probes):
            raise ValueError("a probe is named twice")
        return probes

    @model_validator(mode="after")
    def _resampled(self) -> "ShiftConfig":
        if self.bootstrap * self.images > MOST_RESAMPLED:
            raise ValueError(
                f"bootstrap {self.bootstrap:,} times images {self.images:,} is more than {MOST_RESAMPLED:,}, and a "
                "number is held for each; lower one of them"
            )
        if self.bootstrap < fewest_resamples(self.confidence):
            raise ValueError(
                f"bootstrap {self.bootstrap} leaves no resample beyond an interval of confidence {self.confidence}; "
                f"raise bootstrap to {fewest_resamples(self.confidence)} at least"
            )
        return self

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Kinds, and the options beside them."""
        content: dict[str, Any] = handler(self)
        for kind, options in zip((p.kind for p in self.probes), content.get("probes", ()), strict=False):
            content |= {f"{kind}_{name}": value for name, value in options.items() if name != "kind"}
        return content | ({"probes": [p.kind for p in self.probes]} if "probes" in content else {})

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """The fields, and the options of all probes."""
        return (*cls.model_fields, *_options(_kinds()).model_fields)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The fields, with kinds for probes and the options of all probes."""
        found = handler(core_schema)
        properties = handler.resolve_ref_schema(found)["properties"]
        options = handler.resolve_ref_schema(handler(_options(_kinds()).__pydantic_core_schema__))
        probes = properties["probes"]
        probes["items"] = {"anyOf": [{"enum": [probe.kind for probe in every_probe()]}, probes["items"]]}
        properties |= options["properties"]
        return found


@cache
def _options(kinds: tuple[type[Any], ...]) -> type[Value]:
    """The options of probes of these kinds as the fields `<kind>_<option>` of one Value."""
    fields: dict[str, Any] = {
        f"{kind.model_fields['kind'].default}_{name}": (field.annotation, field)
        for kind in kinds
        for name, field in kind.model_fields.items()
        if name != "kind"
    }
    return create_model("ProbeOptions", __base__=Value, **fields)


def _with_options(probes: Iterable[Any], beside: Mapping[str, Any]) -> Iterable[Any]:
    """Probes as mappings with the options that stand beside them; what is no probe is left as it is."""
    for probe in map(_as_mapping, probes):
        if not isinstance(probe, Mapping):
            yield probe
            continue
        kind = probe.get("kind")
        fields = next((k.model_fields for k in _kinds() if k.model_fields["kind"].default == kind), ())
        options = {name: beside[f"{kind}_{name}"] for name in fields if f"{kind}_{name}" in beside}
        for name, value in options.items():
            if probe.get(name, value) != value:
                raise ValueError(f"{kind}_{name} is {value!r}, and {name} of the probe is {probe[name]!r}; give one")
        yield {**probe, **options}


def _as_mapping(probe: Any) -> Any:
    if isinstance(probe, str):
        return {"kind": probe}
    if isinstance(probe, ProbeValue):
        return {"kind": type(probe).model_fields["kind"].default, **probe.model_dump(exclude_unset=True)}
    return probe
