"""The training loop, as a generator of steps. Saving, logging and progress are the caller's `for`.

Everything random about step k is drawn from (seed, k) (randomness.py), so that a run can stop after any step and go on
bit for bit, and the number of processes changes nothing but the order of float additions - except for a network's own
dropout, whose masks are drawn per process.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snrkit.clipping import AnyClip, GlobalNorm, Groups, clip
from snrkit.data.augment import EdmAugment
from snrkit.data.dataset import Dataset, chunks, stream, to_unit
from snrkit.denoiser import Precondition
from snrkit.distributed import World
from snrkit.ema import AnyAveraging, Average, HalfLife
from snrkit.errors import SnrkitError
from snrkit.level import Level, broadcast
from snrkit.levels import LevelSampler
from snrkit.networks import largest_logit, watch_attention
from snrkit.objective import output_weight
from snrkit.prediction import Cond, Target
from snrkit.process import Process
from snrkit.randomness import Draws, Plan
from snrkit.streams import DROPOUT, HOLDOUT
from snrkit.streams import stream as random_stream
from snrkit.value import Value
from snrkit.weighting import Simple, Weighting


class ResumeFrom(Value):
    """Weights to begin with: those of another run, whose network must be the same; a fine-tune."""

    run: Path
    checkpoint: int | None = Field(None, ge=0, description="images seen; default: the newest")
    average: str | None = Field(None, description="ema-<half-life> or network; default: the longest average")


class InputPerturbation(Value):
    """DDPM-IP (Ning et al. 2023): the network is shown alpha*x0 + sigma*(eps + gamma*xi), xi fresh; its target stays.

    With the published target, eps, the best answer is the denoiser's for noise of sqrt(1 + gamma^2) the size, divided
    by 1 + gamma^2. With target x0 it is that denoiser's x0 and nothing is divided; v and flow lie between. What the
    target is decides, then, whether input perturbation holds epsilon scaling by 1 + gamma^2 in it.
    """

    gamma: float = Field(0.1, gt=0)


PATIENCE = 10  # non-finite steps in a row before giving up
HOLDOUT_IMAGES = 2048


class TrainConfig(Value):
    """How long, how fast and how safely. Everything is counted in images."""

    images: int = Field(ge=1)
    batch: int = Field(128, ge=1)
    slice: int = Field(16, ge=1, description="images whose randomness is drawn together")
    accumulate: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(10_000, ge=0)
    decay: Literal["constant", "cosine", "linear", "rsqrt"] = "constant"
    decay_from: int = Field(0, ge=0, description="images at which the decay begins; for rsqrt also its scale")
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    adam_betas: tuple[float, float] = Field((0.9, 0.99), description="of adamw and adam")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, description="decoupled with adamw, added to the gradient with the others")
    clip: AnyClip | None = Field(GlobalNorm(), description="a number is the largest global norm of the gradient")
    label_dropout: float = Field(0.0, ge=0, lt=1)
    noise_dropout: float = Field(0.0, ge=0, lt=1)
    augment: EdmAugment | None = None
    perturb: InputPerturbation | None = None
    resume_from: ResumeFrom | None = None
    averages: tuple[AnyAveraging, ...] = (HalfLife(),)
    save_every: int = Field(20_000, ge=1)
    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    snapshot_every: int | None = Field(None, ge=1, description="keep the weights and averages alone, for `average`")
    log_every: int = Field(2_000, ge=1)
    holdout_every: int = Field(20_000, ge=1)
    holdout_bins: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _acts(self) -> "TrainConfig":
        faults = []
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            faults.append(f"adam_betas {self.adam_betas} must lie in [0, 1)")
        if self.decay == "rsqrt" and not self.decay_from:
            faults.append("decay rsqrt needs decay_from above 0, the images at which it begins")
        if self.decay == "constant" and self.decay_from:
            faults.append("decay_from has no effect with decay constant; drop it or choose a decay")
        unused = {"sgd": "adam_betas"}.get(self.optimizer, "momentum")
        if unused in self.model_fields_set and getattr(self, unused) != type(self).model_fields[unused].default:
            faults.append(f"{unused} has no effect with optimizer {self.optimizer}; drop it")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def lr_at(self, images: int) -> float:
        """The learning rate of the step that starts after `images` images."""
        warm = min(1.0, (images + self.batch) / self.warmup) if self.warmup else 1.0
        past = max(0, images - self.decay_from)
        left = max(0.0, 1 - past / max(1, self.images - self.decay_from))
        if self.decay == "cosine":
            shape = float((1 - torch.cos(torch.tensor(left * torch.pi, dtype=torch.float64))) / 2)
        elif self.decay == "linear":
            shape = left
        elif self.decay == "rsqrt":
            shape = max(images / max(1, self.decay_from), 1.0) ** -0.5
        else:
            shape = 1.0
        return self.lr * warm * shape


@dataclass(frozen=True, slots=True)
class Objective:
    """What is asked of the network."""

    process: Process
    target: Target
    precondition: Precondition
    levels: LevelSampler
    weighting: Weighting
    sigma_data: float

    def logsnr(self, u: Tensor) -> Tensor:
        """Training levels (B,) of uniforms (B,), snapped to the process's table."""
        return self.process.snap(self.levels.logsnr(u, self.process))

    def output_error(
        self, network: nn.Module, x0: Tensor, eps: Tensor, logsnr: Tensor, untold: Tensor, cond: Cond | None,
        *, perturbation: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """|F - F*|^2 (B,) float32, averaged over the dimensions of x0 and eps (B, *).

        `untold` (B,) marks images whose level the network is not told. `perturbation` (B, *) is noise added to eps in
        what the network is shown, not in what it is to say.
        """
        level = self.process.level(logsnr)
        a, b = self.target.direction(level)
        c = self.precondition.coefficients(level, self.target, self.process.scaling, self.sigma_data)
        alpha, sigma = level.scales(x0)
        shown = eps if perturbation is None else eps + perturbation
        x = broadcast(c.c_in, x0) * (alpha * x0 + sigma * shown)
        time = self.process.time(logsnr).masked_fill(untold, torch.nan).to(device=x0.device, dtype=torch.float32)
        output: Tensor = network(x, time, cond)
        wanted = broadcast((a - c.c_skip * level.alpha) / c.c_out, x0) * x0
        wanted = wanted + broadcast((b - c.c_skip * level.sigma) / c.c_out, x0) * eps
        if perturbation is not None:
            wanted = wanted - broadcast(c.c_skip * level.sigma / c.c_out, x0) * perturbation
        return (output.float() - wanted).square().flatten(1).mean(1)

    def weight(self, logsnr: Tensor) -> Tensor:
        """The factor (B,) of `output_error` in the loss, float64."""
        return self._output_weight(logsnr, self.weighting)

    def eps_weight(self, logsnr: Tensor) -> Tensor:
        """The factor (B,) that makes `output_error` the squared error of eps, float64."""
        return self._output_weight(logsnr, Simple())

    def _output_weight(self, logsnr: Tensor, weighting: Weighting) -> Tensor:
        return output_weight(
            self.process.level(logsnr),
            self.levels.density(logsnr, self.process),
            process=self.process,
            target=self.target,
            precondition=self.precondition,
            weighting=weighting,
            sigma_data=self.sigma_data,
        )


@dataclass(frozen=True, slots=True)
class TrainStep:
    """What happened in one optimizer step, on this process."""

    step: int
    images: int  # seen after this step
    loss: float  # of the global batch
    grad_norm: float  # before clipping
    clipped_norm: float  # after it
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
    step: int = 0
    images: int = 0
    nonfinite: int = 0  # in a row


@dataclass(frozen=True, slots=True)
class Task:
    """The fixed surroundings of training: data, objective, precision and processes."""

    config: TrainConfig
    objective: Objective
    dataset: Dataset
    train: tuple[int, ...]  # indices that may be trained on
    held: tuple[int, ...]
    seed: int
    world: World
    flip: bool = False
    workers: int = 0
    autocast: torch.dtype | None = None
    channels_last: bool = False
    compile: bool = False
    dropout: bool = False

    def plan(self) -> Plan:
        """The shape of the random draws."""
        config = self.config
        return Plan(
            self.seed, config.batch, config.slice, len(self.train), self.dataset.shape, config.perturb is not None
        )


def make_state(task: Task, network: nn.Module) -> TrainState:
    """A fresh state round `network`, which is moved to the device."""
    memory = torch.channels_last if task.channels_last else torch.preserve_format
    network = network.to(device=task.world.device).to(memory_format=memory)
    config = task.config
    if isinstance(config.clip, Groups):
        config.clip.split(list(network.named_parameters()))
    optimizer = make_optimizer(config, network)
    scaler = torch.amp.GradScaler(task.world.device.type, enabled=task.autocast == torch.float16)
    return TrainState(network, optimizer, scaler, {v.name: Average(v, network) for v in config.averages})


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config over all parameters."""
    weights, lr, decay = network.parameters(), config.lr, config.weight_decay
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
    batches = _batches(task, state.step)
    while state.images < config.images:
        watch = bool(watch_every) and (state.images + config.batch) // watch_every > state.images // watch_every
        if watch:
            watch_attention(state.network, True)
        step = _one_step(task, state, caller, batches, watch)
        if watch:
            watch_attention(state.network, False)
        yield step


def _batches(task: Task, first: int) -> Iterator[tuple[Draws, Tensor]]:
    """(draws, pixels) of every micro-batch of this process, in order, from step `first` on."""
    config, world, plan = task.config, task.world, task.plan()
    per_micro = config.batch // (config.slice * world.size * config.accumulate)
    waiting: list[Draws] = []

    def indices() -> Iterator[Sequence[int]]:
        step = first
        while True:
            for micro in range(config.accumulate):
                begin = _first_slice(task, micro)
                draws = plan.draw(step, range(begin, begin + per_micro))
                waiting.append(draws)
                yield [task.train[p] for p in draws.positions.tolist()]
            step += 1

    for pixels in stream(task.dataset, indices(), task.workers):
        yield waiting.pop(0), pixels


Culprits = list[tuple[int, float]]


def _one_step(
    task: Task, state: TrainState, caller: nn.Module, batches: Iterator[tuple[Draws, Tensor]], watch: bool
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
        state.step, state.images, loss, clipped.before, clipped.after, lr, skipped, logit, clipped.cosine,
        clipped.largest, logsnr, tuple(culprits),
    )  # fmt: skip


def _backward(
    task: Task, state: TrainState, caller: nn.Module, batches: Iterator[tuple[Draws, Tensor]]
) -> tuple[float, Tensor, Culprits]:
    """Accumulate the gradient of the global batch: (its loss, levels and non-finite images of this process)."""
    config, world = task.config, task.world
    total = torch.zeros((), device=world.device)
    levels: list[Tensor] = []
    culprits: Culprits = []
    for micro in range(config.accumulate):
        draws, pixels = next(batches)
        last = micro == config.accumulate - 1
        alone = nullcontext() if last or not isinstance(caller, DistributedDataParallel) else caller.no_sync()
        with alone:
            losses, logsnr = _micro_losses(task, caller, draws, pixels, (state.step, _first_slice(task, micro)))
            loss = losses.sum() / config.batch
            state.scaler.scale(loss * world.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        levels.append(logsnr)
        if not loss.isfinite():
            culprits += _culprits(task, draws, losses.detach(), logsnr)
    return float(world.sum(total)), torch.cat(levels), culprits


def _update(task: Task, state: TrainState, skipped: bool) -> None:
    if skipped:
        state.nonfinite += 1
    else:
        state.nonfinite = 0
        state.scaler.step(state.optimizer)
        for average in state.averages.values():
            average.update(state.images, task.config.batch)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def _first_slice(task: Task, micro: int) -> int:
    per_micro = task.config.batch // (task.config.slice * task.world.size * task.config.accumulate)
    return (micro * task.world.size + task.world.rank) * per_micro


def _culprits(task: Task, draws: Draws, losses: Tensor, logsnr: Tensor) -> Culprits:
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    return [(task.train[int(draws.positions[i])], float(logsnr[i])) for i in bad]


def _gave_up(state: TrainState, logsnr: Tensor, culprits: Sequence[tuple[int, float]]) -> SnrkitError:
    low, high = float(logsnr.min()), float(logsnr.max())
    images = f"; images {', '.join(str(index) for index, _ in culprits[:8])}" if culprits else ""
    return SnrkitError(
        f"training stopped: loss or gradient was not finite in {PATIENCE} steps in a row, the last at step "
        f"{state.step} ({state.images} images, logsnr {low:.2f} to {high:.2f}{images}); the last checkpoint is intact: "
        "lower train.lr, set train.clip, or use precision fp32"
    )


def _micro_losses(
    task: Task, caller: nn.Module, draws: Draws, pixels: Tensor, key: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(losses, logsnr), each (n,); `key` (step, first slice) decides the masks of the network's dropout."""
    device, config = task.world.device, task.config
    logsnr = task.objective.logsnr(draws.level)
    x0, cond = _prepare(task, draws, pixels)
    untold = draws.noise_drop < config.noise_dropout
    if task.dropout:
        torch.manual_seed(int(random_stream(DROPOUT, task.seed, *key).integers(2**31)))
    noise = draws.noise.to(device, non_blocking=True)
    if task.channels_last:
        x0, noise = x0.to(memory_format=torch.channels_last), noise.to(memory_format=torch.channels_last)
    mixed = nullcontext() if task.autocast is None else torch.autocast(device.type, task.autocast)
    extra = None
    if config.perturb is not None and draws.perturbation is not None:
        extra = config.perturb.gamma * draws.perturbation.to(noise)
    with mixed:
        error = task.objective.output_error(caller, x0, noise, logsnr, untold, cond, perturbation=extra)
    return task.objective.weight(logsnr).to(error) * error, logsnr


def _prepare(task: Task, draws: Draws, pixels: Tensor) -> tuple[Tensor, Cond]:
    """Clean images after flips and augmentation, and the condition after label dropout, on the device."""
    device, config, dataset = task.world.device, task.config, task.dataset
    x0 = to_unit(pixels)
    if task.flip:
        x0 = torch.where((draws.flip < 0.5)[:, None, None, None], x0.flip(3), x0)
    told = None
    if config.augment is not None:
        x0, told = config.augment.apply(x0, draws.augment)
    labels = None
    if dataset.labels is not None:
        chosen = dataset.labels[torch.tensor([task.train[p] for p in draws.positions.tolist()])]
        labels = chosen.masked_fill(draws.label_drop < config.label_dropout, -1).to(device)
    return x0.to(device), Cond(labels=labels, augment=None if told is None else told.float().to(device))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Training pairs as the network is given them: x (n, *) before c_in, made from x0 (n, *), told `level` (n,)."""

    x0: Tensor
    x: Tensor
    level: Level


class _Spy(nn.Module):
    """A network that notes what it is asked and says 0."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        self.asked = (x, time)
        return torch.zeros_like(x)


@torch.no_grad()
def training_pairs(task: Task, pairs: int) -> Pairs:
    """At least `pairs` pairs (fewer by the share that is not told a level) from the first steps of training."""
    spy, plan, found = _Spy(), task.plan(), []
    for step in range(-(-pairs // task.config.batch)):
        draws = plan.draw(step, range(task.config.batch // task.config.slice))
        pixels = task.dataset.pixels([task.train[p] for p in draws.positions.tolist()])
        _micro_losses(task, spy, draws, pixels, (step, 0))
        assert spy.asked is not None
        x, time = (part.cpu() for part in spy.asked)
        known = ~time.isnan()
        o, level = task.objective, task.objective.process.level(task.objective.process.logsnr(time[known].double()))
        c_in = o.precondition.coefficients(level, o.target, o.process.scaling, o.sigma_data).c_in
        x0 = _prepare(task, draws, pixels)[0].cpu()
        found.append((x0[known], x[known].double() / broadcast(c_in, x[known].double()), level.logsnr))
    x0, x, logsnr = (torch.cat(part) for part in zip(*found, strict=True))
    return Pairs(x0, x, task.objective.process.level(logsnr))


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Mean loss and squared error of eps on held-out images, by bins of logsnr with equally many images."""

    logsnr: list[float]
    loss: list[float]
    eps_error: list[float]
    held_images: int


@torch.no_grad()
def held_out_loss(task: Task, network: nn.Module, batch: int = 512) -> HeldOutLoss | None:
    """The loss of `network` on held-out images, levels and noise depending on the seed only; None without any."""
    if not task.held:
        return None
    rng = random_stream(HOLDOUT, task.seed)
    held = rng.permutation(task.held)[:HOLDOUT_IMAGES].tolist()  # shuffled: files often lie sorted by class
    was_training = network.training
    network.eval()
    u = (torch.from_numpy(rng.permutation(len(held))).double() + torch.from_numpy(rng.random(len(held)))) / len(held)
    logsnr = task.objective.logsnr(u.clamp(2.0**-53, 1 - 2.0**-53))
    noise = torch.from_numpy(rng.standard_normal((len(held), *task.dataset.shape), dtype="float32"))
    results = []
    for run in chunks(range(len(held)), batch):
        rows, device = torch.as_tensor(run), task.world.device
        images = torch.tensor(held)[rows]
        labels = None if task.dataset.labels is None else task.dataset.labels[images].to(device)
        x0, told = task.dataset.x0(images.tolist()).to(device), torch.zeros(len(rows), dtype=torch.bool)
        error = task.objective.output_error(
            network, x0, noise[rows].to(device), logsnr[rows], told, Cond(labels=labels)
        ).cpu().double()  # fmt: skip
        results.append(
            torch.stack([w(logsnr[rows]) * error for w in (task.objective.weight, task.objective.eps_weight)])
        )
    network.train(was_training)
    order = logsnr.argsort()
    bins = torch.tensor_split(torch.cat(results, 1)[:, order], min(task.config.holdout_bins, len(held)), 1)
    centres = torch.tensor_split(logsnr[order], len(bins))
    return HeldOutLoss(
        [float(c.mean()) for c in centres],
        [float(b[0].mean()) for b in bins],
        [float(b[1].mean()) for b in bins],
        len(held),
    )


def state_tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """All tensors of the training state, as a checkpoint takes them."""
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.network.named_parameters()
        for key, value in state.optimizer.state[parameter].items()
    }
    averages = {name: average.tensors for name, average in state.averages.items()}
    return {"network": state.network.state_dict(), "optimizer": moments, **averages}


def state_numbers(state: TrainState) -> dict[str, Any]:
    """All plain numbers of the training state."""
    return {"step": state.step, "nonfinite": state.nonfinite, "scaler": state.scaler.state_dict()}


def restore(state: TrainState, images: int, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
    """Take over the training state of a checkpoint."""
    state.network.load_state_dict(tensors["network"])
    for name, average in state.averages.items():
        average.load(tensors[name])
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors["optimizer"].items():
        parameter, _, entry = key.rpartition("/")
        moments.setdefault(parameter, {})[entry] = value
    packed = state.optimizer.state_dict()
    for index, (name, weight) in enumerate(state.network.named_parameters()):
        if name in moments:  # in the weight's own memory layout, which the fused optimizer takes for granted
            packed["state"][index] = {
                key: torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
                for key, value in moments[name].items()
            }
    state.optimizer.load_state_dict(packed)
    state.scaler.load_state_dict(numbers["scaler"])
    state.step, state.images, state.nonfinite = int(numbers["step"]), images, int(numbers["nonfinite"])
