"""Samplers that are the recipe of a certificate: `samplers: {mine: {certificate: PATH}}`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.records import read_record
from snrkit.base.value import placed
from snrkit.experiment.certificate import Certificate

REMEDY = "name a certificate, which snrkit certify writes to RUN/certify/NAME.json"


def with_recipes(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The mapping with every sampler that names a certificate written out. ConfigError where it cannot be read."""
    samplers = content.get("samplers")
    if not isinstance(samplers, Mapping):
        return content
    return {**content, "samplers": {name: _expanded(name, given, where) for name, given in samplers.items()}}


def _expanded(name: Any, given: Any, where: str) -> Any:
    """A sampler as its certificate has it; what a resolved file says beside it must be the same."""
    if not isinstance(given, Mapping) or given.get("certificate") is None:
        return given
    at, path = f"{where}: samplers.{name}.certificate", given["certificate"]
    if not isinstance(path, str):
        raise ConfigError(f"{at}: {REMEDY}")
    try:
        recipe = read_record(Certificate, Path(placed(path)), REMEDY).recipe.definition
    except SnrkitError as error:
        raise ConfigError(f"{at}: {error}") from None
    found = {**recipe, "certificate": path}
    other = [key for key, value in given.items() if key in recipe and key != "certificate" and value != recipe[key]]
    if other:
        raise ConfigError(f"{at}: the recipe has another {other[0]}; drop {', '.join(other)}")
    return {**given, **found}
