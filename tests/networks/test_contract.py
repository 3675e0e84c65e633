"""What a network owes: next to nothing. A toy that knows `forward(x, time, cond)` alone goes through every command."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.commands.analyze import data_spectrum
from snrkit.commands.analyze_run import analyze_run
from snrkit.commands.dry_run import plan
from snrkit.commands.eval_fid import run_scoring
from snrkit.commands.measure_shift import run_measuring
from snrkit.commands.sample import run_sampling
from snrkit.commands.train import run_training
from snrkit.diffusion.prediction import Cond
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.models import TrainedHere
from snrkit.experiment.opening import open_experiment, open_model
from snrkit.experiment.yaml_files import apply_settings
from snrkit.networks import AnyNetwork, Conditioning, Dit, Mlp, NetworkValue, UNet, make_network, output_layer
from snrkit.networks.foreign import Foreign
from snrkit.networks.modules import Checkpointed, output_weights
from snrkit.reports.run_report import write_report
from snrkit.training.clipping import Adaptive, AdaptiveLayer, AnyClip, Groups, clip, remark
from snrkit.training.train import make_state, train
from tests.opened import open_network, open_task
from tests.small import SMALL
from tests.toys import member

WORLD = World(0, 1, torch.device("cpu"))


class ToyModule(nn.Module):
    """Two convolutions that read the time as one more channel, and cannot do without it."""

    def __init__(self, shape, width):
        super().__init__()
        self.inner = nn.Conv2d(shape[0] + 1, width, 3, padding=1)
        self.outer = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, x, time, cond=None):
        if time.isnan().any():
            raise ValueError("no level")
        clock = time[:, None, None, None].expand(-1, 1, *x.shape[2:])
        h = functional.silu(self.inner(torch.cat([x, clock], 1)))
        return self.outer(functional.dropout(h, 0.1, self.training))


class Toy(NetworkValue):
    """The toy's Value."""

    kind: Literal["toy"] = "toy"
    width: int = Field(default=8, ge=1)

    def make(self, shape):
        return ToyModule(shape, self.width)


class TellableModule(ToyModule):
    """The same, given labels and the augmentation, and with no answer to either being absent."""

    def __init__(self, shape, value):
        super().__init__(shape, value.width)
        self.labels, self.augment = nn.Embedding(value.classes, 64), nn.Linear(9, 64)

    def forward(self, x, time, cond=None):
        told = self.labels(cond.labels) + self.augment(cond.augment)
        return super().forward(x + told.reshape(-1, 1, 8, 8), time)


class Tellable(Toy):
    """Its Value: two options more, and nothing else."""

    kind: Literal["tellable"] = "tellable"
    classes: int = 0
    augment: bool = False

    def make(self, shape):
        return TellableModule(shape, self)


PLAIN = {**SMALL["train"], "images": 640, "label_dropout": 0.0, "noise_dropout": 0.0, "augment": None}
SAMPLERS = {
    "euler": SMALL["samplers"]["euler"],
    "analytic": {
        "grid": {"kind": "karras", "steps": 4},
        "solver": {"kind": "analytic_dpm"},
    },  # looks at training images
}
TOY = {**SMALL, "network": {"kind": "toy"}, "train": PLAIN, "samplers": SAMPLERS}
TOLD = {
    **TOY,
    "network": {"kind": "tellable", "classes": 4, "augment": True},
    "train": {**PLAIN, "augment": {"kind": "edm"}},
}
RULES = [rule(norms={"inner": 0.1}) if rule is Groups else rule() for rule in get_args(get_args(AnyClip)[0])]
MEMBERS = {
    "unet": UNet(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        groups=4,
        attention=(4,),
        head_channels=8,
        classes=4,
        augment=True,
        dropout=0.2,
    ),
    "dit": Dit(dim=16, depth=1, heads=2, classes=4, augment=True),
    "mlp": Mlp(dim=16, depth=1, classes=4, augment=True),
}


@pytest.fixture(autouse=True)
def _with_toys():
    with member(TrainedHere, "network", Toy), member(TrainedHere, "network", Tellable):
        yield


def parse(content, *settings):
    return parse_experiment(apply_settings(content, settings), "toy.yaml")


def opened_state(content):
    opened = open_experiment(parse(content), WORLD)
    task = open_task(opened)
    return task, make_state(task, open_network(opened))


