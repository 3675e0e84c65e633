"""`snrkit average`: weights made afterwards, and how commands take them."""

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError, SnrkitError
from snrkit.checkpoints.ours import list_checkpoints, load_checkpoint
from snrkit.commands.average import run_averaging
from snrkit.commands.sample import run_sampling
from snrkit.commands.train import run_training
from snrkit.experiment.experiment import load_experiment
from tests.small import SMALL, snrkit, write_config, written

WORLD = World(0, 1, torch.device("cpu"))
WIDTHS = (0.05, 0.1, 0.15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run that kept three power averages and a snapshot at every eighth of its length."""
    path = tmp_path_factory.mktemp("average")
    averages = [{"kind": "power", "width": width} for width in WIDTHS]
    train = {**SMALL["train"], "averages": averages, "snapshot_every": 480, "save_every": 3840, "images": 3840}
    run_training(load_experiment(write_config(path, train=train)), path / "runs", WORLD, quiet=True)
    return path


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def weights(folder, name, at=3840):
    return flat(load_checkpoint(folder / f"{at:09d}", only=name).tensors[name])


def test_posthoc_rebuilds_a_width_that_was_tracked(folder):
    """From snapshots of 0.05 and 0.10 alone, 0.15 to its profile's 3 %; from all three, exactly."""
    run = folder / "runs" / "small"
    assert [int(p.name) for p in list_checkpoints(run / "snapshots")] == [512, 960, 1472, 1920, 2432, 2880, 3392, 3840]
    tracked = weights(run / "checkpoints", "power-0.15")
    record = run_averaging(run, 0.15, None, None)
    assert record["profile_error"] < 1e-6
    exact = weights(run / "averages" / "posthoc-0.15", "posthoc-0.15")
    torch.testing.assert_close(exact, tracked, rtol=0, atol=1e-6)
    near = weights(run / "checkpoints", "power-0.1")
    record = run_averaging(run, 0.12, None, None)
    between = weights(run / "averages" / "posthoc-0.12", "posthoc-0.12")
    assert record["profile_error"] < 0.02
    assert float((between - tracked).norm()) < float((near - tracked).norm())


def test_the_end_may_be_earlier(folder):
    """--at 1920 gives what the averages were then."""
    run = folder / "runs" / "small"
    record = run_averaging(run, 0.1, None, 2000)
    assert (record["images"], record["snapshots"]) == (1920, 4)
    found = weights(run / "averages" / "posthoc-0.1", "posthoc-0.1", 1920)
    torch.testing.assert_close(found, weights(run / "snapshots", "power-0.1", 1920), rtol=0, atol=1e-6)


def test_snapshots_are_averaged_geometrically(folder):
    """Weights in proportion to 0.5^(N - i) over the raw weights."""
    run = folder / "runs" / "small"
    assert run_averaging(run, None, 0.5, None)["snapshots"] == 8
    raw = torch.stack([weights(run / "snapshots", "network", int(p.name)) for p in list_checkpoints(run / "snapshots")])
    share = 0.5 ** torch.arange(7, -1, -1, dtype=torch.float64)
    wanted = (share / share.sum()) @ raw
    found = weights(run / "averages" / "snapshots-0.5", "snapshots-0.5")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_what_was_made_is_sampled_by_its_name(folder):
    """sample.average takes it; one that was not made is refused, as is a name that cannot be."""
    run_averaging(folder / "runs" / "small", 0.12, None, None)
    few = ["sample.seeds=0-7", "metrics.ranges=2"]
    e = load_experiment(folder / "small.yaml", ["sample.average=posthoc-0.12", *few])
    run_sampling(e, folder / "runs", WORLD, ["euler"], quiet=True)
    e = load_experiment(folder / "small.yaml", ["sample.average=posthoc-0.2", *few])
    with pytest.raises(RunError, match="make them with snrkit average"):
        run_sampling(e, folder / "runs", WORLD, ["ancestral"], quiet=True)
    with pytest.raises(ConfigError, match="unknown weights"):
        load_experiment(folder / "small.yaml", ["sample.average=posthoc"])


def test_what_cannot_be_averaged_is_said_in_a_sentence(folder, tmp_path):
    """Neither or both of the options, widths and factors out of range, a run without power averages or snapshots."""
    run = folder / "runs" / "small"
    before = written(folder)
    for width, decay, at, words in (
        (None, None, None, "give either"), (0.1, 0.9, None, "give either"), (0.5, None, None, "must lie between"),
        (None, 1.5, None, "must lie in"), (0.1, None, 100, "no snapshot or checkpoint up to 100"),
    ):  # fmt: skip
        with pytest.raises(SnrkitError, match=words):
            run_averaging(run, width, decay, at)
    assert written(folder) == before
    with pytest.raises(RunError, match="is not a run directory"):
        run_averaging(tmp_path, 0.1, None, None)
    train = {**SMALL["train"], "images": 640}
    run_training(load_experiment(write_config(tmp_path, train=train)), tmp_path / "runs", WORLD, quiet=True)
    with pytest.raises(SnrkitError, match="kept no power average"):
        run_averaging(tmp_path / "runs" / "small", 0.1, None, None)


def test_the_command_says_what_it_made(folder):
    """Name, images, snapshots, the profile's error, and how to sample it."""
    done = snrkit(folder, "average", str(folder / "runs" / "small"), "--width", "0.12", plain=True)
    assert "posthoc-0.12 at 3840 images, of 8 snapshots" in done.stdout
    assert "--set sample.average=posthoc-0.12" in done.stdout
