"""The part of `snrkit analyze` that needs a trained run: errors, information, gradients and the bound, level by level.

On held-out images. Each curve lies beside its closed form for Gaussian data of the data set's spectrum (gradients: of
its variance), with the rank correlation of the two. Where the network takes a label it is told it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from snrkit.analysis.bound import NATS_A_BIT, denoising_nats, prior_nats, reconstruction_nats
from snrkit.analysis.closed_form import Spectrum, difficulty, output_scale, output_signal_to_noise, ring_difficulty
from snrkit.analysis.empirical import (
    Batch,
    Gradients,
    gradients,
    guesses,
    has_density,
    information,
    level_of_share,
    noised,
    rank_correlation,
    symmetric_levels,
    x0_errors,
)
from snrkit.base.charts import Chart
from snrkit.base.streams import (
    ANALYSIS_ERRORS,
    ANALYSIS_EXCESS,
    ANALYSIS_GRADIENTS,
    ANALYSIS_HELD,
    ANALYSIS_LABELS,
    ANALYSIS_RECONSTRUCTION,
    ANALYSIS_TRAIN,
)
from snrkit.commands.progress import EVALUATIONS, bar, follow
from snrkit.data.dataset import chunks, to_bytes, to_unit
from snrkit.diffusion.level import level_of
from snrkit.diffusion.prediction import X0, Eps, V
from snrkit.diffusion.process import Process
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.models import TrainedHere, fill
from snrkit.experiment.opening import Model, Setting, open_network, open_task
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import Extractor, making_extractor
from snrkit.networks import output_layer, output_weights
from snrkit.training.objective import Objective

LEVELS, IMAGES, BATCH = 33, 512, 128
GRADIENT_LEVELS, GRADIENT_IMAGES = 13, 48
SHARES = (0.05, 0.5, 0.95)
MEASURED, GRADED = "What the run says of the data", "Its gradients"


@dataclass(frozen=True, slots=True)
class Dissection:
    """Charts, and what stands below them, by name."""

    charts: dict[str, list[Chart]]
    facts: dict[str, str]


class Noise:
    """Standard normal noise by a stream of its own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, x0: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(tuple(x0.shape), dtype="float32")).to(x0)


def analyze_run(experiment: Experiment, setting: Setting, model: Model, spectrum: Spectrum) -> Dissection:
    """All that the run's weights and held-out images say."""
    process, dataset = setting.parts.process, setting.data.dataset
    logsnr = symmetric_levels(process, LEVELS)
    batches = held_out_batches(setting)
    with torch.no_grad(), bar("errors of the run", _evaluations(logsnr, batches), unit=EVALUATIONS):
        errors = x0_errors(model.denoiser, process, batches, logsnr, Noise(ANALYSIS_ERRORS.open(setting.seed)))
    mse = errors.mean(1)
    known, facts = _information_charts(spectrum, logsnr, mse)
    labelled = dataset.labels is not None
    gradient, more = _gradient_charts(experiment.training, setting, model, spectrum, batches)
    charts = {
        MEASURED: [_error_chart(spectrum, logsnr, errors), *known],
        GRADED: gradient,
    }
    if dataset.exact is not None and not labelled:
        with bar("excess errors", _evaluations(logsnr, batches), unit=EVALUATIONS):
            excess = _excess_chart(setting, model, batches, logsnr)
        charts[MEASURED].append(excess)
    charts[MEASURED] += _reading_charts(setting, experiment.metrics, model, batches, logsnr)
    told = {"Told beside the level": "the label: errors, information and bound are given it"} if labelled else {}
    return Dissection(charts, {**told, **facts, **more, **_bound_facts(process, spectrum, batches, logsnr, mse)})


def _evaluations(logsnr: Tensor, batches: Sequence[Batch]) -> int:
    """Of the network, of each image at each level."""
    return len(logsnr) * sum(len(x0) for x0, _ in batches)


