"""The tables of docs/audit.md, measured: `python -m tests.audit_page` writes the page anew."""

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import diffusers

from snrkit.base.errors import SnrkitError
from snrkit.reports.blocks import Table, markdown
from snrkit.shift.audit import TOLERANCE
from snrkit.shift.schedulers import walk_scheduler, walk_training
from snrkit.shift.telling import Walked

PAGE = Path(__file__).parents[1] / "docs" / "audit.md"
VERSION = diffusers.__version__
STEPS = (4, 10, 25, 50)
SPACINGS = ("linspace", "leading", "trailing")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
ZERO: dict[str, object] = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
FLOW: dict[str, object] = {"use_flow_sigmas": True}
ONE_STAGE: dict[str, object] = {"stages": 1, "stage_range": [0, 1]}
NEEDED: dict[str, dict[str, object]] = {  # to be made at all
    "AmusedScheduler": {"mask_token_id": 0},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
}
TEXT = """# What schedulers tell

`snrkit audit` runs a scheduler without an image and sets the level that a network is told at every call beside the
level that the state has. Here it runs on every scheduler that diffusers {version} exports, with its defaults
but for the named settings, at {steps} steps; Helios' has one stage, and the few that cannot be made
without an argument are given one. The tables are made by `python -m tests.audit_page`; each kind of finding is
confirmed by a test (`tests/shift/test_schedulers.py`) that computes it by hand from what the named method does. Where
torchsde is installed, the two schedulers that need it are among them{sde}.

Every difference is the logsnr of the state less that of the time that is told, in nats: below 0 the state is noisier
than the network is told. The network knows the image and answers for the level at which the scheduler holds its state,
so these are differences of the scheduler's own making, for any network. What they cost in images is not said here.

## Another level than is told

The farthest difference, and in how many calls it is beyond {tolerance} nats; - where none is. {inverse}

{levels}

1. *The step is not that of the times.* Under `linspace`, `set_timesteps` lays n times from 999 to 0, 999/(n-1) apart.
   `step` of DDIM and of CogVideoX's schedulers, `step_prk` and `step_plms` of PNDM go from `timestep` to `timestep -
   num_train_timesteps // num_inference_steps` all the same, which is less, so that every state after the first is
   noisier than told, most of all the last, which is told t = 0. A network that believes what it is told leaves the
   excess in, so that it adds up. (The half steps of PNDM's Runge-Kutta calls miss the next time on either side.) DDPM
   asks `previous_timestep` and has none of this.
2. *Times are rounded, sigmas are not.* With `use_karras_sigmas` or `use_lu_lambdas`, `set_timesteps` finds the
   fractional time of each sigma by `_sigma_to_t`, and rounds it. At the clean end one entry of the table is up to 0.8
   nats, so that half an entry counts; with many steps neighbours are told the same time. Euler, Heun and LMS keep the
   fraction, and tell the truth. In KDPM2 only the times of whole steps are rounded.
3. *Times are cut to whole numbers.* With `use_exponential_sigmas` or `use_beta_sigmas` the fraction is not rounded but
   lost, as the times are cast to int64: the network is told up to one entry too clean a level, always on that side.
4. *Times of a flow are cut to whole numbers.* The same cast, of sigma * 1000, with `use_flow_sigmas`. With a
   `flow_shift` of 3 the first sigma is 0.9997 and 999 is told, so that 1 - t is three times what it should be, -2 ln 3
   nats; in UniPC it is 0.999999 at any shift, and 1 - t a thousand times too large. That is most of the difference
   shown and means little; the small sigmas of many steps are what counts.
5. *Two layouts at once.* With `interpolation_type: log_linear`, `EulerDiscreteScheduler.set_timesteps` lays the sigmas
   out evenly in ln sigma, and leaves the times where `timestep_spacing` has them. Only with `timestep_type:
   continuous`, as Stable Video Diffusion has it, are the times those of the sigmas.
6. *The first answer is thrown away.* `IPNDMScheduler.step` makes its noise estimate as sample * sigma + output * alpha,
   and at its first time alpha is 0: the network's answer has no weight, the image is 0 by `_get_prev_sample`, and the
   next state is the same noise at the next size, without image. Later states are off as far as the Adams-Bashforth
   weights extrapolate from there.
7. *By design.* `CMStochasticIterativeScheduler.step` adds noise of variance sigma^2 - sigma_min^2, as the consistency
   model's own sampler does, and tells sigma: -ln(1 - sigma_min^2/sigma^2) nats, which shows where a time lies near
   sigma_min.
8. *Another variance.* `fixed_large` in DDPM's `_get_variance` adds beta where the posterior of a known image has less.
   It is right for images of unit variance of which nothing is known, and too noisy as soon as the network knows
   something, most of all at the last call: under `linspace`, the default, it is told t = 0, whose noise has a variance
   of 1e-4, and its state has the beta of the whole step before it.
9. *Inverted sigmas in a step that knows none.* `invert_sigmas` of `FlowMatchLCMScheduler` turns the sigmas into 1 -
   sigma, from 0 to 1, and `step` goes on reading them as shares of noise: its last state is noise alone.
   `FlowMatchEulerDiscreteScheduler.step` takes differences only, and is right.

## Noise that the first level does not have

Pipelines begin with noise alone, of size `init_noise_sigma`, and the network is told the first time. What the noise of
that level falls short of it, as a difference of logsnr, where it is beyond {tolerance} nats:

{begins}

This is the image's share, ln(1 + SNR) nats, that the first level still has and noise alone has not: `leading` begins at
time 750 of 1000 in four steps, and sqrt(sigma^2 + 1) of Heun and KDPM2 stands for the image's variance, too. It is not
a fault of bookkeeping, but what zero terminal SNR is to mend (Lin et al. 2024).

## Inputs of another size

Beyond {tolerance} nats only where the level is off as well (1, 6, 8, 9 above): a state that mixes two levels has the
size of neither. `scale_model_input` is that of the state's sigma in every scheduler.

## What they tell in training

A scheduler's own `add_noise` (or `scale_noise`) at each of its times as it is made, before `set_timesteps`, as a
training loop uses it: the level of the pair against the time that the loop would tell.

{training}

The sigmas of the multistep schedulers rise with the time when they are made and fall after `set_timesteps`, and
`add_noise` looks both up by the place of the time in `timesteps`, which falls: before `set_timesteps` the least noise
goes with the last time. The times of KDPM2 and of DPMSolverSDE have interpolated ones among them, and `add_noise` takes
the sigma of the step for these. `FlowMatchHeunDiscreteScheduler.scale_noise` fixes its step at the first call and keeps
it. DDPM, DDIM and the flow's Euler, which training scripts use, tell what is.

## What tells the truth

To {tolerance} nats at every number of steps, {count} settings: {honest}.

## What could not be run so

{left}

Tables of levels that are refused are those of `rescale_betas_zero_snr` where the last entry of `alphas_cumprod` is set
to 2^-24: with the default betas the one before it is 4.2e-9, so that the table rises again, and its noisiest level is
not its last.
"""


