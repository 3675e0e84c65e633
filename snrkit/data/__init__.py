"""Where images come from: sources (Values) that open data sets (resources) of x0 in [-1, 1] with labels."""

from typing import Annotated

from pydantic import Field

from snrkit.data.digits import Digits
from snrkit.data.files import Folder, Npz, Zip
from snrkit.data.hub_images import HubImages
from snrkit.data.latents import Latents
from snrkit.data.photos import Photos
from snrkit.data.torchvision_sets import Cifar10, FashionMnist, Mnist
from snrkit.data.toy import Empirical, Gaussian, Mixture

AnySource = Annotated[
    Digits
    | Photos
    | Folder
    | Zip
    | Npz
    | HubImages
    | Mnist
    | FashionMnist
    | Cifar10
    | Gaussian
    | Mixture
    | Empirical
    | Latents,
    Field(discriminator="kind"),
]

Empirical.model_rebuild(_types_namespace={"AnySource": AnySource})
Latents.model_rebuild(_types_namespace={"AnySource": AnySource})

__all__ = [
    "AnySource",
    "Cifar10",
    "Digits",
    "Empirical",
    "FashionMnist",
    "Folder",
    "Gaussian",
    "HubImages",
    "Latents",
    "Mixture",
    "Mnist",
    "Npz",
    "Photos",
    "Zip",
]
