"""Which noise each image of a micro-batch is mixed with: independent noise, or that of an optimal assignment.

Independent pairs make paths from noise to image that cross, so that the flow that averages them is curved. Minibatch
optimal transport (Pooladian et al. 2023, arXiv 2304.14772; Tong et al. 2024, arXiv 2302.00482, algorithm 3) exchanges
noise among the images of a group so that the sum of squared distances is least. Both marginals stay, each image's own
noise is standard normal no more: x0 and eps depend on each other, and the less so the smaller the group is beside
what an image has of dimensions.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from snrkit.base.value import Value


class Pairing(Protocol):
    """A rule that gives images their noise. Training asks it in several threads at once."""

    def paired(self, x0: Tensor, noise: Tensor, group: int) -> Tensor:
        """The noise (n, *) on the host in the order that images x0 (n, *) get it, `group` images after one another
        exchanging theirs; n is a multiple of it.
        """


class MinibatchOt(Value):
    """Exchange noise within each `train.slice` images so that the sum of |x0 - eps|^2 is least.

    With labels, or other things that a network is told, the noise of one label is standard normal no more, while
    sampling begins with noise that is: for networks that are told nothing of the image.
    """

    kind: Literal["minibatch_ot"] = "minibatch_ot"

    def paired(self, x0: Tensor, noise: Tensor, group: int) -> Tensor:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

        found, host = [], x0.cpu()  # all at once: it may wait for a device
        for images, drawn in zip(torch.split(host, group), torch.split(noise, group), strict=True):
            far = torch.cdist(images.flatten(1).double(), drawn.flatten(1).double()).square()
            found.append(drawn[torch.from_numpy(linear_sum_assignment(far.numpy())[1])])
        return torch.cat(found)
