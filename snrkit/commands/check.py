"""`snrkit check`: whether everything in a run directory is what was written, and what to do where it is not.

Each file is read as the command reads it that goes on from it: checksums, types, finite weights, every image against
its manifest, the log against the newest checkpoint. What another command makes again is put aside with `--repair`, in
RUN/damaged, where nothing reads it; what none can make again, or the disk does not give, is only named. Without
`--repair` nothing is written.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from snrkit.base.errors import DamagedError, NotRegularError, RunError, SnrkitError, UnreadableError, unreadable
from snrkit.base.files import leftovers
from snrkit.base.records import read_record
from snrkit.base.regular import read_regular
from snrkit.base.sealed import read_json, read_lines
from snrkit.base.tensors import read_tensors
from snrkit.checkpoints.ours import list_checkpoints, load_checkpoint, newest_checkpoint, numbers_of
from snrkit.commands.compare import Kept, Timed
from snrkit.commands.sweep import TrialRow
from snrkit.commands.tune import evaluations
from snrkit.data.images import LARGEST_IMAGE
from snrkit.experiment.certificate import Certificate, TriedCandidate
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.fits import StoredFit
from snrkit.experiment.lock import check_idle, links, locked, put_aside
from snrkit.experiment.log import check_lines, read_log
from snrkit.experiment.loggers import Logged
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import Manifest, SampleFolder
from snrkit.experiment.sources import FittedEstimator, read_spectra
from snrkit.experiment.stored import check_of, stored_environment, stored_experiment, stored_training
from snrkit.metrics.records import SamplerScores, ScoreCurve
from snrkit.reports.blocks import is_picture
from snrkit.reports.records import Checked, Comparison, Designed, Finding, Tuned
from snrkit.shift.files import shift_record

LINK = "is a link, which no run directory may hold; nothing else was looked at"
PICTURES = {
    "loss.png": "report", "shift/*.png": "measure-shift", "samples/*.png": "sample", "compare/samples/*.png": "compare",
    "analysis/**/*.png": "analyze",
}  # fmt: skip
TORN = "has a torn last line, as a kill leaves it"
ALONE = "restore it from a copy, or delete it: no command makes it again"
DISK = "see to its disk, its permissions and what memory is free"


@dataclass(frozen=True, slots=True)
class Fault:
    """A finding, and whether a command makes the file again, which is then put aside."""

    path: Path
    what: str
    remedy: str
    again: bool = False


def run_checking(path: Path, repair: bool) -> Checked:
    """Check all of a run directory; with `repair`, make right what can be made again. RunError where there is none."""
    run = Run(path)
    if not run.config.exists() and newest_checkpoint(run.checkpoints) is None:
        below = [found.parent for found in sorted(path.glob("*/config.yaml"))[:3]]
        advice = f"; name one of the runs in it, such as {below[0]}" if below else ""
        raise RunError(f"{path} is not a run directory (it has no config.yaml and no checkpoint){advice}.")
    linked = [_finding(Fault(link, LINK, "put its target in its place, or delete it"), path) for link in links(run)]
    if linked:  # nothing is locked, moved or followed
        return Checked(str(path), 0, 0, 0, linked)
    remedy = "the next command that writes there deletes it"
    left = [Fault(found, "was left by a killed command", remedy) for found in leftovers(path)]
    if not repair:
        check_idle(run)
    with locked(run) if repair else nullcontext():  # which deletes what was left
        faults = [fault for area in AREAS for fault in area(run)]
        found = [_settle(fault, run, repair) for fault in faults]
        if repair:
            _unlist(run, {fault.path for fault in faults if fault.again})
    cleared = [_repaired(fault, path, "deleted") if repair else _finding(fault, path) for fault in left]
    return Checked(str(path), *_counts(run, {fault.path for fault in faults}), [*cleared, *found])


def _counts(run: Run, faulty: Set[Path]) -> tuple[int, int, int]:
    """How many files there are whose content was verified, others, and those that were put aside."""
    files = {path for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    aside = {path for path in files if run.damaged in path.parents}
    sound = {path for path in _sealed(run) if not faulty & {path, path.parent}} & files
    return len(sound), len(files - sound - aside), len(aside)


def _sealed(run: Run) -> Iterator[Path]:
    """The files whose content the areas verify by a checksum."""
    yield from (run.config, run.environment, run.log)
    for folder in (run.checkpoints, run.snapshots, *run.averages("").glob("*")):
        for path in list_checkpoints(folder):
            yield from (path / "state.json", *path.glob("*.safetensors"))
    yield from run.estimator.glob("*")
    for pattern in RECORDS:
        yield from run.path.glob(pattern)
    for samples in _sample_folders(run):
        yield samples.path / "manifest.json"
        with suppress(SnrkitError):
            stored = samples.manifest()
            yield from map(samples.image, {} if stored is None else stored.sums)


def _settle(fault: Fault, run: Run, repair: bool) -> Finding:
    if not repair or not fault.again:
        first = "delete it, or have --repair put it aside; then " if fault.again else ""
        return _finding(replace(fault, remedy=f"{first}{fault.remedy}"), run.path)
    if not fault.path.exists():
        return _repaired(fault, run.path, f"not listed any more; {fault.remedy}")
    folder = put_aside(run, fault.path).parent.relative_to(run.path)
    return _repaired(fault, run.path, f"put aside in {folder}; {fault.remedy}")


def _finding(fault: Fault, path: Path) -> Finding:
    return Finding(str(fault.path.relative_to(path)), fault.what, fault.remedy)


def _repaired(fault: Fault, path: Path, done: str) -> Finding:
    return replace(_finding(fault, path), remedy=done, repaired=True)


def _unlist(run: Run, gone: Set[Path]) -> None:
    """Have manifests list no image that was put aside, so that the next command sees what is missing."""
    for folder in _sample_folders(run):
        touched = any(folder.path in path.parents for path in gone)
        if touched and (stored := folder.manifest()) is not None:
            folder.write(stored.made, {s: known for s, known in stored.sums.items() if folder.image(s) not in gone})


def _fault(path: Path, read: Callable[[], object], remedy: str, again: bool = False) -> Fault | None:
    """What an error says on reading a file, without what it advises; None where there is none.

    What the disk does not give is not damaged, nor is what another version or somebody else wrote: it is not put aside.
    """
    try:
        read()
    except UnreadableError as error:
        return Fault(path, _what(error, path), DISK)
    except (DamagedError, NotRegularError) as error:
        return Fault(path, _what(error, path), remedy, again)
    except SnrkitError as error:
        return Fault(path, _what(error, path), f"it is of another version or not snrkit's: move it away, or {remedy}")
    return None


def _what(error: SnrkitError, path: Path) -> str:
    text = str(error).replace(f"{path}/", "").replace(f"{path}: ", "").replace(f"{path} ", "").replace(str(path), "it")
    return text.removeprefix("checkpoint ").partition("; ")[0].removesuffix(".")


def _records(run: Run) -> Iterator[Fault]:
    """Records that one command makes of others."""
    for pattern, (command, read) in RECORDS.items():
        for path in sorted(run.path.glob(pattern)):
            if fault := _fault(path, partial(read, path), _run_again(path, command), again=True):
                yield fault
            elif path.suffix == ".jsonl":
                yield from _growing(path)


def _growing(path: Path) -> Iterator[Fault]:
    records, torn = read_lines(path)
    if torn:
        yield Fault(path, TORN, "the next snrkit tune drops it")
    elif not records:
        yield Fault(path, "is empty", "run snrkit tune again", again=True)


def _scores(path: Path) -> object:
    return read_record(ScoreCurve if path.stem.endswith("@checkpoints") else SamplerScores, path)


def _pictures(run: Run) -> Iterator[Fault]:
    for pattern, command in PICTURES.items():
        for path in sorted(run.path.glob(pattern)):
            if fault := _fault(path, partial(_check_picture, path), _run_again(path, command), again=True):
                yield fault


def _run_again(path: Path, command: str) -> str:
    """What makes a file again that a command makes: of checkpoints, and of spectra, it does so when it is asked to."""
    if command in ("sample", "eval-fid") and "@" in path.name:
        command = "eval-fid --checkpoints all"
    if command == "analyze" and "spectrum" in path.parts:
        command = "analyze --spectrum"
    return f"run snrkit {command} again"


def _check_picture(path: Path) -> None:
    if not is_picture(path):
        raise DamagedError(f"{path} is no whole PNG.")


def _config(run: Run) -> Iterator[Fault]:
    remedy = "run snrkit train or sample with the same file, which writes it anew"
    if not run.config.exists():
        yield Fault(run.config, "is missing", remedy)
    elif fault := _fault(run.config, partial(stored_experiment, run.path), f"restore it, or delete it and {remedy}"):
        yield fault
    remedy = "restore it from a copy: no command makes it again as it was"
    if fault := _fault(run.environment, partial(stored_environment, run), remedy):
        yield fault


def _estimator(run: Run) -> Iterator[Fault]:
    def read() -> object:
        return read_tensors(run.estimator / "network.safetensors", read_record(FittedEstimator, record).what)

    record, remedy = run.estimator / "estimator.json", "run snrkit fit-estimator again"
    if run.estimator.exists() and (fault := _fault(run.estimator, read, remedy, again=True)):
        yield fault


def _checkpoints(run: Run) -> Iterator[Fault]:
    sound, training = False, _training(run)
    for path in list_checkpoints(run.checkpoints):  # oldest first
        back = sound and path == newest_checkpoint(run.checkpoints)
        remedy = "restore it, or go on from the one before with snrkit train --fall-back" if back else ALONE
        fault = _fault(path, partial(load_checkpoint, path), remedy, again=back) or _other(path, training)
        sound = sound or fault is None
        if fault:
            yield fault
    for path in list_checkpoints(run.snapshots):
        remedy = "restore it, or delete it: averages are then made of the others"
        if fault := _fault(path, partial(load_checkpoint, path), remedy) or _other(path, training):
            yield fault
    for folder in sorted(run.averages("").glob("*")):
        for path in list_checkpoints(folder):
            remedy = f"make {folder.name} again with snrkit average"
            if fault := _fault(path, partial(load_checkpoint, path), remedy, again=True) or _other(path, training):
                yield fault


def _other(path: Path, training: tuple[Experiment, str | None] | None) -> Fault | None:
    """The fault of weights that are of another training than the run's; None where that is not known."""
    if training is None:
        return None
    remedy = "put what belongs here in its place, or the config.yaml and environment.json that belong to it"
    try:
        check_of(path, numbers_of(path).get("of"), *training)
    except UnreadableError as error:
        return Fault(path, _what(error, path), DISK)
    except SnrkitError as error:
        return Fault(path, _what(error, path), remedy)
    return None


