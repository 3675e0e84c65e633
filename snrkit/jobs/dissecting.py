"""The part of `snrkit analyze` that needs a trained run: errors, information, gradients and the bound, level by level.

On held-out images. Each curve lies beside its closed form for Gaussian data of the data set's spectrum, with the rank
correlation of the two.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snrkit.analysis.bound import NATS_A_BIT, denoising_nats, prior_nats, reconstruction_nats
from snrkit.analysis.closed_form import Spectrum, output_scale, ring_difficulty
from snrkit.analysis.empirical import (
    Batch,
    Gradients,
    gradients,
    information,
    level_of_share,
    rank_correlation,
    symmetric_levels,
    x0_errors,
)
from snrkit.charts import Chart
from snrkit.data.dataset import chunks, to_bytes, to_unit
from snrkit.jobs.opening import Model, Opened, load_weights, open_network, open_task
from snrkit.level import level_of
from snrkit.metrics.extractors import Extractor, make_extractor
from snrkit.prediction import X0, Cond, Eps, V
from snrkit.streams import ANALYSIS, stream

LEVELS, IMAGES, BATCH = 33, 512, 128
GRADIENT_LEVELS, GRADIENT_IMAGES = 13, 48
SHARES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Dissection:
    """Charts, and what stands below them, by name."""

    charts: dict[str, list[Chart]]
    facts: dict[str, str]


class Noise:
    """Standard normal noise by a stream of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = stream(ANALYSIS, seed)

    def __call__(self, x0: Tensor) -> Tensor:
        """Shaped as `x0`."""
        return torch.from_numpy(self.rng.standard_normal(tuple(x0.shape), dtype="float32")).to(x0)


def dissect(opened: Opened, model: Model, spectrum: Spectrum) -> Dissection:
    """All that the run's weights and held-out images say."""
    process = opened.experiment.process
    logsnr = symmetric_levels(process, LEVELS)
    batches = held_out_batches(opened)
    with torch.no_grad():
        errors = x0_errors(model.denoiser, process, batches, logsnr, Noise(opened.experiment.seed))
    mse = errors.mean(1)
    told, facts = _information_charts(opened, spectrum, logsnr, mse)
    gradient, more = _gradient_charts(opened, model, spectrum)
    charts = {
        "What the run says of the data": [_error_chart(spectrum, logsnr, errors), *told],
        "Its gradients": gradient,
    }
    if opened.dataset.exact is not None and opened.dataset.labels is None:
        excess = _excess_chart(opened, model, batches, logsnr)
        charts["What the run says of the data"].append(excess)
    seen = _accuracy_chart(opened, model, batches, logsnr)
    if seen is not None:
        charts["What the run says of the data"].append(seen)
    return Dissection(charts, {**facts, **more, **_bound_facts(opened, spectrum, batches, logsnr, mse)})


def held_out_batches(opened: Opened) -> list[Batch]:
    """Up to IMAGES held-out images with their labels, on the device."""
    device, dataset = opened.world.device, opened.dataset
    rows = stream(ANALYSIS, 1).permutation(opened.split.held)[:IMAGES].tolist()
    augment = opened.experiment.network.augment
    found = []
    for run in chunks(rows, BATCH):
        labels = None if dataset.labels is None else dataset.labels[torch.as_tensor(run)].to(device)
        extra = torch.zeros(len(run), 9, device=device) if augment else None
        found.append((dataset.x0(run).to(device), Cond(labels=labels, augment=extra)))
    return found


def _error_chart(spectrum: Spectrum, logsnr: Tensor, errors: Tensor) -> Chart:
    level = level_of(logsnr, "vp")
    gaussian = ring_difficulty(level, X0(), spectrum).bayes_error
    half = 1.96 * errors.std(1) / math.sqrt(errors.shape[1])
    mse = errors.mean(1)
    curves = {
        "run, held-out": (logsnr, mse), "less 1.96 standard errors": (logsnr, (mse - half).clamp(min=1e-12)),
        "and more": (logsnr, mse + half), "Gaussian data of this spectrum": (logsnr, gaussian),
    }  # fmt: skip
    return Chart("run-error", "mean square error of x0, per dimension", "mse", curves, scale="log")


