"""Folders that diffusers saves: their configurations, and modules with their weights. Needs the extra `diffusers`.

Weights are safetensors or, where there are none, torch's files, which are read by torch_files.py before diffusers sees
them, so that nothing in them is run. Nothing is downloaded, and a network that the weights do not fill is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snrkit.base.errors import ConfigError, SnrkitError, reason_of, unreadable, with_article
from snrkit.base.outline import outlined
from snrkit.base.regular import check_regular, read_regular
from snrkit.checkpoints.torch_files import read_torch
from snrkit.networks.of_diffusers import LARGEST_NUMBER, LAYERS, MOST_LAYERS, diffusers_package

RENAMED: dict[tuple[str, str], str] = {  # classes of older folders, by the norm that told them apart
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel"
}
LARGEST_JSON = 2**20  # bytes
LONGEST_CLASS = 100  # letters of a name
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+?))?(?:-\d+-of-\d+)?\.(?P<format>safetensors|bin)"
)
PLAIN_NAME = re.compile(r"[\w.-]+")


def class_of(path: Path, asked: Path, key: str = "model.path") -> tuple[str, dict[str, Any]]:
    """(the class that a configuration names, the configuration). `key` is what asked for it."""
    if not asked.exists():
        raise ConfigError(f"{key}: {absent(asked)}.")
    if not path.is_file():
        raise ConfigError(f"{key}: {asked} has no {path.name}, as folders that diffusers saves a model in have.")
    content = _json(path, key)
    named = content.get("_class_name") if isinstance(content, dict) else None
    if not isinstance(named, str) or not named.isidentifier() or len(named) > LONGEST_CLASS:
        raise ConfigError(f"{key}: {path} names no class (_class_name), as folders of diffusers do.")
    return RENAMED.get((named, str(content.get("norm_type"))), named), content


FROM = "a relative path in a YAML is one from that file's folder"


def absent(path: Path) -> str:
    """That a folder is not there, or is none."""
    if path.exists():
        return f"{path} is no folder, as diffusers saves models in"
    return f"{path} does not exist; {FROM}" if path.is_absolute() else f"{path} does not exist"


def _json(path: Path, key: str, largest: int = LARGEST_JSON) -> Any:
    try:
        return json.loads(read_regular(path, largest), parse_constant=_constant)
    except SnrkitError as error:
        raise ConfigError(f"{key}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{key}: {unreadable(path, error)}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{key}: {path} is not valid JSON.") from None


def _constant(name: str) -> float:
    """Infinity, which schedulers of diffusers write for a bound that there is not; but no NaN."""
    if name == "NaN":
        raise ValueError(name)
    return float(name)


def pretrained(name: str, config: Mapping[str, Any], folder: Path, key: str) -> Any:
    """The module of a class of diffusers with the weights of a folder, which `key` of an experiment names.

    ConfigError where the folder has no weights, some of them are missing, or they are no safe files.
    """
    package = diffusers_package()
    kind = getattr(package, name)
    variant, files = find_weights(folder, key)
    safe = any(file.suffix == ".safetensors" for file in files)
    for file in [] if safe else files:
        try:
            read_torch(file)
        except SnrkitError as error:
            raise ConfigError(f"{key}: {error}") from None
    _check_size(kind, config, folder, key)
    try:
        module, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            variant=variant,
            use_safetensors=safe,
            output_loading_info=True,
            low_cpu_mem_usage=package.utils.is_accelerate_available(),
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, and not of diffusers
            raise ConfigError(f"{key}: {unreadable(folder, error)}") from None
        raise ConfigError(f"{key}: {folder} has no weights that {name} can read ({reason_of(error)}).") from None
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"{key}: the weights in {folder} lack {missing[0][:80]} and so do not fill {with_article(name)}."
        )
    return module


def find_weights(folder: Path, key: str) -> tuple[str | None, list[Path]]:
    """(variant, such as fp16, the files) of a folder's weights. ConfigError where there are none."""
    found = [match for file in sorted(folder.iterdir()) if (match := WEIGHTS.fullmatch(file.name))]
    if not found:
        raise ConfigError(f"{key}: {folder} has no weights, such as diffusion_pytorch_model.safetensors.")
    plain = any(match["variant"] is None for match in found)
    variant = None if plain else min(match["variant"] for match in found)
    for index in folder.glob("*.index*.json"):
        listed = _json(index, key, 2**24)
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict) or not all(PLAIN_NAME.fullmatch(str(name)) for name in names.values()):
            raise ConfigError(f"{key}: {index} does not list files of its own folder.")
    files = [folder / match.string for match in found if match["variant"] == variant]
    for file in files:
        regular(file, key)
    return variant, files


def regular(path: Path, key: str) -> None:
    """Refuse what is no file, such as a pipe, before another library waits for it: ConfigError."""
    try:
        check_regular(path)
    except SnrkitError as error:
        raise ConfigError(f"{key}: {error}") from None
    except (OSError, ValueError):
        raise ConfigError(f"{key}: {path} cannot be opened; see that it is there and may be read.") from None


def _check_size(kind: Any, config: Mapping[str, Any], folder: Path, key: str) -> None:
    """Refuse a configuration of a larger network than the folder's weights can fill, before it takes memory."""
    whole = [value for value in config.values() if isinstance(value, int)]
    layers = [config[name] for name in LAYERS if isinstance(config.get(name), int)]
    rows = [len(value) for value in config.values() if isinstance(value, list)]
    if max(whole, default=0) > LARGEST_NUMBER or max([*layers, *rows], default=0) > MOST_LAYERS:
        raise ConfigError(f"{key}: {folder / 'config.json'} describes no network of a possible size.")
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    try:
        with outlined():
            count = sum(p.numel() for p in kind.from_config(config).parameters())
    except (TypeError, ValueError, RuntimeError, NotImplementedError, ZeroDivisionError) as error:
        raise ConfigError(f"{key}: {folder / 'config.json'} describes no network ({reason_of(error)}).") from None
    if count > stored:  # a byte for each, at the least
        text = f"{folder} has {stored:,} bytes of weights, for a network of {count:,} numbers"
        raise ConfigError(f"{key}: {text}.")
