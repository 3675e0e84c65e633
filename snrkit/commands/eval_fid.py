"""`snrkit eval-fid`: scores of a run's samplers over disjoint seed ranges, of checkpoints, or of two sets of images."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from snrkit import __version__
from snrkit.base.arrays import DAMAGED, array_names
from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, DataError, RunError
from snrkit.base.files import disk_errors
from snrkit.base.hub import local
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import from_json, to_json
from snrkit.base.sealed import write_json
from snrkit.base.signals import ending
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands.opening import open_aloud, open_model_aloud, open_scorer_aloud, say_conversions
from snrkit.commands.progress import READINGS, bar, follow, log
from snrkit.commands.sample import check_images, choose, make_images, manifest, path_beside
from snrkit.data import AnySource, Folder, Npz, Zip
from snrkit.data.dataset import Dataset, OpensDataset, Split, opening
from snrkit.experiment.experiment import ComputeConfig, Experiment
from snrkit.experiment.lock import locked
from snrkit.experiment.loggers import Loggers, check_loggers, open_loggers
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Opened, resolve_precision, set_compute
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.experiment.scorer import Scorer
from snrkit.experiment.sources import RunNames
from snrkit.experiment.stored import trained_run
from snrkit.experiment.trajectories import trajectories
from snrkit.metrics.config import OF_ONE_SIZE, MetricsConfig
from snrkit.metrics.extractors import making_extractor
from snrkit.metrics.features import FeatureSet, extracting, extracting_reference, load_statistics
from snrkit.metrics.records import PairScores, SamplerScores, ScoreCurve
from snrkit.metrics.scores import INCEPTION, by_key, score, score_statistics, summarise, titles_on
from snrkit.sampling.sampler import parse_seeds


def run_scoring(
    experiment: Experiment, runs: Path, world: World, names: Sequence[str] = (), quiet: bool = False
) -> dict[str, SamplerScores]:
    """Score the chosen samplers, all by default."""
    chosen = choose(experiment, names)
    check_loggers(experiment)
    shown = world.leads and not quiet
    opened = open_aloud(experiment, world, quiet)
    run = trained_run(runs, opened.experiment, opened.data.dataset.fingerprint)
    records, at = {}, opened.experiment.sample.checkpoint
    with locked(run) if world.leads else ending():
        world.barrier()
        with (
            open_loggers(opened.experiment, run, world) as loggers,
            bar("scoring", len(chosen), shown, "samplers") as progress,
        ):
            scorer = open_scorer_aloud(opened.setting, opened.experiment.metrics, shown)
            for index, name in enumerate(chosen):
                progress.say(name)
                records[name] = score_folder(opened, run, name, SampleFolder(run.samples(name)), scorer, at, quiet)
                progress.update(index + 1, f"{name}: {newest(records[name])}")
                if world.leads:
                    _write(run.metrics(name), records[name])
                loggers.scores(records[name])
    return records


def run_curves(
    experiment: Experiment, runs: Path, world: World, names: Sequence[str], which: str, quiet: bool = False
) -> dict[str, ScoreCurve]:
    """Score the chosen samplers at several checkpoints, `which`: all, or the 'last N'."""
    chosen = choose(experiment, names)
    check_loggers(experiment)
    opened = open_aloud(experiment, world, quiet)
    check_images(opened.setting)
    run = trained_run(runs, opened.experiment, opened.data.dataset.fingerprint)
    paths = choose_checkpoints(run, which)
    with locked(run) if world.leads else ending():
        world.barrier()
        scorer = open_scorer_aloud(opened.setting, opened.experiment.metrics, world.leads and not quiet)
        with open_loggers(opened.experiment, run, world) as loggers:
            return {name: _curve(opened, run, name, paths, scorer, loggers, quiet) for name in chosen}


def choose_checkpoints(run: Run, which: str) -> list[Path]:
    """The checkpoints meant by 'all' or 'last N', oldest first."""
    first, _, number = which.partition(" ")
    if which == "all":
        return list_checkpoints(run.checkpoints)
    if first != "last" or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"--checkpoints '{which}': write all, or 'last N'.")
    return list_checkpoints(run.checkpoints)[-int(number) :]


def score_folder(
    opened: Opened, run: Run, name: str, folder: SampleFolder, scorer: Scorer, at: int | None, quiet: bool = False
) -> SamplerScores:
    """The record of one sampler's images: ranges of seeds, their summary, and how near they come to training images.

    `at`: as in `check_made`.
    """
    e, data, extractor = opened.experiment, opened.data, scorer.extractor
    seeds = parse_seeds(e.sample.seeds)
    missing = len(folder.missing(seeds))
    if missing:
        raise RunError(f"{missing} of {len(seeds)} images of {name} are not in {folder.path}; run snrkit sample first.")
    made = check_made(opened, run, name, folder, at)
    images = folder.dataset(seeds, data.labelled.shape)
    shown = opened.world.leads and not quiet
    each = follow(scorer.scoring(images), shown)
    with bar("memorisation", None, shown, READINGS):
        memorised = scorer.memorisation(images)
    return SamplerScores(
        numerics=NUMERICS,
        sampler=name,
        definition=made["sampler"],
        nfe=opened.setting.cost(e.samplers[name]),
        checkpoint_images=made["checkpoint_images"],
        weights=made["weights"],
        seeds=e.sample.seeds,
        features=extractor.name,
        features_note=extractor.note,
        features_key=extractor.key,
        names=titles_on(extractor.name),
        reference=f"{data.labelled.name}, training split, {len(data.split.train)} images",
        ranges=each,
        summary=summarise(each),
        memorisation=memorised,
        made_with=provenance(opened.world),
        decided_by=scorer.config.decide,
    )


def newest(record: SamplerScores) -> str:
    """The score that decides, in a few words."""
    decisive = by_key(record.decided_by)
    return f"{decisive.head(record.names)} {record.summary[decisive.key].mean:.{decisive.digits}f}"


def check_made(opened: Opened, run: Run, name: str, folder: SampleFolder, at: int | None) -> dict[str, Any]:
    """The manifest of a folder of images. RunError where the experiment would make others of the same checkpoint.

    `at`: the images seen by the checkpoint that they must be of; None: any, as the training may have gone on.
    """
    stored = folder.manifest()
    e, made = opened.experiment, dict(stored.made if stored is not None else {})
    images = from_json(int, made.get("checkpoint_images", 0), folder.path / "manifest.json") if at is None else at
    try:
        weights = e.model.find(run, images, e.sample.average)
    except RunError:  # the checkpoint is gone, and its images are still its images
        average = e.sample.average or made.get("weights", "")
        weights = Weights(average, images, made.get("weights_checksum", ""))
    wanted = manifest(RunNames(e, opened.setting, run, weights), e.samplers[name])
    if differing := [key for key, value in wanted.items() if made.get(key) != value]:
        raise RunError(
            f"{folder.path} holds images of another sampler or other weights than {name} is now "
            f"({', '.join(differing)} differ); make them anew with snrkit sample --overwrite."
        )
    return made


def provenance(world: World) -> dict[str, Any]:
    """What a score depends on beside images and features."""
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "torch-fidelity", "numpy")}
    return {"snrkit": __version__, **versions, "device": str(world.device), "processes": world.size}


def _curve(
    opened: Opened, run: Run, name: str, paths: Sequence[Path], scorer: Scorer, loggers: Loggers, quiet: bool
) -> ScoreCurve:
    """The sampler's scores at several checkpoints; the best is marked as selected by the same score."""
    points: list[SamplerScores] = []
    with bar(f"checkpoints of {name}", len(paths), opened.world.leads and not quiet, "checkpoints") as progress:
        for images in (int(path.name) for path in paths):
            folder = SampleFolder(run.samples_at(name, images))
            samples = trajectories(opened, open_model_aloud(opened, run, images))
            make_images(samples, f"{name} @{images}", folder, opened.experiment.samplers[name], False, quiet)
            points.append(score_folder(opened, run, name, folder, scorer, images, quiet))
            progress.update(len(points), f"{images:,} images: {newest(points[-1])}")
            loggers.scores(points[-1])
            loggers.picture(name, images, path_beside(folder.path, ".png"))
    key = scorer.config.decide
    if opened.world.leads and any(key in point.biased for point in points):
        title = by_key(key).on(scorer.extractor.name)
        log.warning(f"{name}: {title} of too few images chooses the best checkpoint; use more, or let KID decide")
    best = min(points, key=lambda point: point.summary[key].mean)  # a distance
    record = ScoreCurve(name, tuple(points), best.checkpoint_images, key)
    if opened.world.leads:
        _write(run.curve(name), record)
    return record


