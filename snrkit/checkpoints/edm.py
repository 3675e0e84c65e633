"""Published files of EDM (Karras et al. 2022) and EDM2 (2024), read without running the code that they carry.

A file holds a network within its preconditioning, both with the arguments that they were made with. The weights go into
our own network of the same layout (networks/edm.py, edm2.py), the preconditioning into process, target and scales:

    class in the file   scaling   target   preconditioning   the network's clock
    EDMPrecond          ve        x0       edm, sigma_data   ln(sigma)/4
    Precond (EDM2)      ve        x0       edm, sigma_data   ln(sigma)/4
    VPPrecond           ve        eps      none              999 t(sigma), t of the linear-beta SDE
    VEPrecond           ve        -eps     raw               ln(sigma/2)
    iDDPMPrecond        ve        eps      none              index in its own table of sigmas, to which levels snap

Levels are bounded as the published samplers bound them, by sigma 0.002 and 80, and closer where the file says so.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from torch import Tensor, nn

from snrkit.base.errors import ConfigError, SnrkitError, ValueFaultError
from snrkit.base.value import Place, Text, Value
from snrkit.checkpoints.foreign import Autoencoder, Described, with_weights
from snrkit.checkpoints.machine import Record
from snrkit.checkpoints.pickles import LAYERS, PERSISTENT, read_pickle
from snrkit.diffusion.betas import TrainedSigmas
from snrkit.diffusion.denoiser import AnyPrecondition, EdmPrecondition, NoPrecondition, RawPrecondition
from snrkit.diffusion.prediction import X0, AnyTarget, Eps
from snrkit.diffusion.process import AnyProcess, Ddpm, Edm
from snrkit.networks.adapted import Adapted, AnyClock, LinearClock, VpClock
from snrkit.networks.edm import DhariwalUNet, SongUNet
from snrkit.networks.edm2 import Edm2UNet
from snrkit.networks.foreign import Foreign

OWN_TIME = LinearClock()  # snrkit's time, as it is
AnyUNet = SongUNet | DhariwalUNet | Edm2UNet
SIGMAS = 0.002, 80.0  # the most that the published samplers visit, of any network
LATENT_ENCODER = "StabilityVAEEncoder"  # in EDM2's files, which say by channel what their latents are
ROWS = {"f4": "<f", "f8": "<d"}  # of numpy, and struct's
LONGEST_ROW = 2**16  # bytes of its means and spreads
LARGEST, DEEPEST = 100_000, 32  # modules and weights of a network, and modules within each other
LONGEST = 100  # lists among its arguments, and of its buffers that are not stored


class EdmModel(Value):
    """A `.pkl` of EDM or EDM2."""

    kind: Literal["edm"] = "edm"
    path: Place = Field(description="`.pkl` file of EDM or EDM2")
    entry: Text = Field(default="ema", description="key of the file under which the network is")
    vae: Place | None = Field(default=None, description="folder of the autoencoder of an EDM2 model of latents")

    def describe(self) -> Described:
        """Read all but the weights, which stay in the file."""
        outer, reading = self._open()
        image, side, classes = (_integer(outer, key) for key in ("img_channels", "img_resolution", "label_dim"))
        dropped = outer.inner.arguments.get("label_dropout", 0)
        null = classes > 0 and isinstance(dropped, int | float) and dropped > 0
        network = Foreign(shape=(image, side, side), classes=classes, null_label=null)
        return Described(reading.process, reading.target, reading.precondition, network, reading.sigma_data)

    def autoencoder(self) -> Autoencoder | None:
        """The one that is given, under the means and spreads by channel that an EDM2 file says of its latents."""
        encoder = _encoder(self._content(), self.path)
        if encoder is None or encoder.name != LATENT_ENCODER:
            if self.vae is not None:
                raise ConfigError(f"model.vae: has no effect, as {self.path} makes images; drop it.")
            return None
        if self.vae is None:
            named = encoder.state.get("vae_name")
            said = " ".join(named.split())[:80] if isinstance(named, str) else "which it does not name"
            raise ConfigError(f"model.vae: {self.path} makes latents; give the folder of their autoencoder ({said}).")
        scale, bias = (_row(encoder, key) for key in ("scale", "bias"))
        if len(bias) != len(scale) or not all(scale):
            raise ConfigError(f"model.path: the encoder of {self.path} has no usable scale beside its bias.")
        shift = tuple(-b / s for b, s in zip(bias, scale, strict=True))
        return Autoencoder(path=self.vae, scale=scale, shift=shift, unit=True)

    def load(self) -> nn.Module:
        """Our network with the file's weights."""
        outer, reading = self._open()
        value = self._adapted(outer, reading)
        try:
            return with_weights(value, dict(_weights(outer.inner.state)))
        except SnrkitError as error:
            text = f"model.path: {self.path} holds other weights than its arguments say ({error})."
            raise ConfigError(text) from None

    def architecture(self) -> Adapted:
        """By the arguments in the file, dropout included."""
        return self._adapted(*self._open())

    def _adapted(self, outer: "Persistent", reading: "Reading") -> Adapted:
        image, side = (_integer(outer, key) for key in ("img_channels", "img_resolution"))
        inner, outputs = _network(outer.inner, self.path), reading.doubled * image
        return Adapted(shape=(image, side, side), inner=inner, outputs=outputs, clock=reading.clock, sign=reading.sign)

    def _content(self) -> Mapping[str, Any]:
        try:
            content = read_pickle(self.path)
        except SnrkitError as error:
            raise ConfigError(f"model.path: {error}") from None
        if not isinstance(content, dict) or self.entry not in content:
            entries = (
                ", ".join(str(key)[:40] for key in content) if isinstance(content, dict) else type(content).__name__
            )
            raise ConfigError(f"model.entry: {self.path} has no '{self.entry}'; it holds {entries[:200]}.")
        return content

    def _open(self) -> tuple["Persistent", "Reading"]:
        content = self._content()
        outer = _persistent(content[self.entry], self.path)
        return outer, _reading(outer, self.path)


