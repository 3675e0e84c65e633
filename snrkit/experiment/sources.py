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
from snrkit.base.streams import FORWARD, SUBSET, stream
from snrkit.checkpoints.foreign import weights_of
from snrkit.data.dataset import fingerprint
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.opening import Model, Opened, checkpoint_path, open_spectrum_model, open_weights, weights_name
from snrkit.experiment.run import Run, stored_experiment
from snrkit.sampling.corrections import Autoguidance, NoiseAwarenessClassifier
from snrkit.sampling.sampler import OpenedSampler, Sampler, open_with
from snrkit.sampling.step import ForwardStatistics, LevelPosterior
from snrkit.shift.arms import forward_arm
from snrkit.shift.config import EstimatorConfig
from snrkit.shift.estimator import Estimator, make_estimator
from snrkit.spectral.grid import SLACK, Spectral, SpectralGrid

FORWARD_IMAGES = 512  # behind the statistics that Analytic-DPM and x0_rescale ask for


@dataclass(frozen=True, slots=True)
class RunSources:
    """The sources of a run's samplers."""

    opened: Opened
    model: Model

    def facts(self, sampler: Sampler) -> list[list[Any]]:
        """Which weights and estimators the sampler's corrections name, as they are now."""
        found: list[list[Any]] = []
        for correction in sampler.corrections:
            if isinstance(correction, Autoguidance):
                found.append([str(correction.run), *self._weaker(correction)])
            if isinstance(correction, NoiseAwarenessClassifier):
                path = self.model.run.estimator / "network.safetensors"
                found.append([fingerprint(path.read_bytes()) if path.exists() else "absent"])
        if isinstance(sampler.grid, SpectralGrid) or self.opened.experiment.network.conditioning.scalars:
            open_spectrum_model(self.opened, self.model.run)
            found.append([fingerprint(self.model.run.spectra.read_bytes())])
        return found

    def denoiser(self, run: Path | None, checkpoint: int | None, average: str | None) -> Denoiser:
        """The model of another run, checkpoint or average. It must share scaling and shape: ConfigError."""
        self._weaker(Autoguidance(run=run, checkpoint=checkpoint, average=average))
        return open_weights(self.opened, *self._place(run), checkpoint, average).denoiser

    def _place(self, run: Path | None) -> tuple[Experiment, Run]:
        return (self.opened.experiment, self.model.run) if run is None else (stored_experiment(run), Run(run))

    def _weaker(self, named: Autoguidance) -> tuple[str, int]:
        """(weights, images seen) of what autoguidance names, without loading it; ConfigError where it cannot guide."""
        e, (other, run) = self.opened.experiment, self._place(named.run)
        if other.process.scaling != e.process.scaling:
            raise ConfigError(
                f"autoguidance: {named.run} has states in {other.process.scaling} scaling and {e.name} in "
                f"{e.process.scaling}; name a run of the same scaling."
            )
        theirs, ours = other.network.conditioning.scalars, e.network.conditioning.scalars
        if (theirs, theirs and other.levels) != (ours, ours and e.levels):
            raise ConfigError(
                f"autoguidance: {named.run} is told other ends of schedules than {e.name} (network.scalars, levels); "
                "name a run that is told the same."
            )
        if other.model is not None:
            return weights_of(other.model), 0
        weights = weights_name(other, named.average)
        images = int(checkpoint_path(run, named.checkpoint, weights).name)
        itself = run.path.resolve() == self.model.run.path.resolve()
        if itself and (weights, images) == (self.model.weights, self.model.images):
            raise ConfigError(
                f"autoguidance: {weights} at {images} images is the sampled model itself; name an earlier checkpoint, "
                "another average or another run."
            )
        return weights, images

    def estimator(self) -> LevelPosterior:
        """The estimator that snrkit fit-estimator made."""
        return open_estimator(self.opened, self.model.run)

    def spectral(self, asked: bool) -> Spectral | None:
        """The run's model of spectra, with what the network is told of them."""
        e = self.opened.experiment
        told = bool(e.network.conditioning.scalars)
        if not asked and not told:
            return None
        return Spectral(open_spectrum_model(self.opened, self.model.run), e.spectral, told)

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """Statistics on up to FORWARD_IMAGES training images, with their own labels and the mean spectrum's ends."""
        opened = self.opened
        rows = stream(SUBSET, 2).permutation(np.asarray(opened.split.train))[:FORWARD_IMAGES]
        labels = None if opened.dataset.labels is None else opened.dataset.labels[torch.from_numpy(rows)]
        spectral = self.spectral(False)
        ends = None if spectral is None else spectral.told(None, rows.tolist(), None)
        cond = Cond(labels, ends, opened.experiment.network.conditioning.unaugmented(len(rows)))
        arm = forward_arm(
            self.model.denoiser, levels, opened.shown(rows.tolist()), torch.from_numpy(rows), cond,
            key=(FORWARD, opened.experiment.seed, 2), batch=opened.experiment.sample.batch, device=opened.world.device,
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
    known = Spectral(open_spectrum_model(opened, model.run), e.spectral, bool(e.network.conditioning.scalars))
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
