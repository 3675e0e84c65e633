"""One or many processes: who we are, and the few collectives we need. Under torchrun; otherwise a world of one."""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from snrkit.base.errors import SnrkitError, Stopped
from snrkit.base.peers import ARRIVAL, Peers, patience

LONGEST_WAIT = timedelta(hours=6)  # for a process that gives signs of life, whatever it is at


class Group:
    """The group that this process is in, of which there is one at most."""

    peers: Peers | None = None


@dataclass(frozen=True, slots=True)
class World:
    """One process among its peers."""

    rank: int
    size: int
    device: torch.device
    peers: Peers | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def check_alone(self, command: str, remedy: str = "start it without torchrun") -> None:
        """Refuse a command that does not share its work, where it was started as many processes: one of them says so.

        SnrkitError in that one, Stopped in the others.
        """
        if self.size > 1:
            if self.leads:
                raise SnrkitError(f"{command} runs in one process, and was started as {self.size}; {remedy}.")
            raise Stopped("", 1)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, in place where there are many."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def ask_to_stop(self) -> None:
        """Have the other processes know, within two seconds, that this one was asked to stop."""
        if self.peers is not None:
            self.peers.ask_to_stop()

    @property
    def asked_to_stop(self) -> bool:
        """Whether another process was; each may learn it at another moment."""
        return self.peers is not None and self.peers.asked

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """`tensor` of every process in order of rank; first dimensions may differ."""
        if self.size == 1:
            return [tensor]
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        distributed.all_gather(lengths, torch.tensor([len(tensor)], device=self.device))
        longest = max(int(n) for n in lengths)
        padded = tensor.new_zeros((longest, *tensor.shape[1:])).to(self.device)
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return [part[: int(n)].to(tensor.device) for part, n in zip(parts, lengths, strict=True)]

    def collect(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes in order of rank; small, picklable things."""
        if self.size == 1:
            return list(items)
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]


def open_world(device: str) -> World:
    """Join torchrun's group if there is one. `device` is auto, cpu, cuda or cuda:N."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size > 1 and not distributed.is_initialized():
        _join(rank, size, "nccl" if chosen.type == "cuda" else "gloo")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return World(rank, size, chosen, Group.peers)


def _join(rank: int, size: int, backend: str) -> None:
    """Meet the others. Signs of life go through a connection of their own, which no wait for a value holds up."""
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.distributed.rendezvous import rendezvous

    bear = patience()
    store, _, _ = next(rendezvous("env://", rank, size))
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    signs = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=LONGEST_WAIT)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    Group.peers = Peers(PrefixStore(f"snrkit-signs-{attempt}", signs), rank, size, bear)
    Group.peers.start()
    store.set_timeout(timedelta(seconds=ARRIVAL))
    distributed.init_process_group(
        backend, store=PrefixStore("snrkit", store), rank=rank, world_size=size, timeout=LONGEST_WAIT
    )


def lost_peer() -> SnrkitError | Stopped | None:
    """Why a collective failed, where another process of the group is the reason; takes some seconds."""
    return None if Group.peers is None else Group.peers.found()


def close_world(code: int = 0) -> None:
    """Leave the process group, if there is one, with the exit code of this process."""
    peers, Group.peers = Group.peers, None
    if peers is not None:
        peers.leave(code)
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    if peers is not None:
        peers.see_off()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SnrkitError("--device cuda: this torch sees no CUDA device; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SnrkitError(f"--device {name}: unknown device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SnrkitError(f"--device {name}: states are float64, which {device.type} lacks; use cpu or cuda")
    return torch.device("cuda", local_rank) if name == "cuda" else device


def in_bytes(count: float) -> str:
    """A number of bytes as people say it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def free_memory(device: torch.device) -> float:
    """Bytes of a device that are free; of the CPU, what this machine and this process's group have left.

    Infinitely many where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_of_machine(), _of_group())


def _of_machine() -> float:
    """What Linux says can be had without swapping; elsewhere what there is in all."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def _of_group(root: Path = Path("/sys/fs/cgroup")) -> float:
    """What is left below the limit of a container, or of any group that it is in; files that are cached count as free.

    `root`: where Linux shows its groups (cgroup v2).
    """
    left = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        name = Path("/proc/self/cgroup").read_text().strip().split("::")[1].lstrip("/")
        for folder in (root / name, *(root / name).parents):
            if folder.is_relative_to(root):
                left = min(left, _left(folder))
    return left


def _left(folder: Path) -> float:
    try:
        limit, used = (int((folder / f"memory.{what}").read_text()) for what in ("max", "current"))
        kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(kept.get("inactive_file", 0)))
    except (OSError, ValueError):  # no group of its own, or "max", which is no limit
        return math.inf
