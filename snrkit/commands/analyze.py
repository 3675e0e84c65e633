"""`snrkit analyze`: what an experiment asks of its network, in closed form, before and beside any training.

Groups of charts, each chart as CSV and PNG, and one page: how hard every target is (for the data's variance and for its
spectrum), what weightings and preconditioning make of it, all schedules, grids and level samplers of the field beside
the experiment's own, its effective weighting, and the prior term of the variational bound of every beta table. With a
trained run also what its weights say (analyze_run.py).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.analysis.bound import NATS_A_BIT, prior_nats
from snrkit.analysis.closed_form import (
    Spectrum,
    difficulty,
    output_scale,
    posterior_mean_share,
    ring_difficulty,
    weighted_scale,
)
from snrkit.base.charts import AXIS, Chart, Scale, draw
from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.files import disk_errors, write_bytes, write_text
from snrkit.base.frequency import views
from snrkit.base.sealed import write_json
from snrkit.checkpoints.ours import newest_checkpoint
from snrkit.commands.analyze_run import GRADED, MEASURED, analyze_run
from snrkit.commands.opening import open_aloud, open_model_aloud
from snrkit.commands.progress import READINGS, bar
from snrkit.diffusion.betas import (
    Betas,
    GeometricBetas,
    LaplaceAlphaBar,
    LinearBetas,
    ScaledLinearBetas,
    SigmoidAlphaBar,
    SigmoidBetas,
    SquaredCosBetas,
)
from snrkit.diffusion.denoiser import EdmPrecondition, NoPrecondition
from snrkit.diffusion.level import ROUNDING_VARIANCE, Level, level_of
from snrkit.diffusion.prediction import X0, Eps, FlowVelocity, Score, Target, V
from snrkit.diffusion.process import Ddpm, Process, own_time
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.images import OpenedData
from snrkit.experiment.instrument import check_held_out
from snrkit.experiment.lock import beside
from snrkit.experiment.opening import Opened, level_sampler
from snrkit.experiment.reference import part_moments
from snrkit.experiment.run import Run
from snrkit.experiment.stored import trained_run
from snrkit.reports.blocks import Block, Heading, Paragraph, Picture, Table, document, on_page_and_in_text
from snrkit.reports.page import page
from snrkit.sampling.grid import BetaSigma, Karras, KlOptimal, Polyexponential, Trailing, UniformLogsnr, UniformTime
from snrkit.training.level_samplers import (
    BetaTime,
    Cauchy,
    CosineLevels,
    Laplace,
    LevelSampler,
    LogitNormal,
    LogNormal,
    LogUniform,
    Mode,
    NormalTime,
    UniformSigma,
)
from snrkit.training.level_samplers import UniformTime as UniformTimeLevels
from snrkit.training.objective import LOWEST_LOGSNR, output_weight
from snrkit.training.weighting import (
    P2,
    EdmWeighting,
    LogSnr,
    MaxSnr,
    MinSnr,
    Sigmoid,
    Simple,
    SnrClip,
    SnrPower,
    SoftMinSnr,
    Weighting,
)

TARGETS: Mapping[str, Target] = {"eps": Eps(), "x0": X0(), "v": V(), "flow": FlowVelocity(), "score": Score()}
WEIGHTINGS: Mapping[str, Weighting] = {
    "simple": Simple(), "constant on x0": SnrPower(power=0), "min_snr 5": MinSnr(), "soft_min_snr 4": SoftMinSnr(),
    "max_snr 1": MaxSnr(), "snr_clip": SnrClip(), "p2 0.5": P2(gamma=0.5), "p2 1": P2(), "log_snr": LogSnr(),
    "edm": EdmWeighting(), "sigmoid -2": Sigmoid(bias=-2, over_density=False),
}  # fmt: skip
TABLES: Mapping[str, Betas] = {
    "linear": LinearBetas(), "scaled_linear": ScaledLinearBetas(), "squaredcos_cap_v2": SquaredCosBetas(),
    "geometric": GeometricBetas(), "sigmoid_beta": SigmoidBetas(), "sigmoid": SigmoidAlphaBar(),
    "laplace": LaplaceAlphaBar(),
}  # fmt: skip
SAMPLERS: Sequence[LevelSampler] = (
    UniformTimeLevels(), LogNormal(), LogitNormal(), NormalTime(), BetaTime(), Mode(), UniformSigma(), LogUniform(),
    Laplace(), Cauchy(), CosineLevels(),
)  # fmt: skip
GRIDS: Sequence[Karras | UniformLogsnr | Trailing | Polyexponential | UniformTime | BetaSigma | KlOptimal] = (
    Karras(), UniformLogsnr(steps=18), Trailing(steps=18), Polyexponential(steps=18, rho=2), UniformTime(steps=18),
    BetaSigma(steps=18), KlOptimal(steps=18),
)  # fmt: skip
METRICS: Mapping[str, tuple[str, Scale]] = {
    "correlation": ("correlation with x", "linear"), "bayes_error": ("Bayes error", "log"),
    "gradient_scale": ("gradient scale", "log"), "information": ("information in x, nats per dimension", "linear"),
    "predictability": ("predictability ratio", "log"), "slope": ("regression slope on x", "linear"),
    "variance": ("variance", "log"), "preconditioning": ("1/gradient scale", "log"),
}  # fmt: skip
HARD = "How hard each target is, for Gaussian data of this variance"
TIMED = "The same against t of the experiment's process"
WEIGHTED = "What weightings and preconditioning make of it"
SCHEDULED = "Schedules, grids and level samplers"
LEGENDS: Mapping[str, str] = {  # by heading: what the pictures below it say
    HARD: "y is the target, x the noisy image. Correlation: of y with x. Bayes error: Var(y | x), the smallest loss. "
    "Gradient scale: its root, what noise is left in a gradient at the optimum. Predictability ratio: Var E[y | x] "
    "over Var(y | x). Targets of one curve (eps and score in information) cover each other.",
    TIMED: "As a training that draws its levels evenly in time sees it: a table's index, edm's sigma, t of flow, vp.",
    WEIGHTED: "A weighting w multiplies a loss and its gradient. The root of the weighted loss is one curve for all "
    "targets; the gradient is w times the root of the Bayes error of what the network puts out, and each target's own. "
    "Under EDM's preconditioning the targets cover each other. Density and effective weighting: over their largest.",
    SCHEDULED: "A level sampler with a mass above the axis is cut there. Those of equal density cover each other. "
    "Where every image has a schedule of its own, that of the mean spectrum is drawn.",
    MEASURED: "Held-out images at 33 levels, whether or not training drew such. Information by I-MMSE. "
    "Excess error: over the exact denoiser, where the data have one. A classifier reads x0_hat, made without a label.",
    GRADED: "Unit losses on the network's own output F, of single images, in the output layer. Signal to noise: |mean "
    "gradient|^2 over the trace of its covariance, over images, noise and x; the other curve is that of a network "
    "whose output is 0, given x, and no prediction of the first.",
}
POINTS, LOWEST, HIGHEST = 241, -12.0, 12.0
STEPS = 1000


def run_analysis(experiment: Experiment, runs: Path, world: World) -> dict[str, Any]:
    """Write runs/<name>/analysis; returns what the command prints."""
    world.check_alone("analyze")
    _ = experiment.training  # a model from elsewhere is refused before anything is opened
    opened = open_aloud(experiment, world)
    run = Run(runs / experiment.name)
    folder = run.path / "analysis"
    with beside(run, folder):
        return {"page": str(folder / "index.html"), **_analyze(opened, runs, run, folder)}


def _analyze(opened: Opened, runs: Path, run: Run, folder: Path) -> dict[str, Any]:
    e, data = opened.experiment, opened.data
    with bar("spectra of the data", unit=READINGS):
        spectrum, sampler = data_spectrum(data), level_sampler(e.levels, data)
    with bar("closed forms"):
        groups = {
            HARD: target_charts(e, spectrum),
            TIMED: time_charts(e, spectrum),
            WEIGHTED: weighting_charts(e, sampler, spectrum),
            SCHEDULED: schedule_charts(e, sampler, spectrum),
        }
    facts: dict[str, str] = {}
    if newest_checkpoint(run.checkpoints) is not None:
        run = trained_run(runs, e, data.dataset.fingerprint)
        check_held_out(data)
        model = open_model_aloud(opened, run)
        found = analyze_run(e, opened.setting, model, spectrum)
        groups |= found.charts
        facts = {"Weights": f"{model.weights} at {model.images} images", **found.facts}
    record = {
        "charts": [chart.name for charts in groups.values() for chart in charts], "variance": spectrum.variance,
        "second_moment": spectrum.second_moment, "facts": facts, "prior_bits": prior_bits(spectrum.second_moment),
    }  # fmt: skip
    with disk_errors(f"writing {folder}", "free space and run the same command again"):
        blocks = _write_charts(folder, e, spectrum, groups, facts)
        title = f"{e.name}: analysis"
        write_json(folder / "index.json", record)
        write_text(folder / "index.md", document(blocks, folder))
        write_text(folder / "index.html", page(title, blocks))
    return record


def data_spectrum(data: OpenedData) -> Spectrum:
    """Power by frequency ring of the training split, about the data's mean, not below the rounding of 8 bits."""
    view = views(data.dataset.shape)[-1]
    means, variances = part_moments(data, None, view)
    sizes = torch.bincount(view.parts).double()
    power = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, view.parts, variances) / sizes
    return Spectrum(power.clamp(min=ROUNDING_VARIANCE), sizes / len(view.parts), float(means.square().mean()))