def classes() -> list[type]:
    """Every scheduler that the installed diffusers exports, those that lack a package included."""
    found = (getattr(diffusers, name) for name in sorted(dir(diffusers)) if name.endswith("Scheduler"))
    return [kind for kind in found if isinstance(kind, type)]


def variants(kind: type) -> Iterator[tuple[str, dict[str, object]]]:
    """(name, settings) of each way in which a scheduler lays its levels out."""
    known = inspect.signature(kind.__init__).parameters
    stage = ONE_STAGE if "stages" in known else {}
    if "timestep_spacing" in known:
        yield from ((spacing, {"timestep_spacing": spacing}) for spacing in SPACINGS)
    else:
        yield "default", stage
    yield from ((flag.split("_")[1], {flag: True}) for flag in SIGMAS if flag in known)
    if "use_flow_sigmas" in known and "flow_shift" in known:
        yield "flow", FLOW
        yield "flow with flow_shift 3", {**FLOW, "flow_shift": 3.0}
    if "shift" in known:
        yield "shift 3", {"shift": 3.0, **stage}
    if "invert_sigmas" in known:
        yield "inverted", {"invert_sigmas": True}
    if kind.__name__.startswith("DDPM") and "variance_type" in known:
        yield "fixed_large", {"variance_type": "fixed_large"}
    if "rescale_betas_zero_snr" in known:
        yield "zero SNR with trailing and v_prediction", ZERO
    if "interpolation_type" in known:
        yield "log_linear", {"interpolation_type": "log_linear"}
    if "timestep_type" in known:
        yield "continuous with v_prediction", {"timestep_type": "continuous", "prediction_type": "v_prediction"}


@cache
def walked(kind: type, variant: str, steps: int) -> Walked | str:
    """What the audit finds, or why it finds nothing."""
    settings = {**dict(variants(kind))[variant], **NEEDED.get(kind.__name__, {})}
    try:
        return walk_scheduler(kind(**settings), steps)
    except SnrkitError as error:
        return str(error)
    except ImportError:
        return f"{kind.__name__} needs {' and '.join(kind._backends[1:])}."


def reason(name: str, variant: str) -> str:
    """The number of the explanation of a finding."""
    by_variant = {
        "karras": "2", "lu": "2", "exponential": "3", "beta": "3", "flow": "4", "flow with flow_shift 3": "4",
        "log_linear": "5", "fixed_large": "8", "inverted": "9", "linspace": "1",
    }  # fmt: skip
    return {"IPNDMScheduler": "6", "CMStochasticIterativeScheduler": "7"}.get(name) or by_variant[variant]


