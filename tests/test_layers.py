"""The shape of the code: imports point down the list of rooms, functions stay short, --help stays light."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "snrkit"
ROOMS = (  # from bottom to top; what stands side by side does not know each other
    "base", "diffusion loggers", "networks data", "spectral", "checkpoints", "metrics", "training", "sampling",
    "shift analysis", "fitting", "pipelines", "experiment", "reports", "commands",
)  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms.split()}
ROOT = {"__init__", "__main__"}  # of everyone, and of no one


@cache
def modules():
    """(dotted name within the package, tree) of every file."""
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), tree)
        for path in sorted(PACKAGE.rglob("*.py"))
        for tree in [ast.parse(path.read_text())]
    ]


def imported(tree):
    """Rooms that a module imports from, but for those that only type checkers see."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms = [name.split(".")[1] for name in names if name.startswith("snrkit.")]
        yield from (room for room in rooms if room != "__version__")


def test_imports_point_down_the_list_of_rooms():
    """A room imports from itself and from rooms below it, and every module but the root's own lies in a room."""
    for name, tree in modules():
        room = name.split(".")[0]
        if room in ROOT:
            continue
        below = {other for other in FLOOR if FLOOR[other] < FLOOR[room] or other == room}
        assert not set(imported(tree)) - below, name


def test_spectra_are_known_in_their_own_room():
    """Beside it: the three unions that list their values, what a run is composed of, and two commands about them."""
    known = {name for name, tree in modules() if "spectral" in imported(tree) and not name.startswith("spectral")}
    assert known == {
        "training.level_samplers", "training.weighting", "sampling.grid",
        "experiment.models", "experiment.sources", "commands.sample", "commands.analyze_spectrum",
    }  # fmt: skip


def test_no_function_is_over_forty_lines():
    """Networks' constructors excepted; the docstring does not count."""
    long = []
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                length = node.end_lineno - first.lineno + 1
                if length > 40:
                    long.append(f"{name}.{node.name}: {length}")
    assert not long


def test_nothing_numeric_takes_keyword_arguments_at_will():
    """No **kwargs but where calls of diffusers, or arguments for pydantic and commands, are handed on as they come."""
    loose = [
        f"{name}.{node.name}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
    ]
    handed_on = [f"pipelines.{name}" for name in ("_noting", "step", "_stepped", "_corrected")]
    handed_on += ["base.value.__call__", "commands.naming.named"]
    assert sorted(loose) == sorted(handed_on)


def test_every_public_thing_says_what_it_is():
    """Docstrings on every module, and on every public class, function and method that is not local or private.

    What a protocol says of a method its implementations need not say again.
    """
    promised = {
        node.name
        for _, tree in modules()
        for outer in tree.body
        if isinstance(outer, ast.ClassDef)
        and any(ast.unparse(base).split("[")[0] == "Protocol" for base in outer.bases)
        for node in public(outer)
    }
    silent = []
    for name, tree in modules():
        if not ast.get_docstring(tree):
            silent.append(name)
        for owner, node in said(tree):
            told = ast.get_docstring(node) or (owner is not None and node.name in promised)
            silent += [] if told else [f"{name}.{node.name}"]
    assert not silent


def public(tree):
    """Functions and classes of a module, or methods of a class, that are not private."""
    defined = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [node for node in defined if not node.name.startswith("_")]


def said(tree):
    """(the class of a method, or None; what is to be said) of all that is public."""
    for node in public(tree):
        yield None, node
        yield from ((node, method) for method in public(node)) if isinstance(node, ast.ClassDef) else ()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_import_torch(arguments):
    """--help must stay fast: neither torch, numpy nor the configuration is loaded."""
    code = (
        "import sys; sys.argv = ['snrkit', *sys.argv[1:]]\n"
        "from snrkit.commands.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'snrkit.experiment'} & set(sys.modules), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "set()"