def _write(path: Path, record: SamplerScores | ScoreCurve) -> None:
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_json(path, to_json(record))


def score_pair(first: str, second: str, config: MetricsConfig, root: Path | None, world: World) -> PairScores:
    """Scores of images `first` against the reference `second`: folder, zip, npz, data set name or statistics .npz."""
    set_compute(resolve_precision(ComputeConfig(), world.device), world.device)
    sets = [_open_side(text, root, world) for text in (first, second)]
    _check_pair(first, second, sets, config)
    images = [side for side in sets if isinstance(side, Dataset)]
    for side in images:
        say_conversions(side, world)
    if not images:
        moments = [FeatureSet(load_statistics(side)) for side in sets if isinstance(side, Path)]
        found = score_statistics(moments[0], moments[1], config)
        return PairScores(first, second, None, None, None, titles_on(INCEPTION), found)
    basis = images[-1]
    extractor = follow(making_extractor(config, basis, Split(tuple(range(basis.count)), ()), world.device), world.leads)
    features = follow(extracting(extractor, images[0], range(images[0].count), config.batch, world), world.leads)
    warnings = []
    if isinstance(sets[1], Path):
        reference = FeatureSet(load_statistics(sets[1]))
    else:
        rows = range(sets[1].count)
        reference = follow(extracting_reference(extractor, sets[1], rows, config.batch, world), world.leads)
        if images[0].count != sets[1].count:
            warnings.append(
                f"{images[0].count} images against {sets[1].count}: the distance is biased by the smaller count; "
                "compare it only with scores of the same counts."
            )
        if images[0].shape != sets[1].shape:
            warnings.append(f"{first} has images of {_size(images[0])}, {second} of {_size(sets[1])}.")
    with bar("scores", shown=world.leads):
        scores = score(features, reference, config)
    scores = replace(scores, warnings=(*warnings, *scores.warnings))
    names, made_with = titles_on(extractor.name), provenance(world)
    return PairScores(first, second, extractor.name, extractor.note, extractor.key, names, scores, made_with)


