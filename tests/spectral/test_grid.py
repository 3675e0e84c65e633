"""Grids of every image's own: where they stand, how they are drawn, and that one image does not see another's."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.tensors import write_tensors
from snrkit.data.dataset import memory_dataset, split
from snrkit.diffusion.denoiser import EdmPrecondition, NetworkDenoiser
from snrkit.diffusion.prediction import Cond, V
from snrkit.diffusion.process import Ddpm, Edm, Flow, Vp
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from snrkit.networks import UNet, make_network
from snrkit.sampling.grid import Karras
from snrkit.sampling.sample import sample, start
from snrkit.sampling.sampler import Dummy, Sampler, first_variance, open_with
from snrkit.sampling.solvers import AnalyticDpm, Euler
from snrkit.shift.states import StateReader
from snrkit.spectral.grid import Spectral, SpectralGrid, SpectralPlacement, drawn_in, textured, unrepeated
from snrkit.spectral.kept import OF, RunSpectra
from snrkit.spectral.levels import SCALARS, SpectralLevels, told_ends
from snrkit.spectral.measure import measure_spectra, spectra_of
from snrkit.spectral.model import fit_spectrum_model
from snrkit.spectral.schedule import SpectralSchedule
from snrkit.training.randomness import ImageStreams
from tests.exact import gaussian
from tests.opened import instrument, open_network
from tests.sampling.test_solvers import OF_EACH
from tests.small import SMALL, snrkit, write_config
from tests.spectral.test_levels import SPECTRAL
from tests.spectral.test_schedule import pictures

LABELS = torch.arange(200) % 4
SCHEDULE, SHAPE = SpectralSchedule(), (3, 16, 16)


CONFIG = {
    **SPECTRAL,
    "samplers": {
        "own": {"grid": {"kind": "spectral", "steps": 5}, "solver": {"kind": "heun"}},
        "shared": {"grid": {"kind": "spectral", "steps": 5, "scope": "dataset"}, "solver": {"kind": "euler"}},
        "told": {
            "grid": {"kind": "spectral", "steps": 5, "scope": "dataset"},
            "solver": {"kind": "euler"},
            "told_spectrum": "instance",
        },
        "plain": {"grid": {"kind": "uniform_time", "steps": 5}, "solver": {"kind": "euler"}},
    },
    "shift": {**SMALL["shift"], "probes": ["window", "horizon", "amplification"], "horizon_steps": 2},
}


def model(labels=LABELS):
    x0 = pictures(200) * (1 + torch.arange(200) % 3)[:, None, None, None]
    dataset = memory_dataset("pictures", x0, labels, 4 if labels is not None else 0)
    return fit_spectrum_model(measure_spectra(dataset, split(200, 0.2), torch.device("cpu")))


def spectral(**levels):
    return Spectral(model(), SpectralLevels(**levels), tells=True)


@pytest.mark.parametrize("process", [Vp(), Edm(), Flow()], ids=lambda p: p.kind)
def test_levels_stand_at_even_t_of_the_schedule(process):
    """From t = 1 to t = 0 in n levels, then clean: the strongest ring buried, the finest resolved."""
    known, grid = spectral(), SpectralGrid(steps=9)
    power = known.power("instance", range(5), None)
    levels = known.place(grid, process, range(5), None)
    assert len(levels) == 10
    assert levels[-1].is_clean()
    found = torch.stack([level.logsnr for level in levels[:-1]], 1)
    torch.testing.assert_close(found, SCHEDULE.logsnr(power, torch.linspace(1, 0, 9)), rtol=0, atol=1e-9)
    noisy, clean = SCHEDULE.ends(power)
    torch.testing.assert_close(found[:, 0], noisy)
    torch.testing.assert_close(found[:, -1], clean)


def test_a_spectrum_belongs_to_its_seed():
    """In any batch the same; another seed another; labels choose among the classes' weights."""
    known = spectral()
    whole = known.power("instance", range(20), None)
    torch.testing.assert_close(known.power("instance", [7, 3], None), whole[[7, 3]], rtol=1e-12, atol=0)
    assert len(whole[:, 1].unique()) > 10
    classes = known.power("class", range(3), torch.tensor([2, 0, -1]))
    torch.testing.assert_close(classes[:2], model().class_means[[2, 0]].exp())
    torch.testing.assert_close(classes[2], model().mean.exp())
    for scope in ("class", "dataset"):
        torch.testing.assert_close(known.power(scope, range(3), None), model().mean.exp().expand(3, -1))


