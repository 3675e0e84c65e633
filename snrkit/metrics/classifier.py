"""A small classifier whose penultimate layer gives features, for data sets where Inception says little.

Trained on the labelled training split by a fixed recipe from a fixed seed on the CPU, and cached under a key of data
and recipe. Its scores are named after the data set (FD-digits), never FID.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.cache import keeping
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.base.numerics import NUMERICS
from snrkit.base.streams import CLASSIFIER
from snrkit.base.tensors import tensors_checksum
from snrkit.data.dataset import Dataset, Split, chunks, fingerprint

RECIPE = "1"  # change with anything below that changes the weights
IMAGES, EPOCHS, BATCH, LR = 60_000, 6, 128, 2e-3  # the larger of IMAGES and EPOCHS is trained
SMALLEST = 4  # side at which convolutions stop halving


class Classifier(nn.Module):
    """Convolutions that halve the image down to 4x4, then a layer of `dim` features and a linear head."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side, width = shape[0], min(shape[1:]), 32
        while True:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            if side < 2 * SMALLEST:
                break
            layers.append(nn.MaxPool2d(2))
            side, width = side // 2, min(2 * width, 128)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(SMALLEST // 2), nn.Flatten())
        self.dim = min(channels, 64)
        self.penultimate = nn.Linear(channels * (SMALLEST // 2) ** 2, self.dim)
        self.head = nn.Linear(self.dim, classes)

    def features(self, x0: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, dim)."""
        out: Tensor = self.penultimate(self.body(x0))
        return out

    def forward(self, x0: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        out: Tensor = self.head(self.features(x0))
        return out


@dataclass(frozen=True, slots=True)
class TrainedClassifier:
    """A classifier, the key of its weights, and its accuracy on held-out images."""

    network: Classifier
    key: str
    accuracy: float | None


def train_classifier(dataset: Dataset, split: Split) -> TrainedClassifier:
    """The classifier of a labelled data set's training split, from the cache where it was trained before."""
    return finished(training_classifier(dataset, split))


def training_classifier(dataset: Dataset, split: Split) -> Gradual[TrainedClassifier]:
    """As `train_classifier`, saying how many images were seen, with the loss."""
    assert dataset.labels is not None
    recipe = fingerprint("classifier", str(NUMERICS), RECIPE, dataset.fingerprint, repr(split.train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(dataset.shape, dataset.classes)
    tensors = yield from keeping(f"classifier-{recipe}", _fitting(network, dataset, split))
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    key = fingerprint("classifier", tensors_checksum(tensors, recipe))
    return TrainedClassifier(network, key, _accuracy(network, dataset, split))


def _fitting(network: Classifier, dataset: Dataset, split: Split) -> Gradual[dict[str, Tensor]]:
    assert dataset.labels is not None
    train, rng = np.asarray(split.train), CLASSIFIER.open()
    steps = max(IMAGES, EPOCHS * len(train)) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    network.train()
    for step in range(steps):
        rows = train[rng.integers(len(train), size=BATCH)]
        x0 = _jitter(dataset.x0(rows.tolist()), rng)
        loss = functional.cross_entropy(network(x0), dataset.labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        yield Done(
            "training the classifier", (step + 1) * BATCH, steps * BATCH, note=f"loss {float(loss.detach()):.3f}"
        )
    return network.state_dict()


def _jitter(x0: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift the batch by up to a sixteenth of its side, at least one pixel."""
    most = max(1, x0.shape[-1] // 16)
    down, right = (int(n) for n in rng.integers(-most, most + 1, size=2))
    padded = functional.pad(x0, (most,) * 4, mode="replicate")
    return padded[:, :, most + down :, most + right :][:, :, : x0.shape[2], : x0.shape[3]]


@torch.no_grad()
def _accuracy(network: Classifier, dataset: Dataset, split: Split) -> float | None:
    if not split.held:
        return None
    assert dataset.labels is not None
    right = [
        (network(dataset.x0(run)).argmax(1) == dataset.labels[torch.as_tensor(run)]).sum()
        for run in chunks(split.held, 512)
    ]
    return float(torch.stack(right).sum()) / len(split.held)
