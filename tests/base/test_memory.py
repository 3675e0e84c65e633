"""What is free is what the machine and the group have left; what there is not, is told from other errors."""

from pathlib import Path

import pytest
import torch

from snrkit.base import distributed
from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.memory import is_out_of_memory


def test_free_memory_is_less_than_all_of_it():
    """And more than nothing."""
    whole = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    assert 0 < free_memory(torch.device("cpu")) < whole


def group(folder, limit, used, cached):
    """The files of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("max", limit), ("current", used), ("stat", f"anon 7\ninactive_file {cached}")):
        (folder / f"memory.{name}").write_text(f"{content}\n")


def test_the_limit_of_a_group_counts(tmp_path, monkeypatch):
    """The least that any group above has left, with the files it caches; `max` is no limit, and no group is none."""
    listed = tmp_path / "listed"
    listed.write_text("0::/outer/inner\n")
    path = distributed.Path
    monkeypatch.setattr(distributed, "Path", lambda name: listed if name == "/proc/self/cgroup" else path(name))
    assert distributed._of_group(tmp_path / "groups") == float("inf")
    group(tmp_path / "groups/outer/inner", "max", 10, 0)
    assert distributed._of_group(tmp_path / "groups") == float("inf")
    group(tmp_path / "groups/outer", 1000, 900, 50)
    assert distributed._of_group(tmp_path / "groups") == 150
    group(tmp_path / "groups/outer/inner", 100, 90, 5)
    assert distributed._of_group(tmp_path / "groups") == 15
    group(tmp_path / "groups/outer/inner", 100, 200, 5)
    assert distributed._of_group(tmp_path / "groups") == 0


def test_bytes_are_said_as_people_do():
    """In MiB, and from one on in GiB."""
    assert (in_bytes(2**19), in_bytes(3 * 2**30)) == ("0.5 MiB", "3.0 GiB")


def test_want_of_memory_is_told_from_other_errors():
    """As torch says it on the host, where the size is more than any machine's, and on a device; and shapes are not."""
    with pytest.raises(RuntimeError) as none_left:
        torch.empty(2**55, dtype=torch.float64)
    with pytest.raises(RuntimeError) as unlike:
        torch.zeros(2) + torch.zeros(3)
    assert is_out_of_memory(none_left.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(unlike.value)
    assert not is_out_of_memory(OSError("can't allocate memory"))
