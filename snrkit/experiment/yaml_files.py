"""YAML files as mappings: read without trust, merged with their base, changed by settings.

`base: other.yaml` inherits from one parent (mappings merge, all else replaces); `--set a.b=c` comes last. Texts know
the folder that they are said in, so that a relative path is one from its file, or from where `--set` is written.

Only plain values are read: texts, numbers, truth values, lists, and mappings from texts, of a bounded size and depth.
What is wrong is told by its place, never by the file's words: a `base` may point to what is nobody else's business.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from snrkit.base.errors import ConfigError, SnrkitError, shown
from snrkit.base.regular import read_regular
from snrkit.base.value import LONGEST_PATH, FileText

LARGEST = 2**20  # bytes of a file; a table of 20,000 betas has less than half of it
MOST_VALUES = 50_000  # of one file, written out
DEEPEST = 50  # values within each other, and keys in the path of a setting
TOO_DEEP = "it is nested more deeply than any experiment"
LONGEST_NUMBER = 100  # characters
MOST_BASES = 20  # one behind the other
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
TEXT = "tag:yaml.org,2002:str"
INDEX = re.compile(r"[0-9]{1,9}")
QUOTED = re.compile(
    r"""('<[a-z ]+>')|'[\s\S]{3,}'|"[\s\S]{3,}\""""
)  # in what PyYAML says: its terms, or the file's words


def _weigh(node: Any, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """(values, depth) that a node stands for, with what its aliases stand for; infinite within itself."""
    if id(node) not in known:
        known[id(node)] = math.inf, math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [_weigh(part, known) for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(count for count, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    return known[id(node)]


def _fault(node: yaml.Node, words: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, words, node.start_mark)


class _Loader(yaml.SafeLoader):
    """Safe YAML that is refused where it holds more than plain values, or more of them than a file can hold."""

    count = depth = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if (
            yaml.__with_libyaml__
        ):  # as PyPI's wheels and distributions have it: the same events, in an eighth of the time
            events = yaml.CSafeLoader(text)
            for name in ("check_event", "get_event", "peek_event"):
                setattr(self, name, getattr(events, name))

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _check_size(*_weigh(node, {}))
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count, self.depth = self.count + 1, self.depth + 1
        _check_size(self.count, self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
        if node is not None and node.tag not in PLAIN:
            raise _fault(node, "only plain values are read: no << and no tags such as !!set")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "a key is a text, not a list or a mapping")
            if key.tag != TEXT:
                raise _fault(key, "this key is no text to YAML, but a number, a truth value or nothing; quote it")
            if key.value in seen:
                raise _fault(key, "a key is given twice")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.yaml_implicit_resolvers = {  # a date is a text, such as in a name
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_size(values: float, depth: float) -> None:
    if values > MOST_VALUES:
        raise yaml.constructor.ConstructorError(None, None, f"it stands for more than {MOST_VALUES:,} values")
    if depth > DEEPEST:
        raise yaml.constructor.ConstructorError(None, None, TOO_DEEP)


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag != TEXT and len(node.value) > LONGEST_NUMBER:
        raise _fault(node, f"a number of more than {LONGEST_NUMBER} characters")
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        raise _fault(node, "half of a character, which is no text")


def plain_values(text: str) -> Any:
    """The values of a YAML text. ValueError says in one line where it is no YAML of plain values, and why."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + _problem(error)) from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"its character {error.position + 1} is none that a text has") from None
    except (RecursionError, ValueError, OverflowError, KeyError):  # explicit tags on what they do not fit
        raise ValueError("it holds a value that is not of the kind that its tag says") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML says, without the file's words."""
    said = error.problem or error.context or "it cannot be read"
    if "nesting depth" in said:  # libyaml's own bound, which it meets while it looks ahead
        return TOO_DEEP
    return shown(QUOTED.sub(lambda found: found[1] or "(...)", said))


def read_yaml(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a file with its `base:` merged in. ConfigError when unreadable or circular."""
    if path.resolve() in children:
        raise ConfigError(f"{path}: base leads back to itself; remove one base")
    if len(children) > MOST_BASES:
        raise ConfigError(f"{path}: base: there are more than {MOST_BASES} files behind each other; merge some.")
    content = read_mapping(path, f"{children[-1]}: base: " if children else "")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or not 0 < len(base) <= LONGEST_PATH or "\0" in base:
        raise ConfigError(f"{path}: base: give the path of one other YAML file.")
    return merge(read_yaml(path.parent / base, (*children, path.resolve())), content)


def alone(content: bytes, path: Path) -> dict[str, Any]:
    """The mapping of a file that inherits from no other, as a run directory's. ConfigError where it has a base."""
    found = _mapping(content, str(path))
    if "base" in found:
        raise ConfigError(f"{path}: base: the file of a run directory is whole and has none; snrkit did not write it.")
    return found


def read_mapping(path: Path, asked: str = "") -> dict[str, Any]:
    """The mapping that a file holds. ConfigError when unreadable; `asked`: the key that asked for it."""
    remedy = "name another file, by its path from this one's folder." if asked else "give --config a YAML file's path."
    try:
        content = read_regular(path, LARGEST)
    except SnrkitError as error:
        raise ConfigError(f"{asked}{error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{asked}{path} does not exist; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{asked}{path} cannot be read ({error.strerror}); {remedy}") from None
    mapping: dict[str, Any] = _said_in(path.parent.absolute(), _mapping(content, f"{asked}{path}"))
    return mapping


def _mapping(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = plain_values(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is no text in UTF-8 (its byte {error.start + 1}); save it as such.") from None
    except ValueError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: an experiment is a mapping of keys such as name, data and process.")
    return found


def _said_in(folder: Path, value: Any) -> Any:
    """The value with its texts as said in a folder."""
    if isinstance(value, dict):
        return {key: _said_in(folder, part) for key, part in value.items()}
    if isinstance(value, list):
        return [_said_in(folder, part) for part in value]
    return FileText(value, folder) if isinstance(value, str) else value


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
    """`content` with every 'a.b=c' applied; c is read as YAML, numbers of the path index lists.

    A path in c is one from the working directory, but for a setting that a file says.
    """
    result: Any = dict(content)
    for setting in settings:
        said = f"--set {shown(setting)}"
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"{said}: write it as path=value, such as train.lr=1e-3.")
        if path.count(".") >= DEEPEST:
            raise ConfigError(f"{said}: its path has more than {DEEPEST} keys.")
        try:
            value = _said_in(getattr(setting, "folder", Path.cwd()), plain_values(text))
        except ValueError as error:
            raise ConfigError(f"{said}: its value is not valid YAML: {error}.") from None
        result = _put(result, path.split("."), value, said)
    return dict(result)


def _put(node: Any, path: Sequence[str], value: Any, said: str) -> Any:
    if not path:  # an empty mapping empties; any other merges as a child's would
        return merge({"": node}, {"": value})[""] if value != {} else {}
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        if not INDEX.fullmatch(key) or int(key) >= len(node):
            raise ConfigError(f"{said}: '{shown(key)}' is not an index of a list of {len(node)}.")
        return [_put(v, rest, value, said) if i == int(key) else v for i, v in enumerate(node)]
    old = dict(node) if isinstance(node, Mapping) else {}
    return {**old, key: _put(old.get(key), rest, value, said)}
