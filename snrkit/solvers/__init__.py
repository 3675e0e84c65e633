"""Step rules for dx = x0 d(alpha) + eps d(sigma), one file per family."""

from typing import Annotated

from pydantic import Field

from snrkit.solvers.ancestral import AnalyticDpm, Ancestral
from snrkit.solvers.churn import Churn
from snrkit.solvers.dpmpp import Dpmpp2m, Dpmpp3m
from snrkit.solvers.euler import Euler
from snrkit.solvers.heun import Heun
from snrkit.solvers.ipndm import Ipndm, IpndmV
from snrkit.solvers.unipc import Unipc

AnySolver = Annotated[
    Euler | Heun | Ancestral | AnalyticDpm | Churn | Dpmpp2m | Dpmpp3m | Unipc | Ipndm | IpndmV,
    Field(discriminator="kind"),
]

__all__ = [
    "AnalyticDpm",
    "Ancestral",
    "AnySolver",
    "Churn",
    "Dpmpp2m",
    "Dpmpp3m",
    "Euler",
    "Heun",
    "Ipndm",
    "IpndmV",
    "Unipc",
]
