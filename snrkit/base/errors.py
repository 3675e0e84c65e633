"""What a user is told when something is wrong: one sentence that says what, where, and what to do."""

from pathlib import Path


class SnrkitError(Exception):
    """A mistake that the user can mend. Its text is the whole message; the command line prints no traceback."""


class DivergedError(SnrkitError):
    """Training met too many losses or gradients in a row that were not finite."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """Not an error: a signal asked to stop, and the text says what is kept and how to go on. `code`: to exit with."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class ConfigError(SnrkitError):
    """One or more faults of a configuration, one line each."""


class ValueFaultError(ConfigError, ValueError):
    """A Value that code asks for by arguments which it does not take, a line for each, which its name begins."""

    @property
    def said(self) -> str:
        """The first line without the name of the Value."""
        return str(self).splitlines()[0].partition(": ")[2]


class RunError(SnrkitError):
    """A run directory that does not fit what is asked of it."""


class BusyError(RunError):
    """Another process is working in a run directory."""


class DataError(SnrkitError):
    """Images that cannot be read or do not fit together."""


class DamagedError(RunError):
    """A file of ours whose content is not what was written: its checksum does not fit, or it is no such file at all.

    A file of another version, or of somebody else, is not damaged.
    """


class NotRegularError(SnrkitError):
    """A folder, a pipe or a device where a file should be."""


class UnreadableError(SnrkitError):
    """What the disk or the memory does not give. It says nothing of the content, which is not damaged."""


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """The error for a file of ours that is there and cannot be read."""
    return UnreadableError(f"{path} cannot be read ({error.strerror}); see to its disk and permissions.")


def reason_of(error: BaseException) -> str:
    """What another library says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def missing(what: str, path: Path | str, remedy: str) -> SnrkitError:
    """The error for a file or folder that is not there."""
    return SnrkitError(f"{what} {path} does not exist; {remedy}.")


def with_article(name: str) -> str:
    """The name of a class with its article."""
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"


def plain(text: str) -> str:
    """What a stranger wrote in one line, nothing of which moves a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(text: str, longest: int = 100) -> str:
    """As plain, of at most `longest` characters."""
    return plain(text[:longest]) + ("..." if len(text) > longest else "")