def cell(found: Walked | str) -> str:
    """The farthest difference, and how many are beyond the tolerance."""
    if isinstance(found, str):
        return "refused"
    if found.unread:
        return "not read"
    beyond = sum(abs(call.difference) > TOLERANCE for call in found.calls)
    return f"{found.worst:+.3f} ({beyond} of {len(found.calls)})" if beyond else "-"


def every(steps: Sequence[int] = STEPS) -> Iterator[tuple[str, str, list[Walked | str]]]:
    """(scheduler, variant, what is found at each number of steps)."""
    for kind in classes():
        for variant, _ in variants(kind):
            yield kind.__name__, variant, [walked(kind, variant, n) for n in steps]


def runs(found: Sequence[Walked | str]) -> bool:
    """Whether a scheduler ran at the first number of steps, of which none has too few."""
    return not isinstance(found[0], str)


def grouped(rows: Iterator[tuple[str, str, list[str]]]) -> list[Sequence[str]]:
    """Rows of equal cells as one, of all their schedulers."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, variant, cells in rows:
        groups.setdefault((variant, *cells), []).append(name.removesuffix("Scheduler"))
    return [(", ".join(names), *key) for key, names in groups.items()]


def levels(steps: Sequence[int] = STEPS) -> list[Sequence[str]]:
    """(schedulers, setting, a cell for each number of steps, explanation) of what is beyond the tolerance."""
    rows = ((name, variant, [cell(one) for one in found]) for name, variant, found in every(steps) if runs(found))
    return grouped(
        (name, variant, [*cells, reason(name, variant)])
        for name, variant, cells in rows
        if any(one not in ("-", "refused") for one in cells)
    )


def begins() -> list[Sequence[str]]:
    """(schedulers, setting, a cell for each number of steps)."""
    rows = []
    for name, variant, found in every():
        starts = [None if isinstance(one, str) else one.begun for one in found]
        if runs(found) and any(abs(start or 0) > TOLERANCE for start in starts):
            rows.append((name, variant, [f"{start:+.4f}" for start in starts if start is not None]))
    return grouped(iter(rows))


def training() -> list[Sequence[str]]:
    """(schedulers, farthest difference, how many of its times) of add_noise."""
    rows = []
    for kind in classes():
        settings = {**NEEDED.get(kind.__name__, {}), **(ONE_STAGE if "stages" in variables(kind) else {})}
        try:
            found = walk_training(kind(**settings))
        except (SnrkitError, ImportError):
            continue
        if found is not None:
            beyond = sum(not abs(call.difference) <= TOLERANCE for call in found.calls)  # NaN is beyond
            rows.append((kind.__name__, f"{found.worst:+.3f}" if beyond else "-", [f"{beyond} of {len(found.calls)}"]))
    return grouped(iter(rows))


def variables(kind: type) -> Sequence[str]:
    """The arguments of a class."""
    return list(inspect.signature(kind.__init__).parameters)


def honest() -> list[str]:
    """scheduler (settings) of all that tell the truth at every number of steps that they take."""
    found: dict[str, list[str]] = {}
    for name, variant, walks in every():
        if runs(walks) and all(cell(one) in ("-", "refused") for one in walks):
            found.setdefault(name.removesuffix("Scheduler"), []).append(variant)
    return [f"{name} ({', '.join(settings)})" for name, settings in found.items()]


def refused() -> str:
    """A line for each reason."""
    found: dict[str, list[str]] = {}
    for name, variant, walks in every():
        if isinstance(walks[0], str):
            found.setdefault(walks[0], []).append(f"{name} ({variant})")
    return "\n".join(f"* {why}" if len(these) == 1 and "default" in these[0] else f"* {why} ({_settings(these)})"
                     for why, these in found.items())  # fmt: skip


def _settings(these: Sequence[str]) -> str:
    return ", ".join(one.split(" (")[1].removesuffix(")") for one in these)


def page() -> str:
    """The whole page."""
    header = ("scheduler", "setting", *(f"{n} steps" for n in STEPS))
    told, truthful = Table((*header, "why"), levels()), honest()
    return TEXT.format(
        version=VERSION, steps=", ".join(map(str, STEPS[:-1])) + f" and {STEPS[-1]}", tolerance=f"{TOLERANCE:g}",
        levels=markdown(told, PAGE.parent), begins=markdown(Table(header, begins()), PAGE.parent),
        training=markdown(Table(("scheduler", "farthest, nats", "beyond"), training()), PAGE.parent),
        count=sum(one.count(",") + 1 for one in truthful), honest="; ".join(truthful), left=refused(),
        sde=", as here" if diffusers.utils.is_torchsde_available() else ", unlike here",
        inverse="`DPMSolverMultistepInverse` with `flow` goes from noise to the image, whatever its name says: that "
        "branch of its `set_timesteps` is the forward one.",
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page())
