"""The coefficients of a sampler's corrections, as tune names and sets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snrkit.base.errors import ConfigError
from snrkit.experiment.yaml_files import apply_settings
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.step import Range, Tunable

Values = tuple[float, ...]
WIDER = 5  # times the range of a sweep, for a value that is solved for


@dataclass(frozen=True, slots=True)
class Knob:
    """One coefficient of one correction."""

    index: int
    name: str
    range: Range

    @property
    def path(self) -> str:
        """As --set writes it, below the sampler."""
        return f"corrections.{self.index}.{self.name}"


def coefficients(sampler: Sampler) -> dict[str, Knob]:
    """All that can be tuned, by index.name."""
    return {
        f"{index}.{name}": Knob(index, name, span)
        for index, correction in enumerate(sampler.corrections)
        for name, span in (correction.tunable.items() if isinstance(correction, Tunable) else ())
    }


def moved(sampler: Sampler) -> list[str]:
    """The coefficients that the sampler's file gives a value other than neutral."""
    known = coefficients(sampler).items()
    return [n for n, k in known if getattr(sampler.corrections[k.index], k.name) != k.range.neutral]


def knobs(sampler: Sampler, chosen: Sequence[str]) -> list[Knob]:
    """The coefficients named as index.name, by default those that are not neutral."""
    known = coefficients(sampler)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--parameter {name}: this sampler has {', '.join(known) or 'no coefficient to tune'}.")
    names = list(chosen) or moved(sampler)
    if not names and not known:
        raise ConfigError(
            "this sampler has no coefficient to tune; give it a correction, or solver: {kind: fitted} and --by flow."
        )
    if not names:
        raise ConfigError(f"every coefficient here is neutral; name those to tune by --parameter: {', '.join(known)}.")
    return [known[name] for name in names]


def neutral(chosen: Sequence[Knob]) -> Values:
    """The values at which these coefficients do nothing."""
    return tuple(knob.range.neutral for knob in chosen)


def with_values(sampler: Sampler, chosen: Sequence[Knob], values: Values) -> Sampler:
    """The sampler with these coefficients, validated."""
    content: Any = sampler.model_dump(mode="json")
    for knob, value in zip(chosen, values, strict=True):
        content = apply_settings(content, [f"{knob.path}={value!r}"])
    return Sampler.model_validate(content)
