"""Certificates in diffusers' pipelines: the recipe of `snrkit certify` between a pipeline and its scheduler.

    with certified(pipeline, "certificate.json"):
        images = pipeline(...).images

A recipe can act there if its solver is the scheduler's own, or steps fitted beyond it: what was fitted is added to the
states that the scheduler makes. Weights, levels and the weight of guidance must be those that were certified, and the
scheduler configured to the recipe's solver; guidance can be cfg of one weight in all steps, or none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snrkit.base.errors import SnrkitError
from snrkit.base.records import read_record
from snrkit.base.tensors import values_checksum
from snrkit.experiment.certificate import Certificate
from snrkit.experiment.same_walk import SameWalk
from snrkit.pipelines import Hook, acting
from snrkit.sampling.corrections import ClassifierFreeGuidance, ClipX0, DynamicThreshold
from snrkit.sampling.corrections.guidance import Guidance
from snrkit.sampling.grid import ImageGrid
from snrkit.sampling.sampler import Sampler, terms_of
from snrkit.sampling.solvers import AnySolver, Dpmpp2m, Euler, Increments, Unipc
from snrkit.sampling.solvers.fitted import fitted_terms
from snrkit.sampling.step import Correction, Fit, Step, TakesFit, add_terms

Settings = Mapping[str, Any]
NETWORKS = ("unet", "transformer")  # where a pipeline has its network
MIDPOINT: Settings = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
}
OF_EULER: Mapping[str, Settings] = {
    "DDIMScheduler": {"thresholding": False, "clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EDMEulerScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": False},
}


def certified(pipeline: Any, certificate: Path | str) -> Hook:
    """Put a recipe into a pipeline until `.remove()`, or for a `with`.

    SnrkitError where the certificate is of other weights, or its recipe is one that this pipeline's scheduler, as it is
    configured, does not make; when the pipeline is called, where its steps or its guidance are not those certified.
    """
    path = Path(certificate)
    record = read_record(Certificate, path)
    sampler = Sampler.model_validate(record.recipe.definition)
    network = _network(pipeline)
    if values_checksum(dict(network.named_parameters())) != record.network:
        raise SnrkitError(f"{path} is of other weights than this pipeline's; certify the folder it was loaded from.")
    _check_start(sampler, path)
    _check_solver(pipeline, sampler.solver, len(record.logsnr), path)
    weight = _guidance(sampler, path)
    before, after = acting(_corrections(record, sampler))
    return Hook(pipeline, before, after, SameWalk(path, pipeline, network, weight, record.logsnr))


def settings_of(solver: AnySolver, steps: int) -> Mapping[str, Settings]:
    """The schedulers that make a solver's steps, and what each must be configured to for that."""
    match solver:
        case Euler():
            return OF_EULER
        case Dpmpp2m():
            return {"DPMSolverMultistepScheduler": MIDPOINT}
        case Unipc() if solver.p < 3 or solver.lower_order_final:
            off = [] if solver.corrector else list(range(steps - 1))
            bh2 = {"solver_order": solver.p, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True}
            alone = {"solver_p": None, "disable_corrector": off, "thresholding": False}
            return {"UniPCMultistepScheduler": {**bh2, **alone}}
    return {}


def _check_solver(pipeline: Any, solver: AnySolver, steps: int, path: Path) -> None:
    """SnrkitError where the scheduler makes other steps than a recipe's solver, or its base."""
    scheduler = getattr(pipeline, "scheduler", None)
    base, name = solver.base if isinstance(solver, Increments) else solver, type(scheduler).__name__
    known = settings_of(base, steps)
    if scheduler is None or name not in known:
        made = ", ".join(known) or "none in a pipeline"
        raise SnrkitError(f"{path}: its recipe has the solver {base.kind}, which {name} does not make ({made}).")
    for key, wanted in known[name].items():
        found = vars(scheduler).get(key, scheduler.config.get(key, wanted))
        if key == "disable_corrector":
            found = sorted(k for k in found if k < steps - 1)  # none is corrected after the last
        if found != wanted:
            raise SnrkitError(
                f"{path}: its recipe has the solver {base.kind}, which {name} makes with {key} {wanted!r}, and this "
                f"one's is {found!r}; set it with from_config."
            )


def _network(pipeline: Any) -> nn.Module:
    found: nn.Module | None = next(
        (net for name in NETWORKS if (net := getattr(pipeline, name, None)) is not None), None
    )
    if found is None:
        raise SnrkitError(f"a {type(pipeline).__name__} has no {' and no '.join(NETWORKS)} that was certified.")
    return found


def _check_start(sampler: Sampler, path: Path) -> None:
    """SnrkitError for first states, or levels, that no pipeline has."""
    if isinstance(sampler.grid, ImageGrid):
        raise SnrkitError(
            f"{path}: its recipe has a grid ({sampler.grid.kind}) of each image's own, and a pipeline has one for all; "
            "certify a sampler with such a grid."
        )
    if sampler.start != "published":
        raise SnrkitError(
            f"{path}: its recipe has start {sampler.start}, and pipelines begin at the published one; certify that."
        )


def _guidance(sampler: Sampler, path: Path) -> float:
    """The weight of the recipe's cfg. SnrkitError for guidance that no pipeline makes."""
    acts = [isinstance(one, Guidance) and one.weight != 0 for one in sampler.corrections]
    weight, remedy = 0.0, "certify a sampler with plain cfg, or without guidance"
    for place, one in enumerate(sampler.corrections):
        if isinstance(one, ClipX0 | DynamicThreshold) and any(acts[place:]):
            raise SnrkitError(
                f"{path}: its recipe has {one.kind} before guidance, and a pipeline guides first; {remedy}."
            )
        if not (isinstance(one, Guidance) and acts[place]):
            continue
        if not isinstance(one, ClassifierFreeGuidance):
            raise SnrkitError(f"{path}: its recipe has {one.kind}, which no pipeline makes; {remedy}.")
        plain = ClassifierFreeGuidance(weight=one.weight)
        if (changed := [key for key in type(one).model_fields if getattr(one, key) != getattr(plain, key)]) != []:
            raise SnrkitError(f"{path}: its recipe has cfg with {' and '.join(changed)}, which is not plain; {remedy}.")
        weight += one.weight
    if weight < 0:
        raise SnrkitError(
            f"{path}: its recipe has cfg of weight {weight:g}, and pipelines have none below 0; {remedy}."
        )
    return weight


def _corrections(record: Certificate, sampler: Sampler) -> Sequence[Correction]:
    """What acts after the scheduler's steps; guidance is the pipeline's own."""
    stored = record.recipe.fit
    found: list[Correction] = []
    for value in sampler.corrections:
        if isinstance(value, TakesFit) and terms_of(value) and stored is not None:
            found.append(value.with_fit(stored.fit))
        elif not isinstance(value, Guidance):
            found.append(value)  # type: ignore[arg-type]  # those that open resources are refused by `correct`
    if isinstance(sampler.solver, Increments) and stored is not None:
        found.append(_FittedAfter(sampler.solver, stored.fit))
    return found


@dataclass(slots=True)
class _FittedAfter:
    """Fitted increments on the steps of a scheduler; the eps of the steps before are kept from call to call."""

    value: Increments
    fit: Fit
    past: tuple[Tensor, ...] = ()

    def after(self, step: Step) -> Tensor:
        """As FittedSteps.step, on what the scheduler made."""
        past = self.past if step.position.index else ()
        terms, self.past = fitted_terms(self.value, step.calls[-1].prediction, past)
        return add_terms(step.x_next, terms, self.fit, step.position.index)
