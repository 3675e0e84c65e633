"""`make gpu-check`: what docs/performance.md says of a GPU, measured on the one that is here, in at most eight minutes.

Nothing is downloaded: images are noise, weights are seeded. Each row is a figure with the bound that it is meant to
keep; a row that fails says why and the others go on. `--tiny --device cpu` tries the script itself.
"""

import argparse
import gc
import json
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import nn

import snrkit
from snrkit.base.distributed import World
from snrkit.base.errors import reason_of
from snrkit.base.transfer import Arriving, send
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands.certify import run_certify
from snrkit.commands.dry_run import budget
from snrkit.commands.sample import encode, make_images
from snrkit.commands.train import run_training
from snrkit.data.dataset import memory_dataset, to_unit
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.experiment.experiment import Experiment, parse_experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import AUTOCAST, Model, Opened, open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.experiment.trajectories import trajectories
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import make_extractor
from snrkit.metrics.features import extract
from snrkit.networks.compiling import compiled
from snrkit.sampling.grid import Karras
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Churn, Euler
from snrkit.training.train import make_state, restore, state_numbers, state_tensors, train
from tests.metrics.test_metrics import seeded_inception
from tests.small import SMALL, as_torch_was, process, write_config

EMA = 0.999
NO_GPU = "torch finds no GPU here; run it where there is one (--tiny --device cpu tries the script itself)."


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    side: int
    batch: int
    steps: int  # timed of each training, after as many that warm up
    images: int  # sampled, scored and measured
    pictures: int  # side of those that are scored


