"""Step rules for dx = x0 d(alpha) + eps d(sigma), one file per family."""

from typing import Annotated

from pydantic import Field

from snrkit.sampling.solvers.ancestral import AnalyticDpm, Ancestral
from snrkit.sampling.solvers.churn import Churn
from snrkit.sampling.solvers.dpmpp import Dpmpp2m, Dpmpp3m
from snrkit.sampling.solvers.euler import Euler
from snrkit.sampling.solvers.fitted import Fitted
from snrkit.sampling.solvers.heun import Heun
from snrkit.sampling.solvers.ipndm import Ipndm, IpndmV
from snrkit.sampling.solvers.unipc import Unipc

AnySolver = Annotated[
    Euler | Heun | Ancestral | AnalyticDpm | Churn | Dpmpp2m | Dpmpp3m | Unipc | Ipndm | IpndmV | Fitted,
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
    "Fitted",
    "Heun",
    "Ipndm",
    "IpndmV",
    "Unipc",
]
