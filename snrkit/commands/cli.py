"""The command line. torch is imported inside commands, so that --help is fast."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from snrkit import __version__
from snrkit.base.errors import SnrkitError, Stopped
from snrkit.base.files import CLOSED
from snrkit.base.starters import file_of, is_demo
from snrkit.commands.naming import (
    ENDINGS,
    EXPERIMENT,
    experiment_named,
    on_experiment,
    sampler_names,
    setting_keys,
)
from snrkit.commands.progress import EVERY, ask, bar, hear, loading

if TYPE_CHECKING:
    from snrkit.base.distributed import World
    from snrkit.experiment.experiment import Experiment

app = typer.Typer(
    help="Measure, train against and correct SNR-t bias in diffusion models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

data = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

MACHINE, DRY, OUTPUT = "Where it runs", "Dry run", "What is printed"  # groups of options, in the help of commands
ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML file of the experiment.", rich_help_panel=EXPERIMENT)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", autocompletion=setting_keys, help="Override, such as train.lr=1e-3.", rich_help_panel=EXPERIMENT
    ),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", envvar="SNRKIT_RUNS", help="Folder that holds run directories.", rich_help_panel=EXPERIMENT),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)]
SamplerOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--sampler",
        autocompletion=sampler_names,
        help="Only this sampler; may be repeated.",
        rich_help_panel=EXPERIMENT,
    ),
]
MinutesOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--minutes", min=0.0, help="Try no more after so many, then confirm; --dry-run says what else it takes."
    ),
]
PipelineOption = Annotated[
    bool, typer.Option("--pipeline", help="Try only what a pipeline of diffusers can have: its solver and levels.")
]
PeakOption = Annotated[
    bool,
    typer.Option(
        "--peak",
        help="With --dry-run: also train a few steps in memory and say what they took.",
        rich_help_panel=DRY,
    ),
]
ShowConfigOption = Annotated[
    bool,
    typer.Option(
        "--show-config", help="With --dry-run: print the resolved experiment too, as YAML.", rich_help_panel=DRY
    ),
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and write nothing.", rich_help_panel=DRY)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]


def _quiet(value: bool) -> bool:
    ask(quiet=value)
    return value


def _verbose(value: bool) -> bool:
    ask(verbose=value)
    return value


def _every(value: float) -> float:
    ask(every=value)
    return value


QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_quiet, help="No progress, and of messages warnings alone.", rich_help_panel=OUTPUT
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_verbose,
        help="Also say what each part of the work took; of compare: every column.",
        rich_help_panel=OUTPUT,
    ),
]
EveryOption = Annotated[
    float,
    typer.Option(
        "--log-every",
        min=0.1,
        callback=_every,
        help="Seconds between lines of progress, where there is no terminal.",
        rich_help_panel=OUTPUT,
    ),
]
RUNS = Path("runs")


def main() -> None:
    """Run the app; a user's mistake, a failing disk or a lost process ends in one sentence and exit code 1."""
    code = 1
    try:
        code = _run()
    finally:
        _leave_group(code)
    sys.exit(code)


