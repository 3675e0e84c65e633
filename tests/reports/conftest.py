"""A small run with everything that a report shows, and a page with every kind of block."""

import pytest

from tests.small import SMALL, snrkit, write_config


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    """A folder in which `snrkit run` and `snrkit compare` went through; the second sampler corrects the first."""
    folder = tmp_path_factory.mktemp("reported")
    euler = SMALL["samplers"]["euler"]
    train = {**SMALL["train"], "images": 640}
    samplers = {"euler": euler, "dcw": {**euler, "corrections": [{"kind": "dcw", "pixel": 0.02}]}}
    write_config(folder, train=train, samplers=samplers, shift={**SMALL["shift"], "probes": []})
    snrkit(folder, "run", "-q")
    snrkit(folder, "compare", "-q", "--set", "compare={solvers: [], rounds: 1}")
    return folder
