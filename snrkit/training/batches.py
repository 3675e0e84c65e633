"""What a step of training is given: micro-batches of images and noise, made in threads ahead of the step.

All that is random about a micro-batch is keyed by (seed, step, slice), so that one that was made ahead and never used
is made again, bit for bit, by whoever goes on from there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, repeat

import torch
from torch import Tensor

from snrkit.base.ahead import ahead, threads
from snrkit.base.errors import SnrkitError
from snrkit.base.transfer import send
from snrkit.data.dataset import read_by_processes, to_unit
from snrkit.diffusion.prediction import Cond
from snrkit.training.objective import Pair
from snrkit.training.perturb import Shown
from snrkit.training.randomness import Draws
from snrkit.training.stable_target import stable_target
from snrkit.training.task import Task


@dataclass(frozen=True, slots=True)
class Question:
    """What the network is asked of n images at their levels, and how much each counts."""

    images: Tensor  # (n,) int64, indices into the data set, on the host
    u: Tensor  # (n,) float64 in (0, 1), what the levels were made of, on the host
    logsnr: Tensor  # (n,) float64, the levels that are told, on the host
    factor: Tensor  # (n,) float32, by which the loss is multiplied as importance sampling asks
    weight: Tensor  # (n,) float32, of the error of the network's own output
    pair: Pair
    cond: Cond


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images and noise on the device, what the network is told of them, and the draws, which stay on the host."""

    draws: Draws
    images: Tensor  # (n,) int64, indices into the data set, on the host
    x0: Tensor  # (n, C, H, W) float32, clean, after flips and augmentation
    noise: Tensor  # (n, C, H, W) float32
    cond: Cond
    extra: Tensor | None  # (n, extras, C, H, W) float32, noise of a perturbation

    def ask(self, task: Task, moved: tuple[Tensor, Tensor] | None = None) -> Question:
        """The question at the levels that were drawn; `moved` (u, factor) (n,): at those of u. Waits for no device."""
        config, draws, objective, device = task.config, self.draws, task.objective.of(self.images), self.x0.device
        u, factor = moved or (draws.level, torch.ones_like(draws.level))
        logsnr = objective.logsnr(u)
        shown = Shown(self.noise, None, logsnr)
        if config.perturb is not None and self.extra is not None:
            chance = draws.chance.to(torch.float64)
            shown = config.perturb.shown(self.noise, self.extra, chance, logsnr, objective.process)
        untold = draws.noise_drop < config.noise_dropout
        x0, eps = self.x0, shown.eps
        if config.stable_target:
            means = stable_target(x0, eps, objective.process.level(logsnr), config.slice, self._labels(task))
            x0, eps = (each.to(memory_format=task.memory) for each in means)
        return Question(
            self.images,
            u,
            logsnr,
            send(factor.float(), device),
            send(objective.weight(logsnr).float(), device),
            objective.pair(x0, eps, logsnr, untold, beyond=shown.beyond, stands=shown.logsnr),
            self.cond,
        )

    def _labels(self, task: Task) -> tuple[Tensor, Tensor] | None:
        """What is told and what is true, each (n,), on the device; None without labels."""
        if self.cond.labels is None or task.dataset.labels is None:
            return None
        return self.cond.labels, send(task.dataset.labels[self.images], self.x0.device)


def micro_batch(task: Task, draws: Draws, pixels: Tensor) -> MicroBatch:
    """The micro-batch of these draws and the pixels (n, C, H, W) of their images.

    Waits for no device, unless a pairing reads the images back.
    """
    device, config, dataset = task.world.device, task.config, task.dataset
    images = task.images(draws)
    x0, told = _augmented(task, draws, to_unit(send(pixels, device)))
    labels = None
    if dataset.labels is not None:
        labels = dataset.labels[images].masked_fill(draws.label_drop < config.label_dropout, -1)
    noise = draws.noise if config.pairing is None else config.pairing.paired(x0, draws.noise, config.slice)
    return MicroBatch(
        draws,
        images,
        x0.to(memory_format=task.memory),
        send(noise, device).to(memory_format=task.memory),
        Cond(
            None if labels is None else send(labels, device),
            task.told(images, draws.scalars),
            None if told is None else told.float(),
        ),
        None if draws.extra is None else send(draws.extra, device),
    )


def _augmented(task: Task, draws: Draws, x0: Tensor) -> tuple[Tensor, Tensor | None]:
    """(states (n, *) of the images after flips and augmentation, what the network is told of it)."""
    augment, told = task.config.augment, None
    if not task.flip and augment is None:
        return x0, told
    images = task.representation.decode(x0)
    if task.flip:
        mirrored = send(draws.flip < 0.5, x0.device)[:, None, None, None]
        images = torch.where(mirrored, images.flip(3), images)
    if augment is not None:
        images, told = augment.apply(images, draws.augment)
    return task.representation.encode(images), told


def micro_batches(task: Task, first: int) -> Iterator[MicroBatch | Question]:
    """What the network is asked by every micro-batch of this process, in order, from step `first` on, without end.

    The micro-batch itself where importance sampling moves its levels by what was learned until then.
    """
    plan, dataset = task.plan(), task.dataset

    def make(given: tuple[tuple[int, range], Tensor | SnrkitError | None]) -> MicroBatch | Question:
        (step, slices), pixels = given
        if isinstance(pixels, SnrkitError):  # of the process that was to read them
            raise pixels
        draws = plan.draw(step, slices)
        batch = micro_batch(task, draws, task.pixels(draws) if pixels is None else pixels)
        moved = task.config.importance is not None
        return batch if moved else batch.ask(task)

    def indices() -> Iterator[Sequence[int]]:
        for step, slices in _keys(task, first):
            yield [task.train[p] for p in plan.positions(step, slices).tolist()]

    read: Iterator[Tensor | SnrkitError | None] = repeat(None)
    if dataset.streams and task.workers:
        read = read_by_processes(dataset, indices(), task.workers)
    return ahead(make, zip(_keys(task, first), read, strict=False), threads(task.world.size))


def _keys(task: Task, first: int) -> Iterator[tuple[int, range]]:
    """(step, slices) of every micro-batch of this process."""
    per_micro = slices_of_a_micro_batch(task)
    for step in count(first):
        for micro in range(task.config.accumulate):
            begin = first_slice(task, micro)
            yield step, range(begin, begin + per_micro)


def slices_of_a_micro_batch(task: Task) -> int:
    """How many slices one process takes at once."""
    return task.config.batch // (task.config.slice * task.world.size * task.config.accumulate)


def first_slice(task: Task, micro: int) -> int:
    """The first slice of this process's micro-batch `micro` of any step."""
    return (micro * task.world.size + task.world.rank) * slices_of_a_micro_batch(task)
