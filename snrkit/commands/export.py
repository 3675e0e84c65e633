"""`snrkit export RUN`: a run's weights as a folder that diffusers loads by itself, or as one file of snrkit's.

The U-Net's names are diffusers' own, so that weights move as they are; so are those of a UNet2DModel that was trained
on. What diffusers has no place for must not matter: the null embedding of the time is dropped, as a pipeline always
tells the level; extra scalars are refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from snrkit.base.errors import RunError, SnrkitError
from snrkit.base.files import disk_errors, new_folder, remove_abandoned, write_bytes
from snrkit.base.outline import outlined
from snrkit.base.signals import ending
from snrkit.checkpoints.diffusers import TARGETS
from snrkit.checkpoints.exported import About, exported
from snrkit.data import Latents
from snrkit.data.representation import PIXELS
from snrkit.diffusion.denoiser import EdmBlindPrecondition, EdmPrecondition, NoPrecondition
from snrkit.diffusion.prediction import X0
from snrkit.diffusion.process import Ddpm, Edm
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.lock import beside
from snrkit.experiment.models import FromElsewhere, Weights, checkpoint_path, read_weights
from snrkit.experiment.run import Run
from snrkit.experiment.stored import check_own, stored_experiment
from snrkit.networks import UNet
from snrkit.networks.adapted import Adapted, LinearClock, without_nulls
from snrkit.networks.of_diffusers import DiffusersModule, DiffusersNetwork, diffusers_package
from snrkit.networks.unet import EPSILON
from snrkit.reports.records import Exported

PREDICTED: dict[str, str] = {target.kind: name for name, target in TARGETS.items()}


FORMATS = ("diffusers", "snrkit")


def run_exporting(
    path: Path, to: str, out: Path | None, average: str | None = None, checkpoint: int | None = None
) -> Exported:
    """Write RUN/export/diffusers or RUN/export/snrkit.safetensors, or `out`, which must not exist or be that file."""
    if to not in FORMATS:
        raise SnrkitError(f"--to {to}: choose one of {', '.join(FORMATS)}.")
    experiment, run = stored_experiment(path), Run(path)
    made = out or path / "export" / (to if to == "diffusers" else "snrkit.safetensors")
    if made.exists() and (to == "diffusers" or made.is_dir()):
        raise _exists(made)
    if reason := next(_reasons(experiment) if to == "diffusers" else _of_any(experiment), None):
        raise SnrkitError(f"{path} cannot become a model of {to}: {reason}.")
    if to == "diffusers":
        diffusers_package()  # before anything is read
    weights = experiment.model.find(run, checkpoint, average)
    check_own(run, [checkpoint_path(run, weights.images, weights.name)])
    tensors = read_weights(run, weights)
    with (
        beside(run, made.parent) if out is None else ending(),
        disk_errors(f"writing {made}", "free space or name another place with --out"),
    ):
        if to == "diffusers":
            _write_folder(made, path, experiment, tensors)
        else:
            _write_file(made, exported(_about(experiment, weights), tensors))
    return Exported(str(made.absolute()), to, weights.name, weights.images, to == "diffusers" and whole(experiment))


def _exists(made: Path) -> SnrkitError:
    return SnrkitError(f"{made} exists already; delete it, or name another place with --out.")


def _write_file(made: Path, content: bytes) -> None:
    """One file; the very one may be there already, of a command that was stopped at its end."""
    if made.exists() and made.read_bytes() != content:
        raise _exists(made)
    made.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(made.parent, made.name)
    write_bytes(made, content)


def _about(e: Experiment, weights: Weights) -> About:
    """What the header of a file of snrkit's says."""
    able = e.model.parts.capabilities
    return About(
        shape=e.data.open().shape,
        process=e.process,
        target=e.target,
        precondition=e.precondition,
        network=e.training.network,
        sigma_data=float(e.data.sigma_data),
        unlabelled=able.unlabelled,
        untold=able.untold,
        weights=weights.name,
        images=weights.images,
    )


def _write_folder(folder: Path, path: Path, experiment: Experiment, weights: Mapping[str, Tensor]) -> None:
    """The network and its scheduler as diffusers saves them."""
    package = diffusers_package()
    scheduler = _scheduler(package, experiment)
    with outlined():  # however large a stranger's configuration calls it
        network = _network(package, experiment)
    try:
        network.load_state_dict(_renamed(experiment, weights), assign=True)
    except RuntimeError as error:
        raise RunError(f"{path} holds weights of another network ({' '.join(str(error).split())[:200]}).") from None
    with new_folder(folder) as made:
        network.save_pretrained(made / "unet")
        scheduler.save_pretrained(made / "scheduler")
        if whole(experiment):
            package.DDIMPipeline(network, scheduler).save_config(made)


