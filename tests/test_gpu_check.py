"""The check of GPUs runs where there is none: every part, on a network of a few pixels."""

import json

import pytest
import torch

from tests import gpu_check
from tests.gpu_check import TINY, Check, named, report


@pytest.mark.parametrize("part", [p for p in gpu_check.PARTS if p is not gpu_check.training], ids=lambda p: p.__name__)
def test_every_part_runs_on_a_cpu(tmp_path, part):
    """And gives finite figures, which JSON holds. Bounds are a GPU's, and are not held to here."""
    check = Check(TINY, torch.device("cpu"), tmp_path)
    part(check)
    found = json.loads(json.dumps(report(check), allow_nan=False))
    assert len(found["rows"]) == len(check.rows)
    assert check.rows or part in (gpu_check.reads, gpu_check.budgets)


def test_going_on_ends_in_the_same_bits(tmp_path):
    """The one row whose bound holds on any device."""
    check = Check(TINY, torch.device("cpu"), tmp_path)
    gpu_check.resumes(check)
    assert [row.kept for row in check.rows] == [True]


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path):
    check = Check(TINY, torch.device("cpu"), tmp_path)
    with named(check, "scoring"):
        raise RuntimeError("no memory")
    with named(check, "sampling"):
        check.say("a ratio", 2.0, "times", most=1.5)
    assert check.failed == {"scoring": "RuntimeError: no memory"}
    assert [row.kept for row in check.rows] == [False]
