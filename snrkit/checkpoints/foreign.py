"""Models from elsewhere, each a Value with a `kind` and a `path`, made into the parts of an experiment.

`describe()` reads the configuration alone: process, target, preconditioning, shape and labels. `load()` reads the
weights, as a module with snrkit's own call. Nothing that is read is executed.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor, nn

from snrkit.base.cache import content_digest
from snrkit.base.errors import SnrkitError, reason_of
from snrkit.base.files import checksum
from snrkit.base.hub import files_of, local
from snrkit.base.outline import outlined
from snrkit.base.value import WIDEST, Place, Value
from snrkit.diffusion.denoiser import AnyPrecondition
from snrkit.diffusion.prediction import AnyTarget
from snrkit.diffusion.process import AnyProcess
from snrkit.networks import AnyTrained
from snrkit.networks.adapted import Adapted, AdaptedModule
from snrkit.networks.foreign import Foreign


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a model before its weights are read."""

    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition
    network: Foreign
    sigma_data: float | None = None  # that its preconditioning was made with


Row = Annotated[tuple[float, ...], Field(max_length=WIDEST)]


class Autoencoder(Value):
    """Where a latent model's autoencoder is and, where the model says it, what its states are of the latents.

    states = (latents - shift)*scale by channel; without them as the autoencoder's own configuration says.
    """

    path: Place = Field(description="folder, as diffusers saves AutoencoderKL, AutoencoderDC or AutoencoderTiny")
    scale: Row = Field(
        default=(),
        description="factor of latents after the shift, one for all channels or one for each; empty: as its own "
        "configuration says",
    )
    shift: Row = Field(
        default=(),
        description="subtracted from latents, one number for all channels or one for each; empty: as its own "
        "configuration says",
    )
    unit: bool = Field(default=False, description="it takes and gives images in [0, 1]")


class ForeignModel(Protocol):
    """A model from elsewhere."""

    @property
    def kind(self) -> str:
        """Where it comes from."""

    @property
    def path(self) -> Path:
        """Its file or folder."""

    def describe(self) -> Described:
        """What the model is, from its configuration. ConfigError where it cannot be used."""

    def autoencoder(self) -> Autoencoder | None:
        """Its autoencoder, for a latent model; None where states are images."""

    def load(self) -> nn.Module:
        """Its network, on the CPU: forward(x, time, cond) -> F. ConfigError where the weights cannot be read."""


@runtime_checkable
class Rebuilt(Protocol):
    """A model from elsewhere that can be trained on, as plain values rebuild its network without the file."""

    def architecture(self) -> AnyTrained:
        """What its network is. ConfigError where nothing rebuilds it, or the configuration cannot be read."""


@runtime_checkable
class RunsCode(Protocol):
    """A model from elsewhere whose network is made by code of the user's own, which opening it runs."""

    @property
    def code(self) -> Path:
        """The file that is run."""


LEARNED = "half of its output is a learned variance, which only ancestral steps of variance learned take"  # a note
LEFT_OUT = "half of its output is a learned variance, which is left out"  # another
SHARED = 2**26  # bytes that weights may have in common
NAMED = 12  # digits of a checksum that a name has


def weights_of(model: "ForeignModel") -> str:
    """A short name that changes with the content of any file or folder that a model of this kind names."""
    named = [(name, value) for name, value in vars(model).items() if isinstance(value, Path)]
    parts = [f"{name} {digest_of(path)}" for name, path in sorted(named)]
    return f"{model.kind}-{checksum(' '.join(parts).encode())[:NAMED]}"


def digest_of(path: Path) -> str:
    """Of a file's content, or of all names and contents of a folder; on the Hub, of what is fetched of it."""
    here = local(path)
    parts = [
        f"{file.name if file == here else file.relative_to(here)} {content_digest(file)}" for file in files_of(path)
    ]
    return checksum("\n".join(parts).encode())


def filled(make: Callable[[], nn.Module], weights: Mapping[str, Tensor], unset: Collection[str] = ()) -> nn.Module:
    """The network that `make` gives, with weights of the same names and shapes, but for those that stay `unset`.

    Shapes are compared before the network takes any memory. SnrkitError says what differs.
    """
    try:
        with outlined():
            expected = make().state_dict()
    except (RuntimeError, ValueError) as error:
        raise SnrkitError(reason_of(error)) from None
    check_fits(weights, {name: tensor for name, tensor in expected.items() if name not in unset})
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights.values()}
    needed = sum(expected[name].numel() * tensor.element_size() for name, tensor in weights.items())
    if needed > sum(held.values()) + SHARED:
        raise SnrkitError(f"its weights share {sum(held.values()):,} bytes, of the {needed:,} that they would take")
    network = make()
    network.load_state_dict(weights, strict=not unset)
    return network


def check_fits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """SnrkitError where weights have other names or shapes than a network's own."""
    if names := weights.keys() ^ expected.keys():
        raise SnrkitError(f"{min(names)[:80]} is {'missing' if min(names) in expected else 'unknown'}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise SnrkitError(f"{name} is {tuple(tensor.shape)} and not {tuple(expected[name].shape)}")


def with_weights(value: Adapted, weights: Mapping[str, Tensor], unset: Collection[str] = ()) -> AdaptedModule:
    """The network that `value` describes, without nulls, with the inner network's weights; the rest as of `filled`."""
    return AdaptedModule(value, filled(partial(value.inner.make, value.shape, value.outputs), weights, unset))
