"""The training loop, as a generator of steps. Saving, logging and progress are the caller's `for`.

Everything random about step k is drawn from (seed, k) (randomness.py), so that a run can stop after any step and go on
bit for bit, and the number of processes changes nothing but the order of float additions - except for a network's own
dropout, whose masks are drawn per process.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snrkit.base.errors import DivergedError
from snrkit.base.signals import Stop
from snrkit.base.streams import DROPOUT
from snrkit.base.transfer import Reading
from snrkit.networks import largest_logit, watch_attention
from snrkit.networks.compiling import compiled
from snrkit.training.adaptive import Adaptive, Bins, UncertaintyModule
from snrkit.training.batches import MicroBatch, Question, first_slice, micro_batches
from snrkit.training.clipping import Groups, clip_on_device
from snrkit.training.config import TrainConfig
from snrkit.training.ema import Average
from snrkit.training.step import Seen, TrainStep
from snrkit.training.task import Task

PATIENCE = 10  # non-finite steps in a row before giving up


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
    nonfinite: int = 0  # in a row, of the steps that are settled
    last: TrainStep | None = None  # whose outcome has not been looked at by all processes together

    def settle(self, task: Task) -> None:
        """Look at the outcome of the last step, which waits for the device. DivergedError after ten in a row skipped.

        All processes together, as of a skipped step they exchange what they saw.
        """
        if self.last is None:
            return
        step, self.last = self.last, None
        if not step.skipped:
            self.nonfinite = 0
            return
        self.nonfinite += 1
        culprits = task.world.collect([each for seen in step.seen for each in seen.culprits()])
        levels = task.world.collect([each for seen in step.seen for each in seen.logsnr.tolist()])
        step.tell(torch.tensor(levels, dtype=torch.float64), tuple(culprits))
        if self.nonfinite >= PATIENCE:
            raise _gave_up(step)


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
        sgd = torch.optim.SGD(weights, lr=lr, momentum=config.momentum, weight_decay=decay, fused=True)
        if config.momentum:  # which torch leaves uninitialised where its first step is skipped on the device
            for weight in weights:
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return sgd
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, lr=lr, betas=config.adam_betas, weight_decay=decay, fused=True)


def train(task: Task, state: TrainState, watch_every: int = 0, stop: Stop | None = None) -> Iterator[TrainStep]:
    """Train to `config.images`, yielding after every step, with `state` up to date.

    `watch_every` images, the largest attention logit is recorded. SnrkitError after ten non-finite steps in a row.
    With every step all processes learn whether `stop` of one of them is asked; to end is for who iterates. On CUDA
    batches are made on the default stream: iterate there.
    """
    config, world = task.config, task.world
    caller = compiled(state.network) if task.compile else state.network
    if world.size > 1:
        devices = [world.device.index] if world.device.type == "cuda" else None
        caller = DistributedDataParallel(caller, device_ids=devices)
    state.network.train()
    batches = micro_batches(task, state.step)
    while state.images < config.images:
        watch = bool(watch_every) and (state.images + config.batch) // watch_every > state.images // watch_every
        if watch:
            watch_attention(state.network, True)
        asked = stop is not None and stop.asked
        step, before = _one_step(task, state, caller, batches, watch, asked), state.last
        if before is not None:
            state.settle(task)  # of the step before, while the device is at this one
        state.last = step
        if watch:
            watch_attention(state.network, False)
        yield step
    state.settle(task)


def _one_step(
    task: Task,
    state: TrainState,
    caller: nn.Module,
    batches: Iterator[MicroBatch | Question],
    watch: bool,
    asked: bool,
) -> TrainStep:
    """Ask the device for one step, and wait for nothing of it."""
    config = task.config
    lr = config.lr_at(state.images)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss, seen = _backward(task, state, caller, batches)
    state.scaler.unscale_(state.optimizer)
    names, values = clip_on_device(config.clip, state.network, watch)
    finite = loss.isfinite() & values[0].isfinite()
    asking = torch.full((), float(asked), device=loss.device)
    if task.world.size > 1:
        wrong, asking = task.world.sum(torch.stack([(~finite).float(), asking]))
        finite = wrong == 0
    _update(task, state, finite)
    state.step += 1
    state.images += config.batch
    reading = Reading(torch.cat([torch.stack([loss.double(), finite.double(), asking.double()]), values]))
    step = TrainStep(state.step, state.images, lr, seen, names, reading)
    if watch and (logit := largest_logit(state.network)) is not None:
        step.logit = float(logit)
    return step


def _backward(
    task: Task, state: TrainState, caller: nn.Module, batches: Iterator[MicroBatch | Question]
) -> tuple[Tensor, list[Seen]]:
    """Accumulate the gradient of the global batch: (its loss (), what this process saw)."""
    config, world = task.config, task.world
    total = torch.zeros((), device=world.device)
    seen: list[Seen] = []
    for micro in range(config.accumulate):
        made = next(batches)
        asked = made if isinstance(made, Question) else made.ask(task, state.adaptive.draw(made.draws.level))
        last = micro == config.accumulate - 1
        alone = nullcontext() if last or not isinstance(caller, DistributedDataParallel) else caller.no_sync()
        with alone:
            key = state.step, first_slice(task, micro)
            losses = micro_losses(task, caller, asked, key, state.adaptive)
            loss = losses.sum() / config.batch
            state.scaler.scale(loss * world.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        seen.append(Seen(asked.images, asked.logsnr, losses.detach()))
    if state.adaptive.uncertainty is not None and world.size > 1:  # DDP averages the network's alone
        for parameter in state.adaptive.uncertainty.parameters():
            parameter.grad = None if parameter.grad is None else world.sum(parameter.grad) / world.size
    return world.sum(total), seen


def _update(task: Task, state: TrainState, finite: Tensor) -> None:
    """Move the weights, unless the step is not finite (a tensor of shape ()), which the optimizer itself looks at."""
    if state.scaler.is_enabled():
        if bool(finite):
            state.scaler.step(state.optimizer)
    else:
        state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        state.optimizer.step()
    for average in state.averages.values():  # also of a skipped step, whose weights are those before it
        average.update(state.images, task.config.batch)
    state.adaptive.update(task.world)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def _gave_up(step: TrainStep) -> DivergedError:
    low, high = float(step.logsnr.min()), float(step.logsnr.max())
    images = f"; images {', '.join(str(index) for index, _ in step.culprits[:8])}" if step.culprits else ""
    return DivergedError(
        f"training stopped: loss or gradient was not finite in {PATIENCE} steps in a row, the last at step "
        f"{step.step} ({step.images} images, logsnr {low:.2f} to {high:.2f}{images}); the last checkpoint is intact: "
        "lower train.lr, set train.clip, or use precision fp32"
    )


def micro_losses(
    task: Task, caller: nn.Module, asked: Question, key: tuple[int, int], adaptive: Adaptive | None = None
) -> Tensor:
    """The losses (n,) of a micro-batch; `key` (step, first slice) decides the masks of the network's dropout."""
    if task.dropout:
        torch.manual_seed(int(DROPOUT.open(task.seed, *key).integers(2**31)))
    mixed = nullcontext() if task.autocast is None else torch.autocast(task.world.device.type, task.autocast)
    with mixed:
        error = asked.pair.error(caller(asked.pair.x, asked.pair.time, asked.cond))
    return (adaptive or Adaptive()).loss(asked.weight * error, asked.u, asked.logsnr, asked.factor)


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
    """All plain numbers of the training state, whose last step is settled."""
    assert state.last is None, "settle(task) comes first, in all processes together"
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
