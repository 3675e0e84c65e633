"""The longest silence of every command on the demo: `python -m tests.bench.silences [COMMAND ...]`, on a quiet machine.

Each command runs on a terminal of its own, 100 columns wide, and once more into a file, in a folder that is thrown
away. A silence is a time in which no new text is shown; what a clock moves by itself (elapsed and remaining time,
rates) does not count. The bounds are 2 s on a terminal and 30 s in a file.
"""

import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEW = ("--set", "sample.seeds=0-399", "--set", "metrics.ranges=2")
FITS = ("--set", "tune.noises=64", "--set", "tune.seeds=2000-2199")
COMMANDS = {
    "sample": ("sample", "demo"),
    "eval-fid": ("eval-fid", "demo"),
    "measure-shift": ("measure-shift", "demo"),
    "tune --by predicted": ("tune", "demo", "--sampler", "euler-13-dcw", "--by", "predicted"),
    "tune --by flow": ("tune", "demo", "--sampler", "euler-13-dcw", "--by", "flow", *FITS),
    "tune --by fd": ("tune", "demo", "--sampler", "euler-13-dcw", "--by", "fd", *FITS),
    "design": ("design", "demo", "--sampler", "euler-13", "--nfe", "5", *FITS),
    "certify": ("certify", "demo", "--sampler", "euler-13", "--minutes", "2", *FITS),
    "compare": ("compare", "demo", *FEW),
    "report": ("report", "demo"),
    "analyze": ("analyze", "demo"),
    "audit": ("audit", "demo"),
    "validate --data": ("validate", "demo", "--data"),
    "init": ("init", "mine.yaml"),
    "train": ("train", "mine.yaml", "--set", "train.images=20000"),
    "export": ("export", "runs/mine", "--to", "snrkit"),
    "check": ("check", "runs/mine"),
}
CLOCK = re.compile(r"\d+:\d\d(:\d\d)?|[\d,.]+ ?(/s|s each|ms)")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\u2800-\u28ff]")  # of a terminal, and the spinner's dots


def silence(words: tuple[str, ...], folder: Path, terminal: bool) -> tuple[float, str, float, int]:
    """(the longest silence in seconds, the text before it, seconds in all, exit code)."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    begun = last = time.monotonic()
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "snrkit", *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    longest, before, seen = 0.0, "", ""
    while True:
        ready, _, _ = select.select([ours], [], [], 0.05)
        try:
            text = os.read(ours, 65536).decode(errors="replace") if ready else ""
        except OSError:  # a terminal whose other end is closed
            text, ready = "", [None]
        ended = bool(ready) and not text
        shown = CLOCK.sub("", ESCAPE.sub("", text)).strip()
        if ended or (shown and shown != seen):
            now = time.monotonic()
            if now - last > longest:
                longest, before = now - last, seen
            last, seen = now, shown or seen
        if ended:
            break
    os.close(ours)
    return longest, before.splitlines()[-1][-60:] if before else "(its start)", last - begun, process.wait()


def main(chosen: list[str]) -> None:
    """One row a command."""
    print("| command | s in all | longest silence on a terminal, s | after | in a file, s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folders:
        for name in chosen or COMMANDS:
            rows = []
            for terminal in (True, False):
                folder = Path(folders) / str(terminal)
                folder.mkdir(exist_ok=True)
                rows.append(silence(COMMANDS[name], folder, terminal))
            (longest, after, whole, code), (in_file, _, _, other) = rows
            assert (code, other) in ((0, 0), (1, 1)), (name, code, other)
            print(f"| `{name}` | {whole:.0f} | {longest:.1f} | {after} | {in_file:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
