"""Values: frozen pieces of configuration that carry their own behaviour.

A Value is its own configuration: it is parsed straight from YAML, by a union discriminated on `kind`, and then used as
it is. It holds plain numbers, strings and other Values; never a tensor, never a file.

What stands in a file is a stranger's, so that every number, list and text of a Value has an upper bound: beyond what
anybody uses, and below what would take the memory or the day before anything is said. The bounds that many share are
named here.
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from snrkit.base.errors import ValueFaultError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Worded(ModelMetaclass):
    """Faults of arguments in the words that faults of files have; files themselves are read by `model_validate`."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:  # noqa: N805 - of a metaclass
        try:
            return super().__call__(*arguments, **named)
        except ValidationError as error:
            from snrkit.base.faults import describe, told

            root = cast(type[Value], cls)
            lines = [line for fault in told(error.errors()) for line in describe(fault, cls.__name__, root)]
            raise ValueFaultError("\n".join(dict.fromkeys(lines))) from None


class Value(BaseModel, metaclass=_Worded):
    """Base of all configuration. Unknown keys are refused, instances are immutable and hashable.

    Made by arguments that it does not take it raises ConfigError, which is a ValueError there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """The keys that its mapping in a file may have."""
        return tuple(cls.model_fields)


PLAIN = re.compile(r"[^\W_][\w.-]*")  # letters and digits of any script
LONGEST_NAME = 100  # bytes of what becomes a folder or a file
LONGEST_TABLE = 100_000  # levels
LARGEST_SIDE, MOST_LABELS = 2**14, 10**7  # of images
WIDEST, LARGEST_BATCH, MOST_HELD = 2**14, 10**6, 10**7  # channels, images at once, images in memory
HUB = "hf:"  # how a path begins of what lies on the Hugging Face Hub (hub.py)
LONGEST_PATH, LONGEST_PART = 4000, 255  # characters of a path, and bytes of what stands between its slashes
ENDINGS = (".png", ".npz", ".json", ".jsonl", ".csv", ".yaml", ".yml", ".md", ".html", ".zip", ".safetensors", ".tmp")


def _plain_name(name: str) -> str:
    """What is no file of another kind, and the same on every system."""
    if not unicodedata.is_normalized("NFKC", name):
        raise ValueError("a name is in Unicode's composed form (NFKC), as systems differ in others; write it anew")
    if not PLAIN.fullmatch(name):
        raise ValueError(
            "a name begins with a letter or digit and goes on with these, '.', '_' and '-'; it becomes a folder or file"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} bytes in UTF-8; it becomes a folder or file")
    if name.endswith(".") or name.lower().endswith(ENDINGS):
        raise ValueError(
            "a name ends neither in a dot nor as a file does, such as in .png; it becomes a folder or file"
        )
    return name


class FileText(str):
    """A text as a file has it, which knows the folder of that file: a relative path is one from there."""

    folder: Path

    def __new__(cls, text: str, folder: Path = Path()) -> "FileText":
        made = super().__new__(cls, text)
        made.folder = folder
        return made


def placed(path: Any) -> Any:
    """A path as its file means it; anything else as it is."""
    return path.folder / path if isinstance(path, FileText) and not path.startswith(HUB) else path


def _plain_path(path: Path) -> Path:
    """What a system may look for."""
    try:
        parts = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError:
        parts = [LONGEST_PART + 1]
    if len(str(path)) > LONGEST_PATH or max(parts, default=0) > LONGEST_PART or "\0" in str(path):
        raise ValueError("no file has such a path: it is too long, or holds what no name does")
    return path


def different(names: Iterable[str]) -> None:
    """ValueError where two names are one to a system that does not tell upper from lower case."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFKC", name.casefold()), name)
        if other is not name:
            raise ValueError(f"'{other}' and '{name}' differ in upper and lower case alone; rename one")


Name = Annotated[
    str,
    Field(max_length=LONGEST_NAME),
    AfterValidator(_plain_name),
]  # of what becomes a folder or a file
Text = Annotated[str, Field(max_length=200)]
Texts = Annotated[tuple[Text, ...], Field(max_length=100)]
Place = Annotated[Path, BeforeValidator(placed), AfterValidator(_plain_path)]

# A field that begins higher says both bounds itself: pydantic takes the lower bound of a type over a field's own.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # of a stream
Images = Annotated[int, Field(ge=1, le=10**12)]  # counted in training, and never held
Seen = Annotated[int, Field(ge=0, le=10**12)]  # images, of a training so far
Label = Annotated[int, Field(ge=0, le=MOST_LABELS)]
Classes = Annotated[int, Field(ge=0, le=MOST_LABELS)]
Steps = Annotated[int, Field(ge=1, le=10_000)]  # of sampling
Batch = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]  # images at once
Count = Annotated[int, Field(ge=1, le=MOST_HELD)]  # of what is held
Width = Annotated[int, Field(ge=1, le=WIDEST)]  # channels of a network
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]  # of images


class Grown(Value):
    """A Value with options that came later: at their defaults they are not written, so that older records still fit."""

    later: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {k: v for k, v in content.items() if k not in self.later or v != fields[k].default}