def test_the_network_is_told_the_ends_of_the_training_schedule():
    """Whatever the grid's own schedule is; without a spectral grid the mean's; nothing if it was never told."""
    known = Spectral(model(), SpectralLevels.model_validate({"kind": "spectral", "schedule": {"kappa_max": 30}}), True)
    grid = SpectralGrid(schedule=SpectralSchedule(kappa_max=1000, kappa_min=1e-4))
    power, own = known.power("instance", range(4), None), SpectralSchedule(kappa_max=30)
    torch.testing.assert_close(known.placement(grid, Vp()).told(range(4), None), told_ends(*own.ends(power)))
    mean = told_ends(*own.ends(model().mean.exp().expand(4, -1)))
    torch.testing.assert_close(known.placement(None, Vp()).told(range(4), None), mean)
    assert Spectral(model(), None).placement(grid, Vp()).told(range(4), None) is None


@pytest.mark.parametrize("grid", [None, SpectralGrid(scope="instance"), SpectralGrid(scope="dataset")], ids=str)
def test_what_is_told_is_a_choice_of_its_own(grid):
    """Whatever the grid follows: the spectrum of the scope that is named, at the grid's own levels; none is its own."""
    known = spectral()
    for scope in ("instance", "class", "dataset"):
        follows = known.placement(SpectralGrid(scope=scope), Vp())
        named = known.placement(grid, Vp(), scope)
        for own in (None, known.power("instance", range(90, 94), None)):
            assert torch.equal(named.told(range(4), LABELS[:4], own), follows.told(range(4), LABELS[:4], own))
        if grid is not None:
            plain = known.placement(grid, Vp())
            for ours, theirs in zip(named.levels(range(4), None), plain.levels(range(4), None), strict=True):
                assert torch.equal(ours.logsnr, theirs.logsnr)
        assert named.varies == known.placement(grid, Vp()).varies
    assert known.placement(grid, Vp()).key == known.placement(grid, Vp(), known.scope(grid)).key
    keys = [known.placement(grid, Vp(), scope).key for scope in ("instance", "class", "dataset")]
    assert len(set(keys)) == 3


def test_a_sampler_tells_what_it_says(tmp_path):
    """A run's spectra give its network what `told_spectrum` names, on a grid that follows none too."""
    opened = open_experiment(parse_experiment({**SMALL, **CONFIG}, "small"), World(0, 1, torch.device("cpu")))
    spectra = RunSpectra(tmp_path, opened.data.measured, World(0, 1, torch.device("cpu")), Vp(),
                         opened.experiment.levels, tells=True)  # fmt: skip

    class Known(Dummy):
        told = None

        def telling(self, told):
            made = Known(Vp(), self.trained)
            made.told = told
            return made

        def placement(self, grid):
            return spectra.placement(grid, self.told)

    found = {}
    for scope in (None, "instance", "class", "dataset"):
        sampler = Sampler(grid=Karras(steps=5), solver=Euler(), told_spectrum=scope)
        own, found[scope] = open_with(sampler, Vp(), Known(Vp())).of_images(range(8), torch.arange(8) % 4)
        assert not own.varies
    own = open_with(Sampler(grid=SpectralGrid(steps=5), solver=Euler()), Vp(), Known(Vp(), opened.experiment.levels))
    assert torch.equal(found["instance"], own.of_images(range(8), torch.arange(8) % 4)[1])
    assert torch.equal(found[None], found["dataset"])
    assert [len(found[scope].unique(dim=0)) for scope in ("instance", "class", "dataset")] == [8, 4, 1]


def test_the_network_is_told_nothing_that_training_did_not_tell():
    """However much texture is asked for: ends between those of the model's range."""
    known = spectral()
    seen = told_ends(*SCHEDULE.ends(torch.stack([known.model.high, known.model.low]).exp()))
    for scale in (1e-3, 0.5, 1.0, 40.0):
        told = known.placement(SpectralGrid(scope="instance", scale=scale), Vp()).told(range(40), None)
        assert bool(((told >= seen[0]) & (told <= seen[1])).all())