def _axis() -> Tensor:
    return torch.linspace(LOWEST, HIGHEST, POINTS, dtype=torch.float64)


def _levels(process: Process, logsnr: Tensor) -> Level:
    return level_of(logsnr, process.scaling)


def target_charts(e: Experiment, spectrum: Spectrum) -> list[Chart]:
    """The eight metrics of every target, and its error and information on the data's own spectrum, ring by ring."""
    logsnr, variance = _axis(), spectrum.variance
    level = _levels(e.process, logsnr)
    charts = metric_charts(level, logsnr, variance)
    ringed = {name: ring_difficulty(level, target, spectrum) for name, target in TARGETS.items()}
    charts.append(Chart("explained-spectrum", "share of the target that x explains, on the data's spectrum", "R^2",
                        {name: (logsnr, each.explained) for name, each in ringed.items()}))  # fmt: skip
    charts.append(Chart("information-spectrum", "information on the data's spectrum", "nats per dimension",
                        {name: (logsnr, each.information) for name, each in ringed.items()}))  # fmt: skip
    ours = ring_difficulty(level, e.target, spectrum).by_ring
    charts.append(Chart("explained-rings", f"share that x explains by ring, target {e.target.kind}", "R^2",
                        {f"ring {k}, power {power:.3g}": (logsnr, ours[:, k])
                         for k, power in enumerate(spectrum.power.tolist())}))  # fmt: skip
    return charts


