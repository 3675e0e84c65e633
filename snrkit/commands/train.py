"""`snrkit train`: the generator of snrkit.training.train with logging, checkpoints and interruption round it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snrkit.base.background import Background
from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError, SnrkitError, Stopped, reason_of
from snrkit.base.records import from_json
from snrkit.base.signals import Stop, ending, stoppable
from snrkit.checkpoints.ours import (
    Checkpoint,
    Packed,
    load_checkpoint,
    newest_checkpoint,
    pack_checkpoint,
    prune,
    sound_checkpoint,
    write_checkpoint,
)
from snrkit.commands.dry_run import check_memory
from snrkit.commands.opening import confirm_images, open_aloud
from snrkit.commands.progress import READINGS, bar, loading
from snrkit.commands.progress import log as messages
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import locked, put_aside
from snrkit.experiment.log import LogWriter
from snrkit.experiment.loggers import Journal, check_loggers, open_loggers
from snrkit.experiment.models import READ, FromElsewhere, TrainedHere, checkpoint_path, read_weights
from snrkit.experiment.opening import open_network, open_task
from snrkit.experiment.run import Run
from snrkit.experiment.sources import prepare_sampling
from snrkit.experiment.stored import (
    check_data,
    check_fits,
    check_of,
    check_own,
    describe_environment,
    network_differences,
    stored_experiment,
    training_of,
    write_config,
    write_environment,
)
from snrkit.networks.adapted import AdaptedModule, add_nulls, start_untold
from snrkit.networks.compiling import eagerly
from snrkit.training.clipping import remark
from snrkit.training.config import ResumeFrom, TrainConfig
from snrkit.training.holdout import held_out_loss
from snrkit.training.step import TrainStep
from snrkit.training.task import Task
from snrkit.training.train import (
    TrainState,
    make_state,
    restore,
    state_numbers,
    state_tensors,
    train,
)

NAMED = 3  # images of a skipped step that are printed; the log has all


@dataclass(slots=True)
class Tally:
    """Running sums since the last line of the log; saved in checkpoints, so that a resumed log goes on exactly."""

    steps: int = 0
    skipped: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    clipped_norm: float = 0.0
    clipped: int = 0
    logit: float | None = None
    cosine: float | None = None
    largest: str | None = None  # the tensor with the largest share of the gradient's squared norm, and that share
    share: float | None = None
    clock: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def add(self, step: TrainStep) -> None:
        """Add a step to the running sums."""
        self.steps += 1
        self.skipped += step.skipped
        if not step.skipped:
            self.loss += step.loss
            self.grad_norm += step.grad_norm
            self.clipped_norm += step.clipped_norm
            self.clipped += step.clipped
        if step.largest is not None:  # a step that was watched
            self.logit, self.cosine = step.logit, step.cosine
            self.largest, self.share = step.largest

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {k: v for k, v in asdict(self).items() if k not in ("clock", "seconds")}

    def line(self, step: TrainStep, batch: int) -> dict[str, Any]:
        """The line of the log; `seconds` and `images_per_second` are all that a rerun may change."""
        counted, now = self.steps - self.skipped, time.monotonic()
        record: dict[str, Any] = {
            "kind": "train",
            "step": step.step,
            "images": step.images,
            "loss": self.loss / counted if counted else None,
            "grad_norm": self.grad_norm / counted if counted else None,
            "clipped_norm": self.clipped_norm / counted if counted else None,
            "clipped_share": self.clipped / counted if counted else None,
            "lr": step.lr,
            "skipped": self.skipped,
        }
        if self.largest is not None:
            record |= {"clip_cosine": self.cosine, "largest_gradient": self.largest, "its_share": self.share}
        if self.logit is not None:
            record["largest_logit"] = self.logit
        elapsed = now - self.clock
        return {**record, "seconds": round(elapsed, 3), "images_per_second": round(self.steps * batch / elapsed, 1)}


@dataclass(slots=True)
class Notes:
    """Notes every step in the sums, and those that were skipped in the log, when the next step has begun: by then the
    device is at work again, and its numbers are there.
    """

    tally: Tally
    log: LogWriter
    last: TrainStep | None = None

    def add(self, step: TrainStep | None) -> None:
        """Note the step before this one; None: there is none to wait for."""
        if self.last is not None:
            self.tally.add(self.last)
            if self.last.skipped and self.log.writes:
                _log_skipped(self.log, self.last)
        self.last = step


@dataclass(frozen=True, slots=True)
class Numbers:
    """The plain numbers of a checkpoint: of the state, of the sums since the log's last line, and its lines."""

    step: int
    nonfinite: int
    scaler: Mapping[str, Any]
    tally: Tally
    log_lines: int
    of: Mapping[str, Any]  # as training_of says


