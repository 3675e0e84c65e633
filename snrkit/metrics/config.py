"""What `eval-fid` scores with."""

from typing import Literal

from pydantic import Field, model_validator

from snrkit.base.value import Batch, Place, Value

Features = Literal[
    "classifier",
    "pixels",
    "packets",
    "efflite0",
    "inception",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
    "dinov2-vit-g-14",
    "clip-rn50",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
]

WITHOUT_FILE = ("classifier", "pixels", "packets", "efflite0")  # features that take no file of weights
OF_ONE_SIZE = ("classifier", "pixels", "packets")  # features that want all images of one size

Further = Literal["fd_infinity", "sliced"]
Deciding = Literal["fd", "fd_infinity", "kid", "sliced"]

DEFAULT_COMPONENTS = 64


class MetricsConfig(Value):
    """Which features, which scores, and over how many disjoint ranges of seeds."""

    features: Features = Field(
        default="classifier",
        description="what images are compared by: features of a network, or coefficients of their pixels",
    )
    decide: Deciding = Field(
        default="fd",
        description="the score by which compare gives verdicts, tables are led and checkpoints selected; choose it "
        "before any image is made",
    )
    more: tuple[Further, ...] = Field(
        default=(), max_length=8, description="scores that are computed only where they are asked for"
    )
    ranges: int = Field(default=3, ge=1, le=10_000, description="disjoint seed ranges that give the spread")
    weights: Place | None = Field(
        default=None, description="file of the extractor's weights; default: they are looked for in torch's cache"
    )
    download: bool = Field(default=False, description="fetch the extractor's weights where they are not in a cache")
    kid_subsets: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="number of random subsets over which KID is the mean; one, where a subset holds all images "
        "of both sides",
    )
    kid_subset_size: int = Field(
        default=1000,
        ge=2,
        le=100_000,
        description="images of each side in a subset of KID, lowered to the smaller set where there are fewer",
    )
    neighborhood: int = Field(default=3, ge=1, le=10_000, description="k of precision and recall")
    pixel_components: int = Field(
        default=DEFAULT_COMPONENTS, ge=1, le=100_000, description="principal components of the features `pixels`"
    )
    batch: Batch = Field(default=256, description="images whose features are computed at once")

    @model_validator(mode="after")
    def _weights_used(self) -> "MetricsConfig":
        if self.weights is not None and self.features in WITHOUT_FILE:
            raise ValueError(f"weights have no effect on features {self.features}; drop them or choose inception")
        if self.weights is not None and self.features.startswith("dinov2"):
            raise ValueError("weights have no effect on dinov2, which torch.hub loads from its cache; drop them")
        if self.download and self.features in WITHOUT_FILE:
            raise ValueError(f"download has no effect on features {self.features}; drop it")
        unused = self.features != "pixels" and self.pixel_components != DEFAULT_COMPONENTS
        if unused:
            raise ValueError(f"pixel_components has no effect on features {self.features}; drop it")
        return self
