"""Step rules for dx = x0 d(alpha) + eps d(sigma), one file per family."""

from typing import Annotated

from pydantic import Field

from snrkit.sampling.solvers.ancestral import AnalyticDpm, Ancestral
from snrkit.sampling.solvers.churn import Churn
from snrkit.sampling.solvers.deis import Deis
from snrkit.sampling.solvers.dpm_2 import Dpm2
from snrkit.sampling.solvers.dpmpp import Dpmpp2m, Dpmpp3m
from snrkit.sampling.solvers.dpmpp_multistep_sde import Dpmpp2mSde, Dpmpp3mSde
from snrkit.sampling.solvers.dpmpp_singlestep import Dpmpp2sAncestral, DpmppSde
from snrkit.sampling.solvers.euler import Euler
from snrkit.sampling.solvers.fitted import Bns, Fitted, Increments
from snrkit.sampling.solvers.heun import Heun
from snrkit.sampling.solvers.ipndm import Ipndm, IpndmV
from snrkit.sampling.solvers.sa_solver import SaSolver
from snrkit.sampling.solvers.unipc import Unipc

AnySolver = Annotated[
    Euler
    | Heun
    | Dpm2
    | Ancestral
    | AnalyticDpm
    | Churn
    | Dpmpp2m
    | Dpmpp3m
    | Dpmpp2sAncestral
    | DpmppSde
    | Dpmpp2mSde
    | Dpmpp3mSde
    | SaSolver
    | Unipc
    | Ipndm
    | IpndmV
    | Deis
    | Fitted
    | Bns,
    Field(discriminator="kind"),
]

__all__ = [
    "AnalyticDpm",
    "Ancestral",
    "AnySolver",
    "Bns",
    "Churn",
    "Deis",
    "Dpm2",
    "Dpmpp2m",
    "Dpmpp2mSde",
    "Dpmpp2sAncestral",
    "Dpmpp3m",
    "Dpmpp3mSde",
    "DpmppSde",
    "Euler",
    "Fitted",
    "Heun",
    "Increments",
    "Ipndm",
    "IpndmV",
    "SaSolver",
    "Unipc",
]