def run_training(experiment: Experiment, runs: Path, world: World, quiet: bool = False, fall_back: bool = False) -> Run:
    """Train, or go on training, the experiment. Returns when done or when asked to stop, with all saved.

    `fall_back`: where the newest checkpoint is damaged, put it aside and go on from the one before.
    """
    _ = experiment.training  # a model from elsewhere is refused before anything is opened
    check_loggers(experiment)
    opened = open_aloud(experiment, world, quiet)
    training, setting = opened.experiment.training, opened.setting
    visible = world.leads and not quiet
    with loading("estimating the memory", shown=visible):
        check_memory(training, setting)
    with bar("measuring the data", shown=visible, unit=READINGS):
        task = open_task(training, setting)
    run = Run(runs / experiment.name)
    check_fits(run, opened.experiment)
    check_data(run, opened.data.dataset.fingerprint)
    with bar("making the network", shown=visible):
        network = open_network(training, setting)
        state = make_state(task, network)
    if world.leads:
        _remark(training.train, network)
    begun = newest_checkpoint(run.checkpoints) is None
    if begun:  # before anything is written
        confirm_images(experiment.data, world)
        begin_from(opened.experiment, task, state)
    with locked(run) if world.leads else ending():
        with bar("preparing the run", shown=visible):
            world.barrier()
            check_fits(run, opened.experiment)  # again: another process may have begun this run in between
            of = training_of(opened.experiment, opened.data.dataset.fingerprint)
            tally, lines = _resume(run, state, world, opened.experiment, of, fall_back)
            if not state.step and not begun:
                begin_from(opened.experiment, task, state)
            world.barrier()  # all have read the checkpoint before anyone writes
            log = LogWriter(run.log, lines, world.leads)
            if world.leads:
                prune_checkpoints(run, training.train)  # a command that was killed may not have come to it
                write_config(run, opened.experiment)
                write_environment(run, describe_environment(world.device, opened.experiment, opened.data.dataset))
            prepare_sampling(setting, run)
        loggers = open_loggers(opened.experiment, run, world, state.images)
        _loop(run, task, state, tally, Journal(log, loggers), of, quiet)
    return run


def _remark(config: TrainConfig, network: nn.Module) -> None:
    """Say what a user should know of a training before it begins."""
    if (note := remark(config.clip, network)) is not None:
        messages.warning(note)
    for text in config.remarks:
        messages.info(text)


def _resume(
    run: Run, state: TrainState, world: World, experiment: Experiment, of: Mapping[str, Any], fall_back: bool
) -> tuple[Tally, int]:
    """Take over the newest checkpoint, if there is one: (sums since the log's last line, the log's lines)."""
    checkpoint = _newest(run, world, fall_back)
    if checkpoint is None:
        return Tally(), 0
    path = run.checkpoints / f"{checkpoint.images:09d}"
    try:
        numbers = from_json(Numbers, checkpoint.numbers, path / "state.json")
        check_of(path, numbers.of, experiment, of["images"])
        restore(state, checkpoint.images, {k: dict(v) for k, v in checkpoint.tensors.items()}, dict(checkpoint.numbers))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise SnrkitError(
            f"checkpoint {path} does not fit this experiment ({reason_of(error)}); give the run another name or delete "
            "its folder."
        ) from None
    return numbers.tally, numbers.log_lines


