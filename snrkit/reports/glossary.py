"""What the field's names mean, said once.

TERMS are the names of results: pages underline each where it stands and say it on hover or focus. BASICS are those of
files, commands and papers, which no page of results needs. The documentation's glossary is made of both.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Term:
    """A name, how else it is written, and what it means."""

    name: str
    meaning: str
    also: tuple[str, ...] = ()
    alone: bool = False  # whether it is meant only where it is the whole text, as at the head of a column

    @property
    def anchor(self) -> str:
        """What a page calls its entry."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower().replace("∞", "-infinity")).strip("-")


TERMS = (
    Term("told", "The noise level that the network is informed of, which while sampling need not be that of the state "
         "that it is shown."),
    Term("logsnr", "Logarithm of the signal-to-noise ratio, ln(alpha^2/sigma^2), in nats: pure noise at the left, the "
         "clean image at the right."),
    Term("null", "What the same instrument reads where there is no bias. A shift counts only where its interval lies "
         "beyond that of its null.", ("nulls",)),
    Term("norm gap", "ln of the mean square of the noise that the network finds in the sampler's states over that in "
         "held-out images of the same level. Above 0 it finds more noise than it is told.", ("norm gaps",)),
    Term("nats", "Natural logarithmic units: 0.01 nats is about one per cent."),
    Term("variance ratio", "Variance of the sampler's states over its nominal value alpha^2 Var[x0] + sigma^2; 1 where "
         "nothing is lost.", ("variance ratios",)),
    Term("nearest level", "The noise level at which a Gaussian fit of the data finds the states most likely, less the "
         "nominal one; negative where states are noisier than told."),
    Term("held-out", "Of images that the network was not trained on."),
    Term("NFE", "Number of function evaluations: calls of the network for one image."),
    Term("FD", "Frechet distance between the features of samples and of training images; smaller is nearer. Called FID "
         "on Inception's features only.", ("FID",)),
    Term("KID", "Kernel distance between features, unbiased, and so at times below 0; smaller is nearer."),
    Term("IS", "Inception score: how sure and how diverse a classifier finds the images; larger is better."),
    Term("FD∞", "FD extrapolated to infinitely many images.", ("FID∞", "FWD∞")),
    Term("SW2^2", "Sliced Wasserstein-2 distance between features, squared and extrapolated; smaller is nearer."),
    Term("precision", "Share of samples that lie where training images do.", alone=True),
    Term("recall", "Share of training images that lie where samples do.", alone=True),
    Term("DCW", "Differential correction in wavelet bands (Yu et al. 2026): moves the state away from the predicted "
         "image after each step.", ("dcw",)),
    Term("rms to the flow", "Root mean square distance between a sampler's images and those that the exact flow of the "
         "same network makes from the same first states."),
    Term("flow", "The ordinary differential equation of the network, solved finely from the same first states."),
    Term("overhead", "Time for an image beside that of the base."),
    Term("paired", "Both members of a difference are made from the same seeds, so that what they share cancels."),
    Term("Haar band", "A quarter of an image's Haar wavelet coefficients: coarse structure (low) or edges along one "
         "direction."),
)  # fmt: skip

BASICS = (
    Term("alpha, sigma", "How much of the clean image and of the noise a state holds: x = alpha x0 + sigma eps."),
    Term("base", "The sampler that a row of a table is compared with: by default the same solver and grid without "
         "corrections, at the same NFE, and of a row without corrections the first such row at its NFE."),
    Term("certificate", "The answer of `snrkit certify` about one sampler of one model: the recipe to use, or the "
         "advice to leave it as it is, with the numbers behind it."),
    Term("correction", "A change of a sampler that is meant to remove the shift, such as DCW, epsilon scaling or time "
         "shift. At its neutral value it changes no bit."),
    Term("denoiser", "A network together with its process and target: asked about a state at a level, it answers "
         "x0 and eps."),
    Term("eps", "Noise of variance 1; also the network's prediction of it."),
    Term("evaluation", "One call of the network."),
    Term("exposure bias", "Another name for the shift: while sampling, a network is exposed to states that it never "
         "met in training. Also SNR-t bias, noise shift."),
    Term("grid", "The levels that a sampler visits, from noise to image."),
    Term("guard", "The test that every fitted coefficient must pass, on first states that it was not fitted on, before "
         "it is used."),
    Term("guidance", "Moving the prediction away from that of a weaker model or question: without the label (cfg, "
         "fdg, apg, cfg_zero_star), without the level (noise awareness), without sight of other "
         "tokens (perturbed_attention), or of another network (autoguidance)."),
    Term("level", "How much noise a state holds, written as alpha, sigma and logsnr."),
    Term("neutral", "The value of a coefficient at which a correction does nothing."),
    Term("prediction", "What a denoiser says of a state: x0 and eps."),
    Term("process", "How noise is added in training: EDM, DDPM, flow or VP."),
    Term("probe", "A further measurement that `measure-shift` makes where `shift.probes` names it."),
    Term("range", "A set of consecutive seeds. Scores are computed on several disjoint ranges, and the spread between "
         "them gives the interval."),
    Term("run", "The directory that holds all results of one experiment, such as runs/mine."),
    Term("sampler", "A grid, a solver and corrections: one way to make images with a model."),
    Term("seed", "The number that decides the noise, and the label, of one image."),
    Term("shift", "How far the level of a sampler's states is from the level that the network is told."),
    Term("solver", "The rule of one step from a level to the next, such as Euler (DDIM), Heun or DPM-Solver++."),
    Term("state", "The noisy image x at some level, while it is made."),
    Term("target", "What the network was trained to predict: x0, eps, v, the flow's velocity or the score."),
    Term("weighting", "How much each level counts in the training loss."),
    Term("x0", "The clean image; also the prediction of it, x0_hat."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a sentence; `term` where it is a name that the glossary has."""

    text: str
    term: Term | None = None


@cache
def _pattern() -> re.Pattern[str]:
    words = sorted((word for term in TERMS for word in (term.name, *term.also)), key=len, reverse=True)
    return re.compile(rf"(?<![\w∞-])({'|'.join(map(re.escape, words))})(?![\w∞^])")


@cache
def _by_word() -> dict[str, Term]:
    return {word: term for term in TERMS for word in (term.name, *term.also)}


def pieces(text: str) -> Iterator[Piece]:
    """A text cut at the names that the glossary has, each at its first occurrence."""
    seen: set[str] = set()
    for part in _pattern().split(text):
        term = _by_word().get(part)
        fresh = term is not None and term.name not in seen and (part == text or not term.alone)
        if term is not None:
            seen.add(term.name)
        yield Piece(part, term if fresh else None)
