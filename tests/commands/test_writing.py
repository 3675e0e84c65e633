"""Images are drawn ahead, encoded and written by threads: the same bits, whole or not at all, in the same order."""

import errno
import json
import os
import signal
import threading
from dataclasses import replace
from itertools import chain

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError, Stopped
from snrkit.commands import sample as command
from snrkit.commands.sample import encode, make_images, manifest
from snrkit.data.dataset import to_bytes
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.experiment import sample_folder
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Model, open_experiment, open_network
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.experiment.trajectories import NoiseAhead, Trajectories, sample_steps, trajectories
from snrkit.sampling.solvers import Ancestral, Churn, Euler
from snrkit.training.randomness import ImageStreams
from tests.small import SMALL

SOLVERS = {"euler": Euler(), "ancestral": Ancestral(), "churn": Churn(s_churn=20)}
GRID = {"kind": "karras", "steps": 3}
BATCHES = [range(4), range(4, 7), [20, 9]]


class Twice:
    """Draws noise twice a step, though it says that it draws none, or once a step."""

    order = 1

    def __init__(self, renews):
        self.renews = renews

    def step(self, denoise, x, position, memory, noise):
        return Euler().step(denoise, x + noise(x) - 0.5 * noise(x), position, memory, noise)


@pytest.fixture
def samples(tmp_path):
    """An untrained model of the small experiment."""
    samplers = {name: {"grid": GRID, "solver": solver.model_dump()} for name, solver in SOLVERS.items()}
    network = {**SMALL["network"], "dropout": 0.0}
    sample = {"seeds": "0-19", "batch": 4}
    content = {**SMALL, "samplers": samplers, "network": network, "sample": sample}
    opened = open_experiment(parse_experiment(content, "small"), World(0, 1, torch.device("cpu")))
    e = opened.experiment
    module = open_network(e.training, opened.setting).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.02)
    denoiser = NetworkDenoiser(module, e.process, e.target, e.precondition, opened.data.sigma_data)
    return trajectories(opened, Model(denoiser, Weights("network", 0, ""), Run(tmp_path / "run")))


def one_after_the_other(samples, sampler, batches):
    """The clean states, each batch begun when the one before is done, each noise drawn when it is asked for."""
    ready, found = samples.open(sampler), []
    for seeds in batches:
        own, x, cond, noise = samples.begin(sampler, ready, seeds)
        for step in sample_steps(samples.model.denoiser, own, x, noise, cond):
            x = step.x_next
        found.append(x)
    return found


@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_drawn_ahead_has_the_same_bits(samples, name):
    """Of solvers that draw none, in all steps but the last, or in every step; and another thread draws it all."""
    sampler = samples.sources.names.experiment.samplers[name]
    wanted = one_after_the_other(samples, sampler, BATCHES)
    assert len({float(x.sum()) for x in wanted}) == len(BATCHES)
    by, plain = set(), ImageStreams.normal

    def normal(streams, shape):
        by.add(threading.current_thread())
        return plain(streams, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageStreams, "normal", normal)
        found = list(samples.generate(sampler, BATCHES))
    assert [list(batch.seeds) for batch in found] == [list(seeds) for seeds in BATCHES]
    assert all(torch.equal(batch.x0, x) for batch, x in zip(found, wanted, strict=True))
    assert len(by) == 1
    assert threading.main_thread() not in by


