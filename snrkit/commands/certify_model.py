"""A YAML for `snrkit certify MODEL --data IMAGES`: a file or folder of a model, measured as it is."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from snrkit.base.errors import ConfigError
from snrkit.base.files import disk_errors, write_text
from snrkit.base.hub import local
from snrkit.base.value import LONGEST_NAME
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.checkpoints.exported import SnrkitModel
from snrkit.checkpoints.models import kinds_of
from snrkit.data.dataset import fingerprint
from snrkit.data.files import EXTENSIONS, kind_of_file

MADE = "# written by snrkit certify"
LOOKED_AT = 1000  # entries of a folder


def write_experiment(model: Path, data: Path | None, nfe: int, size: int | None = None) -> Path:
    """Write `certify-NAME.yaml`, or `certify-NAME-SIZE.yaml`, beside the run directories and return it.

    `size` is the side of the states of a model that takes several. ConfigError where it cannot be known.
    """
    if data is None:
        raise ConfigError(f"{model}: give the images that it is to make by --data, or a YAML by --config.")
    here = local(model)
    if not here.exists():
        raise ConfigError(f"{model}: there is no such file or folder; name a model's, or a YAML by --config.")
    if not local(data).exists():
        raise ConfigError(f"--data: {data} does not exist; give the folder, zip or .npz of the images.")
    source = kind_of_file(local(data))
    if source is None:
        raise ConfigError(f"--data: {data} is no folder, zip or .npz of images; give one of these.")
    kinds = kinds_of(here)
    if not kinds and _holds_images(here):
        raise ConfigError(
            f"{model} holds images, and no model that is known; name the model, and the images by --data."
        )
    if len(kinds) != 1:
        known = f"may be of kind {' or '.join(kinds)}" if kinds else "is of no kind that is known"
        raise ConfigError(f"{model} {known}; write a YAML with `model: {{kind: ..., path: {model}}}` for --config.")
    if size is not None and kinds[0] != "diffusers":
        raise ConfigError(f"--size: {model} is of kind {kinds[0]}, whose file says its one size; drop it.")
    path = Path(f"certify-{_slug(model)}.yaml" if size is None else f"certify-{_slug(model)}-{size}.yaml")
    asked = f"{model} --data {data} --nfe {nfe}" + ("" if size is None else f" --size {size}")
    content = _content(model, {"kind": source, "path": str(data)}, nfe, kinds[0], size)
    text = f"{MADE} {asked} ({fingerprint(content)})\n{content}"
    if path.exists() and not _as_it_was_made(path):
        raise ConfigError(f"{path} is there and was edited; certify it by --config {path}, or move it away.")
    with disk_errors(f"writing {path}", "free space or work in another folder"):
        write_text(path, text)
    return path


def _as_it_was_made(path: Path) -> bool:
    """Whether a file is one of these that nobody has changed, and may be written anew."""
    head, _, content = path.read_text().partition("\n")
    return head.startswith(MADE) and head.endswith(f"({fingerprint(content)})")


def _content(model: Path, data: dict[str, str], nfe: int, kind: str, size: int | None) -> str:
    grid = spacing_of(local(model), kind)
    solver = {"kind": "heun" if grid["kind"] == "karras" else "euler"}  # as their own samplers have them
    steps = (nfe + 1) // 2 if solver["kind"] == "heun" else nfe
    cost = 2 * steps - 1 if solver["kind"] == "heun" else nfe
    content: dict[str, Any] = {
        "data": data,
        "model": {"kind": kind, "path": str(model), **({} if size is None else {"sides": [size, size]})},
        "samplers": {f"{solver['kind']}-{cost}": {"grid": {**grid, "steps": steps}, "solver": solver}},
        "metrics": {"features": "pixels"},
    }
    return yaml.safe_dump(content, sort_keys=False, width=120)


def spacing_of(model: Path, kind: str) -> dict[str, Any]:
    """As the model's own sampler has it; uniform in its own time where that is not known."""
    if kind == "diffusers":
        return DiffusersModel(path=model).spacing()
    of_edm = kind == "edm" or (kind == "snrkit" and SnrkitModel(path=model).about().process.kind == "edm")
    return {"kind": "karras"} if of_edm else {"kind": "uniform_time"}


def _slug(model: Path) -> str:
    """A name that a run can have."""
    found = re.sub(r"[^A-Za-z0-9_-]+", "-", model.resolve().stem).strip("-_") or "model"
    return found[: LONGEST_NAME - len("certify--10000")]


def _holds_images(folder: Path) -> bool:
    """Whether there are images among the first entries of a folder."""
    return any(path.suffix.lower() in EXTENSIONS for path in islice(folder.rglob("*"), LOOKED_AT))
