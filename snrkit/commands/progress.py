"""Progress bars: one line for people, nothing when the output is not a terminal and quiet is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


class Bar:
    """A bar that counts images and shows a few fields."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` images are done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)


@contextmanager
def bar(what: str, total: int, shown: bool = True) -> Iterator[Bar]:
    """A bar titled `what` over `total` images."""
    if not shown:
        yield Bar(None, None)
        return
    columns = (
        TextColumn("{task.description:>22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, progress.add_task(what, total=total, note=""))
