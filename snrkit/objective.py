"""What is asked of the network: a weighting, written on eps, as the factor of the loss on the network's own output F.

    loss = weight_F |F - F*|^2,    F* = (y - c_skip x)/c_out,
    weight_F = w_eps * c_out^2 alpha^2/(alpha*b - sigma*a)^2       (with EDM's preconditioning: w_eps alpha^2 s^2/d)

computed in float64 at max(logsnr, -40), so that a v-loss stays 1 and a min-SNR weight becomes 0 at zero terminal SNR.
"""

from torch import Tensor

from snrkit.denoiser import Precondition
from snrkit.level import Level
from snrkit.prediction import Target
from snrkit.process import Process
from snrkit.weighting import Weighting

LOWEST_LOGSNR = -40.0


def output_weight(
    level: Level,
    density: Tensor,
    *,
    process: Process,
    target: Target,
    precondition: Precondition,
    weighting: Weighting,
    sigma_data: float,
) -> Tensor:
    """weight_F (B,): the factor of the squared error of the network's own output, float64."""
    safe = process.level(level.logsnr.clamp(min=LOWEST_LOGSNR))
    a, b = target.direction(safe)
    c_out = precondition.coefficients(safe, target, process.scaling, sigma_data).c_out
    to_output = (c_out * safe.alpha / (safe.alpha * b - safe.sigma * a)) ** 2
    return weighting.weight(safe, density, sigma_data) * to_output
