"""Train a UNet2DModel on scikit-learn's digits with plain diffusers code, as its examples do, and save the pipeline.

    python examples/diffusers_digits.py runs/their-digits-model
    snrkit run examples/diffusers_digits.yaml
    snrkit compare examples/diffusers_digits.yaml

Nothing here is of snrkit: this is what somebody else's model looks like before it is measured.
"""

import sys

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits

folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4000
torch.manual_seed(0)
images = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
network = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for step in range(steps):
    x0 = images[torch.randint(len(images), (64,))]
    noise, t = torch.randn_like(x0), torch.randint(scheduler.config.num_train_timesteps, (64,))
    loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(x0, noise, t), t).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    rates.step()
    if step % 500 == 0:
        print(f"step {step}: loss {loss.item():.4f}", flush=True)
DDPMPipeline(network, scheduler).save_pretrained(folder)
