"""What `measure-shift` measures on."""

from pydantic import Field

from snrkit.value import Value


class ShiftConfig(Value):
    """How many trajectories and images to compare, and how sure to be."""

    images: int = Field(1000, ge=8, description="sampled trajectories, and forward samples of each kind")
    batch: int = Field(500, ge=1)
    bootstrap: int = Field(1000, ge=100, description="resamples behind each interval")
    confidence: float = Field(0.95, gt=0.5, lt=1)