@dataclass(frozen=True, slots=True)
class Persistent:
    """An object of one of the file's own classes."""

    name: str
    state: Mapping[str, Any]
    path: Path

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What it was made with."""
        found = self.state.get("_init_kwargs")
        if not isinstance(found, dict):
            raise ConfigError(f"model.path: {self.path} does not say what its {self.name} was made with.")
        return found

    @property
    def inner(self) -> "Persistent":
        """The network inside a preconditioning."""
        modules = _mapping(self.state, "_modules")
        return _persistent(modules.get("model", modules.get("unet")), self.path)


def _found(value: Any, path: Path) -> Persistent | None:
    """An object of one of the file's own classes; None for anything else."""
    if isinstance(value, Record) and value.name == PERSISTENT and len(value.args) == 1:
        meta = value.args[0]
        name, state = (meta.get("class_name"), meta.get("state")) if isinstance(meta, dict) else (None, None)
        if isinstance(name, str) and name.isidentifier() and isinstance(state, dict):
            return Persistent(name, state, path)
    return None


def _persistent(value: Any, path: Path) -> Persistent:
    found = _found(value, path)
    if found is not None:
        return found
    raise ConfigError(f"model.path: {path} holds no network in EDM's layout where one is expected.")


def _encoder(content: Mapping[str, Any], path: Path) -> Persistent | None:
    """What an EDM2 file makes its states with."""
    return _found(content.get("encoder"), path)


def _row(encoder: Persistent, key: str) -> tuple[float, ...]:
    """A row of finite numbers, not all of them 0, as numpy stores it."""
    try:
        _, shape, dtype, _, held = encoder.state[key].state
        layout = ROWS[dtype.args[0] if isinstance(dtype.args[0], str) else ""]  # other values may hash for ever
        found = tuple(number for (number,) in struct.iter_unpack(layout, held.content[:LONGEST_ROW]))
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, struct.error):
        raise ConfigError(f"model.path: the encoder of {encoder.path} has no usable {key}.") from None
    if shape != (len(found),) or not all(map(math.isfinite, found)) or not any(found):
        raise ConfigError(f"model.path: the encoder of {encoder.path} has no usable {key}.")
    return found


