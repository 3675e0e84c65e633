"""What a scheduler of diffusers tells its network against what its own states have. Needs the extra `diffusers`.

The scheduler itself is run: set_timesteps, scale_model_input, step. It is given a state of coefficients (telling.py)
and the answers of a network that knows the image, and torch.randn answers with noises of that basis, so that alpha and
sigma of every state are read off, whatever the scheduler says of itself. What a time step means is what a network was
trained to: an entry of the scheduler's table, t of a flow, EDM's ln(sigma)/4.

The answer is made for the level at which the scheduler holds the state: that of its own sigmas, or the one that it
tells, whichever is nearer to the state's. So a level that is told wrongly stands alone in what is found, and does not
move the states after it.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from snrkit.base.errors import ConfigError, SnrkitError, ValueFaultError, reason_of
from snrkit.checkpoints.diffusers import DISTILLED, TARGETS, Clock, clock_of, table_of
from snrkit.diffusion.denoiser import Coefficients, EdmPrecondition
from snrkit.diffusion.level import Level, Scaling, level_of
from snrkit.diffusion.prediction import X0, FlowVelocity, Target, V
from snrkit.diffusion.process import Ddpm, Edm, Flow
from snrkit.networks.of_diffusers import diffusers_package
from snrkit.shift.telling import Canvas, Telling, Walked, begun, canvas_of, difference, size

LOGSNR = Callable[[Tensor], Tensor]
PASSED = {"self", "model_output", "timestep", "sample"}  # of a step's arguments
FAILS = (
    TypeError, ValueError, RuntimeError, NotImplementedError, ArithmeticError, LookupError, AttributeError,
    AssertionError, ImportError,
)  # fmt: skip
NOT = {  # what cannot be run so, and why
    "AmusedScheduler": "works on masked tokens, which have no level of noise",
    "BlockRefinementScheduler": "works on masked tokens, which have no level of noise",
    "DiscreteDDIMScheduler": "works on tokens, which have no level of noise",
    "EntropyBoundScheduler": "works on masked tokens, which have no level of noise",
    "VQDiffusionScheduler": "works on tokens, which have no level of noise",
    "HeliosDMDScheduler": "is handed its sigmas and its noise by its pipeline",
    "PiflowScheduler": "takes a grid of answers for one state",
    "SCMScheduler": "keeps states in units of sigma_data, which only its pipeline divides out",
}
SIGMAS = (
    ("sigmas", 0),
    ("sigmas_interpol", 0),
    ("sigmas_interpol", -1),
)  # and at which distance from the step's number


@dataclass(frozen=True, slots=True)
class Reading:
    """What a scheduler's network was trained as."""

    logsnr: LOGSNR  # of its times
    states: Scaling  # of the scheduler's own states
    shown: Scaling | None  # of the network's input; None: EDM's
    target: Target
    sigma_data: float | None = None  # with EDM's preconditioning
    sigma_min: float = 0.0  # of a consistency model, which is bound to the identity there
    sign: int = 1

    def output(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What a network says that knows x0 and eps of the state x at `level`."""
        a, b = self.target.direction(level)
        c = self._coefficients(level)
        return self.sign * (a * x0 + b * eps - c.c_skip * x) / c.c_out

    def _coefficients(self, level: Level) -> Coefficients:
        one = torch.ones_like(level.sigma)
        if self.sigma_data is None:
            return Coefficients(one, torch.zeros_like(one), one)
        edm = EdmPrecondition().coefficients(level, self.target, "ve", self.sigma_data)
        if not self.sigma_min:
            return edm
        above, data = level.sigma - self.sigma_min, self.sigma_data
        return Coefficients(edm.c_in, data**2 / (above**2 + data**2), above * data * edm.c_in)

    def size(self, shown: Level) -> float:
        """ln of the size of an input over that of training, nats."""
        if self.shown is not None:
            return size(shown, self.shown)
        assert self.sigma_data is not None
        return math.log(math.hypot(float(shown.alpha) * self.sigma_data, float(shown.sigma)))


def reading_of(scheduler: Any) -> Reading:
    """What a scheduler's network was trained as. SnrkitError where that is not known."""
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if config is None or name in NOT:
        raise SnrkitError(f"how a network under {name} was trained is not known here.")
    if config.get("invert_sigmas"):
        return _of_inverted(scheduler)
    if name in OWN:
        return OWN[name](scheduler)
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        return Reading(Edm().logsnr, "ve", "vp", V())
    if config.get("use_flow_sigmas"):
        target = TARGETS.get(config.get("prediction_type"), FlowVelocity())
        return _of_clock(Clock(Flow(), target, factor=float(config.num_train_timesteps)))
    try:
        return _of_clock(clock_of(scheduler, f"the configuration of {name}", 4096))
    except ConfigError as error:
        raise SnrkitError(str(error).removeprefix("model.scheduler: ")) from None


def _of_clock(clock: Clock) -> Reading:
    """That of a model which can also be read."""
    process, factor = clock.process, clock.factor

    def logsnr(time: Tensor) -> Tensor:
        return process.logsnr(time.double() / factor)

    shown: Scaling | None = "vp" if isinstance(process, Ddpm) else process.scaling
    if clock.sigma_data is not None:
        shown = None
    return Reading(logsnr, process.scaling, shown, clock.target, clock.sigma_data, sign=clock.sign)


def _of_distilled(scheduler: Any) -> Reading:
    return Reading(table_of(scheduler).logsnr, "vp", "vp", TARGETS[scheduler.config.prediction_type])


def _of_flow(scheduler: Any) -> Reading:
    return _of_clock(Clock(Flow(), FlowVelocity(), factor=float(scheduler.config.num_train_timesteps)))


def _of_inverted(scheduler: Any) -> Reading:
    """A flow whose t is 1 at the image, towards which its network's velocity points, as Mochi's."""
    steps = float(scheduler.config.num_train_timesteps)
    return Reading(lambda time: Flow().logsnr(1 - time.double() / steps), "flow", "flow", FlowVelocity(), sign=-1)


def _of_minimax(scheduler: Any) -> Reading:
    """Its t is 1 at the image, towards which its network's velocity points."""
    return Reading(lambda time: Flow().logsnr(1 - time.double()), "flow", "flow", FlowVelocity(), sign=-1)


def _of_angle(time: Tensor) -> Tensor:
    """The logsnr of alpha = cos(pi t/2), sigma = sin(pi t/2)."""
    return -2 * (time.double() * math.pi / 2).tan().log()


def _of_ipndm(scheduler: Any) -> Reading:
    return Reading(_of_angle, "vp", "vp", V())


def _of_cosine(scheduler: Any) -> Reading:
    """EDM's states and preconditioning, told t = 2/pi atan(sigma)."""
    config = scheduler.config
    sign = -1 if config.prediction_type == "v_prediction" else 1
    return Reading(_of_angle, "ve", None, X0(), float(config.sigma_data), sign=sign)


def _of_consistency(scheduler: Any) -> Reading:
    """EDM's, told 1000 times its clock."""
    config = scheduler.config
    data, least = float(config.sigma_data), float(config.sigma_min)
    return Reading(lambda time: Edm().logsnr(time / 1000), "ve", None, X0(), data, least)


def _of_wuerstchen(scheduler: Any) -> Reading:
    """cos^2 of t within its own bounds."""

    def logsnr(time: Tensor) -> Tensor:
        share: Tensor = scheduler._alpha_cumprod(time.double(), time.device).double()
        return share.log() - torch.log1p(-share)

    return Reading(logsnr, "vp", "vp", TARGETS["epsilon"])


OWN: dict[str, Callable[[Any], Reading]] = {  # of schedulers whose networks have another clock than those that are read
    **dict.fromkeys(DISTILLED, _of_distilled),
    "CMStochasticIterativeScheduler": _of_consistency,
    "CosineDPMSolverMultistepScheduler": _of_cosine,
    "DDPMWuerstchenScheduler": _of_wuerstchen,
    "FlowMapEulerDiscreteScheduler": _of_flow,
    "IPNDMScheduler": _of_ipndm,
    "LTXEulerAncestralRFScheduler": _of_flow,
    "MiniMaxH3Scheduler": _of_minimax,
}


class Drawing(TorchFunctionMode):
    """Answers torch.randn of the shape of a canvas's states with noises of its basis."""

    def __init__(self, canvas: Canvas) -> None:
        super().__init__()
        self.canvas = canvas

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, or answer."""
        given = kwargs or {}
        shape = args[0] if args and isinstance(args[0], tuple | list) else ()
        if func is torch.randn and tuple(shape) == (1, 1, 1, self.canvas.width):
            noise = self.canvas.noise()
            return noise.to(given.get("dtype") or noise.dtype)
        return func(*args, **given)


def walk_scheduler(scheduler: Any, steps: int) -> Walked:
    """Run a scheduler of diffusers through `steps` steps, which sets its timesteps.

    SnrkitError for what cannot be run so: what is told is not a level of noise, a step asks for more than the network's
    answer, time and state, or diffusers refuses the number of steps.
    """
    name = type(scheduler).__name__
    with _said(f"{name} cannot be audited at {steps} steps"):
        step, reading = _stepper(scheduler), reading_of(scheduler)
        times = _set_timesteps(scheduler, steps)
        canvas = canvas_of(len(times))
        if hasattr(scheduler, "noise_sampler"):  # of a Brownian motion; its steps do not overlap
            scheduler.noise_sampler = lambda *_: canvas.noise()
        with Drawing(canvas), torch.no_grad():
            return _walk(scheduler, steps, reading, times, canvas, step)


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Whatever diffusers says, in one sentence."""
    try:
        yield
    except ValueFaultError as error:  # of a table
        raise SnrkitError(f"{what}: {error.said}.") from None
    except FAILS as error:
        raise SnrkitError(f"{what}: {reason_of(error).rstrip('.') or type(error).__name__}.") from None


Stepper = Callable[[Tensor, int, Tensor], Tensor]  # (answer, number of the call, state) -> next state


def _walk(scheduler: Any, steps: int, reading: Reading, times: Tensor, canvas: Canvas, step: Stepper) -> Walked:
    heard = reading.logsnr(times).double()
    if len(times) > 1 and bool(heard[1] < heard[0]):
        raise SnrkitError(
            f"{type(scheduler).__name__} goes from an image to noise, and nothing says which noise a network finds in "
            "an image without any."
        )
    told = [level_of(logsnr, reading.states) for logsnr in heard]
    x0, noise, calls = canvas.image, canvas.noise(), list[Telling]()
    first = min(_levels(scheduler, told[0], reading.states), key=lambda level: float(level.logsnr))
    x = first.alpha * x0 + first.sigma * noise  # with the image that a pipeline's noise lacks
    for index, time in enumerate(times):
        state = canvas.read(x)
        scale = getattr(scheduler, "scale_model_input", None)
        shown = canvas.read(x if scale is None else scale(x, time))
        calls.append(_telling(float(time), heard[index], state, reading.size(shown)))
        holds = _nearest(_levels(scheduler, told[index], reading.states), state)
        eps = (x - holds.alpha * x0) / holds.sigma
        x = step(reading.output(x, x0, eps, holds), index, x)
    start = begun(float(getattr(scheduler, "init_noise_sigma", 1.0)), told[0])
    return Walked(type(scheduler).__name__, steps, start, tuple(calls), float(canvas.read(x).logsnr))


def _telling(time: float, heard: Tensor, state: Level, scale: float) -> Telling:
    told, own = float(heard), float(state.logsnr)
    return Telling(time, told, own, difference(own, told), scale)


def _levels(scheduler: Any, told: Level, scaling: Scaling) -> list[Level]:
    """The levels at which a scheduler may hold its state: what it tells, and its own sigmas of the step to come."""
    index = getattr(scheduler, "step_index", None) or 0
    known = [getattr(scheduler, name)[max(index + off, 0)] for name, off in SIGMAS if hasattr(scheduler, name)]
    return [told, *(_of_sigma(scheduler, torch.as_tensor(sigma), scaling) for sigma in known)]


def _of_sigma(scheduler: Any, sigma: Tensor, scaling: Scaling) -> Level:
    """In the scheduler's own precision, so that it finds the image to that of ours."""
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = (torch.as_tensor(part) for part in scheduler._sigma_to_alpha_sigma_t(sigma))
    else:
        alpha = 1 - sigma if scaling == "flow" else torch.ones_like(sigma)
    alpha, sigma = alpha.double(), sigma.double()
    return Level(2 * (alpha / sigma).log(), alpha, sigma)


def _nearest(levels: list[Level], state: Level) -> Level:
    return min(levels, key=lambda level: abs(difference(float(state.logsnr), float(level.logsnr))))


def _set_timesteps(scheduler: Any, steps: int) -> Tensor:
    """Set them, and return those at which the network is asked."""
    known = inspect.signature(scheduler.set_timesteps).parameters
    if "mu" in known and scheduler.config.get("use_dynamic_shifting"):
        scheduler.set_timesteps(steps, mu=float(scheduler.config.get("max_shift", 1.15)))
    else:
        scheduler.set_timesteps(steps)
    times: Tensor = scheduler.timesteps
    return times[:-1] if type(scheduler).__name__ == "DDPMWuerstchenScheduler" else times


def _stepper(scheduler: Any) -> Stepper:
    """How the scheduler's step is called. SnrkitError where it asks for what only its pipeline has."""
    if (name := type(scheduler).__name__) in NOT:
        raise SnrkitError(f"{name} {NOT[name]}.")
    if not hasattr(scheduler, "step"):
        raise SnrkitError(f"{name} has no step that takes what a network says.")
    known = inspect.signature(scheduler.step).parameters
    asked = {name for name, one in known.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    if name == "CogVideoXDPMScheduler":
        return _two_step(scheduler)
    if left := sorted(asked - PASSED):
        raise SnrkitError(f"{name}.step asks for {', '.join(left)}, which only its pipeline has.")
    batched = name == "DDPMWuerstchenScheduler"

    def step(output: Tensor, index: int, x: Tensor) -> Tensor:
        times = scheduler.timesteps
        time = times[index : index + 1] if batched else times[index]
        if "prev_timestep" in known:  # as UnCLIP's pipelines pass it
            return _previous(scheduler.step(output, time, x, times[index + 1] if index + 1 < len(times) else None))
        return _previous(scheduler.step(output, time, x))

    return step


def _two_step(scheduler: Any) -> Stepper:
    """CogVideoX's, which is handed what the step before made of the image."""
    before: list[Tensor | None] = [None]

    def step(output: Tensor, index: int, x: Tensor) -> Tensor:
        times = scheduler.timesteps
        back = times[index - 1] if index else None
        made, before[0] = scheduler.step(output, before[0], times[index], back, x)
        return _previous((made,))

    return step


def _previous(made: Any) -> Tensor:
    x: Tensor = made[0] if isinstance(made, tuple) else made.prev_sample
    return x.double()


def training_scheduler(scheduler: Any) -> Any | None:
    """What training scripts make of a configuration: DDPM of a table, the flow's Euler of a flow; None of others."""
    package, config = diffusers_package(), scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch"):
        return None if config.get("invert_sigmas") else package.FlowMatchEulerDiscreteScheduler.from_config(config)
    if not hasattr(scheduler, "alphas_cumprod") or config.get("use_flow_sigmas"):
        return None
    return package.DDPMScheduler.from_config(config)


def walk_training(scheduler: Any) -> Walked | None:
    """The pairs that a scheduler's add_noise makes at each of its training times, told those; None without such.

    SnrkitError where it is not known what its times mean.
    """
    with _said(f"training pairs of {type(scheduler).__name__} cannot be audited"):
        reading = reading_of(scheduler)
    times, canvas = getattr(scheduler, "timesteps", None), Canvas(2)
    if not isinstance(times, Tensor) or not len(times):
        return None
    x0, noise = canvas.image, canvas.noise()
    try:
        made = [_plain_noised(scheduler, x0, noise, times[i : i + 1]) for i in range(len(times))]
    except FAILS:
        return None
    heard = reading.logsnr(times).double()
    calls = []
    for time, logsnr, x in zip(times, heard, made, strict=True):
        state = canvas.read(x)
        calls.append(_telling(float(time), logsnr, state, size(state, reading.states)))
    return Walked(f"training pairs of {type(scheduler).__name__}", len(times), None, tuple(calls), calls[-1].state)


def _plain_noised(scheduler: Any, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    by_flow = hasattr(scheduler, "scale_noise")
    made: Tensor = scheduler.scale_noise(x0, time, noise) if by_flow else scheduler.add_noise(x0, noise, time)
    return made.double()
