"""Every test runs on the CPU with one thread, deterministic, and with the cache of this run of the tests."""

import os
import shutil

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """What is kept in it is known by its content, so all workers share it: a classifier takes seconds to train."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNRKIT_CACHE", str(folder / "cache"))
        yield


@pytest.fixture
def copied(request, tmp_path):
    """A copy of the folder that a module's own fixture `finished` gives, to spoil."""
    return shutil.copytree(request.getfixturevalue("finished"), tmp_path / "copy")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