def held_out_batches(setting: Setting) -> list[Batch]:
    """Up to IMAGES held-out images with their labels, on the device."""
    rows = ANALYSIS_HELD.open().permutation(setting.data.split.held)[:IMAGES].tolist()
    return [_batch(setting, run) for run in chunks(rows, BATCH)]


def _batch(setting: Setting, rows: Sequence[int]) -> Batch:
    device = setting.world.device
    return setting.data.dataset.x0(rows).to(device), setting.condition(torch.as_tensor(rows)).to(device)


def _error_chart(spectrum: Spectrum, logsnr: Tensor, errors: Tensor) -> Chart:
    level = level_of(logsnr, "vp")
    gaussian = ring_difficulty(level, X0(), spectrum).bayes_error
    half = 1.96 * errors.std(1) / math.sqrt(errors.shape[1])
    mse = errors.mean(1)
    curves = {
        "run, held-out": (logsnr, mse), "run, lower 95 %": (logsnr, (mse - half).clamp(min=1e-12)),
        "run, upper 95 %": (logsnr, mse + half), "Gaussian data of this spectrum": (logsnr, gaussian),
    }  # fmt: skip
    return Chart("run-error", "mean square error of x0, per dimension", "mse", curves, scale="log")


@torch.no_grad()
def _excess_chart(setting: Setting, model: Model, batches: list[Batch], logsnr: Tensor) -> Chart:
    """How far the run's x0 is from the exact denoiser's, where the data have one and the network takes no label."""
    process, noise = setting.parts.process, Noise(ANALYSIS_EXCESS.open())
    assert setting.data.dataset.exact is not None
    exact, found = setting.data.dataset.exact(process), []
    for value in logsnr:
        level, total = process.level(value), 0.0
        for _, x, guess in guesses(model.denoiser, level, batches, noise):
            total += float((guess - exact(x.double(), level).x0).double().square().flatten(1).mean(1).sum())
        found.append(total / sum(len(x0) for x0, _ in batches))
    curve = torch.tensor(found, dtype=torch.float64)
    return Chart("run-excess", "excess error: x0_hat less the exact one", "mean square",
                 {"x0": (logsnr, curve), "in eps: times snr": (logsnr, logsnr.exp() * curve)}, scale="log")  # fmt: skip


def _information_charts(
    spectrum: Spectrum, logsnr: Tensor, mse: Tensor
) -> tuple[list[Chart], dict[str, str]]:  # fmt: skip
    found, level = information(logsnr, mse), level_of(logsnr, "vp")
    dense = has_density(found)
    closed = {
        name: ring_difficulty(level, target, spectrum).information
        for name, target in (("x0", X0()), ("eps", Eps()), ("v", V()))
        if name == "x0" or dense
    }
    curves = {name: (logsnr, getattr(found, name)) for name in closed}
    curves |= {f"{name}, Gaussian": (logsnr, value) for name, value in closed.items()}
    gaussian = ring_difficulty(level, X0(), spectrum).bayes_error
    per_nat = {"run": (logsnr, found.density), "Gaussian": (logsnr, torch.exp(logsnr) * gaussian / 2)}
    places = ", ".join(f"{share:.0%} below {level_of_share(logsnr, found.density, share):.1f}" for share in SHARES)
    ranks, apart = rank_correlation(mse, gaussian), float((mse / gaussian).log().abs().mean())
    middle = f"{float(found.v[len(logsnr) // 2]):.4f}" if dense else (
        f"none: at logsnr {float(logsnr[-1]):.1f} the run's images are no density (snr times mse is "
        f"{2 * float(found.density[-1]):.3g} there, of a density 1)"
    )  # fmt: skip
    return [
        Chart("run-information", "information in x, by I-MMSE", "nats per dimension", curves),
        Chart("run-density", "information on x0 gained per nat of logsnr", "nats per nat and dimension", per_nat),
    ], {
        "Information on x0, by logsnr": places,
        "Rank correlation of mse with its closed form": f"{ranks:.3f}",
        "Mean |ln| of mse over its closed form": f"{apart:.3f}",
        "Information on v at logsnr 0, nats per dimension": middle,
    }  # fmt: skip


