"""The check of GPUs runs where there is none: tiny, on a device that is not there; its loops on the CPU."""

import gc
import json
import sys
from dataclasses import asdict

import pytest
import torch

from snrkit.training.train import TrainState
from tests import gpu_check
from tests.gpu_check import TINY, Check, named, report, trained
from tests.pretended import CUDA, pretended

ELSEWHERE = (
    gpu_check.training,
    gpu_check.processes,
    gpu_check.certifying,
)  # hundreds of calls
PARTS = [part for part in gpu_check.PARTS if part not in ELSEWHERE]


@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:torch.cuda.amp.GradScaler")
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_parts_run_on_a_device(tmp_path, monkeypatch, part):
    """And gives finite figures, which JSON holds. Bounds of speed are a GPU's, and are not held to here."""
    with pretended(monkeypatch):
        check = Check(TINY, CUDA, tmp_path)
        part(check)
    json.dumps([asdict(row) for row in check.rows], allow_nan=False)
    assert check.rows or part is gpu_check.budgets
    assert all(row.kept for row in check.rows if row.bound and row.unit not in ("times", "of its rate"))


def test_the_certificate_is_timed(tmp_path):
    """On the CPU."""
    check = Check(TINY, torch.device("cpu"), tmp_path)
    gpu_check.certifying(check)
    assert [row.name for row in check.rows] == ["certificate of Euler at 13 evaluations"]


@pytest.mark.parametrize("name", ["train()", "bare loop"])
def test_a_measured_loop_leaves_nothing_behind(tmp_path, name):
    """Its memory would be counted as the next one's."""
    trained(Check(TINY, torch.device("cpu"), tmp_path), name, whole=False)
    gc.collect()
    kinds = (TrainState, torch.optim.Optimizer)
    assert not [each for each in gc.get_objects() if isinstance(each, kinds)]


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    """In one sentence and by exit code 1; no part is begun, and no figures are written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path / "out.json")])
    assert gpu_check.main() == 1
    said = capsys.readouterr()
    assert said.err == f"gpu-check: {gpu_check.NO_GPU}\n"
    assert not said.out
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path):
    check = Check(TINY, torch.device("cpu"), tmp_path)
    with named(check, "scoring"):
        raise RuntimeError("no memory")
    with named(check, "sampling"):
        check.say("a ratio", 2.0, "times", most=1.5)
    assert check.failed == {"scoring": "RuntimeError: no memory"}
    assert [row["kept"] for row in json.loads(json.dumps(report(check)))["rows"]] == [False]