def _run() -> int:
    """The exit code of the app, after what is to be said."""
    try:
        _run_in_group()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Stopped as stop:
        print(str(stop), end="\n" if str(stop) else "", file=sys.stderr)
        return stop.code
    except SnrkitError as error:
        for line in str(error).splitlines():
            print(f"snrkit: {line}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        reason, closed = error.strerror or str(error), error.errno in CLOSED
        remedy = "choose a place that may be read and written to" if closed else "free space or choose another place"
        print(f"snrkit: reading or writing failed{where}: {reason}; {remedy}.", file=sys.stderr)
        return 1
    return 0


def _run_in_group() -> None:
    """Run the app. A process that is gone, of which a collective says so, and a lack of memory become a sentence."""
    try:
        with hear():
            app()
    except (RuntimeError, MemoryError) as error:
        if "snrkit.base.distributed" not in sys.modules:
            raise
        from snrkit.base.distributed import lost_peer
        from snrkit.base.memory import is_out_of_memory, no_memory

        if (lost := lost_peer()) is not None:
            raise lost from None
        if is_out_of_memory(error):
            raise no_memory() from None
        raise


def _leave_group(code: int) -> None:
    """Leave the group of processes, if there is one: a process that just ends can make its peers abort."""
    if "snrkit.base.distributed" in sys.modules:
        from snrkit.base.distributed import close_world

        close_world(code)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Measure, train against and correct SNR-t bias in diffusion models."""
    if show:
        print(f"snrkit {__version__}")
        raise typer.Exit


@app.command(epilog="Example: snrkit init mine.yaml --data my-images")
def init(
    file: Annotated[Path, typer.Argument(help="YAML file to write.")] = Path("experiment.yaml"),
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--data", help="Folder, zip or .npz of images to train on, or that the model is to make."),
    ] = None,
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", help="File or folder of a model that was trained elsewhere, to be measured."),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--minutes", min=0.1, help="Let training take about so many; default: an hour, eight on a GPU."),
    ] = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Write a commented YAML that fits your images, or a model of somebody else's, and this machine."""
    world = _open_world(device)
    world.check_alone("init")
    from snrkit.commands.init import run_init
    from snrkit.reports.terminal import show_initialised

    with bar("looking at what is there"):
        made = run_init(file, images, source, world.device, minutes)
    show_initialised(made)


@app.command(epilog="Example: snrkit train mine.yaml --set train.lr=1e-3")
@on_experiment
def train(
    config: ConfigOption,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    fall_back: Annotated[
        bool,
        typer.Option(
            "--fall-back", help="Where the newest checkpoint is damaged, put it aside and go on from the one before."
        ),
    ] = False,
    dry_run: DryOption = False,
    peak: PeakOption = False,
    show_config: ShowConfigOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Train the experiment's network, or go on where the last run stopped."""
    if peak and not dry_run:
        raise SnrkitError("--peak measures within a dry run, and trains nothing that is kept; add --dry-run.")
    _check_shown(show_config, dry_run)
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.dry_run import plan
    from snrkit.commands.train import run_training

    if dry_run:
        _planned(lambda: plan(experiment, world, peak, show_config))
        return
    with bar(experiment.name):
        run = run_training(experiment, runs, world, quiet, fall_back)
    then = _command("run", config, settings, runs)
    _made(f"trained on {experiment.train.images:,} images", run.path, then, False, world)


@app.command(epilog="Example: snrkit sample mine.yaml --sampler euler-13 --set sample.seeds=0-999")
@on_experiment
def sample(
    config: ConfigOption,
    settings: SetOption = None,
    sampler: SamplerOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete images made otherwise and begin anew.")
    ] = False,
    spectrum_scale: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--spectrum-scale",
            min=0.01,
            max=100,
            help="More (above 1) or less texture, in samples/<sampler>-scale-<N>: spectral grids only, in place of "
            "their own scale.",
        ),
    ] = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    dry_run: DryOption = False,
    show_config: ShowConfigOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Make images with the experiment's samplers; goes on with the seeds that are missing."""
    _check_shown(show_config, dry_run)
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.dry_run import plan
    from snrkit.commands.sample import choose, run_sampling, with_texture

    names: Sequence[str] = sampler or ()
    if spectrum_scale is not None:
        experiment, names = with_texture(experiment, names, spectrum_scale)
    if dry_run:
        _planned(lambda: plan(experiment, world, config=show_config, trains=False, sampled=choose(experiment, names)))
        return
    with bar(experiment.name):
        run = run_sampling(experiment, runs, world, names, overwrite, quiet)
    then = _command("eval-fid", config, settings, runs)
    _made(f"images of {', '.join(names or experiment.samplers)}", run.path / "samples", then, False, world)