@pytest.mark.parametrize("content", [TOY, TOLD], ids=["toy", "tellable"])
def test_a_network_that_knows_forward_alone_goes_through_every_command(tmp_path, caplog, content):
    """Trained, dissected, sampled, measured, scored, reported; what it has an option for it finds in `cond` always."""
    e = parse(content, "train.clip={kind: agc}")
    assert "parameters: " in plan(e, WORLD)
    run = run_training(e, tmp_path, WORLD, quiet=True)
    assert "agc bounds every layer" in caplog.text
    opened = open_experiment(e, WORLD)
    found = analyze_run(opened.experiment, opened.setting, open_model(opened, run), data_spectrum(opened.data))
    charts = {chart.name: chart for group in found.charts.values() for chart in group}
    assert {"run-error", "run-gradients", "run-gsnr"} <= charts.keys()
    assert "run-accuracy" not in charts  # made without the label, which this network has no answer to
    last = {"toy": "outer", "tellable": "augment"}[e.network.kind]
    assert f"layer {last}, the last made" in charts["run-gradients"].title
    assert all(bool((values > 0).all()) for _, values in charts["run-gradients"].curves.values())
    run_sampling(e, tmp_path, WORLD, quiet=True)
    shifts = run_measuring(e, tmp_path, WORLD, quiet=True)
    scores = run_scoring(e, tmp_path, WORLD, quiet=True)
    assert set(shifts) == set(scores) == set(SAMPLERS)
    page, _ = write_report(run, e)
    assert e.network.kind in Path(page).read_text()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_every_clip_rule_takes_a_network_without_a_named_output(rule):
    """Two steps by each rule; those that spare the output layer say that there is none to spare."""
    task, state = opened_state({**TOY, "train": {**PLAIN, "clip": rule.model_dump(), "images": 128}})
    before = copy.deepcopy(state.network.state_dict())
    steps = list(train(task, state, watch_every=64))
    assert not any(step.skipped for step in steps)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())
    assert (remark(rule, state.network) is not None) == isinstance(rule, Adaptive | AdaptiveLayer)


