"""What a script gives to `snrkit.measure`, checked before anything is sampled. Every fault is one SnrkitError."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Protocol

import torch
from torch import Tensor

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import SnrkitError
from snrkit.data.dataset import Dataset
from snrkit.diffusion.denoiser import NetworkDenoiser
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.sampler import OpenedSampler, Sampler
from snrkit.sampling.step import Opens
from snrkit.shift.arms import HELD_BYTES
from snrkit.shift.bootstrap import FEWEST, check_resampling

ROUNDING = 1e-3  # by which images may leave [-1, 1]
SEEDS = 2**32  # as many as trajectories of one: seed * SEEDS + row is a number of 64 bits, as streams take


class ImageSet(Protocol):
    """Images by their index, such as a snrkit.data.dataset.Dataset."""

    @property
    def count(self) -> int:
        """How many there are."""

    def x0(self, indices: Sequence[int], /) -> Tensor:
        """Clean images (n, C, H, W), floats in [-1, 1]."""


def data_set(name: str, given: Tensor | ImageSet) -> Dataset:
    """The images by index, checked as they are read. SnrkitError for what are no images, or too few."""
    read: Callable[[Sequence[int]], Tensor]
    if isinstance(given, Tensor):
        count, read = len(given) if given.ndim else 0, partial(_rows, given)
    elif hasattr(given, "count") and hasattr(given, "x0"):
        count, read = given.count, given.x0
    else:
        raise SnrkitError(
            f"`{name}` is a {type(given).__name__}; give a tensor (N, C, H, W), torch.from_numpy(images) of an array, "
            "or what has `count` and `x0(indices)`."
        )
    if count < FEWEST:
        raise SnrkitError(f"`{name}` holds {count} images, and an interval needs at least {FEWEST}.")
    first = read([0])
    if not isinstance(first, Tensor):
        raise SnrkitError(f"`{name}`.x0 answers a {type(first).__name__}; let it answer a tensor (n, C, H, W).")
    if first.ndim != 4 or first.numel() == 0 or not first.is_floating_point():
        raise SnrkitError(
            f"`{name}` holds {first.dtype} of shape {tuple(first.shape[1:])}; give images (N, C, H, W) of floats in "
            "[-1, 1], bytes as x / 127.5 - 1."
        )
    shape = (first.shape[1], first.shape[2], first.shape[3])

    def checked(rows: Sequence[int]) -> Tensor:
        x0 = read(rows)
        if not bool(x0.abs().max() <= 1 + ROUNDING):
            raise SnrkitError(
                f"`{name}` holds {float(x0.abs().max()):g}, and images lie in [-1, 1]; scale them as in training."
            )
        return x0.detach().float().cpu()

    return Dataset(name, shape, count, checked, "", given.labels if isinstance(given, Dataset) else None)


def _rows(images: Tensor, rows: Sequence[int]) -> Tensor:
    return images[torch.as_tensor(rows, device=images.device)]


def check_kinds(denoise: object, sampler: object) -> None:
    """SnrkitError for a network in place of a denoiser, or a solver in place of a sampler."""
    if not (callable(denoise) and hasattr(denoise, "process")):
        raise SnrkitError(
            f"the denoiser is a {type(denoise).__name__}; make one of a network with snrkit.wrap(network, process, "
            "target)."
        )
    if not isinstance(sampler, Sampler | OpenedSampler):
        raise SnrkitError(
            f"the sampler is a {type(sampler).__name__}; give snrkit.Sampler(grid=..., solver=..., corrections=...)."
        )


def check_labels(labels: Tensor | None, images: int, sets: Sequence[Dataset]) -> None:
    """SnrkitError where trajectories have labels that real images do not have."""
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise SnrkitError(f"labels are a {type(labels).__name__}; give a tensor ({images},) of int64.")
    if labels.shape != (images,) or labels.dtype != torch.int64:
        raise SnrkitError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give ({images},) of int64.")
    for one in sets:
        if one.labels is None:
            raise SnrkitError(
                f"`{one.name}` has no labels; give snrkit.memory_dataset(name, images, labels), or leave out `labels`."
            )
        absent = sorted(set(labels.tolist()) - set(one.labels.tolist()))
        if absent:
            raise SnrkitError(f"`{one.name}` has no images of the labels {absent}, which trajectories have.")


def check_numbers(images: int, seed: int, batch: int, bootstrap: int, confidence: float) -> None:
    """SnrkitError for numbers with which nothing can be measured."""
    whole = (("images", images, FEWEST), ("seed", seed, 0), ("batch", batch, 1), ("bootstrap", bootstrap, 1))
    for name, value, least in whole:
        try:
            index(value)
        except TypeError:
            raise SnrkitError(f"{name} is {value!r}; give a whole number.") from None
        if value < least:
            raise SnrkitError(f"{name} is {value}; give {least} at least.")
    if seed >= SEEDS:
        raise SnrkitError(f"seed is {seed}; give one below 2^32.")
    check_resampling("bootstrap", bootstrap, confidence)


def open_device(device: torch.device | str) -> torch.device:
    """The device by its full name. SnrkitError for one that is not here, or is neither cpu nor cuda."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError):  # the second where torch was built without it
        raise SnrkitError(
            f"device is {str(device)!r}, which torch does not find here; give cpu, cuda or cuda:N."
        ) from None
    if found.type not in ("cpu", "cuda"):
        raise SnrkitError(f"device is '{found}', and states are float64; give cpu, cuda or cuda:N.")
    return found


def check_network(denoise: Denoiser, device: torch.device) -> None:
    """SnrkitError for a network in train mode or on another device, where it can be seen."""
    module = denoise.module if isinstance(denoise, NetworkDenoiser) else None
    if module is None:
        return
    if any(part.training for part in module.modules()):
        raise SnrkitError("the network is in train mode, as which it never samples; call its eval() first.")
    places = {parameter.device for parameter in module.parameters()}
    if places and device not in places:
        lies = ", ".join(sorted(map(str, places)))
        raise SnrkitError(f"the network lies on {lies} and device is {device}; move it, or give its device.")


def check_opened(sampler: OpenedSampler) -> None:
    """SnrkitError for an opened sampler that makes no step, is not one for all images, or is not wholly opened."""
    if sampler.placement is not None:
        raise SnrkitError(
            "this sampler was opened by a run, for levels or scalars of each image's own; measure it with snrkit "
            "measure-shift."
        )
    if len(sampler.levels) < 2:
        raise SnrkitError(
            f"the opened sampler has {len(sampler.levels)} levels, and a step takes two; lay out its grid."
        )
    if any(level.logsnr.ndim for level in sampler.levels):
        raise SnrkitError("the opened sampler has levels of each image's own; give levels of shape ().")
    for part in (sampler.solver, *sampler.corrections):
        if isinstance(part, Opens):
            raise SnrkitError(
                f"{type(part).__name__} of the opened sampler is not opened; give a snrkit.Sampler of it."
            )


def check_memory(images: int, dimensions: int, device: torch.device) -> None:
    """SnrkitError where all trajectories, and their states at one level, are more than the device holds."""
    needed, there = HELD_BYTES * images * dimensions, free_memory(device)
    if needed > there:
        raise SnrkitError(
            f"{images} trajectories and their states at one level need {in_bytes(needed)} and "
            f"{'this machine' if device.type == 'cpu' else 'the device'} has {in_bytes(there)} free; give fewer images."
        )
