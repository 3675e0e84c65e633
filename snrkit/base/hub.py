"""What lies on the Hugging Face Hub: `hf:owner/name` wherever the path of a model or of images may stand.

    hf:owner/name                      the repository of a model, as it is now
    hf:owner/name@v1.0                 at a branch, a tag or a commit
    hf:owner/name/unet                 a folder, or a file, within it
    hf:datasets/owner/name/train.zip   of the repository of a data set

Files are fetched once, into the Hub's own cache ($HF_HOME), and read as any others: nothing of them is run. Of a
model's repository they are configurations and weights alone, as safetensors in each folder that has any. After a whole
fetch the cache of snrkit keeps what was wanted; without a network that is taken where all of it is still there.
"""

import contextlib
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple, TypeVar

from snrkit.base.cache import open_cache
from snrkit.base.errors import ConfigError, SnrkitError, reason_of
from snrkit.base.files import checksum
from snrkit.base.records import read_record, to_json
from snrkit.base.sealed import write_json
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


@dataclass(frozen=True, slots=True)
class Copy:
    """What was fetched of a repository: the folder on this machine that stands for it, and the files by their names."""

    folder: str
    files: tuple[str, ...]

    @property
    def lacking(self) -> list[str]:
        """Files that are not there."""
        return [file for file in self.files if not Path(self.folder, file).is_file()]


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
    return Path(_fetched(str(path)).folder, place_of(path).inside) if on_hub(path) else path


def lasting(path: Path) -> Path:
    """What a path names, in words that hold in any folder: absolute, but where it names the Hub."""
    if on_hub(path):
        return path
    if ".." in path.parts:  # of the folders above; the name itself may be a link whose own name says nothing
        return path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    return path.absolute()


def files_of(path: Path) -> list[Path]:
    """The files on this machine that a path stands for, sorted: itself or all below it, on the Hub those it wanted.

    Other programs may put more into the Hub's own cache, which is not looked at.
    """
    if on_hub(path):
        copy = _fetched(str(path))
        return sorted(Path(copy.folder, file) for file in copy.files)
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def fetched(value: V) -> V:
    """The value with its paths on this machine."""
    paths = {name: local(part) for name, part in value if isinstance(part, Path) and on_hub(part)}
    return value.model_copy(update=paths) if paths else value


@cache
def _fetched(text: str) -> Copy:
    place, hub = place_of(Path(text)), hub_package()
    try:
        copy = _fetch(hub, place)
    except ConfigError:
        raise
    except Exception as error:  # whatever another's package raises, of a network or of a name
        known = _known(place)
        if known is None or known.lacking:
            raise ConfigError(
                f"{text} cannot be fetched ({reason_of(error)}), and no earlier fetch of it is whole on this machine; "
                "see its name and your network."
            ) from None
        return known
    _keep(place, copy)
    return copy


def _fetch(hub: ModuleType, place: HubPlace) -> Copy:
    """What is wanted of a repository, whole. Raises whatever the package does, and OSError where files are missing."""
    asked = {"repo_id": place.name, "repo_type": place.kind, "revision": place.revision}
    wanted = chosen(hub.HfApi().list_repo_files(**asked), place)
    if not wanted:
        raise ConfigError(f"hf:{place.name} holds nothing at {place.inside or 'its root'} that can be read.")
    copy = Copy(hub.snapshot_download(**asked, allow_patterns=patterns(wanted, place)), tuple(wanted))
    if lacking := copy.lacking:  # some versions of the package give what they have where a network breaks
        raise OSError(f"{len(lacking):,} of {len(wanted):,} files did not come, {lacking[0]} for one")
    return copy


def _record(place: HubPlace) -> Path | None:
    """The file of the cache that says what was fetched; None where there is no cache."""
    folder = open_cache()
    return None if folder is None else folder / f"hub-{checksum(repr(tuple(place)).encode())}.json"


def _known(place: HubPlace) -> Copy | None:
    """What the last whole fetch gave."""
    record = _record(place)
    with contextlib.suppress(SnrkitError):
        return None if record is None else read_record(Copy, record)
    return None


def _keep(place: HubPlace, copy: Copy) -> None:
    """Have the cache, where there is one, keep what a whole fetch gave."""
    record = _record(place)
    with contextlib.suppress(OSError):  # a cache that cannot be written to is none
        if record is not None:
            write_json(record, to_json(copy))


def chosen(files: Sequence[str], place: HubPlace) -> list[str]:
    """The files of a repository that are fetched."""
    if place.inside in files:
        return [place.inside]
    within = [file for file in files if not place.inside or file.startswith(f"{place.inside}/")]
    if place.kind == "dataset":
        return within
    safe = {_folder(file) for file in within if file.endswith(SAFE)}
    weights = [file for file in within if file.endswith(PICKLED if _folder(file) not in safe else SAFE)]
    return [file for file in within if file.endswith(DESCRIBING)] + weights


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def patterns(wanted: Sequence[str], place: HubPlace) -> list[str] | None:
    """What the package is to match file names with so that it fetches those; None: with nothing, as it is all of them.

    A data set may have a hundred thousand files, each of which the package compares with each pattern.
    """
    if place.kind == "model" or place.inside in wanted:
        return [glob.escape(file) for file in wanted]
    return [f"{glob.escape(place.inside)}/*"] if place.inside else None
