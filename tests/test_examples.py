"""The examples run as they are written."""

import subprocess
import sys
from pathlib import Path

import pytest

from snrkit.experiment.experiment import load_experiment
from tests.small import environment, snrkit

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = [
    "--set", "sample.seeds=0-47", "--set", "shift.images=48", "--set", "shift.bootstrap=100", "--set",
    "shift.probes=[]", "--set", "compare.timed_images=8", "--set", "compare.solvers=[{kind: heun}]",
]  # fmt: skip


def test_somebody_else_s_model_is_trained_measured_and_compared(tmp_path):
    """Plain diffusers code trains and saves it, a few steps here; the experiment beside it takes it from there."""
    pytest.importorskip("diffusers")
    line = [sys.executable, str(EXAMPLES / "diffusers_digits.py"), "runs/their-digits-model", "5"]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    config = (EXAMPLES / "diffusers_digits.yaml").read_text().replace("runs/", f"{tmp_path}/runs/")
    (tmp_path / "diffusers_digits.yaml").write_text(config)
    names = list(load_experiment(tmp_path / "diffusers_digits.yaml").samplers)
    snrkit(tmp_path, "run", "-q", *QUICK, config="diffusers_digits.yaml")
    run = tmp_path / "runs" / "their-digits"
    assert sorted(path.stem for path in (run / "metrics").iterdir()) == sorted(names)
    assert "a model from elsewhere, diffusers" in (run / "report.md").read_text()
    snrkit(tmp_path, "compare", "-q", *QUICK, config="diffusers_digits.yaml")
    assert (run / "compare.md").exists()
