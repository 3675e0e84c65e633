"""Commands on a device that is not there: they mix nothing of it with the host, and say what they say on the CPU."""

import pytest

from snrkit.base import distributed
from snrkit.base.sealed import read_json
from snrkit.checkpoints.ours import list_checkpoints
from tests.pretended import CUDA, pretended
from tests.small import SMALL, snrkit, write_config, written

LINES = (
    ("train",), ("fit-estimator",), ("sample",), ("measure-shift",), ("eval-fid",),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_commands_give_the_same_on_a_device(tmp_path, monkeypatch):
    """Weights and images to the bit, as the device that is not there computes as the CPU; all else to rounding."""
    corrected = {
        **SMALL["samplers"]["euler"],
        "corrections": [{"kind": "dcw", "low": 0.01, "wavelet": "db2"}, {"kind": "noise_awareness", "weight": 0.5}],
    }
    changes = {
        "train": {**SMALL["train"], "images": 192, "save_every": 128, "importance": {}}, "samplers": {"own": corrected},
        "compute": {"precision": "fp32"}, "sample": {"seeds": "0-19", "batch": 10},
        "shift": {**SMALL["shift"], "batch": 16, "window_images": 8, "horizon_images": 8,
                  "amplification_images": 2, "audit_pairs": 64, "estimator": {"images": 256}},
        "metrics": {"features": "classifier", "ranges": 2},
    }  # fmt: skip
    found = []
    for device in ("cpu", "cuda"):
        home = tmp_path / device
        home.mkdir()
        write_config(home, **changes)
        for line in LINES:
            if device == "cpu":
                snrkit(home, *line, "--device", "cpu")
                continue
            with pretended(monkeypatch), monkeypatch.context() as patch:
                patch.setattr(distributed, "_device", lambda *_: CUDA)
                snrkit(home, *line, "--device", "cuda")
        run = home / "runs" / "small"
        images = {name: content for name, content in written(run / "samples").items() if name.suffix == ".png"}
        numbers = [read_json(run / part / "own.json") for part in ("metrics", "shift")]
        numbers += [read_json(path) for path in sorted((run / "estimator").glob("*.json"))]
        for record in numbers:
            record.pop("made_with", None)  # which names the device
            record.pop("checksum", None)
        weights = {p.name: p.read_bytes() for p in (list_checkpoints(run / "checkpoints")[-1].glob("*.safetensors"))}
        found.append((images, weights, numbers))
    assert len(found[0][0]) == 20 + 1  # and their grid
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    for one, other in zip(found[0][2], found[1][2], strict=True):
        assert_close(one, other)


def assert_close(one, other):
    """Records of the same shape, whose floats agree to rounding: features are of another layout on a device."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_close(value, other[key])
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    else:
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True) if isinstance(one, float) else other)
