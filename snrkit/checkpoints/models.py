"""All kinds of models from elsewhere, and which of them a file or folder is."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from snrkit.base.errors import SnrkitError
from snrkit.checkpoints.adm import AdmModel
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.checkpoints.edm import EdmModel
from snrkit.checkpoints.pickles import PERSISTENT, read_pickle
from snrkit.checkpoints.torch_files import read_torch, weights_of_file
from snrkit.checkpoints.transformers import DitModel, SitModel

AnyForeign = Annotated[DiffusersModel | EdmModel | AdmModel | DitModel | SitModel, Field(discriminator="kind")]
MARKS = {"x_embedder.proj.weight": ("dit", "sit"), "input_blocks.0.0.weight": ("adm",)}  # names of weights


def kinds_of(path: Path) -> tuple[str, ...]:
    """The kinds that a file or folder may be of, by what is in it; none where that is not known."""
    if path.is_dir():
        return ("diffusers",) if any((path / f).is_file() for f in ("model_index.json", "config.json")) else ()
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
