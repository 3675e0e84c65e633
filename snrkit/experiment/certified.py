"""Certificates in diffusers' pipelines: the recipe of `snrkit certify` between a pipeline and its scheduler.

    with certified(pipeline, "certificate.json"):
        images = pipeline(...).images

A recipe can act there if its solver is the scheduler's own, or steps fitted beyond it: what was fitted is added to the
states that the scheduler makes. Weights, levels and the weight of guidance must be those that were certified.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.records import read_record
from snrkit.base.tensors import values_checksum
from snrkit.experiment.certificate import Certificate
from snrkit.pipelines import Hook, correct
from snrkit.sampling.corrections import ClassifierFreeGuidance
from snrkit.sampling.corrections.guidance import Guidance
from snrkit.sampling.sampler import Sampler, terms_of
from snrkit.sampling.solvers import Fitted
from snrkit.sampling.solvers.fitted import fitted_terms
from snrkit.sampling.step import Correction, Fit, Step, TakesFit, add_terms

SCHEDULERS = {  # the solvers whose steps a scheduler makes
    "euler": ("DDIMScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler",),
    "unipc": ("UniPCMultistepScheduler",),
}
NEAR = 0.01  # nats, of the levels of a pipeline from those that were certified
NETWORKS = ("unet", "transformer")  # where a pipeline has its network


def certified(pipeline: Any, certificate: Path | str) -> Hook:
    """Put a recipe into a pipeline until `.remove()`, or for a `with`.

    SnrkitError where the certificate is of other weights, or its recipe is one that no scheduler makes; when the
    pipeline is called, where it walks other levels or guides with another weight than was certified.
    """
    path = Path(certificate)
    record = read_record(Certificate, path)
    sampler = Sampler.model_validate(record.recipe.definition)
    _check_weights(pipeline, record, path)
    scheduler = type(getattr(pipeline, "scheduler", None)).__name__
    solver = sampler.solver.base if isinstance(sampler.solver, Fitted) else sampler.solver
    if scheduler not in SCHEDULERS.get(solver.kind, ()):
        made = ", ".join(SCHEDULERS.get(solver.kind, ())) or "none in a pipeline"
        raise SnrkitError(f"{path}: its recipe has the solver {solver.kind}, which {scheduler} does not make ({made}).")
    return correct(pipeline, [_SameWalk(path, pipeline, sampler, record.logsnr), *_corrections(record, sampler)])


def _check_weights(pipeline: Any, record: Certificate, path: Path) -> None:
    network = next((found for name in NETWORKS if (found := getattr(pipeline, name, None)) is not None), None)
    if network is None:
        raise SnrkitError(f"a {type(pipeline).__name__} has no {' and no '.join(NETWORKS)} that was certified.")
    if values_checksum(dict(network.named_parameters())) != record.network:
        raise SnrkitError(f"{path} is of other weights than this pipeline's; certify the folder it was loaded from.")


def _corrections(record: Certificate, sampler: Sampler) -> Sequence[Correction]:
    """What acts after the scheduler's steps; guidance is the pipeline's own."""
    stored = record.recipe.fit
    found: list[Correction] = []
    for value in sampler.corrections:
        if isinstance(value, TakesFit) and terms_of(value) and stored is not None:
            found.append(value.with_fit(stored.fit))
        elif not isinstance(value, Guidance):
            found.append(value)  # type: ignore[arg-type]  # those that open resources are refused by `correct`
    if isinstance(sampler.solver, Fitted) and stored is not None:
        found.append(_FittedAfter(sampler.solver, stored.fit))
    return found


@dataclass(slots=True)
class _FittedAfter:
    """Fitted increments on the steps of a scheduler; the eps of the steps before are kept from call to call."""

    value: Fitted
    fit: Fit
    past: tuple[Tensor, ...] = ()

    def after(self, step: Step) -> Tensor:
        """As FittedSteps.step, on what the scheduler made."""
        past = self.past if step.position.index else ()
        terms, self.past = fitted_terms(self.value, step.calls[-1].prediction, past)
        return add_terms(step.x_next, terms, self.fit, step.position.index)


@dataclass(slots=True)
class _SameWalk:
    """Refuses a call of a pipeline at other levels, or with other guidance, than were certified; changes nothing."""

    path: Path
    pipeline: Any
    sampler: Sampler
    logsnr: Sequence[float]  # NaN for pure noise
    checked: tuple[float, ...] = field(default=())

    def after(self, step: Step) -> Tensor:
        """The state as it is."""
        if step.position.index == 0:
            self._check_levels(tuple(float(level.logsnr) for level in step.position.grid[:-1]))
            self._check_guidance()
        return step.x_next

    def _check_levels(self, walked: tuple[float, ...]) -> None:
        wanted = [-math.inf if math.isnan(value) else value for value in self.logsnr]
        near = (a == b or abs(a - b) < NEAR for a, b in zip(walked, wanted, strict=False))
        if len(walked) != len(wanted) or not all(near):
            raise SnrkitError(
                f"{self.path} is for {len(wanted)} steps from {wanted[0]:.2f} to {wanted[-1]:.2f} nats, and the "
                f"pipeline walks {len(walked)} from {walked[0]:.2f} to {walked[-1]:.2f}; set the scheduler's steps and "
                "spacing as they were certified."
            )

    def _check_guidance(self) -> None:
        guided = bool(getattr(self.pipeline, "do_classifier_free_guidance", False))
        scale = float(getattr(self.pipeline, "guidance_scale", 1.0) or 1.0) if guided else 1.0
        weights = [c.weight for c in self.sampler.corrections if isinstance(c, ClassifierFreeGuidance)]
        wanted = 1.0 + sum(weights)
        if abs(scale - wanted) > 1e-6:
            raise SnrkitError(
                f"{self.path} is for a guidance scale of {wanted:g}, and the pipeline has {scale:g}; certify that one."
            )
