"""`snrkit check`: whether everything in a run directory is what was written, and what to do where it is not.

Each file is read as the command reads it that goes on from it: checksums, types, finite weights, every image against
its manifest, the log against the newest checkpoint. What another command makes again is deleted with `--repair`; what
none can make again is only named.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from snrkit.base.errors import RunError, SnrkitError
from snrkit.base.files import checksum, disk_errors
from snrkit.base.records import from_json, read_record
from snrkit.base.regular import read_regular
from snrkit.base.sealed import read_json, read_lines, write_lines
from snrkit.base.tensors import read_tensors
from snrkit.checkpoints.ours import list_checkpoints, load_checkpoint, newest_checkpoint
from snrkit.commands.compare import Kept
from snrkit.commands.sweep import TrialRow
from snrkit.commands.train import Numbers
from snrkit.commands.tune import evaluations
from snrkit.data.images import LARGEST_IMAGE
from snrkit.experiment.lock import links, locked
from snrkit.experiment.log import read_log
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
AGAIN = "run the command that makes it again"


@dataclass(frozen=True, slots=True)
class Fault:
    """A finding, and how it is repaired; None where no command can make the file again."""

    path: Path
    what: str
    remedy: str
    repair: Callable[[], object] | None = None


def run_checking(path: Path, repair: bool) -> Checked:
    """Check all of a run directory; with `repair`, make right what can be made again. RunError where there is none."""
    run = Run(path)
    if not run.config.exists() and newest_checkpoint(run.checkpoints) is None:
        raise RunError(f"{path} is not a run directory (it has no config.yaml and no checkpoint).")
    left = list(path.rglob(".*.tmp"))
    linked = [_finding(Fault(link, LINK, "put its target in its place"), path) for link in links(run)]
    if linked:  # nothing is locked, deleted or followed
        return Checked(str(path), len(linked), linked)
    with locked(run), disk_errors(f"repairing {path}", "see to its permissions and run the same command again"):
        faults = [fault for area in AREAS for fault in area(run)]
        found = [_settle(fault, path, repair) for fault in faults]
    cleared = [Finding(str(p.relative_to(path)), "was left by a killed command", "nothing", True) for p in left]
    count = sum(p.is_file() for p in path.rglob("*"))
    return Checked(str(path), count, [*cleared, *found])


def _settle(fault: Fault, path: Path, repair: bool) -> Finding:
    if repair and fault.repair is not None:
        fault.repair()
        return replace(_finding(fault, path), repaired=True)
    return _finding(fault, path)


def _finding(fault: Fault, path: Path) -> Finding:
    return Finding(str(fault.path.relative_to(path)), fault.what, fault.remedy)


def _said(read: Callable[[], object], faults: type[SnrkitError] = SnrkitError) -> str | None:
    """What an error says on reading, without what it advises; None where there is none."""
    try:
        read()
    except faults as error:
        return str(error).partition("; ")[0].removesuffix(".")
    return None


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
        "environment.json": lambda _: stored_environment(run),
        "spectra.safetensors": lambda _: read_spectra(run),
    }
    for pattern, read in kinds.items():
        for path in sorted(run.path.glob(pattern)):
            if what := _said(partial(read, path)):
                yield Fault(path, what, AGAIN, path.unlink)


def _scores(path: Path) -> object:
    return read_record(ScoreCurve if path.stem.endswith("@checkpoints") else SamplerScores, path)


def _pictures(run: Run) -> Iterator[Fault]:
    for pattern in PICTURES:
        for path in sorted(run.path.glob(pattern)):
            if not is_picture(path):
                yield Fault(path, "is no whole PNG", AGAIN, path.unlink)


def _config(run: Run) -> Iterator[Fault]:
    if what := _said(lambda: stored_experiment(run.path)):
        remedy = "restore it, or delete it and run the command that you ran before, which writes it anew"
        yield Fault(run.config, what, remedy)


def _estimator(run: Run) -> Iterator[Fault]:
    record, tensors = run.estimator / "estimator.json", run.estimator / "network.safetensors"
    if run.estimator.exists() and (what := _said(lambda: read_tensors(tensors, read_record(Fitted, record).what))):
        yield Fault(run.estimator, what, "run snrkit fit-estimator again", partial(_delete, record, tensors))


def _delete(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _checkpoints(run: Run) -> Iterator[Fault]:
    sound = False
    for path in list_checkpoints(run.checkpoints):  # oldest first
        what = _of_checkpoint(path)
        if what is None:
            sound = True
        elif sound and path == newest_checkpoint(run.checkpoints):
            yield Fault(path, what, "go on from the one before: snrkit train --fall-back", partial(_remove, path))
        else:
            yield Fault(path, what, "delete it; no command makes it again")
    for path in list_checkpoints(run.snapshots):
        if what := _of_checkpoint(path):
            yield Fault(path, what, "delete it; averages are then made of the others")
    for folder in sorted(run.averages("").glob("*")):
        for path in list_checkpoints(folder):
            if what := _of_checkpoint(path):
                yield Fault(path, what, "make it again with snrkit average", partial(_remove, path))


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _log(run: Run) -> Iterator[Fault]:
    if not run.log.exists():
        return
    if what := _said(lambda: read_log(run.log)):
        yield Fault(run.log, what, "restore it, or delete it to go on without what it said")
        return
    log, path = read_log(run.log), newest_checkpoint(run.checkpoints)
    if path is not None:
        with suppress(SnrkitError):  # named among the checkpoints
            wanted = from_json(Numbers, load_checkpoint(path).numbers, path).log_lines
            if len(log.lines) < wanted:
                yield Fault(
                    run.log, f"has {len(log.lines)} whole lines of {wanted} that there were at the newest checkpoint",
                    "restore it, or delete it to go on without what it said",
                )  # fmt: skip
    if log.torn:
        yield Fault(
            run.log, "has a torn last line, as a kill leaves it", "snrkit train drops it",
            lambda: write_lines(run.log, read_lines(run.log)[0]),
        )  # fmt: skip


def _samples(run: Run) -> Iterator[Fault]:
    for path in sorted([*run.samples("").glob("*/"), *run.compared_samples("").glob("*/")]):
        folder = SampleFolder(path)
        again = "run snrkit compare again" if path.parent == run.compared_samples("") else "run snrkit sample again"
        if what := _said(folder.manifest):
            manifest = path / "manifest.json"
            yield Fault(manifest, what, f"{again}, which makes its images anew", manifest.unlink)
            continue
        yield from _images(folder, again)
        yield from _labels(path / "dataset.json", again)


def _images(folder: SampleFolder, again: str) -> Iterator[Fault]:
    stored = folder.manifest()
    sums = {} if stored is None else stored.sums
    wrong = [seed for seed, known in sums.items() if _sum_of(folder.image(seed)) != known]
    for seed in wrong:
        remedy = f"{again}, which makes it anew"
        yield Fault(folder.image(seed), "is not the image that was made", remedy, partial(_delete, folder.image(seed)))
    known = {folder.image(seed) for seed in sums}
    if list(folder.path.glob("made-*.jsonl")):  # an interrupted command's, which the next one gathers
        return
    for path in sorted(folder.path.glob("*/*.png")):
        if path not in known:
            yield Fault(path, "is not listed in manifest.json", "delete it", path.unlink)


def _sum_of(path: Path) -> str | None:
    with suppress(OSError, SnrkitError):
        return checksum(read_regular(path, LARGEST_IMAGE))
    return None


def _labels(path: Path, again: str) -> Iterator[Fault]:
    def read() -> object:
        content: Any = json.loads(read_regular(path, LARGEST_IMAGE))
        return {str(name): int(label) for name, label in content["labels"]}

    if path.exists():
        try:
            read()
        except (SnrkitError, OSError, ValueError, KeyError, TypeError, RecursionError):
            yield Fault(path, "lists no labels of images", again, path.unlink)


AREAS = (_config, _log, _checkpoints, _samples, _estimator, _records, _pictures)
