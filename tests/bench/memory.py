"""The tables of memory in docs/performance.md: `python -m tests.bench.memory`, a process for each figure.

`python -m tests.bench.memory large 1000` is the one that takes half an hour.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import snrkit
from snrkit.base.distributed import World
from snrkit.commands.design import designs
from snrkit.commands.sample import encode
from snrkit.data.dataset import memory_dataset
from snrkit.diffusion.prediction import Cond, Prediction, Wrapped
from snrkit.experiment.flows import FirstStates
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.metrics.features import extract
from snrkit.sampling.sample import start
from snrkit.sampling.sampler import Dummy

MIB = 2**20


def held() -> int:
    """Bytes of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_above(run: Callable[[], object]) -> int:
    """The most that a call holds beyond what was held before, looked at every 2 ms."""
    before, most, done = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, held())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return most - before


def answer(x: torch.Tensor, level: snrkit.Level, told: object, cond: object) -> Prediction:
    """A denoiser of a line, of Gaussian data."""
    x0 = 0.3 * x / (0.3 + level.sigma**2)
    return Prediction(x0, (x - x0) / level.sigma)


def measuring(images: int, side: int = 64, levels: int = 10, batch: int = 100) -> int:
    """`snrkit.measure` of colour images, by Euler, with a denoiser of a line."""
    pixels = torch.randint(0, 256, (max(60, images // 4), 3, side, side), dtype=torch.uint8)
    data = memory_dataset("noise", pixels)
    sampler = snrkit.Sampler(grid=snrkit.Karras(steps=levels), solver=snrkit.Euler())
    denoise = Wrapped(snrkit.Edm(), answer)
    return peak_above(
        lambda: snrkit.measure(denoise, sampler, trained=data, held=data, images=images, batch=batch, bootstrap=200)
    )


class Means:
    """An extractor of the shape of Inception's that costs little: means of blocks of pixels."""

    dim, shape, classes = 2048, (2048,), 0

    def run(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(n, 2048) of images (n, 3, 256, 256)."""
        found = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 27).flatten(1)
        return found[:, :2048], None


def scoring(images: int) -> int:
    """The features of PNGs of 256x256, as `eval-fid` reads them."""
    rng = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as home:
        folder = SampleFolder(Path(home))
        for first in range(0, images, 50):
            part = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=rng)
            large = part.repeat_interleave(8, 2).repeat_interleave(8, 3)
            folder.add({"a": 1}, {first + k: encode(image) for k, image in enumerate(large)}, 0)
        folder.gather({"a": 1})
        data, extractor = folder.dataset(range(images), (3, 256, 256)), Means()
        world = World(0, 1, torch.device("cpu"))
        extract(extractor, data, range(64), 64, world)  # type: ignore[arg-type]
        return peak_above(lambda: extract(extractor, data, range(images), 64, world))  # type: ignore[arg-type]


def large(images: int) -> int:
    """As `measuring`, at 256x256 and 18 levels, in batches of 24."""
    return measuring(images, 256, 18, 24)


def bent(x: torch.Tensor, level: snrkit.Level, told: object, cond: object) -> Prediction:
    """A denoiser that is not linear in the state, so that steps have something to be fitted to."""
    x0 = torch.tanh(0.3 * x / (0.3 + level.sigma**2))
    return Prediction(x0, (x - x0) / level.sigma)


def designing(noises: int, side: int = 64, steps: int = 13, batch: int = 64) -> int:
    """What `design` holds of colour images: the grids of as many steps, each with fitted steps."""
    shape = snrkit.Sampler(grid=snrkit.Karras(steps=steps), solver=snrkit.Fitted())
    process, sampling = snrkit.Edm(), SimpleNamespace(batch=batch)
    setting = SimpleNamespace(parts=SimpleNamespace(process=process))
    samples: Any = SimpleNamespace(sources=Dummy(process), setting=setting, config=sampling)
    levels, draws = shape.grid.levels(process), torch.Generator().manual_seed(0)

    def first() -> FirstStates:
        noise = torch.randn(noises, 3, side, side, generator=draws, dtype=torch.float64)
        return FirstStates(samples, Wrapped(process, bent), start(process, noise, levels[0]), Cond(), (), levels)

    fitted, chosen_on = first(), first()
    began = time.process_time()
    with torch.no_grad():
        found = peak_above(lambda: designs(fitted, chosen_on, shape))
    print(f"{time.process_time() - began:.0f} s of CPU", file=sys.stderr)
    return found


PARTS = {"measuring": measuring, "large": large, "scoring": scoring, "designing": designing}
FIGURES = {"measuring": (100, 400, 1600), "scoring": (200, 2000), "designing": (16, 64)}


def main() -> None:
    """One figure where it is named, else all, as a table."""
    if sys.argv[1:]:
        torch.set_num_threads(1)
        print(PARTS[sys.argv[1]](int(sys.argv[2])))
        return
    print("| what | images | MiB |\n|---|---|---|")
    for name, counts in FIGURES.items():
        for count in counts:
            words = [sys.executable, "-m", "tests.bench.memory", name, str(count)]
            made = subprocess.run(words, check=True, capture_output=True, text=True)
            print(f"| {name} | {count:,} | {int(made.stdout) / MIB:.0f} |", flush=True)


if __name__ == "__main__":
    main()
