"""Where numbers, tables and pictures of a run go beside its own files: one file a kind, one protocol (logger.py)."""

from typing import Annotated

from pydantic import Field

from snrkit.loggers.mlflow import MLflow
from snrkit.loggers.tensorboard import TensorBoard
from snrkit.loggers.trackio import Trackio
from snrkit.loggers.wandb import WandB

AnyLogger = Annotated[TensorBoard | WandB | Trackio | MLflow, Field(discriminator="kind")]

__all__ = ["AnyLogger", "MLflow", "TensorBoard", "Trackio", "WandB"]