FULL = Size(128, (1, 2, 2, 2), 2, 32, 512, 20, 256, 256)
TINY = Size(8, (1,), 1, 8, 16, 2, 24, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, what it is meant to be, and whether it is."""

    name: str
    value: float
    unit: str
    bound: str = ""
    kept: bool = True


class Check:
    """The rows that were measured on a device."""

    def __init__(self, size: Size, device: torch.device, home: Path) -> None:
        self.size, self.device, self.home = size, device, home
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}

    @property
    def precision(self) -> str:
        """In which networks are trained here."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    def say(self, name: str, value: float, unit: str, most: float | None = None, least: float | None = None) -> None:
        """A row, held to a bound."""
        bound = f"<= {most:g}" if most is not None else f">= {least:g}" if least is not None else ""
        kept = (most is None or value <= most) and (least is None or value >= least)
        self.rows.append(Row(name, value, unit, bound, kept))
        print(f"{name:58} {value:12.4g} {unit:12} {bound:10} {'' if kept else 'MISSED'}", flush=True)

    def opened(self, **changes: Any) -> Opened:
        """The experiment, opened on the device."""
        return open_experiment(self.experiment(**changes), World(0, 1, self.device))

    def experiment(self, **changes: Any) -> Experiment:
        """The training of labelled colour images, with parts changed by their keys."""
        s = self.size
        network = {"kind": "unet", "channels": s.channels, "multipliers": list(s.multipliers), "blocks": s.blocks}
        content: dict[str, Any] = {
            "name": "gpu-check", "process": {"kind": "edm"}, "target": {"kind": "x0"},
            "precondition": {"kind": "edm"}, "levels": {"kind": "lognormal"}, "weighting": {"kind": "edm"},
            "data": {"kind": "mixture", "shape": [3, s.side, s.side], "count": 4 * s.batch, "components": 10,
                     "flip": True, "sigma_data": 0.5},
            "network": {**network, "groups": min(32, s.channels // 2), "classes": 10},
            "train": {"images": 10**9, "batch": s.batch, "slice": min(64, s.batch), "clip": 1.0, "warmup": 0,
                      "label_dropout": 0.1, "averages": [{"kind": "ema_decay", "decay": EMA}]},
            "samplers": {"euler": {"grid": {"kind": "karras", "steps": 18}, "solver": {"kind": "euler"}}},
            "sample": {"seeds": f"0-{s.images - 1}", "batch": s.images},
            "compute": {"precision": self.precision, "channels_last": True},
        }  # fmt: skip
        for key, value in changes.items():
            content[key] = {**content.get(key, {}), **value}
        return parse_experiment(content, "gpu-check")

    def wait(self) -> float:
        """Seconds, when the device has done all that it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, run: Callable[[], object], count: int) -> float:
        """Seconds for one of `count`, after as many that warm up."""
        for _ in range(count):
            run()
        begun = self.wait()
        for _ in range(count):
            run()
        return (self.wait() - begun) / count

    def most(self) -> int:
        """Bytes of the device held at most since the last `forget`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def forget(self) -> None:
        """Free what is unused, and count the most that is held anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def uint8(check: Check, opened: Opened) -> torch.Tensor:
    """Images of the data set as bytes, as files give them."""
    shape = (opened.data.dataset.count, *opened.data.dataset.shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def task_of(check: Check, opened: Opened) -> Any:
    """Its training, on bytes."""
    data = memory_dataset("noise", uint8(check, opened), opened.data.dataset.labels)
    return replace(opened.task(), dataset=data)


def bare_step(check: Check, opened: Opened, whole: bool) -> Callable[[], object]:
    """A step of a plain loop of the same network, with images and noise on the device."""
    s, device = check.size, check.device
    network = opened.network().to(device, memory_format=torch.channels_last).train()
    call = compiled(network) if whole else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in network.parameters()]
    pixels = uint8(check, opened).to(device)
    dtype = AUTOCAST[check.precision]

    def step() -> None:
        x0 = pixels[torch.randint(len(pixels), (s.batch,), device=device)].float() / 127.5 - 1
        x0 = x0.to(memory_format=torch.channels_last)
        eps = torch.randn_like(x0)
        sigma = torch.exp(1.2 * torch.randn(s.batch, device=device) - 1.2)[:, None, None, None]
        labels = torch.randint(10, (s.batch,), device=device)
        total = sigma**2 + 0.25
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = call((x0 + sigma * eps) * total.rsqrt(), sigma.flatten().log() / 4, snrkit.Cond(labels=labels))
        loss = (output - (sigma * x0 - 0.25 * eps) / (0.5 * total.sqrt())).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 1 - EMA)

    return step


@dataclass(frozen=True, slots=True)
class Trained:
    """What steps of one loop took."""

    first: float  # seconds of the first step, with warming up
    seconds: float  # a step
    memory: int  # bytes at most, of steps but the first, in which cuDNN tries its ways


def trained(check: Check, name: str, whole: bool) -> Trained:
    """The steps of `train()` or of a bare loop, of which nothing is left afterwards."""
    check.forget()
    opened = check.opened(compute={"compile": whole})
    begun = check.wait()
    with tempfile.TemporaryDirectory() as cache, patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=cache):
        torch._dynamo.reset()  # type: ignore[no-untyped-call]
        if name == "train()":
            task = task_of(check, opened)
            steps = train(task, make_state(task, opened.network()))
            run: Callable[[], object] = lambda: next(steps)  # noqa: E731
        else:
            run = bare_step(check, opened, whole)
        run()
        first = check.wait() - begun
        check.forget()
        seconds = check.timed(run, check.size.steps)
        return Trained(first, seconds, check.most())


def training(check: Check) -> None:
    """`train()` and a bare loop, eager and compiled: the four rows, and the memory of both eager ones."""
    found = {}
    for how in ("eager", "compiled"):
        for name in ("train()", "bare loop"):
            one = found[name, how] = trained(check, name, how == "compiled")
            if how == "compiled":
                bound = 25.0 if check.device.type == "cuda" else None
                check.say(f"{name}, {how}: the first step, with warming up", one.first, "s", bound)
            check.say(f"{name}, {how}", 1000 * one.seconds, "ms a step")
            check.say(f"{name}, {how}", check.size.batch / one.seconds, "images/s")
    for how in ("eager", "compiled"):
        share = found["train()", how].seconds / found["bare loop", how].seconds
        check.say(f"train() over a bare loop, {how}", share, "times", 1.03)
    gain = found["train()", "eager"].seconds / found["train()", "compiled"].seconds
    check.say("compiled over eager", gain, "times", least=1.6)
    if found["bare loop", "eager"].memory:
        share = found["train()", "eager"].memory / found["bare loop", "eager"].memory
        check.say("peak memory of train() over a bare loop's", share, "times", 1.1)


def reads(check: Check) -> None:
    """Times that a step of training waits for the device: what torch reports of all threads, and readings."""
    if check.device.type != "cuda":
        return
    opened = check.opened()
    task = task_of(check, opened)
    steps = train(task, make_state(task, opened.network()))
    for _ in range(3):
        next(steps)
    read, wait = [], Arriving.wait

    def noting(arriving: Arriving) -> torch.Tensor:
        read.append(arriving)
        return wait(arriving)

    with warnings.catch_warnings(record=True) as found, patch.object(Arriving, "wait", noting):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(4):
                next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = sum("called a synchronizing" in str(w.message) for w in found)
    check.say("waits for the device", (said + len(read)) / 4, "a step", 1)


def budgets(check: Check) -> None:
    """What a dry run says of memory against what training takes."""
    opened = check.opened()
    found = budget(opened.experiment.training, opened.setting)
    check.forget()
    task = task_of(check, opened)
    steps = train(task, make_state(task, opened.network()))
    for _ in range(3):
        next(steps)
    if check.most():
        said = found.weights + found.activations[found.precision] + found.ahead
        check.say("peak memory of training over the dry run's estimate", check.most() / said, "times", 1.25)
        check.say("the dry run's estimate over peak memory", said / check.most(), "times", 1.5)


def precisions(check: Check) -> None:
    """The eighth loss in half precision against float32's, from the same draws; and whether steps are taken."""
    last = {}
    for precision in ("fp32", "bf16", *(["fp16"] if check.device.type == "cuda" else [])):
        opened = check.opened(compute={"precision": precision})
        task = task_of(check, opened)
        steps = list(islice(train(task, make_state(task, opened.network())), 8))
        last[precision] = steps[-1].loss
        if precision != "fp32":
            check.say(f"eighth loss in {precision} over float32's", abs(last[precision] / last["fp32"] - 1), "off", 0.1)
        check.say(f"steps skipped in {precision}, of 8", sum(step.skipped for step in steps), "steps", 4)


def transfers(check: Check) -> None:
    """While the device is at work: copies to it that nobody waits for, and copies from it that have arrived."""
    if check.device.type != "cuda":
        return
    wide = 16 * check.size.batch
    work, values = torch.randn(wide, wide, device=check.device), torch.randn(2**15 * check.size.batch)
    send(values, check.device)  # memory is pinned once
    begun = check.wait()
    for _ in range(20):
        work = work @ work / wide
    there = send(values, check.device) + work[0, 0] * 0
    arriving = Arriving(there)
    asked, arrived = time.perf_counter() - begun, arriving.wait()
    whole = check.wait() - begun
    check.say("time to ask for work and copies over that of both", asked / whole, "times", 0.5)
    check.say("what arrived is what was sent", float(torch.equal(arrived, values)), "1: yes", least=1)


def same_bits(check: Check) -> None:
    """What the device is given is the host's, to the bit: every one of the 256 values of a byte."""
    pixels = torch.arange(256, dtype=torch.uint8)
    equal = torch.equal(to_unit(send(pixels, check.device)).cpu(), to_unit(pixels))
    check.say("bytes become the same floats on the device", float(equal), "1: yes", least=1)


def resumes(check: Check) -> None:
    """Six steps at once, and three and three through what a checkpoint keeps, under `compute.deterministic`."""
    with as_torch_was():
        opened = check.opened(compute={"deterministic": True}, train={"images": 6 * check.size.batch})
        task = task_of(check, opened)
        whole = make_state(task, opened.network())
        steps = train(task, whole)
        for _ in range(3):
            next(steps)
        whole.settle(task)
        numbers, images = state_numbers(whole), whole.images
        kept = {n: {k: t.detach().cpu().clone() for k, t in part.items()} for n, part in state_tensors(whole).items()}
        for _ in steps:
            pass
        resumed = make_state(task, opened.network())
        restore(resumed, images, kept, numbers)
        for _ in train(task, resumed):
            pass
    ends = [state_tensors(state) for state in (whole, resumed)]
    equal = all(torch.equal(t, ends[1][n][k]) for n, part in ends[0].items() for k, t in part.items())
    check.say("training that stops and goes on ends in the same bits", float(equal), "1: yes", least=1)


def processes(check: Check) -> None:
    """Weights of two steps in two processes against one's, where there are two devices; steps are plain SGD."""
    if check.device.type == "cuda" and torch.cuda.device_count() < 2:
        return
    plain = {**SMALL["train"], "images": 128, "optimizer": "sgd", "momentum": 0.0, "warmup": 0, "averages": []}
    network, ends = {**SMALL["network"], "dropout": 0.0}, []
    for count in (1, 2):
        home = check.home / f"processes-{count}"
        home.mkdir()
        write_config(home, train=plain, network=network, compute={"precision": "fp32"})
        process(home, "train", "--device", check.device.type, processes=count)
        newest = list_checkpoints(Run(home / "runs/small").checkpoints)[-1]
        ends.append(flat(load_file(newest / "network.safetensors")))
    content = {**SMALL, "network": network}
    opened = open_experiment(parse_experiment(content, "small"), World(0, 1, torch.device("cpu")))
    begun = flat(opened.network().state_dict())
    moved, apart = (ends[0] - begun).norm(), (ends[1] - ends[0]).norm()
    check.say("weights of two processes apart from one's", float(apart / moved), "of the way", 1e-3)


def flat(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All weights in one row, in the order of their names."""
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(weights.items())])


def network_of(check: Check) -> tuple[Opened, nn.Module, NetworkDenoiser]:
    """A fresh network, as samplers ask it."""
    opened = check.opened()
    network = opened.network().to(check.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    e = opened.experiment
    dtype = AUTOCAST[check.precision]
    return opened, network, NetworkDenoiser(network, e.process, e.target, e.precondition, 0.5, autocast=dtype)


def sampling(check: Check) -> None:
    """Images as `snrkit sample` makes them against as many bare calls of the network; and with their PNGs."""
    opened, network, denoiser = network_of(check)
    shape, steps = (check.size.images, 3, check.size.side, check.size.side), 18 if check.size is FULL else 4
    x, dtype = torch.randn(*shape, device=check.device), AUTOCAST[check.precision]
    at, seeds = torch.rand(shape[0], device=check.device), list(range(shape[0]))
    labels = torch.zeros(shape[0], dtype=torch.int64, device=check.device)
    model = Model(denoiser, Weights("network", 0, ""), Run(check.home / "unused"))
    samples = trajectories(opened, model)

    @torch.no_grad()
    def bare(calls: int) -> None:
        for _ in range(calls):
            with torch.autocast(check.device.type, dtype, enabled=dtype is not None):
                network(x, at, snrkit.Cond(labels=labels))

    for name, solver, most in (("euler", Euler(), 1.01), ("churn", Churn(s_churn=10.0), 1.02)):
        sampler = Sampler(grid=Karras(steps=steps), solver=solver)

        @torch.no_grad()
        def ours(sampler: Sampler = sampler) -> None:
            for _ in samples.generate(sampler, [seeds, seeds]):
                pass

        alone = check.timed(lambda: bare(2 * steps), 1)
        check.say(f"sampling with {name} over bare calls", check.timed(ours, 2) / alone, "times", most)
    pngs = SampleFolder(check.home / "pngs")

    @torch.no_grad()
    def saved() -> None:
        make_images(samples, "euler", pngs, Sampler(grid=Karras(steps=steps), solver=Euler()), False, True)

    begun = check.wait()
    saved()
    check.say("images sampled and saved as PNG", shape[0] / (check.wait() - begun), "images/s")


def scoring(check: Check) -> None:
    """Features of Inception's shape of PNGs, against those of decoded images on the host."""
    side, count = check.size.pictures, check.size.images
    small = torch.randn(count, 3, max(2, side // 8), max(2, side // 8), generator=torch.Generator().manual_seed(0))
    pixels = (nn.functional.interpolate(small, size=side, mode="bicubic") * 60 + 128).clamp(0, 255).to(torch.uint8)
    folder = SampleFolder(check.home / "samples")
    folder.add({"a": 1}, {seed: encode(image) for seed, image in enumerate(pixels)}, 0)
    folder.gather({"a": 1})
    config = MetricsConfig(features="inception", weights=seeded_inception(check.home))
    data = memory_dataset("noise", pixels)
    extractor = make_extractor(config, data, opened_split(), check.device)
    images, world = folder.dataset(range(count), (3, side, side)), World(0, 1, check.device)
    alone = check.timed(lambda: [extractor.run(part) for part in torch.split(pixels, 64)], 1)
    whole = check.timed(lambda: extract(extractor, images, range(count), 64, world), 1)
    check.say("scoring PNGs", count / whole, "images/s")
    check.say("scoring PNGs over the extractor on decoded images", alone / whole, "of its rate", least=0.95)


def opened_split() -> Any:
    """No split: Inception learns nothing."""
    from snrkit.data.dataset import Split

    return Split((), ())


def measuring(check: Check) -> None:
    """`snrkit.measure` against as many bare calls, and what it holds."""
    _, network, denoiser = network_of(check)
    shape, steps = (check.size.images, 3, check.size.side, check.size.side), 10 if check.size is FULL else 4
    real = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, at = torch.randn(*shape, device=check.device), torch.rand(shape[0], device=check.device)
    dtype = AUTOCAST[check.precision]

    @torch.no_grad()
    def bare() -> None:
        for _ in range(3 * steps):
            with torch.autocast(check.device.type, dtype, enabled=dtype is not None):
                network(x, at, None)

    def ours() -> None:
        sampler = Sampler(grid=Karras(steps=steps), solver=Euler())
        snrkit.measure(
            denoiser, sampler, trained=real[0], held=real[1], images=shape[0], batch=shape[0], bootstrap=200,
            device=check.device,
        )  # fmt: skip

    check.say("measuring over bare calls", check.timed(ours, 1) / check.timed(bare, 1), "times", 1.1)
    check.say("host memory of this process at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")


def certifying(check: Check) -> None:
    """`snrkit certify` of Euler at 13 evaluations, of a network that has seen a few batches; tiny: of it as it is."""
    whole = check.size is FULL
    experiment = check.experiment(
        data={"count": 8 * check.size.batch, "holdout": 0.5}, train={"images": 4 * check.size.batch},
        samplers={"euler": {"grid": {"kind": "karras", "steps": 13}, "solver": {"kind": "euler"}}},
        tune={"seeds": "100000-100383", "noises": 128 if whole else 20},
        shift={"images": check.size.images}, metrics={"features": "pixels"},
    )  # fmt: skip
    runs, world = check.home / "certified", World(0, 1, check.device)
    run_training(experiment, runs, world, quiet=True)
    begun = check.wait()
    run_certify(experiment, runs, world, ["euler"], None if whole else 0.0, quiet=True)
    check.say("certificate of Euler at 13 evaluations", (check.wait() - begun) / 60, "minutes", 10)


PARTS: Sequence[Callable[[Check], None]] = (
    training, reads, transfers, same_bits, budgets, precisions, sampling, scoring, measuring, resumes, processes,
    certifying,
)  # fmt: skip


@contextmanager
def named(check: Check, name: str) -> Iterator[None]:
    """A part that fails says why, and the others go on."""
    try:
        yield
    except Exception as error:
        check.failed[name] = f"{type(error).__name__}: {reason_of(error)}"
        print(f"{name}: {check.failed[name]}", flush=True)
    check.forget()


def run(size: Size, device: torch.device, home: Path) -> Check:
    """All parts."""
    check = Check(size, device, home)
    for part in PARTS:
        with named(check, part.__name__):
            part(check)
    return check


def report(check: Check) -> dict[str, Any]:
    """All rows, the device and the versions, as JSON holds them."""
    cuda = check.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(check.device) if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "size": asdict(check.size),
        "rows": [asdict(row) for row in check.rows],
        "failed": check.failed,
    }


def main() -> int:
    """Print the rows, write them to --out, and exit 1 where a bound was missed or a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks and images of a few pixels")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: {NO_GPU}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as home:
        check = run(TINY if given.tiny else FULL, device, Path(home))
    given.out.write_text(json.dumps(report(check), indent=1) + "\n")
    print(f"written to {given.out}")
    return int(bool(check.failed) or not all(row.kept for row in check.rows))


if __name__ == "__main__":
    sys.exit(main())
