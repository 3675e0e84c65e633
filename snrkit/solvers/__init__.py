"""Step rules for dx = x0 d(alpha) + eps d(sigma), one file per family."""

from typing import Annotated

from pydantic import Field

from snrkit.solvers.ancestral import Ancestral
from snrkit.solvers.churn import Churn
from snrkit.solvers.dpmpp import Dpmpp2m
from snrkit.solvers.euler import Euler
from snrkit.solvers.heun import Heun

AnySolver = Annotated[Euler | Heun | Ancestral | Churn | Dpmpp2m, Field(discriminator="kind")]

__all__ = ["Ancestral", "AnySolver", "Churn", "Dpmpp2m", "Euler", "Heun"]
