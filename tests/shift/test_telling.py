"""What a sampler tells against what its states have, read off exactly: ours tell the truth, planted lies are found."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import snrkit
from snrkit.base.errors import SnrkitError
from snrkit.commands.audit import audited
from snrkit.diffusion.process import Ddpm, Edm, Flow, Vp
from snrkit.sampling.grid import Karras, Trailing, UniformLogsnr
from snrkit.sampling.sampler import Dummy, Sampler, open_with
from snrkit.sampling.solvers import (
    AnalyticDpm,
    Ancestral,
    Churn,
    Deis,
    Dpm2,
    Dpmpp2m,
    Dpmpp2mSde,
    Dpmpp2sAncestral,
    Dpmpp3m,
    Dpmpp3mSde,
    DpmppSde,
    Euler,
    Heun,
    Ipndm,
    IpndmV,
    Unipc,
)
from snrkit.shift.telling import Telling, Walked, walk

PROCESSES = {"ddpm": Ddpm(), "ddpm-ve": Ddpm(scaling="ve"), "edm": Edm(), "flow": Flow(), "vp": Vp()}
SOLVERS = [
    AnalyticDpm(), Ancestral(), Ancestral(eta=0.5), Churn(s_noise=1.0, s_min=0.0, s_max=10.0), Dpmpp2m(), Dpmpp3m(),
    Deis(), Dpm2(), Dpmpp2mSde(eta=0.5), Dpmpp2sAncestral(), Dpmpp3mSde(), DpmppSde(), Euler(), Heun(), Ipndm(),
    IpndmV(), Unipc(),
]  # fmt: skip
TWICE = ("churn", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde", "heun")  # evaluations in all steps but the last


def walked(process, solver, grid):
    """The audit of a sampler."""
    sampler = Sampler(grid=grid, solver=solver)
    return walk("mine", open_with(sampler, process, Dummy(process)), process)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
@pytest.mark.parametrize("name", PROCESSES)
def test_our_samplers_tell_the_level_that_their_states_have(name, solver):
    """Every call of every solver, in every scaling, to 5e-5 nats, by which float32 rounds the clock of vp."""
    found = walked(PROCESSES[name], solver, UniformLogsnr(steps=8))
    assert len(found.calls) == (15 if solver.kind in TWICE else 8)
    assert max(abs(call.difference) for call in found.calls) < 5e-5
    assert max(abs(call.scale) for call in found.calls) < 1e-6
    assert found.beyond(0.01) == [] or found.begun < -0.01
    assert found.end == math.inf


def test_noise_that_is_inflated_is_found():
    """EDM's s_noise adds more noise than its level says, by as much as the algebra has it."""
    more = 1.1
    found = walked(Edm(), Churn(s_churn=4.0, s_noise=more, s_min=0.0, s_max=None), Karras(steps=4))
    first, gamma = found.calls[0], min(4.0 / 4, math.sqrt(2) - 1)
    raised = (1 + gamma) ** 2
    assert first.difference == pytest.approx(-math.log((1 + more**2 * (raised - 1)) / raised), abs=1e-6)


def test_a_first_state_without_image_is_compared_by_its_noise():
    """A vp grid that begins at logsnr -2 begins with ln(1 + e^-2) nats too much noise."""
    found = walked(Vp(), Euler(), UniformLogsnr(steps=4, logsnr_min=-2.0))
    assert found.begun == pytest.approx(-math.log1p(math.exp(-2)), abs=1e-9)
    assert len(found.beyond(0.01)) == 1


def test_words_say_which_call():
    """One sentence for each kind of fault, of the farthest call."""
    found = walked(Edm(), Churn(s_churn=4.0, s_noise=1.1, s_min=0.0, s_max=None), Karras(steps=4))
    (words,) = found.beyond(0.01)
    assert "calls tell another level than the state's" in words
    assert "to the noisy side of the level told" in words


@pytest.mark.parametrize("field", ["difference", "scale"])
def test_calls_that_cannot_be_read_are_no_proof(field):
    """A NaN among the readings is said with its place, at any tolerance, and is the farthest."""
    fine = Telling(1.0, 0.0, 0.0, 0.0, 0.0)
    calls = (fine, replace(fine, **{field: math.nan}), fine)
    found = Walked("mine", 3, 0.0, calls, math.inf)
    (words,) = found.beyond(100.0)
    assert "1 of 3 calls cannot be read" in words
    assert "the first is call 2" in words
    assert math.isnan(found.worst) == (field == "difference")
    assert Walked("mine", 3, 0.0, (fine,), math.inf).beyond(0.01) == []


def test_a_beginning_that_cannot_be_read_is_said():
    """As the first level told is NaN."""
    (words,) = Walked("mine", 1, math.nan, (Telling(1.0, 0.0, 0.0, 0.0, 0.0),), 0.0).beyond(0.01)
    assert words == "begins with noise whose level cannot be read"


