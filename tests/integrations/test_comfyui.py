"""The nodes for ComfyUI, on a stub of the hooks that they use: step for step what snrkit's own sampler makes.

The stub follows ComfyUI's source: the sampler `euler` of its k_diffusion, what its guidance hands to functions after
it and to the wrapper of the network, and how models of eps, v and flow turn outputs into images. ComfyUI itself is not
installed here.
"""

import importlib.util
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from snrkit.base.wavelet import low_part
from snrkit.diffusion.prediction import Cond, Eps, FlowVelocity, Prediction, V, Wrapped
from snrkit.diffusion.process import Ddpm, Flow
from snrkit.sampling.corrections import ClassifierFreeGuidance, Dcw, EpsilonScaling, Gain, TimeShift
from snrkit.sampling.grid import Listed
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Euler, Fitted
from snrkit.sampling.step import GivenFit

FILE = Path(__file__).parents[2] / "integrations/comfyui/snrkit_nodes.py"
SHAPE = (3, 2, 5, 4)  # an odd side


@pytest.fixture(scope="module")
def nodes():
    """The one file, imported as ComfyUI imports it: by its path."""
    spec = importlib.util.spec_from_file_location("snrkit_nodes", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EPS:
    """x = x0 + sigma noise; the network is shown x / sqrt(1 + sigma^2)."""

    def denoised(self, sigma, output, x):
        return x - output * sigma


class V_PREDICTION(EPS):
    def denoised(self, sigma, output, x):
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5


class CONST:
    """x = (1 - sigma) x0 + sigma noise."""

    def denoised(self, sigma, output, x):
        return x - output * sigma


class Discrete:
    """Of a table."""


class Patcher:
    """A model with hooks, as ComfyUI's ModelPatcher has them."""

    def __init__(self, kind, network, options=None):
        bases = (kind,) if kind in (CONST, Discrete) else (Discrete, kind)
        self.kind, self.network, self.sampling = kind, network, type("ModelSampling", bases, {})()
        self.model_options = options or {"transformer_options": {}}

    def clone(self):
        return Patcher(self.kind, self.network, {**self.model_options})

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self.sampling

    def set_model_sampler_post_cfg_function(self, function):
        before = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*before, function]

    def set_model_unet_function_wrapper(self, function):
        self.model_options["model_function_wrapper"] = function

    def apply_model(self, x, sigma, transformer_options, label):
        """The image: of the network's output at the level that it is told."""
        s = sigma.view(-1, 1, 1, 1)
        shown = x if self.kind is CONST else x / (1 + s**2) ** 0.5
        return self.sampling.denoised(s, self.network(shown, sigma, label), x)

    def guided(self, x, sigma, scale, options):
        said = []
        for label in (0, -1) if scale != 1 else (0,):
            known = {"transformer_options": options["transformer_options"], "label": label}
            wrapper = options.get("model_function_wrapper")
            if wrapper is None:
                said.append(self.apply_model(x, sigma, **known))
            else:
                said.append(wrapper(self.apply_model, {"input": x, "timestep": sigma, "c": known}))
        found = said[0] if scale == 1 else said[1] + (said[0] - said[1]) * scale
        for function in options.get("sampler_post_cfg_function", []):
            found = function({"denoised": found, "input": x, "sigma": sigma, "model_options": options})
        return found

    def euler(self, x, sigmas, scale=1.0):
        """All states of the sampler euler."""
        options = {**self.model_options, "transformer_options": {"sample_sigmas": sigmas}}
        states = [x]
        for here, there in pairwise(sigmas):
            denoised = self.guided(x, here * torch.ones(len(x), dtype=x.dtype), scale, options)
            x = x + (x - denoised) / here * (there - here)
            states.append(x)
        return states


def network(x, time, label):
    """Any output that depends on all that it is given."""
    return torch.tanh(1.3 * x + 0.2 * time.view(-1, 1, 1, 1).log1p() + 0.3 * (label + 1)) - 0.4 * x


PROCESSES = {EPS: Ddpm(), V_PREDICTION: Ddpm(), CONST: Flow()}
TARGETS = {EPS: Eps(), V_PREDICTION: V(), CONST: FlowVelocity()}
KINDS = pytest.mark.parametrize("kind", [EPS, V_PREDICTION, CONST], ids=["eps", "v", "flow"])


def sigma_of(kind, level):
    """ComfyUI's name of a level."""
    return level.sigma / level.alpha if kind is not CONST else level.sigma