def metric_charts(level: Level, x: Tensor, variance: float, axis: str = AXIS, suffix: str = "") -> list[Chart]:
    """The eight metrics of every target at levels (L,), over `x` (L,)."""
    found = {name: difficulty(level, target, variance) for name, target in TARGETS.items()}
    return [
        Chart(f"{key}{suffix}", f"{label}, variance {variance:.3g}", label,
              {name: (x, getattr(each, key)) for name, each in found.items()}, axis, scale)
        for key, (label, scale) in METRICS.items()
    ]  # fmt: skip


def time_charts(e: Experiment, spectrum: Spectrum) -> list[Chart]:
    """The eight metrics over the share of the process's own time: its table's index, sigma in edm, t in flow and vp."""
    time = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS  # the ends of some have no level
    level = _levels(e.process, own_time(e.process).sweep(time))
    return metric_charts(level, time, spectrum.variance, f"share of {e.process.kind}'s time (image left)", "-over-t")


def weighting_charts(e: Experiment, sampler: LevelSampler, spectrum: Spectrum) -> list[Chart]:
    """Losses and gradients at the optimum before and after every weighting, and the experiment's own product.

    The root of the weighted loss is one curve for all targets; a gradient goes with the weight itself, and is shown for
    the experiment's target, without preconditioning and with EDM's.
    """
    logsnr, variance, s = _axis(), spectrum.variance, float(e.data.sigma_data)
    level = _levels(e.process, logsnr)
    one = torch.ones_like(logsnr)
    after = {name: (logsnr, weighted_scale(level, lambda: one, w, s, variance)) for name, w in WEIGHTINGS.items()}
    charts = [Chart("loss-weighted", "loss at the optimum, after each weighting (the same for every target)",
                    "root of weight times Bayes error", after, scale="log", limits=(1e-3, 1e1))]  # fmt: skip
    for name, precondition in (("none", NoPrecondition()), ("edm", EdmPrecondition())):
        scales = {target: output_scale(level, value, precondition, e.process, s, variance)
                  for target, value in TARGETS.items()}  # fmt: skip
        charts.append(Chart(f"gradient-output-{name}", f"residual of the network's output, precondition {name}",
                            "root of its Bayes error", {target: (logsnr, scale) for target, scale in scales.items()},
                            scale="log"))  # fmt: skip
        own = output_scale(level, e.target, precondition, e.process, s, variance)
        part = partial(output_weight, level, lambda: one, process=e.process, target=e.target,
                       precondition=precondition, sigma_data=s)  # fmt: skip
        charts.append(Chart(f"gradient-after-{name}", f"gradient, target {e.target.kind}, precondition {name}",
                            "weight times root of the Bayes error",
                            {kind: (logsnr, part(weighting=w) * own) for kind, w in WEIGHTINGS.items()},
                            scale="log", limits=(1e-3, 1e3)))  # fmt: skip
    lowest, highest = max(e.process.bounds[0], LOWEST_LOGSNR), e.process.bounds[1]
    inside = torch.linspace(lowest, highest, POINTS, dtype=torch.float64)
    density = sampler.density(inside, e.process)
    product = density * e.weighting.weight(_levels(e.process, inside), lambda: density, s)
    product = product.where(density > 0, 0.0)
    charts.append(Chart("effective-weighting", f"{e.levels.kind} times {e.weighting.kind}, on eps",
                        "over its largest", {"density": (inside, density / density.max()),
                         "density times weight": (inside, product / product.max())}))  # fmt: skip
    return charts


