"""The sources of the documentation's site: python docs/assemble.py FOLDER, which mkdocs.yml then builds (make docs).

Pages of docs/ and of the studies as they are, with links that lead within the site; and four pages of reference, made
of the code itself: the keys of experiment files (the JSON schema), the commands (their options), what Python is offered
(docstrings), and the glossary of the reports.
"""

import inspect
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main

import snrkit
from snrkit.commands.cli import app
from snrkit.experiment.experiment import file_schema
from snrkit.reports.glossary import BASICS, TERMS

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
REF = "#/$defs/"


def pages() -> dict[Path, Path]:
    """Where each page of the site comes from, by where it goes."""
    found = {Path("index.md"): ROOT / "README.md", Path("contributing.md"): ROOT / "CONTRIBUTING.md"}
    found |= {path.relative_to(ROOT / "docs"): path for path in sorted(ROOT.glob("docs/**/*.md"))}
    for path in sorted(ROOT.glob("studies/*/*.md")):
        name = "index.md" if path.name == "README.md" else path.name
        found[Path("studies") / path.parent.name / name] = path
    return found


def within_the_site(text: str, source: Path, place: Path, homes: Mapping[Path, Path]) -> str:
    """A page's text, its links turned to where pages lie in the site; of a link to no page the words are left."""

    def turned(found: re.Match[str]) -> str:
        mark, words, link = found.groups()
        file, _, anchor = link.partition("#")
        if mark or file.startswith("http") or not file:
            return found[0] if not mark else f"![{words}]({os.path.relpath(Path(file).name, place.parent)})"
        home = homes.get((source.parent / file).resolve())
        if home is None:
            return words
        return f"[{words}]({os.path.relpath(home, place.parent)}{'#' + anchor if anchor else ''})"

    return LINK.sub(turned, text)


def keys() -> Iterator[str]:
    """The page of all keys: those of the file, then every kind, in order of its first use."""
    schema = file_schema()
    yield "# Keys of experiment files\n\nMade of the schema that `snrkit schema` prints."
    yield from _section("The file", schema, schema["$defs"])
    for name, content in schema["$defs"].items():
        kind, title = content.get("properties", {}).get("kind", {}).get("const"), content.get("title", name)
        title = f"{title} {{#{name}}}" if kind is None else f"{title}: `kind: {kind}` {{#{name}}}"
        yield from _section(title, content, schema["$defs"])


def _section(title: str, content: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n\n{_prose(content.get('description', ''))}"
    rows = [
        f"| `{key}` | {_type(entry, defs)} | {_default(entry)} | {entry.get('description', '')} |"
        for key, entry in content.get("properties", {}).items()
        if key != "kind"
    ]
    if rows:
        yield "| key | value | default | what it is |\n|---|---|---|---|\n" + "\n".join(rows)


def _prose(text: str) -> str:
    """A docstring as Markdown: what stands indented stays as it is written, and a star is a star."""
    return "\n\n".join(
        f"```text\n{inspect.cleandoc(part)}\n```" if part.startswith("    ") else _plain(part)
        for part in text.split("\n\n")
    )


def _plain(text: str) -> str:
    """Text between marks of code without any other mark."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*<_])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def _type(entry: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "$ref" in entry:
        return _linked(entry["$ref"].removeprefix(REF), defs)
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    for key in ("oneOf", "anyOf", "allOf"):
        if key in entry:
            return ", ".join(_type(one, defs) for one in entry[key] if one.get("type") != "null")
    if entry.get("type") == "array":
        return "list of " + _type(entry.get("items", {}), defs)
    bounds = [("≥", "minimum"), (">", "exclusiveMinimum"), ("≤", "maximum"), ("<", "exclusiveMaximum")]
    limits = [f"{sign} {entry[key]:,}" for sign, key in bounds if key in entry]
    return " ".join([str(entry.get("type", "value")), *limits])


def _linked(name: str, defs: Mapping[str, Any]) -> str:
    kind = defs[name].get("properties", {}).get("kind", {}).get("const")
    return f"[{kind or name}](#{name})"


def _default(entry: Mapping[str, Any]) -> str:
    if "default" not in entry:
        return "-"
    value = entry["default"]
    if isinstance(value, Mapping):
        value = "{" + ", ".join(f"{key}: {part}" for key, part in value.items()) + "}"
    return "none" if value is None else f"`{value}`" if value != "" else "empty"


def commands() -> Iterator[str]:
    """The page of all commands and their options."""
    yield "# Commands\n\nWhat `snrkit COMMAND --help` says."
    group = typer.main.get_command(app)
    for name, command in sorted(_flat(group, "")):
        yield f"## snrkit {name}\n\n{inspect.cleandoc(command.help or '')}"
        rows = []
        for option in command.params:
            written = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
            if option.name != "help":
                rows.append(f"| {written} | {(getattr(option, 'help', None) or '').replace('|', '/')} |")
        yield "| option | what it does |\n|---|---|\n" + "\n".join(rows)


def _flat(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def python() -> Iterator[str]:
    """The page of what `snrkit` offers by name."""
    yield "# Python: what snrkit offers\n\nShapes, units, errors and sources as their docstrings give them."
    for name in sorted(snrkit.__all__, key=str.lower):
        thing = getattr(snrkit, name)
        said = _prose(inspect.getdoc(thing) or "")
        if inspect.isfunction(thing):
            yield f"## {name}\n\n```python\n{name}{_signature(thing)}\n```\n\n{said}"
        elif inspect.isclass(thing) and hasattr(thing, "model_fields"):
            fields = ", ".join(f"`{key}`" for key in thing.model_fields if key != "kind")
            yield f"## {name}\n\n{said}\n\nFields, as in [files](keys.md): {fields or 'none'}."
        else:
            yield f"## {name}\n\n{said}"


def glossary() -> Iterator[str]:
    """The page of what names mean, in order of the alphabet."""
    yield "# Glossary\n\nThe names that reports, files and this documentation use, one meaning each."
    for term in sorted((*TERMS, *BASICS), key=lambda term: term.name.lower()):
        also = f" (also {', '.join(term.also)})" if term.also else ""
        yield f"## {_plain(term.name)} {{#{term.anchor}}}\n\n{_plain(term.meaning)}{_plain(also)}"


def _signature(thing: Any) -> str:
    arguments = []
    for name, one in inspect.signature(thing).parameters.items():
        given = "" if one.default is inspect.Parameter.empty else f"={one.default!r:.60}"
        arguments.append(f"{name}{given}")
    return f"({', '.join(arguments)})"


def assemble(folder: Path) -> None:
    """Write all sources anew."""
    shutil.rmtree(folder, ignore_errors=True)
    found = pages()
    homes = {source.resolve(): place for place, source in found.items()}
    for place, source in found.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(within_the_site(source.read_text(), source, place, homes))
    for picture in (*ROOT.glob("docs/**/*.png"), *ROOT.glob("studies/*/*.png")):
        shutil.copy(picture, folder / picture.name)
    for name, blocks in (("keys", keys()), ("commands", commands()), ("api", python()), ("glossary", glossary())):
        (folder / f"{name}.md").write_text("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
