"""A PyTorch network of the user's own: a Python file with a function that makes it, and a file of its weights.

Of all kinds this is the only one that runs code: opening the model runs the file and calls the function, as a script
that imports it would. Reading, checking or describing an experiment does not, and the weights are read as those of
every other kind, without running anything. They must fill the network exactly.

What a file cannot say of itself the configuration says: shape, process, target, preconditioning, labels. The network
is called in eval mode as network(x, time) or, where it has `classes`, as network(x, time, labels):

    x        (B, C, H, W) float32   c_in times the state in its process's scaling, c_in as the preconditioning has it
    time     (B,) float32           what the process calls its time: the index in ddpm's table, t from 1 to 0 in flow,
                                    ln(sigma)/4 in edm
    labels   (B,) int64             from 0 on; `null_label` for none
    answer   (B, C, H, W)           F, read as the target after the preconditioning: y = c_skip x + c_out F

Its parameters are held in float32. The file stands alone: what it imports must be installed.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from snrkit.base.errors import ConfigError, SnrkitError, plain, reason_of
from snrkit.base.files import checksum
from snrkit.base.regular import read_regular
from snrkit.base.transfer import send
from snrkit.base.value import LONGEST_NAME, MOST_LABELS, Classes, Place, Side, Text, Value
from snrkit.checkpoints.folders import FROM, regular
from snrkit.checkpoints.foreign import Autoencoder, Described, check_fits
from snrkit.checkpoints.safetensors_files import is_safetensors, read_safetensors
from snrkit.checkpoints.torch_files import weights_in
from snrkit.diffusion.denoiser import AnyPrecondition, NoPrecondition, one_tensor
from snrkit.diffusion.prediction import AnyTarget, Cond
from snrkit.diffusion.process import AnyProcess
from snrkit.networks.foreign import Foreign
from snrkit.networks.of_diffusers import Setting

LARGEST = 2**22  # bytes of a file of code
WIDEST_SPREAD = 1e6  # sigma_data
SHOWN = 5  # names


class PythonModel(Value):
    """A network that a Python file makes: opening the model runs that file."""

    kind: Literal["python"] = "python"
    module: Place = Field(description="Python file; its code is RUN when the model is opened")
    call: str = Field(
        default="make",
        max_length=LONGEST_NAME,
        pattern=r"^[A-Za-z_]\w*$",
        description="function or class in `module` that makes the network",
    )
    options: Annotated[dict[Text, Setting], Field(max_length=100)] = Field(
        default_factory=dict, description="keywords that it is called with"
    )
    weights: Place = Field(
        description="safetensors file or torch file of the network's state dict; nothing of it is run"
    )
    entry: Text | None = Field(
        default=None, description="where in a torch file the state dict is; default: under ema if there, else the whole"
    )
    shape: tuple[Side, Side, Side] = Field(description="(C, H, W) of its states")
    process: AnyProcess = Field(
        description="process of its training, whose scaling its input has and whose time it is told"
    )
    target: AnyTarget = Field(description="what it was trained to predict")
    precondition: AnyPrecondition = Field(
        default=NoPrecondition(), description="how its input and output were scaled in training"
    )
    sigma_data: float | None = Field(
        default=None,
        gt=0,
        le=WIDEST_SPREAD,
        description="standard deviation of the data that a preconditioning of kind edm was trained with",
    )
    classes: Classes = Field(default=0, description="number of labels, without one that means none; 0: it takes none")
    null_label: int | None = Field(
        default=None, ge=-1, le=MOST_LABELS, description="what it is told for no label, as guidance asks it"
    )
    vae: Place | None = Field(default=None, description="folder of the autoencoder whose latents its states are")

    @model_validator(mode="after")
    def _said(self) -> "PythonModel":
        if (kind := self.precondition.kind) in ("edm", "edm_blind") and self.sigma_data is None:
            raise ValueError(f"precondition {kind}: give sigma_data, the data's standard deviation in its training")
        if self.null_label is not None and not self.classes:
            raise ValueError("null_label: has no effect without classes; drop it")
        return self

    @property
    def path(self) -> Path:
        """The file of code."""
        return self.module

    @property
    def code(self) -> Path:
        """What is run when the model is opened."""
        return self.module

    def describe(self) -> Described:
        """What the configuration says; both files must be there, and neither is read."""
        for key, path in (("module", self.module), ("weights", self.weights)):
            if not path.exists() and not path.is_symlink():
                raise ConfigError(f"model.{key}: {path.absolute()} does not exist; {FROM}.")
            regular(path, f"model.{key}")
        note = f"its network is made by the code of {self.module}, which is run when the model is opened"
        network = Foreign(shape=self.shape, classes=self.classes, null_label=self.null_label is not None, notes=(note,))
        return Described(self.process, self.target, self.precondition, network, self.sigma_data)

    def autoencoder(self) -> Autoencoder | None:
        """That of `vae`."""
        return None if self.vae is None else Autoencoder(path=self.vae)

    def load(self) -> nn.Module:
        """Runs the code, once the weights are known to be such. ConfigError names the line that failed."""
        weights = read_weights(self.weights, self.entry)
        network = self.made()
        with told(self.module):
            expected = network.state_dict()
        try:
            check_fits(weights, expected)
        except SnrkitError as error:
            made = f"the network that {self.call} of {self.module} makes"
            raise ConfigError(f"model.weights: {self.weights} does not fill {made}: {error}.") from None
        with told(self.module):
            network.load_state_dict(dict(weights))
        return OwnNetwork(network, self)

    def made(self) -> nn.Module:
        """The network as the code makes it, in float32. What it prints goes to the standard error stream."""
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            module = run_file(self.module)
            call = vars(module).get(self.call)
            if not callable(call):
                known = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
                has = (
                    f"what can be called there is {', '.join(known[:SHOWN])}"
                    if known
                    else "nothing there can be called"
                )
                raise ConfigError(f"model.call: {self.module} has no function {self.call}; {has}.")
            options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options.items()}
            with told(self.module):
                network = call(**options)
                if isinstance(network, nn.Module):
                    return network.float()
        found = type(network).__name__
        raise ConfigError(
            f"model.call: {self.call} of {self.module} returns a {found}; let it return a torch.nn.Module."
        )


def read_weights(path: Path, entry: str | None) -> Mapping[str, Tensor]:
    """The tensors by name in a safetensors file or a torch file, nothing of which is run. ConfigError: it has none."""
    regular(path, "model.weights")
    if not is_safetensors(path):
        return weights_in(path, entry, "model.weights")
    if entry is not None:
        raise ConfigError(f"model.entry: has no effect, as {path} is a safetensors file; drop it.")
    return read_safetensors(path, "model.weights")[1]


def run_file(path: Path) -> ModuleType:
    """The module of a Python file, run anew under a name of its own. ConfigError names the line that failed."""
    try:
        source = read_regular(path, LARGEST)
    except SnrkitError as error:
        raise ConfigError(f"model.module: {error}") from None
    except OSError as error:
        raise ConfigError(f"model.module: {path} cannot be read ({error.strerror}).") from None
    module = ModuleType(f"snrkit_own_{checksum(str(path.resolve()).encode() + source)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    try:
        with told(path):
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))  # noqa: S102 - what it is for
    except ConfigError:
        del sys.modules[module.__name__]
        raise
    return module


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What goes wrong within the code of a file as one sentence with its line: ConfigError. So does an exit."""
    try:
        yield
    except SnrkitError:
        raise
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        at = f"{path}, line {line}" if line else str(path)
        said = f" ({plain(reason_of(error))})" if str(error) else ""
        raise ConfigError(f"model.module: {at}, raised {type(error).__name__}{said}.") from None


def _line_of(error: BaseException, path: Path) -> int | None:
    """The innermost line of a file that an error came through."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


class OwnNetwork(nn.Module):
    """A user's network under snrkit's call."""

    def __init__(self, inner: nn.Module, model: PythonModel) -> None:
        super().__init__()
        self.inner, self.model = inner, model

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, H, W), time (B,) -> the same. ConfigError for what the code raises and for another shape."""
        with told(self.model.module):
            more = (self._labels(x, cond),) if self.model.classes else ()
            out: Any = self.inner(x, time, *more)
        return one_tensor(out, x, f"the network of {self.model.module}")

    def _labels(self, x: Tensor, cond: Cond | None) -> Tensor:
        labels = torch.full((len(x),), -1) if cond is None or cond.labels is None else cond.labels
        none = -1 if self.model.null_label is None else self.model.null_label
        return send(torch.where(labels < 0, none, labels), x.device)
