"""Processes of the tool that need not import torch: each is forked from one that has imported it, and did nothing else.

That takes seconds of every process, which are not what most tests of processes are about: what happens while a process
starts, and under torchrun, other tests look at with processes of their own (`tests.small.process`).
"""

import atexit
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = itertools.count()
PROGRAM = """
import json, os, pkgutil, signal, sys, threading
import torch.distributed.rendezvous, torch._subclasses, matplotlib.figure, scipy.special
import snrkit.commands
for module in pkgutil.iter_modules(snrkit.commands.__path__):
    __import__(f"snrkit.commands.{module.name}")
from snrkit.__main__ import main

def work(arguments, environment, out, err):
    for place, number in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, code = ["snrkit", *arguments], 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # what a process waits for at its end
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        pid, status = os.waitpid(asked, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
    elif (pid := os.fork()) == 0:
        work(*asked)
    else:
        print(pid, flush=True)
"""


@dataclass(frozen=True)
class Origin:
    """The process that others are forked from, and the folder of what they say."""

    process: "subprocess.Popen[str]"
    home: Path

    def ask(self, what: object) -> int | None:
        """Start a process, whose number comes back, or ask whether one of a number has ended: its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer: int | None = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        """With this process."""
        self.process.communicate()
        shutil.rmtree(self.home)


@functools.cache
def origin() -> Origin:
    """Of all processes that this one starts."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **own}, cwd=ROOT,
    )  # fmt: skip
    found = Origin(process, Path(tempfile.mkdtemp()))
    atexit.register(found.end)
    return found


class Warm:
    """`snrkit ARGUMENTS` as a process of its own, named as `subprocess.Popen` names one."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._said = [origin().home / f"{name}-{next(NUMBERS)}" for name in ("out", "err")]
        pid = origin().ask([arguments, environment, *map(str, self._said)])
        assert pid is not None
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = origin().ask(self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """The exit code, once it has ended. TimeoutError after so many seconds."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.005)
        return code

    def send_signal(self, sign: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it said on standard output and standard error, once it has ended."""
        self.wait(timeout)
        out, err = (path.read_text() if path.exists() else "" for path in self._said)
        return out, err
