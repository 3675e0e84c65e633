"""The notebook runs as it is written, and is committed with what it says."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "demo.ipynb"
WITHOUT = "is not installed: pip install '.[test]'"
QUICK = {"IMAGES": 40, "STEPS": 4, "FINE_STEPS": 6}


def cells(kind):
    """Those of one kind, as they are committed."""
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_it_is_committed_as_it_ran():
    """Every cell in order, none with an error, with what it said and with two pictures; no place of a machine."""
    code = cells("code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not re.search(r"/(home|root|tmp|work|Users)/", NOTEBOOK.read_text())


def test_it_runs(tmp_path):
    """From the first cell to the last, with fewer images and steps than it is committed with."""
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient {WITHOUT}")
    pytest.importorskip("ipykernel", reason=f"ipykernel {WITHOUT}")
    nbformat = pytest.importorskip("nbformat", reason=f"nbformat {WITHOUT}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    sizes = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in QUICK.items():
        sizes.source, changed = re.subn(rf"^{name} = \d+", f"{name} = {value}", sizes.source, flags=re.MULTILINE)
        assert changed == 1
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "rms distance to the fine trajectory" in said