def ours(kind):
    """The same model for snrkit: its network is told what ComfyUI's is, its state is in snrkit's scaling."""
    process = PROCESSES[kind]

    def answer(x, level, told, cond):
        known = level if told is None or not hasattr(told, "logsnr") else told
        sigma = sigma_of(kind, known).expand(len(x))
        label = 0 if cond is None or cond.labels is None else cond.labels.double().view(-1, 1, 1, 1)
        a, b = (part.view(-1, 1, 1, 1) if part.ndim else part for part in TARGETS[kind].direction(known))
        y, alpha, size = network(x, sigma, label), known.alpha.view(-1, 1, 1, 1), known.sigma.view(-1, 1, 1, 1)
        x0 = (size * y - b * x) / (a * size - b * alpha)
        return Prediction(x0, (x - alpha * x0) / size)

    return Wrapped(process, answer)


LEVELS = {
    EPS: (-4.0, -2.5, -0.5, 1.0, 3.0),
    V_PREDICTION: (-4.0, -2.0, 0.0, 2.0, 4.0),
    CONST: (-5.0, -2.0, 0.0, 2.0, 5.0),
}


def both(kind, corrections, model, scale=1.0, solver=None, fit=None):
    """(snrkit's states, ComfyUI's turned into snrkit's scaling), in float64, from the same first state."""
    process = PROCESSES[kind]
    sampler = Sampler(grid=Listed(logsnr=LEVELS[kind]), solver=solver or Euler(), corrections=corrections)
    levels = sampler.grid.levels(process)
    opened = sampler.solver if fit is None else sampler.solver.with_fit(fit)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = Cond(labels=torch.zeros(len(x), dtype=torch.int64))
    walk = sample(ours(kind), opened, levels, x, corrections=list(corrections), cond=cond)
    mine = [step.x_next for step in walk]
    sigmas = torch.stack([sigma_of(kind, level) for level in levels])
    unit = [1.0 if kind is CONST else float(level.alpha) for level in levels]
    theirs = model.euler(x / unit[0], sigmas, scale)
    return mine, [state * u for state, u in zip(theirs[1:], unit[1:], strict=True)]


def agree(pair):
    for mine, theirs in zip(*pair, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-9)


@KINDS
def test_the_stub_is_the_sampler(kind):
    """Without any node, and guided: otherwise nothing below says anything."""
    agree(both(kind, (), Patcher(kind, network)))
    agree(both(kind, (ClassifierFreeGuidance(weight=1.5),), Patcher(kind, network), scale=2.5))


@KINDS
@pytest.mark.parametrize("options", [{"pixel": 0.07}, {"low": 0.1, "high": -0.05}, {"low": 0.1}], ids=str)
def test_dcw_is_snrkit_s(nodes, kind, options):
    """In each scaling, with guidance beside it."""
    (model,) = nodes.SnrkitDcw().patch(Patcher(kind, network), **{"pixel": 0, "low": 0, "high": 0, **options})
    agree(both(kind, (Dcw(**options),), model))
    agree(both(kind, (ClassifierFreeGuidance(weight=1.0), Dcw(**options)), model, scale=2.0))


@KINDS
def test_epsilon_scaling_is_snrkit_s(nodes, kind):
    """Of flow models, too, where dividing x - x0 is another thing."""
    (model,) = nodes.SnrkitEpsilonScaling().patch(Patcher(kind, network), 1.03)
    mine, theirs = both(kind, (EpsilonScaling(scale=1.03),), model)
    agree((mine, theirs))
    plain = both(kind, (), model)[0]
    assert float((plain[-1] - mine[-1]).abs().max()) > 1e-3


@KINDS
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_time_shift_is_snrkit_s(nodes, kind, variant):
    """The level that is told, and the one that a step aims at."""
    (model,) = nodes.SnrkitTimeShift().patch(Patcher(kind, network), variant, 0.4, 0.0)
    agree(both(kind, (TimeShift(variant=variant, unit="nats", window=0.4),), model))


def certificate(tmp_path, sampler, process, rows=None, changes=None):
    """A file with the parts of a certificate that the node reads."""
    levels = sampler.grid.levels(process)
    recipe = {"definition": sampler.model_dump(mode="json"), "fit": None if rows is None else {"rows": rows}}
    path = tmp_path / "certificate.json"
    logsnr = [float(level.logsnr) for level in levels[:-1]]
    path.write_text(json.dumps({"recipe": recipe, "logsnr": [None if math.isinf(v) else v for v in logsnr]}))
    return path