def _training(run: Run) -> tuple[Experiment, str | None] | None:
    """What the run says that it is of; None where that cannot be read, which is a fault of these files."""
    try:
        return stored_training(run)
    except SnrkitError:
        return None


def _log(run: Run) -> Iterator[Fault]:
    if not run.log.exists():
        return
    remedy, path = "restore it, or delete it to go on without what it said", newest_checkpoint(run.checkpoints)
    if fault := _fault(run.log, partial(read_log, run.log), remedy):
        yield fault
        return
    log = read_log(run.log)
    known = path is not None and _fault(path, partial(numbers_of, path), "") is None  # else named as a checkpoint
    if known and (fault := _fault(run.log, partial(check_lines, run, log), remedy)):
        yield fault
    elif log.torn:
        yield Fault(run.log, TORN, "the next snrkit train drops it")


def _samples(run: Run) -> Iterator[Fault]:
    for folder in _sample_folders(run):
        compared = folder.path.parent == run.compared_samples("")
        again = _run_again(folder.path, "compare" if compared else "sample")
        remedy = f"restore it, or delete it and {again}, which makes the images anew"
        if fault := _fault(folder.path / "manifest.json", folder.manifest, remedy):
            yield fault
            continue
        yield from _images(folder, again)
        yield from _labels(folder.path / "dataset.json", again)


