"""Training pairs that are wrong on purpose, so that a network meets while training what it will meet while sampling.

    ddpm_ip    shown noise eps + gamma xi, asked for eps                       Ning et al. 2023
    ciop       with probability p: shown eps + gamma xi, asked for eps + gamma xi', both fresh         CIOP, 2026
    mixflow    shown the image at a noisier level than it is told, asked for the velocity there        MixFlow, 2026

What a network is told, and its preconditioning, stay those of the told level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import broadcast
from snrkit.diffusion.process import Process


@dataclass(frozen=True, slots=True)
class Shown:
    """A training pair of n images: the noise in the target, further noise in the input alone, and the state's level."""

    eps: Tensor  # (n, *)
    beyond: Tensor | None  # (n, *), added to eps in the input, not in the target
    logsnr: Tensor  # (n,), where the state stands


class Perturbation(Protocol):
    """A rule that parts what is shown from what is told or asked. Training asks it in several threads at once."""

    extras: ClassVar[int]  # draws of noise that it takes beside eps

    def shown(self, eps: Tensor, extra: Tensor, chance: Tensor, logsnr: Tensor, process: Process) -> Shown:
        """Of noise eps (n, *), extra noise (n, extras, *), uniforms (n,) and told levels (n,)."""


class InputPerturbation(Value):
    """DDPM-IP (Ning et al. 2023): the network is shown alpha*x0 + sigma*(eps + gamma*xi), xi fresh; its target stays.

    With the published target, eps, the best answer is that of the denoiser for noise of sqrt(1 + gamma^2) the size:
    its eps, of unit variance at that level, over sqrt(1 + gamma^2); as noise read at the told sigma, over 1 + gamma^2.
    With target x0 it is that denoiser's x0 and nothing is divided; v and flow lie between. What the target is decides,
    then, whether input perturbation holds epsilon scaling by 1 + gamma^2 in it.
    """

    kind: Literal["ddpm_ip"] = "ddpm_ip"
    gamma: float = Field(
        default=0.1,
        gt=0,
        description="gamma of Ning et al. 2023: standard deviation of the noise that is added to eps in the "
        "input alone",
    )
    extras: ClassVar[int] = 1

    def shown(self, eps: Tensor, extra: Tensor, chance: Tensor, logsnr: Tensor, process: Process) -> Shown:
        """gamma xi beyond eps."""
        return Shown(eps, self.gamma * extra[:, 0], logsnr)


class Ciop(Value):
    """CIOP: with probability `share` input and target noise are perturbed alike in size, each by noise of its own.

    Its paper's size and share were not to be had: these defaults are snrkit's choice.
    """

    kind: Literal["ciop"] = "ciop"
    gamma: float = Field(
        default=0.1,
        gt=0,
        description="standard deviation of the noise that is added to eps, one draw in the input and another in "
        "the target",
    )
    share: float = Field(default=0.5, gt=0, le=1, description="share of images that are perturbed")
    extras: ClassVar[int] = 2

    def shown(self, eps: Tensor, extra: Tensor, chance: Tensor, logsnr: Tensor, process: Process) -> Shown:
        """gamma xi in what is shown, gamma xi' in what is asked, where chance < share."""
        struck = broadcast(self.gamma * (chance < self.share), eps)
        asked = eps + struck * extra[:, 1]
        return Shown(asked, struck * (extra[:, 0] - extra[:, 1]), logsnr)


class MixFlow(Value):
    """MixFlow: told t, shown the line at m ~ U[(1 - reach) t, t], t = 1 the image: the noisier side. For flow only.

    The velocity eps - x0 is the same at both. Published with levels t ~ Beta(2, 1), `beta_time`, as a fine-tune.
    """

    kind: Literal["mixflow"] = "mixflow"
    reach: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="told t, the network is shown a level uniform in [(1 - reach) t, t], 1 the image and 0 noise; 0.8 "
        "in the paper, 0.4 in the code that was released",
    )
    extras: ClassVar[int] = 0

    def shown(self, eps: Tensor, extra: Tensor, chance: Tensor, logsnr: Tensor, process: Process) -> Shown:
        """The level at m = t (1 - reach * chance)."""
        clean = 1 - process.time(logsnr)
        return Shown(eps, None, process.logsnr(1 - clean * (1 - self.reach * chance.to(torch.float64))))


def _with_kind(value: Any) -> Any:
    return {"kind": "ddpm_ip", **value} if isinstance(value, Mapping) else value


AnyPerturbation = Annotated[
    InputPerturbation | Ciop | MixFlow, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