@KINDS
@pytest.mark.parametrize("bands", ["none", "haar"])
def test_a_certificate_of_fitted_steps_is_its_recipe(nodes, tmp_path, kind, bands):
    """With their history, by band and without, at its own levels and guidance; twice over, as a queue would."""
    solver, corrections = Fitted(base=Euler(), history=2, bands=bands), (ClassifierFreeGuidance(weight=0.5),)
    sampler = Sampler(grid=Listed(logsnr=LEVELS[kind]), solver=solver, corrections=corrections)
    draws = torch.Generator().manual_seed(1)
    rows = (0.05 * torch.randn(len(LEVELS[kind]), solver.terms, generator=draws, dtype=torch.float64)).tolist()
    path = certificate(tmp_path, sampler, PROCESSES[kind], rows)
    model, sigmas, cfg = nodes.SnrkitCertificate().patch(Patcher(kind, network), str(path))
    assert cfg == 1.5
    expected = torch.stack([sigma_of(kind, level) for level in sampler.grid.levels(PROCESSES[kind])])
    torch.testing.assert_close(sigmas.double(), expected, rtol=1e-6, atol=1e-6)
    fit = GivenFit(tuple(map(tuple, rows)))
    for _ in range(2):
        agree(both(kind, corrections, model, scale=cfg, solver=solver, fit=fit))


@KINDS
def test_a_certificate_of_corrections_is_its_recipe(nodes, tmp_path, kind):
    """Those that are listed, in their order."""
    corrections = (EpsilonScaling(scale=1.01), Gain(gain=0.01), Dcw(low=0.02))
    sampler = Sampler(grid=Listed(logsnr=LEVELS[kind]), solver=Euler(), corrections=corrections)
    path = certificate(tmp_path, sampler, PROCESSES[kind])
    model, _, cfg = nodes.SnrkitCertificate().patch(Patcher(kind, network), str(path))
    assert cfg == 1
    agree(both(kind, corrections, model))


def test_neutral_nodes_leave_the_model_alone(nodes):
    """It is the same object, so that no bit can change."""
    model = Patcher(EPS, network)
    assert nodes.SnrkitDcw().patch(model, 0, 0, 0) == (model,)
    assert nodes.SnrkitEpsilonScaling().patch(model, 1) == (model,)
    assert nodes.SnrkitTimeShift().patch(model, "paper", 0, 0) == (model,)


def test_haar_s_low_band_is_pywavelets(nodes):
    """Odd sides, too."""
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(nodes.haar_low(x), low_part(x))


def test_what_cannot_be_done_is_said(nodes, tmp_path):
    """Another sampler's levels, another solver, an option that is not known, a model of another kind."""
    (model,) = nodes.SnrkitDcw().patch(Patcher(EPS, network), 0.1, 0, 0)
    options = {**model.model_options, "transformer_options": {"sample_sigmas": torch.tensor([2.0, 1.0, 0.0])}}
    with pytest.raises(ValueError, match="not the schedule's; use the sampler euler"):
        model.guided(torch.randn(SHAPE), torch.full((3,), 1.4), 1.0, options)
    heun = Sampler(grid=Listed(logsnr=(-2.0, 0.0)), solver={"kind": "heun"})
    with pytest.raises(ValueError, match="solver is heun"):
        nodes.SnrkitCertificate().patch(Patcher(EPS, network), str(certificate(tmp_path, heun, Ddpm())))
    for unknown in (Dcw(low=0.1, wavelet="db2"), Dcw(low=0.1, state="before")):
        shaped = Sampler(grid=Listed(logsnr=(-2.0, 0.0)), solver=Euler(), corrections=(unknown,))
        with pytest.raises(ValueError, match="does not know the recipe's dcw"):
            nodes.SnrkitCertificate().patch(Patcher(EPS, network), str(certificate(tmp_path, shaped, Ddpm())))
    sampler = Sampler(grid=Listed(logsnr=LEVELS[EPS]), solver=Euler(), corrections=(Gain(gain=0.1),))
    path = certificate(tmp_path, sampler, PROCESSES[EPS])
    (model, sigmas, _), further = nodes.SnrkitCertificate().patch(Patcher(EPS, network), str(path)), torch.ones(1)
    for others in (sigmas[1:], torch.cat([further * 2 * sigmas[0], sigmas]), torch.cat([sigmas[:1], sigmas[1:] / 2])):
        options = {**model.model_options, "transformer_options": {"sample_sigmas": others}}
        with pytest.raises(ValueError, match="recipe is of other sigmas"):
            model.guided(torch.randn(SHAPE), others[:1].expand(3), 1.0, options)
    with pytest.raises(ValueError, match="are not known"):
        nodes.SnrkitDcw().patch(Patcher(Discrete, network), 0.1, 0, 0)
