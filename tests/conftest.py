"""Every test runs on the CPU with one thread, deterministic, and with a cache of its own."""

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
