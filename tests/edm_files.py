"""Files in the layout of EDM's published pickles, which carry their classes' source, made of our own networks."""

import math
import pickle
import sys
import types
from collections import OrderedDict

import torch
from torch import nn

SOURCE = "raise SystemExit('the source in the file was run')\n"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a reader ran what a file names")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
sys.modules.setdefault("torch_utils", types.ModuleType("torch_utils"))
_module = types.ModuleType("torch_utils.persistence")
_module._reconstruct_persistent_obj = _reconstruct_persistent_obj
sys.modules.setdefault("torch_utils.persistence", _module)


class Persistent:
    """Pickles as an object of a class that EDM's persistence wraps."""

    def __init__(self, name, state):
        self.name, self.state = name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def state_of(module, modules=None):
    """The state of a torch module, the modules inside it as EDM's own."""
    inner = {name: wrapped(m) for name, m in module.named_children()} if modules is None else modules
    return {
        "training": False, "_parameters": OrderedDict(module._parameters), "_buffers": OrderedDict(module._buffers),
        "_non_persistent_buffers_set": set(module._non_persistent_buffers_set),
        "_backward_hooks": OrderedDict(), "_modules": OrderedDict(inner),
    }  # fmt: skip


def wrapped(module):
    """A module as it lies in such a file; lists of modules are torch's own."""
    if isinstance(module, nn.ModuleDict):
        holder = nn.ModuleDict()
        holder.__dict__["_modules"] = OrderedDict((name, wrapped(m)) for name, m in module.named_children())
        return holder
    return Persistent(type(module).__name__, state_of(module))


def network(name, module, arguments):
    """A network with its arguments."""
    return Persistent(name, {**state_of(module), "_init_args": (), "_init_kwargs": arguments})


def preconditioned(name, inner, shape, labels, **attributes):
    """A network within its preconditioning."""
    state = state_of(nn.Module(), {"model": inner})
    limits = {"sigma_min": 0, "sigma_max": math.inf, **attributes}
    shown = {"img_resolution": shape[1], "img_channels": shape[0], "label_dim": labels, "use_fp16": False}
    buffers = limits.pop("buffers", {})
    state["_buffers"] = OrderedDict(buffers)
    return Persistent(name, {**state, **shown, **limits, "_init_kwargs": {}})


def write(path, content, protocol=4):
    """The pickle of {"ema": content} and of what else such files hold."""
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5})
    path.write_bytes(pickle.dumps({"ema": content, "loss_fn": loss, "augment_pipe": None}, protocol=protocol))
    return path


SONG = {
    "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "dropout": 0.1,
    "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}  # fmt: skip
ADM = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "dropout": 0.1}


def arguments(given, labels, side=16, channels=3, outputs=3):
    """Arguments of a network as a preconditioning hands them on."""
    common = {"img_resolution": side, "in_channels": channels, "out_channels": outputs, "label_dim": labels}
    return {**common, **given}


def iddpm_sigmas(steps=1000, floor=0.001, offset=0.008):
    """The table of sigmas of iDDPM's preconditioning, noisiest first, 0 last (Karras et al. 2022, table 1)."""
    abar = [math.sin(math.pi / 2 * j / (steps * (offset + 1))) ** 2 for j in range(steps + 1)]
    u = torch.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = math.sqrt((float(u[j]) ** 2 + 1) / max(abar[j - 1] / abar[j], floor) - 1)
    return u
