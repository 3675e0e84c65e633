"""The training loop, as a generator of steps. Saving, logging and progress are the caller's `for`.

Everything random about step k is drawn from (seed, k) (randomness.py), so that a run can stop after any step and go on
bit for bit, and the number of processes changes nothing but the order of float additions - except for a network's own
dropout, whose masks are drawn per process.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snrkit.base.errors import DivergedError
from snrkit.base.streams import DROPOUT
from snrkit.networks import largest_logit, watch_attention
from snrkit.training.adaptive import Adaptive, Bins, UncertaintyModule
from snrkit.training.batches import MicroBatch, Question, first_slice, micro_batches
from snrkit.training.clipping import Groups, clip
from snrkit.training.config import TrainConfig
from snrkit.training.ema import Average
from snrkit.training.randomness import Draws
from snrkit.training.task import Task

PATIENCE = 10  # non-finite steps in a row before giving up


@dataclass(frozen=True, slots=True)
class TrainStep:
    """What happened in one optimizer step, on this process."""

    step: int
    images: int  # seen after this step
    loss: float  # of the global batch
    grad_norm: float  # before clipping
    clipped_norm: float  # after it
    clipped: bool  # whether anything was cut
    lr: float
    skipped: bool
    logit: float | None  # largest attention logit, where it was watched
    cosine: float | None  # between the gradient and what clipping left of it, where it was watched
    largest: tuple[str, float] | None  # the tensor with the largest share of the squared norm, and it, where watched
    logsnr: Tensor  # levels of this process's images; of all processes where the step was skipped
    culprits: tuple[tuple[int, float], ...] = ()  # (index in the data set, logsnr) of images whose loss is not finite


@dataclass(slots=True)
class TrainState:
    """Everything that changes while training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: dict[str, Average]
    adaptive: Adaptive
    step: int = 0
    images: int = 0
    nonfinite: int = 0  # in a row


def make_state(task: Task, network: nn.Module) -> TrainState:
    """A fresh state round `network` (a module as networks/config.py describes it), at step 0 and 0 images.

    The network itself is moved to the device of `task` and trained in place; `averages` hold copies, by name.
    ConfigError where the groups of `clip` do not fit its parameters.
    """
    memory = torch.channels_last if task.channels_last else torch.preserve_format
    network = network.to(device=task.world.device).to(memory_format=memory)
    config = task.config
    if isinstance(config.clip, Groups):
        config.clip.split(list(network.named_parameters()))
    adaptive = make_adaptive(config, task.world.device)
    optimizer = make_optimizer(config, [p for _, p in trained_parameters(network, adaptive)])
    scaler = torch.amp.GradScaler(task.world.device.type, enabled=task.autocast == torch.float16)
    return TrainState(network, optimizer, scaler, {v.name: Average(v, network) for v in config.averages}, adaptive)


def make_adaptive(config: TrainConfig, device: torch.device) -> Adaptive:
    """The fresh state of what learns beside the network."""
    i, b, u = config.importance, config.balance, config.uncertainty
    return Adaptive(
        None if i is None else (i, Bins(i.bins, i.memory)),
        None if b is None else (b, Bins(b.bins, b.memory)),
        None if u is None else UncertaintyModule(u).to(device),
    )


def trained_parameters(network: nn.Module, adaptive: Adaptive) -> list[tuple[str, nn.Parameter]]:
    """All that the optimizer moves, by name; the network's come first."""
    beside = [] if adaptive.uncertainty is None else adaptive.uncertainty.named_parameters()
    return [*network.named_parameters(), *((f"uncertainty/{name}", p) for name, p in beside)]


