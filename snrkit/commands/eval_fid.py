"""`snrkit eval-fid`: scores of a run's samplers over disjoint seed ranges, of checkpoints, or of two sets of images."""

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from snrkit import __version__
from snrkit.base.arrays import DAMAGED, array_names
from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, DataError, RunError, SnrkitError
from snrkit.base.files import disk_errors, read_json, write_json
from snrkit.base.streams import MEMORISATION
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands.progress import bar
from snrkit.commands.sample import choose, is_made, load_images, make_images
from snrkit.data import AnySource, Cifar10, Digits, FashionMnist, Folder, Mnist, Npz, Photos, Zip
from snrkit.data.dataset import Dataset, Split, chunks, memory_dataset, to_unit
from snrkit.experiment.experiment import ComputeConfig, Experiment
from snrkit.experiment.opening import Opened, open_experiment, open_model, resolve_precision, set_compute
from snrkit.experiment.run import Run, locked
from snrkit.experiment.stored import trained_run
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import Extractor, make_extractor
from snrkit.metrics.scores import (
    FeatureSet,
    Memorisation,
    Scores,
    extract,
    load_statistics,
    memorisation,
    reference_features,
    score,
)
from snrkit.metrics.statistics import frechet
from snrkit.sampling.sampler import dry_run, parse_seeds

MEMORISATION_IMAGES = 4096


def run_scoring(
    experiment: Experiment,
    runs: Path,
    world: World,
    names: Sequence[str] = (),
    checkpoints: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score the chosen samplers (all by default); with `checkpoints`, each of them at several checkpoints."""
    chosen = choose(experiment, names)
    opened = open_experiment(experiment, world)
    run = trained_run(runs, opened.experiment, opened.dataset.fingerprint)
    paths = None if checkpoints is None else choose_checkpoints(run, checkpoints)
    with locked(run) if world.leads else contextlib.nullcontext():
        world.barrier()
        extractor, reference = open_reference(opened)
        if paths is not None:
            return {n: _curve(opened, run, n, paths, extractor, reference, quiet) for n in chosen}
        records: dict[str, Any] = {}
        with bar("scoring", len(chosen), world.leads and not quiet) as progress:
            for index, name in enumerate(chosen):
                records[name] = score_folder(opened, name, run.samples(name), extractor, reference)
                progress.update(index + 1, name)
                if world.leads:
                    _write(run.metrics(name), records[name])
    return records


def choose_checkpoints(run: Run, which: str) -> list[Path]:
    """The checkpoints meant by 'all' or 'last N', oldest first."""
    first, _, number = which.partition(" ")
    if which == "all":
        return list_checkpoints(run.checkpoints)
    if first != "last" or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"--checkpoints '{which}': write all, or 'last N'.")
    return list_checkpoints(run.checkpoints)[-int(number) :]


def open_reference(opened: Opened) -> tuple[Extractor, FeatureSet]:
    """The extractor of an experiment and its features of the training split."""
    config, world = opened.experiment.metrics, opened.world
    if not world.leads:
        world.barrier()  # the leader fills the cache before the others look
    extractor = make_extractor(config, opened.labelled, opened.split, world.device)
    if world.leads:
        world.barrier()
    return extractor, reference_features(extractor, opened.labelled, opened.split.train, config.batch, world)


def score_folder(
    opened: Opened, name: str, folder: Path, extractor: Extractor, reference: FeatureSet
) -> dict[str, Any]:
    """The record of one sampler's images: ranges of seeds, their summary, and how near they come to training images."""
    e, world = opened.experiment, opened.world
    seeds = parse_seeds(e.sample.seeds)
    missing = sum(not is_made(folder, seed) for seed in seeds)
    if missing:
        raise RunError(f"{missing} of {len(seeds)} images of {name} are not in {folder}; run snrkit sample first.")
    made = read_json(folder / "manifest.json")
    if made["sampler"] != e.samplers[name].model_dump(mode="json"):
        raise RunError(f"{folder} was made by another definition of {name}; run snrkit sample --overwrite first.")
    images = load_images(folder, seeds)
    samples = memory_dataset(name, images)
    each = score_ranges(opened, samples, extractor, reference)
    near = _memorisation(opened, images) if opened.split.held and world.leads else None
    return {
        "sampler": name,
        "definition": made["sampler"],
        "nfe": dry_run(e.samplers[name], e.process, e.target, opened.dataset.shape, e.spectral),
        "checkpoint_images": made["checkpoint_images"],
        "weights": made["weights"],
        "seeds": e.sample.seeds,
        **_about(extractor),
        "reference": f"{opened.dataset.name}, training split, {len(opened.split.train)} images",
        "ranges": each,
        "summary": summarise(each),
        "memorisation": None if near is None else asdict(near),
        "made_with": provenance(world),
    }


def score_ranges(
    opened: Opened, samples: Dataset, extractor: Extractor, reference: FeatureSet
) -> list[dict[str, Any]]:  # fmt: skip
    """The scores of images over metrics.ranges disjoint ranges."""
    config, world = opened.experiment.metrics, opened.world
    return [
        asdict(score(extract(extractor, samples, part, config.batch, world), reference, config))
        for part in disjoint(samples.count, config.ranges)
    ]


def _memorisation(opened: Opened, images: Tensor) -> Memorisation:
    """Against the training split, mirrored too where training mirrors."""

    def train() -> Iterator[Tensor]:
        for run in chunks(opened.split.train, 8192):
            x0 = opened.labelled.x0(run)
            yield x0
            if opened.experiment.data.flip:
                yield x0.flip(3)

    held = MEMORISATION.open().permutation(opened.split.held)[:MEMORISATION_IMAGES].tolist()
    return memorisation(to_unit(images[:MEMORISATION_IMAGES]), opened.labelled.x0(held), train)


def provenance(world: World) -> dict[str, Any]:
    """What a score depends on beside images and features."""
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "torch-fidelity", "numpy")}
    return {"snrkit": __version__, **versions, "device": str(world.device), "processes": world.size}


