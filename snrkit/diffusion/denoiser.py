"""A network made into a denoiser: preconditioning, the process's clock, and the reading of its output.

The target is read as y = c_skip*x + c_out*F(c_in*x, time). EDM's preconditioning (Karras et al. 2022, appendix B.6)
follows, for every target and scaling, from the pair (a, b) and the data's variance s^2, with d = alpha^2 s^2 + sigma^2:

    c_in = 1/sqrt(d)    c_skip = (a*alpha*s^2 + b*sigma)/d    c_out = |a*sigma - b*alpha| * s/sqrt(d)

`told` decides everything inside the network: its time and its preconditioning. `level` decides how the output is read.
With told=None the network gets its learned null embedding, and the preconditioning is taken at `level`: an EDM network
then still sees the level through c_in, and its answer is mixed with the state as the level asks. EdmBlindPrecondition
is for networks that should not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from snrkit.base.errors import SnrkitError
from snrkit.base.transfer import send
from snrkit.base.value import Value
from snrkit.diffusion.level import Level, Scaling, broadcast
from snrkit.diffusion.prediction import SAME, Attends, Cond, Network, Prediction, Same, Target, solve
from snrkit.diffusion.process import Process


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The scales round a network, float64, shaped as the level."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


class Precondition(Protocol):
    """How a network's input and output are scaled."""

    def coefficients(self, level: Level, target: Target, scaling: Scaling, sigma_data: float) -> Coefficients:
        """c_in, c_skip and c_out at `level`."""

    def untold(self, x: Tensor, known: Coefficients) -> Coefficients:
        """Those of a state x (B, *) whose level the network is not told; `known`: at its level."""


class _OfTheLevel(Value):
    """The same whether the network is told the level or not."""

    def untold(self, x: Tensor, known: Coefficients) -> Coefficients:
        """`known`."""
        return known


class NoPrecondition(_OfTheLevel):
    """y = F. The input is divided by sqrt(1 + sigma^2) in ve, where it would grow without bound, and left elsewhere."""

    kind: Literal["none"] = "none"

    def coefficients(self, level: Level, target: Target, scaling: Scaling, sigma_data: float) -> Coefficients:
        """(1 or 1/sqrt(1 + sigma^2), 0, 1)."""
        one = torch.ones_like(level.sigma)
        c_in = torch.rsqrt(1 + level.sigma**2) if scaling == "ve" else one
        return Coefficients(c_in, torch.zeros_like(one), one)


class EdmPrecondition(_OfTheLevel):
    """Unit variance of the network's input and of its target, and the smallest c_out (Karras et al. 2022)."""

    kind: Literal["edm"] = "edm"

    def coefficients(self, level: Level, target: Target, scaling: Scaling, sigma_data: float) -> Coefficients:
        """The coefficients for data of standard deviation `sigma_data`."""
        a, b = target.direction(level)
        d = level.alpha**2 * sigma_data**2 + level.sigma**2
        c_skip = (a * level.alpha * sigma_data**2 + b * level.sigma) / d
        c_out = (a * level.sigma - b * level.alpha).abs() * sigma_data / d.sqrt()
        return Coefficients(d.rsqrt(), c_skip, c_out)


class RawPrecondition(_OfTheLevel):
    """y = F of the state as it is, in every scaling, as networks of EDM's `ve` configuration have it."""

    kind: Literal["raw"] = "raw"

    def coefficients(self, level: Level, target: Target, scaling: Scaling, sigma_data: float) -> Coefficients:
        one = torch.ones_like(level.sigma)
        return Coefficients(one, torch.zeros_like(one), one)


class EdmBlindPrecondition(Value):
    """EDM's where the network is told the level, and nothing of the level where it is not.

    For noise dropout: what noise-awareness guidance (Zhong et al. 2025) subtracts should not know the level. There
    y = F, and the input is divided by sqrt(1 + the mean square of the state itself), which is one to one in the state's
    size and bounded, as the 1/sqrt(1 + sigma^2) of kind `none` is. An untold image's
    |y - y*|^2 counts as a told one's |F - F*|^2, c_out^2 times what the weighting asks of y: bounded at the clean end.
    """

    kind: Literal["edm_blind"] = "edm_blind"

    def coefficients(self, level: Level, target: Target, scaling: Scaling, sigma_data: float) -> Coefficients:
        """EDM's."""
        return EdmPrecondition().coefficients(level, target, scaling, sigma_data)

    def untold(self, x: Tensor, known: Coefficients) -> Coefficients:
        """(1/sqrt(1 + mean square of x), 0, 1): the first (B,), on the device of x."""
        c_in = torch.rsqrt(1 + x.double().square().flatten(1).mean(1))
        return Coefficients(c_in, torch.zeros_like(known.c_skip), torch.ones_like(known.c_out))