@pytest.mark.parametrize("scope", ["instance", "class", "dataset"])
def test_euler_is_one_path_in_every_scaling(scope):
    """From one noise on one spectral grid, as states begin at sigma*n in all of them, also where that is not n."""
    found = []
    for process in (Vp(), Edm(), Flow()):
        sampler = Sampler(grid=SpectralGrid(steps=6, scope=scope), solver=Euler())
        levels = spectral().place(sampler.grid, process, range(5), LABELS[:5])
        noise = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = start(process, noise, levels[0], first_variance(sampler, 0.5))
        for step in sample(gaussian(process), sampler.solver, levels, x):
            x = step.x_next
        found.append(x)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-9)
    assert first_variance(sampler.model_copy(update={"start": "exact"}), 0.5) == 0.5
    assert first_variance(Sampler(grid=Karras(), solver=Euler()), 0.5) is None


def test_a_grid_of_one_spectrum_is_one_for_all():
    """Scope dataset: levels of shape (), also for what opens at its levels; else it is refused with what to do."""
    process = Vp()
    shared = open_with(
        Sampler(grid=SpectralGrid(scope="dataset", steps=6), solver=AnalyticDpm()), process, Dummy(process)
    )
    assert not shared.varies
    assert all(level.logsnr.ndim == 0 for level in shared.levels)
    with pytest.raises(SnrkitError, match="needs one grid for all images; give the grid scope: dataset"):
        open_with(Sampler(grid=SpectralGrid(scope="instance"), solver=AnalyticDpm()), process, Dummy(process))
    assert open_with(Sampler(grid=Karras(), solver=Euler()), process, Dummy(process)).placement is None


def test_texture_is_scaled_where_rings_are_fine():
    """1 up to the geometric middle, `scale` at the finest; neutral at 1; more texture lowers the clean end."""
    factors = textured(33, 4.0)
    assert factors[:6].tolist() == pytest.approx([1.0] * 6, abs=0.1)
    assert float(factors[-1]) == pytest.approx(4)
    assert bool((factors.diff() >= 0).all())
    assert torch.equal(textured(33, 1.0), torch.ones(33, dtype=torch.float64))
    known = spectral()
    rough, plain = (known.placement(SpectralGrid(scale=scale), Vp()).told(range(6), None) for scale in (4.0, 1.0))
    least = told_ends(*SCHEDULE.ends(known.model.high.exp()[None]))[0, 1]
    torch.testing.assert_close(rough[:, 1], (plain[:, 1] - math.log(4) / 4).clamp(min=least), rtol=0, atol=1e-5)
    torch.testing.assert_close(rough[:, 0], plain[:, 0])


def test_no_model_is_asked_beyond_what_it_was_trained_at():
    """Ends are drawn in to the process's bounds or the training's, evenly; what lies inside stays, to the bit."""
    rows = torch.tensor([[-20.0, 0.0, 20.0], [-3.0, 1.0, 4.0]], dtype=torch.float64)
    assert drawn_in(rows, -10, 10).tolist() == [[-10, 0, 10], [-3, 1, 4]]
    assert drawn_in(rows[:, :1], -10, 10).tolist() == [[-10], [-3]]
    with pytest.raises(SnrkitError, match=r"beyond those of the training, logsnr 30\.00 to 40\.00; use another grid"):
        drawn_in(rows, 30, 40)
    wide = SpectralGrid(
        steps=7, schedule=SpectralSchedule(kappa_min=1e-6, kappa_max=1e6, logsnr_max=None), scope="instance"
    )
    for process, levels in ((Vp(logsnr_min=-4, logsnr_max=6), None), (Vp(), SpectralLevels(scope="dataset"))):
        known = Spectral(model(), levels)
        found = known.place(wide, process, range(9), None)
        low, high = process.bounds if levels is None else (float(e) for e in SCHEDULE.ends(model().mean.exp()[None]))
        torch.testing.assert_close(found[0].logsnr, torch.full((9,), low, dtype=torch.float64))
        torch.testing.assert_close(found[-2].logsnr, torch.full((9,), high, dtype=torch.float64))
        assert "and is drawn in to" in str(known.cut(wide, process))
        assert known.cut(SpectralGrid(steps=7, schedule=SpectralSchedule(kappa_min=0.05, kappa_max=20)), Vp()) is None


def test_on_a_table_no_entry_is_visited_twice():
    """Rising entries for every seed and any number of steps up to its size; where none repeat, the nearest."""
    process, known = Ddpm(), Spectral(model(), None)
    table = process.table()
    for steps in (12, 60, 400, 1000):
        levels = known.place(SpectralGrid(steps=steps, scope="instance"), process, range(16), None)
        found = torch.stack([level.logsnr for level in levels[:-1]], 1)
        assert bool((found.diff(dim=1) > 0).all())
        assert bool(torch.isin(found, table).all())
    plain = torch.tensor([[-5.0, 0.0, 3.0]], dtype=torch.float64)
    assert torch.equal(unrepeated(plain, process), process.snap(plain))
    with pytest.raises(SnrkitError, match="a grid of 1001 steps does not fit a table of 1000 levels"):
        known.place(SpectralGrid(steps=1001), process, range(2), None)


def test_what_cannot_be_sampled_is_refused_before_training(tmp_path):
    """A grid that inherits the training's scope differs from image to image; classes need a network of them."""
    samplers = {"own": {"grid": {"kind": "spectral", "steps": 5}, "solver": {"kind": "analytic_dpm"}}}
    write_config(tmp_path, **{**SPECTRAL, "samplers": samplers})
    with pytest.raises(
        ConfigError, match=r"samplers\.own: needs one grid for all images; give the grid scope: dataset"
    ):
        load_experiment(tmp_path / "small.yaml")
    bare = ["network.classes=0", "train.label_dropout=0", "samplers.own.solver={kind: euler}"]
    with pytest.raises(ConfigError, match=r"levels\.scope: class needs a network with classes"):
        load_experiment(tmp_path / "small.yaml", [*bare, "levels.scope=class"])
    with pytest.raises(ConfigError, match=r"samplers\.own\.grid\.scope: class needs a network with classes"):
        load_experiment(tmp_path / "small.yaml", [*bare, "samplers.own.grid.scope=class"])
    with pytest.raises(ConfigError, match=r"samplers\.own\.told_spectrum: class needs a network with classes"):
        load_experiment(tmp_path / "small.yaml", [*bare, "samplers.own.told_spectrum=class"])
    with pytest.raises(ConfigError, match=r"samplers\.own\.told_spectrum: the network is told no ends of schedules"):
        load_experiment(tmp_path / "small.yaml", [*bare, "network.scalars=[]", "samplers.own.told_spectrum=instance"])


def drawn_network():
    """A network with weights that matter, told ends."""
    small = UNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, classes=4, scalars=SCALARS)
    network = make_network(small, SHAPE, 0)
    draws = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draws)
    return NetworkDenoiser(network.eval().requires_grad_(False), Vp(), V(), EdmPrecondition(), 0.5)


@pytest.mark.parametrize("solver", OF_EACH.values(), ids=OF_EACH)
def test_a_network_on_a_grid_per_image(solver):
    """With the same levels and ends for all, the bits of a shared grid; with their own, to 1e-5 each image alone."""
    denoise, process, known, grid = drawn_network(), Vp(), spectral(), SpectralGrid(steps=5)
    seeds, labels = (3, 8, 1), torch.tensor([0, 2, -1])
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def walk(levels, state, cond, which):
        for step in sample(denoise, solver, levels, state, noise=ImageStreams(which), cond=cond):
            state = step.x_next
        return state

    shared = [level.at(0) for level in known.place(grid, process, [3], None)]
    told = Cond(labels, known.placement(grid, Vp()).told([3], None).expand(3, -1).clone())
    wide = [process.level(level.logsnr.expand(3).clone()) for level in shared]
    assert torch.equal(walk(shared, x, told, seeds), walk(wide, x, told, seeds))
    own, cond = known.place(grid, process, seeds, labels), Cond(labels, known.placement(grid, Vp()).told(seeds, labels))
    together = walk(own, x, cond, seeds)
    for k in range(3):
        part = slice(k, k + 1)
        alone = walk([level.at(part) for level in own], x[part], cond.at(part), seeds[part])
        torch.testing.assert_close(together[part], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("told", [None, "instance"])
def test_measured_trajectories_stand_at_the_levels_of_the_held_out_images(told, tmp_path):
    """Image by image: the reverse and the forward arm agree in levels, ends and labels, as their comparison needs.

    On a grid of the image's own, and on one that is shared, with a network that is told of the image's spectrum.
    """
    levels, ends, classes = [], [], []

    class Noted(SpectralPlacement):
        def levels(self, seeds, labels, own=None):
            found = super().levels(seeds, labels, own)
            if own is not None:
                levels.append(torch.stack([level.logsnr for level in found], 1))
                classes.append(labels)
            return found

        def told(self, seeds, labels, own=None):
            found = super().told(seeds, labels, own)
            ends.append(found)
            return found

    from snrkit.experiment.models import Weights
    from snrkit.experiment.opening import Model

    opened = open_experiment(parse_experiment({**SMALL, **CONFIG}, "small"), World(0, 1, torch.device("cpu")))
    known = Spectral(fit_spectrum_model(opened.data.measured.once(spectra_of)), opened.experiment.levels, True)
    sampler = opened.experiment.samplers["own" if told is None else "shared"]
    dummy = Dummy(Vp(), opened.experiment.levels)
    ready = replace(open_with(sampler, Vp(), dummy), placement=Noted(known, sampler.grid, Vp(), "instance"))
    network = open_network(opened).eval().requires_grad_(False)
    denoiser = NetworkDenoiser(network, Vp(), V(), EdmPrecondition(), opened.data.sigma_data)
    made = instrument(opened, Model(denoiser, Weights("network", 0, ""), Run(tmp_path)), range(32))
    made.walk(sampler, ready, range(len(ready.levels) - 1), StateReader())
    assert ready.varies == (told is None)
    varying = (levels, ends, classes) if ready.varies else (ends,)
    reverse = [torch.cat(parts) for parts in varying]
    for parts in varying:
        parts.clear()
    _, cond = made.placed(ready, made.held_rows)
    forward = (levels[0], cond.scalars, cond.labels) if ready.varies else (cond.scalars,)
    for ours, theirs in zip(reverse, forward, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(len(part.flatten(1)[:, 0].unique()) > 10 for part in reverse[:2])
    assert not ready.varies or len(reverse[2].unique()) > 1


def test_the_whole_path(tmp_path):
    """Train, sample, score, measure and analyze; the run keeps its model of spectra, which a seed draws from."""
    write_config(tmp_path, **CONFIG)
    snrkit(tmp_path, "train", "-q")
    run = tmp_path / "runs" / "small"
    assert (run / "spectra.safetensors").exists()
    told = snrkit(tmp_path, "sample", "-q").stderr
    assert told.count("its grid visits logsnr") == 1
    assert "plain: its grid visits logsnr -15.0 to 15.0, where training saw" in " ".join(told.split())
    first = {p.relative_to(run): p.read_bytes() for p in sorted((run / "samples").rglob("0000*/*.png"))}
    assert len(first) == 4 * 64
    snrkit(tmp_path, "eval-fid")
    snrkit(tmp_path, "measure-shift", "-q")
    for name in CONFIG["samplers"]:
        record = json.loads((run / "shift" / f"{name}.json").read_text())
        assert len(record["logsnr"]) == 5
        assert record["logsnr"] == sorted(record["logsnr"])
        assert all(math.isfinite(v) for v in record["norm_gap"]["value"])
        assert all(record[probe] is not None for probe in ("window", "horizon", "amplification"))
    snrkit(tmp_path, "sample", "-q", "--sampler", "own", "--spectrum-scale", "4")
    assert len(list((run / "samples" / "own-scale-4").rglob("0000*/*.png"))) == 64
    much = snrkit(tmp_path, "sample", "-q", "--sampler", "own", "--spectrum-scale", "100").stderr
    assert "own-scale-100: scale 100 asks for a texture that no image of the training has" in " ".join(much.split())
    refused = snrkit(tmp_path, "sample", "-q", "--sampler", "plain", "--spectrum-scale", "4", check=False)
    assert "--spectrum-scale: samplers.plain has a grid uniform_time; it needs spectral." in refused.stderr
    snrkit(tmp_path, "analyze")
    gradients = (run / "analysis" / "run-gradients.csv").read_text()
    assert "nan" not in gradients
    assert "inf" not in gradients
    kept = load((run / "spectra.safetensors").read_bytes())
    (run / "spectra.safetensors").write_bytes(b"broken")
    broken = snrkit(tmp_path, "sample", "-q", "--overwrite", check=False)
    assert broken.returncode != 0
    assert "spectra.safetensors is damaged" in broken.stderr
    fewer = {name: part[:-1] if name == "class_means" else part for name, part in kept.items()}
    write_tensors(run / "spectra.safetensors", fewer, OF)
    other = snrkit(tmp_path, "sample", "-q", "--overwrite", check=False)
    assert "spectra.safetensors is of other images; delete it and run the same command again." in other.stderr
    (run / "spectra.safetensors").unlink()
    snrkit(tmp_path, "sample", "-q", "--overwrite")
    again = {p.relative_to(run): p.read_bytes() for p in sorted((run / "samples").rglob("0000*/*.png"))}
    assert {path: again[path] for path in first} == first


def test_tuning_and_comparing_at_levels_of_every_image(tmp_path):
    """Rows keep the grid's own settings, bare rows follow the training's spectra; the report tells grids apart."""
    grid = {"kind": "spectral", "steps": 4, "scale": 2.0}
    dcw = {"grid": grid, "solver": {"kind": "euler"}, "corrections": [{"kind": "dcw", "low": 0.01, "high": 0.01}]}
    write_config(tmp_path, **{**CONFIG, "samplers": {"dcw": dcw}, "tune": {"seeds": "1000-1063", "trials": 2},
                              "compare": {"solvers": [{"kind": "heun"}], "rounds": 1, "timed_images": 4}})  # fmt: skip
    snrkit(tmp_path, "train", "-q")
    tuned = json.loads(snrkit(tmp_path, "tune", "-q", "--json").stdout)
    assert set(tuned) == {"dcw"}
    record = json.loads(snrkit(tmp_path, "compare", "-q", "--json").stdout)
    rows = {row["name"]: row for row in record["rows"]}
    assert [row["nfe"] for row in rows.values()] == [3, 4, 4]
    assert {row["definition"]["grid"]["scale"] for row in rows.values()} == {2.0}
    assert all(math.isfinite(row["summary"]["fd"]["mean"]) for row in rows.values())
    assert "spectral 4 (scale 2)" in (tmp_path / "runs" / "small" / "compare.md").read_text()
    snrkit(tmp_path, "sample", "-q")
    snrkit(tmp_path, "report")
    assert "spectral 4 (scale 2)" in (tmp_path / "runs" / "small" / "report.html").read_text()


def test_an_ordinary_model_takes_the_grid(tmp_path):
    """Spectra are measured when the first images are made; each scope makes other images."""
    samplers = {
        scope: {"grid": {"kind": "spectral", "steps": 4, "scope": scope}, "solver": {"kind": "euler"}}
        for scope in ("instance", "class", "dataset")
    }
    write_config(tmp_path, train={**SMALL["train"], "images": 320}, samplers=samplers)
    snrkit(tmp_path, "train", "-q")
    run = tmp_path / "runs" / "small"
    assert not (run / "spectra.safetensors").exists()
    snrkit(tmp_path, "sample", "-q")
    made = [(run / "samples" / scope / "000000" / "000007.png").read_bytes() for scope in samplers]
    assert len(set(made)) == 3
    model = (run / "spectra.safetensors").read_bytes()
    snrkit(tmp_path, "measure-shift", "-q", "--sampler", "class")
    assert (run / "spectra.safetensors").read_bytes() == model


def test_probes_that_need_one_grid_say_so(tmp_path):
    """why under a grid that differs from image to image."""
    write_config(
        tmp_path,
        **CONFIG,
    )
    snrkit(tmp_path, "train", "-q")
    failed = snrkit(tmp_path, "measure-shift", "--sampler", "own", "--set", "shift.probes=[why]", check=False)
    assert failed.returncode != 0
    assert "shift.probes: why cuts the steps of one grid for all images" in failed.stderr
    assert "Traceback" not in failed.stderr
    snrkit(tmp_path, "measure-shift", "-q", "--sampler", "shared", "--set", "shift.probes=[why]")
    record = json.loads((tmp_path / "runs" / "small" / "shift" / "shared.json").read_text())
    assert all(math.isfinite(v) for v in record["why"]["norm_gap"]["network"]["value"])


def test_the_config_knows_the_grid(tmp_path):
    """Unknown scopes and steps are named; the grid stands beside others."""
    write_config(tmp_path, **CONFIG)
    assert load_experiment(tmp_path / "small.yaml").samplers["own"].grid == SpectralGrid(steps=5)
    with pytest.raises(ConfigError, match=r"samplers\.own\.grid"):
        load_experiment(tmp_path / "small.yaml", ["samplers.own.grid.scope=image"])