def _gradient_charts(
    training: TrainedHere, setting: Setting, model: Model, spectrum: Spectrum, batches: list[Batch]
) -> tuple[list[Chart], dict[str, str]]:  # fmt: skip
    """Gradients of single images' unit losses on F, in the weights of the output layer or of the last."""
    e, objective = setting.parts, open_task(training, setting).objective
    logsnr = symmetric_levels(e.process, GRADIENT_LEVELS)
    network, images = loaded_network(training, setting, model), gradient_images(setting)
    where = (
        "output layer" if output_layer(network) is not None else f"layer {output_weights(network)[0]}, the last made"
    )
    found, weights = list[Gradients](), output_weights(network)[1]
    with bar("gradients", len(logsnr), unit="levels") as progress:
        for value in logsnr.tolist():
            found.append(level_gradients(objective, network, images, value, weights))
            progress.advance(1)
    norms = torch.tensor([each.norm for each in found], dtype=torch.float64)
    ratios = torch.tensor([each.signal_to_noise for each in found], dtype=torch.float64)
    level, s = level_of(logsnr, e.process.scaling), setting.data.sigma_data
    scale = output_scale(level, e.target, e.precondition, e.process, s, spectrum.variance)
    untrained = output_signal_to_noise(
        level, e.target, e.precondition, e.process, s, spectrum.variance, spectrum.mean_square
    )
    weight = objective.weight(logsnr)
    weight = weight.where(weight.isfinite(), 0.0)  # over a density of 0, where training does not look
    weighted = weight / weight.max() * norms
    with torch.no_grad(), bar("errors at these levels", _evaluations(logsnr, batches), unit=EVALUATIONS):
        mse = x0_errors(model.denoiser, e.process, batches, logsnr, Noise(ANALYSIS_ERRORS.open(setting.seed))).mean(1)
    own = scale * (mse / difficulty(level, X0(), spectrum.variance).bayes_error).sqrt()  # one factor for both
    ranks, agreement = [rank_correlation(norms, each) for each in (scale, own)], rank_correlation(ratios, untrained)
    return [
        Chart("run-gradients", f"gradients of {GRADIENT_IMAGES} single images, {where}", "root mean square norm",
              {"unit loss on F": (logsnr, norms), "with this experiment's weight": (logsnr, weighted),
               "residual of F, Gaussian": (logsnr, scale), "residual of F, this run's": (logsnr, own)}, scale="log"),
        Chart("run-gsnr", "gradient signal to noise", "|mean|^2 over trace of covariance",
              {"run": (logsnr, ratios), "of an untrained network, given x": (logsnr, untrained)}, scale="log"),
    ], {
        "Rank correlation of gradient norm with the residual, Gaussian": f"{ranks[0]:.3f}",
        "Rank correlation of gradient norm with the residual, this run's": f"{ranks[1]:.3f}",
        "Rank correlation of gradient signal to noise with an untrained network's": f"{agreement:.3f}",
    }  # fmt: skip


def loaded_network(training: TrainedHere, setting: Setting, model: Model) -> nn.Module:
    """The raw network with the model's weights, its gradients on."""
    network = open_network(training, setting)
    fill(network, model.run, model.made_of)
    return network.to(setting.world.device).eval()


def gradient_images(setting: Setting) -> Batch:
    """GRADIENT_IMAGES training images with their labels, on the device."""
    return _batch(setting, ANALYSIS_TRAIN.open().permutation(setting.data.split.train)[:GRADIENT_IMAGES].tolist())


def level_gradients(
    objective: Objective, network: nn.Module, images: Batch, logsnr: float, weights: Sequence[nn.Parameter]
) -> Gradients:
    """Of unit losses on F at one level, of single images, in `weights` of the network."""
    x0, cond = images
    eps = Noise(ANALYSIS_GRADIENTS.open())(x0)
    level, untold = torch.full((1,), logsnr, dtype=torch.float64), torch.zeros(1, dtype=torch.bool)

    def loss(index: Tensor) -> Tensor:
        one = slice(int(index), int(index) + 1)
        return objective.output_error(network, x0[one], eps[one], level, untold, cond.at(one)).sum()

    return gradients(loss, len(x0), weights)


