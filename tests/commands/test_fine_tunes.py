"""Models from elsewhere that train on: `train.resume_from.model`."""

import copy
import json
import pickle
import shutil

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.exported import About, exported
from snrkit.commands.train import begin_from
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.experiment import dump_yaml, parse_experiment
from snrkit.experiment.opening import open_experiment, open_model, open_network, open_task
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_experiment
from snrkit.experiment.trajectories import trajectories
from snrkit.networks import Adapted, output_layer, output_weights
from snrkit.networks.embed import NullLabel, NullTime
from snrkit.training.batches import micro_batch, slices_of_a_micro_batch
from snrkit.training.train import make_state, train
from tests.checkpoints.test_diffusers import transformer
from tests.checkpoints.test_edm_files import file_of
from tests.checkpoints.test_latents import autoencoder
from tests.checkpoints.test_transformers import HEADS, published, theirs  # noqa: F401 - a fixture
from tests.edm_files import arguments, network, preconditioned
from tests.networks import test_adm, test_edm2
from tests.small import SMALL, snrkit, written
from tests.spectral.test_levels import WORLD

diffusers = pytest.importorskip("diffusers")
EULER = {"grid": {"kind": "uniform_logsnr", "steps": 3}, "solver": {"kind": "euler"}}
TRAIN = {
    "images": 64, "batch": 32, "warmup": 0, "lr": 1e-3, "clip": None, "save_every": 32, "log_every": 32,
    "noise_dropout": 0.3, "averages": [{"half_life": 100}],
}  # fmt: skip
ASKED = {
    "name": "tuned", "levels": {"kind": "lognormal"}, "weighting": {"kind": "simple"},
    "sample": {"seeds": "0-15", "batch": 16}, "metrics": {"features": "pixels", "pixel_components": 4, "ranges": 2},
    "shift": SMALL["shift"],
}  # fmt: skip


