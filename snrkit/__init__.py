"""snrkit: measure, train against and correct SNR-t bias in diffusion models.

Three equations carry the package (docs/architecture.md):

    state     x  = alpha * x0 + sigma * eps      logsnr = ln(alpha^2 / sigma^2), nats, float64
    belief    y  = a * x0 + b * eps              every prediction type is one pair (a, b)
    dynamics  dx = x0 d(alpha) + eps d(sigma)    every ODE solver discretises this line

Import from the modules (`from snrkit.diffusion.process import Edm`); this one imports nothing until `snrkit.wrap` is
asked for, so that `snrkit --help` is fast.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["wrap"]


def __getattr__(name: str) -> Any:
    """`wrap` of snrkit.diffusion.denoiser."""
    if name == "wrap":
        return importlib.import_module("snrkit.diffusion.denoiser").wrap
    raise AttributeError(f"module 'snrkit' has no attribute '{name}'")