def _check_pair(first: str, second: str, sets: Sequence[Dataset | Path], config: MetricsConfig) -> None:
    a, b = sets
    for name, side in zip((first, second), sets, strict=True):
        if isinstance(side, Dataset) and side.count < 2:
            raise DataError(f"{name} holds 1 image, which is too few to score; give at least 2, better many more.")
    if isinstance(a, Path) and isinstance(b, Dataset):
        raise ConfigError(f"{first} holds statistics, not images; give images first and the reference second.")
    if isinstance(a, Dataset) and isinstance(b, Path) and config.features != "inception":
        raise ConfigError(f"{second} holds Inception's statistics; score it with --set features=inception.")
    resized = config.features not in OF_ONE_SIZE  # the others bring images to one size themselves
    if isinstance(a, Dataset) and isinstance(b, Dataset) and a.shape != b.shape and not resized:
        raise DataError(f"{first} has images of {_size(a)}, {second} of {_size(b)}; convert one of them.")


def _size(dataset: Dataset) -> str:
    return f"{dataset.shape[2]}x{dataset.shape[1]} with {dataset.shape[0]} channel(s)"


def _open_side(text: str, root: Path | None, world: World) -> Dataset | Path:
    path = Path(text)
    here = local(path)
    if here.is_dir():
        SampleFolder(here).check_listed()
        return _opened(Folder(path=path), world)
    if here.suffix == ".zip":
        return _opened(Zip(path=path), world)
    if here.suffix == ".npz" and here.is_file():
        return here if _has_statistics(here) else _opened(Npz(path=path), world)
    named = _named_sources()
    if text not in named:
        raise ConfigError(f"{text} is neither a folder, a .zip, an .npz file nor a data set ({', '.join(named)}).")
    kind = named[text]
    rooted = "root" in kind.model_fields
    if rooted and root is None:
        raise ConfigError(f"data set {text} needs --root, the folder where torchvision keeps it.")
    return _opened(kind(root=root) if rooted else kind(), world)


def _opened(source: OpensDataset, world: World) -> Dataset:
    return follow(opening(source), world.leads)


def _named_sources() -> dict[str, Any]:
    """The kinds of data sets that need no more than a name and, perhaps, a root."""
    kinds = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(AnySource)[0])}
    asked = {name: {key for key, f in kind.model_fields.items() if f.is_required()} for name, kind in kinds.items()}
    return {name: kind for name, kind in kinds.items() if asked[name] <= {"root"}}


def _has_statistics(path: Path) -> bool:
    try:
        return "mu" in array_names(path)
    except DAMAGED:
        return False
