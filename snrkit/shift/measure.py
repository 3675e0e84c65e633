"""How far the states of a sampler are from the level they are told, with a null from held-out images.

At every level that a sampler visits three arms of states are put to the same network, with the same labels: the
sampler's own (reverse), held-out images (forward), and training images (train), noised to that level. The readings,
each with a known null:

    norm gap         ln of mean |eps_hat|^2, reverse over forward; its null is train over forward, 0 for a network that
                     does not tell training images from others
    variance ratio   Var[x]/(alpha^2 Var[x0] + sigma^2), Var over images, averaged over dimensions: of all pixels, of
                     each Haar band, of each ring of frequencies; Var[x0] is that of the training split. Its null is the
                     forward arm's, 1 up to sampling error
    nearest level    by how many nats of logsnr the forward level at which the states are most likely lies above their
                     nominal one (nearest.py); its null is the forward arm's, and it is read only where that is near 0
    x0 norm          root mean square of x0_hat, reverse and forward, and of the true x0 of the held-out images

Where a grid follows each image's own spectrum, image j of every arm stands at levels made for the j-th held-out image
(the train arm at its own), and the nominal level of a step is that of the mean spectrum. Forward states then have a
variance ratio other than 1 and read another level than the nominal one: what counts is the difference to the null, and
the nearest level is hardly ever read.

Differences of logsnr are negative where a state is noisier than told. Intervals are percentile bootstrap over images;
forward samples of one image with several noises are resampled together. A sampler without bias reads the nulls.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.frequency import View
from snrkit.diffusion.level import Level
from snrkit.shift.arms import Arm
from snrkit.shift.bootstrap import Bootstrap, Curve, Number
from snrkit.shift.nearest import GaussianFit, leak, nearest_shift
from snrkit.shift.states import StateReader, Watch

BLIND = 0.1  # nats


@dataclass(frozen=True, slots=True)
class Shift:
    """The measurement of one sampler. Every list has one entry a level, in the order of sampling."""

    logsnr: list[float]
    images: int
    rms_reverse: Curve
    rms_forward: Curve
    rms_train: Curve
    norm_reverse: list[float]  # mean L2 norm of eps_hat
    norm_forward: list[float]
    norm_gap: Curve  # nats
    norm_gap_null: Curve
    variance_ratio: Curve
    variance_ratio_null: Curve
    part_ratio: dict[str, Curve]  # by Haar band and by ring
    part_ratio_null: dict[str, Curve]
    nearest: Curve  # nats of logsnr
    nearest_null: Curve
    nearest_levels: int  # at how many levels it can be read
    x0_rms_reverse: Curve
    x0_rms_forward: Curve
    x0_rms_true: Number
    mean_norm_gap: Number
    mean_norm_gap_null: Number
    mean_log_variance_ratio: Number
    mean_log_variance_ratio_null: Number
    mean_nearest: Number
    mean_nearest_null: Number

    def __post_init__(self) -> None:
        curves = [getattr(self, name) for name in self.__dataclass_fields__]
        found = [
            *(c for c in curves if isinstance(c, Curve)),
            *self.part_ratio.values(),
            *self.part_ratio_null.values(),
        ]
        if any(len(part) != len(self.logsnr) for curve in found for part in (curve.value, curve.low, curve.high)):
            raise ValueError("has readings of another number of levels")

    def headline(self) -> tuple[Number, ...]:
        """Norm gap, its null, ln variance ratio, its null: means over levels."""
        return (
            self.mean_norm_gap,
            self.mean_norm_gap_null,
            self.mean_log_variance_ratio,
            self.mean_log_variance_ratio_null,
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of the images: Var[x0] of the training split by part of each view, its spectrum, and E|x0|^2."""

    views: Sequence[tuple[View, Tensor]]  # each with Var[x0] (G,) of its parts
    spectrum: GaussianFit
    true_square: Tensor  # (n,) mean over dimensions of x0^2 of the forward arm's images

    def reader(self, levels: Sequence[Level], watches: Mapping[str, Watch]) -> StateReader:
        """What is read of states at nominal `levels`: variances by part, likelihoods, and what probes ask for."""
        return StateReader(levels, [view for view, _ in self.views], self.spectrum, watches)

    def pixel_reader(self, levels: Sequence[Level]) -> StateReader:
        """The variance of all pixels alone."""
        return StateReader(levels, [self.views[0][0]])


