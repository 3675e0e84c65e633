"""Networks without memory have the shapes of those with it, and nothing is drawn for them."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from snrkit.base.outline import outlined
from snrkit.networks import Dit, Mlp, UNet, make_network

SHAPE = (1, 8, 8)
NETWORKS = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,), head_channels=8, classes=3),
    "dit": Dit(dim=16, depth=1, heads=2, patch=2, classes=3),
    "mlp": Mlp(dim=16, depth=1, classes=3),
}
DRAWN = [
    nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_,
    nn.init.xavier_normal_, nn.init.xavier_uniform_, nn.init.orthogonal_,
    torch.Tensor.normal_, torch.Tensor.uniform_,
]  # fmt: skip


class Asked(TorchDispatchMode):
    """Notes what is asked of torch."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, given=(), named=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*given, **(named or {}))


@pytest.mark.parametrize("value", NETWORKS.values(), ids=NETWORKS)
def test_an_outline_has_the_shapes_of_the_network(value):
    """By name, on the device that holds nothing, and without a draw, which would import torch's compiler."""
    expected = {
        name: (tensor.shape, tensor.dtype) for name, tensor in make_network(value, SHAPE, 0).state_dict().items()
    }
    with outlined(), Asked() as asked:
        found = make_network(value, SHAPE, 0).state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == expected
    assert {tensor.device.type for tensor in found.values()} == {"meta"}
    assert not asked.names & {"normal_", "uniform_", "normal", "uniform", "linalg_qr"}


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__qualname__)
def test_nothing_is_drawn_within_and_everything_after(draw):
    """A parameter is handed back as it is; out of the block it is drawn as ever."""
    with outlined():
        outline = torch.empty(4, 4)
        assert draw(outline) is outline
    parameter = torch.zeros(4, 4)
    draw(parameter)
    assert bool((parameter != 0).any())