@torch.no_grad()
def _excess_chart(opened: Opened, model: Model, batches: list[Batch], logsnr: Tensor) -> Chart:
    """How far the run's x0 is from the exact denoiser's, where the data have one and the network takes no label."""
    process, noise = opened.experiment.process, Noise(6)
    assert opened.dataset.exact is not None
    exact, found = opened.dataset.exact(process), []
    for value in logsnr:
        level, total = process.level(value), 0.0
        for x0, cond in batches:
            alpha, sigma = level.scales(x0)
            x = alpha * x0 + sigma * noise(x0)
            gap = model.denoiser(x, level, cond=cond).x0 - exact(x.double(), level).x0
            total += float(gap.double().square().flatten(1).mean(1).sum())
        found.append(total / sum(len(x0) for x0, _ in batches))
    curve = torch.tensor(found, dtype=torch.float64)
    return Chart("run-excess", "excess error: x0_hat less the exact one", "mean square",
                 {"x0": (logsnr, curve), "in eps: times snr": (logsnr, logsnr.exp() * curve)}, scale="log")  # fmt: skip


def _information_charts(
    opened: Opened, spectrum: Spectrum, logsnr: Tensor, mse: Tensor
) -> tuple[list[Chart], dict[str, str]]:  # fmt: skip
    found, level = information(logsnr, mse), level_of(logsnr, "vp")
    closed = {
        name: ring_difficulty(level, target, spectrum).information
        for name, target in (("x0", X0()), ("eps", Eps()), ("v", V()))
    }
    curves = {name: (logsnr, getattr(found, name)) for name in closed}
    curves |= {f"{name}, Gaussian": (logsnr, value) for name, value in closed.items()}
    gaussian = ring_difficulty(level, X0(), spectrum).bayes_error
    per_nat = {"run": (logsnr, found.density), "Gaussian": (logsnr, torch.exp(logsnr) * gaussian / 2)}
    places = ", ".join(f"{share:.0%} below {level_of_share(logsnr, found.density, share):.1f}" for share in SHARES)
    ranks = rank_correlation(mse, gaussian)
    return [
        Chart("run-information", "information in x, by I-MMSE", "nats per dimension", curves),
        Chart("run-density", "information on x0 gained per nat of logsnr", "nats per nat and dimension", per_nat),
    ], {
        "Information on x0, by logsnr": places,
        "Rank correlation of mse with its closed form": f"{ranks:.3f}",
        "Information on v at logsnr 0, nats per dimension": f"{float(found.v[len(logsnr) // 2]):.4f}",
    }  # fmt: skip


def _gradient_charts(opened: Opened, model: Model, spectrum: Spectrum) -> tuple[list[Chart], dict[str, str]]:
    """Gradients of single images' unit losses on F, in the weights of the output layer."""
    e = opened.experiment
    logsnr = symmetric_levels(e.process, GRADIENT_LEVELS)
    network = loaded_network(opened, model)
    found = [level_gradients(opened, network, float(value)) for value in logsnr]
    norms = torch.tensor([each.norm for each in found], dtype=torch.float64)
    ratios = torch.tensor([each.signal_to_noise for each in found], dtype=torch.float64)
    level, s = level_of(logsnr, e.process.scaling), opened.sigma_data
    scale = output_scale(level, e.target, e.precondition, e.process, s, spectrum.variance)
    weighted = relative_weight(opened, logsnr) * norms
    return [
        Chart("run-gradients", f"gradients of {GRADIENT_IMAGES} single images, output layer", "root mean square norm",
              {"unit loss on F": (logsnr, norms), "with this experiment's weight": (logsnr, weighted),
               "residual of F, Gaussian": (logsnr, scale)}, scale="log"),
        Chart("run-gsnr", "gradient signal to noise", "|mean|^2 over trace of covariance", {"run": (logsnr, ratios)}),
    ], {
        "Rank correlation of gradient norm with the closed residual": f"{rank_correlation(norms, scale):.3f}",
    }  # fmt: skip


def relative_weight(opened: Opened, logsnr: Tensor) -> Tensor:
    """The experiment's weight on F at levels (L,), over its largest."""
    weight = open_task(opened).objective.weight(logsnr)
    return weight / weight.max()


def loaded_network(opened: Opened, model: Model) -> nn.Module:
    """The raw network with the model's weights, its gradients on."""
    network = open_network(opened)
    network.load_state_dict(dict(load_weights(opened.experiment, model.run, model.images, model.weights).tensors))
    return network.to(opened.world.device).eval()