def _newest(run: Run, world: World, fall_back: bool) -> Checkpoint | None:
    path = newest_checkpoint(run.checkpoints)
    checkpoint, damaged = (None, list[Path]()) if path is None else _sound(run, path, fall_back)
    if len(set(world.collect([-1 if checkpoint is None else checkpoint.images]))) > 1:
        raise RunError(f"the processes read different checkpoints in {run.checkpoints}; see to its disk.")
    for path in damaged if world.leads else ():
        messages.warning(f"{path} is damaged and put aside in {put_aside(run, path)}; going on from the one before")
    return checkpoint


def _sound(run: Run, path: Path, fall_back: bool) -> tuple[Checkpoint, list[Path]]:
    if not fall_back:
        return load_checkpoint(path), []
    checkpoint, damaged = sound_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise RunError(f"no checkpoint in {run.checkpoints} is whole; restore one, or delete them all to begin anew.")
    return checkpoint, damaged


def begin_from(experiment: Experiment, task: Task, state: TrainState) -> None:
    """Take over the weights of train.resume_from, averages included; moments and clocks start anew."""
    training = experiment.training
    origin = training.train.resume_from
    if origin is None:
        return
    if origin.model is None:
        weights = _weights_of_run(training, origin)
    else:
        weights = _weights_of_model(training, FromElsewhere(source=origin.model), task)
    try:
        state.network.load_state_dict(dict(weights))
    except RuntimeError as error:
        why = reason_of(error)
        if origin.run is not None:
            why = network_differences(stored_experiment(origin.run), experiment)
        raise ConfigError(
            f"train.resume_from: {origin.place} has another network ({why}); take these over from it, or name another."
        ) from None
    for average in state.averages.values():
        average.load({name: tensor.detach() for name, tensor in state.network.state_dict().items()})


def _weights_of_run(training: TrainedHere, origin: ResumeFrom) -> Mapping[str, Tensor]:
    """The weights of another run. ConfigError where its network is read in another way."""
    trained = stored_experiment(origin.place)
    if any(getattr(trained, part) != getattr(training, part) for part in READ):
        raise ConfigError(
            f"train.resume_from: {origin.place} has another process, target or precondition; take over all three, or "
            "train from scratch."
        )
    run = Run(origin.place)
    weights = trained.model.find(run, origin.checkpoint, origin.average)
    check_own(run, [checkpoint_path(run, weights.images, weights.name)])
    return read_weights(run, weights)


def _weights_of_model(training: TrainedHere, model: FromElsewhere, task: Task) -> Mapping[str, Tensor]:
    """The weights of a model from elsewhere. Untold, one that never was says what it says at the median of `levels`."""
    try:
        brought = model.to_train()
        differing = [part for part, value in brought.items() if value != getattr(training, part)]
        network = None if differing else model.loaded()
    except ConfigError as error:
        raise ConfigError(f"train.resume_from.{error}") from None
    if network is None:
        raise ConfigError(
            f"train.resume_from.model: {model.source.path} has another {differing[0]} than this file; leave out "
            f"{', '.join(brought)}, which it brings."
        )
    if isinstance(network, AdaptedModule) and not network.with_nulls:
        add_nulls(network)
        median = task.objective.of(torch.tensor(task.train[:1])).logsnr(torch.tensor([0.5], dtype=torch.float64))
        start_untold(network, task.objective.process.time(median)[0])
    return network.state_dict()


