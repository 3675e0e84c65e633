"""The tables of docs/precision.md, measured: `python -m tests.precision_page` writes the page anew."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from snrkit.base.distributed import World
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.networks import Dit, Mlp, UNet, make_network
from snrkit.reports.blocks import Table, markdown
from snrkit.training.train import make_state, train
from tests.opened import open_network, open_task
from tests.small import SMALL

PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
VERSION = ".".join(torch.__version__.split(".")[:2])
FORMATS = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
NETWORKS = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,), head_channels=8, classes=3),
    "dit": Dit(dim=16, depth=1, heads=2, patch=2, classes=3, qk_norm=True),
    "mlp": Mlp(dim=8, depth=1),
}
MOVES = {  # these compute nothing
    "__get__", "__getitem__", "arange", "chunk", "expand", "flatten", "float", "permute", "reshape", "to", "transpose",
    "unflatten", "view", "zeros_like",
}  # fmt: skip
TEXT = """# Precision

The tables are made by `python -m tests.precision_page`, here with torch {torch}; under the same torch a test compares
them with what the networks do.

## Formats

{formats}

A gradient of 1e-5 survives in fp16: below the smallest normal
number precision falls, bit by bit, down to the smallest subnormal, and what is under half of that ({vanish:.1e}) rounds
to 0. So does the square of a residual under {residual:.1e}. FP8 (the last two rows) is not offered.

## What runs in which

Every operator of the three networks that computes something and takes part in the gradient, under bfloat16 autocast on
the CPU. "In an island" is where snrkit switches
autocast off: the embedding of time and label and all normalisation. The gradient is that of the operator's output.

{operators}

Beyond the networks, a training step under bfloat16 autocast keeps

{step}

The gradients of parameters are float32 too.

## Why the islands

On CUDA, by torch's documentation, autocast runs normalisation, softmax and sums in float32. On the CPU, an input of
bfloat16 gives

{torch_does}

so that what holds on one device does not on the other, unless the network says it.
"""
KEEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: functional.layer_norm(x, (4,)),
    "group_norm": lambda x: functional.group_norm(x, 2),
    "rms_norm": lambda x: functional.rms_norm(x, (4,)),
    "softmax": lambda x: x.softmax(-1),
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mse_loss": lambda x: functional.mse_loss(x, x),
    "matmul": lambda x: x @ x,
}


class Watch(TorchFunctionMode):
    """Notes the dtypes of every operator that computes floating-point values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, str, str, bool], set[str]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call, and note."""
        out = func(*args, **(kwargs or {}))
        name = func.__name__
        if name in MOVES or not isinstance(out, torch.Tensor) or not out.is_floating_point() or not out.requires_grad:
            return out
        given = [a for a in _flat(args) if isinstance(a, torch.Tensor) and a.is_floating_point()]
        inputs = " and ".join(dict.fromkeys(_short(a.dtype) for a in given))
        key = (name, inputs, _short(out.dtype), not torch.is_autocast_enabled("cpu"))
        found = self.seen.setdefault(key, set())
        out.register_hook(lambda gradient: found.add(_short(gradient.dtype)))
        return out


def _flat(args) -> Iterator[object]:
    for a in args:
        yield from a if isinstance(a, list | tuple) else [a]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def watched() -> Iterator[Watch]:
    """Note every operator of the block, which runs under bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
        yield watch


def operators() -> list[Sequence[str]]:
    """(operator, inputs, output, gradient, island, networks), in order of first use."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, value in NETWORKS.items():
        network = make_network(value, (1, 8, 8), 0)
        for parameter in network.parameters():
            parameter.data += 0.01  # what begins at 0 gives no gradients
        labels = None if name == "mlp" else torch.tensor([0, 1])
        with watched() as watch:
            out = network(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5), Cond(labels=labels))
        out.square().mean().backward()
        assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}
        for (operator, given, output, island), gradients in watch.seen.items():
            row = (operator, given, output, " and ".join(sorted(gradients)) or "-", "yes" if island else "no")
            found.setdefault(row, []).append(name)
    return [(*row, ", ".join(names)) for row, names in found.items()]


def formats() -> list[Sequence[str]]:
    """What torch.finfo says."""
    rows = []
    for name in FORMATS:
        info = torch.finfo(getattr(torch, name))
        least = info.smallest_normal * info.eps
        rows.append((name, str(info.bits), f"{info.max:.4g}", f"{info.smallest_normal:.2g}", f"{least:.2g}",
                     f"{info.eps:.2g}"))  # fmt: skip
    return rows


def step_dtypes() -> str:
    """Of what one training step keeps."""
    e = parse_experiment({**SMALL, "train": {**SMALL["train"], "images": 64, "averages": [{"half_life": 500}]}}, "here")
    opened = open_experiment(e, World(0, 1, torch.device("cpu")))
    task = replace(open_task(opened), autocast=torch.bfloat16)
    state = make_state(task, open_network(opened))
    next(iter(train(task, state)))
    kept = {
        "weights": list(state.network.parameters()),
        "averages": list(state.averages["ema-500"].tensors.values()),
        "moments of the optimizer": [v for each in state.optimizer.state.values() for v in each.values()],
    }
    told = [f"* {name}: {' and '.join(sorted({_short(t.dtype) for t in tensors}))}" for name, tensors in kept.items()]
    return "\n".join(told)


def torch_does() -> str:
    """Output dtypes of torch's operators on bfloat16 input under CPU autocast, by dtype."""
    x, found = torch.ones(2, 4, 4, 4, dtype=torch.bfloat16), dict[str, list[str]]()
    with torch.autocast("cpu", torch.bfloat16):
        for name, function in KEEPS.items():
            found.setdefault(_short(function(x).dtype), []).append(name)
    return "\n".join(f"* {dtype} from {', '.join(names)}" for dtype, names in found.items())


def page() -> str:
    """The whole page."""
    half = torch.finfo(torch.float16)
    vanish = half.smallest_normal * half.eps / 2
    kinds = Table(("format", "bits", "largest", "smallest normal", "smallest subnormal", "epsilon"), formats())
    ran = Table(("operator", "inputs", "output", "gradient", "in an island", "networks"), operators())
    return TEXT.format(
        formats=markdown(kinds, PAGE.parent), operators=markdown(ran, PAGE.parent), torch=VERSION, vanish=vanish,
        residual=vanish**0.5, step=step_dtypes(), torch_does=torch_does(),
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page())
