"""`snrkit check`: whether everything in a run directory is what was written, and what to do where it is not.

Each file is read as the command reads it that goes on from it: checksums, types, finite weights, every image against
its manifest, the log against the newest checkpoint. What another command makes again is put aside with `--repair`, in
RUN/damaged, where nothing reads it; what none can make again is only named. Without `--repair` nothing is written.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from snrkit.base.errors import RunError, SnrkitError
from snrkit.base.files import leftovers
from snrkit.base.records import read_record
from snrkit.base.regular import read_regular
from snrkit.base.sealed import read_json, read_lines
from snrkit.base.tensors import read_tensors
from snrkit.checkpoints.ours import list_checkpoints, load_checkpoint, newest_checkpoint, numbers_of
from snrkit.commands.compare import Kept
from snrkit.commands.sweep import TrialRow
from snrkit.commands.tune import evaluations
from snrkit.data.images import LARGEST_IMAGE
from snrkit.experiment.lock import links, locked, put_aside
from snrkit.experiment.log import check_lines, read_log
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.experiment.sources import Fitted, read_spectra
from snrkit.experiment.stored import stored_environment, stored_experiment
from snrkit.metrics.records import SamplerScores, ScoreCurve
from snrkit.reports.blocks import is_picture
from snrkit.reports.records import Checked, Comparison, Finding, Tuned
from snrkit.shift.files import shift_record

LINK = "is a link, which no run directory may hold"
PICTURES = ("*.png", "shift/*.png", "samples/*.png", "compare/samples/*.png", "analysis/**/*.png")
TORN = "has a torn last line, as a kill leaves it"
AGAIN = "run the command that makes it again"


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
        raise RunError(f"{path} is not a run directory (it has no config.yaml and no checkpoint).")
    linked = [_finding(Fault(link, LINK, "put its target in its place"), path) for link in links(run)]
    if linked:  # nothing is locked, moved or followed
        return Checked(str(path), len(linked), linked)
    left = [Fault(found, "was left by a killed command", "any next command deletes it") for found in leftovers(path)]
    with locked(run) if repair else nullcontext():  # which deletes what was left
        faults = [fault for area in AREAS for fault in area(run)]
        found = [_settle(fault, run, repair) for fault in faults]
    cleared = [replace(_finding(fault, path), repaired=repair) for fault in left]
    count = sum(p.is_file() for p in path.rglob("*"))
    return Checked(str(path), count, [*cleared, *found])


def _settle(fault: Fault, run: Run, repair: bool) -> Finding:
    if repair and fault.again:
        put_aside(run, fault.path)
        return replace(_finding(fault, run.path), repaired=True)
    return _finding(fault, run.path)


def _finding(fault: Fault, path: Path) -> Finding:
    return Finding(str(fault.path.relative_to(path)), fault.what, fault.remedy)


def _said(read: Callable[[], object], faults: type[SnrkitError] = SnrkitError) -> str | None:
    """What an error says on reading, without what it advises; None where there is none."""
    try:
        read()
    except faults as error:
        return _what(error)
    return None


def _what(error: SnrkitError) -> str:
    return str(error).partition("; ")[0].removesuffix(".")


def _of_checkpoint(path: Path) -> str | None:
    """As _said, of damage alone: what cannot be read for want of memory or permissions must not be deleted."""
    return _said(partial(load_checkpoint, path), RunError)


def _records(run: Run) -> Iterator[Fault]:
    """Records that one command makes of others."""
    kinds: Mapping[str, Callable[[Path], object]] = {
        "metrics/*.json": _scores,
        "shift/*.json": lambda path: shift_record(read_json(path), path),
        "compare/*.json": partial(read_record, Kept),
        "compare.json": partial(read_record, Comparison),
        "tune/*.json": partial(read_record, Tuned),
        "tune/*.jsonl": evaluations,
        "sweep/*.json": partial(read_record, TrialRow),
        "analysis/**/*.json": read_json,
        "spectra.safetensors": lambda _: read_spectra(run),
    }
    for pattern, read in kinds.items():
        for path in sorted(run.path.glob(pattern)):
            if what := _said(partial(read, path)):
                yield Fault(path, what, AGAIN, again=True)
            elif path.suffix == ".jsonl" and read_lines(path)[1]:
                yield Fault(path, TORN, "the next snrkit tune drops it")


def _scores(path: Path) -> object:
    return read_record(ScoreCurve if path.stem.endswith("@checkpoints") else SamplerScores, path)


def _pictures(run: Run) -> Iterator[Fault]:
    for pattern in PICTURES:
        for path in sorted(run.path.glob(pattern)):
            if not is_picture(path):
                yield Fault(path, "is no whole PNG", AGAIN, again=True)


def _config(run: Run) -> Iterator[Fault]:
    if what := _said(lambda: stored_experiment(run.path)):
        remedy = "restore it, or delete it and run the command that you ran before, which writes it anew"
        yield Fault(run.config, what, remedy)
    if what := _said(lambda: stored_environment(run)):
        yield Fault(run.environment, what, "restore it, or delete it and run the command that you ran before")


def _estimator(run: Run) -> Iterator[Fault]:
    record, tensors = run.estimator / "estimator.json", run.estimator / "network.safetensors"
    if run.estimator.exists() and (what := _said(lambda: read_tensors(tensors, read_record(Fitted, record).what))):
        yield Fault(run.estimator, what, "run snrkit fit-estimator again", again=True)


def _checkpoints(run: Run) -> Iterator[Fault]:
    sound = False
    for path in list_checkpoints(run.checkpoints):  # oldest first
        what = _of_checkpoint(path)
        if what is None:
            sound = True
        elif sound and path == newest_checkpoint(run.checkpoints):
            yield Fault(path, what, "go on from the one before: snrkit train --fall-back", again=True)
        else:
            yield Fault(path, what, "delete it; no command makes it again")
    for path in list_checkpoints(run.snapshots):
        if what := _of_checkpoint(path):
            yield Fault(path, what, "delete it; averages are then made of the others")
    for folder in sorted(run.averages("").glob("*")):
        for path in list_checkpoints(folder):
            if what := _of_checkpoint(path):
                yield Fault(path, what, "make it again with snrkit average", again=True)


def _log(run: Run) -> Iterator[Fault]:
    if not run.log.exists():
        return
    remedy, path = "restore it, or delete it to go on without what it said", newest_checkpoint(run.checkpoints)
    try:
        log = read_log(run.log)
    except SnrkitError as error:
        yield Fault(run.log, _what(error), remedy)
        return
    known = path is not None and _said(partial(numbers_of, path)) is None  # else it is named among the checkpoints
    if known and (what := _said(partial(check_lines, run, log))):
        yield Fault(run.log, what, remedy)
    elif log.torn:
        yield Fault(run.log, TORN, "the next snrkit train drops it")


def _samples(run: Run) -> Iterator[Fault]:
    for path in sorted([*run.samples("").glob("*/"), *run.compared_samples("").glob("*/")]):
        folder = SampleFolder(path)
        again = "run snrkit compare again" if path.parent == run.compared_samples("") else "run snrkit sample again"
        if what := _said(folder.manifest):
            yield Fault(path / "manifest.json", what, f"delete the folder it lies in, and {again}")
            continue
        yield from _images(folder, again)
        yield from _labels(path / "dataset.json", again)


def _images(folder: SampleFolder, again: str) -> Iterator[Fault]:
    stored = folder.manifest()
    if stored is None:
        return
    for seed, known in stored.sums.items():
        if not folder.is_whole(seed, known):
            image, remedy = folder.image(seed), f"{again}, which makes it anew"
            yield Fault(image, "is not the image that was made", remedy, again=image.exists())
    if list(folder.path.glob("made-*.jsonl")):  # an interrupted command's, which the next one gathers
        return
    known_files = {folder.image(seed) for seed in stored.sums}
    for path in sorted(folder.path.glob("*/*.png")):
        if path not in known_files:
            yield Fault(path, "is not listed in manifest.json", "delete it", again=True)


def _labels(path: Path, again: str) -> Iterator[Fault]:
    def read() -> object:
        content: Any = json.loads(read_regular(path, LARGEST_IMAGE))
        return {str(name): int(label) for name, label in content["labels"]}

    if path.exists():
        try:
            read()
        except (SnrkitError, ValueError, KeyError, TypeError, RecursionError):
            yield Fault(path, "lists no labels of images", again, again=True)


AREAS = (_config, _log, _checkpoints, _samples, _estimator, _records, _pictures)