def _loop(
    run: Run, task: Task, state: TrainState, tally: Tally, journal: Journal, of: Mapping[str, Any], quiet: bool
) -> None:
    config, world, notes = task.config, task.world, Notes(tally, journal.log)
    if state.images >= config.images and world.leads and not quiet:
        messages.info(f"already trained to {state.images} images; raise train.images to go on")
    shown = bar("training", config.images, world.leads and not quiet, done=state.images)
    with stoppable() as stop, journal.loggers, Background() as writer, shown as progress:
        before: TrainStep | None = None
        for step in train(task, state, config.log_every, stop):
            stopping, before = _asked(world, stop, step, before), step
            notes.add(step)
            progress.update(step.images)
            if _crossed(step, config.batch, config.log_every) or step.images >= config.images:
                state.settle(task)
                notes.add(None)
                record = notes.tally.line(step, config.batch)
                progress.say(f"loss {_number(record['loss'])}")
                journal.add(record)
                notes.tally = Tally()
            if _crossed(step, config.batch, config.holdout_every) or step.images >= config.images:
                _log_held_out(journal, task, state, step)
            every = config.snapshot_every
            if every and (_crossed(step, config.batch, every) or step.images >= config.images):
                _snapshot(run, task, state, of, writer)  # before the checkpoint, from which a killed run goes on
            if _crossed(step, config.batch, config.save_every) or step.images >= config.images or stopping:
                state.settle(task)
                notes.add(None)
                _save(run, task, state, notes.tally, journal.log, of, writer)
            if stopping:
                break
    world.barrier()  # one that ends earlier may have the others ended before the last checkpoint is written
    if state.images < config.images:
        text = f"stopped at {state.images} of {config.images} images; all is saved. "
        raise Stopped(text + "To go on, run the same command again." if world.leads else "", stop.code)


def _log_skipped(log: LogWriter, step: TrainStep) -> None:
    low, high = float(step.logsnr.min()), float(step.logsnr.max())
    named = ", ".join(f"image {index} at logsnr {logsnr:.2f}" for index, logsnr in step.culprits[:NAMED])
    named += f" and {len(step.culprits) - NAMED} more" if len(step.culprits) > NAMED else ""
    where = named or f"no single image; logsnr {low:.2f} to {high:.2f}"
    messages.warning(f"step {step.step} ({step.images} images) skipped, loss or gradient is not finite: {where}")
    record = {"kind": "skipped", "step": step.step, "images": step.images, "logsnr": [low, high]}
    log.add({**record, "culprits": [list(pair) for pair in step.culprits]})


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _asked(world: World, stop: Stop, step: TrainStep, before: TrainStep | None) -> bool:
    """Whether to end after this step, in all processes at once: by what they said with a step whose numbers are there,
    which on a device is the one before.
    """
    if world.size == 1:
        return stop.asked
    known = before if world.device.type == "cuda" else step
    return known is not None and known.asked


def _crossed(step: TrainStep, batch: int, every: int) -> bool:
    return step.images // every > (step.images - batch) // every


def _log_held_out(journal: Journal, task: Task, state: TrainState, step: TrainStep) -> None:
    with eagerly(task.compile):
        loss = held_out_loss(task, state.network) if task.world.leads else None
    if loss is not None:
        journal.add({"kind": "held_out", "step": step.step, "images": step.images, **asdict(loss)})
    task.world.barrier()


def _snapshot(run: Run, task: Task, state: TrainState, of: Mapping[str, Any], writer: Background) -> None:
    if task.world.leads:
        tensors = {name: part for name, part in state_tensors(state).items() if name not in ("optimizer", "learned")}
        writer.wait()  # two packed states may be more than the host holds
        packed = pack_checkpoint(Checkpoint(state.images, tensors, {"of": of}))
        writer.do(lambda: _write(run.snapshots, packed))


def _write(folder: Path, packed: Packed) -> None:
    write_checkpoint(folder, packed)


def _save(
    run: Run,
    task: Task,
    state: TrainState,
    tally: Tally,
    log: LogWriter,
    of: Mapping[str, Any],
    writer: Background,
) -> None:
    if not task.world.leads:
        return
    numbers = {**state_numbers(state), "tally": tally.numbers(), "log_lines": log.lines, "of": of}
    writer.wait()
    packed = pack_checkpoint(Checkpoint(state.images, state_tensors(state), numbers))

    def write() -> None:
        log.sync()  # the checkpoint says how many lines there are
        write_checkpoint(run.checkpoints, packed)
        prune_checkpoints(run, task.config)

    writer.do(write)


def prune_checkpoints(run: Run, config: TrainConfig) -> None:
    """Delete the checkpoints that an experiment does not keep."""
    prune(run.checkpoints, config.keep_last, config.keep_every)
