"""The preconditioning of networks that are not to see the level where they are not told it."""

import pytest
import torch

from snrkit.base.errors import ConfigError
from snrkit.diffusion.denoiser import EdmBlindPrecondition, EdmPrecondition, NetworkDenoiser
from snrkit.diffusion.prediction import X0, Eps, FlowVelocity, V
from snrkit.diffusion.process import Edm, Flow, Vp
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.run import Run
from snrkit.training.level_samplers import UniformTime
from snrkit.training.objective import Objective
from snrkit.training.weighting import Simple
from tests.small import SMALL, load_images, snrkit, write_config

PROCESSES = {"edm": Edm(), "vp": Vp(), "flow": Flow()}
TARGETS = {"x0": X0(), "eps": Eps(), "v": V(), "flow_velocity": FlowVelocity()}
S = 0.5


class Recording:
    """A network that keeps what it is shown and answers a fixed F."""

    def __init__(self, answer):
        self.answer, self.shown = answer, []

    def __call__(self, x, time, cond):
        self.shown.append((x, time))
        return self.answer.to(x.dtype)


@pytest.fixture
def images():
    """x0 and eps (4, 1, 8, 8)."""
    draws = torch.Generator().manual_seed(0)
    return S * torch.randn(4, 1, 8, 8, generator=draws), torch.randn(4, 1, 8, 8, generator=draws)


def asked(precondition, process, target, answer, x, logsnr, **told):
    """What a network that answers F is shown, and the belief."""
    network = Recording(answer)
    denoise = NetworkDenoiser(network, process, target, precondition, S)
    return network.shown, denoise(x, process.level(torch.tensor(logsnr, dtype=torch.float64)), **told)


def test_what_is_not_told_the_level_does_not_show_it(images):
    """One state at two levels: same input and same answer of x0; EDM's preconditioning gives two of each."""
    x, answer = images
    for precondition, same in ((EdmBlindPrecondition(), True), (EdmPrecondition(), False)):
        (a,), one = asked(precondition, Edm(), X0(), answer, x, -2.0, told=None)
        (b,), two = asked(precondition, Edm(), X0(), answer, x, 3.0, told=None)
        assert torch.equal(a[0], b[0]) is same
        assert torch.equal(one.x0, two.x0) is same
        assert a[1].isnan().all()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_told_it_is_edms(process, target, images):
    """Bit for bit."""
    x, answer = images
    (a,), one = asked(EdmBlindPrecondition(), process, target, answer, x, 1.0)
    (b,), two = asked(EdmPrecondition(), process, target, answer, x, 1.0)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert torch.equal(one.x0, two.x0)


def pair_of(precondition, process, target, x0, eps, logsnr, untold):
    return Objective(process, target, precondition, UniformTime(), Simple(), S).pair(x0, eps, logsnr, untold)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_network_that_answers_what_training_asks_gives_the_images_back(process, target, images):
    """Among images that are told and not: shown in sampling what it is shown in training, and F* is read as x0."""
    x0, eps = images
    logsnr, untold = torch.tensor([-1.0, 2.0, -1.0, 2.0]).double(), torch.tensor([False, False, True, True])
    pair = pair_of(EdmBlindPrecondition(), process, target, x0, eps, logsnr, untold)
    for row in range(4):
        level, one = process.level(logsnr[row]), slice(row, row + 1)
        alpha, sigma = level.scales(x0)
        told = {"told": None} if untold[row] else {}
        shown, found = asked(
            EdmBlindPrecondition(), process, target, pair.wanted[one], alpha * x0[one] + sigma * eps[one],
            float(logsnr[row]), **told,
        )  # fmt: skip
        torch.testing.assert_close(shown[0][0], pair.x[one])
        torch.testing.assert_close(found.x0, x0[one], rtol=1e-4, atol=1e-4)


def test_told_images_of_a_batch_are_asked_as_edm_asks(images):
    """Whatever the others of the batch are told."""
    x0, eps = images
    logsnr, untold = torch.tensor([-1.0, 2.0, -1.0, 2.0]).double(), torch.tensor([False, False, True, True])
    blind = pair_of(EdmBlindPrecondition(), Edm(), X0(), x0, eps, logsnr, untold)
    edm = pair_of(EdmPrecondition(), Edm(), X0(), x0, eps, logsnr, untold)
    torch.testing.assert_close(blind.x[:2], edm.x[:2], rtol=0, atol=0)
    torch.testing.assert_close(blind.wanted[:2], edm.wanted[:2], rtol=0, atol=0)
    assert not torch.equal(blind.wanted[2:], edm.wanted[2:])
    torch.testing.assert_close(blind.wanted[2:], x0[2:])


def test_its_input_says_as_much_of_a_state_as_the_state(images):
    """The scale is one to one: states of two sizes are shown at two sizes, and never above 1."""
    x, answer = images
    sizes = []
    for factor in (0.1, 1.0, 10.0, 1000.0):
        (shown,), _ = asked(EdmBlindPrecondition(), Edm(), X0(), answer, factor * x, 0.0, told=None)
        sizes.append(shown[0].square().mean().sqrt().item())
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(1, abs=1e-3)
    assert sizes[0] == pytest.approx(0.1 * S, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": {"kind": "score"}}, "has the untold branch say the score as it is"),
        ({"train": {"balance": {}}}, r"train\.balance: it learns from losses"),
        ({"train": {"uncertainty": {}}}, r"train\.uncertainty: it learns from losses"),
    ],
    ids=["score", "balance", "uncertainty"],
)
def test_what_the_untold_branch_has_no_unit_for_is_refused(changes, said):
    """With noise dropout; without it nothing is untold."""
    content = {**SMALL, "precondition": {"kind": "edm_blind"}, **changes}
    content["train"] = {**SMALL["train"], **changes.get("train", {}), "noise_dropout": 0.1}
    with pytest.raises(ConfigError, match=said):
        parse_experiment(content, "small")
    parse_experiment({**content, "train": {**content["train"], "noise_dropout": 0.0}}, "small")


def test_training_and_guidance_by_what_is_not_told(tmp_path):
    """A run samples with noise awareness, whose weight 0 changes nothing and another weight does."""
    guided = {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "euler"}}
    rows = {
        f"w{weight}": {**guided, "corrections": [{"kind": "noise_awareness", "weight": weight}]} for weight in (0, 1)
    }
    changes = {"precondition": {"kind": "edm_blind"}, "samplers": {"plain": guided, **rows}}
    train = {**SMALL["train"], "images": 512, "noise_dropout": 0.2}
    write_config(tmp_path, **changes, train=train, sample={"seeds": "0-7", "batch": 8})
    snrkit(tmp_path, "train", "-q")
    snrkit(tmp_path, "sample", "-q")
    run = Run(tmp_path / "runs/small")
    plain, neutral, guided = (load_images(run.samples(name), range(8)) for name in ("plain", "w0", "w1"))
    assert torch.equal(plain, neutral)
    assert not torch.equal(plain, guided)
