"""Two processes of which one is asked to stop, killed or suspended: the other ends too, soon and in one sentence."""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

from snrkit.base.peers import VARIABLE
from snrkit.checkpoints.ours import list_checkpoints
from tests.small import SMALL, command, environment, write_config

TRAIN = {**SMALL["train"], "images": 10**7, "save_every": 128, "log_every": 1280, "holdout_every": 10**7}
NETWORK = {"kind": "mlp", "dim": 8, "depth": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training without end, which each test goes on with."""
    found = tmp_path_factory.mktemp("group")
    plain = {key: value for key, value in TRAIN.items() if key not in ("augment", "label_dropout")}
    write_config(found, network=NETWORK, train=plain)
    return found


def newest(folder):
    """Images of the newest checkpoint."""
    return max((int(path.name) for path in list_checkpoints(folder / "runs/small/checkpoints")), default=0)


@contextmanager
def two(folder):
    """Two processes of one training that have saved since they began."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before, line = newest(folder), command(folder, "train", "-q")
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), VARIABLE: "3"}
    started = [
        subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={
            **environment(folder), **own, "RANK": str(rank), "LOCAL_RANK": str(rank),
        })
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        while newest(folder) <= before:
            assert all(process.poll() is None for process in started)
            time.sleep(0.05)
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_stop_asked_of_one_is_every_ones(folder):
    """Both end in 75, at one step, which is saved; one of them says so."""
    with two(folder) as started:
        os.kill(started[1].pid, signal.SIGTERM)
        said = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [75, 75]
    assert said == [
        f"stopped at {newest(folder)} of 10000000 images; all is saved. To go on, run the same command again.\n",
        "",
    ]


@pytest.mark.parametrize(("sign", "rank"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_a_process_that_is_lost_ends_the_other(folder, sign, rank):
    """In one sentence that names it, with exit code 1; what was saved is whole, and the next test goes on from it."""
    with two(folder) as started:
        lost, left = started[rank], started[1 - rank]
        os.kill(lost.pid, sign)
        _, said = left.communicate(timeout=120)
        assert left.returncode == 1
        assert said.startswith(f"snrkit: process {rank} of the group ({lost.pid} on ")
        assert "has given no sign of life for " in said
        assert said.endswith("and run the same command again.\n")
        assert said.count("\n") == 1
