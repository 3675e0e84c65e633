"""All kinds of models from elsewhere."""

from typing import Annotated

from pydantic import Field

from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.checkpoints.edm import EdmModel

AnyModel = Annotated[DiffusersModel | EdmModel, Field(discriminator="kind")]
