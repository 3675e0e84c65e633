"""The tables of docs/audit.md, measured: `python -m tests.audit_page` writes the page anew."""

import inspect
from collections.abc import Iterator
from functools import cache

import diffusers

from snrkit.base.errors import SnrkitError
from snrkit.shift.schedulers import walk_scheduler
from snrkit.shift.telling import Walked

STEPS = (4, 10, 25, 50)
SPACINGS = ("linspace", "leading", "trailing")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def classes() -> list[type]:
    """Every scheduler that the installed diffusers exports, those that lack a package included."""
    found = (getattr(diffusers, name) for name in sorted(dir(diffusers)) if name.endswith("Scheduler"))
    return [kind for kind in found if isinstance(kind, type)]


def variants(kind: type) -> Iterator[tuple[str, dict[str, object]]]:
    """(name, settings) of each way in which a scheduler lays its levels out."""
    known = inspect.signature(kind.__init__).parameters
    if "timestep_spacing" in known:
        yield from ((spacing, {"timestep_spacing": spacing}) for spacing in SPACINGS)
    else:
        yield "-", {"stages": 1, "stage_range": [0, 1]} if "stages" in known else {}
    yield from ((flag.split("_")[1], {flag: True}) for flag in SIGMAS if flag in known)
    if "use_flow_sigmas" in known and "flow_shift" in known:
        yield "flow", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    if "shift" in known:
        yield "shift 3", {"shift": 3.0, **({"stages": 1, "stage_range": [0, 1]} if "stages" in known else {})}
    if "interpolation_type" in known:
        yield "log_linear", {"interpolation_type": "log_linear"}
    if "timestep_type" in known:
        yield "continuous", {"timestep_type": "continuous", "prediction_type": "v_prediction"}


@cache
def walked(kind: type, variant: str, steps: int) -> Walked | str:
    """What the audit finds, or why it finds nothing."""
    settings = dict(variants(kind))[variant]
    try:
        return walk_scheduler(kind(**settings), steps)
    except SnrkitError as error:
        return str(error)
    except (ImportError, TypeError, ValueError) as error:
        return f"{kind.__name__} cannot be made: {' '.join(str(error).split())[:200]}"
