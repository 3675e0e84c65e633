"""Corrections in pipelines of diffusers, and measurements of their ordinary calls. Needs the extra `diffusers`.

    with correct(pipeline, [Dcw(low=0.02)]):
        images = pipeline(...).images

    with record(pipeline) as recording:
        pipeline(...)
    shift = recording.shift(x0)

Both watch `pipeline.scheduler.step`: what the network said (after the pipeline's own guidance) comes in, the next state
goes out. Corrections of belief change what comes in, as an increment, and corrections of state what goes out; those at
their neutral value change no bit. What a scheduler limits (clip_sample, thresholding) is limited before corrections of
state see it. Latents that a transformer packs into tokens are unpacked to (B, C, H, W) for both. A correction that
would ask the network again or move the level that it is told cannot act from there, and says so.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.frequency import pixels
from snrkit.base.streams import PIPELINE
from snrkit.checkpoints.diffusers import TARGETS as TABLE_TARGETS
from snrkit.diffusion.level import Level, Scaling, broadcast, level_of
from snrkit.diffusion.prediction import X0, Cond, Denoiser, FlowVelocity, Prediction, Same, Target, Wrapped, solve
from snrkit.diffusion.process import Flow
from snrkit.sampling.sample import wrapped
from snrkit.sampling.step import (
    BeliefCorrection,
    Call,
    Correction,
    LevelCorrection,
    Opens,
    Position,
    StateCorrection,
    Step,
)
from snrkit.shift.bootstrap import FEWEST, OF_NOMINAL, Bootstrap, Curve, check_resampling
from snrkit.shift.spread import variance

TABLED = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
EXPLODING = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EDMEulerScheduler",
)
PRESERVING = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
FLOWING = ("FlowMatchEulerDiscreteScheduler",)
TARGETS: dict[str, Target] = {**TABLE_TARGETS, "flow_prediction": FlowVelocity()}


def scaling_of(scheduler: Any) -> Scaling:
    """How a scheduler keeps its states. SnrkitError for one whose steps are not known."""
    name = type(scheduler).__name__
    if name in FLOWING or (name in PRESERVING and scheduler.config.get("use_flow_sigmas")):
        return "flow"
    if name in EXPLODING:
        return "ve"
    if name == "PNDMScheduler" and not scheduler.config.skip_prk_steps:
        raise SnrkitError(f"{name} makes Runge-Kutta steps first, which are not known here; set skip_prk_steps: true.")
    if name in TABLED or name in PRESERVING:
        return "vp"
    if name == "LCMScheduler":
        raise SnrkitError(
            f"{name} asks a distilled network for the clean image and noises it anew at every step, so that no state "
            "goes on into the next and there is nothing to correct; give the pipeline another scheduler and network."
        )
    known = ", ".join((*TABLED, *EXPLODING, *PRESERVING, *FLOWING))
    raise SnrkitError(f"how {name} steps is not known here; these are: {known}.")


def _of_sigma(sigma: Tensor, scaling: Scaling) -> Level:
    sigma = sigma.double().cpu()
    return level_of(Flow().logsnr(sigma) if scaling == "flow" else -2 * sigma.log(), scaling)


def _of_table(scheduler: Any, index: int) -> Level:
    """The level of a table's entry; below the first, where the scheduler's last step ends."""
    last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
    abar = (scheduler.alphas_cumprod[index] if index >= 0 else last).double().cpu()
    return level_of(abar.log() - torch.log1p(-abar), "vp")


@dataclass(frozen=True, slots=True)
class Stage:
    """A call of a scheduler's step: Heun's, and PNDM's first, are two calls, of which the second makes the state."""

    position: Position  # where the whole step begins and ends
    asked: Level  # at which the network was asked
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Walk:
    """The levels of one call of a pipeline, and what places a time step among them."""

    scheduler: Any
    scaling: Scaling
    grid: tuple[Level, ...]

    def stage(self, timestep: Any) -> Stage:
        """Where the call at `timestep` stands."""
        s, name = self.scheduler, type(self.scheduler).__name__
        if name == "PNDMScheduler":
            return self._of_pndm(int(s.counter))
        if name in TABLED:
            index, t = int((s.timesteps.cpu() == int(timestep)).nonzero()[0]), int(timestep)
            position = Position(index, self.grid, self.grid[index], _of_table(s, _previous(s, t)))
            return Stage(position, position.here)
        index = s.step_index
        if index is None:
            index = s.index_for_timestep(timestep) if s.begin_index is None else s.begin_index
        if name == "HeunDiscreteScheduler":
            return self._of_heun((int(index) + 1) // 2, bool(s.state_in_first_order))
        position = self._at(int(index))
        return Stage(position, position.here)

    def _at(self, index: int) -> Position:
        return Position(index, self.grid, self.grid[index], self.grid[index + 1])

    def _of_heun(self, number: int, first: bool) -> Stage:
        """The first call of a step, or the second, which begins at the next level; none follows into the clean one."""
        position = self._at(number if first else number - 1)
        if first:
            return Stage(position, position.here, ends=position.there.is_clean())
        return Stage(position, position.there, begins=False)

    def _of_pndm(self, counter: int) -> Stage:
        """Two calls for the first step, one for each that follows."""
        position = self._at(max(counter - 1, 0))
        if counter == 1:
            return Stage(position, position.there, begins=False)
        return Stage(position, position.here, ends=counter > 0)


def _previous(scheduler: Any, t: int) -> int:
    """The table's entry where a step from `t` ends, which is not always that of the next time step."""
    if type(scheduler).__name__ == "DDPMScheduler":
        return int(scheduler.previous_timestep(t))
    return t - int(scheduler.config.num_train_timesteps) // int(scheduler.num_inference_steps)


def walk_of(scheduler: Any) -> Walk:
    """The levels that a scheduler has been set to."""
    scaling = scaling_of(scheduler)
    if type(scheduler).__name__ in TABLED:
        steps = list(dict.fromkeys(int(t) for t in scheduler.timesteps))  # PNDM has one twice
        grid = [_of_table(scheduler, t) for t in (*steps, _previous(scheduler, steps[-1]))]
    else:
        sigmas = list(scheduler.sigmas)
        if type(scheduler).__name__ == "HeunDiscreteScheduler":  # all between the first and the last stand twice
            sigmas = [sigmas[0], *sigmas[1:-1:2], sigmas[-1]]
        grid = [_of_sigma(sigma, scaling) for sigma in sigmas]
    return Walk(scheduler, scaling, tuple(grid))


@dataclass(frozen=True, slots=True)
class Scales:
    """How a network is asked at a level, and its output read: y = c_skip*x + c_out*F(c_in*x)."""

    target: Target
    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def scales_of(scheduler: Any, level: Level) -> Scales:
    """By prediction_type; EDM's schedulers precondition."""
    predicted = scheduler.config.get("prediction_type", "epsilon")
    one = torch.ones_like(level.sigma)
    if type(scheduler).__name__.startswith("EDM"):
        data = scheduler.config.sigma_data
        total = level.sigma**2 + data**2
        sign = -1.0 if predicted == "v_prediction" else 1.0
        return Scales(X0(), data**2 / total, sign * level.sigma * data / total.sqrt(), 1 / total.sqrt())
    target = FlowVelocity() if scaling_of(scheduler) == "flow" else TARGETS.get(predicted)
    if target is None:
        raise SnrkitError(f"prediction_type {predicted} is not known; {', '.join(TARGETS)} are.")
    exploding = type(scheduler).__name__ in EXPLODING
    return Scales(target, 0 * one, one, 1 / (1 + level.sigma**2).sqrt() if exploding else one)


class Packing:
    """Tokens of a transformer and the latents (B, C, H, W) that they are, where a pipeline packs them."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.size = pipeline, (0, 0)
        self.packs = hasattr(pipeline, "_unpack_latents") and hasattr(pipeline, "_pack_latents")
        self._asked = "prepare_latents" in vars(pipeline)
        if self.packs:
            self._prepare = pipeline.prepare_latents
            self._signature = inspect.signature(self._prepare)
            pipeline.prepare_latents = self._noting

    def _noting(self, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(*args, **kwargs).arguments
        self.size = (int(given["height"]), int(given["width"]))
        return self._prepare(*args, **kwargs)

    def remove(self) -> None:
        """Take the note-taker out."""
        if self.packs and self._asked:
            self.pipeline.prepare_latents = self._prepare
        elif self.packs:
            del self.pipeline.prepare_latents

    def unpack(self, x: Tensor) -> Tensor:
        """(B, T, C') -> (B, C, H, W); others as they are."""
        if not self.packs or x.ndim != 3:
            return x
        out: Tensor = self.pipeline._unpack_latents(x, *self.size, self.pipeline.vae_scale_factor)
        return out

    def pack(self, x: Tensor, like: Tensor) -> Tensor:
        """The inverse, where `like` is packed."""
        if not self.packs or like.ndim != 3:
            return x
        out: Tensor = self.pipeline._pack_latents(x, *x.shape)
        return out


@dataclass(frozen=True, slots=True)
class Seen:
    """One call of a scheduler's step: where it stands, its state, and what the network said, unpacked."""

    position: Position
    asked: Level  # that of the state
    begins: bool  # whether it is the state that a step begins at
    x: Tensor
    output: Tensor
    prediction: Prediction
    scales: Scales


Before = Callable[[Seen], Seen]
After = Callable[[Step], Tensor]


class Watch(Protocol):
    """Is shown every step before it is made, as the pipeline asks for it, and may refuse it."""

    def check(self, position: Position, given: Mapping[str, Any]) -> None:
        """Take the step at `position` with the arguments `given`, by name, or raise SnrkitError."""

    def remove(self) -> None:
        """Leave the pipeline as it was."""


class Hook:
    """Something that stands between a pipeline and its scheduler until it is removed, or for the length of a `with`.

    `before` may exchange what the network said, `after` the next state; what comes back as it was is passed on as it
    was. A `watch` sees each step first, and is removed with the hook.
    """

    def __init__(self, pipeline: Any, before: Before, after: After, watch: Watch | None = None) -> None:
        if not hasattr(pipeline, "scheduler"):
            raise SnrkitError(f"a {type(pipeline).__name__} is no pipeline, which has a scheduler.")
        self.scheduler: Any = pipeline.scheduler
        scaling_of(self.scheduler)
        self.before, self.after, self.watch = before, after, watch
        self.packing = Packing(pipeline)
        self._walk: tuple[Tensor, Walk] | None = None
        self._moved: Tensor | None = None
        self._begun: tuple[Tensor, tuple[Call, ...]] | None = None  # the state that the step begins at, and its calls
        self._kept = {name: vars(self.scheduler).get(name) for name in ("step", "multistep_uni_c_bh_update")}
        self._step = self.scheduler.step
        self._signature = inspect.signature(self._step)

        @functools.wraps(self._step)  # pipelines look at the signature, for eta and generator
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._stepped(model_output, timestep, sample, *args, **kwargs)

        self.scheduler.step = self._own = step
        if hasattr(self.scheduler, "multistep_uni_c_bh_update"):
            self._correct = self.scheduler.multistep_uni_c_bh_update
            self.scheduler.multistep_uni_c_bh_update = self._corrected

    def remove(self) -> None:
        """Leave the pipeline as it was. SnrkitError when something that was put in later is still there."""
        if vars(self.scheduler).get("step") is not self._own:
            raise SnrkitError("this was removed before, or something was put in later; remove that first.")
        for name, kept in self._kept.items():
            if kept is not None:
                setattr(self.scheduler, name, kept)
            elif name in vars(self.scheduler):
                delattr(self.scheduler, name)
        self.packing.remove()
        if self.watch is not None:
            self.watch.remove()

    def __enter__(self) -> Self:
        """Itself; it is in the pipeline already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """Remove the hook."""
        self.remove()
        return False

    def walk(self) -> Walk:
        """The levels of the call that is under way."""
        steps = self.scheduler.timesteps
        if self._walk is None or self._walk[0] is not steps:
            self._walk = steps, walk_of(self.scheduler)
        return self._walk[1]

    def _stepped(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        stage = self.walk().stage(timestep)
        position = stage.position
        if self.watch is not None:
            given = self._signature.bind(model_output, timestep, sample, *args, **kwargs)
            self.watch.check(position, given.arguments)
        x, said = self._open(sample), self._open(model_output)
        output, rest = said[:, : x.shape[1]], said[:, x.shape[1] :]  # the rest is a learned variance
        seen = self.before(self._read(stage, x, output))
        if seen.output is not output:
            joined = torch.cat([seen.output, rest], dim=1) if rest.shape[1] else seen.output
            model_output = self.packing.pack(joined, model_output).to(model_output.dtype)
        result = self._step(model_output, timestep, sample, *args, **kwargs)
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        x_next = self._open(previous)
        step = self._step_so_far(stage, seen, x_next)
        made = self.after(step) if stage.ends else x_next
        self._moved = None
        if made is x_next:
            return result
        self._moved = self.packing.pack(made - x_next, previous).to(previous.dtype)
        moved = self.packing.pack(made, previous).to(previous.dtype)
        if isinstance(result, tuple):
            return (moved, *result[1:])
        result.prev_sample = moved
        return result

    def _step_so_far(self, stage: Stage, seen: Seen, x_next: Tensor) -> Step:
        """The step with the calls that it has had."""
        begun = None if stage.begins else self._begun
        x, calls = (seen.x, ()) if begun is None else begun
        calls = (*calls, Call(stage.asked, self._limited(seen.prediction)))
        self._begun = x, calls
        return Step(stage.position, x, calls, x_next)

    def _open(self, x: Tensor) -> Tensor:
        """Unpacked, and in float32 at least. SnrkitError for states that are neither images nor videos then."""
        x = self.packing.unpack(x)
        if x.ndim not in (4, 5):
            shape = "x".join(map(str, x.shape))
            raise SnrkitError(
                f"this pipeline's states are {shape} and cannot be unpacked to (B, C, H, W) or (B, C, T, H, W) here."
            )
        return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

    def _read(self, stage: Stage, x: Tensor, output: Tensor) -> Seen:
        scales = scales_of(self.scheduler, stage.asked)
        y = broadcast(scales.c_skip, x) * x + broadcast(scales.c_out, x) * output
        return Seen(
            stage.position, stage.asked, stage.begins, x, output, solve(x, y, stage.asked, scales.target), scales
        )

    def _limited(self, prediction: Prediction) -> Prediction:
        """The prediction as the scheduler itself limits it."""
        config = self.scheduler.config
        if config.get("thresholding"):
            return Prediction(self.scheduler._threshold_sample(prediction.x0), prediction.eps)
        if config.get("clip_sample"):
            limit = config.clip_sample_range
            return Prediction(prediction.x0.clamp(-limit, limit), prediction.eps)
        return prediction

    def _corrected(self, *args: Any, **kwargs: Any) -> Any:
        """UniPC's corrector makes the state anew from the one before; what was added after it is added again."""
        made = self._correct(*args, **kwargs)
        return made if self._moved is None else made + self._moved


def correct(pipeline: Any, corrections: Sequence[Correction]) -> Hook:
    """Put corrections into a pipeline until `.remove()`, or for a `with`. SnrkitError for what cannot act there."""
    return Hook(pipeline, *acting(corrections))


def acting(corrections: Sequence[Correction]) -> tuple[Before, After]:
    """What corrections do before and after a scheduler's step. SnrkitError for what cannot act there."""
    if not isinstance(corrections, Sequence):
        raise SnrkitError("corrections is a list; write correct(pipeline, [Dcw(low=0.01)]).")
    for one in corrections:
        if (reason := _barred(one)) is not None:
            raise SnrkitError(
                f"{getattr(one, 'kind', repr(one))} cannot act in a pipeline: {reason}; corrections of belief that ask "
                "the network once and of state, such as epsilon_scaling and dcw, can."
            )
    belief = [c for c in corrections if isinstance(c, BeliefCorrection)]
    state = [c for c in corrections if isinstance(c, StateCorrection)]

    def before(seen: Seen) -> Seen:
        return _believed(seen, belief) if belief else seen

    def after(step: Step) -> Tensor:
        for one in state:
            step = replace(step, x_next=one.after(step))
        return step.x_next

    return before, after


def _barred(one: Any) -> str | None:
    """Why a correction cannot act from within a scheduler's step; None if it can."""
    if isinstance(one, LevelCorrection):
        return "it moves the level that the network is told, which is the scheduler's own"
    if isinstance(one, Opens):
        return "it needs another model, or statistics of one, which only experiments open"
    return None if isinstance(one, BeliefCorrection | StateCorrection) else "it is none"


def _believed(seen: Seen, corrections: Sequence[BeliefCorrection]) -> Seen:
    """What the network said, moved by what corrections make of its prediction."""
    asked = wrapped(_answer_of(seen), corrections, seen.position)(seen.x, seen.asked)
    a, b = seen.scales.target.direction(seen.asked)
    less = seen.prediction
    change = broadcast(a, seen.x) * (asked.x0 - less.x0) + broadcast(b, seen.x) * (asked.eps - less.eps)
    if not change.any():
        return seen
    return replace(seen, output=seen.output + change / broadcast(seen.scales.c_out, seen.x), prediction=asked)


def _answer_of(seen: Seen) -> Denoiser:
    """A denoiser that knows the one answer that there is."""

    def answer(x: Tensor, level: Level, told: Level | Same | None, cond: Cond | None) -> Prediction:
        if x is not seen.x or not isinstance(told, Same):
            raise SnrkitError("a correction asks the network again, which it cannot from within a pipeline's step.")
        return seen.prediction

    return Wrapped(Flow(), answer)


@dataclass(frozen=True, slots=True)
class Recorded:
    """How far the states of recorded calls are from the levels that the network was told, level by level.

    `log_variance_ratio` is ln of Var[x]/(alpha^2 Var[x0] + sigma^2), Var over images, averaged over dimensions, and
    `null` the same of the reference noised to each level: 0 up to sampling error.
    """

    logsnr: list[float]
    images: int
    log_variance_ratio: Curve
    null: Curve
    eps_rms: list[float]
    x0_rms: list[float]


class Recording:
    """States and answers of a pipeline's calls, one list of batches for each level."""

    def __init__(self) -> None:
        self.levels: dict[float, Level] = {}
        self.states: dict[float, list[Tensor]] = {}
        self.squares: dict[float, list[tuple[Tensor, Tensor]]] = {}

    def add(self, seen: Seen) -> Seen:
        """Keep one step, without the second half of a batch that repeats the first, as some pipelines guide.

        The states of a step's second call are on no step's grid, and are left out.
        """
        if not seen.begins:
            return seen
        key, p, half = float(seen.asked.logsnr), seen.prediction, len(seen.x) // 2
        count = half if half and torch.equal(seen.x[:half], seen.x[half:]) else len(seen.x)
        self.levels[key] = seen.asked
        self.states.setdefault(key, []).append(seen.x[:count].float().cpu())
        pair = tuple(part[:count].double().square().flatten(1).mean(1).cpu() for part in (p.eps, p.x0))
        self.squares.setdefault(key, []).append((pair[0], pair[1]))
        return seen

    def shift(self, x0: Tensor, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Recorded:
        """Against clean images in [-1, 1], or latents, `x0` (N, *), shaped as the states, that the model is to make.

        Half of them give Var[x0], the other half the null. SnrkitError without enough of either: 20 recorded, of one
        call or of several, and 40 clean ones; for less than 100 resamples, or than the confidence takes.
        """
        check_resampling("resamples", resamples, confidence)
        keys = sorted(self.levels)
        if not keys:
            raise SnrkitError("nothing was recorded yet; call the pipeline while the recording is in it.")
        states = [torch.cat(self.states[key]) for key in keys]
        count = min(len(state) for state in states)
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            raise SnrkitError("x0 is a tensor of floats, images in [-1, 1] or latents.")
        if not bool(x0.isfinite().all()):
            raise SnrkitError("x0 holds numbers that are not finite; give clean images.")
        if x0.shape[1:] != states[0].shape[1:]:
            shapes = f"{tuple(states[0].shape[1:])}, and those given {tuple(x0.shape[1:])}"
            raise SnrkitError(f"recorded images are {shapes}; give such as the network sees.")
        if count < FEWEST or len(x0) < 2 * FEWEST:
            raise SnrkitError(
                f"{count} images were recorded, and {len(x0)} given; it takes {FEWEST}, of several calls within one "
                f"recording if need be, and {2 * FEWEST}."
            )
        x0 = x0.double().cpu()
        known, held = x0[: len(x0) // 2], x0[len(x0) // 2 :]
        boot = Bootstrap(resamples, confidence, seed)
        each = torch.arange(len(known))
        whole = pixels(x0.shape[1:])
        nominal = variance(known, each, boot.weights(each, OF_NOMINAL), whole)[:, 0]
        rows = {"own": [state[:count] for state in states], "null": [_noised(held, self.levels[k], k) for k in keys]}
        curves = {}
        for number, (name, arms) in enumerate(rows.items()):
            groups = torch.arange(len(arms[0]))
            weights = boot.weights(groups, number)
            found = [variance(arm, groups, weights, whole)[:, 0] for arm in arms]
            expected = [self.levels[k].alpha ** 2 * nominal + self.levels[k].sigma ** 2 for k in keys]
            curves[name] = boot.curve(torch.stack([v / e for v, e in zip(found, expected, strict=True)]).log())
        rms = [[math.sqrt(float(torch.cat([p[i] for p in self.squares[k]]).mean())) for k in keys] for i in (0, 1)]
        return Recorded(keys, count, curves["own"], curves["null"], rms[0], rms[1])


def _noised(x0: Tensor, level: Level, key: float) -> Tensor:
    number = int.from_bytes(torch.tensor(key, dtype=torch.float64).numpy().tobytes(), "little")
    noise = torch.from_numpy(PIPELINE.open(number).standard_normal(tuple(x0.shape)))
    return level.alpha * x0 + level.sigma * noise


class RecordingHook(Hook):
    """A recording in a pipeline, until it is removed, which keeps it, or for the length of a `with`."""

    def __init__(self, pipeline: Any) -> None:
        self.recording = Recording()
        super().__init__(pipeline, self.recording.add, lambda step: step.x_next)

    def shift(self, x0: Tensor, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Recorded:
        """As Recording.shift."""
        return self.recording.shift(x0, resamples=resamples, confidence=confidence, seed=seed)


def record(pipeline: Any) -> RecordingHook:
    """Record every step of a pipeline's calls, until `.remove()` or for a `with`; images are unchanged.

    Returns what `shift(x0)` is asked of, also after it was removed: states (B, C, H, W), or latents of that shape, are
    kept in float32 on the CPU, of all calls. SnrkitError for what is no pipeline, or one whose scheduler cannot be
    read; when it is called, for states that cannot be unpacked to (B, C, H, W) or (B, C, T, H, W).
    """
    return RecordingHook(pipeline)