def _sample_folders(run: Run) -> list[SampleFolder]:
    paths = [*run.samples("").glob("*/"), *run.compared_samples("").glob("*/")]
    return [SampleFolder(path) for path in sorted(paths)]


def _images(folder: SampleFolder, again: str) -> Iterator[Fault]:
    stored = folder.manifest() or Manifest({}, {})
    for seed, known in stored.sums.items():
        image, remedy = folder.image(seed), f"{again}, which makes it anew"
        if fault := _fault(image, partial(_check_image, folder, seed, known), remedy, again=True):
            yield fault
    if list(folder.path.glob("made-*.jsonl")):  # an interrupted command's, which the next one gathers
        return
    known_files = {folder.image(seed) for seed in stored.sums}
    for path in sorted(folder.path.glob("*/*.png")):
        if path not in known_files:
            remedy = f"{again}, which makes it anew where its seed is asked for, or delete it"
            yield Fault(path, "is not listed in manifest.json, as where a command was killed", remedy)


def _check_image(folder: SampleFolder, seed: int, known: str) -> None:
    if not folder.is_whole(seed, known):
        raise DamagedError(f"{folder.image(seed)} is not the image that was made.")


def _labels(path: Path, again: str) -> Iterator[Fault]:
    def read() -> object:
        try:
            content: Any = json.loads(read_regular(path, LARGEST_IMAGE))
            return {str(name): int(label) for name, label in content["labels"]}
        except OSError as error:
            raise unreadable(path, error) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DamagedError(f"{path} lists no labels of images.") from None

    if path.exists() and (fault := _fault(path, read, again, again=True)):
        yield fault


RECORDS: Mapping[str, tuple[str, Callable[[Path], object]]] = {  # by which command, and how they are read
    "metrics/*.json": ("eval-fid", _scores),
    "shift/*.json": ("measure-shift", lambda path: shift_record(read_json(path), path)),
    "compare/*.json": ("compare", partial(read_record, Kept)),
    "design/*.json": ("design", partial(read_record, Designed)),
    "compare/times/*.json": ("compare", partial(read_record, Timed)),
    "compare.json": ("compare", partial(read_record, Comparison)),
    "tune/*.json": ("tune", partial(read_record, Tuned)),
    "tune/*.jsonl": ("tune", evaluations),
    "certify/*.json": ("certify", partial(read_record, Certificate)),
    "loggers/*.json": ("train", partial(read_record, Logged)),
    "certify/*/*.json": ("certify", partial(read_record, TriedCandidate)),
    "fits/*.json": ("tune --by flow", partial(read_record, StoredFit)),
    "sweep/*.json": ("sweep", partial(read_record, TrialRow)),
    "analysis/**/*.json": ("analyze", read_json),
    "spectra.safetensors": ("train", lambda path: read_spectra(Run(path.parent))),
}
AREAS = (_config, _log, _checkpoints, _samples, _estimator, _records, _pictures)
