"""What an experiment knows of a network that it does not build, as read from where the network comes from."""

from typing import Literal

from pydantic import Field

from snrkit.base.value import Classes, Side, Value
from snrkit.networks.config import Conditioning


class Foreign(Value):
    """The shape and the labels of a network from elsewhere."""

    kind: Literal["foreign"] = "foreign"
    shape: tuple[Side, Side, Side] = Field(description="(C, H, W) of its states")
    classes: Classes = Field(default=0, description="number of labels; 0 is unconditional")
    null_label: bool = Field(default=False, description="whether it can be asked without a label, as guidance does")
    untold: bool = Field(
        default=False, description="whether it can be asked without the level, as noise-awareness guidance does"
    )
    augment: bool = Field(default=False, description="whether it is told the parameters of EDM's augmentation")
    attends: bool = Field(default=False, description="whether its tokens can be asked to attend to themselves alone")
    learned_variance: bool = Field(default=False, description="whether it says the variance of ancestral steps")
    notes: tuple[str, ...] = Field(default=(), description="what a user should know of the model")

    @property
    def conditioning(self) -> Conditioning:
        return Conditioning(self.classes, (), self.augment, self.null_label, self.untold, self.attends)
