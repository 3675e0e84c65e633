"""What hostile inputs have in common: each is read in one process, which says what it met, how long and how large.

`READ` is a program that is run with the lines of a test before it: these define `cases()`, which gives pairs of a name
and a call, and `benign()`, which imports and warms what an ordinary input needs. Nothing that a call does may start a
program, connect, or open a file to write.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS, MIB = 5, 200  # of one input, at most

READ = """
import gc, json, os, resource, sys
from tests.peak import forget, peak
from snrkit.base.errors import SnrkitError

resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
watched, done = False, []
STARTS = ("subprocess", "socket", "ftplib", "urllib", "webbrowser", "ctypes")
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class")

def watch(event, arguments):
    if not watched:
        return
    writes = event == "open" and (
        (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if writes and not str(arguments[0]).startswith("/proc/self/"):
        done.append(f"wrote {arguments[0]}")
    if event in RUNS or event.split(".")[0] in STARTS:
        done.append(event)

benign()
sys.addaudithook(watch)
gc.collect()
gc.freeze()  # what is loaded stays, and need not be looked through again
for name, call in cases():
    forget()
    before, begun, said, watched = peak(), sum(os.times()[:4]), "READ", True
    done.clear()
    try:
        call()
    except SnrkitError as error:
        said = str(error)
    except Exception as error:
        said = f"RAISED {type(error).__name__}: {error}"
    watched = False
    taken = sum(os.times()[:4]) - begun
    print(json.dumps([name, said, taken, peak() - before, list(done)]), flush=True)
"""


@dataclass(frozen=True)
class Found:
    """What one input met with."""

    said: str
    seconds: float  # of the CPU
    grown: float  # MiB of peak memory more than before
    done: list[str]  # what it wrote, ran or connected to


def read(folder: Path, lines: str, timeout: float = 300, options: Sequence[str] = ()) -> dict[str, Found]:
    """What every case of a program met with, in a process that works in a folder.

    `timeout`: seconds, for what hangs. `options`: of Python.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *options, "-c", lines + READ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return {name: Found(*rest) for name, *rest in map(json.loads, ran.stdout.splitlines())}