def test_what_a_silent_network_draws_is_drawn_again_after_a_restart():
    """The toy's Value tells nobody of its dropout: torch's generator is set by step all the same."""
    found = []
    for stops in ((4,), (2, 4)):
        task, state = opened_state({**TOY, "train": {**PLAIN, "images": 256}})
        for stop in stops:
            torch.manual_seed(stop + len(stops))
            for step in train(task, state):
                if step.step == stop:
                    break
        found.append(state.network.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize(
    ("content", "setting", "words"),
    [
        (TOY, "network.classes=4", "network (toy): unknown key 'classes'. Known keys: kind, width"),
        (TOY, "network.scalars=[logsnr_noisy, logsnr_clean]", "network (toy): unknown key 'scalars'"),
        (TOY, "train.label_dropout=0.1", "train.label_dropout: has no effect without labels; a network of kind toy"),
        (TOLD, "train.label_dropout=0.1", "train.label_dropout: a network of kind tellable cannot be asked without"),
        (TOY, "train.noise_dropout=0.1", "train.noise_dropout: a network of kind toy cannot be asked without the"),
        (TOY, "train.augment={kind: edm}", "train.augment: a network of kind toy cannot be told of augmentation"),
        (TOLD, "train.augment=null", "train.augment: needs network.augment: true, and the other way round"),
        (TOY, "compute.checkpointing=true", "compute.checkpointing: has no effect on a network of kind toy"),
        (TOY, "sample.labels=1", "sample.labels: 1 is not below network.classes = 0"),
        (TOY, "samplers.euler.corrections=[{kind: cfg, weight: 1}]", "needs a network with classes"),
        (TOLD, "samplers.euler.corrections=[{kind: cfg, weight: 1}]", "needs a network with classes trained with"),
        (TOY, "samplers.euler.corrections=[{kind: noise_awareness, weight: 1}]", "trained with train.noise_dropout"),
        (TOY, "samplers.euler.grid={kind: spectral, steps: 4, scope: class}", "needs a network with classes"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_do_is_refused_in_a_sentence(content, setting, words):
    """While the configuration is read, and by one line."""
    with pytest.raises(ConfigError) as error:
        parse(content, setting)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_trained_model_is_not_asked_what_its_network_has_no_answer_to():
    """Even where training dropped what it is to do without; a network that answers is asked then, and only then."""
    for content, name in ((TOY, "toy"), (TOLD, "tellable"), (SMALL, "unet")):
        e = parse(content)
        dropped, kept = (
            e.training.model_copy(
                update={"train": e.train.model_copy(update={"label_dropout": share, "noise_dropout": share})}
            ).parts.capabilities
            for share in (0.1, 0.0)
        )
        asked = dropped
        assert (asked.labels, asked.unlabelled, asked.untold) == (name != "toy", name == "unet", name == "unet")
        assert (kept.unlabelled, kept.untold) == (False, False)


def test_a_network_from_elsewhere_says_what_it_takes():
    """As it was read; it is loaded, and so no member of the union of those that are made."""
    value = Foreign(shape=(1, 8, 8), classes=3, null_label=True)
    assert value.conditioning == Conditioning(classes=3, unlabelled=True)
    assert Foreign not in get_args(get_args(AnyNetwork)[0])


@pytest.mark.parametrize("kind", [kind.model_fields["kind"].default for kind in get_args(get_args(AnyNetwork)[0])])
def test_every_network_of_the_union_answers_the_protocol_and_trains(kind):
    """What its Value says is so: options, null label and null time, blocks, chance, the layer that gives the output."""
    assert kind in MEMBERS, "a new kind needs an example in MEMBERS"
    value = MEMBERS[kind]
    network = make_network(value, (1, 8, 8), 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    assert value.conditioning == Conditioning(4, (), True, unlabelled=True, untold=True, attends=value.attends)
    assert value.model_copy(update={"scalars": ("a", "b")}).conditioning.scalars == ("a", "b")
    assert value.blockwise == any(isinstance(module, Checkpointed) for module in network.modules())
    x, time = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), torch.tensor([0.5, torch.nan, 0.5])
    cond = Cond(torch.tensor([1, 1, -1]), None, value.conditioning.unaugmented(3))
    with torch.no_grad():
        passes = [network(x, time, cond) for _ in range(2)]
        out = network.eval()(x, time, cond)
        alone = network(x, time, replace(cond, alone="all"))
    assert torch.equal(alone, out) == (not value.attends)
    assert torch.equal(*passes) == (not value.stochastic)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert not torch.allclose(out[0], out[1], atol=1e-4)
    assert not torch.allclose(out[0], out[2], atol=1e-4)
    assert list(network.get_submodule(output_layer(network)).parameters()) == output_weights(network)[1]
    task, state = opened_state({**SMALL, "network": value.model_dump()})
    before = copy.deepcopy(state.network.state_dict())
    assert not next(iter(train(task, state))).skipped
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())


@pytest.mark.parametrize("rule", [Adaptive(ratio=1e-3), AdaptiveLayer(ratio=1e-3)], ids=lambda rule: rule.kind)
def test_a_network_may_name_its_output_layer_or_have_one_of_that_name(rule):
    """AGC spares it either way, also where there is nothing else; a name that no layer has is refused."""
    named, held, alone = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Module(), nn.Module())
    named.output, held.first, held.output, alone.output = "1", nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(3, 2)
    for network, spared in ((named, "1"), (held, "output"), (alone, "output")):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
        found = clip(rule, network)
        whole = [name for name, p in network.named_parameters() if bool((p.grad == 1e3).all())]
        assert whole == [f"{spared}.weight", f"{spared}.bias"]
        assert output_weights(network)[0] == spared
        assert found.cut == (network is not alone)
        assert found.after == pytest.approx(1e3 * 8**0.5, rel=1e-5)
        assert remark(rule, network) is None
    named.output = "2"
    with pytest.raises(ConfigError, match="no layer with weights has that name"):
        clip(rule, named)


def test_networks_that_no_checkpoint_can_hold_or_that_answer_in_another_shape_are_refused(monkeypatch, tmp_path):
    """Before a step is made: two names for one tensor, and fewer channels than the states have."""
    make, whole = Toy.make, ToyModule.forward

    def tied(self, shape):
        network = make(self, shape)
        network.twin = nn.Conv2d(8, 1, 3)
        network.twin.weight = network.outer.weight
        return network

    monkeypatch.setattr(Toy, "make", tied)
    with pytest.raises(ConfigError, match=r"outer.weight and twin.weight share their memory"):
        run_training(parse(TOY), tmp_path, WORLD, quiet=True)
    monkeypatch.setattr(Toy, "make", make)
    monkeypatch.setattr(ToyModule, "forward", lambda self, x, time, cond=None: whole(self, x, time)[:, :, :4])
    with pytest.raises(ConfigError, match=r"it answers \(2, 1, 4, 8\) to states of \(2, 1, 8, 8\)"):
        run_training(parse(TOY), tmp_path, WORLD, quiet=True)
    assert not list(tmp_path.iterdir())
