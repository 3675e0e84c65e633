"""What the field's names mean, said once: pages underline each where it stands and say it on hover or focus."""

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
