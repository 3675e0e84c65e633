"""All kinds of models from elsewhere, and which of them a file or folder is."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from snrkit.base.errors import SnrkitError
from snrkit.base.regular import open_regular
from snrkit.checkpoints.adm import AdmModel
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.checkpoints.edm import EdmModel
from snrkit.checkpoints.exported import KEY, SnrkitModel
from snrkit.checkpoints.pickles import PERSISTENT, read_pickle
from snrkit.checkpoints.python import PythonModel
from snrkit.checkpoints.safetensors_files import read_header
from snrkit.checkpoints.torch_files import read_torch, weights_of_file
from snrkit.checkpoints.transformers import DitModel, SitModel

AnyForeign = Annotated[
    DiffusersModel | EdmModel | AdmModel | DitModel | SitModel | SnrkitModel | PythonModel, Field(discriminator="kind")
]
READERS = (  # of a format, by the bytes that a file begins with
    (b"PK\x03\x04", "a file of torch's, which adm, dit and sit read"),
    (b"\x80", "a pickle, which edm reads, or an older file of torch's, which adm, dit and sit read"),
    (b"\x89HDF", "an HDF5 file, which no kind reads"),
)
MARKS = {"x_embedder.proj.weight": ("dit", "sit"), "input_blocks.0.0.weight": ("adm",)}  # names of weights


def kinds_of(path: Path) -> tuple[str, ...]:
    """The kinds that a file or folder may be of, by what is in it; none where that is not known."""
    if path.is_dir():
        return ("diffusers",) if any((path / f).is_file() for f in ("model_index.json", "config.json")) else ()
    try:
        if KEY in read_header(path, "model.path"):
            return ("snrkit",)
    except SnrkitError:
        pass
    try:
        content = read_pickle(path)
        held = content.values() if isinstance(content, dict) else ()
        if any(getattr(value, "name", None) == PERSISTENT for value in held):
            return ("edm",)
    except SnrkitError:
        pass
    try:
        weights = weights_of_file(read_torch(path), None)
    except SnrkitError:
        return ()
    return next((kinds for mark, kinds in MARKS.items() if mark in weights), ())


def looks_like(path: Path, asked: str) -> str:
    """A sentence, after a blank, on the kind that a file or folder is of, where it is not the one that was asked for.

    By what is in it, or by the bytes that it begins with; nothing where neither says it.
    """
    kinds = kinds_of(path)
    if kinds:
        return "" if asked in kinds else f" It looks like kind: {' or '.join(kinds)}."
    try:
        with open_regular(path) as file:
            begins = file.read(16)
    except (SnrkitError, OSError, ValueError):
        return ""
    if begins[8:10] == b'{"':
        return " It is a safetensors file, of which kind diffusers reads the folder that it lies in."
    found = next((what for mark, what in READERS if begins.startswith(mark)), "")
    return f" It is {found}." if found and asked not in found else ""