@app.command("measure-shift", epilog="Example: snrkit measure-shift demo")
@on_experiment
def measure_shift(
    config: ConfigOption,
    settings: SetOption = None,
    sampler: SamplerOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Measure how far each sampler's states are from the level the network is told, with a null."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.measure_shift import run_measuring
    from snrkit.reports.terminal import show_shift

    with bar(experiment.name):
        found = run_measuring(experiment, runs, world, sampler or (), quiet)
    _show(found, json, world, show_shift)
    then = _command("report", config, settings, runs)
    _made("shifts by level", runs / experiment.name / "shift", then, json, world)


@app.command("fit-estimator", epilog="Example: snrkit fit-estimator mine.yaml")
@on_experiment
def fit_estimator(
    config: ConfigOption,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Fit the run's estimator of noise levels, for the probe `estimator` and the corrections that ask one."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.fit_estimator import run_estimating
    from snrkit.reports.terminal import show_calibration

    with bar(experiment.name):
        found = run_estimating(experiment, runs, world, quiet)
    _show(found, json, world, show_calibration)
    then = _command("measure-shift", config, [*(settings or ()), "shift.probes=[estimator]"], runs)
    _made("estimator of levels", runs / experiment.name / "estimator", then, json, world)


@app.command(epilog="Example: snrkit tune mine.yaml --sampler euler-13-dcw --by flow")
@on_experiment
def tune(
    config: ConfigOption,
    sampler: SamplerOption = None,
    by: Annotated[str, typer.Option("--by", help="flow, predicted, gap, fd or optuna.")] = "fd",
    parameter: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--parameter", help="Coefficient as index.name, such as 0.low; repeat for stages."),
    ] = None,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Choose coefficients of a sampler's corrections on seeds that are never scored."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.tune import METHODS, run_tuning
    from snrkit.reports.terminal import show_tuned

    methods = {method: method for method in METHODS}
    if by not in methods:
        raise SnrkitError(f"--by {by}: choose one of {', '.join(METHODS)}.")
    with bar(experiment.name):
        records = run_tuning(experiment, runs, world, sampler or (), methods[by], parameter or (), quiet)
    _show(records, json, world, show_tuned)


@app.command(epilog="Example: snrkit design mine.yaml --sampler euler-13 --nfe 8")
@on_experiment
def design(
    config: ConfigOption,
    nfe: Annotated[int, typer.Option("--nfe", min=1, help="Network evaluations for each image.")],
    sampler: SamplerOption = None,
    by: Annotated[
        str, typer.Option("--by", help="fitted: levels and steps fitted on them. gits, oss: levels as published.")
    ] = "fitted",
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Find levels and steps that keep nearest to the network's own flow at a number of evaluations."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.design import run_design
    from snrkit.reports.terminal import show_designed

    with bar(experiment.name):
        found = run_design(experiment, runs, world, sampler or (), nfe, quiet, by)
    _show(found, json, world, show_designed)


@app.command(epilog="Example: snrkit certify my-pipeline --data my-images --nfe 13")
def certify(
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            metavar="FILE|RUN|MODEL",
            help="YAML file of an experiment, or its run directory; or demo; or a model's file or folder.",
        ),
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--config", "-c", help="YAML file of the experiment."),
    ] = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--data", help="Folder of the images that MODEL is to make."),
    ] = None,
    nfe: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--nfe", min=2, help="Network evaluations for each image, of MODEL; 13 by default."),
    ] = None,
    size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--size", min=1, help="Side of the states of MODEL, where it takes several."),
    ] = None,
    sampler: SamplerOption = None,
    minutes: MinutesOption = None,
    card: Annotated[bool, typer.Option("--card", help="Also write a model card of the Hugging Face Hub.")] = False,
    pipeline: PipelineOption = False,
    dry_run: DryOption = False,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Say whether samplers of this model suffer from the shift, and what to do, confirmed on fresh seeds."""
    if (model is None) == (config is None):
        raise SnrkitError("certify: give a YAML or a run directory, or a model's file or folder with --data.")
    if model is not None and (named := experiment_named(model, runs)) is not None:
        (config, runs), model = named, None
    if config is not None and (unused := _given({"--data": data, "--nfe": nfe, "--size": size})):
        why = "is for a model's file or folder; change the experiment's file, or use --set"
        raise SnrkitError(f"certify: {unused} {why}.")
    if dry_run and (json or config is None):
        what = "prints sentences; drop --json" if json else "is of an experiment; snrkit init --from MODEL writes one"
        raise SnrkitError(f"certify: --dry-run {what}.")
    from snrkit.commands.certify_model import write_experiment

    experiment, world = _begin(config or write_experiment(model or Path(), data, nfe or 13, size), settings, device)
    from snrkit.commands.certify import certify_plan, run_certify
    from snrkit.reports.terminal import show_certificates

    if dry_run:
        _planned(lambda: certify_plan(experiment, runs, world, sampler or (), minutes, pipeline))
        return
    with bar(experiment.name):
        found = run_certify(experiment, runs, world, sampler or (), minutes, card, pipeline, quiet)
    _show(found, json, world, partial(show_certificates, run=runs / experiment.name))


@app.command(epilog="Example: snrkit compare mine.yaml")
@on_experiment
def compare(
    config: ConfigOption,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    dry_run: DryOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """One table at equal NFE: every sampler, its base without corrections, and stronger solvers, with intervals."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.compare import comparison_plan, run_comparing
    from snrkit.reports.terminal import show_comparison

    if dry_run:
        if json:
            raise SnrkitError("--dry-run prints sentences; drop --json.")
        _planned(lambda: comparison_plan(experiment, world))
        return
    with bar(experiment.name):
        found = run_comparing(experiment, runs, world, quiet)
    _show(found, json, world, partial(show_comparison, every=verbose))
    then = _command("certify", config, settings, runs)
    _made("table as a page", runs / experiment.name / "compare.html", then, json, world)


