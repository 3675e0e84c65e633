"""Amplification: how much of a small error, added to the state at one level, is left in the image.

A trajectory is run twice with the same noise, once with an error of known size added where step i begins; the gain is
the root mean square of the difference of the images over that of the error. Errors are white, or confined to the low or
the high Haar bands. What the reading is compared with is Gaussian data of the training split's covariance (within
classes, where the network knows them), mode by mode: the exact flow has the gain sqrt(v/(alpha^2 v + sigma^2)) from
(alpha, sigma) to the image, the exact reverse chain with all noise renewed alpha v/(alpha^2 v + sigma^2).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.streams import PERTURBATION
from snrkit.base.transfer import send
from snrkit.base.value import MOST_HELD
from snrkit.base.wavelet import low_part
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.sample import sample
from snrkit.sampling.step import Step
from snrkit.shift.bootstrap import OF_GAIN, Bootstrap, Curve
from snrkit.shift.drawing import draw_curve, finite_only, png
from snrkit.shift.probe import ProbeValue, Sizes, Specimen

SIZE = 1e-3  # of the error, as a share of the state's nominal standard deviation
LARGEST_COVARIANCE = 4096  # dimensions
COVARIANCE_BYTES = 2 * 8  # of a number in an image where a covariance is taken


@dataclass(frozen=True, slots=True)
class Amplification:
    """Gains by part, one entry a level."""

    logsnr: list[float]
    images: int
    gain: dict[str, Curve]
    gaussian: dict[str, list[float]]  # empty for solvers that renew a part of the noise


@dataclass(frozen=True, slots=True)
class Nudge:
    """A correction of state that adds `error` where step `index` begins."""

    index: int
    error: Tensor

    def after(self, step: Step) -> Tensor:
        """x_next, moved if the next step is the one."""
        return step.x_next + self.error if step.position.index + 1 == self.index else step.x_next


Walk = Callable[[Tensor, Sequence[Nudge]], Iterable[Step]]
"""Runs the sampler with the same noise every time: from the first state plus an error, with further corrections."""


def errors(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """White errors (n, C, H, W) of unit variance, and their low and high shares (Haar)."""
    white = torch.from_numpy(PERTURBATION.open(seed).standard_normal(shape))
    if min(shape[2:]) < 2:
        return {"all": white}
    low = low_part(white)
    return {"all": white, "low": low, "high": white - low}


@torch.no_grad()
def measure_gain(
    walk: Walk, levels: Sequence[Level], shape: tuple[int, ...], spread: Tensor, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Squares of difference and of error by part: (L, n, 2). `spread` (L,): the states' nominal standard deviation."""
    plain = _last(walk(torch.zeros((), device=device), ()))
    found: dict[str, Tensor] = {}
    for name, error in errors(shape, seed).items():
        rows = []
        for index in range(len(levels)):
            moved = send(SIZE * float(spread[index]) * error, device)
            steps = walk(moved, ()) if index == 0 else walk(torch.zeros_like(moved), (Nudge(index, moved),))
            difference = (_last(steps) - plain).flatten(1).square().mean(1)
            rows.append(torch.stack([difference, moved.flatten(1).square().mean(1)], 1))
        found[name] = torch.stack(rows).cpu()
    return found


def _last(steps: Iterable[Step]) -> Tensor:
    x: Tensor | None = None
    for step in steps:
        x = step.x_next
    assert x is not None
    return x.double()


@dataclass(frozen=True, slots=True)
class Modes:
    """Variances (D,) of the data's principal directions, and the share (D,) that each has in an error of a part."""

    variances: Tensor
    shares: dict[str, Tensor]


def modes(covariance: Tensor, shape: tuple[int, int, int]) -> Modes:
    """The modes of a covariance (D, D) of images (C, H, W)."""
    values, vectors = torch.linalg.eigh(covariance)
    directions = vectors.T.reshape(-1, *shape)
    shares = {"all": torch.full_like(values, 1 / len(values))}
    if min(shape[1:]) > 1:
        low = low_part(directions).flatten(1).square().sum(1)
        high = (directions - low_part(directions)).flatten(1).square().sum(1)
        shares |= {"low": low / low.sum(), "high": high / high.sum()}
    return Modes(values.clamp(min=0), shares)


