"""Trackio: a project here, or on a Space or server that Trackio's own variables name. Needs the extra `trackio`."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from snrkit.base.errors import ConfigError
from snrkit.base.value import Name, Text, Value
from snrkit.loggers.logger import Columns, Source, package


class Trackio(Value):
    """A run of a Trackio project, which lies where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

    kind: Literal["trackio"] = "trackio"
    project: Name = Field(default="snrkit", description="Trackio project that the run belongs to")
    run: Text | None = Field(default=None, description="name of the run in the project; null: that of the experiment")
    purges: ClassVar[bool] = False

    @property
    def place(self) -> str:
        return f"{self.project}/{self.run}"

    def check(self) -> None:
        package("trackio", "trackio")

    def open(self, source: Source) -> "TrackioRun":
        trackio = package("trackio", "trackio")
        name, resume = self.run or source.name, "never" if source.key is None else "must"
        with redirect_stdout(io.StringIO()):  # what a command prints there may be read by a program
            run = trackio.init(self.project, name=name, resume=resume, embed=False)
        if source.key not in (None, run.id):
            raise ConfigError(f"project {self.project} has a newer run named {name}, which is another; give it a name")
        return TrackioRun(trackio, run)


class TrackioRun:
    """A run of Trackio that is open; its steps are images."""

    def __init__(self, trackio: Any, run: Any) -> None:
        self._trackio, self._run, self.key = trackio, run, str(run.id)

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=images)

    def table(self, images: int, name: str, columns: Columns) -> None:
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self._run.log({name: self._trackio.Table(columns=list(columns), data=rows)}, step=images)

    def picture(self, images: int, name: str, path: Path) -> None:
        self._run.log({name: self._trackio.Image(str(path))}, step=images)

    def close(self, failed: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()
