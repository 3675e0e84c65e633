"""The examples run as they are written."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from snrkit.experiment.experiment import load_experiment
from tests.small import environment, snrkit

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = [
    "--set", "sample.seeds=0-19", "--set", "shift.images=40", "--set", "shift.bootstrap=100", "--set",
    "shift.probes=[]", "--set", "compare.timed_images=8", "--set", "compare.rounds=1", "--set",
    "compare.solvers=[{kind: heun}]",
]  # fmt: skip


def test_somebody_else_s_model_is_trained_measured_and_compared(tmp_path):
    """Plain diffusers code trains and saves it, a few steps here; the experiment beside it takes it from there."""
    pytest.importorskip("diffusers")
    line = [sys.executable, str(EXAMPLES / "diffusers_digits.py"), "runs/their-digits-model", "5"]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    config = (EXAMPLES / "diffusers_digits.yaml").read_text().replace("../runs/", "runs/")
    (tmp_path / "diffusers_digits.yaml").write_text(config)
    names = list(load_experiment(tmp_path / "diffusers_digits.yaml").samplers)
    snrkit(tmp_path, "run", "-q", *QUICK, config="diffusers_digits.yaml")
    run = tmp_path / "runs" / "their-digits"
    assert sorted(path.stem for path in (run / "metrics").iterdir()) == sorted(names)
    assert "a model from elsewhere, diffusers" in (run / "report.md").read_text()
    snrkit(tmp_path, "compare", "-q", *QUICK, config="diffusers_digits.yaml")
    assert (run / "compare.md").exists()


def test_the_library_is_used_as_written(monkeypatch, capsys):
    """A network of one's own, exact images by two samplers, and a short training, in one script."""
    settings = ["train.images=128", "train.batch=32", "network.channels=8", "network.groups=4"]
    monkeypatch.setattr(sys, "argv", ["from_python.py", "configs/digits.yaml", *settings])
    monkeypatch.chdir(EXAMPLES.parent)
    runpy.run_path(str(EXAMPLES / "from_python.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "a network of one's own: (16, 1, 8, 8)" in said
    heun, scaled = (float(found) for found in re.findall(r"(?:Heun|scaled) (\d\.\d+)", said))
    assert heun == pytest.approx(0.520, abs=0.005)
    assert scaled == pytest.approx(0.5, abs=0.005)
    assert "The sampler's states look cleaner than real images of the levels it is told: norm gap -0." in said
