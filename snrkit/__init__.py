"""snrkit: measure, train against and correct SNR-t bias in diffusion models.

Three equations carry the package (docs/architecture.md):

    state     x  = alpha * x0 + sigma * eps      logsnr = ln(alpha^2 / sigma^2), nats, float64
    belief    y  = a * x0 + b * eps              every prediction type is one pair (a, b)
    dynamics  dx = x0 d(alpha) + eps d(sigma)    every ODE solver discretises this line

What a script needs is offered here by name (`snrkit.Karras`, `snrkit.sample`) and imported when it is first asked for,
so that `import snrkit` and `snrkit --help` are fast. `__init__.pyi` says the same to type checkers and editors.
"""

import importlib

__version__ = "0.1.0"

_NAMES = {  # by the module where they live
    "base.distributed": "open_world",
    "base.errors": "SnrkitError",
    "data.dataset": "memory_dataset",
    "data.toy": "gaussian_denoiser",
    "diffusion.denoiser": "EdmBlindPrecondition EdmPrecondition NoPrecondition RawPrecondition wrap",
    "diffusion.level": "Level",
    "diffusion.prediction": "Cond Denoiser Eps FlowVelocity PosteriorMean Prediction Score Target V X0",
    "diffusion.process": "Ddpm Edm Flow Process Vp",
    "experiment.certified": "certified",
    "experiment.experiment": "load_experiment",
    "experiment.opening": "open_experiment",
    "pipelines": "correct record",
    "sampling.corrections": "AdaptiveProjectedGuidance Autoguidance CfgZeroStar ClassifierFreeGuidance ClipX0 Dcw "
    "DynamicThreshold EpsilonScaling FrequencyDecoupledGuidance Gain NoiseAwareness NoiseAwarenessClassifier "
    "NoiseLevelCorrection PerturbedAttention ScoreRescaling TimeShift X0Rescale",
    "sampling.grid": "BetaSigma IddpmSigmas Karras KlOptimal Leading Listed Polyexponential Trailing UniformLogsnr "
    "UniformTime VpSigmas",
    "sampling.sample": "sample start",
    "sampling.sampler": "OpenedSampler Sampler",
    "sampling.solvers": "AnalyticDpm Ancestral Bns Churn Deis Dpm2 Dpmpp2m Dpmpp2mSde Dpmpp2sAncestral Dpmpp3m "
    "Dpmpp3mSde DpmppSde Euler Fitted Heun Ipndm IpndmV SaSolver Unipc",
    "sampling.step": "Correction Solver Step",
    "shift.any_denoiser": "measure",
    "shift.audit": "audit",
    "shift.reading": "ShiftReading",
    "spectral.grid": "SpectralGrid",
    "training.train": "make_state train",
}
_HOMES = {name: f"snrkit.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]  # noqa: PLE0604 - strings all of them


def __getattr__(name: str) -> object:
    """What a script asks for, from the module where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'snrkit' has no attribute '{name}'")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
