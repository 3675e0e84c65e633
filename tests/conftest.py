"""Every test runs on the CPU with one thread, deterministic, and with the cache of this run of the tests."""

import io
import os
import shutil

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image

from tests.small import coarse_flows

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


@pytest.fixture(scope="session", autouse=True)
def _dots():
    """Figures of matplotlib are made, but saved as one dot, except within `tests.small.drawing`.

    To draw one takes half a second, and tests make hundreds of which they look at none.
    """
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, file, **_: file.write(out.getvalue()))
        yield


@pytest.fixture
def copied(request, tmp_path):
    """A copy of the folder that a module's own fixture `finished` gives, to spoil."""
    return shutil.copytree(request.getfixturevalue("finished"), tmp_path / "copy")


@pytest.fixture(scope="module")
def coarse():
    """Flows of few steps, in all of a module that asks for it first."""
    with coarse_flows():
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