def whole(e: Experiment) -> bool:
    """Whether diffusers has a pipeline for it: DDIM's, which takes no labels."""
    return isinstance(e.process, Ddpm) and e.process.scaling == "vp" and not e.network.conditioning.classes


def unfit(e: Experiment) -> str | None:
    """Why a run has no equal in diffusers; None where it has."""
    return next(_reasons(e), None)


def _of_any(e: Experiment) -> Iterator[str]:
    if isinstance(e.model, FromElsewhere):
        yield f"its model is one from elsewhere, {e.model.source.path}, which need not be exported"
    if isinstance(e.data, Latents) or e.data.representation != PIXELS or e.model.autoencoder() is not None:
        yield "its states are no images, and nothing there would decode them as they were encoded"
    if scalars := e.network.conditioning.scalars:
        yield f"its network is told {', '.join(scalars)} too, which nothing there tells it"


def _reasons(e: Experiment) -> Iterator[str]:
    yield from _of_any(e)
    if isinstance(e.network, Adapted):
        yield from _of_another(e.network)
    elif not isinstance(e.network, UNet):
        yield f"its network is a {e.network.kind}, and only the unet is one of diffusers'"
    elif e.network.time_scale != 1:
        yield f"its network reads {e.network.time_scale:g} times the time that schedulers give"
    if (
        isinstance(e.process, Edm)
        and isinstance(e.target, X0)
        and isinstance(e.precondition, EdmPrecondition | EdmBlindPrecondition)
    ):
        return
    if not isinstance(e.process, Ddpm):
        yield f"no scheduler gives the times of a {e.process.kind} process with target {e.target.kind} to its network"
    if not isinstance(e.precondition, NoPrecondition):
        yield f"no scheduler of a table has the preconditioning {e.precondition.kind}"
    if e.target.kind not in PREDICTED:
        yield f"no scheduler of a table has the target {e.target.kind}"


def _of_another(network: Adapted) -> Iterator[str]:
    """Of a network of another project."""
    inner = network.inner
    if not isinstance(inner, DiffusersNetwork):
        yield f"its network is the {inner.kind} of a model from elsewhere, whose own files are not written"
    elif inner.name != "UNet2DModel":
        yield f"its network is a {inner.name}, and only UNet2DModel is written"
    elif network.clock != LinearClock() or network.sign != 1:
        yield "no scheduler that is written gives its network's own time and sign"


def _renamed(e: Experiment, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under diffusers' names, without what it has no place for, such as rows of what is not told."""
    if isinstance(e.network, Adapted):
        return {name.removeprefix("inner."): tensor for name, tensor in without_nulls(weights).items()}
    return {name: tensor for name, tensor in weights.items() if not name.startswith("extras.")}


def _scheduler(package: ModuleType, e: Experiment) -> Any:
    """The scheduler of the same levels; of tables, their betas as a list."""
    if isinstance(e.process, Edm):
        sigmas = {"sigma_min": e.process.sigma_min, "sigma_max": e.process.sigma_max}
        return package.EDMEulerScheduler(**sigmas, sigma_data=float(e.data.sigma_data), prediction_type="epsilon")
    assert isinstance(e.process, Ddpm)
    log_abar = torch.nn.functional.logsigmoid(e.process.table())
    betas = -torch.expm1(torch.diff(log_abar, prepend=log_abar.new_zeros(1)))
    shared = {
        "num_train_timesteps": e.process.steps,
        "trained_betas": betas.tolist(),
        "timestep_spacing": "trailing",
        "prediction_type": PREDICTED[e.target.kind],
    }
    if e.process.scaling == "ve":
        return package.EulerDiscreteScheduler(**shared)
    return package.DDIMScheduler(**shared, clip_sample=False)


def _network(package: ModuleType, e: Experiment) -> Any:
    """UNet2DModel of the same layers."""
    if isinstance(e.network, Adapted):
        made = e.network.inner.make(e.network.shape)
        assert isinstance(made, DiffusersModule)
        return made.inner
    value, shape = e.network, e.data.open().shape
    assert isinstance(value, UNet)
    size = shape[1] if shape[1] == shape[2] else shape[1:]
    attended = [shape[1] >> depth in value.attention for depth in range(len(value.multipliers))]
    return package.UNet2DModel(
        sample_size=size,
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=value.blocks,
        block_out_channels=tuple(value.channels * multiplier for multiplier in value.multipliers),
        down_block_types=tuple("AttnDownBlock2D" if at else "DownBlock2D" for at in attended),
        up_block_types=tuple("AttnUpBlock2D" if at else "UpBlock2D" for at in reversed(attended)),
        add_attention=attended[-1],
        attention_head_dim=value.head_channels,
        norm_num_groups=value.groups,
        attn_norm_num_groups=value.groups,
        norm_eps=EPSILON,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=value.classes + 1 if value.classes else None,
        dropout=value.dropout,
    )
