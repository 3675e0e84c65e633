"""MLflow: one MLflow run for a run directory, on a server or in a folder. Needs the extra `mlflow`."""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from snrkit.base.files import checksum
from snrkit.base.value import Place, Text, Value
from snrkit.loggers.logger import Columns, Source, package

ADDRESS = "MLFLOW_TRACKING_URI"
USER = re.compile(r"(?<=://)[^/?#]*@")  # of an address, with its password


class MLflow(Value):
    """A run of MLflow, on the server that MLFLOW_TRACKING_URI names or in a folder."""

    kind: Literal["mlflow"] = "mlflow"
    project: Text = Field(default="snrkit", description="MLflow's experiment that the run belongs to")
    run: Text | None = Field(
        default=None, description="name that MLflow shows of the run; null: that of the experiment"
    )
    folder: Place | None = Field(
        default=None,
        description="folder of mlflow.db and artifacts; null: the server that MLFLOW_TRACKING_URI names, or mlflow/ in "
        "the run directory",
    )
    purges: ClassVar[bool] = False

    @property
    def place(self) -> str:
        """The folder, or a checksum of the server's address, which may hold a password that changes."""
        address = os.environ.get(ADDRESS)
        server = None if address is None else checksum(USER.sub("", address).encode())
        return f"{self.folder or server}: {self.project}"

    def check(self) -> None:
        package("mlflow", "mlflow")

    def open(self, source: Source) -> "MLflowRun":
        mlflow = package("mlflow", "mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        folder = None if self.folder is None and ADDRESS in os.environ else self.folder or source.folder / "mlflow"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        client = mlflow.MlflowClient(None if folder is None else f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        if source.key is not None:
            client.update_run(source.key, status="RUNNING")
            return MLflowRun(mlflow, client, source.key)
        known = client.get_experiment_by_name(self.project)
        artifacts = None if folder is None else (folder.resolve() / "artifacts").as_uri()
        experiment = client.create_experiment(self.project, artifacts) if known is None else known.experiment_id
        run = client.create_run(experiment, run_name=self.run or source.name)
        return MLflowRun(mlflow, client, run.info.run_id)


class MLflowRun:
    """A run of MLflow that is open; its steps are images. Tables and pictures are artifacts, replaced if made again."""

    def __init__(self, mlflow: Any, client: Any, key: str) -> None:
        self._metric, self._client, self.key = mlflow.entities.Metric, client, key

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.key, metrics=[self._metric(name, v, now, images) for name, v in values.items()])

    def table(self, images: int, name: str, columns: Columns) -> None:
        self._client.log_dict(self.key, {key: list(v) for key, v in columns.items()}, f"{name}@{images:09d}.json")

    def picture(self, images: int, name: str, path: Path) -> None:
        self._client.log_artifact(self.key, str(path), f"{name.partition('/')[0]}/{images:09d}")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.key, status="FAILED" if failed else "FINISHED")
