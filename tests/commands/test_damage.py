"""Every file of a finished run and of the cache, damaged one at a time, and every command that reads it.

Each ends in one of three ways: it is refused in one sentence, what was damaged is made again, or no result differs.
Never a traceback, never another number. `python -m tests.commands.test_damage` tries all and prints the counts.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.small import SMALL, call, write_config

TINY = {
    "data": {**SMALL["data"], "count": 1000},
    "network": {**SMALL["network"], "dropout": 0.0, "augment": False},
    "train": {
        "images": 256, "batch": 64, "warmup": 100, "save_every": 128, "log_every": 64, "holdout_every": 128,
        "snapshot_every": 128, "keep_last": 2, "averages": [{"kind": "power", "width": 0.05},
                                                           {"kind": "power", "width": 0.1}],
    },
    "samplers": {
        "euler": {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "euler"}},
        "es": {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "euler"},
               "corrections": [{"kind": "epsilon_scaling", "scale": 1.01}]},
    },
    "sample": {"seeds": "0-15", "batch": 16},
    "shift": {"images": 20, "batch": 20, "bootstrap": 100, "probes": ["estimator"],
              "estimator": {"images": 256, "channels": 4, "bins": 8}},
    "tune": {"seeds": "100-115"},
    "compare": {"rounds": 1, "timed_images": 2, "solvers": []},
    "metrics": {"features": "pixels", "pixel_components": 4, "ranges": 2},
}  # fmt: skip
COMMANDS = {
    "train": ("train", "-q"),
    "average": ("average", "RUN", "--width", "0.12"),
    "fit-estimator": ("fit-estimator", "-q"),
    "sample": ("sample", "-q"),
    "measure-shift": ("measure-shift", "-q"),
    "eval-fid": ("eval-fid", "-q"),
    "eval-fid --checkpoints": ("eval-fid", "-q", "--checkpoints", "all", "--sampler", "euler"),
    "tune": ("tune", "-q", "--sampler", "es", "--by", "gap"),
    "compare": ("compare", "-q"),
    "export": ("export", "RUN", "--average", "network"),
    "analyze": ("analyze",),
    "report": ("report",),
    "check": ("check", "RUN"),
}
TIMES = {"seconds", "images_per_second", "seconds_per_image", "overhead", "checksum", "command"}
BY_TIME = {".lock", "compare.md", "compare.html"}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "one bit flipped": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    ),
    "null": lambda content: b"null",
    "[1]": lambda content: b"[1]",
    "no UTF-8": lambda content: b"\xff\xfe\x00" + content[3:],
}


def run(folder: Path, name: str):
    """A command on the run in a folder, as a user would start it."""
    if name == "export":  # which makes a folder anew
        shutil.rmtree(folder / "runs/small/export", ignore_errors=True)
    line = [str(folder / "runs/small") if part == "RUN" else part for part in COMMANDS[name]]
    own = [] if "RUN" in COMMANDS[name] else ["--config", str(folder / "small.yaml"), "--runs", str(folder / "runs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNRKIT_CACHE", str(folder / "cache"))
        return call(*line, *own)


def without_times(content):
    """A record without what a clock decides."""
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def results(folder: Path) -> dict[str, object]:
    """What lies in a folder, by path, without what a clock decides."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in BY_TIME):
        content: object = path.read_bytes()
        with contextlib.suppress(ValueError):
            if path.suffix == ".json":
                content = without_times(json.loads(path.read_text()))
            if path.suffix == ".jsonl":
                content = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = content
    return found


def finish(folder: Path) -> None:
    """Make a run with all that commands leave in one."""
    write_config(folder, **TINY)
    for name in COMMANDS:
        done = run(folder, name)
        assert done.returncode == 0, (name, done.stderr)


def cases(opened: dict[str, set[str]], folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file, damage, command) of everything that can be tried: each file with all commands that open it."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("small.yaml", ".lock")):
        name = str(path.relative_to(folder))
        if path.stem.isdigit() and int(path.stem) > 1:  # two images of a folder stand for all
            continue
        for command in COMMANDS:
            if name in opened[command]:
                yield from ((name, damage, command) for damage in DAMAGES)


