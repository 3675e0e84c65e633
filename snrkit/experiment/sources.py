"""What a sampler may name, opened from run directories: weaker models, statistics of forward samples, estimators."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from snrkit.base.errors import ConfigError, RunError, SnrkitError, UnreadableError, reason_of
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import FLAT, read_record, to_json
from snrkit.base.regular import read_regular
from snrkit.base.streams import FORWARD_STATISTICS, STATISTICS
from snrkit.base.tensors import read_tensors
from snrkit.data.dataset import fingerprint
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.experiment.certificate import certified_fact, certified_fit
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.fits import FitOf, fit_fact, open_fit
from snrkit.experiment.models import FromElsewhere, Weights, checkpoint_path
from snrkit.experiment.opening import Model, Setting, open_weights
from snrkit.experiment.run import Run
from snrkit.experiment.stored import check_own, stored_experiment
from snrkit.sampling.grid import Grid, ImageGrid, Placement, Told
from snrkit.sampling.sampler import Sampler, named
from snrkit.sampling.step import (
    Fit,
    ForwardStatistics,
    LevelPosterior,
    Named,
    NamedEstimator,
    NamedFit,
    NamedWeights,
    Sources,
)
from snrkit.shift.arms import FORWARD_IMAGES, forward_arm
from snrkit.shift.estimator import Estimator, EstimatorConfig, make_estimator
from snrkit.spectral.kept import FILE, OF, RunSpectra

LARGEST = 2**30  # bytes of an estimator of levels


@dataclass(frozen=True, slots=True)
class RunNames:
    """What a run's samplers name beside their own weights, without opening it."""

    experiment: Experiment
    setting: Setting
    run: Run
    weights: Weights  # of the samplers themselves

    def facts(self, sampler: Sampler) -> list[list[Any]]:
        """Which weights, estimators and spectra the sampler depends on beside its own model, as they are now."""
        parts = self.setting.parts
        found = [self._fact(kind, what) for kind, what in named(sampler, parts.process, parts.levels)]
        return [*found, *([mark] for mark in self.spectra.facts(sampler.grid))]

    @property
    def spectra(self) -> RunSpectra:
        """What the run knows of its images' power spectra."""
        return run_spectra(self.setting, self.run)

    def _fact(self, kind: str, what: Named) -> list[Any]:
        if isinstance(what, NamedFit):
            return [fit_fact(self.run, what) if what.certificate is None else certified_fact(what.certificate)]
        if isinstance(what, NamedEstimator):
            path = self.run.estimator / "network.safetensors"
            return [fingerprint(read_regular(path, LARGEST)) if path.exists() else "absent"]
        try:
            found = self.known(what)
            return [str(what.run), found.name, found.images, found.checksum]
        except ConfigError as error:
            raise ConfigError(f"{kind}: {error}") from None

    def fit_of(self, asked: NamedFit) -> FitOf:
        """What a fit for a sampler has to be fitted to."""
        e, weights = self.experiment, self.weights
        training = [e.training_part(), self.setting.data.dataset.fingerprint]
        beside = self._beside(Sampler.model_validate_json(asked.sampler))
        return FitOf(
            asked.sampler,
            NUMERICS,
            fingerprint(json.dumps(training, sort_keys=True)),
            weights.name,
            weights.images,
            weights.checksum,
            e.sample.labels,
            fingerprint(json.dumps(beside)) if beside else "",
        )

    def _beside(self, sampler: Sampler) -> list[list[Any]]:
        """The facts of what a sampler names, but for its own coefficients."""
        parts = self.setting.parts
        found = named(sampler, parts.process, parts.levels)
        return [self._fact(kind, what) for kind, what in found if not isinstance(what, NamedFit)]

    def place(self, run: Path | None) -> tuple[Experiment, Run]:
        """The experiment and the run meant; None: the sampler's own."""
        return (self.experiment, self.run) if run is None else (stored_experiment(run), Run(run))

    def known(self, named: NamedWeights) -> Weights:
        """What is named, without loading it; ConfigError where it cannot stand beside."""
        e, (other, run) = self.experiment, self.place(named.run)
        if named.run is not None and isinstance(other.model, FromElsewhere) and other.model.code is not None:
            raise ConfigError(
                f"{named.run} has a model that runs {other.model.code}, which only a file that names the code itself "
                "may do; name another run."
            )
        if other.process.scaling != e.process.scaling:
            raise ConfigError(
                f"{named.run} has states in {other.process.scaling} scaling and {e.name} in "
                f"{e.process.scaling}; name a run of the same scaling."
            )
        theirs, ours = other.network.conditioning.scalars, e.network.conditioning.scalars
        if (theirs, theirs and other.model.parts.levels) != (ours, ours and e.model.parts.levels):
            raise ConfigError(
                f"{named.run} is told other ends of schedules than {e.name} (network.scalars, levels); "
                "name a run that is told the same."
            )
        found = other.model.find(run, named.checkpoint, named.average)
        if named.run is not None and other.model.trains:
            check_own(run, [checkpoint_path(run, found.images, found.name)])
        itself = run.path.resolve() == self.run.path.resolve()
        if itself and (found.name, found.images) == (self.weights.name, self.weights.images):
            raise ConfigError(
                f"{found.name} at {found.images} images is the sampled model itself; name an earlier checkpoint, "
                "another average or another run."
            )
        return found


