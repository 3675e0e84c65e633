"""`snrkit audit`: the level that a network is told against the level that it is shown, without making an image.

    a scheduler of diffusers   what it tells at every call, against its own states; and the pairs that training scripts
                               make of its configuration
    an experiment of ours      the same of its samplers; and pairs as its training draws them

Nothing is written.
"""

from collections.abc import Sequence
from pathlib import Path

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.hub import local, on_hub, place_of
from snrkit.checkpoints.diffusers import open_scheduler
from snrkit.checkpoints.folders import absent
from snrkit.commands.opening import open_aloud
from snrkit.commands.sample import choose
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import check_links
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_experiment
from snrkit.reports.records import Audited
from snrkit.sampling.sampler import Dummy, Sampler, open_with
from snrkit.shift.audit import BINS, AuditProbe, PairsReading, read_pairs
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.schedulers import training_scheduler, walk_scheduler, walk_training
from snrkit.shift.telling import Walked, walk
from snrkit.training.holdout import training_pairs

CONFIG = "scheduler_config.json"
MOST_STEPS = 10_000
RESAMPLES = 1000


def run_auditing(what: Path, steps: int | None, tolerance: float, world: World, names: Sequence[str] = ()) -> Audited:
    """Audit a run directory, a folder of diffusers, or the file of a scheduler's configuration."""
    _check(tolerance, steps)
    what = _here(what)
    if Run(what).config.is_file():
        if steps is not None:
            raise SnrkitError("--steps is for schedulers of diffusers; samplers of a run have a grid with its own.")
        check_links(Run(what))
        return audit_experiment(stored_experiment(what), tolerance, world, names)
    if names:
        raise SnrkitError("--sampler chooses within an experiment; a scheduler of diffusers has none.")
    return audit_folder(what, 50 if steps is None else steps, tolerance)


def _here(what: Path) -> Path:
    """Where it lies on this machine; of a whole repository of the Hub its scheduler alone is fetched."""
    if not on_hub(what) or place_of(what).inside:
        return local(what)
    try:
        return local(Path(f"{what}/scheduler"))
    except ConfigError:  # a repository of a scheduler alone
        return local(Path(f"{what}/{CONFIG}"))


def audit_folder(what: Path, steps: int, tolerance: float) -> Audited:
    """Audit the scheduler of a folder of diffusers, or of the file of its configuration."""
    scheduler = open_scheduler(_scheduler_file(what), "audit")
    walked = walk_scheduler(scheduler, steps)
    trains = training_scheduler(scheduler)
    training = None if trains is None else walk_training(trains)
    return audited(str(what), tolerance, (walked,), training, None)


def _scheduler_file(what: Path) -> Path:
    if what.is_file():
        return what
    if not what.is_dir():
        raise ConfigError(f"audit: {absent(what)}.")
    places = (what / "scheduler" / CONFIG, what / CONFIG)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(
            f"audit: {what} holds neither scheduler/{CONFIG}, nor {CONFIG}, nor config.yaml of a run; name one that "
            "does."
        )
    return found


def audit_experiment(experiment: Experiment, tolerance: float, world: World, names: Sequence[str] = ()) -> Audited:
    """Audit the chosen samplers of an experiment (all by default), and its training pairs where it trains."""
    _check(tolerance, None)
    parts = experiment.model.parts
    walks = tuple(
        walk(name, open_with(_bare(experiment.samplers[name]), parts.process, Dummy(parts.process, parts.levels)),
             parts.process)
        for name in choose(experiment, names)
    )  # fmt: skip
    return audited(experiment.name, tolerance, walks, None, _pairs(experiment, world))


def _bare(sampler: Sampler) -> Sampler:
    return sampler.model_copy(update={"corrections": ()})


def _pairs(experiment: Experiment, world: World) -> PairsReading | None:
    if not experiment.model.trains:
        return None
    pairs = training_pairs(open_aloud(experiment, world).task(), AuditProbe().pairs)
    return read_pairs(pairs, BINS, Bootstrap(RESAMPLES, experiment.shift.confidence, experiment.seed))


def audited(
    what: str, tolerance: float, walks: tuple[Walked, ...], training: Walked | None, pairs: PairsReading | None
) -> Audited:
    """With what lies beyond the tolerance or cannot be read, a sentence each."""
    every = (*walks, training) if training is not None else walks
    found = [f"{walked.name} {words}" for walked in every for words in walked.beyond(tolerance)]
    if pairs is not None and (off := pairs.beyond(tolerance)):
        found.append(f"training pairs have another level than is told in {len(off)} of {len(pairs.logsnr)} bins")
    if pairs is not None and pairs.unread:
        found.append(
            f"training pairs show no level in {pairs.unread} of {len(pairs.logsnr)} bins, where nothing is compared "
            "with what is told"
        )
    return Audited(what, tolerance, walks, training, pairs, tuple(found))


def _check(tolerance: float, steps: int | None) -> None:
    if not 0 < tolerance < float("inf"):
        raise SnrkitError(f"--tolerance {tolerance:g} must be above 0; 0.01 nats is the default.")
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise SnrkitError(f"--steps {steps} must be 1 to {MOST_STEPS:,}.")