def pairs(process, count=4000, **lies):
    """Batches of a training loop that tells the level it makes, but for what `lies` change."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        x0 = torch.randn(count // 4, 1, 4, 4, generator=rng) * 0.5
        time = lies.get("draw", torch.rand)(count // 4, generator=rng)
        level = process.level(process.logsnr(lies.get("stands", lambda t: t)(time)))
        alpha, sigma = level.scales(x0)
        noise = torch.randn(x0.shape, generator=rng)
        yield x0, alpha * x0 + sigma * noise, time


def test_an_honest_training_loop_is_believed():
    """No bin's interval lies beyond the tolerance, on a table and on a flow."""
    table = Ddpm()
    found = snrkit.audit(pairs(Flow()), Flow())
    assert found.beyond() == []
    assert "have the level that is told" in found.verdict
    told = snrkit.audit(
        pairs(table, draw=lambda n, generator: torch.randint(0, 1000, (n,), generator=generator)), table
    )
    assert told.beyond() == []
    assert told.pairs == 4000


@pytest.mark.parametrize("shift", [3.0, 0.5])
def test_a_loop_that_shifts_and_tells_the_unshifted_time_is_found(shift):
    """By -2 ln shift nats, at every level."""
    found = snrkit.audit(pairs(Flow(), stands=lambda t: shift * t / (1 + (shift - 1) * t)), Flow(), bins=5)
    off = -2 * math.log(shift)
    assert found.difference.value[1:-1] == pytest.approx([off] * 3, abs=0.1)
    assert found.beyond() == [0, 1, 2, 3, 4]
    assert "have another level than is told" in found.verdict


def test_pairs_that_tell_no_level_are_left_out():
    """NaN, as noise dropout tells it, the clean image's time, and that of pure noise, which shows no alpha."""
    batch = next(pairs(Flow()))
    batch[2][:10] = torch.nan
    batch[2][10] = 0.0
    batch[2][11] = 1.0
    found = snrkit.audit([batch], Flow())
    assert (found.pairs, found.untold) == (988, 12)
    assert all(map(math.isfinite, found.logsnr))


@pytest.mark.parametrize(("share", "said"), [(0.62, True), (0.05, False)])
def test_a_loop_that_tells_nothing_to_many_pairs_is_said(share, said):
    """NaN to 62 % of them; a twentieth, as dropout of levels has it, is not worth a word."""

    def dropped(batch):
        batch[2][: int(share * len(batch[2]))] = torch.nan
        return batch

    found = snrkit.audit(map(dropped, pairs(Flow())), Flow())
    assert ("2480 of 4000 pairs tell no level" in found.verdict) == said
    assert ("tell no level" in found.verdict) == said
    assert found.verdict.startswith("Training pairs have the level that is told")


def test_noise_dropout_on_a_table_is_left_out_too():
    """A time of NaN tells no level of any process."""
    table = Ddpm()
    batch = next(pairs(table, draw=lambda n, generator: 999 * torch.rand(n, generator=generator)))
    batch[2][:10] = torch.nan
    found = snrkit.audit([batch], table)
    assert (found.pairs, found.untold) == (990, 10)


def test_images_without_content_are_no_proof_of_a_level():
    """Of pairs whose images are 0 everywhere nothing is said, and not that they have the level that is told."""
    batch = next(pairs(Flow()))
    found = snrkit.audit([(torch.zeros_like(batch[0]), batch[1], batch[2])], Flow())
    assert found.unread == len(found.logsnr)
    assert "show no level" in found.verdict
    said = audited("mine", 0.01, (), None, found).beyond
    assert said == ("training pairs show no level in 10 of 10 bins, where nothing is compared with what is told",)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "there are no pairs"),
        ([(torch.zeros(4, 2), torch.zeros(4, 2))], "three tensors"),
        ([(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4))], r"are \(4, 2\), \(4, 3\), \(4,\)"),
        ([(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 1))], r"\(B,\)"),
        ([(torch.zeros(4, 2), torch.full((4, 2), torch.inf), torch.ones(4) / 2)], "not finite"),
        ([(torch.zeros(4, 2), torch.zeros(4, 2), torch.ones(4) / 2)], "4 pairs tell a level, and 10 bins take 200"),
    ],
)
def test_pairs_that_cannot_be_read_are_refused(batches, said):
    """In one sentence."""
    with pytest.raises(SnrkitError, match=said):
        snrkit.audit(batches, Flow())


def test_too_few_resamples_for_all_bins_are_refused():
    """Ten intervals that hold together at 95 % take 400 resamples."""
    with pytest.raises(SnrkitError, match="give 400 at least"):
        snrkit.audit(pairs(Flow()), Flow(), bootstrap=100)


def test_a_grid_of_the_table_starts_as_published():
    """The noise of a DDPM table's last level is short of 1 by the image that is left in it."""
    found = walked(Ddpm(), Euler(), Trailing(steps=4))
    assert found.begun == pytest.approx(-4.0e-5, abs=1e-6)


def test_the_page_s_loop_is_found(capsys):
    """As it is written, with a loader of one's own: a shift of 3 that is not told."""
    page = (Path(__file__).parents[2] / "docs/python.md").read_text()
    code = page.split("asks the same of a training loop")[1].split("```python\n")[1].split("```")[0]
    torch.manual_seed(0)
    names = {"loader": [torch.randn(64, 1, 8, 8) * 0.5 for _ in range(100)]}
    exec(code, names)
    assert capsys.readouterr().out.startswith("Training pairs have another level than is told in 10 of 10 bins")
    assert names["found"].difference.value[5] == pytest.approx(-2 * math.log(3), abs=0.05)
