"""Scoring a folder of PNGs of 256x256 by Inception with seeded weights, beside torch-fidelity's command.

    python -m tests.bench.scoring 2000

prints images/s of the extractor alone on decoded images, of `eval-fid`'s own way through the folder, and of
torch-fidelity on the same folder (features and ISC, without a second folder), with the peak of memory of each process.
Chunks of the first two take turns, so that a busy machine is as busy for both.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from snrkit.base.distributed import World
from snrkit.commands.sample import encode
from snrkit.data.dataset import Split, memory_dataset
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import make_extractor
from snrkit.metrics.features import extract
from tests.metrics.test_metrics import seeded_inception
from tests.peak import peak

BATCH, CHUNK = 16, 500
THEIRS = """
import sys, time
from tests.peak import forget, peak
forget()
import torch_fidelity
begun = time.perf_counter()
torch_fidelity.calculate_metrics(
    input1=sys.argv[1], isc=True, cuda=False, cache=False, verbose=False, batch_size=16, samples_find_deep=True,
    feature_extractor="inception-v3-compat", feature_extractor_weights_path=sys.argv[2],
)
print(time.perf_counter() - begun, peak())
"""


def pictures(count: int) -> torch.Tensor:
    """Smooth noise, uint8."""
    small = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    large = torch.nn.functional.interpolate(small, size=256, mode="bicubic")
    return (large * 60 + 128).clamp(0, 255).to(torch.uint8)


def main() -> None:
    """Of so many images."""
    count, world = int(sys.argv[1]), World(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as home:
        folder, weights = SampleFolder(Path(home) / "samples"), seeded_inception(Path(home))
        for first in range(0, count, 100):
            made = pictures(min(100, count - first))
            folder.add({"a": 1}, {first + k: encode(image) for k, image in enumerate(made)}, 0)
        folder.gather({"a": 1})
        none = memory_dataset("none", made)
        extractor = make_extractor(
            MetricsConfig(features="inception", weights=weights), none, Split((), ()), world.device
        )
        data, seconds = folder.dataset(range(count), (3, 256, 256)), [0.0, 0.0]
        extract(extractor, data, range(BATCH), BATCH, world)
        for number, first in enumerate(range(0, count, CHUNK)):
            rows = range(first, min(count, first + CHUNK))
            decoded = data.pixels(rows)
            for way in (0, 1) if number % 2 else (1, 0):
                begun = time.perf_counter()
                if way:
                    extract(extractor, data, rows, BATCH, world)
                else:
                    for part in torch.split(decoded, BATCH):
                        extractor.run(part)
                seconds[way] += time.perf_counter() - begun
        mine = peak()
        words = [sys.executable, "-c", THEIRS, str(folder.path), str(weights)]
        theirs = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    print(f"| extractor alone | {count / seconds[0]:.2f} images/s | |")
    print(f"| snrkit | {count / seconds[1]:.2f} images/s, {seconds[0] / seconds[1]:.3f} of it | {mine:.0f} MiB |")
    print(f"| torch-fidelity | {count / float(theirs[0]):.2f} images/s | {float(theirs[1]):.0f} MiB |")


if __name__ == "__main__":
    main()
