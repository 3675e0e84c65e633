"""`import snrkit`: what it offers, to Python and to type checkers, and what it costs."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import snrkit
from snrkit.diffusion.denoiser import AnyPrecondition
from snrkit.diffusion.prediction import AnyTarget
from snrkit.diffusion.process import AnyProcess
from snrkit.sampling.corrections import AnyCorrection
from snrkit.sampling.grid import AnyGrid
from snrkit.sampling.solvers import AnySolver

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_type_checkers_see_what_python_sees():
    """The stub imports every name of the table from the module that the table names, and nothing else."""
    tree = ast.parse((ROOT / "snrkit" / "__init__.pyi").read_text())
    imports = [(node.module, alias) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {alias.asname: module for module, alias in imports} == snrkit._HOMES
    assert all(alias.asname == alias.name for _, alias in imports)
    assert len(imports) == len(snrkit.__all__) == len(set(snrkit.__all__))


def test_every_name_is_its_module_s_own():
    """Each of them can be imported, is the object of that name where it lives, and is listed by dir()."""
    for name, module in snrkit._HOMES.items():
        assert getattr(snrkit, name) is getattr(importlib.import_module(module), name)
    assert set(snrkit.__all__) <= set(dir(snrkit))


@pytest.mark.parametrize("union", [AnyProcess, AnyTarget, AnyPrecondition, AnyGrid, AnySolver, AnyCorrection])
def test_every_member_of_a_union_that_scripts_choose_from_is_offered(union):
    """What YAML can name by its kind, a script can name by its class."""
    members = get_args(get_args(union)[0])
    assert all(getattr(snrkit, member.__name__, None) is member for member in members)


def test_nothing_is_imported_before_it_is_asked_for():
    """`import snrkit` loads neither torch nor numpy nor pydantic, and a name loads its own module alone."""
    code = (
        "import sys, snrkit\n"
        "dir(snrkit), snrkit.__version__, snrkit.SnrkitError\n"
        "heavy = {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print(sorted(heavy), sorted(m for m in sys.modules if m.startswith('snrkit.')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[] ['snrkit.base', 'snrkit.base.errors']"


def test_the_names_of_readme_and_pages_are_offered():
    """All that their code asks of snrkit by attribute, and all that it imports by name."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    code = [ast.parse(block) for page in pages for block in CODE.findall(page.read_text())]
    used = set()
    for node in (node for tree in code for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "snrkit":
            used.add(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("snrkit"):
            used |= {alias.name for alias in node.names}
    assert used
    assert used <= set(snrkit.__all__)
