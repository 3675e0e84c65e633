"""Exact denoisers, the exact flow of Gaussian data, and plain reference integrators to compare with."""

import math
from itertools import pairwise

import torch

from snrkit.data.toy import MixtureDenoiser, gaussian_denoiser
from snrkit.diffusion.process import Ddpm, Edm, Flow, Vp

PROCESSES = {"ddpm": Ddpm(), "edm": Edm(), "flow": Flow(), "vp": Vp()}
THREE = {name: PROCESSES[name] for name in ("ddpm", "edm", "flow")}
MEAN, VARIANCE = 0.3, 0.25


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def gaussian(process, mean=MEAN, variance=VARIANCE, shape=(1, 1, 1)):
    return gaussian_denoiser(process, mean, variance, shape)


def mixture(process, shape=(1, 2, 2), components=3, variance=0.04, seed=5, prior=None):
    """A denoiser that is not linear: three narrow bumps."""
    draws = torch.Generator().manual_seed(seed)
    means = torch.randn(components, *shape, generator=draws, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:components]
    return MixtureDenoiser(process, means, torch.full((components,), variance, dtype=torch.float64), weights, prior)


def gaussian_flow(x, here, there, mean=MEAN, variance=VARIANCE):
    """Where the exact probability-flow ODE of N(mean, variance) carries x from level `here` to `there`."""
    spread = lambda level: (level.alpha**2 * variance + level.sigma**2).sqrt()  # noqa: E731
    return there.alpha * mean + (x - here.alpha * mean) * spread(there) / spread(here)


def uniform_levels(process, steps, low=-6.0, high=6.0):
    return tuple(process.level(v) for v in torch.linspace(low, high, steps + 1, dtype=torch.float64))


def edm_sampler(denoise, x, sigmas, s_churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0, noise=None):
    """Algorithm 2 of Karras et al. 2022 for sigma(t) = t, s(t) = 1, step by step as printed; churn 0 is Algorithm 1."""
    steps = len(sigmas) - 1
    for t, t_next in pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = t + gamma * t
        if noise is not None:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise(x)
        d = (x - denoise(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d / 2 + d_next / 2)
        x = x_next
    return x


def velocity_heun(velocity, x, times):
    """Heun's method in t for dx/dt = velocity(x, t)."""
    for t, t_next in pairwise(times):
        v = velocity(x, t)
        guess = x + (t_next - t) * v
        x = guess if t_next == 0 else x + (t_next - t) * (v + velocity(guess, t_next)) / 2
    return x


def run(solver, denoise, levels, x, noise=None, corrections=()):
    from snrkit.sampling.sample import no_noise, sample

    for step in sample(denoise, solver, levels, x, corrections=corrections, noise=noise or no_noise):
        x = step.x_next
    return x
