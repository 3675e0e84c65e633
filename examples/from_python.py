"""snrkit as a library: a network of one's own, what a correction does, the shift of a sampler, a training.

    python examples/from_python.py configs/digits.yaml train.images=20000

mypy and pyright read every line as it stands, without plugins (make check).
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import snrkit

DRAWS = torch.Generator().manual_seed(0)


class Velocity(nn.Module):
    """A network that snrkit knows nothing of: network(x, time) says eps - x0 of images (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        said: Tensor = self.layers(x + time[:, None, None, None])
        return said.reshape(x.shape)


def own_network(network: nn.Module, images: int) -> Tensor:
    """Images (n, 1, 8, 8) of a network of one's own, by a solver that draws noise, with a correction."""
    process = snrkit.Flow(logsnr_shift=-1.0)
    denoise = snrkit.wrap(network.eval(), process, snrkit.FlowVelocity())
    levels = snrkit.UniformTime(steps=8).levels(process)
    x = snrkit.start(process, torch.randn(images, 1, 8, 8, generator=DRAWS), levels[0])
    with torch.no_grad():
        for step in snrkit.sample(
            denoise, snrkit.Ancestral(eta=0.5), levels, x, corrections=[snrkit.Dcw(low=0.01)], noise=torch.randn_like
        ):
            x = step.x_next
    return x


def spread(denoise: snrkit.Denoiser, solver: snrkit.Solver, corrections: Sequence[snrkit.Correction]) -> float:
    """The standard deviation of images that 18 steps make."""
    levels = snrkit.Karras(steps=18).levels(denoise.process)
    x = snrkit.start(denoise.process, torch.randn(1000, 1, 8, 8, generator=DRAWS), levels[0], variance=0.25)
    *_, last = snrkit.sample(denoise, solver, levels, x, corrections=corrections)
    return float(last.x_next.std())


def shift(variance: float) -> snrkit.ShiftReading:
    """How far ten Euler steps are from the levels they are told, by the exact denoiser of N(0, variance) images."""
    denoise = snrkit.gaussian_denoiser(snrkit.Edm(), mean=0.0, variance=variance, shape=(1, 8, 8))
    real = (torch.randn(800, 1, 8, 8, generator=DRAWS) * variance**0.5).clamp(-1, 1)
    sampler = snrkit.Sampler(grid=snrkit.Karras(steps=10), solver=snrkit.Euler())
    return snrkit.measure(denoise, sampler, trained=real[:400], held=real[400:], images=400)


def train(path: str, settings: Sequence[str]) -> nn.Module:
    """The network of an experiment's file after its training."""
    opened = snrkit.open_experiment(snrkit.load_experiment(path, settings), snrkit.open_world("cpu"))
    task, network = opened.task(), opened.network()
    for step in snrkit.train(task, snrkit.make_state(task, network)):
        if step.step % 50 == 0:
            print(f"{step.images} images: loss {step.loss:.3f}")
    return network.eval()


if __name__ == "__main__":
    print(f"a network of one's own: {tuple(own_network(Velocity(), 16).shape)}")
    exact = snrkit.gaussian_denoiser(snrkit.Edm(sigma_max=40.0), mean=0.0, variance=0.25, shape=(1, 8, 8))
    scaled = snrkit.EpsilonScaling(scale=0.9884)
    print(f"Heun {spread(exact, snrkit.Heun(), ()):.3f}, scaled {spread(exact, snrkit.Heun(), [scaled]):.3f}, of 0.5")
    print(shift(variance=0.04))
    print(f"parameters: {sum(p.numel() for p in train(sys.argv[1], sys.argv[2:]).parameters())}")
