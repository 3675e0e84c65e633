"""Weights & Biases: one W&B run for a run directory. Needs the extra `wandb`.

Keys, hosts and entities are W&B's own (`wandb login`, WANDB_API_KEY, WANDB_ENTITY); so is the mode where none is given
(WANDB_MODE). Its files hold links, so that they may not lie in a run directory.
"""

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from snrkit.base.errors import ConfigError, reason_of
from snrkit.base.value import Name, Place, Text, Value
from snrkit.loggers.logger import Columns, Source, package

messages = logging.getLogger("snrkit")


class WandB(Value):
    """A run of Weights & Biases, online or offline."""

    kind: Literal["wandb"] = "wandb"
    project: Name = Field(default="snrkit", description="W&B project that the run belongs to")
    run: Text | None = Field(default=None, description="name that W&B shows of the run; null: that of the experiment")
    folder: Place | None = Field(
        default=None, description="where wandb/ lies with W&B's own files; null: WANDB_DIR, or the working directory"
    )
    mode: Literal["online", "offline"] | None = Field(
        default=None, description="whether to send at once or keep for `wandb sync`; null: as WANDB_MODE says"
    )
    purges: ClassVar[bool] = False

    @property
    def place(self) -> str:
        return self.project

    def check(self) -> None:
        wandb = package("wandb", "wandb")
        if self.mode == "offline":
            return
        try:
            wandb.login(verify=False)  # that there is a key, which needs no network; nothing where W&B is offline
        except (wandb.errors.Error, ValueError) as error:
            raise ConfigError(f"W&B refuses ({reason_of(error)}); run wandb login, or set mode: offline.") from None

    def open(self, source: Source) -> "WandBRun":
        wandb = package("wandb", "wandb")
        if self.folder is not None:
            if self.folder.resolve().is_relative_to(source.folder.resolve()):
                raise ConfigError(f"folder {self.folder} lies in the run directory, which may hold no links")
            self.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", symlink=False, reinit="create_new")
        run = wandb.init(
            project=self.project,
            name=self.run or source.name,
            id=source.key or uuid.uuid4().hex[:12],
            resume="allow",
            dir=None if self.folder is None else str(self.folder),
            mode=self.mode,
            settings=settings,
        )
        run.define_metric("*", step_metric="images")
        messages.info(f"log (wandb): {run.dir if run.offline else run.url}")
        return WandBRun(wandb, run)


class WandBRun:
    """A run of W&B that is open. Its own steps only count what was logged; charts are over images."""

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb, self._run, self.key = wandb, run, str(run.id)

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        self._run.log({"images": images, **values})

    def table(self, images: int, name: str, columns: Columns) -> None:
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self._run.log({"images": images, name: self._wandb.Table(columns=list(columns), data=rows)})

    def picture(self, images: int, name: str, path: Path) -> None:
        self._run.log({"images": images, name: self._wandb.Image(str(path))})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
