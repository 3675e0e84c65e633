"""Looks at a training from outside: the loss on held-out images, and the pairs that the network is shown."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snrkit.base.streams import HOLDOUT
from snrkit.base.transfer import send
from snrkit.data.dataset import chunks
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Cond
from snrkit.networks import Conditioning
from snrkit.training.batches import micro_batch
from snrkit.training.task import Task

HOLDOUT_IMAGES = 2048


@dataclass(frozen=True, slots=True)
class Pairs:
    """Training pairs as the network is given them: x (n, *) before c_in, made from x0 (n, *), told `level` (n,)."""

    x0: Tensor
    x: Tensor
    level: Level
    untold: int = 0  # pairs beside them that tell no level, or that of the clean image or of pure noise


@torch.no_grad()
def training_pairs(task: Task, pairs: int) -> Pairs:
    """At least `pairs` pairs of the first steps of training, fewer by the share that is told no level or pure noise."""
    plan, found, untold = task.plan(), [], 0
    for step in range(-(-pairs // task.config.batch)):
        draws = plan.draw(step, range(task.config.batch // task.config.slice))
        batch = micro_batch(task, draws, task.pixels(draws))
        pair = batch.ask(task).pair
        o, x, told = task.objective, pair.x.cpu(), task.objective.process.logsnr(pair.time.cpu().double())
        known = told.isfinite()
        untold += int((~known).sum())
        level = o.process.level(told[known])
        c_in = o.precondition.coefficients(level, o.target, o.process.scaling, o.sigma_data).c_in
        found.append((batch.x0.cpu()[known], x[known].double() / broadcast(c_in, x[known].double()), level.logsnr))
    x0, x, logsnr = (torch.cat(part) for part in zip(*found, strict=True))
    return Pairs(x0, x, task.objective.process.level(logsnr), untold)


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
    rng = HOLDOUT.open(task.seed)
    held = rng.permutation(task.held)[:HOLDOUT_IMAGES].tolist()  # shuffled: files often lie sorted by class
    was_training = network.training
    network.eval()
    u = (torch.from_numpy(rng.permutation(len(held))).double() + torch.from_numpy(rng.random(len(held)))) / len(held)
    objective = task.objective.of(torch.tensor(held))
    logsnr = objective.logsnr(u.clamp(2.0**-53, 1 - 2.0**-53))
    weights = torch.stack([objective.weight(logsnr), objective.eps_weight(logsnr)])
    noise = torch.from_numpy(rng.standard_normal((len(held), *task.dataset.shape), dtype="float32"))
    results, takes = [], Conditioning(augment=task.config.augment is not None)
    for run in chunks(range(len(held)), batch):
        rows, device = torch.as_tensor(run), task.world.device
        images = torch.tensor(held)[rows]
        labels = None if task.dataset.labels is None else send(task.dataset.labels[images], device)
        x0, told = send(task.dataset.x0(images.tolist()), device), torch.zeros(len(rows), dtype=torch.bool)
        cond = Cond(labels, task.told(images, torch.ones(len(rows))), takes.unaugmented(len(rows))).to(device)
        error = objective.output_error(network, x0, send(noise[rows], device), logsnr[rows], told, cond)
        results.append(error.double())
    network.train(was_training)
    order = logsnr.argsort()
    bins = torch.tensor_split(
        (weights * torch.cat(results).cpu())[:, order], min(task.config.holdout_bins, len(held)), 1
    )
    centres = torch.tensor_split(logsnr[order], len(bins))
    return HeldOutLoss(
        [float(c.mean()) for c in centres],
        [float(b[0].mean()) for b in bins],
        [float(b[1].mean()) for b in bins],
        len(held),
    )
