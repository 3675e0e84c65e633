"""Grids between spectral bounds and others, on Gaussians with the spectra of photographs, exact denoiser, DDIM.

python studies/spectral/gaussian.py > studies/spectral/gaussian.md      (seconds)
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from snrkit.analysis.gaussian_rings import euler_gain, spectral_distance
from snrkit.data.dataset import to_unit
from snrkit.data.photos import PHOTOGRAPHS, whole
from snrkit.diffusion.level import Level, level_of
from snrkit.diffusion.process import Vp
from snrkit.reports.blocks import Table, markdown
from snrkit.sampling.grid import Karras, UniformLogsnr
from snrkit.spectral.schedule import SpectralSchedule, power_spectra, ring_members

PICTURES = PHOTOGRAPHS[:8]  # without the textures
SIDES, STEPS = (64, 256), (8, 16, 32)
PROCESS = Vp(logsnr_min=-30, logsnr_max=30)
TEXT = """# Spectral grids on Gaussians with the spectra of photographs

Written by `studies/spectral/gaussian.py`. Eight photographs of scikit-image, each taken as a Gaussian of its own power
spectrum; the denoiser is exact, the sampler DDIM from sigma*n, and the last evaluation gives x0. Cells are relative
W2^2 and KL per frequency in nats, medians over the photographs, both without the mean brightness; columns are sides in
pixels and evaluations. Spectral grids are a reconstruction after Esteves & Makadia 2026 (kappa 0.01 to 100, `dc:
exclude` but for the last row).

{table}

W2^2 over that of spectral_mixed, least and most over the columns: cosine {cosine}, Karras between fixed bounds {fixed},
uniform logsnr between the image's own bounds {uniform}, Karras between them {karras}. Most of the gain is the bounds.
With the mean spectrum of the photographs in place of each one's own it is {mean} (KL {mean_kl}): an image's
own spectrum is not shown to matter.

What `dc: include` is for is not in the table: the variance of the mean brightness over the data's, spectral_mixed at
32 evaluations, median (least) of the photographs:
{brightness}.
"""


def cosine(steps: int, shift: float) -> Tensor:
    """logsnr of the cosine schedule, between -15 and 15 before the shift, at even t."""
    return Vp(logsnr_shift=shift).sweep(torch.linspace(1, 0, steps, dtype=torch.float64))


def rules(power: Tensor, mean: Tensor, side: int) -> dict[str, Callable[[int], Tensor]]:
    """logsnr (steps,), rising, of every grid for the image of spectrum `power` (K + 1,) among images of `mean`."""
    counts = ring_members(side).sum((0, 1))
    scale = float(((counts * power).sum() / counts.sum()).sqrt())
    low, high = (float(end) for end in SpectralSchedule(dc="exclude", logsnr_max=None).ends(power[None]))

    def own(grid: Karras | UniformLogsnr) -> Tensor:
        return torch.stack([level.logsnr for level in grid.levels(PROCESS)[:-1]])

    def spectral(kind: str, dc: str, of: Tensor = power) -> Callable[[int], Tensor]:
        schedule = SpectralSchedule.model_validate({"kind": kind, "dc": dc, "logsnr_max": None})
        return lambda n: schedule.logsnr(of[None], torch.linspace(1, 0, n, dtype=torch.float64))[0]

    bounds = {"sigma_min": math.exp(-high / 2), "sigma_max": math.exp(-low / 2)}
    return {
        "cosine, logsnr -15 to 15": lambda n: cosine(n, 0),
        "cosine shifted to 32x32": lambda n: cosine(n, 2 * math.log(32 / side)),
        "Karras, sigma over the image's own 0.004 to 160": lambda n: own(
            Karras(steps=n, sigma_min=0.004 * scale, sigma_max=160 * scale)
        ),
        "uniform logsnr, own bounds": lambda n: own(UniformLogsnr(steps=n, logsnr_min=low, logsnr_max=high)),
        "Karras, own bounds": lambda n: own(Karras(steps=n, **bounds)),
        "spectral_freq": spectral("spectral_freq", "exclude"),
        "spectral_power": spectral("spectral_power", "exclude"),
        "spectral_mixed": spectral("spectral_mixed", "exclude"),
        "spectral_mixed, mean spectrum": spectral("spectral_mixed", "exclude", mean),
        "spectral_mixed, dc: include": spectral("spectral_mixed", "include"),
    }


def walked(logsnr: Tensor) -> list[Level]:
    """Levels in vp, the clean one last."""
    return [*(level_of(value, "vp") for value in logsnr), level_of(torch.tensor(math.inf), "vp")]


def measured() -> dict[str, list[tuple[float, float]]]:
    """(W2^2, KL) of every grid, by side and steps, medians over the photographs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for side in SIDES:
        powers = [power_spectra(to_unit(whole(name, side))[None])[0] for name in PICTURES]
        counts, mean = ring_members(side).sum((0, 1))[1:], torch.stack(powers).log().mean(0).exp()
        for steps in STEPS:
            cells: dict[str, list[Tensor]] = {}
            for power in powers:
                for name, rule in rules(power, mean, side).items():
                    made = variances(walked(rule(steps)), power)[1:]
                    cells.setdefault(name, []).append(torch.stack(spectral_distance(made, power[1:], counts)))
            for name, each in cells.items():
                apart, kl = torch.stack(each).quantile(0.5, dim=0).tolist()
                found.setdefault(name, []).append((apart, kl))
    return found


def variances(levels: list[Level], power: Tensor) -> Tensor:
    """What is made of every ring (K + 1,)."""
    return (euler_gain(levels, power) * levels[0].sigma).square()


def brightness() -> str:
    """How much of the mean brightness' variance is made, by side and by what the bounds know of it."""
    t, found = torch.linspace(1, 0, 32, dtype=torch.float64), []
    for side in SIDES:
        powers = torch.stack([power_spectra(to_unit(whole(name, side))[None])[0] for name in PICTURES])
        each = []
        for dc in ("exclude", "include"):
            logsnr = SpectralSchedule.model_validate({"dc": dc, "logsnr_max": None}).logsnr(powers, t)
            shares = [variances(walked(row), power)[0] / power[0] for row, power in zip(logsnr, powers, strict=True)]
            each.append(f"{dc} {float(torch.stack(shares).quantile(0.5)):.2f} ({float(min(shares)):.2f})")
        found.append(f"{side} pixels {', '.join(each)}")
    return "; ".join(found)


def page(found: dict[str, list[tuple[float, float]]]) -> str:
    """The table, and its reading."""
    head: Sequence[str] = ["grid", *(f"{side}, {steps}" for side in SIDES for steps in STEPS)]
    lines = [[name, *(f"{apart:.4f} / {kl:.4f}" for apart, kl in cells)] for name, cells in found.items()]

    def times(name: str, which: int = 0) -> str:
        pairs = zip(found[name], found["spectral_mixed"], strict=True)
        ratios = [cell[which] / base[which] for cell, base in pairs]
        return f"{min(ratios):.2f} to {max(ratios):.2f}"

    return TEXT.format(
        table=markdown(Table(head, lines), Path()),
        cosine=times("cosine, logsnr -15 to 15"),
        mean=times("spectral_mixed, mean spectrum"),
        mean_kl=times("spectral_mixed, mean spectrum", 1),
        fixed=times("Karras, sigma over the image's own 0.004 to 160"),
        uniform=times("uniform logsnr, own bounds"),
        karras=times("Karras, own bounds"),
        brightness=brightness(),
    )


if __name__ == "__main__":
    print(page(measured()), end="")
