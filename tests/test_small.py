"""Commands that tests call in their own process do what a process of its own does."""

import re
import warnings
from dataclasses import replace

import pytest
import torch

from tests.small import call, process, snrkit, write_config


def timeless(done):
    """What a command did, without how long it says that work takes."""
    return replace(done, stdout=re.sub(r"about [\d.]+ \w+ here", "", done.stdout))


@pytest.mark.parametrize(
    "arguments", [["compare", "--dry-run"], ["sample", "--sampler", "nope"]], ids=["done", "refused"]
)
def test_a_call_says_what_a_process_says(tmp_path, arguments):
    """Exit code, standard output and standard error, letter for letter, but for how long something takes."""
    write_config(tmp_path)
    ours, theirs = (run(tmp_path, *arguments, check=False) for run in (snrkit, process))
    assert timeless(ours) == timeless(theirs)
    assert ours.stdout or ours.stderr


def test_a_call_leaves_torch_as_it_was(tmp_path):
    """Random state and deterministic algorithms; and it trains where the caller wants no gradients."""
    write_config(tmp_path)
    torch.use_deterministic_algorithms(False)
    state = torch.get_rng_state()
    with torch.no_grad():
        snrkit(tmp_path, "train", "-q", "--set", "train.images=64", "--set", "compute.deterministic=true")
        assert not torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_what_nobody_caught_is_a_traceback(tmp_path, monkeypatch):
    """On standard error, with exit code 1; so is a warning, which a process would only show."""

    def broken(*_):
        warnings.warn("that is no warning of torch's", stacklevel=1)

    monkeypatch.setattr("snrkit.commands.sweep.check_file", broken)
    done = call("validate", "nothing.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no warning of torch's" in done.stderr