@dataclass(frozen=True, slots=True)
class Readings:
    """What the arms say under every row of bootstrap weights, the sample's own first: (L, 1 + R) each."""

    squares: Mapping[str, Tensor]  # E|eps_hat|^2 of each arm
    x0: Mapping[str, Tensor]  # root mean square of x0_hat
    ratios: Mapping[
        str, Mapping[str, Tensor]
    ]  # variance over its nominal value by part, of the reverse and forward arm
    nearest: Tensor
    nearest_null: Tensor
    x0_true: Tensor  # (1 + R,)

    @property
    def norm_gap(self) -> Tensor:
        """ln of E|eps_hat|^2 in the reverse arm over that in the forward arm."""
        return (self.squares["reverse"] / self.squares["forward"]).log()

    @property
    def norm_gap_null(self) -> Tensor:
        """The same of training images."""
        return (self.squares["train"] / self.squares["forward"]).log()

    def means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(reading, null), each (1 + R,), of the three means over levels."""
        whole = [self.ratios[arm]["all"].log().mean(0) for arm in ("reverse", "forward")]
        return {
            "mean_norm_gap": (self.norm_gap.mean(0), self.norm_gap_null.mean(0)),
            "mean_log_variance_ratio": (whole[0], whole[1]),
            "mean_nearest": (self.nearest.nanmean(0), self.nearest_null.nanmean(0)),
        }

    def sizes(self) -> dict[str, Tensor]:
        """Mean squares (1 + R,) over levels of what each reading has beyond its null, with their own noise taken out.

        The norm gap itself, whose null is 0 on held-out images (that of training images only says how much the network
        remembers); ln variance ratio and nearest level less their nulls. NaN where nothing can be read. Two samplers
        that are measured on the same seeds and levels share their resamples, so rows may be subtracted.
        """
        ratio = self.ratios["reverse"]["all"].log() - self.ratios["forward"]["all"].log()
        readings = {"norm_gap": self.norm_gap, "log_variance_ratio": ratio, "nearest": self.nearest - self.nearest_null}
        return {name: size(values) for name, values in readings.items()}


def size(excess: Tensor) -> Tensor:
    """Mean squares (1 + R,) over levels of an excess (L, 1 + R), unbiased in every column; NaN levels are left out.

    The square of a reading with noise of variance n is n too large, and n more in a resample.
    """
    seen = excess[~excess[:, 0].isnan()]
    if not len(seen):
        return torch.full_like(excess[0], torch.nan)
    noise = seen[:, 1:].var(1, correction=1)
    bias = torch.cat([noise[:, None], (2 * noise)[:, None].expand(-1, seen.shape[1] - 1)], 1)
    return (seen.square() - bias).mean(0)


def read(
    reverse: Arm, forward: Arm, train: Arm, levels: Sequence[Level], reference: Reference, bootstrap: Bootstrap
) -> Readings:
    """All readings of the three arms, resampled."""
    arms = {"reverse": reverse, "forward": forward, "train": train}
    weights = {name: bootstrap.weights(arm.groups, number) for number, (name, arm) in enumerate(arms.items())}
    two = ("reverse", "forward")
    nearest, nearest_null = _nearest((reverse, forward), levels, reference, (weights["reverse"], weights["forward"]))
    return Readings(
        {name: arm.eps_square @ weights[name].T for name, arm in arms.items()},
        {name: (arms[name].x0_square @ weights[name].T).sqrt() for name in two},
        {name: part_ratios(arms[name], levels, reference, weights[name]) for name in two},
        nearest,
        nearest_null,
        (weights["forward"] @ reference.true_square).sqrt(),
    )


def compare_arms(
    reverse: Arm, forward: Arm, train: Arm, levels: Sequence[Level], reference: Reference, bootstrap: Bootstrap
) -> Shift:
    """All readings of the three arms, with intervals."""
    return summarise(read(reverse, forward, train, levels, reference, bootstrap), (reverse, forward), levels, bootstrap)


def summarise(found: Readings, arms: tuple[Arm, Arm], levels: Sequence[Level], bootstrap: Bootstrap) -> Shift:
    """The readings with their intervals; `arms`: the reverse and the forward one."""
    b, squares = bootstrap, found.squares
    parts = {name: {k: b.curve(v) for k, v in of.items() if k != "all"} for name, of in found.ratios.items()}
    means = {name: (b.number(reading), b.number(null)) for name, (reading, null) in found.means().items()}
    return Shift(
        logsnr=[float(place.logsnr) for place in levels],
        images=arms[0].eps_square.shape[1],
        rms_reverse=b.curve(squares["reverse"].sqrt()),
        rms_forward=b.curve(squares["forward"].sqrt()),
        rms_train=b.curve(squares["train"].sqrt()),
        norm_reverse=_norms(arms[0]),
        norm_forward=_norms(arms[1]),
        norm_gap=b.curve(found.norm_gap),
        norm_gap_null=b.curve(found.norm_gap_null),
        variance_ratio=b.curve(found.ratios["reverse"]["all"]),
        variance_ratio_null=b.curve(found.ratios["forward"]["all"]),
        part_ratio=parts["reverse"],
        part_ratio_null=parts["forward"],
        nearest=b.curve(found.nearest),
        nearest_null=b.curve(found.nearest_null),
        nearest_levels=int((~found.nearest_null[:, 0].isnan()).sum()),
        x0_rms_reverse=b.curve(found.x0["reverse"]),
        x0_rms_forward=b.curve(found.x0["forward"]),
        x0_rms_true=b.number(found.x0_true),
        mean_norm_gap=means["mean_norm_gap"][0],
        mean_norm_gap_null=means["mean_norm_gap"][1],
        mean_log_variance_ratio=means["mean_log_variance_ratio"][0],
        mean_log_variance_ratio_null=means["mean_log_variance_ratio"][1],
        mean_nearest=means["mean_nearest"][0],
        mean_nearest_null=means["mean_nearest"][1],
    )


def _nearest(
    arms: tuple[Arm, Arm], levels: Sequence[Level], reference: Reference, weights: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Nearest levels (L, 1 + R) of the reverse and of the forward arm, NaN where they cannot be read."""
    found = [nearest_shift(arm.of_states.misfits, w) for arm, w in zip(arms, weights, strict=True)]
    seen = readable(found[1], levels, reference.spectrum)[:, None]
    return found[0].masked_fill(~seen, torch.nan), found[1].masked_fill(~seen, torch.nan)


