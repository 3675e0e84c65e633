"""All kinds of models from elsewhere."""

from typing import Annotated

from pydantic import Field

from snrkit.checkpoints.diffusers import DiffusersModel

AnyModel = Annotated[DiffusersModel, Field()]
