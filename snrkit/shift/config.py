"""What `measure-shift` measures, and on how much."""

from typing import Literal

from pydantic import Field, field_validator

from snrkit.base.value import Value


class EstimatorConfig(Value):
    """Size and training of the estimator of levels (snrkit fit-estimator)."""

    images: int = Field(default=200_000, ge=1)
    batch: int = Field(default=256, ge=2)
    lr: float = Field(default=5e-3, gt=0)
    bins: int = Field(default=64, ge=4)
    channels: int = Field(default=32, ge=4)


Probe = Literal["window", "horizon", "amplification", "audit", "estimator", "why"]


class ShiftConfig(Value):
    """How many trajectories and images to compare, how sure to be, and which further probes to run.

    Norms, variances, nearest levels and the norms of x0_hat are always measured.
    """

    images: int = Field(default=1000, ge=8, description="sampled trajectories, and forward samples of each kind")
    batch: int = Field(default=500, ge=1)
    bootstrap: int = Field(default=1000, ge=100, description="resamples behind each interval")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    probes: tuple[Probe, ...] = ("window", "horizon", "amplification", "audit")
    window_images: int = Field(
        default=64, ge=8, description="images behind the matrices of wrong levels (L^2 calls each)"
    )
    horizon_steps: int = Field(default=1, ge=1, description="steps walked from states that are right")
    horizon_images: int = Field(default=256, ge=8, description="images behind the short horizon")
    amplification_images: int = Field(default=8, ge=2, description="images behind the gains (3 L trajectories each)")
    audit_pairs: int = Field(default=8192, ge=64, description="training pairs behind the audit")
    why_substeps: int = Field(
        default=4, ge=2, description="steps of the reference sampler for each step of the sampler"
    )
    estimator: EstimatorConfig = EstimatorConfig()

    @field_validator("probes")
    @classmethod
    def _once(cls, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
        if len(set(probes)) < len(probes):
            raise ValueError("a probe is named twice")
        return probes