def _mapping(state: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = state.get(key)
    if not isinstance(found, dict):
        raise ConfigError(f"model.path: the file's network has no {key}.")
    return found


def _integer(owner: Persistent, key: str) -> int:
    found = owner.state.get(key)
    if not isinstance(found, int) or not 0 <= found <= 2**16:
        raise ConfigError(f"model.path: the network of {owner.path} has no usable {key}, but {_named(found)}.")
    return found


def _named(value: Any) -> str:
    """A number, or what kind of thing it is: a file may nest values without end."""
    return str(value)[:40] if isinstance(value, int | float) else type(value).__name__


def _real(owner: Persistent, key: str) -> float:
    found = owner.state.get(key)
    if not isinstance(found, int | float):
        raise ConfigError(f"model.path: the network of {owner.path} has no usable {key}, but {_named(found)}.")
    return float(found)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file's network is used."""

    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition
    clock: AnyClock = OWN_TIME  # from snrkit's time to the network's
    sign: Literal[1, -1] = 1
    sigma_data: float | None = None
    doubled: int = 1  # its output's channels over the image's: 2 with a learned variance


def _reading(outer: Persistent, path: Path) -> Reading:
    state = outer.state
    if outer.name == "EDMPrecond":
        return Reading(_bounded(outer), X0(), EdmPrecondition(), sigma_data=_real(outer, "sigma_data"))
    if outer.name == "Precond":
        return Reading(Edm(), X0(), EdmPrecondition(), sigma_data=_real(outer, "sigma_data"))
    if outer.name == "VPPrecond":
        steepness, least, steps = (_real(outer, key) for key in ("beta_d", "beta_min", "M"))
        try:
            clock = VpClock.model_validate({"steepness": steepness, "least": least, "steps": steps})
        except ValidationError:
            raise ConfigError(f"model.path: {path} holds a VPPrecond of an impossible beta_d, beta_min or M.") from None
        return Reading(_bounded(outer), Eps(), NoPrecondition(), clock)
    if outer.name == "VEPrecond":
        halved = LinearClock(factor=4, offset=-math.log(2))
        return Reading(_bounded(outer), Eps(), RawPrecondition(), halved, sign=-1)
    if outer.name == "iDDPMPrecond":
        table = _mapping(state, "_buffers").get("u")
        if not isinstance(table, Tensor) or table.ndim != 1 or not 3 <= len(table) <= 2**16:
            raise ConfigError(f"model.path: {path} has no table of sigmas.")
        sigmas = table[:-1].double().flip(0)  # the file's runs from the noisiest, of 20,000, to 0
        sigmas = sigmas[: max(3, int((sigmas < SIGMAS[1]).sum()) + 1)]
        try:
            process = Ddpm(betas=TrainedSigmas(values=tuple(sigmas.tolist())), steps=len(sigmas), scaling="ve")
        except ValueFaultError:
            raise ConfigError(f"model.path: the table of sigmas in {path} does not rise.") from None
        return Reading(process, Eps(), NoPrecondition(), doubled=2)
    raise ConfigError(
        f"model.path: {path} holds a {outer.name[:40]}, which is not known; EDMPrecond, VPPrecond, VEPrecond, "
        "iDDPMPrecond and EDM2's Precond are."
    )


def _bounded(outer: Persistent) -> Edm:
    """Sigmas that the file's network says it takes, within the 0.002 to 80 that the published samplers visit."""
    low, high = (_real(outer, key) for key in ("sigma_min", "sigma_max"))
    if not low < high or high <= SIGMAS[0] or low >= SIGMAS[1]:
        raise ConfigError(f"model.path: the file's network takes no sigma, being bounded by {low:g} and {high:g}.")
    return Edm(sigma_min=max(low, SIGMAS[0]), sigma_max=min(high, SIGMAS[1]))


SONG = {
    "model_channels": "channels", "channel_mult": "multipliers", "num_blocks": "blocks",
    "attn_resolutions": "attention", "dropout": "dropout", "label_dim": "classes", "augment_dim": "augment",
    "embedding_type": "embedding", "encoder_type": "encoder", "decoder_type": "decoder",
    "channel_mult_noise": "time_features", "resample_filter": "taps",
}  # fmt: skip
ADM = {key: SONG[key] for key in list(SONG)[:7]}
EDM2 = {
    **{key: ADM[key] for key in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "label_dim")},
    "channel_mult_noise": "noise_multiplier", "channel_mult_emb": "embedding_multiplier", "dropout": "dropout",
    "channels_per_head": "head_channels", "label_balance": "label_balance", "concat_balance": "concat_balance",
    "res_balance": "residual_balance", "attn_balance": "attention_balance", "clip_act": "clip",
}  # fmt: skip
NETWORKS: Mapping[str, tuple[type[AnyUNet], Mapping[str, str]]] = {
    "SongUNet": (SongUNet, SONG), "DhariwalUNet": (DhariwalUNet, ADM), "UNet": (Edm2UNet, EDM2),
}  # fmt: skip
UNREAD = {"img_resolution", "img_channels", "in_channels", "out_channels", "label_dropout", "channel_mult_emb"}


