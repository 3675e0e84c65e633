"""Perturbed-attention guidance (Ahn et al. 2024, "Self-rectifying diffusion sampling with perturbed-attention
guidance", arXiv 2403.17377): away from what the network says while its tokens look at themselves alone.

    out = p + weight (p - p_k),   p_k with the attention map of some layers replaced by the identity

so that in those layers softmax(Q K^T/sqrt(d)) V becomes V. It needs neither labels nor dropout in training, and acts
beside guidance by label on the same p. The paper perturbs layers in the middle of the network, found by trial;
`layers: middle` takes that of the middle block of a `unet`; where that has none, and in a `dit`, the one in the middle
of the order in which a state passes them.
"""

from typing import Literal

from pydantic import Field

from snrkit.diffusion.prediction import Alone, Denoiser
from snrkit.sampling.corrections.guidance import Guidance, Term, guide, weight_at
from snrkit.sampling.step import Capabilities, Position


class PerturbedAttention(Guidance):
    """Push the prediction away from that of the network whose attention is the identity in some layers."""

    kind: Literal["perturbed_attention"] = "perturbed_attention"
    layers: Alone = Field(
        default="middle",
        description="attention layers in which tokens look at themselves alone: the middle one, or all",
    )

    @property
    def asks_bare(self) -> bool:
        """No: it asks the model itself."""
        return False

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The guided denoiser, at one evaluation more."""
        weight = weight_at(self, position)
        return denoise if weight is None else guide(denoise, Term(weight, alone=self.layers))

    def missing(self, model: Capabilities) -> str | None:
        """Attention that can be told to."""
        if model.attends:
            return None
        return (
            "needs one of snrkit's own networks with attention: a dit, or a unet whose `attention` names a resolution"
        )
