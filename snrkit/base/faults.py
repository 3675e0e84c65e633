"""How the errors of a configuration are worded: what is wrong, where in the YAML, and what would be right."""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from snrkit.base.errors import shown
from snrkit.base.value import Value

LONGEST = 1000  # characters of a line, most of which are the known keys
CUT = "\n"  # between the faults that one validator found


def prune(node: Any, loc: Sequence[str | int]) -> None:
    """Delete the entry at `loc`; parts of `loc` that name a kind are no keys."""
    *path, last = loc or ("",)
    for key in path:
        if isinstance(node, dict):
            node = node.get(key, node)
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
    if isinstance(node, dict):
        node.pop(last, None)


def told(faults: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of all faults that pydantic found those that say something: a list is not short for what is wrong within it."""
    places = {tuple(fault["loc"][:length]) for fault in faults for length in range(len(fault["loc"]))}
    return [dict(fault) for fault in faults if fault["type"] != "too_short" or tuple(fault["loc"]) not in places]


def describe(fault: Mapping[str, Any], where: str, root: type[Value]) -> Iterable[str]:
    """The lines that tell a user of one of pydantic's errors about a mapping of class `root`, read from `where`."""
    for line in _lines(fault, where, root):
        yield shown(line, LONGEST)


def _lines(fault: Mapping[str, Any], where: str, root: type[Value]) -> Iterable[str]:
    place, owner = _locate(fault["loc"], fault["type"], root)
    at = f"{where}: {place}: " if place else f"{where}: "
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = owner.file_keys() if owner else ()
        key = shown(str(fault["loc"][-1]), 40)
        yield f"{at}unknown key '{key}'.{suggestion(key, known)} Known keys: {', '.join(known)}"
    elif kind == "union_tag_invalid":
        kinds, named = context["expected_tags"].replace("'", ""), shown(context["tag"], 40)
        yield f"{at}unknown kind '{named}'.{suggestion(named, kinds.split(', '))} Known kinds: {kinds}"
    elif kind == "missing":
        yield f"{at}missing key '{fault['loc'][-1]}'"
    elif kind == "value_error":
        for line in str(context["error"]).split(CUT):
            yield f"{at}{line}"
    elif kind in ("model_attributes_type", "model_type", "dict_type", "union_tag_not_found"):
        options = _options(_annotation(fault["loc"], root))
        inner, rest = ("kind: ...", f" Known kinds: {', '.join(options)}") if options else ("key: value", "")
        yield f"{at}it needs a mapping, such as {{{inner}}}, not {_input(fault)}.{rest}"
    elif kind in ("too_long", "too_short"):
        bound = f"at most {context['max_length']:,}" if kind == "too_long" else f"at least {context['min_length']:,}"
        there = context.get("actual_length")
        yield f"{at}it needs {bound} entries, not {'more' if there is None else f'{there:,}'}"
    else:
        message = fault["msg"][0].lower() + fault["msg"][1:]
        yield f"{at}{message}, not {_input(fault)}"


def _input(fault: Mapping[str, Any]) -> str:
    """What stands in the file, or the beginning of it."""
    return shown(repr(fault["input"]), 60)


def _annotation(loc: Sequence[str | int], root: type[Value]) -> Any:
    """The type that stands at a path."""
    current: Any = root
    for part in loc:
        options = _options(current)
        current = options[str(part)] if part in options else _inside(current, part)
    return current


def suggestion(word: str, known: Sequence[str]) -> str:
    """A known word that is close to one that is not, as a question; nothing where none is."""
    close = difflib.get_close_matches(word, known, 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _locate(loc: Sequence[str | int], kind: str, root: type[Value]) -> tuple[str, type[Value] | None]:
    """(the path as a user writes it, with kinds in brackets; the class that holds its last key)."""
    words: list[str] = []
    current: Any = root
    ends_in_key = kind in ("extra_forbidden", "missing")
    for part in loc[:-1] if ends_in_key else loc:
        options = _options(current)
        if part in options:
            current = options[str(part)]
            words[-1:] = [f"{words[-1]} ({part})"] if words else [f"({part})"]
            continue
        words.append(shown(str(part), 40))
        current = _inside(current, part)
    owner = current if isinstance(current, type) and issubclass(current, Value) else None
    return ".".join(words), owner


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _options(annotation: Any) -> dict[str, Any]:
    """The classes of a union by kind."""
    annotation = _plain(annotation)
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    values = [m for m in members if isinstance(m, type) and issubclass(m, Value) and "kind" in m.model_fields]
    return {str(m.model_fields["kind"].default): m for m in values}


def _inside(annotation: Any, part: str | int) -> Any:
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Value):
        field = annotation.model_fields.get(str(part))
        if field is None:
            return None
        annotation = field.annotation
        only = [m for m in get_args(annotation) if m is not type(None)]
        return only[0] if get_origin(annotation) in (Union, types.UnionType) and len(only) == 1 else annotation
    arguments = get_args(annotation)
    return arguments[-1 if get_origin(annotation) is dict else 0] if arguments else None