@app.command("eval-fid", epilog="Example: snrkit eval-fid runs/mine/samples/euler-13 my-images --set features=pixels")
def eval_fid(
    images: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Images and reference: folder, zip, npz, data set, or statistics .npz."),
    ] = None,
    config: Annotated[Optional[Path], typer.Option("--config", "-c", help="Score this experiment's samplers.")] = None,  # noqa: UP045
    settings: SetOption = None,
    sampler: SamplerOption = None,
    checkpoints: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--checkpoints", help="all, or 'last N': the curve over training."),
    ] = None,
    root: Annotated[Optional[Path], typer.Option("--root", help="Where torchvision keeps its data sets.")] = None,  # noqa: UP045
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Score samplers of an experiment, or any two sets of images: eval-fid IMAGES REFERENCE."""
    if images is not None and len(images) == 1 and (named := experiment_named(Path(images[0]), runs)) is not None:
        (config, runs), images = named, None
    if (config is None) == (images is None):
        raise SnrkitError("eval-fid takes either --config FILE or two sets of images: eval-fid IMAGES REFERENCE.")
    if images is not None and (sampler or checkpoints):
        raise SnrkitError("--sampler and --checkpoints choose within an experiment; they need --config FILE.")
    if config is not None and root is not None:
        raise SnrkitError("eval-fid: --root has no effect on an experiment; say data.root there.")
    if config is not None:
        experiment, world = _begin(config, settings, device)
        from snrkit.commands.eval_fid import run_curves, run_scoring
        from snrkit.reports.terminal import show_curves, show_scores

        if checkpoints is None:
            with bar(experiment.name):
                found = run_scoring(experiment, runs, world, sampler or (), quiet)
            _show(found, json, world, show_scores)
        else:
            with bar(experiment.name):
                curves = run_curves(experiment, runs, world, sampler or (), checkpoints, quiet)
            _show(curves, json, world, show_curves)
        then = _command("report", config, settings, runs)
        _made("scores", runs / experiment.name / "metrics", then, json, world)
        return
    _pair(images or [], settings, root, device, json)


@app.command(epilog="Example: snrkit analyze mine.yaml --spectrum")
@on_experiment
def analyze(
    config: ConfigOption,
    settings: SetOption = None,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Instead: the data's power spectrum, and schedules made of it.")
    ] = False,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Show in closed form how hard targets are, what weightings make of it, and all schedules side by side."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.analyze import run_analysis
    from snrkit.commands.analyze_spectrum import run_spectrum
    from snrkit.reports.terminal import show_analysis, show_spectrum

    if spectrum:
        with bar(experiment.name):
            found = run_spectrum(experiment, runs, world)
        _show(found, json, world, show_spectrum)
        return
    with bar(experiment.name):
        found = run_analysis(experiment, runs, world)
    _show(found, json, world, show_analysis)


@app.command(epilog="Example: snrkit sweep studies/training/sweep.yaml --arm edm")
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file of the sweep: base, settings, seeds, arms.")],
    settings: SetOption = None,
    arm: Annotated[Optional[list[str]], typer.Option("--arm", help="Only this arm; may be repeated.")] = None,  # noqa: UP045
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Train and score many variants of one experiment over several seeds; goes on with what is missing."""
    world = _open_world(device)
    from snrkit.commands.sweep import run_sweep
    from snrkit.reports.terminal import show_sweep

    with bar(file.stem):
        found = run_sweep(file, runs, world, settings or (), arm or (), quiet)
    _show(found, json, world, show_sweep)