def _reading_charts(
    setting: Setting, metrics: MetricsConfig, model: Model, batches: list[Batch], logsnr: Tensor
) -> list[Chart]:
    """What a classifier sees of x0_hat, made without the label: how often that, how far its features are from x0's.

    None where there are no labels, or where the network cannot be asked without.
    """
    data, blindly = setting.data, setting.parts.network.conditioning.unlabelled
    if data.labelled.labels is None or data.dataset.labels is None or not blindly:
        return []
    config = metrics.model_copy(update={"features": "classifier"})
    extractor = follow(making_extractor(config, data.labelled, data.split, setting.world.device))
    labels = torch.cat([cond.labels.cpu() for _, cond in batches if cond.labels is not None])
    blind = [(x0, replace(cond, labels=torch.full((len(x0),), -1, device=x0.device))) for x0, cond in batches]
    own, plain = _read(extractor, [data.images(x0) for x0, _ in batches])
    apart = 2 * own.var(0).sum()  # between two images at random
    noise, right, distance = Noise(ANALYSIS_LABELS.open()), [], []
    with torch.no_grad(), bar("reading what it makes", _evaluations(logsnr, batches), unit=EVALUATIONS):
        for value in logsnr:
            made = guesses(model.denoiser, setting.parts.process.level(value), blind, noise)
            features, read = _read(extractor, [data.images(guess) for *_, guess in made])
            right.append((read == labels).double().mean())
            distance.append((features - own).square().sum(1).mean() / apart)
    share, told = torch.stack(right), torch.full((len(logsnr),), float((plain == labels).double().mean()))
    curves = {"x0_hat, label not told": (logsnr, share), "held-out images": (logsnr, told)}
    return [
        Chart("run-accuracy", "a classifier reads x0_hat", "share read right", curves),
        Chart("run-features", "how far x0_hat is from x0 in the classifier's features", "share of that of two images",
              {"x0_hat, label not told": (logsnr, torch.stack(distance))}),
    ]  # fmt: skip


def _read(extractor: Extractor, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(features (n, d) float64, the label read (n,)) of batches of images."""
    features, read = [], []
    for x0 in images:
        found, logits = extractor.run(to_bytes(x0.cpu()))
        assert logits is not None
        features.append(found.double().cpu())
        read.append(logits.argmax(1).cpu())
    return torch.cat(features), torch.cat(read)


def _bound_facts(
    process: Process, spectrum: Spectrum, batches: list[Batch], logsnr: Tensor, mse: Tensor
) -> dict[str, str]:  # fmt: skip
    """The three terms in bits per dimension, between the ends of the curve."""
    first, last = (process.level(logsnr[k]) for k in (0, -1))
    prior = float(prior_nats(first, process.scaling, spectrum.second_moment)) / NATS_A_BIT
    denoising = float(denoising_nats(logsnr, mse)) / NATS_A_BIT
    if not all(torch.equal(to_unit(to_bytes(x0.cpu())), x0.cpu()) for x0, _ in batches):
        return {"Bound, bits per dimension": f"prior {prior:.3g} + denoising {denoising:.3f}; no reconstruction term, "
                "as the images are not of 8 bits"}  # fmt: skip
    noise, parts = Noise(ANALYSIS_RECONSTRUCTION.open()), []
    for x0, _ in batches:
        parts.append(reconstruction_nats(noised(x0, last, noise).cpu(), x0.cpu(), last))
    rest = float(torch.stack(parts).mean()) / NATS_A_BIT
    return {
        "Bound, bits per dimension": f"prior {prior:.3g} + denoising {denoising:.3f} + reconstruction {rest:.3f} = "
        f"{prior + denoising + rest:.3f}, between logsnr {float(logsnr[0]):.1f} and {float(logsnr[-1]):.1f}",
    }
