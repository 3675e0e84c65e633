"""How far apart the weights of one training are for other numbers of threads, which add in another order.

`python -m tests.training.test_threads` prints a table: threads, largest difference from one thread, largest weight.
"""

import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from snrkit.checkpoints.ours import newest_checkpoint
from tests.small import SMALL, call, options, write_config


def weights(folder: Path, threads: int) -> dict[str, Tensor]:
    """The small experiment's weights after ten steps with so many threads."""
    folder.mkdir()
    write_config(folder, train={**SMALL["train"], "images": 640})
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        done = call("train", "-q", *options(folder, "small.yaml"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert done.returncode == 0, done.stderr
    newest = newest_checkpoint(folder / "runs/small/checkpoints")
    assert newest is not None
    return load_file(newest / "network.safetensors")


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    return max(float((value.double() - theirs[name].double()).abs().max()) for name, value in ours.items())


@pytest.mark.parametrize(("threads", "bound"), [(1, 0.0), (2, 3e-6)])
def test_weights_of_other_numbers_of_threads_agree_to_rounding(tmp_path, monkeypatch, threads, bound):
    """To the bit for equal numbers; else to some roundings of a weight of size 4, whose spacing is 2.4e-7."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    assert apart(weights(tmp_path / "one", 1), weights(tmp_path / "other", threads)) <= bound


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        one = weights(Path(place) / "one", 1)
        largest = max(float(value.abs().max()) for value in one.values())
        print("threads | largest difference | largest weight")
        for threads in (1, 2, 4):
            found = apart(one, weights(Path(place) / f"again-{threads}", threads))
            print(f"{threads} | {found:.2g} | {largest:.2f}")


if __name__ == "__main__":
    main()