@dataclass(frozen=True, slots=True)
class RunSources:
    """The sources of a run's samplers."""

    names: RunNames
    model: Model
    told: Told | None = None  # whose spectrum the network is told of, where it is not that of the grid

    def denoiser(self, named: NamedWeights) -> Denoiser:
        """The model of these weights. It must share scaling and shape: ConfigError."""
        self.names.known(named)
        return open_weights(self.names.setting, *self.names.place(named.run), named.checkpoint, named.average).denoiser

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        """The estimator that snrkit fit-estimator made."""
        return open_estimator(self.names.setting, self.names.run)

    def fit(self, named: NamedFit) -> Fit:
        """What snrkit tune --by flow found, or certify."""
        wanted = self.names.fit_of(named)
        if named.certificate is None:
            return open_fit(self.names.run, named, wanted)
        found = certified_fit(named.certificate, wanted)
        if found is None:
            raise RunError(f"{named.certificate} holds no coefficients; certify the sampler anew.")
        return found

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        """By the run's model of spectra."""
        return self.names.spectra.placement(grid, self.told)

    def telling(self, told: Told) -> Sources:
        """With another spectrum than the one that a grid follows."""
        return replace(self, told=told)

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """Statistics on up to FORWARD_IMAGES training images, with their own labels.

        The network is told of the spectrum that it is told of while sampling, by default of the mean one.
        """
        setting = self.names.setting
        dataset, takes = setting.data.dataset, setting.parts.network.conditioning
        rows = STATISTICS.open().permutation(np.asarray(setting.data.split.train))[:FORWARD_IMAGES]
        labels = None if dataset.labels is None else dataset.labels[torch.from_numpy(rows)]
        shown, shared = setting.data.shown(rows.tolist()), self.names.spectra.placement(None, self.told)
        told = None if shared is None else shared.told(rows.tolist(), labels, shared.follows(shown))
        arm = forward_arm(
            self.model.denoiser, levels, shown, torch.from_numpy(rows),
            Cond(labels, told, takes.unaugmented(len(rows))), key=FORWARD_STATISTICS.key(setting.seed),
            batch=self.names.experiment.sample.batch, device=setting.world.device,
        )  # fmt: skip
        return ForwardStatistics(arm.eps_square.mean(1), arm.x0_variance.mean(1))


def run_spectra(setting: Setting, run: Run) -> RunSpectra:
    """What a run knows of its images' power spectra: nothing is read or measured before it is needed."""
    parts = setting.parts
    tells = bool(parts.network.conditioning.scalars)
    return RunSpectra(run.path, setting.data.measured, setting.world, parts.process, parts.levels, tells)


def read_spectra(run: Run) -> Mapping[str, Tensor]:
    """What a run keeps of its images' power spectra. SnrkitError where it is absent or damaged."""
    return read_tensors(run.path / FILE, OF)


def prepare_sampling(setting: Setting, run: Run) -> None:
    """Keep in the run what its samplers will take of the training images."""
    run_spectra(setting, run).keep()


@dataclass(frozen=True, slots=True)
class FittedTo:
    """What an estimator was fitted to."""

    numerics: int
    config: Mapping[str, Any]
    process: Mapping[str, Any]
    dataset_fingerprint: str


@dataclass(frozen=True, slots=True)
class FittedEstimator:
    """What is kept of an estimator beside its weights; all its keys lie side by side in the file."""

    error: float  # as of Calibration
    coverage: float
    to: FittedTo = field(metadata=FLAT)

    @property
    def what(self) -> str:
        """What the file of weights is of."""
        return fingerprint(json.dumps(to_json(self), sort_keys=True))


def fitted_on(config: EstimatorConfig, setting: Setting) -> FittedTo:
    """What an estimator of these images and this process is fitted to."""
    process = setting.parts.process.model_dump(mode="json")
    return FittedTo(NUMERICS, config.model_dump(mode="json"), process, setting.data.dataset.fingerprint)


def open_estimator(setting: Setting, run: Run) -> Estimator:
    """The estimator that snrkit fit-estimator made of this run. RunError when absent, damaged or of another config."""
    path, process = run.estimator, setting.parts.process
    if not (path / "estimator.json").exists():
        raise RunError(f"{run.path} has no estimator of levels; run snrkit fit-estimator with the same file first.")
    record = read_record(FittedEstimator, path / "estimator.json")
    try:
        config, then = EstimatorConfig.model_validate(record.to.config), record.to
    except ValidationError:
        raise RunError(f"the estimator in {path} has no known configuration; run snrkit fit-estimator again.") from None
    now = fitted_on(config, setting)
    fitted = {
        "process": then.process == now.process,
        "data set": then.dataset_fingerprint == now.dataset_fingerprint,
        "version of the numerics": then.numerics == now.numerics,
    }
    if other := [name for name, alike in fitted.items() if not alike]:
        raise RunError(f"the estimator in {path} is of another {' and '.join(other)}; run snrkit fit-estimator again.")
    estimator = make_estimator(config, process.bounds, setting.data.dataset.shape[0], setting.seed)
    try:
        estimator.network.load_state_dict(read_tensors(path / "network.safetensors", record.what))
    except UnreadableError:
        raise
    except (SnrkitError, RuntimeError) as error:
        raise RunError(f"{path} is damaged ({reason_of(error)}); run snrkit fit-estimator again.") from None
    estimator.network.to(setting.world.device).eval().requires_grad_(False)
    return estimator
