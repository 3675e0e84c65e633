"""`snrkit analyze --spectrum`: the data set's power spectra, and the noise levels between which they matter.

Writes runs/<name>/analysis/spectrum: curves as CSV and PNG, and a page with slopes and bounds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.charts import Chart, draw
from snrkit.base.distributed import World
from snrkit.base.files import disk_errors, write_bytes, write_text
from snrkit.base.sealed import write_json
from snrkit.commands.opening import open_aloud
from snrkit.commands.progress import READINGS, bar
from snrkit.diffusion.process import Vp
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import beside
from snrkit.experiment.run import Run
from snrkit.reports.blocks import Block, Heading, Paragraph, Picture, Table, document, on_page_and_in_text
from snrkit.reports.page import page
from snrkit.reports.spectrum_table import spectrum_rows
from snrkit.spectral.grid import spectral_levels
from snrkit.spectral.measure import measure_spectra
from snrkit.spectral.schedule import POINTS, SpectralSchedule
from snrkit.spectral.spectra import Spectra, slope

SHOWN_CLASSES = 12
KINDS = ("spectral_freq", "spectral_power", "spectral_mixed", "spectral_even")
QUANTILES = (0.005, 0.5, 0.995)


def run_spectrum(experiment: Experiment, runs: Path, world: World) -> dict[str, Any]:
    """Write the page; returns what the command prints."""
    world.check_alone("analyze")
    opened = open_aloud(experiment, world)
    with bar("measuring spectra", opened.data.labelled.count, unit=READINGS):
        spectra = measure_spectra(opened.data.labelled, opened.data.split, world.device)
    run = Run(runs / experiment.name)
    folder = run.path / "analysis" / "spectrum"
    levels = spectral_levels(experiment.levels)
    schedule = SpectralSchedule() if levels is None else levels.schedule
    with bar("schedules of the spectra"):
        charts, record = spectrum_charts(spectra, schedule), facts(spectra, schedule)
    with (
        bar("drawing"),
        beside(run, folder),
        disk_errors(f"writing {folder}", "free space and run the same command again"),
    ):
        blocks = _write(folder, experiment, charts, record)
        write_json(folder / "index.json", record)
        write_text(folder / "index.md", document(blocks, folder))
        write_text(folder / "index.html", page(f"{experiment.name}: spectrum", blocks))
    return {"page": str(folder / "index.html"), **record}


def facts(spectra: Spectra, schedule: SpectralSchedule) -> dict[str, Any]:
    """Slopes, and the ends of the schedules of single images, of their mean, with the mean brightness and without."""
    single = spectra.power[spectra.train]
    ends = {}
    for dc in ("include", "exclude"):
        under = schedule.model_copy(update={"dc": dc})
        low, high = under.ends(single)
        mean = [float(end) for end in under.ends(spectra.mean[None])]
        ends[dc] = {"noisy": _quantiles(low), "clean": _quantiles(high), "of_the_mean": mean}
    return {
        "images": len(single), "rings": single.shape[1], "slope": slope(spectra.mean),
        "slope_of_images": _quantiles(torch.tensor([slope(p) for p in single[:1000]], dtype=torch.float64)),
        "mean_brightness_over_ring_1": float((single[:, 0] / single[:, 1]).median()), "ends": ends,
        "kappa": [schedule.kappa_min, schedule.kappa_max],
    }  # fmt: skip


def _quantiles(values: Tensor) -> list[float]:
    return [float(v) for v in torch.quantile(values.double(), torch.tensor(QUANTILES, dtype=torch.float64))]


def spectrum_charts(spectra: Spectra, schedule: SpectralSchedule) -> list[Chart]:
    """Power by ring, over all images and by class; schedules of the mean spectrum; bounds of single images."""
    single, mean = spectra.power[spectra.train], spectra.mean
    rings = torch.arange(1, len(mean), dtype=torch.float64)
    logs = single[:, 1:].log()
    curves = {"mean of ln P": (rings, mean[1:])}
    for name, share in zip(("0.5 %", "99.5 %"), (QUANTILES[0], QUANTILES[-1]), strict=True):
        curves[f"{name} of the images"] = (rings, torch.quantile(logs, share, dim=0).exp())
    fitted = mean[1:].log().mean() - slope(mean) * (rings.log() - rings.log().mean())
    curves[f"power law, slope {slope(mean):.2f}"] = (rings, fitted.exp())
    charts = [Chart("power", "power by ring", "P", curves, axis="cycles per image", scale="log")]
    if spectra.labels is not None:
        by_class = spectra.class_means[:SHOWN_CLASSES, 1:]
        charts.append(Chart("power-by-class", "power by ring and class", "P",
                            {f"class {k}": (rings, row) for k, row in enumerate(by_class)},
                            axis="cycles per image", scale="log"))  # fmt: skip
    t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    kinds = [schedule.model_copy(update={"kind": kind}) for kind in KINDS]
    schedules: dict[str, tuple[Tensor, Tensor]] = {each.kind: (t, each.table(mean[None])[0]) for each in kinds}
    schedules["cosine"] = (t, Vp().sweep(t))
    charts.append(Chart("schedules", "schedules of the mean spectrum (a reconstruction), and cosine", "logsnr, nats",
                        schedules, axis="t"))  # fmt: skip
    ordered = [end.sort().values for end in schedule.ends(single)]
    place = torch.linspace(0, 1, len(single), dtype=torch.float64)
    charts.append(Chart("bounds", "ends of single images' schedules, each sorted", "logsnr, nats", {
        "noisy end": (place, ordered[0]), "clean end": (place, ordered[1]),
    }, axis="share of the images"))  # fmt: skip
    return charts


def _write(folder: Path, e: Experiment, charts: Sequence[Chart], record: dict[str, Any]) -> list[Block]:
    picture = folder / "spectrum.png"
    write_bytes(picture, draw(charts))
    for chart in charts:
        write_text(folder / f"{chart.name}.csv", chart.csv())
    return [
        Heading(f"{e.name}: power spectrum", 1),
        Paragraph(f"{record['images']} training images, {record['rings']} rings; P is the mean square of the "
                  "orthonormal Fourier coefficients at that distance from 0, of unit white noise 1. Schedules are a "
                  "reconstruction after Esteves & Makadia 2026, whose constants are not known to us; kappa "
                  f"{record['kappa'][0]:g} to {record['kappa'][1]:g}."),
        *on_page_and_in_text(charts, Picture(picture, "; ".join(chart.title for chart in charts))),
        Table(("what", "value"), spectrum_rows(record)),
    ]  # fmt: skip
