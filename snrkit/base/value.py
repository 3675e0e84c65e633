"""Values: frozen pieces of configuration that carry their own behaviour.

A Value is its own configuration: it is parsed straight from YAML, by a union discriminated on `kind`, and then used as
it is. It holds plain numbers, strings and other Values; never a tensor, never a file.
"""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Base of all configuration. Unknown keys are refused, instances are immutable and hashable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """The keys that its mapping in a file may have."""
        return tuple(cls.model_fields)