def schedule_charts(e: Experiment, sampler: LevelSampler, spectrum: Spectrum) -> list[Chart]:
    """logsnr of all beta tables and grids, densities of all level samplers, and what mu-tilde would leave to learn."""
    index = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    tables = {name: Ddpm(betas=betas, steps=STEPS) for name, betas in TABLES.items()}
    curves = {name: (index, process.table().clamp(min=-25)) for name, process in tables.items()}
    if isinstance(e.process, Ddpm):
        own = e.process.table().clamp(min=-25)
        curves["this experiment"] = (torch.linspace(0, 1, len(own), dtype=torch.float64), own)
    charts = [Chart("tables", "beta tables", "logsnr, nats", curves, axis="index over its last")]
    grids: dict[str, tuple[Tensor, Tensor]] = {}
    for grid in GRIDS:
        try:
            levels = grid.levels(e.process)[:-1]
        except SnrkitError:
            continue  # this grid does not fit the process
        logsnr = torch.stack([level.logsnr for level in levels]).clamp(-25, 25)
        grids[grid.kind] = (torch.linspace(0, 1, len(logsnr), dtype=torch.float64), logsnr)
    charts.append(Chart("grids", f"grids of 18 steps on {e.process.kind}", "logsnr, nats", grids,
                        axis="step over the last"))  # fmt: skip
    axis = _axis()
    densities = {each.kind: (axis, each.density(axis, e.process)) for each in SAMPLERS}  # type: ignore[attr-defined]
    densities["this experiment"] = (axis, sampler.density(axis, e.process))
    charts.append(Chart("densities", f"level samplers on {e.process.kind}", "density per nat, shown to 0.5",
                        densities, limits=(0, 0.5)))  # fmt: skip
    return [*charts, _posterior_chart(tables, spectrum.variance)]


def _posterior_chart(tables: Mapping[str, Ddpm], variance: float) -> Chart:
    curves = {}
    for name, process in tables.items():
        table = process.table()
        table = table[torch.isfinite(table)]
        before, after = process.level(table[1:]), process.level(table[:-1])
        _, unknown = posterior_mean_share(before, after, variance)
        curves[name] = (table[1:].flip(0), unknown.flip(0))
    return Chart("posterior-mean", f"DDPM's posterior mean: what x does not say of it, variance {variance:.3g}",
                 "share of its variance", curves, scale="log")  # fmt: skip


def prior_bits(second_moment: float) -> dict[str, float]:
    """The prior term of the bound of every beta table of 1000 steps, bits per dimension."""
    found = {}
    for name, betas in TABLES.items():
        process = Ddpm(betas=betas, steps=STEPS)
        found[name] = float(prior_nats(process.level(process.table()[-1]), "vp", second_moment)) / NATS_A_BIT
    return found


def _write_charts(
    folder: Path, e: Experiment, spectrum: Spectrum, groups: Mapping[str, Sequence[Chart]], facts: Mapping[str, str]
) -> list[Block]:  # fmt: skip
    data = f"data of variance {spectrum.variance:.4g} and {len(spectrum.power)} frequency rings"
    blocks: list[Block] = [
        Heading(f"{e.name}: analysis", 1),
        Paragraph(f"Process {e.process.kind}, target {e.target.kind}, preconditioning {e.precondition.kind}, levels "
                  f"{e.levels.kind}, weighting {e.weighting.kind}; {data}. Closed forms for Gaussian data."),
    ]  # fmt: skip
    if facts:
        blocks += [Heading("The run in figures"), Table(("what", "value"), list(facts.items()))]
    for title, charts in groups.items():
        picture = folder / f"{charts[0].name}.png"
        with bar(f"drawing: {title}", len(charts), unit="charts") as progress:
            write_bytes(picture, draw(charts))
            for chart in charts:
                write_text(folder / f"{chart.name}.csv", chart.csv())
                progress.advance(1)
        shown = Picture(picture, "; ".join(chart.title for chart in charts))
        blocks += [Heading(title), Paragraph(LEGENDS[title]), *on_page_and_in_text(charts, shown)]
    rows = [(name, f"{bits:.3g}", f"{bits * math.prod((3, 32, 32)) * NATS_A_BIT:.3g}")
            for name, bits in prior_bits(spectrum.second_moment).items()]  # fmt: skip
    blocks += [Heading("The prior term of the variational bound"),
               Table(("beta table", "bits per dimension", "nats for 3x32x32"), rows)]  # fmt: skip
    return blocks
