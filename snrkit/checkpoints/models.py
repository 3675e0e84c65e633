"""All kinds of models from elsewhere."""

from typing import Annotated

from pydantic import Field

from snrkit.checkpoints.adm import AdmModel
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.checkpoints.edm import EdmModel
from snrkit.checkpoints.transformers import DitModel, SitModel

AnyModel = Annotated[DiffusersModel | EdmModel | AdmModel | DitModel | SitModel, Field(discriminator="kind")]
