"""The posterior mean over a group of images as what the network is asked for (Xu et al. 2023, arXiv 2302.00670).

A state x = alpha x0 + sigma eps asks the network for x0, though at noisy levels many images could have been in it: the
expectation of that answer given x is what is learned, and its scatter is noise of the gradient. Over the n images of a
group, with the image's own among them, the expectation is known: weights w_ij = softmax_j(-|x_i - alpha_i x0_j|^2 /
(2 sigma_i^2)). Asking for sum_j w_ij x0_j has less scatter. Its bias is of order 1/n, and none at n = 1 and
where one image alone fits the state; the authors have n of 1,024 and more.
"""

import torch
from torch import Tensor

from snrkit.base.transfer import send
from snrkit.diffusion.level import Level


def stable_target(
    x0: Tensor, eps: Tensor, level: Level, group: int, labels: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(x0', eps'), each (n, *): the posterior mean of the image of each state, and the noise that is left beside it.

    The state stays: alpha x0' + sigma eps' = alpha x0 + sigma eps. Of images x0 and noise eps (n, *) at `level` (n,),
    `group` images after one another being each other's rivals; n is a multiple of it. `labels`: what is told and what
    is true, each (n,): an image that is told one has rivals of this label alone, and -1 tells none.
    """
    ratio = send(level.alpha / level.sigma, x0.device).double()
    means = []
    for start in range(0, len(x0), group):
        part = slice(start, start + group)
        images, noise, s = x0[part].flatten(1).double(), eps[part].flatten(1).double(), ratio[part, None]
        along = noise @ images.T
        apart = torch.cdist(images, images, compute_mode="donot_use_mm_for_euclid_dist").square()
        logits = -s * (along.diagonal()[:, None] - along) - s.square() * apart / 2  # 0 of the image's own
        if labels is not None:
            told, true = (each[part] for each in labels)
            logits = logits.masked_fill((told[:, None] >= 0) & (told[:, None] != true), -torch.inf)
        means.append(logits.softmax(1) @ images)
    mean = torch.cat(means).reshape(x0.shape)
    left = eps.double() + ratio.reshape(-1, *(1,) * (x0.ndim - 1)) * (x0.double() - mean)
    return mean.to(x0.dtype), left.to(eps.dtype)
