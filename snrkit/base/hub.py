"""What lies on the Hugging Face Hub: `hf:owner/name` wherever the path of a model or of images may stand.

    hf:owner/name                      the repository of a model, as it is now
    hf:owner/name@v1.0                 at a branch, a tag or a commit
    hf:owner/name/unet                 a folder, or a file, within it
    hf:datasets/owner/name/train.zip   of the repository of a data set

Files are fetched once, into the Hub's own cache ($HF_HOME), and read as any others: nothing of them is run. Of a
model's repository they are configurations and weights alone, as safetensors where there are any.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

from snrkit.base.errors import ConfigError, reason_of
from snrkit.base.value import HUB, Value

NAMED = re.compile(
    rf"{HUB}/{{0,2}}(?P<data>datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<at>[\w.-]+))?(?:/(?P<inside>.+))?"
)
DESCRIBING = (".json", ".txt", ".model", ".yaml")
SAFE, PICKLED = ".safetensors", (".bin", ".pt", ".pth", ".pkl")

V = TypeVar("V", bound=Value)


class HubPlace(NamedTuple):
    """A repository, and where in it."""

    name: str
    kind: Literal["model", "dataset"]
    revision: str | None
    inside: str

    @property
    def written(self) -> str:
        """The repository, at its revision, as a path names it."""
        kind = "datasets/" if self.kind == "dataset" else ""
        return f"{HUB}{kind}{self.name}" + ("" if self.revision is None else f"@{self.revision}")


def hub_package() -> ModuleType:
    """The package huggingface_hub; ConfigError says how to install it."""
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError("the package huggingface_hub is not installed; pip install 'snrkit[hub]'.") from None
    return huggingface_hub


def on_hub(path: Path) -> bool:
    """Whether a path names what lies on the Hub."""
    return str(path).startswith(HUB)


def place_of(path: Path) -> HubPlace:
    """What a path names. ConfigError where it is none of the Hub's."""
    found = NAMED.fullmatch(str(path))
    if found is None or ".." in str(path).split("/"):
        raise ConfigError(f"{path} names nothing on the Hub; write hf:owner/name, hf:owner/name@revision/folder.")
    return HubPlace(found["name"], "dataset" if found["data"] else "model", found["at"], found["inside"] or "")


def local(path: Path) -> Path:
    """Where what a path names lies on this machine, fetched where it must be. ConfigError where it cannot be had."""
    return _fetched(str(path)) if on_hub(path) else path


def fetched(value: V) -> V:
    """The value with its paths on this machine."""
    paths = {name: local(part) for name, part in value if isinstance(part, Path) and on_hub(part)}
    return value.model_copy(update=paths) if paths else value


@cache
def _fetched(text: str) -> Path:
    place, hub = place_of(Path(text)), hub_package()
    asked = {"repo_id": place.name, "repo_type": place.kind, "revision": place.revision}
    try:
        folder = _snapshot(hub, place, asked)
    except ConfigError:
        raise
    except Exception as error:  # whatever another's package raises, of a network or of a name
        try:
            folder = hub.snapshot_download(**asked, local_files_only=True)  # fetched before, and no network now
        except Exception:
            raise ConfigError(
                f"{text} cannot be fetched ({reason_of(error)}); see its name and your network."
            ) from None
    return Path(folder) / place.inside


def _snapshot(hub: ModuleType, place: HubPlace, asked: dict[str, Any]) -> str:
    wanted = chosen(hub.HfApi().list_repo_files(**asked), place)
    if not wanted:
        raise ConfigError(f"hf:{place.name} holds nothing at {place.inside or 'its root'} that can be read.")
    folder: str = hub.snapshot_download(**asked, allow_patterns=wanted)
    return folder


def chosen(files: Sequence[str], place: HubPlace) -> list[str]:
    """The files of a repository that are fetched."""
    if place.inside in files:
        return [place.inside]
    within = [file for file in files if not place.inside or file.startswith(f"{place.inside}/")]
    if place.kind == "dataset":
        return within
    safe = [file for file in within if file.endswith(SAFE)]
    weights = safe or [file for file in within if file.endswith(PICKLED)]
    return [file for file in within if file.endswith(DESCRIBING)] + weights
