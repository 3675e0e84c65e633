"""Networks compiled block by block are the networks, and are compiled once for all blocks of a kind."""

import pytest
import torch
from torch import nn

from snrkit.base.distributed import World
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.networks import Dit, UNet, make_network
from snrkit.networks.compiling import blocks, compiled, eagerly
from snrkit.networks.edm import SongUNet
from tests.opened import open_task
from tests.small import SMALL

NETWORKS = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,), head_channels=4),
    "dit": Dit(patch=2, dim=32, depth=6, heads=2),
    "song": SongUNet(channels=8, multipliers=(1, 2), blocks=1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_hold_most_weights_and_each_once(name):
    """No weight is in two of them, and what no block holds are ends and embeddings."""
    network = make_network(NETWORKS[name], (1, 8, 8), 0)
    inside = [id(p) for block in blocks(network) for p in block.parameters()]
    assert len(inside) == len(set(inside)) > 0
    total = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for block in blocks(network) for p in block.parameters()) > total / 2


def test_blocks_of_a_kind_are_compiled_once(monkeypatch):
    """Six blocks of a DiT make one graph; outputs, gradients, names and the state dict are those of the network."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=backend))
    networks = [make_network(NETWORKS["dit"], (1, 8, 8), 0) for _ in range(2)]
    for network in networks:
        for number, weight in enumerate(network.parameters()):
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(number))
    other = compiled(networks[1])
    assert other is networks[1]
    assert list(other.state_dict()) == list(networks[0].state_dict())
    x, time = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(9)), torch.rand(2)
    outputs = [network(x, time, None) for network in (networks[0], other)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    for mine, theirs in zip(other.parameters(), networks[0].parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    distinct = {(type(block), *(tuple(p.shape) for p in block.parameters())) for block in blocks(other)}
    assert len(graphs) <= len(distinct) < len(blocks(other))


def test_compiled_blocks_run_as_they_are_where_asked(monkeypatch):
    """Nothing more is compiled for a batch of another kind."""
    graphs, plain = [], nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=backend))
    network = compiled(make_network(NETWORKS["dit"], (1, 8, 8), 0))
    network(torch.zeros(2, 1, 8, 8), torch.rand(2), None)
    count, rest = len(graphs), (torch.zeros(5, 1, 8, 8), torch.rand(5), None)
    network.eval()
    with eagerly(True), torch.no_grad():
        network(*rest)
    assert len(graphs) == count > 0
    with eagerly(False), torch.no_grad():
        network(*rest)
    assert len(graphs) > count


def test_auto_compiles_no_training_on_the_cpu():
    """Whatever its length; true does."""
    for asked, wanted in (("auto", False), (True, True), (False, False)):
        content = {**SMALL, "compute": {"compile": asked}, "train": {**SMALL["train"], "images": 10**9}}
        opened = open_experiment(parse_experiment(content, "x"), World(0, 1, torch.device("cpu")))
        assert open_task(opened).compile is wanted