def _network(inner: Persistent, path: Path) -> AnyUNet:
    """The network by the file's arguments, each of which is known."""
    if inner.name not in NETWORKS:
        known = "SongUNet, DhariwalUNet and EDM2's UNet"
        raise ConfigError(f"model.path: {path} holds a {inner.name[:40]}; {known} can be read.")
    kind, names = NETWORKS[inner.name]
    if unknown := inner.arguments.keys() - names.keys() - UNREAD:
        raise ConfigError(f"model.path: {path} has a {inner.name} with an unknown {min(map(str, unknown))[:40]}.")
    given = {names[key]: value for key, value in inner.arguments.items() if key in names}
    if kind is SongUNet:
        given.setdefault("multipliers", (1, 2, 2, 2))  # as the original's own default
    said = f"model.path: {path} has a {inner.name} of impossible"
    for name, value in given.items():
        if isinstance(value, list | tuple) and len(value) > LONGEST:  # pydantic has a record of every wrong member
            raise ConfigError(f"{said} {name}.")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{said} {error.errors()[0]['loc'][0]}.") from None


def _weights(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module of the file, with those inside it, by name."""
    waiting, seen = [("", 0, state)], 0
    while waiting:
        prefix, depth, current = waiting.pop()
        parts, modules = [_mapping(current, key) for key in ("_parameters", "_buffers")], _mapping(current, "_modules")
        seen += 1 + sum(map(len, parts)) + len(modules)
        if depth > DEEPEST or seen > LARGEST:
            raise SnrkitError("it has more modules than any network, or they lie within themselves")
        listed = current.get("_non_persistent_buffers_set")
        skipped = listed[:LONGEST] if isinstance(listed, list) else []
        for name, value in (item for part in parts for item in part.items()):
            if isinstance(value, Tensor) and name not in skipped:
                yield f"{prefix}{name}", value
        for name, value in modules.items():
            if (inner := _state_of(value)) is not None:
                waiting.append((f"{prefix}{name}.", depth + 1, inner))


def _state_of(value: Any) -> Mapping[str, Any] | None:
    """The state of a module of the file, its own class or torch's; None for what is no module."""
    if not isinstance(value, Record):
        return None
    found = value.state if value.name.startswith(LAYERS) else None
    if value.name == PERSISTENT and len(value.args) == 1 and isinstance(value.args[0], dict):
        found = value.args[0].get("state")
    return found if isinstance(found, dict) else None
