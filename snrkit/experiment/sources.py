"""What a sampler may name, opened from run directories: weaker models, statistics of forward samples, estimators."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from snrkit.base.errors import ConfigError, RunError
from snrkit.base.files import read_json
from snrkit.base.streams import FORWARD_STATISTICS, STATISTICS
from snrkit.data.dataset import fingerprint
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Model, Opened, open_spectrum_model, open_weights
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_experiment
from snrkit.sampling.sampler import OpenedSampler, Sampler, named, open_with
from snrkit.sampling.step import ForwardStatistics, LevelPosterior, Named, NamedEstimator, NamedWeights
from snrkit.shift.arms import FORWARD_IMAGES, forward_arm
from snrkit.shift.estimator import Estimator, EstimatorConfig, make_estimator
from snrkit.spectral.grid import SLACK, Spectral, SpectralGrid


@dataclass(frozen=True, slots=True)
class RunSources:
    """The sources of a run's samplers."""

    opened: Opened
    model: Model

    def facts(self, sampler: Sampler) -> list[list[Any]]:
        """Which weights, estimators and spectra the sampler depends on beside its own model, as they are now."""
        e = self.opened.experiment
        found = [self._fact(kind, what) for kind, what in named(sampler, e.process, e.spectral)]
        if isinstance(sampler.grid, SpectralGrid) or e.network.scalars:
            open_spectrum_model(self.opened, self.model.run)
            found.append([fingerprint(self.model.run.spectra.read_bytes())])
        return found

    def _fact(self, kind: str, what: Named) -> list[Any]:
        if isinstance(what, NamedEstimator):
            path = self.model.run.estimator / "network.safetensors"
            return [fingerprint(path.read_bytes()) if path.exists() else "absent"]
        try:
            found = self._known(what)
            return [str(what.run), found.name, found.images]
        except ConfigError as error:
            raise ConfigError(f"{kind}: {error}") from None

    def denoiser(self, named: NamedWeights) -> Denoiser:
        """The model of these weights. It must share scaling and shape: ConfigError."""
        self._known(named)
        return open_weights(self.opened, *self._place(named.run), named.checkpoint, named.average).denoiser

    def _place(self, run: Path | None) -> tuple[Experiment, Run]:
        return (self.opened.experiment, self.model.run) if run is None else (stored_experiment(run), Run(run))

    def _known(self, named: NamedWeights) -> Weights:
        """What is named, without loading it; ConfigError where it cannot stand beside."""
        e, (other, run) = self.opened.experiment, self._place(named.run)
        if other.process.scaling != e.process.scaling:
            raise ConfigError(
                f"{named.run} has states in {other.process.scaling} scaling and {e.name} in "
                f"{e.process.scaling}; name a run of the same scaling."
            )
        if (other.network.scalars, other.network.scalars and other.spectral) != (
            e.network.scalars,
            e.network.scalars and e.spectral,
        ):
            raise ConfigError(
                f"{named.run} is told other ends of schedules than {e.name} (network.scalars, levels); "
                "name a run that is told the same."
            )
        found = other.model.find(run, named.checkpoint, named.average)
        itself = run.path.resolve() == self.model.run.path.resolve()
        if itself and (found.name, found.images) == (self.model.weights, self.model.images):
            raise ConfigError(
                f"{found.name} at {found.images} images is the sampled model itself; name an earlier checkpoint, "
                "another average or another run."
            )
        return found

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        """The estimator that snrkit fit-estimator made."""
        return open_estimator(self.opened, self.model.run)

    def spectral(self, asked: bool) -> Spectral | None:
        """The run's model of spectra, with what the network is told of them."""
        e = self.opened.experiment
        if not asked and not e.network.scalars:
            return None
        return Spectral(open_spectrum_model(self.opened, self.model.run), e.spectral, bool(e.network.scalars))

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """Statistics on up to FORWARD_IMAGES training images, with their own labels and the mean spectrum's ends."""
        opened = self.opened
        rows = STATISTICS.open().permutation(np.asarray(opened.split.train))[:FORWARD_IMAGES]
        labels = None if opened.dataset.labels is None else opened.dataset.labels[torch.from_numpy(rows)]
        spectral = self.spectral(False)
        ends = None if spectral is None else spectral.told(None, rows.tolist(), None)
        arm = forward_arm(
            self.model.denoiser, levels, opened.shown(rows.tolist()), torch.from_numpy(rows), Cond(labels, ends),
            key=FORWARD_STATISTICS.key(opened.experiment.seed), batch=opened.experiment.sample.batch,
            device=opened.world.device,
        )  # fmt: skip
        return ForwardStatistics(arm.eps_square.mean(1), arm.x0_variance.mean(1))


def open_sampler(opened: Opened, model: Model, sampler: Sampler) -> OpenedSampler:
    """A sampler of a run with all that it names."""
    return open_with(sampler, opened.experiment.process, RunSources(opened, model))


def beyond_training(opened: Opened, model: Model, sampler: Sampler) -> str | None:
    """What to say of a grid that asks for levels or texture which training has not seen; None where it does not."""
    e, grid = opened.experiment, sampler.grid
    if e.spectral is None and not isinstance(grid, SpectralGrid):
        return None
    known = Spectral(open_spectrum_model(opened, model.run), e.spectral, bool(e.network.scalars))
    if isinstance(grid, SpectralGrid):
        return known.cut(grid, e.process)
    levels, (low, high) = grid.levels(e.process), known.trained(e.process)
    first, last = float(levels[0].logsnr), float(levels[-2].logsnr)
    if low - SLACK <= first and last <= high + SLACK:
        return None
    return (
        f"its grid visits logsnr {first:.1f} to {last:.1f}, where training saw {low:.1f} to {high:.1f}; a grid of kind "
        "spectral, or karras between a sigma_min and a sigma_max, stays within."
    )


def open_estimator(opened: Opened, run: Run) -> Estimator:
    """The estimator that snrkit fit-estimator made of this run. RunError when absent, damaged or of another config."""
    path, e = run.estimator, opened.experiment
    if not (path / "estimator.json").exists():
        raise RunError(f"{run.path} has no estimator of levels; run snrkit fit-estimator with the same file first.")
    record = read_json(path / "estimator.json")
    if (record["process"], record["dataset_fingerprint"]) != (
        e.process.model_dump(mode="json"),
        opened.dataset.fingerprint,
    ):
        raise RunError(f"the estimator in {path} is of another process or data set; run snrkit fit-estimator again.")
    config = EstimatorConfig.model_validate(record["config"])
    estimator = make_estimator(config, e.process.bounds, opened.dataset.shape[0], e.seed)
    try:
        estimator.network.load_state_dict(load((path / "network.safetensors").read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} is damaged ({str(error)[:100]}); run snrkit fit-estimator again.") from None
    estimator.network.to(opened.world.device).eval().requires_grad_(False)
    return estimator
