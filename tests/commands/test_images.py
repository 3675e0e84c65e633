"""What commands say of the images they read, and what they refuse of them before anything is made."""

import json

import numpy as np
import pytest
from PIL import Image

from snrkit.commands.opening import _say
from snrkit.data.images import OPAQUE
from tests.small import SMALL, snrkit, write_config, written

NETWORK = {**SMALL["network"], "classes": 0}
TRAIN = {key: value for key, value in SMALL["train"].items() if key != "label_dropout"}


@pytest.fixture(autouse=True)
def unsaid():
    """As a process begins."""
    _say.cache_clear()


def test_what_was_changed_of_images_is_said_once_and_kept(tmp_path):
    """In one line of a command that opens them twice, and in the run's environment.json."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)):
        image = Image.fromarray(pixels)
        (image.convert("LA") if k < 3 else image).save(folder / f"{k:02}.png")
    train = {**TRAIN, "images": 64, "save_every": 64, "log_every": 64, "holdout_every": 64}
    write_config(tmp_path, data={"kind": "folder", "path": str(folder), "holdout": 0.5}, train=train, network=NETWORK)
    done = snrkit(tmp_path, "run", "-q")
    assert done.stderr.count(f"data: of the images read, 3 {OPAQUE}") == 1
    record = json.loads((tmp_path / "runs" / "small" / "environment.json").read_text())
    assert record["data_conversions"] == {OPAQUE: 3}


@pytest.mark.parametrize("channels", [2, 4, 16])
@pytest.mark.parametrize("command", ["run", "sample", "compare"])
def test_images_that_no_png_can_hold_are_refused_before_anything_is_made(tmp_path, channels, command):
    """A toy set of such images can be trained and measured, but no picture be made of it."""
    data = {"kind": "gaussian", "shape": [channels, 8, 8], "count": 400}
    write_config(tmp_path, data=data, network=NETWORK, train=TRAIN)
    before = written(tmp_path)
    done = snrkit(tmp_path, command, check=False)
    assert done.returncode == 1
    assert f"data: images of {channels} channels cannot be saved as PNG; give images of 1 or 3." in done.stderr
    assert written(tmp_path) == before
