"""The shape of the code: imports point up the list of layers, functions stay short, --help stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "snrkit"
LAYERS = [
    {"errors", "value", "files", "arrays", "streams", "__init__", "wavelet", "frequency"},
    {"level", "betas", "spectrum", "spectra", "spectrum_model"},
    {"process"},
    {"prediction"},
    {"grid", "data.augment", "levels", "tabulated", "spectral_levels", "spectral_grid", "weighting", "perturb"},
    {"denoiser", "distributed"},
    {"objective", "randomness", "networks"},
    {"data", "ema", "clipping", "checkpoints"},
    {"step"},
    {"learned"},
    {"train"},
    {"held_out"},
    {"solvers", "corrections"},
    {"sample"},
    {"sampler"},
    {"shift", "metrics", "analysis"},
    {"diffusers"},
    {"config"},
    {"run"},
    {"report", "charts"},
    {"comparison"},
    {"jobs"},
    {"cli"},
    {"__main__"},
]
CONFIGURATION = {"shift.config", "metrics.config"}  # values of higher layers that config.py composes


def place(module):
    """The layer of a module, the most specific name first."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for index, layer in enumerate(LAYERS):
            if name in layer:
                return index
    raise AssertionError(f"{module} belongs to no layer; add it to LAYERS and to docs/architecture.md")


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("snrkit"):
            inner = node.module.removeprefix("snrkit").lstrip(".")
            yield inner or "__init__"


def guarded(tree):
    """Modules imported only for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imported(node)


def test_imports_point_up_the_layers():
    """No module imports from a later layer."""
    wrong = []
    for name, tree in modules():
        free = set(guarded(tree))
        for other in imported(tree):
            if other in free or other in CONFIGURATION:
                continue
            if place(other) > place(name):
                wrong.append(f"{name} imports {other}")
    assert not wrong


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
    """No **kwargs but in the record that JSON takes and where calls of diffusers are handed on as they come."""
    loose = [
        f"{name}.{node.name}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
    ]
    handed_on = [f"diffusers.{name}" for name in ("_noting", "step", "_stepped", "_corrected")]
    assert sorted(loose) == sorted(["shift.files.as_record", *handed_on])


def test_every_public_thing_says_what_it_is():
    """Docstrings on every module, public class and public function."""
    silent = []
    for name, tree in modules():
        if not ast.get_docstring(tree):
            silent.append(name)
        for node in ast.walk(tree):
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node) and not nested(tree, node):
                silent.append(f"{name}.{node.name}")
    assert not silent


def nested(tree, node):
    """Whether a function is local to another or a method of a private class."""
    for outer in ast.walk(tree):
        if outer is node or not isinstance(outer, ast.FunctionDef | ast.ClassDef):
            continue
        inside = any(inner is node for inner in ast.walk(outer))
        if inside and (isinstance(outer, ast.FunctionDef) or outer.name.startswith("_")):
            return True
    return False


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_import_torch(arguments):
    """--help must stay fast: neither torch, numpy nor the configuration is loaded."""
    code = (
        "import sys; sys.argv = ['snrkit', *sys.argv[1:]]\n"
        "from snrkit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'snrkit.config'} & set(sys.modules), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "set()"
