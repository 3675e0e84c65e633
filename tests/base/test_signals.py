"""What a signal does: a process that starts ends at once, one that works keeps what it has, and the code says why."""

import os
import signal
import subprocess
import sys
import time

import pytest

from snrkit.base.errors import SnrkitError, Stopped
from snrkit.base.signals import ASKING, ending, handle, stoppable

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGUSR1: 75}
PLAIN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
{before}
class Asking:  # a module of the tool that is asked to end while it is imported
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {sign})
sys.meta_path.insert(0, Asking())
sys.argv = ["snrkit", *{arguments!r}]
from snrkit.__main__ import main
main()
"""


@pytest.fixture(autouse=True)
def _answers():
    """What answers signals is put back."""
    before = {sign: signal.getsignal(sign) for sign in ASKING}
    yield
    for sign, answer in before.items():
        signal.signal(sign, answer)


def interrupted(sign, kept="what was finished", meanwhile=lambda: None):
    """A command that works until a signal arrives; `meanwhile`: what is done of it on the way out."""
    with ending(), ending(kept):
        try:
            os.kill(os.getpid(), sign)
            time.sleep(10)
        finally:
            meanwhile()


def started(module, sign, *arguments, before=""):
    text = PLAIN.format(module=module, sign=int(sign), arguments=list(arguments), before=before)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("module", "sign"), [
    ("typer", signal.SIGINT), ("torch._C", signal.SIGINT), ("numpy", signal.SIGTERM),
])  # fmt: skip
def test_a_signal_while_a_command_starts_gets_one_line(tmp_path, module, sign):
    """In the import of any library, an extension's too: no traceback, the code of the signal, nothing written."""
    (tmp_path / "x.yaml").write_text("name: x")
    done = started(module, sign, "train", "--config", str(tmp_path / "x.yaml"), "--runs", str(tmp_path / "runs"))
    assert done.returncode == CODES[sign]
    assert done.stderr == "stopped; what was finished is kept. To go on, run the same command again.\n"
    assert not (tmp_path / "runs").exists()


def test_what_is_ignored_at_the_start_stays_ignored():
    """Under nohup the end of a session ends nothing."""
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert started("typer", signal.SIGHUP, "--version", before=ignored).stdout.startswith("snrkit")
    assert started("typer", signal.SIGHUP, "--version").returncode == 75


@pytest.mark.parametrize("sign", CODES)
def test_a_signal_while_a_command_works_says_what_is_kept(sign):
    """Stopped, with the code of the signal; afterwards what answered before answers again."""
    heard = []
    signal.signal(sign, lambda number, frame: heard.append(number))
    with pytest.raises(Stopped) as stopped:
        interrupted(sign, "every row")
    assert str(stopped.value) == "stopped; every row is kept. To go on, run the same command again."
    assert stopped.value.code == CODES[sign]
    os.kill(os.getpid(), sign)
    assert heard == [sign]


def test_what_a_library_makes_of_a_signal_is_still_the_signal():
    """An extension whose import is interrupted says ImportError; other errors are themselves."""

    def fails():
        raise ImportError("numpy.core.multiarray failed to import")

    with pytest.raises(Stopped):
        interrupted(signal.SIGTERM, meanwhile=fails)
    with pytest.raises(SnrkitError, match="the disk"), ending():
        raise SnrkitError("the disk")
    with pytest.raises(Stopped) as stopped, ending():
        raise KeyboardInterrupt
    assert stopped.value.code == 130


@pytest.mark.parametrize("sign", CODES)
def test_a_loop_is_asked_and_goes_on_to_its_end(sign):
    """The flag is set, with the code; a process that was not asked itself ends as one that saved."""
    with stoppable() as stop:
        assert (stop.asked, stop.code) == (False, 75)
        os.kill(os.getpid(), sign)
        assert (stop.asked, stop.code) == (True, CODES[sign])


@pytest.mark.parametrize(("sign", "torchrun", "after"), [
    (signal.SIGINT, False, signal.SIG_DFL), (signal.SIGINT, True, signal.SIG_IGN),
    (signal.SIGTERM, False, signal.SIG_IGN), (signal.SIGUSR1, False, signal.SIG_IGN),
])  # fmt: skip
def test_only_a_second_ctrl_c_ends_at_once(monkeypatch, sign, torchrun, after):
    """Schedulers send a signal twice, and so does torchrun, which passes on what the terminal has sent already."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with stoppable():
        os.kill(os.getpid(), sign)
        assert signal.getsignal(sign) == after
    seen = []
    with pytest.raises(Stopped):
        interrupted(sign, meanwhile=lambda: seen.append(signal.getsignal(sign)))
    assert seen == [after]


def test_the_second_ctrl_c_of_a_loop_that_hangs():
    """It ends the process, whatever the loop does."""
    text = (
        "import os, signal\nfrom snrkit.base.signals import stoppable\n"
        "with stoppable():\n    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGINT)\nprint('lives')"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_handlers_are_told_what_they_replace():
    """So that they can be put back."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    before = handle(signal.SIG_DFL)
    assert signal.SIGUSR1 not in before
    assert set(before) == set(ASKING) - {signal.SIGUSR1}