def gaussian_gain(known: Modes, levels: Sequence[Level], renewed: bool) -> dict[str, list[float]]:
    """The exact gains (L,) by part, of the flow or of the chain that renews all noise."""
    v, found = known.variances, {}
    for name, share in known.shares.items():
        gains = []
        for level in levels:
            total = level.alpha**2 * v + level.sigma**2
            square = (level.alpha * v / total) ** 2 if renewed else v / total
            gains.append(float((share * square).sum().sqrt()))
        found[name] = gains
    return found


def read_gain(
    found: dict[str, Tensor], levels: Sequence[Level], gaussian: dict[str, list[float]], bootstrap: Bootstrap
) -> Amplification:
    """The gains with intervals, beside those of Gaussian data."""
    images = next(iter(found.values())).shape[1]
    weights = bootstrap.weights(torch.arange(images), OF_GAIN)
    gains = {
        name: bootstrap.curve(((squares[..., 0] @ weights.T) / (squares[..., 1] @ weights.T)).sqrt())
        for name, squares in found.items()
    }
    return Amplification([float(level.logsnr) for level in levels], images, gains, gaussian)


def without_autocast(denoise: Denoiser) -> Denoiser:
    """The model without autocast."""
    return replace(denoise, autocast=None) if isinstance(denoise, NetworkDenoiser) else denoise


class AmplificationProbe(ProbeValue):
    """How much of a small error is left in the image; without autocast, as bf16 would round the error away."""

    kind: Literal["amplification"] = "amplification"
    images: int = Field(default=8, ge=2, le=MOST_HELD, description="images behind the gains (3 L trajectories each)")

    record: ClassVar[type[Amplification]] = Amplification
    columns: ClassVar[tuple[str, ...]] = ("gain of an error over Gaussian data's, most",)
    guide: ClassVar[str] = (
        "Gain: the largest ratio, over levels, of what is left of a small error in the image to what Gaussian data "
        "would keep."
    )

    def memory(self, sizes: Sizes) -> int:
        """Of the covariance, where one is taken."""
        return COVARIANCE_BYTES * sizes.images * sizes.dimensions if sizes.dimensions <= LARGEST_COVARIANCE else 0

    def read(self, specimen: Specimen) -> Amplification:
        """Three errors at every level, on the first trajectories."""
        s, seeds, levels = specimen, specimen.seeds[: self.images], specimen.levels
        shape = (len(seeds), *s.forward.shape)
        variance = s.reference.spectrum.variance.mean()
        spread = torch.stack([(level.alpha**2 * variance + level.sigma**2).sqrt() for level in levels])
        found = measure_gain(_walk(s, seeds), levels, shape, spread, s.seed, s.device)
        return read_gain(found, levels, _gaussian(s), s.bootstrap)

    def cells(self, record: Amplification) -> tuple[str, ...]:
        """The largest ratio of a gain to that of Gaussian data, where the latter is known."""
        if "all" not in record.gaussian:
            return ("-",)
        pairs = zip(record.gain["all"].value, record.gaussian["all"], strict=True)
        return (f"{max(gain / gaussian for gain, gaussian in pairs):.2f}",)

    def picture(self, record: Amplification, title: str) -> bytes:
        """The gains, and dotted those of Gaussian data."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for index, (name, curve) in enumerate(record.gain.items()):
            draw_curve(axes, record.logsnr, curve, f"C{index}", name)
            if name in record.gaussian:
                axes.plot(
                    finite_only(record.logsnr), record.gaussian[name], color=f"C{index}", linestyle=":", linewidth=1
                )
        axes.set(xlabel="logsnr of the error", ylabel="gain in the image (dotted: Gaussian data)", yscale="log")
        axes.legend(fontsize=7)
        return png(figure, title)


def _walk(s: Specimen, seeds: Sequence[int]) -> Walk:
    precise = without_autocast(s.denoise)

    def walk(error: Tensor, nudges: Sequence[Nudge]) -> Iterable[Step]:
        own, x, cond, noise = s.equipment.begin(s.sampler, s.ready, seeds)
        corrections = (*own.corrections, *nudges)
        return sample(precise, own.solver, own.levels, x + error, corrections=corrections, noise=noise, cond=cond)

    return walk


def _gaussian(s: Specimen) -> dict[str, list[float]]:
    """The gains of Gaussian data as the training split; none where they are not known, and for large images."""
    share = s.ready.solver.renews
    covariance = s.equipment.covariance if share in (0.0, 1.0) else None
    if covariance is None:
        return {}
    known = s.equipment.once("modes", lambda: modes(covariance, s.forward.shape))
    return gaussian_gain(known, s.levels, share == 1.0)