@pytest.mark.parametrize("renews", [0.0, None])
def test_a_solver_may_draw_more_than_was_foreseen(samples, monkeypatch, renews):
    """The streams of an image go on where what was drawn ahead ends."""
    sampler, plain = samples.sources.names.experiment.samplers["euler"], Trajectories.open
    monkeypatch.setattr(Trajectories, "open", lambda self, sampler: replace(plain(self, sampler), solver=Twice(renews)))
    wanted = one_after_the_other(samples, sampler, BATCHES)
    found = [batch.x0 for batch in samples.generate(sampler, BATCHES)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_no_more_than_two_draws_wait(samples, monkeypatch):
    """Of the first states of batches, where a solver draws no noise: a batch of them may be large."""
    begun, plain = [], Trajectories.begin

    def begin(self, sampler, ready, seeds):
        begun.append(list(seeds))
        return plain(self, sampler, ready, seeds)

    monkeypatch.setattr(Trajectories, "begin", begin)
    batches = [[seed] for seed in range(10)]
    made = samples.generate(samples.sources.names.experiment.samplers["euler"], batches)
    for count in range(1, 6):
        next(made)
        assert len(begun) <= count + 2
    made.close()
    assert len(begun) <= 7
    assert [thread for thread in threading.enumerate() if thread.name.startswith("snrkit-ahead")] == []


def test_noise_that_is_not_asked_for_is_passed_over():
    """So that the next batch begins with its own first state."""
    drawn = iter([torch.full((1,), float(k)) for k in range(5)])
    noise = NoiseAhead(drawn, 3, lambda x: x)
    assert float(noise(torch.zeros(1))) == 0
    noise.skip()
    assert float(next(drawn)) == 3
    assert torch.equal(noise(torch.ones(2)), torch.ones(2))


def made(samples, folder, name="ancestral"):
    make_images(samples, name, folder, samples.sources.names.experiment.samplers[name], False, True)


def listed(folder):
    """The seeds of every line of images that were added."""
    paths = sorted(folder.path.glob("made-*.jsonl"))
    return [sorted(map(int, json.loads(row)["checksums"])) for path in paths for row in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return SampleFolder(tmp_path / "run/samples/ancestral")


def test_files_are_the_images_and_no_file_is_the_main_threads(samples, folder, monkeypatch):
    """Bytes as one after the other makes them, written in the order of the seeds, by one thread; encoded by others."""
    sampler, seeds = samples.sources.names.experiment.samplers["ancestral"], range(20)
    batches = [range(k, k + 4) for k in range(0, 20, 4)]
    states = one_after_the_other(samples, sampler, batches)
    wanted = [encode(image) for x in states for image in to_bytes(samples.setting.data.images(x))]
    writers, encoders, paths, plain = set(), set(), [], sample_folder.write_bytes

    def write(path, content, sync=True):
        writers.add(threading.current_thread())
        paths.append(path)
        plain(path, content, sync)

    def encoded(image):
        encoders.add(threading.current_thread())
        return encode(image)

    monkeypatch.setattr(sample_folder, "write_bytes", write)
    monkeypatch.setattr(command, "encode", encoded)
    monkeypatch.setattr(command, "_finish", lambda *_: None)
    made(samples, folder)
    assert [folder.image(seed).read_bytes() for seed in seeds] == wanted
    assert paths == [folder.image(seed) for seed in seeds]
    assert listed(folder) == [list(batch) for batch in batches]
    assert len(writers) == 1
    assert threading.main_thread() not in writers | encoders


@pytest.mark.parametrize("nth", [1, 6, 20])
def test_a_full_disk_is_the_main_threads_error(samples, folder, monkeypatch, nth):
    """One sentence, in the first, a middle and the last batch; what is listed is there, and the same command ends."""
    plain, count = sample_folder.write_bytes, []

    def write(path, content, sync=True):
        count.append(path)
        if len(count) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(path, content, sync)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_folder, "write_bytes", write)
        with pytest.raises(SnrkitError) as failed:
            made(samples, folder)
    assert str(failed.value) == (
        f"saving images in {folder.path} failed: the disk is full; free space and run the same command again"
    )
    whole = list(chain.from_iterable(listed(folder)))
    assert whole == list(range((nth - 1) // 4 * 4))
    assert len(count) == nth
    before = [folder.image(seed).stat().st_mtime_ns for seed in whole]
    made(samples, folder)
    assert [folder.image(seed).stat().st_mtime_ns for seed in whole] == before
    assert not folder.missing(range(20))


def test_being_asked_to_stop_waits_for_what_was_begun(samples, folder, monkeypatch):
    """What was sampled by then is on the disk and listed, and a resumed run equals an undisturbed one."""
    plain, going, asked = SampleFolder.add, threading.Event(), threading.Event()

    def add(self, made_of, images, process):
        going.set()
        assert asked.wait(60)  # until the signal is there, the first batch is not written
        plain(self, made_of, images, process)

    class Asking:
        process = samples.model.denoiser.process

        def __call__(self, x, level, **told):
            if going.is_set() and not asked.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                asked.set()
            return samples.model.denoiser(x, level, **told)

    model = Model(Asking(), samples.model.made_of, samples.model.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleFolder, "add", add)
        with pytest.raises(Stopped) as stopped:
            made(Trajectories(samples.setting, model, samples.sources, samples.config), folder)
    stored = folder.manifest()
    assert f"stopped with {len(stored.sums)} of 20 images" in str(stopped.value)
    assert stopped.value.code == 75
    assert sorted(stored.sums) == list(range(len(stored.sums)))
    assert 8 <= len(stored.sums) < 20
    made(samples, folder)
    whole = SampleFolder(folder.path.parent / "whole")
    made(samples, whole)
    assert folder.manifest().sums == whole.manifest().sums
    names = samples.sources.names
    assert folder.manifest().made == manifest(names, names.experiment.samplers["ancestral"])


class Others:
    """The other processes of a group, one of which may be asked to stop."""

    def __init__(self, asked):
        self.asked, self.told = asked, 0

    def ask_to_stop(self):
        self.told += 1


def in_group(samples, others):
    """The same, in a group."""
    world = World(0, 1, torch.device("cpu"), others)
    return Trajectories(replace(samples.setting, world=world), samples.model, samples.sources, samples.config)


def test_a_stop_asked_of_another_process_ends_sampling_too(samples, folder):
    """After the batch at hand, with the code of what goes on; nobody else is told again."""
    others = Others(asked=True)
    with pytest.raises(Stopped) as stopped:
        made(in_group(samples, others), folder)
    assert (stopped.value.code, others.told) == (75, 0)
    assert sorted(folder.manifest().sums) == list(range(4))


def test_a_stop_asked_of_this_process_is_told_to_the_others(samples, folder):
    """With the batch after which it ends."""
    others, plain = Others(asked=False), SampleFolder.add

    def add(self, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        plain(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleFolder, "add", add)
        with pytest.raises(Stopped):
            made(in_group(samples, others), folder)
    assert others.told == 1
    made(in_group(samples, Others(asked=False)), folder)
    assert not folder.missing(range(20))


def test_a_stop_asked_while_the_last_batch_is_written_is_heard(samples, folder):
    """All images are there, and what would come after them is left to the same command."""
    plain = SampleFolder.add

    def add(self, made_of, images, process):
        if 19 in images:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, made_of, images, process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleFolder, "add", add)
        with pytest.raises(Stopped, match="stopped with 20 of 20 images"):
            made(samples, folder)
    picture = folder.path.parent / "ancestral.png"
    assert not picture.exists()
    made(samples, folder)
    assert picture.exists()


def test_an_error_of_the_network_leaves_what_was_sampled(samples, folder):
    """The batches before it are written; the error is the network's own."""
    calls = []

    class Fails:
        process = samples.model.denoiser.process

        def __call__(self, x, level, **told):
            calls.append(1)
            if len(calls) > 6:  # of the third batch
                raise ValueError("the network")
            return samples.model.denoiser(x, level, **told)

    model = Model(Fails(), samples.model.made_of, samples.model.run)
    with pytest.raises(ValueError, match="the network"):
        made(Trajectories(samples.setting, model, samples.sources, samples.config), folder)
    assert listed(folder) == [list(range(4)), list(range(4, 8))]
