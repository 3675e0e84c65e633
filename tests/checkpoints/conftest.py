"""What tests of several origins read."""

import pytest
import torch


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with a small random UNet2DModel for digits, told ten labels and none."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=11,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    diffusers.DDPMPipeline(network, diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder
