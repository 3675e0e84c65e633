"""A user's own network as a denoiser."""

from pathlib import Path

import pytest
import torch

import snrkit
from snrkit.base.errors import SnrkitError
from snrkit.diffusion.denoiser import EdmPrecondition
from snrkit.diffusion.prediction import X0, Cond, FlowVelocity
from snrkit.diffusion.process import Edm, Flow
from snrkit.sampling.corrections import Dcw, NoiseAwareness
from snrkit.sampling.grid import Karras, UniformTime
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Euler
from tests.small import drawing


def velocity(x, t):
    """The exact flow velocity of N(0, 0.25) data."""
    t = t[:, None].double()
    total = 0.25 * (1 - t) ** 2 + t**2
    return ((t - 0.25 * (1 - t)) / total * x.double()).float()


def test_a_flow_network_samples_its_data():
    """Three lines, and the images have the data's spread."""
    denoise = snrkit.wrap(velocity, Flow(), FlowVelocity())
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, last = sample(denoise, Euler(), UniformTime(steps=200).levels(denoise.process), noise)
    assert float(last.x_next.std()) == pytest.approx(0.5, abs=0.01)


def test_labels_precondition_and_corrections_reach_it():
    """Labels as a third argument; EDM's scales around it; a correction acts on what it says."""
    seen = []

    def network(x, time, labels):
        seen.append((x, time, labels))
        return torch.zeros_like(x)

    denoise = snrkit.wrap(network, Edm(), X0(), precondition=EdmPrecondition(), sigma_data=0.4)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    level = denoise.process.level(torch.tensor(0.0))
    belief = denoise(x, level, cond=Cond(torch.tensor([3, -1])))
    torch.testing.assert_close(belief.x0, 0.16 / 1.16 * x)
    assert torch.equal(seen[0][1], torch.zeros(2))
    assert seen[0][2].tolist() == [3, -1]
    levels = Karras(steps=3).levels(denoise.process)
    cond = Cond(torch.tensor([0, 0]))
    plain, corrected = (
        list(sample(denoise, Euler(), levels, x, corrections=c, cond=cond))[-1].x_next for c in ([], [Dcw(low=0.1)])
    )
    assert not torch.equal(plain, corrected)


def test_what_it_cannot_be_asked_is_said():
    """It always takes a time."""
    denoise = snrkit.wrap(velocity, Flow(), FlowVelocity())
    levels = UniformTime(steps=3).levels(denoise.process)
    with pytest.raises(SnrkitError, match="cannot be asked without the level"):
        list(sample(denoise, Euler(), levels[1:], torch.zeros(2, 3), corrections=[NoiseAwareness(weight=1.0)]))
    with pytest.raises(AttributeError, match="no attribute 'unwrap'"):
        _ = snrkit.unwrap


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda x, t: (x,), r"answers tuple for states \(2, 3\); it has to answer one tensor of their shape"),
        (lambda x, t: x[:, :2], r"answers \(2, 2\) for states \(2, 3\)"),
        (lambda x, t: torch.cat([x, x], dim=1), r"answers \(2, 6\)"),
    ],
)
def test_a_network_that_answers_something_else_is_told_so(network, said):
    """At its first call, with both shapes."""
    denoise = snrkit.wrap(network, Flow(), FlowVelocity())
    with pytest.raises(SnrkitError, match=said):
        denoise(torch.zeros(2, 3, dtype=torch.float64), denoise.process.level(torch.tensor(0.0)))


def after(heading):
    """The first lines of code below a text of the page on Python."""
    page = (Path(__file__).parent.parent / "docs/python.md").read_text()
    return page.split(heading)[1].split("```python\n")[1].split("```")[0]


def test_the_lines_of_the_page_run():
    """As they are written, with a network and noise of one's own."""
    names = {"network": velocity4, "noise": torch.randn(2, 1, 4, 4)}
    exec(after("three lines\n"), names)
    assert names["last"].x_next.shape == (2, 1, 4, 4)


def test_the_page_s_measurement_runs(tmp_path, monkeypatch, capsys):
    """As it is written: twenty Euler steps of an exact network leave too little of the variance, and it says so."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    trained, held = (torch.randn(400, 1, 4, 4).mul(0.5).clamp(-1, 1) for _ in range(2))
    names = {"network": velocity4, "trained": trained, "held": held}
    with drawing():
        exec(after("## Measure any denoiser"), names)
    assert capsys.readouterr().out.strip() == names["found"].verdict
    picture = (tmp_path / "shift.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    assert len(names["found"].to_frame()) == 20


def velocity4(x, t):
    """As velocity, of images."""
    return velocity(x.flatten(1), t).reshape(x.shape)


def test_a_correction_alone_is_no_list():
    """Said, in place of an error about its fields."""
    denoise = snrkit.wrap(velocity, Flow(), FlowVelocity())
    with pytest.raises(SnrkitError, match=r"corrections is a list, such as"):
        next(
            sample(denoise, Euler(), UniformTime(steps=2).levels(Flow()), torch.zeros(2, 3), corrections=Dcw(low=0.01))
        )


@pytest.mark.parametrize("parts", [(Flow(), velocity, FlowVelocity()), (velocity, FlowVelocity(), Flow())])
def test_parts_in_another_order_are_refused(parts):
    """By what was given."""
    with pytest.raises(SnrkitError, match=f"wrap was given .*{type(parts[2]).__name__}.*in this order"):
        snrkit.wrap(*parts)
