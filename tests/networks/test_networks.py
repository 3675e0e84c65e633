"""Raw networks: the layout of diffusers, float32 islands, null embeddings."""

import pytest
import torch
from torch import nn

from snrkit.diffusion.prediction import Cond
from snrkit.networks import Dit, Mlp, UNet, largest_logit, make_network, set_checkpointing, watch_attention
from snrkit.networks.dit import rotary_angles, rotate
from snrkit.networks.embed import sinusoid
from snrkit.networks.norms import GroupNorm, layer_norm

SMALL = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=4, classes=3),
    "dit": Dit(dim=32, depth=2, heads=2, classes=3),
    "dit-options": Dit(dim=32, depth=2, heads=2, classes=3, qk_norm=True, rotary=True),
    "mlp": Mlp(dim=16, depth=2, classes=3),
}


def stirred(value, shape=(1, 8, 8), seed=0):
    """A network none of whose weights is zero."""
    network = make_network(value, shape, seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return network.eval()


def test_unet_is_diffusers_unet_by_renaming():
    """The same outputs as UNet2DModel with scale_shift from the same state dict, but for our `extras`."""
    diffusers = pytest.importorskip("diffusers")
    value = UNet(channels=16, multipliers=(1, 2, 2), blocks=2, attention=(4,), head_channels=8, groups=4, classes=3)
    ours = stirred(value, (3, 16, 16))
    theirs = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32, 32), layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4, attention_head_dim=8,
        attn_norm_num_groups=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), resnet_time_scale_shift="scale_shift",
        num_class_embeds=4,
    ).eval()  # fmt: skip
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("extras.")}
    theirs.load_state_dict(state)
    x, time, labels = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0]), torch.tensor([1, 3])
    with torch.no_grad():
        reference = theirs(x, time, labels).sample
        found = ours(x, time, Cond(labels=torch.tensor([1, -1])))
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("value", SMALL.values(), ids=SMALL)
def test_null_time_and_null_label_have_embeddings_of_their_own(value):
    """NaN time and label -1 are answered, differ from every other, and do not disturb their neighbours."""
    network = stirred(value)
    x = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
    time, labels = torch.tensor([0.5, torch.nan, 0.5, torch.nan]), torch.tensor([1, 1, -1, -1])
    with torch.no_grad():
        out = network(x, time, Cond(labels=labels))
        alone = network(x[:1], time[:1], Cond(labels=labels[:1]))
    assert torch.isfinite(out).all()
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(out[i], out[j], atol=1e-4)
    torch.testing.assert_close(out[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", SMALL.values(), ids=SMALL)
def test_gradients_are_finite_where_time_is_not_told(value):
    """NaN in the time never reaches a gradient, and every parameter has one (DDP needs it)."""
    network = make_network(value, (1, 8, 8), 0).train()
    time = torch.tensor([torch.nan, 0.1, torch.nan])
    network(torch.randn(3, 1, 8, 8), time, Cond(labels=torch.tensor([-1, 0, 2]))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_checkpointing_keeps_less_and_gives_the_same_bits(name):
    """Output and gradients, with dropout on; fewer bytes wait for the backward pass."""
    extra = {"dropout": 0.3} if name == "unet" else {}
    found, kept = [], []
    for on in (False, True):
        network = stirred(SMALL[name].model_copy(update=extra)).train()
        set_checkpointing(network, on)
        bytes_kept = []

        def pack(tensor, bytes_kept=bytes_kept):
            bytes_kept.append(tensor.nbytes)
            return tensor

        torch.manual_seed(7)
        x = torch.randn(4, 1, 8, 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(x, torch.linspace(0, 1, 4), Cond(labels=torch.tensor([0, 1, 2, -1])))
        out.square().sum().backward()
        found.append([out, *(p.grad for p in network.parameters())])
        kept.append(sum(bytes_kept))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("value", [SMALL["unet"], SMALL["dit"], SMALL["mlp"]], ids=["unet", "dit", "mlp"])
def test_a_fresh_network_says_zero(value):
    """The last layer starts at zero, so that training starts from the preconditioning alone."""
    out = make_network(value, (1, 8, 8), 0)(torch.randn(2, 1, 8, 8), torch.rand(2), Cond(labels=torch.tensor([0, 1])))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("value", SMALL.values(), ids=SMALL)
def test_float32_islands_under_bfloat16(value):
    """Under autocast, the time embedding's layers and normalisation statistics still work in float32."""
    network, seen = stirred(value), {}

    def watch(name):
        def hook(module, inputs, output):
            seen[name] = (inputs[0].dtype, output.dtype)

        return hook

    for name, module in network.named_modules():
        if name.startswith(("time_embedding.linear", "t_embedder.mlp.0", "t_embedder.mlp.2")):
            module.register_forward_hook(watch(name))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(2, 1, 8, 8), torch.rand(2), Cond(labels=torch.tensor([0, 1])))
    assert seen
    assert all(dtypes == (torch.float32, torch.float32) for dtypes in seen.values())
    assert out.dtype == torch.float32


@pytest.mark.parametrize("format", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", ["group", "layer"])
def test_normalisation_is_that_of_float64_rounded_once(kind, format, layout):
    """Output and gradients, of an input with a large mean, in its own format and layout, under autocast too."""
    rng = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 8, 16, 16, generator=rng) for _ in range(2))
    x, grad = ((v + shift).to(format).contiguous(memory_format=layout) for v, shift in ((x, 5), (grad, 0)))
    norm, exact = GroupNorm(2, 8), nn.GroupNorm(2, 8).double()
    with torch.no_grad():
        for weight, other in zip(norm.parameters(), exact.parameters(), strict=True):
            other.copy_(weight.uniform_(0.5, 1.5, generator=rng))
    ours = norm if kind == "group" else lambda v: layer_norm(v, (16,))
    theirs = exact if kind == "group" else lambda v: nn.functional.layer_norm(v, (16,))
    found, wanted = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(found)
    assert out.dtype == format
    assert kind == "layer" or out.is_contiguous(memory_format=layout)
    out.backward(grad)
    theirs(wanted).backward(grad.double())
    bound = {"rtol": torch.finfo(format).eps, "atol": torch.finfo(format).eps / 64}
    torch.testing.assert_close(out.double(), theirs(wanted), **bound)
    torch.testing.assert_close(found.grad.double(), wanted.grad, **bound)
    for weight, other in zip(norm.parameters() if kind == "group" else (), exact.parameters(), strict=False):
        torch.testing.assert_close(weight.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_initialisation_depends_on_the_seed_alone():
    """The same seed gives the same weights whatever was drawn before; another seed others."""
    first = make_network(SMALL["dit"], (1, 8, 8), 3)
    torch.randn(5)
    second, third = make_network(SMALL["dit"], (1, 8, 8), 3), make_network(SMALL["dit"], (1, 8, 8), 4)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True)]
    assert all(same)
    assert not all(other)


def test_scalars_and_augmentation_condition_the_network():
    """A named scalar and the augmentation's parameters change the output; zero parameters are no augmentation."""
    network = stirred(UNet(channels=8, multipliers=(1,), blocks=1, groups=4, scalars=("low", "high"), augment=True))
    x, time = torch.randn(2, 1, 8, 8), torch.rand(2)
    with torch.no_grad():
        base = network(x, time, Cond(scalars=torch.zeros(2, 2)))
        moved = network(x, time, Cond(scalars=torch.tensor([[0.0, 1.0], [0.0, 0.0]])))
        silent = network(x, time, Cond(scalars=torch.zeros(2, 2), augment=torch.zeros(2, 9)))
        turned = network(x, time, Cond(scalars=torch.zeros(2, 2), augment=torch.eye(9)[:2]))
    assert not torch.allclose(base[0], moved[0], atol=1e-4)
    assert torch.allclose(base[1], moved[1], atol=1e-6)
    assert torch.equal(base, silent)
    assert not torch.allclose(base, turned, atol=1e-4)


def test_rotary_logits_depend_on_the_distance_only():
    """q . k after rotation is the same for every pair of places with the same offset."""
    cos, sin = (f(rotary_angles(4, 4, 8)) for f in (torch.cos, torch.sin))
    q, k = torch.randn(2, 8, dtype=torch.float64)
    turned_q, turned_k = rotate(q.expand(16, 8), cos, sin), rotate(k.expand(16, 8), cos, sin)
    logits = (turned_q @ turned_k.T).reshape(4, 4, 4, 4)
    torch.testing.assert_close(logits[0, 0, 1, 2], logits[2, 1, 3, 3])
    assert not torch.isclose(logits[0, 0, 1, 2], logits[0, 0, 2, 1])


def test_the_largest_logit_is_recorded_on_request():
    """With normalised q and k it stays below sqrt(head) times the product of their learned gains; off by default."""
    network = stirred(SMALL["dit-options"])
    x, time, cond = torch.randn(2, 1, 8, 8), torch.rand(2), Cond(labels=torch.tensor([0, 1]))
    network(x, time, cond)
    assert largest_logit(network) is None
    watch_attention(network, True)
    network(x, time, cond)
    network.requires_grad_(False)
    gains = [float(b.attn.q_norm.weight.abs().max() * b.attn.k_norm.weight.abs().max()) for b in network.blocks]
    assert 0 < float(largest_logit(network)) <= 16**0.5 * max(gains)


def test_sinusoid_is_diffusers_embedding():
    """[cos, sin] with frequencies from 1 down, as diffusers' Timesteps with flip_sin_to_cos."""
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    time = torch.tensor([0.0, 0.3, 17.0, 999.0])
    reference = embeddings.get_timestep_embedding(time, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoid(time, 32), reference)


@pytest.mark.parametrize(
    ("value", "shape", "words"),
    [
        (UNet(channels=8, multipliers=(1, 2, 2), groups=4), (1, 6, 6), "do not halve"),
        (Dit(patch=3, dim=32, heads=2), (1, 8, 8), "does not divide"),
        (UNet(channels=8, attention=(7,)), (1, 8, 8), r"attention at \[7\] has no effect: the resolutions are \[8, 4"),
        (UNet(channels=8, attention=(4,)), (1, 8, 8), "head_channels 32 does not divide 8 channels; set it to 8"),
    ],
)
def test_images_that_do_not_fit_are_refused(value, shape, words):
    """The network says which size it cannot take."""
    with pytest.raises(ValueError, match=words):
        value.make(shape)


@pytest.mark.parametrize(
    ("channels", "multipliers", "said"),
    [
        (9, (1, 2), "groups 8 does not divide 9 channels; set groups to 3, or channels to 8 or 16"),
        (4, (3, 1), "groups 8 does not divide 12 channels; set groups to 4, or channels to 8 or 16"),
    ],
)
def test_groups_that_do_not_divide_are_told_what_would(channels, multipliers, said):
    """Every depth's channels."""
    with pytest.raises(ValueError, match=said):
        UNet(channels=channels, multipliers=multipliers)