def make_optimizer(config: TrainConfig, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a config over these parameters."""
    lr, decay = config.lr, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=lr, momentum=config.momentum, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, lr=lr, betas=config.adam_betas, weight_decay=decay, fused=True)


def train(task: Task, state: TrainState, watch_every: int = 0) -> Iterator[TrainStep]:
    """Train to `config.images`, yielding after every step, with `state` up to date.

    `watch_every` images, the largest attention logit is recorded. SnrkitError after ten non-finite steps in a row.
    """
    config, world = task.config, task.world
    caller: nn.Module = torch.compile(state.network) if task.compile else state.network  # type: ignore[assignment]
    if world.size > 1:
        devices = [world.device.index] if world.device.type == "cuda" else None
        caller = DistributedDataParallel(caller, device_ids=devices)
    state.network.train()
    batches = micro_batches(task, state.step)
    while state.images < config.images:
        watch = bool(watch_every) and (state.images + config.batch) // watch_every > state.images // watch_every
        if watch:
            watch_attention(state.network, True)
        step = _one_step(task, state, caller, batches, watch)
        if watch:
            watch_attention(state.network, False)
        yield step


Culprits = list[tuple[int, float]]


def _one_step(
    task: Task, state: TrainState, caller: nn.Module, batches: Iterator[tuple[MicroBatch, Question | None]], watch: bool
) -> TrainStep:
    config, world = task.config, task.world
    lr = config.lr_at(state.images)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss, logsnr, culprits = _backward(task, state, caller, batches)
    state.scaler.unscale_(state.optimizer)
    clipped = clip(config.clip, state.network, watch)
    skipped = world.any(not (math.isfinite(loss) and math.isfinite(clipped.before)))
    if skipped:  # every process tells all others what it saw
        culprits = world.collect(culprits)
        logsnr = torch.tensor(world.collect(logsnr.tolist()), dtype=torch.float64)
    _update(task, state, skipped)
    state.step += 1
    state.images += config.batch
    if skipped and state.nonfinite >= PATIENCE:
        raise _gave_up(state, logsnr, culprits)
    largest = largest_logit(state.network) if watch else None
    logit = None if largest is None else float(largest)
    return TrainStep(
        state.step,
        state.images,
        loss,
        clipped.before,
        clipped.after,
        clipped.cut,
        lr,
        skipped,
        logit,
        clipped.cosine,
        clipped.largest,
        logsnr,
        tuple(culprits),
    )


def _backward(
    task: Task, state: TrainState, caller: nn.Module, batches: Iterator[tuple[MicroBatch, Question | None]]
) -> tuple[float, Tensor, Culprits]:
    """Accumulate the gradient of the global batch: (its loss, levels and non-finite images of this process)."""
    config, world = task.config, task.world
    total = torch.zeros((), device=world.device)
    levels: list[Tensor] = []
    culprits: Culprits = []
    for micro in range(config.accumulate):
        batch, asked = next(batches)
        last = micro == config.accumulate - 1
        alone = nullcontext() if last or not isinstance(caller, DistributedDataParallel) else caller.no_sync()
        with alone:
            key = state.step, first_slice(task, micro)
            losses, logsnr = micro_losses(task, caller, batch, key, state.adaptive, asked)
            loss = losses.sum() / config.batch
            state.scaler.scale(loss * world.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        levels.append(logsnr)
        if not loss.isfinite():
            culprits += _culprits(task, batch.draws, losses.detach(), logsnr)
    if state.adaptive.uncertainty is not None and world.size > 1:  # DDP averages the network's alone
        for parameter in state.adaptive.uncertainty.parameters():
            parameter.grad = None if parameter.grad is None else world.sum(parameter.grad) / world.size
    return float(world.sum(total)), torch.cat(levels), culprits


def _update(task: Task, state: TrainState, skipped: bool) -> None:
    if skipped:
        state.nonfinite += 1
    else:
        state.nonfinite = 0
        state.scaler.step(state.optimizer)
    for average in state.averages.values():  # also of a skipped step, whose weights are those before it
        average.update(state.images, task.config.batch)
    state.adaptive.update(task.world)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def _culprits(task: Task, draws: Draws, losses: Tensor, logsnr: Tensor) -> Culprits:
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    return [(task.train[int(draws.positions[i])], float(logsnr[i])) for i in bad]


def _gave_up(state: TrainState, logsnr: Tensor, culprits: Sequence[tuple[int, float]]) -> DivergedError:
    low, high = float(logsnr.min()), float(logsnr.max())
    images = f"; images {', '.join(str(index) for index, _ in culprits[:8])}" if culprits else ""
    return DivergedError(
        f"training stopped: loss or gradient was not finite in {PATIENCE} steps in a row, the last at step "
        f"{state.step} ({state.images} images, logsnr {low:.2f} to {high:.2f}{images}); the last checkpoint is intact: "
        "lower train.lr, set train.clip, or use precision fp32"
    )


def micro_losses(
    task: Task,
    caller: nn.Module,
    batch: MicroBatch,
    key: tuple[int, int],
    adaptive: Adaptive | None = None,
    asked: Question | None = None,
) -> tuple[Tensor, Tensor]:
    """(losses, logsnr), each (n,); `key` (step, first slice) decides the masks of the network's dropout.

    `asked`: what the network is asked; None: at the levels that `adaptive` chooses.
    """
    adaptive = adaptive or Adaptive()
    asked = asked or batch.ask(task, *adaptive.draw(batch.draws.level))
    if task.dropout:
        torch.manual_seed(int(DROPOUT.open(task.seed, *key).integers(2**31)))
    mixed = nullcontext() if task.autocast is None else torch.autocast(task.world.device.type, task.autocast)
    with mixed:
        error = asked.pair.error(caller(asked.pair.x, asked.pair.time, batch.cond))
    return adaptive.loss(asked.weight.to(error) * error, asked.u, asked.logsnr, asked.factor), asked.logsnr


def state_tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """All tensors of the training state, as a checkpoint takes them."""
    moments = {
        f"{name}/{key}": value
        for name, parameter in trained_parameters(state.network, state.adaptive)
        for key, value in state.optimizer.state[parameter].items()
    }
    averages = {name: average.tensors for name, average in state.averages.items()}
    learned = {"learned": found} if (found := state.adaptive.tensors()) else {}
    return {"network": state.network.state_dict(), "optimizer": moments, **averages, **learned}


def state_numbers(state: TrainState) -> dict[str, Any]:
    """All plain numbers of the training state."""
    return {"step": state.step, "nonfinite": state.nonfinite, "scaler": state.scaler.state_dict()}


def _check_moments(moments: Mapping[str, Mapping[str, Tensor]], trained: Mapping[str, Tensor]) -> None:
    """RuntimeError where moments are of other parameters: of a name that is not there, or of another shape."""
    for name, kept in moments.items():
        if name not in trained:
            raise RuntimeError(f"it has moments of {name}, which is no parameter here")
        if wrong := [key for key, value in kept.items() if value.ndim and value.shape != trained[name].shape]:
            raise RuntimeError(f"its {wrong[0]} of {name} has another shape")


def restore(state: TrainState, images: int, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
    """Take over the training state of a checkpoint."""
    state.network.load_state_dict(tensors["network"])
    for name, average in state.averages.items():
        average.load(tensors[name])
    state.adaptive.load(tensors.get("learned", {}))
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors["optimizer"].items():
        parameter, _, entry = key.rpartition("/")
        moments.setdefault(parameter, {})[entry] = value
    packed, trained = state.optimizer.state_dict(), trained_parameters(state.network, state.adaptive)
    _check_moments(moments, dict(trained))
    for index, (name, weight) in enumerate(trained):
        if name in moments:  # in the weight's own memory layout, which the fused optimizer takes for granted
            packed["state"][index] = {
                key: torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
                for key, value in moments[name].items()
            }
    state.optimizer.load_state_dict(packed)
    state.scaler.load_state_dict(numbers["scaler"])
    state.step, state.images, state.nonfinite = int(numbers["step"]), images, int(numbers["nonfinite"])
