"""What is fitted to a run's network: coefficients by step, each file that of one sampler as it is defined.

RUN/fits/<key of the definition>.json says what its coefficients belong to, so that those of other weights are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from snrkit.base.errors import RunError
from snrkit.base.files import disk_errors
from snrkit.base.records import read_record, to_json
from snrkit.base.regular import read_regular
from snrkit.base.sealed import write_json
from snrkit.data.dataset import fingerprint
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Denoiser
from snrkit.experiment.run import Run
from snrkit.fitting.guard import Guard
from snrkit.sampling.grid import Grid, ImageGrid, Placement, Told
from snrkit.sampling.step import (
    Fit,
    ForwardStatistics,
    GivenFit,
    LevelPosterior,
    NamedEstimator,
    NamedFit,
    NamedWeights,
    Sources,
    no_fit,
)

LARGEST_FIT = 2**26  # bytes


@dataclass(frozen=True, slots=True)
class FitOf:
    """What coefficients were fitted to."""

    sampler: str  # its definition
    numerics: int
    training: str  # fingerprint of what decides the weights, and of the images
    weights: str
    checkpoint_images: int
    weights_checksum: str | None
    labels: int | None  # of the mixture over which they were fitted; None for all
    named_weights: str = ""  # fingerprint of other weights and estimators that the sampler names; "" for none


@dataclass(frozen=True, slots=True)
class StoredFit:
    """The coefficients of a sampler, and what the guard said of them."""

    of: FitOf
    name: str  # of the sampler, when it was fitted
    rows: tuple[tuple[float, ...], ...]  # (steps, terms)
    shares: tuple[float, ...]  # of each step's plain least-squares solution
    noises: int  # first states it was fitted on, and as many others that it was checked on
    seeds: str
    evaluations: int  # of the denoiser for each first state, of the flow; guidance asks the network more often
    guard: Guard

    @property
    def fit(self) -> Fit:
        """The coefficients; none where the guard did not let them pass."""
        return GivenFit(self.rows) if self.guard.helps else no_fit(len(self.rows), len(self.rows[0]))


def fit_path(run: Run, definition: str) -> Path:
    """Where the fit of a sampler lies, by its definition."""
    return run.fit(fingerprint(definition)[:16])


def write_fit(run: Run, stored: StoredFit) -> Path:
    """Keep a fit in the run; returns where."""
    path = fit_path(run, stored.of.sampler)
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_json(path, to_json(stored))
    return path


def fit_fact(run: Run, named: NamedFit) -> str:
    """What a fit of the run is, as manifests keep it."""
    path = fit_path(run, named.sampler)
    return fingerprint(read_regular(path, LARGEST_FIT)) if path.exists() else "absent"


def open_fit(run: Run, named: NamedFit, wanted: FitOf) -> Fit:
    """The coefficients of a sampler, fitted to what is `wanted`. RunError where there are none, or of other weights."""
    path = fit_path(run, named.sampler)
    if not path.exists():
        raise RunError(
            f"it takes a fit, and {run.path} holds none of it; run snrkit tune --by flow with this file first."
        )
    stored = read_record(StoredFit, path)
    check_fit(path, stored.of, wanted, "run snrkit tune --by flow with the same file again")
    if (len(stored.rows), {len(row) for row in stored.rows}) != (named.steps, {named.terms}):
        raise RunError(f"{path} has not {named.terms} coefficients for each of {named.steps} steps; delete it.")
    return stored.fit


def check_fit(path: Path, found: FitOf, wanted: FitOf, remedy: str) -> None:
    """Refuse what was fitted to something else than is `wanted`: RunError."""
    differing = [f.name for f in fields(FitOf) if getattr(found, f.name) != getattr(wanted, f.name)]
    if differing:
        raise RunError(f"{path} was fitted to another model ({_said(differing)} differ); {remedy}.")


def _said(differing: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in differing)


@dataclass(frozen=True, slots=True)
class WithFit:
    """Sources with a fit that is given, such as one that is being made."""

    sources: Sources
    given: Fit

    def fit(self, named: NamedFit) -> Fit:
        """The one that is given."""
        return self.given

    def denoiser(self, named: NamedWeights) -> Denoiser:
        return self.sources.denoiser(named)

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        return self.sources.estimator(named)

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        return self.sources.forward(levels)

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        return self.sources.placement(grid)

    def telling(self, told: Told) -> Sources:
        return replace(self, sources=self.sources.telling(told))
