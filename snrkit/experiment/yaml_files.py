"""YAML files as mappings: read without trust, merged with their base, changed by settings.

`base: other.yaml` inherits from one parent (mappings merge, all else replaces); `--set a.b=c` comes last.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from snrkit.base.errors import ConfigError

MOST_VALUES = 100_000  # of one file, written out


def _values(node: Any, known: dict[int, float]) -> float:
    """How many values a YAML node stands for, with what its aliases stand for; infinitely many within itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and aliases that stand for more than a file can hold."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if _values(node, {}) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"it stands for more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a file with its `base:` merged in. ConfigError when unreadable or circular."""
    if path.resolve() in children:
        raise ConfigError(f"{path}: base leads back to itself; remove one base")
    content = read_mapping(path)
    base = content.pop("base", None)
    if base is None:
        return content
    return merge(read_yaml(path.parent / str(base), (*children, path.resolve())), content)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a file holds. ConfigError when unreadable."""
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give --config the path of a YAML file.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested more deeply than any experiment.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give --config the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: an experiment is a mapping of keys such as name, data and process.")
    return content


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """`child` over `parent`: mappings merge unless `kind` changes, all else replaces."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        merged[key] = value
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and old.get("kind") == value.get("kind", old.get("kind"))
        ):
            merged[key] = merge(old, value)
    return merged


def apply_settings(content: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`content` with every 'a.b=c' applied; c is read as YAML, numbers of the path index lists."""
    result: Any = dict(content)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting}: write it as path=value, such as train.lr=1e-3.")
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, RecursionError):
            raise ConfigError(f"--set {setting}: '{text}' is not valid YAML.") from None
        result = _put(result, path.split("."), value, setting)
    return dict(result)


def _put(node: Any, path: Sequence[str], value: Any, setting: str) -> Any:
    if not path:  # an empty mapping empties; any other merges as a child's would
        return merge({"": node}, {"": value})[""] if value != {} else {}
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--set {setting}: '{key}' is not an index of a list of {len(node)}.")
        return [_put(v, rest, value, setting) if i == int(key) else v for i, v in enumerate(node)]
    old = dict(node) if isinstance(node, Mapping) else {}
    return {**old, key: _put(old.get(key), rest, value, setting)}