AnyPrecondition = Annotated[
    NoPrecondition | EdmPrecondition | EdmBlindPrecondition | RawPrecondition, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True)
class NetworkDenoiser:
    """A raw network with all that is needed to read it. Answers in the dtype of the state it is given.

    With `learned_variance` it answers twice the channels of its state, the second half for `Prediction.spread`.
    """

    network: Network
    process: Process
    target: Target
    precondition: Precondition
    sigma_data: float
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    learned_variance: bool = False

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """The belief about x (B, *); see the module for what `told` changes."""
        known = told if isinstance(told, Level) else level
        c = self.precondition.coefficients(known, self.target, self.process.scaling, self.sigma_data)
        if told is None:
            c = self.precondition.untold(x, c)
        if told is None and isinstance(self.network, _Plain):
            raise SnrkitError("a wrapped network cannot be asked without the level; noise awareness needs one that can")
        if (
            cond is not None
            and cond.alone is not None
            and not (isinstance(net := self.network, Attends) and net.attends)
        ):
            raise SnrkitError(
                "perturbed_attention needs a dit, or a unet with attention; this network has no such part"
            )
        time = self._time(known, len(x)) if told is not None else torch.full((len(x),), torch.nan)
        output, spread = self.run(broadcast(c.c_in, x) * x, time, cond).to(x.dtype), None
        if self.learned_variance:
            output, spread = output.chunk(2, dim=1)
        y = broadcast(c.c_skip, x) * x + broadcast(c.c_out, x) * output
        found = solve(x, y, level, self.target)
        return found if spread is None else replace(found, spread=spread)

    @property
    def module(self) -> nn.Module | None:
        """The network, where it is a module of torch; None for a function, whose modules cannot be seen."""
        network = self.network.network if isinstance(self.network, _Plain) else self.network
        return network if isinstance(network, nn.Module) else None

    def _time(self, level: Level, batch: int) -> Tensor:
        return self.process.time(level.logsnr).to(torch.float32).expand(batch)

    def run(self, x: Tensor, time: Tensor, cond: Cond | None) -> Tensor:
        """F at the scaled input x (B, *) and time (B,), in the network's precision."""
        x = x.to(self.dtype)
        time = send(time, x.device)
        if self.autocast is None:
            return self.network(x, time, cond)
        with torch.autocast(x.device.type, self.autocast):
            return self.network(x, time, cond)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A network that knows no `Cond`: it is called as network(x, time), or network(x, time, labels)."""

    network: Callable[..., Tensor]

    def __call__(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        time = time.to(x.dtype)
        labels = None if cond is None or cond.labels is None else send(cond.labels, x.device)
        out = self.network(x, time) if labels is None else self.network(x, time, labels)
        return one_tensor(out, x, "the wrapped network")


def one_tensor(out: object, x: Tensor, whose: str) -> Tensor:
    """The answer of a network, called `whose`, to states x. SnrkitError where it is no tensor of their shape."""
    if isinstance(out, Tensor) and out.shape == x.shape:
        return out
    answers = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise SnrkitError(
        f"{whose} answers {answers} for states {tuple(x.shape)}; it has to answer one tensor of their shape."
    )


def wrap(
    network: Callable[..., Tensor],
    process: Process,
    target: Target,
    *,
    precondition: Precondition | None = None,
    sigma_data: float = 0.5,
) -> NetworkDenoiser:
    """Any network as a denoiser, called as network(x, time), or network(x, time, labels) where labels are given.

    x is (B, *) scaled as `precondition` says (none by default), time (B,) what `process.time` gives, labels (B,) int64,
    -1 for none; it answers F (B, *), which is read as `target`. x and time are float32, or float64 for a module whose
    parameters all are; another precision is the network's own to cast to. `sigma_data` matters to EDM's preconditioning
    alone. SnrkitError for parts in another order and, when it is asked, for an answer of another shape than x, and for
    corrections that ask without a level.
    """
    if not callable(network) or not hasattr(process, "bounds") or not hasattr(target, "direction"):
        kinds = ", ".join(type(part).__name__ for part in (network, process, target))
        raise SnrkitError(f"wrap was given ({kinds}); give a network, a process and a target, in this order.")
    kept = {p.dtype for p in network.parameters()} if isinstance(network, nn.Module) else set[torch.dtype]()
    dtype = torch.float64 if kept == {torch.float64} else torch.float32
    return NetworkDenoiser(_Plain(network), process, target, precondition or NoPrecondition(), sigma_data, dtype)


def check_readable(level: Level, target: Target) -> None:
    """Refuse a level at which `target` says nothing of x0: eps or score at alpha = 0."""
    a, b = target.direction(level)
    if bool((level.alpha * b == level.sigma * a).any()):
        raise SnrkitError(
            "the target says nothing about the image at pure noise (alpha = 0), where this grid starts: "
            "use target x0, v or flow, or a grid that starts below pure noise"
        )