def unet(folder, labels=10, channels=1, scheduler=None, **changes):
    """A folder with a small UNet2DModel, every label of which is one."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "in_channels": channels, "out_channels": channels, "block_out_channels": (8, 8),
        "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "num_class_embeds": labels,
    }  # fmt: skip
    made = diffusers.UNet2DModel(**{**settings, **changes})
    diffusers.DDPMPipeline(made, scheduler or diffusers.DDIMScheduler()).save_pretrained(folder / "unet")
    return {"kind": "diffusers", "path": str(folder / "unet")}


def write_models(folder, dit):
    """A file or folder of every family, by name: (what names it, shape, labels)."""
    torch.save(published(dit), folder / "dit.pt")
    adm = test_adm.saved("adm", test_adm.theirs("adm"), folder)
    inner = network("UNet", test_edm2.small(0.4), arguments(test_edm2.GIVEN, 3))
    edm2 = folder / "edm2.pkl"
    edm2.write_bytes(
        pickle.dumps({"ema": preconditioned("Precond", inner, (3, 16, 16), 3, sigma_data=0.5)}, protocol=4)
    )
    transformer().save_pretrained(folder / "theirs/transformer")
    diffusers.DDIMScheduler().save_pretrained(folder / "theirs/scheduler")
    edm = {kind: {"kind": "edm", "path": str(file_of(kind, folder))} for kind in ("edm", "vp", "adm")}
    return {
        "unet": (unet(folder), (1, 8, 8), 10),
        "unet-null": ({**unet(folder), "null_label": 9}, (1, 8, 8), 9),
        "dit-of-diffusers": ({"kind": "diffusers", "path": str(folder / "theirs")}, (4, 8, 8), 10),
        "dit": ({"kind": "dit", "path": str(folder / "dit.pt"), "heads": HEADS}, (4, 8, 8), 10),
        "sit": ({"kind": "sit", "path": str(folder / "dit.pt"), "heads": HEADS}, (4, 8, 8), 10),
        "adm": (adm.model_dump(mode="json"), (3, 8, 8), 5),
        "edm": (edm["edm"], (3, 16, 16), 0),
        "edm-vp": (edm["vp"], (3, 16, 16), 10),
        "edm-adm": (edm["adm"], (3, 16, 16), 7),
        "edm2": ({"kind": "edm", "path": str(edm2)}, (3, 16, 16), 3),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory, theirs):  # noqa: F811
    return write_models(tmp_path_factory.mktemp("models"), theirs)


FAMILIES = ("unet", "unet-null", "dit-of-diffusers", "dit", "sit", "adm", "edm", "edm-vp", "edm-adm", "edm2")


def content(model, shape, labels, **changes):
    """An experiment that trains a model on."""
    data = {"kind": "mixture", "shape": list(shape), "count": 1000, "components": labels or 2}
    dropped = {"label_dropout": 0.2 if labels else 0.0}
    train_part = {**TRAIN, **dropped, "resume_from": {"model": model}, **changes.pop("train", {})}
    return {**ASKED, "data": data, "samplers": {"euler": EULER}, "train": train_part, **changes}


def begun(e):
    """(task, state before its first step)."""
    opened = open_experiment(e, WORLD)
    task = open_task(opened.experiment.training, opened.setting)
    state = make_state(task, open_network(opened.experiment.training, opened.setting))
    begin_from(opened.experiment, task, state)
    return task, state


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_a_fine_tune_that_was_exported_is_trained_on_as_it_is(models, family, tmp_path):
    """What it learned to say where it is not told stays; every weight does."""
    model, shape, labels = models[family]
    e = parse_experiment(content(model, shape, labels), "tuned.yaml")
    _, state = begun(e)
    weights = {name: tensor + 0.01 for name, tensor in state.network.state_dict().items()}
    parts = {part: getattr(e, part) for part in ("process", "target", "precondition", "network")}
    said = {"unlabelled": True, "untold": True, "weights": "network", "images": 1, "sigma_data": 1.0}
    (tmp_path / "x.safetensors").write_bytes(exported(About(shape=shape, **parts, **said), weights))
    again = content({"kind": "snrkit", "path": str(tmp_path / "x.safetensors")}, shape, labels)
    _, found = begun(parse_experiment(again, "again.yaml"))
    assert found.network.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.network.state_dict().items())


def first_of(task):
    """(The first micro-batch of a training, what is asked of it)."""
    draws = task.plan().draw(0, range(slices_of_a_micro_batch(task)))
    batch = micro_batch(task, draws, task.pixels(draws))
    return batch, batch.ask(task)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fine_tune_begins_as_the_model_it_is_of(models, family):
    """Bit for bit where it is told, averages too; untold to rounding as told the median of training's levels."""
    e = parse_experiment(content(*models[family]), "tuned.yaml")
    shape, labels = models[family][1:]
    task, state = begun(e)
    network, foreign = state.network.eval(), e.train.resume_from.model.load().eval()
    found = e.train.resume_from.model.describe()
    assert (e.process, e.target, e.precondition) == (found.process, found.target, found.precondition)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    logsnr = e.process.snap(torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64))
    time, cond = e.process.time(logsnr).float(), Cond(torch.arange(4) % labels if labels else None)
    median = e.process.time(task.objective.logsnr(torch.tensor([0.5], dtype=torch.float64))).float()
    with torch.no_grad():
        assert torch.equal(network(x, time, cond), foreign(x, time, cond))
        untold = network(x[:1], torch.full((1,), torch.nan), cond.at(slice(1)))
        torch.testing.assert_close(untold, network(x[:1], median, cond.at(slice(1))), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(untold, network(x[:1], time[:1], cond.at(slice(1))), rtol=1e-3, atol=1e-4)
        if labels:
            assert network(x, time, Cond(torch.full((4,), -1))).isfinite().all()
            assert not torch.equal(network(x, time, Cond(torch.full((4,), -1))), network(x, time, cond))
        if found.network.null_label:
            none = Cond(torch.full((4,), -1))
            assert torch.equal(network(x, time, none), foreign(x, time, none))
    for name, tensor in state.network.state_dict().items():
        assert torch.equal(state.averages["ema-100"].tensors[name], tensor)
        assert tensor.dtype == torch.float32
    assert list(network.get_submodule(output_layer(network)).parameters()) == output_weights(network)[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_its_description_is_plain(models, family):
    """All weights and all nulls are moved by two steps with both dropouts; the resolved file reads back as it is."""
    e = parse_experiment(content(*models[family]), "tuned.yaml")
    assert parse_experiment(yaml.safe_load(dump_yaml(e)), "stored") == e
    task, state = begun(e)
    before = copy.deepcopy(state.network.state_dict())
    steps = list(train(task, state, watch_every=32))
    assert not any(step.skipped for step in steps)
    nulls = [m.null for m in state.network.modules() if isinstance(m, NullTime | NullLabel)]
    assert nulls or family in ("dit", "sit")
    names = {name for name, p in state.network.named_parameters() if p.requires_grad}
    still = {name for name in names if torch.equal(before[name], state.network.state_dict()[name])}
    assert {name for name in still if "augment" not in name} == set()


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
def test_one_step_is_that_of_a_loop_of_diffusers(predicted, tmp_path):
    """The mean square error at add_noise's states, by plain SGD on the folder's own UNet2DModel, to 1e-6."""
    scheduler = diffusers.DDPMScheduler(prediction_type=predicted)
    model = unet(tmp_path, scheduler=scheduler)
    weighting = {"kind": "simple"} if predicted == "epsilon" else {"kind": "snr_plus_one"}
    plain = {"noise_dropout": 0.0, "label_dropout": 0.0, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "images": 32}
    e = parse_experiment(
        content(model, (1, 8, 8), 10, train=plain, levels={"kind": "uniform_time"}, weighting=weighting), "tuned.yaml"
    )
    task, state = begun(e)
    batch, asked = first_of(task)
    network = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet/unet", low_cpu_mem_usage=False).train()
    times = asked.pair.time.long()
    shown = scheduler.add_noise(batch.x0, batch.noise, times)
    wanted = batch.noise if predicted == "epsilon" else scheduler.get_velocity(batch.x0, batch.noise, times)
    loss = torch.nn.functional.mse_loss(network(shown, times, batch.cond.labels).sample, wanted)
    loss.backward()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    (step,) = list(train(task, state))
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    ours = {
        name.replace(".embed.", ".").removeprefix("inner.inner."): p for name, p in state.network.named_parameters()
    }
    moved = max(float((p - before[name]).detach().abs().max()) for name, p in network.named_parameters())
    assert moved > 1e-3
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=0, atol=1e-6)


def test_one_step_is_that_of_a_loop_on_the_file_of_a_dit(models):
    """As above, on the network that the file gives by itself."""
    plain = {"noise_dropout": 0.0, "label_dropout": 0.0, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "images": 32}
    e = parse_experiment(content(*models["dit"], train=plain), "tuned.yaml")
    task, state = begun(e)
    batch, asked = first_of(task)
    network = e.train.resume_from.model.load().train()
    abar = torch.sigmoid(asked.logsnr)[:, None, None, None]
    shown = (abar.sqrt() * batch.x0 + (1 - abar).sqrt() * batch.noise).float()
    (network(shown, asked.pair.time, batch.cond) - batch.noise).square().mean().backward()
    torch.optim.SGD([p for p in network.parameters() if p.grad is not None], lr=0.1).step()
    list(train(task, state))
    ours = dict(state.network.named_parameters())
    for name, parameter in network.named_parameters():
        if name != "inner.extras.null_time":  # which no file has
            torch.testing.assert_close(ours[name], parameter, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_a_run_goes_on_without_the_model_it_began_with(theirs, tmp_path, family):  # noqa: F811
    """Stopped and resumed from its own config.yaml, the model gone, it ends at the bits of one that was not stopped;
    and is sampled with noise awareness, which changes what comes out.
    """
    model = write_models(tmp_path, theirs)[family]
    nag = {**EULER, "corrections": [{"kind": "noise_awareness", "weight": 1.0}]}
    for name, images in (("whole", 64), ("halves", 32)):
        asked = content(*model, name=name, samplers={"euler": EULER, "nag": nag}, train={"images": images})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(asked))
        snrkit(tmp_path, "train", "-q", config=f"{name}.yaml")
    kept = tmp_path / "runs/halves/config.yaml"
    shutil.rmtree(tmp_path / "unet")
    (tmp_path / "dit.pt").unlink()
    done = snrkit(tmp_path, "train", "-q", config="halves.yaml", check=False)
    assert "train.resume_from.model.path: " in done.stderr
    snrkit(tmp_path, "train", "-q", "--set", "train.images=64", config=str(kept))
    for part in ("network", "ema-100", "optimizer"):
        ends = [tmp_path / f"runs/{run}/checkpoints/000000064/{part}.safetensors" for run in ("whole", "halves")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), part
    opened = open_experiment(stored_experiment(tmp_path / "runs/halves"), WORLD)
    samples = trajectories(opened, open_model(opened, Run(tmp_path / "runs/halves")))
    plain, pushed = (next(samples.generate(opened.experiment.samplers[name], [[0, 1]])) for name in ("euler", "nag"))
    assert not torch.equal(plain.x0, pushed.x0)
    snrkit(tmp_path, "measure-shift", "-q", config=str(kept))
    snrkit(tmp_path, "report", config=str(kept))
    assert "from the weights of" in (tmp_path / "runs/halves/report.md").read_text()


def test_a_diffusers_unet_is_exported_as_it_was_trained(tmp_path):
    """The folder's weights are the run's under the names that they came with, and nothing of the nulls."""
    model = unet(tmp_path)
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(content(model, (1, 8, 8), 10)))
    snrkit(tmp_path, "train", "-q", config="tuned.yaml")
    run = tmp_path / "runs/tuned"
    snrkit(tmp_path, "export", str(run), "--average", "network", plain=True)
    made = load_file(run / "export/diffusers/unet/diffusion_pytorch_model.safetensors")
    came = load_file(tmp_path / "unet/unet/diffusion_pytorch_model.safetensors")
    assert made.keys() == came.keys()
    assert not torch.equal(made["conv_in.weight"], came["conv_in.weight"])
    ours = load_file(run / "checkpoints/000000064/network.safetensors")
    assert torch.equal(ours["inner.inner.time_embedding.embed.linear_1.weight"], made["time_embedding.linear_1.weight"])
    config = json.loads((run / "export/diffusers/unet/config.json").read_text())
    first = json.loads((tmp_path / "unet/unet/config.json").read_text())
    assert {k: v for k, v in config.items() if k[0] != "_"} == {k: v for k, v in first.items() if k[0] != "_"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": {"kind": "eps"}}, "target: has no effect, as train.resume_from.model brings its own; drop target"),
        ({"train": {"resume_from": {"model": {"kind": "diffusers", "path": "nowhere"}}}},
         "nowhere does not exist; a relative path in a YAML is one from that file"),
        ({"train": {"resume_from": {"model": {"kind": "edm", "path": "unet"}}}}, "It looks like kind: diffusers."),
        ({"train": {"resume_from": {"model": {"kind": "dit", "path": "/dev/zero"}}}}, "train.resume_from.model.path: "),
        ({"train": {"resume_from": {"model": {"kind": "diffusers"}}}},
         "train.resume_from.model (diffusers): missing key 'path'"),
        ({"train": {"resume_from": {"model": {"kind": "pickle", "path": "x"}}}}, "unknown kind 'pickle'"),
        ({"train": {"noise_dropout": 0.0}}, "(noise_awareness): needs a network trained with train.noise_dropout"),
        ({"train": {"augment": {"kind": "edm"}}}, "a network of kind adapted cannot be told of augmentation"),
        ({"compute": {"checkpointing": True}}, "compute.checkpointing: has no effect on a network of kind adapted"),
        ({"samplers": {}, "train": {"resume_from": {"model": {"kind": "diffusers", "path": "fourier/unet"}}}},
         "train.noise_dropout: a network of kind adapted cannot be asked without the level"),
        ({"train": {"resume_from": {"model": {"kind": "diffusers", "path": "unet"}, "average": "network"}}},
         "average has no effect on a model from elsewhere; drop it"),
        ({"data": {"kind": "mixture", "shape": [3, 8, 8], "count": 64, "components": 10}},
         "data: images are 3x8x8, and the model's 1x8x8"),
        ({"data": {"kind": "mixture", "shape": [1, 8, 8], "count": 64, "components": 4}},
         "data: the model has 10 labels, but mixture"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_said_in_one_sentence(tmp_path, monkeypatch, changes, said):
    """With the place in the file, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    unet(tmp_path)
    (tmp_path / "fourier").mkdir()
    unet(tmp_path / "fourier", time_embedding_type="fourier")
    nag = {**EULER, "corrections": [{"kind": "noise_awareness", "weight": 1.0}]}
    asked = content({"kind": "diffusers", "path": "unet"}, (1, 8, 8), 10, **{"samplers": {"nag": nag}, **changes})
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(asked))
    before = written(tmp_path)
    done = snrkit(tmp_path, "train", "-q", config="tuned.yaml", check=False)
    assert (done.returncode, said in done.stderr, len(done.stderr.strip().splitlines())) == (1, True, 1), done.stderr
    assert written(tmp_path) == before


def test_a_latent_model_trains_on_latents(tmp_path):
    """Images are encoded one by one, whichever come first: stopped and resumed, the weights are the same bits."""
    torch.manual_seed(0)
    for name, part in (
        ("transformer", transformer(side=4, layers=1)), ("vae", autoencoder()),
        ("scheduler", diffusers.DDIMScheduler(clip_sample=False)),
    ):  # fmt: skip
        part.save_pretrained(tmp_path / "latent" / name)
    model = {"kind": "diffusers", "path": str(tmp_path / "latent")}
    for name, images in (("whole", 64), ("halves", 32)):
        asked = content(model, (1, 8, 8), 10, name=name, data={"kind": "digits"}, train={"images": images})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(asked))
        snrkit(tmp_path, "train", "-q", config=f"{name}.yaml")
    kept = tmp_path / "runs/halves/config.yaml"
    assert yaml.safe_load(kept.read_text())["latents"]["path"] == str(tmp_path / "latent/vae")
    shutil.rmtree(tmp_path / "latent/transformer")
    snrkit(tmp_path, "train", "-q", "--set", "train.images=64", config=str(kept))
    for part in ("network", "optimizer"):
        ends = [tmp_path / f"runs/{run}/checkpoints/000000064/{part}.safetensors" for run in ("whole", "halves")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), part
    snrkit(tmp_path, "sample", "-q", config=str(kept))
    with Image.open(tmp_path / "runs/halves/samples/euler/000000/000000.png") as image:
        assert image.size == (8, 8)
    shutil.rmtree(tmp_path / "latent")
    done = snrkit(tmp_path, "sample", "-q", "--set", "sample.seeds=0-31", config=str(kept), check=False)
    assert "latents.path: " in done.stderr
    assert "does not exist" in done.stderr


def test_weights_begin_in_one_place():
    """A run's or a model's."""
    for given in ({}, {"run": "runs/x", "model": {"kind": "edm", "path": "x.pkl"}}):
        with pytest.raises(ConfigError, match=r"train.resume_from: it begins with the weights of one place; give run"):
            parse_experiment({**SMALL, "train": {**SMALL["train"], "resume_from": given}}, "tuned.yaml")


def test_another_model_at_the_path_is_refused(tmp_path):
    """A resolved file keeps what the network is: weights of another do not begin its run."""
    e = parse_experiment(content(unet(tmp_path), (1, 8, 8), 10), "tuned.yaml")
    stored = parse_experiment(yaml.safe_load(dump_yaml(e)), "stored")
    unet(tmp_path, act_fn="relu")
    with pytest.raises(ConfigError, match=r"resume_from.model: .* has another network than this file; leave out"):
        begun(stored)


UNET = {"in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}  # fmt: skip


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {**UNET, "trust": True}}, "has no trust"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {**UNET, "layers_per_block": 200}}, "more than 200"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {**UNET, "norm_num_groups": 0}}, "has this config"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {**UNET, "act_fn": "eval"}}, "has this config"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {**UNET, "in_channels": 3}}, "3 in_channels"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": UNET, "classes": 3}, "has 0 labels"),
        ({"kind": "diffusers", "name": "StableDiffusionPipeline", "config": {}}, "UNet2DModel"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {"a": {"b": 1}}}, "config"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {"a": [1] * 33}}, "config"),
        ({"kind": "diffusers", "name": "UNet2DModel", "config": {"a": 2**60}}, "config"),
        ({"kind": "dit", "patch": 3}, "patch 3 does not divide"),
        ({"kind": "adm_unet", "multipliers": [-1.0, 1e300]}, r"\w"),
        ({"kind": "song_unet", "multipliers": [0]}, "multipliers"),
        ({"kind": "edm2_unet", "blocks": 10**9}, "blocks"),
    ],
)
def test_descriptions_that_no_network_has_are_refused(inner, said):
    """While they are read, or where they are made into a network on the way to its size: one ValueError."""
    with pytest.raises(ValueError, match=said), torch.device("meta"):
        Adapted.model_validate({"shape": [1, 8, 8], "inner": inner}).make((1, 8, 8))


def test_a_network_that_no_machine_holds_is_refused_before_it_takes_memory(tmp_path):
    """As any other of an experiment, by its size."""
    e = parse_experiment(content(unet(tmp_path), (1, 8, 8), 10), "tuned.yaml")
    wide = {**e.network.inner.config, "block_out_channels": (2**20, 2**20)}
    inner = e.network.inner.model_copy(update={"config": wide})
    model = e.training.model_copy(update={"network": e.network.model_copy(update={"inner": inner})})
    with pytest.raises(ConfigError, match=r"parameters take .* make the network smaller"):
        model.check_size((1, 8, 8))
