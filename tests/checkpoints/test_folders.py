"""Folders of diffusers: which of their files are read, and that these fill the network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.codec import load_codec
from snrkit.checkpoints.diffusers import DiffusersModel
from snrkit.checkpoints.foreign import Autoencoder
from tests.checkpoints.test_hostile_files import REACHED, TOUCH, Call

diffusers = pytest.importorskip("diffusers")
NAME = "diffusion_pytorch_model"


@pytest.fixture
def folder(model, tmp_path):
    """A copy of a pipeline's folder."""
    return shutil.copytree(model, tmp_path / "copy")


def weights(folder):
    """Of its network, and where they are."""
    path = folder / "unet" / f"{NAME}.safetensors"
    return load_file(path), path


def loaded(folder):
    """The state that is read."""
    return DiffusersModel(path=folder).load().inner.inner.state_dict()


def refused(folder, said):
    """One sentence."""
    with pytest.raises(ConfigError, match=said) as caught:
        DiffusersModel(path=folder).load()
    assert "\n" not in str(caught.value)


def test_torch_files_variants_and_parts_hold_the_same_weights(folder):
    """As .bin, as a variant alone, and as parts with an index."""
    state, path = weights(folder)
    path.unlink()
    torch.save(state, path.with_name(f"{NAME}.bin"))
    for name, value in loaded(folder).items():
        assert torch.equal(value, state[name])
    path.with_name(f"{NAME}.bin").unlink()
    save_file({name: value.half() for name, value in state.items()}, path.with_name(f"{NAME}.fp16.safetensors"))
    for name, value in loaded(folder).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].half().float())
    path.with_name(f"{NAME}.fp16.safetensors").unlink()
    diffusers.UNet2DModel.from_config(folder / "unet").save_pretrained(folder / "unet", max_shard_size="10KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert loaded(folder).keys() == state.keys()


def test_a_network_that_is_not_filled_is_refused(folder):
    """diffusers itself makes up what is missing and warns."""
    state, path = weights(folder)
    state.pop("conv_out.bias")
    save_file(state, path)
    refused(folder, "lack conv_out.bias and so do not fill a UNet2DModel")


def test_a_folder_without_weights_is_refused(folder):
    """And says what they would be called."""
    weights(folder)[1].unlink()
    refused(folder, f"has no weights, such as {NAME}.safetensors")
    with pytest.raises(ConfigError, match="has no weights"):
        DiffusersModel(path=folder).describe()


def test_folders_that_are_not_there_say_where_they_were_looked_for(tmp_path):
    """Both of a model and of its autoencoder."""
    with pytest.raises(ConfigError, match=r"/nothing does not exist; a relative path in a YAML is one from that file"):
        DiffusersModel(path=tmp_path / "nothing").describe()
    with pytest.raises(ConfigError, match=r"nothing does not exist\.$"):
        DiffusersModel(path="nothing").describe()
    with pytest.raises(ConfigError, match=r"nothing does not exist"):
        load_codec(Autoencoder(path=Path("nothing")), torch.device("cpu"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is no folder, as diffusers saves models in"):
        DiffusersModel(path=tmp_path / "file").describe()


def test_guidance_that_nothing_is_told_is_refused(folder):
    """It is FLUX's alone."""
    with pytest.raises(ConfigError, match="has no effect on this UNet2DModel"):
        DiffusersModel(path=folder, guidance=2.0).describe()


def test_torch_files_that_want_to_be_run_are_refused(folder, monkeypatch, tmp_path):
    """By what they name, and nothing is run."""
    state, path = weights(folder)
    path.unlink()
    monkeypatch.chdir(tmp_path)
    import os

    torch.save({**state, "more": Call(os.system, TOUCH)}, path.with_name(f"{NAME}.bin"))
    refused(folder, "names posix.system, which no checkpoint of this kind needs; nothing of it was run")
    assert not (tmp_path / REACHED).exists()


def test_an_index_of_files_elsewhere_is_refused(folder):
    """A path is no name of a part."""
    index = folder / "unet" / f"{NAME}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}))
    refused(folder, "does not list files of its own folder")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_embed_type": "timestep"}, "whose class_embed_type is 'timestep' cannot be asked here"),
        ({"time_embedding_type": "learned"}, "whose time_embedding_type is 'learned' cannot be asked here"),
        ({"num_class_embeds": "ten"}, "num_class_embeds of the model's config.json is 'ten', and no count"),
    ],
)
def test_networks_that_cannot_be_asked_are_refused(folder, changes, said):
    """By their configuration."""
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(folder, said)