def level_gradients(opened: Opened, network: nn.Module, logsnr: float) -> Gradients:
    """Of unit losses on F at one level, on training images, in the weights of the output layer."""
    e, device = opened.experiment, opened.world.device
    layer = network.get_submodule(str(network.output))
    rows = stream(ANALYSIS, 2).permutation(opened.split.train)[:GRADIENT_IMAGES].tolist()
    x0 = opened.dataset.x0(rows).to(device)
    eps, objective = Noise(3)(x0), open_task(opened).objective
    labels = None if opened.dataset.labels is None else opened.dataset.labels[torch.as_tensor(rows)].to(device)
    level, untold = torch.full((1,), logsnr, dtype=torch.float64), torch.zeros(1, dtype=torch.bool)

    def loss(index: Tensor) -> Tensor:
        one = slice(int(index), int(index) + 1)
        augment = torch.zeros(1, 9, device=device) if e.network.augment else None
        cond = Cond(labels=None if labels is None else labels[one], augment=augment)
        return objective.output_error(network, x0[one], eps[one], level, untold, cond).sum()

    return gradients(loss, len(rows), list(layer.parameters()))


def _accuracy_chart(opened: Opened, model: Model, batches: list[Batch], logsnr: Tensor) -> Chart | None:
    """How often a classifier reads the right label off x0_hat, asked without the label; None without labels."""
    if opened.labelled.labels is None or opened.dataset.labels is None:
        return None
    config = opened.experiment.metrics.model_copy(update={"features": "classifier"})
    extractor = make_extractor(config, opened.labelled, opened.split, opened.world.device)
    noise, shares = Noise(4), []
    for value in logsnr:
        shares.append(_accuracy(opened, model, batches, float(value), extractor, noise))
    plain = sum(_right(extractor, x0, cond) for x0, cond in batches) / sum(len(x0) for x0, _ in batches)
    curve = torch.tensor(shares, dtype=torch.float64)
    curves = {"x0_hat, label not told": (logsnr, curve), "held-out images": (logsnr, torch.full_like(curve, plain))}
    return Chart("run-accuracy", "a classifier reads x0_hat", "share read right", curves)


@torch.no_grad()
def _accuracy(
    opened: Opened, model: Model, batches: list[Batch], logsnr: float, extractor: Extractor, noise: Noise
) -> float:  # fmt: skip
    process, right, total = opened.experiment.process, 0, 0
    level = process.level(torch.tensor(logsnr, dtype=torch.float64))
    for x0, cond in batches:
        assert cond.labels is not None
        alpha, sigma = level.scales(x0)
        blind = Cond(labels=torch.full_like(cond.labels, -1), augment=cond.augment)
        guess = model.denoiser(alpha * x0 + sigma * noise(x0), level, cond=blind).x0
        right += _right(extractor, guess, cond)
        total += len(x0)
    return right / total


def _right(extractor: Extractor, x0: Tensor, cond: Cond) -> int:
    _, logits = extractor.run(to_bytes(x0.cpu()))
    assert logits is not None
    assert cond.labels is not None
    return int((logits.argmax(1) == cond.labels.cpu()).sum())


def _bound_facts(
    opened: Opened, spectrum: Spectrum, batches: list[Batch], logsnr: Tensor, mse: Tensor
) -> dict[str, str]:  # fmt: skip
    """The three terms in bits per dimension, between the ends of the curve."""
    process = opened.experiment.process
    first, last = (process.level(logsnr[k]) for k in (0, -1))
    prior = float(prior_nats(first, process.scaling, spectrum.variance)) / NATS_A_BIT
    denoising = float(denoising_nats(logsnr, mse)) / NATS_A_BIT
    if not all(torch.equal(to_unit(to_bytes(x0)), x0) for x0, _ in batches):
        return {"Bound, bits per dimension": f"prior {prior:.3g} + denoising {denoising:.3f}; no reconstruction term, "
                "as the images are not of 8 bits"}  # fmt: skip
    noise, parts = Noise(5), []
    for x0, _ in batches:
        alpha, sigma = last.scales(x0)
        parts.append(reconstruction_nats((alpha * x0 + sigma * noise(x0)).cpu(), x0.cpu(), last))
    rest = float(torch.stack(parts).mean()) / NATS_A_BIT
    return {
        "Bound, bits per dimension": f"prior {prior:.3g} + denoising {denoising:.3f} + reconstruction {rest:.3f} = "
        f"{prior + denoising + rest:.3f}, between logsnr {float(logsnr[0]):.1f} and {float(logsnr[-1]):.1f}",
    }