_WATCHED: list[tuple[Path, set[str]]] = []


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and _WATCHED and isinstance(arguments[0], str):
        folder, seen = _WATCHED[-1]
        path = Path(arguments[0])
        if path.is_relative_to(folder):
            seen.add(str(path.relative_to(folder)))


sys.addaudithook(_note)


def undamaged(folder: Path) -> tuple[dict[str, set[str]], dict[str, dict[str, object]]]:
    """(The files of a finished run that each command opens, what each leaves where nothing is damaged)."""
    opened, wanted = {}, {}
    for name in COMMANDS:
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "copy"
            shutil.copytree(folder, copy)
            _WATCHED.append((copy, set()))
            try:
                done = run(copy, name)
            finally:
                opened[name] = _WATCHED.pop()[1]
            assert done.returncode == 0, (name, done.stderr)
            wanted[name] = results(copy)
    return opened, wanted


def outcome(folder: Path, wanted: dict[str, object], case: tuple[str, str, str]) -> str:
    """How a command ends on a copy with one file damaged; an AssertionError where it ends otherwise."""
    name, damage, command = case
    path = folder / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if command == "export":  # which makes a folder anew
        shutil.rmtree(folder / "runs/small/export")
    spoiled = results(folder)
    done = run(folder, command)
    said = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    assert command != "check" or done.returncode or name.endswith("dataset.json"), name  # whose labels have no checksum
    after = results(folder)
    if done.returncode:
        if command == "check":
            lines = done.stdout.splitlines()
            assert any(Path(name).name in line or Path(name).parent.name in line for line in lines), (lines, said)
        else:
            assert len([line for line in said if line.startswith("snrkit: ")]) == len(said) == 1, said
        changed = {key for key in after.keys() | spoiled.keys() if after.get(key) != spoiled.get(key)}
        assert not {key for key in changed if after.get(key) != wanted.get(key)}, changed
        return "refused"
    others = {key for key in after.keys() | wanted.keys() if key != name and after.get(key) != wanted.get(key)}
    page = folder / "runs/small/report.md"
    if command == "report" and f"{Path(name).name} is damaged" in page.read_text():
        others -= {"runs/small/report.md", "runs/small/report.html"}  # which say so in place of the picture
    assert not others, (others, done)
    return "made again" if after.get(name) == wanted.get(name) else "no effect"


def tried(folder: Path, every: int, offset: int = 0) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Every so many cases, with how each ended; WRONG and why where it ended otherwise."""
    opened, wanted = undamaged(folder)
    for case in list(cases(opened, folder))[offset::every]:
        with tempfile.TemporaryDirectory() as place:
            shutil.copytree(folder, Path(place) / "copy")
            try:
                ended = outcome(Path(place) / "copy", wanted[case[2]], case)
            except AssertionError as error:
                ended = f"WRONG: {str(error)[:1500]}"
        yield case, ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(COMMANDS, "analyze")  # whose charts take longer than all else
        finish(folder)
        yield folder


def test_no_damage_gives_another_number(finished):
    """A sample of all files, damages and commands, spread over them: refused, made again, or without effect."""
    ended = dict(tried(finished, every=47))
    assert not [case for case in ended.items() if case[1].startswith("WRONG")]
    found = Counter(ended.values())
    assert found["refused"] > found["no effect"] > 0


def main() -> None:
    """Try all; print how they ended, by file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "finished"
        folder.mkdir()
        finish(folder)
        counts: dict[str, Counter[str]] = {}
        every, offset = (int(part) for part in (*sys.argv[1:], "1", "0")[:2]) if len(sys.argv) > 1 else (1, 0)
        for case, ended in tried(folder, every, offset):
            if ended.startswith("WRONG"):
                print(case, ended, flush=True)
            counts.setdefault(case[0], Counter())[ended.split(":")[0]] += 1
        for name, found in counts.items():
            print(f"{name:60}", dict(found))
        print("all:", dict(sum(counts.values(), Counter())))


if __name__ == "__main__":
    main()
