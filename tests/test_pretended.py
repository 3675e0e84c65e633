"""The device that is not there does what one would, and sees each wait."""

import pytest
import torch

from snrkit.base.transfer import Arriving, send
from tests.pretended import CUDA, OnDevice, pretended


def test_it_computes_what_the_host_does(monkeypatch):
    """Forward, backward, a step of an optimizer, changes in place and views."""
    found = []
    for device in (torch.device("cpu"), CUDA):
        with pretended(monkeypatch):
            torch.manual_seed(0)
            module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.Linear(4, 1)).to(device)
            optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
            x = torch.linspace(-1, 1, 6).reshape(2, 3).to(device)
            x[:, 1] += 1
            module(x).square().mean().backward()
            optimizer.step()
            assert isinstance(x, OnDevice) == (device == CUDA)
            assert next(module.parameters()).device == device
            found.append([p.detach().cpu() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_it_sees_each_way_of_waiting(monkeypatch):
    """Copies that wait, reads of values, and events; and none in what only asks the device."""
    with pretended(monkeypatch) as waits:
        x = send(torch.ones(3), CUDA)
        y = (x * torch.tensor(2.0)).sum()
        assert waits == []
        _ = y.cpu(), float(y), bool(y > 0), y.item(), x.nonzero(), x.tolist(), x[x > 0], torch.ones(2).to(CUDA)
        torch.ones(2).to(CUDA, non_blocking=True)  # which is not pinned
        x.copy_(torch.zeros(3))
        Arriving(x).wait()
    assert [name for name, _ in waits] == [
        "to the host", *["read"] * 6, *["to the device"] * 3, "event",
    ]  # fmt: skip


def test_it_mixes_no_more_than_a_device_does(monkeypatch):
    """Numbers of the host, but no tensors that have dimensions."""
    with pretended(monkeypatch):
        x = send(torch.ones(3), CUDA)
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: torch.stack([torch.ones(()), x.sum()]),
            lambda: torch.gather(x, 0, torch.zeros(1, dtype=torch.int64)),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()


def test_a_copy_to_the_host_has_arrived_once_its_event_is_waited_for(monkeypatch):
    """And not before; what the device does to the tensor afterwards does not reach it."""
    with pretended(monkeypatch):
        x = send(torch.arange(3.0), CUDA)
        arriving = Arriving(x + 0)
        assert bool(arriving._host.isnan().all())
        assert torch.equal(arriving.wait(), torch.arange(3.0))
        host = torch.zeros(3)
        host.copy_(x, non_blocking=True)
        torch.cuda.Event().synchronize()  # recorded nowhere
        assert bool(host.isnan().all())
