"""The shape of the package in numbers, of this tree and of another: python tests/shape.py [--against COMMIT]."""

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "3f0a976"
SHORT = 3  # words of a docstring that hardly says more than a name


def docstrings(tree):
    """(node, text) of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node, text


def lines_of(text, tree):
    """Lines that are neither blank nor within a docstring."""
    within = set()
    for node, _ in docstrings(tree):
        within |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in within)


def signatures(tree):
    """Functions and fields that take a whole opened experiment: data, setting, configuration and device at once."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield from [1] if re.search(r"\bOpened(Experiment)?\b", ast.unparse(node.annotation)) else []


def shape(root):
    """What is counted, by name."""
    files = {path.relative_to(root / "snrkit").as_posix(): path.read_text() for path in (root / "snrkit").rglob("*.py")}
    trees = {name: ast.parse(text) for name, text in files.items()}
    every = "\n".join(files.values())
    functions = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return {
        "files at the root of the package": len([*(root / "snrkit").glob("*.py*")]),
        "modules": len(files),
        "lines without blanks and docstrings": sum(lines_of(files[name], trees[name]) for name in files),
        "functions": len(functions),
        "signatures with the whole opened experiment": sum(len(list(signatures(tree))) for tree in trees.values()),
        "reads of opened.experiment": len(re.findall(r"\b(?:opened|o)\.experiment\b", every)),
        "'model is None'": len(re.findall(r"model is (?:not )?None", every)),
        "fmt: skip": every.count("# fmt: skip"),
        "dict[str, Any], Mapping[str, Any]": len(re.findall(r"(?:dict|Mapping)\[str, Any\]", every)),
        f"docstrings of at most {SHORT} words": sum(
            len(text.split()) <= SHORT for tree in trees.values() for _, text in docstrings(tree)
        ),
        "files that name spectra outside spectral/": sum(
            "spectr" in text.lower() for name, text in files.items() if not name.startswith("spectral/")
        ),
    }


def tree_of(commit, folder):
    """The package of a commit, unpacked."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "snrkit"], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return Path(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default=BEFORE)
    with tempfile.TemporaryDirectory() as folder:
        before, after = shape(tree_of(parser.parse_args().against, folder)), shape(ROOT)
    print("| | before | after |\n|---|---|---|")
    for name, count in before.items():
        print(f"| {name} | {count:,} | {after[name]:,} |")


if __name__ == "__main__":
    main()