def _about(extractor: Extractor) -> dict[str, Any]:
    return {
        "features": extractor.name,
        "features_note": extractor.note,
        "features_key": extractor.key,
        "names": {key: extractor.label(key) for key in ("fd", "is", "kid")},
    }


def disjoint(count: int, ranges: int) -> list[range]:
    """`ranges` disjoint runs of equal length over `count` images; a remainder is left out. SnrkitError when too few."""
    size = count // ranges
    if size < 2:
        raise SnrkitError(f"{count} images do not make {ranges} ranges; make more images or lower metrics.ranges.")
    return [range(i * size, (i + 1) * size) for i in range(ranges)]


SCORED = ("fd", "inception_score", "kid", "precision", "recall")


def summarise(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, minimum, maximum and standard deviation of every score over the ranges."""
    summary: dict[str, Any] = {}
    for key in SCORED:
        values = [float(record[key]) for record in each if record[key] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            low, high = min(values), max(values)
            summary[key] = {"mean": statistics.fmean(values), "min": low, "max": high, "std": spread}
    return summary


def _curve(
    opened: Opened,
    run: Run,
    name: str,
    paths: Sequence[Path],
    extractor: Extractor,
    reference: FeatureSet,
    quiet: bool,
) -> dict[str, Any]:
    """The sampler's scores at several checkpoints; the best is marked as selected by the same score."""
    points = []
    for images in (int(path.name) for path in paths):
        folder = run.samples(f"{name}@{images:09d}")
        model = open_model(opened, run, images)
        sampler = opened.experiment.samplers[name]
        make_images(opened, model, f"{name} @{images}", folder, sampler, False, quiet)
        points.append(score_folder(opened, name, folder, extractor, reference))
    best = min(points, key=lambda point: float(point["summary"]["fd"]["mean"]))
    record = {"sampler": name, "points": points, "selected_images": best["checkpoint_images"], "selected_by": "fd"}
    if opened.world.leads:
        _write(run.metrics(f"{name}-checkpoints"), record)
    return record


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with disk_errors(f"writing {path}", "free space and run the same command again"):
        write_json(path, record)


def score_pair(first: str, second: str, config: MetricsConfig, root: Path | None, world: World) -> dict[str, Any]:
    """Scores of images `first` against the reference `second`: folder, zip, npz, data set name or statistics .npz."""
    set_compute(resolve_precision(ComputeConfig(), world.device), world.device)
    sets = [_open_side(text, root) for text in (first, second)]
    _check_pair(first, second, sets, config)
    images = [side for side in sets if isinstance(side, Dataset)]
    if not images:
        distance = frechet(*(load_statistics(side) for side in sets if isinstance(side, Path)))
        return {"first": first, "second": second, "names": INCEPTION_NAMES, **asdict(Scores(0, distance))}
    basis = images[-1]
    extractor = make_extractor(config, basis, Split(tuple(range(basis.count)), ()), world.device)
    found = extract(extractor, images[0], range(images[0].count), config.batch, world)
    warnings = []
    if isinstance(sets[1], Path):
        reference = FeatureSet(load_statistics(sets[1]))
    else:
        reference = reference_features(extractor, sets[1], range(sets[1].count), config.batch, world)
        if images[0].count != sets[1].count:
            warnings.append(
                f"{images[0].count} images against {sets[1].count}: the distance is biased by the smaller count; "
                "compare it only with scores of the same counts."
            )
        if images[0].shape != sets[1].shape:
            warnings.append(f"{first} has images of {_size(images[0])}, {second} of {_size(sets[1])}.")
    record = asdict(score(found, reference, config))
    warnings += record.pop("warnings")
    about = {"first": first, "second": second, **_about(extractor)}
    return {**about, **record, "warnings": warnings, "made_with": provenance(world)}


INCEPTION_NAMES = {"fd": "FID", "is": "IS", "kid": "KID"}


def _check_pair(first: str, second: str, sets: Sequence[Dataset | Path], config: MetricsConfig) -> None:
    a, b = sets
    if isinstance(a, Path) and isinstance(b, Dataset):
        raise ConfigError(f"{first} holds statistics, not images; give images first and the reference second.")
    if isinstance(a, Dataset) and isinstance(b, Path) and config.features != "inception":
        raise ConfigError(f"{second} holds Inception's statistics; score it with --set features=inception.")
    resized = config.features not in ("classifier", "pixels")  # these extractors bring images to one size themselves
    if isinstance(a, Dataset) and isinstance(b, Dataset) and a.shape != b.shape and not resized:
        raise DataError(f"{first} has images of {_size(a)}, {second} of {_size(b)}; convert one of them.")


def _size(dataset: Dataset) -> str:
    return f"{dataset.shape[2]}x{dataset.shape[1]} with {dataset.shape[0]} channel(s)"


def _open_side(text: str, root: Path | None) -> Dataset | Path:
    named: dict[str, AnySource] = {"digits": Digits(), "photos": Photos()}
    if root is not None:
        named |= {"mnist": Mnist(root=root), "fashion_mnist": FashionMnist(root=root), "cifar10": Cifar10(root=root)}
    path = Path(text)
    if path.is_dir():
        return Folder(path=path).open()
    if path.suffix == ".zip":
        return Zip(path=path).open()
    if path.suffix == ".npz" and path.is_file():
        return path if _has_statistics(path) else Npz(path=path).open()
    if text in named:
        return named[text].open()
    if text in ("mnist", "fashion_mnist", "cifar10"):
        raise ConfigError(f"data set {text} needs --root, the folder where torchvision keeps it.")
    raise ConfigError(f"{text} is neither a folder, a .zip, an .npz file nor a data set ({', '.join(named)}).")


def _has_statistics(path: Path) -> bool:
    try:
        return "mu" in array_names(path)
    except DAMAGED:
        return False