@app.command(epilog="Example: snrkit average runs/mine --width 0.1")
def average(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/digits.")],
    width: Annotated[Optional[float], typer.Option("--width", help="Relative width of a post-hoc EMA.")] = None,  # noqa: UP045
    decay: Annotated[float | None, typer.Option("--decay", help="Factor from one snapshot to the one before.")] = None,
    at: Annotated[Optional[int], typer.Option("--at", help="As of these images; the last snapshot by default.")] = None,  # noqa: UP045
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Average a run's weights afterwards: post-hoc EMA of any width, or snapshots."""
    world = _alone("average")
    from snrkit.commands.average import run_averaging
    from snrkit.reports.terminal import show_average

    with bar("averaging"):
        record = run_averaging(path, width, decay, at)
    _show(record, json, world, show_average)


@app.command(epilog="Example: snrkit export runs/mine --to snrkit")
def export(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/digits.")],
    to: Annotated[
        str, typer.Option("--to", help="diffusers: a folder; snrkit: one file, for model: {kind: snrkit, path: FILE}.")
    ] = "diffusers",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder or file to make; default: within RUN/export."),
    ] = None,
    average: Annotated[Optional[str], typer.Option("--average", help="Weights; default: the longest average.")] = None,  # noqa: UP045
    checkpoint: Annotated[Optional[int], typer.Option("--checkpoint", help="As of these images.")] = None,  # noqa: UP045
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a run's weights as a folder that another library loads."""
    world = _alone("export")
    from snrkit.commands.export import run_exporting
    from snrkit.reports.terminal import show_export

    with bar("exporting"):
        record = run_exporting(path, to, out, average, checkpoint)
    _show(record, json, world, show_export)


@app.command(epilog="Example: snrkit push runs/mine hf:me/my-model --private")
def push(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/digits.")],
    to: Annotated[Path, typer.Argument(metavar="hf:OWNER/NAME", help="Where on the Hugging Face Hub.")],
    average: Annotated[Optional[str], typer.Option("--average", help="Weights; default: the longest average.")] = None,  # noqa: UP045
    checkpoint: Annotated[Optional[int], typer.Option("--checkpoint", help="As of these images.")] = None,  # noqa: UP045
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new: for you alone.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Upload a run's weights, its experiment and a card to the Hugging Face Hub, for others to sample and measure."""
    world = _alone("push")
    from snrkit.commands.push import run_pushing
    from snrkit.reports.terminal import show_pushed

    with bar(f"pushing {path}"):
        record = run_pushing(path, to, average, checkpoint, private)
    _show(record, json, world, show_pushed)


@app.command(epilog="Example: snrkit check runs/mine --repair")
def check(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/digits.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make right what can be made again.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Check that everything in a run directory is what was written, and say what to do where it is not."""
    world = _alone("check")
    from snrkit.commands.check import run_checking
    from snrkit.reports.terminal import show_checked

    with bar(f"checking {path}"):
        checked = run_checking(path, repair)
    _show(checked, json, world, show_checked)
    if not checked.sound:
        raise typer.Exit(1)


@app.command(epilog="Example: snrkit audit my-pipeline --steps 25")
def audit(
    what: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            metavar="FILE|RUN|FOLDER",
            help="A YAML, a run directory, a folder of diffusers (or hf:owner/name), a scheduler_config.json; or demo.",
        ),
    ] = None,
    config: Annotated[Optional[Path], typer.Option("--config", "-c", help="Audit this experiment.")] = None,  # noqa: UP045
    settings: SetOption = None,
    sampler: SamplerOption = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--steps", help="Of a scheduler of diffusers; default: 50."),
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Nats, beyond which the exit code is 1.")] = 0.01,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Compare the level that the network is told with the level that it is shown, call by call, without an image."""
    if (config is None) == (what is None):
        raise SnrkitError("audit takes a YAML, a run directory, a folder of diffusers or a scheduler_config.json.")
    if what is not None and (what.suffix in ENDINGS or is_demo(what)):
        config, what = what, None
    if what is not None and settings:
        raise SnrkitError("--set overrides an experiment's file; it needs --config FILE.")
    if config is not None and steps is not None:
        raise SnrkitError("--steps is for schedulers of diffusers; samplers of an experiment have a grid with its own.")
    world = _open_world(device)
    from snrkit.commands.audit import audit_experiment, run_auditing
    from snrkit.reports.terminal import show_audit

    world.check_alone("audit")
    if what is not None:
        with bar(f"auditing {what}"):
            found = run_auditing(what, steps, tolerance, world, sampler or ())
    else:
        assert config is not None
        experiment = _load(config, settings)
        with bar(f"auditing {experiment.name}"):
            found = audit_experiment(experiment, tolerance, world, sampler or ())
    _show(found, json, world, show_audit)
    if found.beyond:
        raise typer.Exit(1)


@data.command("pack", epilog="Example: snrkit data pack my-photos -o photos-64.zip --size 64")
def data_pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder or a zip of images of any sizes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The zip to write.")],
    size: Annotated[int, typer.Option("--size", min=1, max=4096, help="Height and width that all images get.")],
    crop: Annotated[
        str, typer.Option("--crop", help="center: the central square; none: refuse what is not square.")
    ] = "center",
    labels: Annotated[
        str,
        typer.Option(
            "--labels", help="auto: of dataset.json where there is one; folders: of first-level folders; none."
        ),
    ] = "auto",
    channels: Annotated[
        str, typer.Option("--channels", help="1: grey, 3: RGB, to which others are converted; auto: all agree.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the zip that is there.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Pack images as square PNGs of one size into a zip in EDM's layout, which trains fastest."""
    world = _alone("data pack")
    from snrkit.commands.data_pack import PackOptions, run_packing
    from snrkit.reports.terminal import show_pack

    with bar(f"packing {source}"):
        record = run_packing(source, out, PackOptions(size, crop, labels, channels), overwrite, quiet)
    _show(record, json, world, show_pack)


@app.command(epilog="Example: snrkit report runs/mine runs/other -o both.html")
def report(
    directories: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(metavar="[RUN]...", help="Run directories; several go on one page."),
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--config", "-c", help="YAML file of the experiment, in place of run directories."),
    ] = None,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file of several runs; default: beside the first.")
    ] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Write report.md and report.html from what run directories hold, and print the table."""
    if (config is None) == (not directories):
        raise SnrkitError("report: give run directories, or a YAML by --config.")
    one = directories[0] if directories and len(directories) == 1 else None
    if one is not None and (one.suffix in ENDINGS or is_demo(one)):
        config, directories, one = one, None, None
    if config is not None and out is not None:
        raise SnrkitError("report: -o names the page of run directories; the report of a YAML lies in its own.")
    if directories and settings:
        raise SnrkitError("report: --set changes a YAML; give it by --config.")
    experiment = None if config is None else _load(config, settings)
    with bar("writing the report"):
        from snrkit.reports.terminal import make_report, make_runs_report, show_report

        made = make_runs_report(directories or [], out) if experiment is None else make_report(experiment, runs)
    then = "" if one is None else shlex.join(["snrkit", "certify", str(one)])
    show_report(*made, then if config is None else _command("certify", config, settings, runs))


@app.command(epilog="Example: snrkit run mine.yaml")
@on_experiment
def run(
    config: ConfigOption,
    settings: SetOption = None,
    runs: RunsOption = RUNS,
    device: DeviceOption = "auto",
    dry_run: DryOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Everything in one go: train, sample, measure-shift, eval-fid, report."""
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.dry_run import plan
    from snrkit.commands.run_all import run_everything
    from snrkit.reports.terminal import show_report

    if dry_run:
        _planned(lambda: plan(experiment, world, sampled=list(experiment.samplers)))
        return
    with bar(experiment.name):
        made = run_everything(experiment, runs, world, quiet)
    show_report(*made, _command("certify", config, settings, runs))


@data.command(epilog="Example: snrkit data encode mine.yaml --vae my-pipeline/vae -o latents.npz")
@on_experiment
def encode(
    config: ConfigOption,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to make; default: data.path of latents.")
    ] = None,
    vae: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--vae", help="Folder of the autoencoder, as diffusers saves it; default: data.vae of latents."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16, in which latents are kept.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_every: EveryOption = EVERY,
) -> None:
    """Encode all images of a data set through an autoencoder, into one file for `data: {kind: latents}`.

    The experiment's data are the images; or they are latents, and name the images (`of`), the autoencoder and the file.
    """
    experiment, world = _begin(config, settings, device)
    from snrkit.commands.data_encode import run_encoding
    from snrkit.reports.terminal import show_encoded

    with bar(experiment.name):
        found = run_encoding(experiment, world, out, vae, dtype, overwrite, quiet)
    _show(found, json, world, show_encoded)


@app.command(epilog="Example: snrkit validate mine.yaml --data")
def validate(
    files: Annotated[list[Path], typer.Argument(help="YAML files.")],
    images: Annotated[bool, typer.Option("--data", help="Open the images too, and say what they are.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check experiment files and print all their faults."""
    with loading("starting"):
        from snrkit.commands.sweep import check_file
        from snrkit.commands.validate import images_of

    faults = []
    for file in files:
        try:
            with bar(f"checking {file}"):
                checked = check_file(file_of(file))
                said = images_of(checked, _open_world("cpu")) if images else []
            print("\n".join([f"{file}: valid", *said]))
        except SnrkitError as error:
            faults.append(str(error))
    if faults:
        raise SnrkitError("\n".join(faults))


@app.command(epilog="Example: snrkit schema > experiment.schema.json")
def schema(quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Print the JSON schema of experiment files, for editors."""
    import json

    from snrkit.experiment.experiment import file_schema

    print(json.dumps(file_schema(), indent=1))


def _load(config: Path, settings: Sequence[str] | None) -> "Experiment":
    with loading(f"reading {config}"):
        from snrkit.experiment.experiment import load_experiment

        return load_experiment(config, settings or ())


def _planned(plan: Callable[[], str]) -> None:
    """Print what a dry run says."""
    with bar("planning"):
        text = plan()
    print(text)


def _check_shown(show_config: bool, dry_run: bool) -> None:
    if show_config and not dry_run:
        raise SnrkitError("--show-config prints what a dry run would do; add --dry-run.")


def _open_world(device: str) -> "World":
    with loading("starting torch"):
        from snrkit.base.distributed import open_world

        import_module("snrkit.reports.terminal")  # with most of what commands import, which takes a second
        return open_world(device)


def _begin(config: Path, settings: Sequence[str] | None, device: str) -> "tuple[Experiment, World]":
    return _load(config, settings), _open_world(device)


def _given(options: Mapping[str, object]) -> str:
    """The names of options that were given."""
    return ", ".join(name for name, value in options.items() if value is not None)


def _alone(command: str) -> "World":
    world = _open_world("cpu")
    world.check_alone(command)
    return world


def _command(name: str, config: Path, settings: Sequence[str] | None, runs: Path) -> str:
    """A command about the same experiment, to be copied."""
    asked = [part for setting in settings or () for part in ("--set", setting)]
    where = [] if runs == RUNS else ["--runs", str(runs)]
    what = [] if config.suffix in ENDINGS or is_demo(config) else ["--config"]
    return shlex.join(["snrkit", name, *what, str(config), *asked, *where])


def _made(what: str, where: Path, then: str, as_json: bool, world: "World") -> None:
    """Say what was made, where it lies and what comes next, but where a script reads the output."""
    if world.leads and not as_json:
        from snrkit.reports.terminal import show_made

        show_made(what, where, then)


def _show(records: Any, as_json: bool, world: "World", show: Any) -> None:
    import json

    if world.leads:
        from snrkit.base.records import to_json

        print(json.dumps(to_json(records), indent=1)) if as_json else show(records)


def _pair(images: Sequence[str], settings: Sequence[str] | None, root: Path | None, device: str, as_json: bool) -> None:
    if len(images) != 2:
        raise SnrkitError(
            f"eval-fid compares two sets of images, and {len(images)} was given: eval-fid IMAGES REFERENCE."
        )
    world = _open_world(device)
    from snrkit.commands.eval_fid import score_pair
    from snrkit.experiment.experiment import parse_metrics
    from snrkit.reports.terminal import show_pair

    with bar(f"{images[0]} against {images[1]}"):
        found = score_pair(images[0], images[1], parse_metrics(settings or ()), root, world)
    _show(found, as_json, world, show_pair)


if __name__ == "__main__":
    main()