def readable(forward: Tensor, levels: Sequence[Level], spectrum: GaussianFit) -> Tensor:
    """(L,) whether the nearest level can be read there, decided by the forward arm and the data alone.

    So all samplers of a grid are read at the same levels. Left out are levels where an error of 1 % in the variance of
    the data would read more than .01 nats, where forward samples are too few to say, and where they do not read their
    own level, as the Gaussian fit is wrong there.
    """
    spread = forward[:, 1:].std(1)
    return (leak(levels, spectrum) <= 1) & (spread <= BLIND) & (forward[:, 0].abs() <= BLIND)


def part_ratios(arm: Arm, levels: Sequence[Level], reference: Reference, weights: Tensor) -> Mapping[str, Tensor]:
    """Variance over its nominal value (L, 1 + R), for every part that was read."""
    names = [name for view, _ in reference.views for name in view.names]
    known = torch.cat([of_parts for _, of_parts in reference.views])
    nominal = torch.stack([level.alpha**2 * known + level.sigma**2 for level in levels])[:, None]
    found = arm.of_states.deviations.variance(weights)
    count = found.shape[-1]
    return dict(zip(names[:count], (found / nominal[..., :count]).unbind(-1), strict=True))


def pixel_ratio(arm: Arm, levels: Sequence[Level], reference: Reference, weights: Tensor) -> Tensor:
    """Variance over its nominal value (L, 1 + R), of all pixels alone."""
    return part_ratios(arm, levels, reference, weights)["all"]


def _norms(arm: Arm) -> list[float]:
    return [float(v) for v in (arm.eps_square * math.prod(arm.shape)).sqrt().mean(1)]
