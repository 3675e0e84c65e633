"""tune and compare: sweeps, layouts, intervals, and the commands from end to end."""

import json
import math
import statistics

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import ConfigError
from snrkit.base.records import to_json
from snrkit.commands.compare import size_change
from snrkit.commands.compare_rows import comparison_layout, with_nfe
from snrkit.commands.progress import bar
from snrkit.commands.tune import by_gap, knobs, sweep, with_values
from snrkit.diffusion.prediction import X0
from snrkit.diffusion.process import Edm
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.stored import network_differences
from snrkit.metrics.paired import Difference, against, verdict
from snrkit.sampling.corrections import Dcw, EpsilonScaling, NoiseAwareness
from snrkit.sampling.grid import Karras
from snrkit.sampling.sampler import Sampler, dry_run
from snrkit.sampling.solvers import Euler, Heun
from snrkit.sampling.step import Range
from tests.small import SMALL, snrkit, write_config, written

EULER = {"grid": {"kind": "karras", "steps": 5}, "solver": {"kind": "euler"}}
SAMPLERS = {
    "dcw": {**EULER, "corrections": [{"kind": "dcw", "low": 0.01, "high": 0.01}]},
    "nag": {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "euler"},
            "corrections": [{"kind": "noise_awareness", "weight": 0.5}]},
    "es": {**EULER, "corrections": [{"kind": "epsilon_scaling", "scale": 1.01}]},
}  # fmt: skip


@given(best=st.floats(-0.04, 0.09))
def test_a_sweep_finds_the_least_of_a_parabola(best):
    """Coarse from neutral until the score turns, then fine: within half a fine step; no value is tried twice."""
    tried = []

    def score(value):
        tried.append(value)
        return (value - best) ** 2

    found = sweep(score, Range(0.0, -0.05, 0.1, coarse=0.01, fine=0.001))
    assert abs(found - best) <= 0.0005 + 1e-9
    assert len(tried) == len(set(tried))


def test_a_sweep_stays_within_its_range():
    """A score that falls for ever ends at the end of the range."""
    assert sweep(lambda v: -v, Range(0.0, -0.05, 0.1, coarse=0.01, fine=0.001)) == pytest.approx(0.1)


def test_knobs_are_the_coefficients_that_are_not_neutral():
    """By default those the file sets; named ones in the order given; unknown ones are refused with the known."""
    sampler = Sampler(
        grid=Karras(steps=5), solver=Euler(), corrections=(EpsilonScaling(), Dcw(low=0.1, high=0.0))
    )  # fmt: skip
    assert [k.path for k in knobs(sampler, ())] == ["corrections.1.low"]
    assert [k.path for k in knobs(sampler, ["1.high", "0.scale"])] == ["corrections.1.high", "corrections.0.scale"]
    with pytest.raises(ConfigError, match=r"1\.hig.*0\.scale, 0\.slope, 1\.pixel"):
        knobs(sampler, ["1.hig"])
    changed = with_values(sampler, knobs(sampler, ["1.high", "0.scale"]), (0.03, 1.02))
    assert (changed.corrections[1].high, changed.corrections[0].scale) == (0.03, 1.02)
    assert changed.corrections[1].low == 0.1


def test_bases_cost_what_their_rows_cost():
    """Every corrected row gets its own solver without corrections at equal NFE; the solvers of compare at every NFE.

    These are compared with the first row without corrections there, or with the one whose rivals they are.
    """
    rows = comparison_layout(parse_experiment({**SMALL, "samplers": SAMPLERS}, "small"))
    assert rows["dcw"].base == rows["es"].base == "euler-5"
    assert rows["nag"].base == "euler-6"
    for name, row in rows.items():
        if row.base is not None:
            base = rows[row.base]
            assert base.nfe == row.nfe, name
            assert (base.sampler.solver == row.sampler.solver) == (name in SAMPLERS)
            assert not base.sampler.corrections
    assert {name for name, row in rows.items() if row.base is None} == {"euler-5", "euler-6"}
    assert {"heun-5", "dpmpp_2m-5", "dpmpp_3m-6", "unipc-6", "ipndm_v-5"} <= set(rows)
    assert "heun-6" not in rows  # Heun costs odd numbers only, and heun-5 is there


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_file_does_not_choose_bases(order):
    """A row at 14 evaluations beside one at 13: each has its own base, whichever comes first."""
    euler = {"grid": {"kind": "karras", "steps": 13}, "solver": {"kind": "euler"}}
    samplers = {
        "pixel": {**euler, "corrections": [{"kind": "dcw", "pixel": 0.1}]},
        "nag": {"grid": {"kind": "karras", "steps": 7}, "solver": {"kind": "euler"},
                "corrections": [{"kind": "noise_awareness", "weight": 0.5}]},
        "fourteen": {"grid": {"kind": "karras", "steps": 14}, "solver": {"kind": "euler"}},
    }  # fmt: skip
    rows = comparison_layout(parse_experiment({**SMALL, "samplers": dict(list(samplers.items())[::order])}, "small"))
    assert (rows["pixel"].base, rows["nag"].base) == ("euler-13", "fourteen")
    assert rows["heun-13"].nfe == 13


def test_a_base_may_be_named():
    """compare.bases sets a row beside another; a name that is none, itself, or a cheaper row is refused."""
    samplers = {**SAMPLERS, "cheap": {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "euler"}}}
    rows = comparison_layout(
        parse_experiment({**SMALL, "samplers": samplers, "compare": {"bases": {"es": "dcw"}}}, "small")
    )
    assert (rows["es"].base, rows["dcw"].base) == ("dcw", "euler-5")
    for bases, said in (({"es": "no"}, "no sampler is named no"), ({"es": "es"}, "name another"),
                        ({"es": "cheap"}, "costs 3 evaluations and es 5")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            comparison_layout(parse_experiment({**SMALL, "samplers": samplers, "compare": {"bases": bases}}, "small"))


@given(steps=st.integers(1, 60))
def test_with_nfe_finds_the_steps(steps):
    """It inverts the cost exactly, or says that no number of steps has it."""
    plain, cost = Sampler(grid=Karras(steps=3), solver=Euler()), lambda s: dry_run(s, Edm(), X0(), (1, 2, 2))
    guided = plain.model_copy(update={"corrections": (NoiseAwareness(weight=1.0),)})
    assert with_nfe(plain, steps, cost).grid.steps == steps
    assert with_nfe(guided, 2 * steps, cost).grid.steps == steps
    assert with_nfe(guided, 2 * steps + 1, cost) is None
    heun = plain.model_copy(update={"solver": Heun()})
    assert with_nfe(heun, 2 * steps - 1, cost).grid.steps == steps


def test_the_base_of_an_even_cost_where_only_odd_ones_are():
    """Noise awareness doubles Heun's odd cost: its base has one evaluation more, never less."""
    heun = {"grid": {"kind": "karras", "steps": 3}, "solver": {"kind": "heun"},
            "corrections": [{"kind": "noise_awareness", "weight": 0.5}]}  # fmt: skip
    rows = comparison_layout(parse_experiment({**SMALL, "samplers": {"nag": heun}}, "small"))
    assert (rows["nag"].nfe, rows["nag"].base, rows["heun-11"].nfe) == (10, "heun-11", 11)


def test_a_cost_that_no_base_has_is_refused():
    """Noise awareness at 600 of a table's 1000 steps costs 1200, more steps than the table has."""
    sampler = {"grid": {"kind": "uniform_time", "steps": 600}, "solver": {"kind": "euler"},
               "corrections": [{"kind": "noise_awareness", "weight": 0.5}]}  # fmt: skip
    content = {**SMALL, "process": {"kind": "ddpm"}, "samplers": {"nag": sampler}}
    with pytest.raises(ConfigError, match="no base of equal cost"):
        comparison_layout(parse_experiment(content, "small"))


class GapOf:
    """A bench whose gap is a given function of its one coefficient."""

    def __init__(self, gap):
        sampler = Sampler(grid=Karras(steps=5), solver=Euler(), corrections=(Dcw(pixel=0.1),))
        self.sampler, self.chosen, self.gap = sampler, knobs(sampler, ()), lambda values: gap(*values)


def test_by_gap_takes_the_least_squares_step_where_the_gap_is_straight(monkeypatch, caplog):
    """On a gap that is linear in the coefficient its zero is found; where a kink makes the step worse it is halved."""
    monkeypatch.setattr("snrkit.commands.tune.works", lambda bench, values: True)
    caplog.set_level("INFO", "snrkit")
    with bar("tuning", shown=False) as progress:
        straight = GapOf(lambda v: [1 - 20 * v, 0.5 - 10 * v])
        assert by_gap(straight, progress) == (pytest.approx(0.05),)
        kinked = GapOf(lambda v: [1 - 20 * v if v < 0.03 else 40 * v])
        assert by_gap(kinked, progress) == (pytest.approx(0.025),)
        hopeless = GapOf(lambda v: [1 - 20 * v] if v in (0.0, 0.01) else [5.0])
        assert by_gap(hopeless, progress) == (0.0,)
    assert "stay neutral" in caplog.messages[-1]


def test_paired_intervals():
    """Student's t over the ranges' differences, as scipy has it; one range has none; verdicts follow the interval."""
    scipy = pytest.importorskip("scipy.stats")
    a, b = [3.1, 2.9, 3.3, 3.0, 2.8], [3.0, 3.0, 3.4, 3.2, 2.9]
    found = against(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    low, high = scipy.t.interval(0.95, 4, statistics.fmean(differences), scipy.sem(differences))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert verdict(found) == ("better" if high < 0 else "no difference shown")
    for count in (2, 3, 4, 5, 6, 10, 12, 30):
        exact = scipy.t.ppf(0.975, count - 1)
        spread = against([float(i) for i in range(count)], [0.0] * count)
        deviation = statistics.stdev(float(i) for i in range(count))
        assert (spread.high - spread.mean) / (deviation / count**0.5) == pytest.approx(exact, rel=1e-3)
    alone = against([1.0], [2.0])
    assert alone == Difference(-1.0, None, None)
    assert verdict(alone) == "one range: no interval"
    assert verdict(Difference(1.0, 0.5, 1.5)) == "worse"
    assert verdict(Difference(1.0, 0.5, 1.5), "higher") == "better"
    assert verdict(Difference(-1.0, -1.5, -0.5)) == "better"
    assert verdict(Difference(-1.0, -1.5, -0.5), "higher") == "worse"
    for better in ("lower", "higher"):
        assert verdict(Difference(0.1, -0.5, 0.7), better) == "no difference shown"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coarse):
    """A small trained run with an estimator."""
    folder = tmp_path_factory.mktemp("tuned")
    shift = {**SMALL["shift"], "probes": ["window", "horizon", "amplification", "audit", "estimator", "why", "flow"],
             "window_images": 8, "flow_images": 8, "amplification_images": 2, "audit_pairs": 128, "why_substeps": 2,
             "estimator": {"images": 512, "bins": 8, "channels": 4}}  # fmt: skip
    write_config(
        folder, samplers=SAMPLERS, shift=shift, train={**SMALL["train"], "images": 960},
        tune={"seeds": "1000-1015"}, compare={"solvers": [{"kind": "heun"}], "rounds": 1, "timed_images": 4},
    )  # fmt: skip
    snrkit(folder, "train", "-q")
    return folder


def test_few_tuning_seeds_are_said_to_shift_the_distance(trained):
    """16 of them, for 48 features; for four they are enough."""
    for features, few in ((48, True), (4, False)):
        changes = ("--set", f"metrics.pixel_components={features}", "--set", "tune.seeds=2000-2015")
        said = snrkit(trained, "tune", "--sampler", "es", "--by", "fd", "-q", *changes).stderr
        assert ("16 images of tune.seeds against" in said) is few


def test_tune_resumes_and_its_yaml_samples(trained):
    """Every method writes coefficients and a YAML that sample takes; a second run evaluates nothing anew."""
    for method in ("predicted", "gap", "fd", "optuna"):
        more = ("--set", "tune.trials=3") if method == "optuna" else ()
        done = snrkit(trained, "tune", "--sampler", "es", "--by", method, "-q", "--json", *more)
        one = json.loads(done.stdout)["es"]
        assert one["parameters"] == ["corrections.0.scale"]
        tuned = load_experiment(one["yaml"])
        assert tuned.samplers["es"].corrections[0].scale == one["values"][0]
    log = trained / "runs/small/tune/es.jsonl"
    before = log.read_text()
    again = json.loads(snrkit(trained, "tune", "--sampler", "es", "--by", "fd", "-q", "--json").stdout)["es"]
    assert log.read_text() == before
    assert set(again["found"]) == {"predicted", "gap", "fd", "optuna"}
    best = again["found"]["fd"]
    neutral = [s for s in map(json.loads, before.splitlines()) if s["what"] == "fd" and s["values"] == [1.0]]
    assert best["fd_on_tuning_seeds"] <= min(score["result"][0] for score in neutral)
    snrkit(trained, "tune", "--sampler", "dcw", "--by", "predicted", "-q")
    tuned = load_experiment(again["yaml"])  # holds what was last chosen for every sampler
    assert tuned.samplers["es"].corrections[0].scale == best["values"][0]
    assert tuned.samplers["dcw"].corrections[0].low != 0.01
    snrkit(trained, "sample", "--sampler", "es", "-q", config="runs/small/tune/tuned.yaml")


def test_compare_makes_one_table(trained):
    """Rows by NFE with bases, differences, verdicts and times; a second run takes over what the first has made."""
    first = json.loads(snrkit(trained, "compare", "-q", "--json").stdout)
    kept = {p: p.stat().st_mtime_ns for p in (trained / "runs/small/compare").iterdir()}
    record = json.loads(snrkit(trained, "compare", "-q", "--json").stdout)
    assert {p: p.stat().st_mtime_ns for p in (trained / "runs/small/compare").iterdir()} == kept
    assert [row["summary"] for row in record["rows"]] == [row["summary"] for row in first["rows"]]
    rows = {row["name"]: row for row in record["rows"]}
    assert [row["nfe"] for row in record["rows"]] == sorted(row["nfe"] for row in record["rows"])
    assert rows["dcw"]["base"] == "euler-5"
    assert rows["euler-5"]["base"] is None
    for name in ("dcw", "nag", "es", "heun-5"):
        row = rows[name]
        base = rows[row["base"]]
        mean = statistics.fmean(a["fd"] - b["fd"] for a, b in zip(row["ranges"], base["ranges"], strict=True))
        assert row["difference"]["fd"]["mean"] == pytest.approx(mean)
        assert math.isfinite(row["overhead"])
        assert row["verdict"] in ("better", "worse", "no difference shown")
    page = (trained / "runs/small/compare.md").read_text()
    assert "euler-6" in page
    assert "paired 95 % t-interval" in page


def test_all_probes_are_written_and_reported(trained):
    """measure-shift without an estimator says how to get one; with it every probe is in the JSON and in the report."""
    some = ("--sampler", "es", "--sampler", "nag")  # one that is corrected, one that is guided
    missing_capabilities = snrkit(trained, "measure-shift", "-q", *some, check=False)
    assert missing_capabilities.returncode == 1
    assert "run snrkit fit-estimator" in missing_capabilities.stderr
    snrkit(trained, "fit-estimator", "-q")
    records = json.loads(snrkit(trained, "measure-shift", "-q", *some, "--json").stdout)
    assert len(records) == 2
    for record in records.values():
        for probe in ("window", "horizon", "amplification", "audit", "estimator", "why", "flow"):
            assert record[probe] is not None, probe
    snrkit(trained, "report")
    report = (trained / "runs/small/report.md").read_text()
    assert "Training audit on" in report
    assert "## Probes" in report


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sampler", "es", "--set", "tune.seeds=0-10"), "scored by sample.seeds"),
        (("--sampler", "nope"), "unknown sampler 'nope'"),
        (("--sampler", "es", "--by", "magic"), "choose one of flow, predicted, gap, fd, optuna"),
        (("--sampler", "es", "--parameter", "0.scal"), "0.scale, 0.slope"),
        (("--sampler", "nag", "--by", "predicted"), "follows only dcw, epsilon_scaling, gain"),
    ],
)
def test_tune_refuses_what_cannot_be(trained, arguments, said):
    """One sentence, nothing written."""
    before = written(trained / "runs")
    done = snrkit(trained, "tune", "-q", *arguments, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert written(trained / "runs") == before


@pytest.mark.parametrize(
    ("samplers", "train", "said"),
    [
        ({"x": {**EULER, "corrections": [{"kind": "noise_awareness", "weight": 1}]}}, {"noise_dropout": 0.0},
         "samplers.x.corrections.0 (noise_awareness): needs a network trained with train.noise_dropout"),
        ({"x": {**EULER, "corrections": [{"kind": "cfg", "weight": 1}]}}, {"label_dropout": 0.0}, "(cfg): needs"),
        ({"x": {**EULER, "corrections": [{"kind": "time_shift", "window": 4}]}}, {}, "no table; set unit: nats"),
        ({"x": {**EULER, "corrections": [{"kind": "autoguidance", "weight": 1}]}}, {}, "cannot guide itself"),
    ],
)  # fmt: skip
def test_corrections_that_cannot_act_are_refused_before_sampling(tmp_path, samplers, train, said):
    """While the file is read, with the path in it and the reason."""
    write_config(tmp_path, samplers=samplers, train={**SMALL["train"], **train})
    done = snrkit(tmp_path, "sample", check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_fine_tune_begins_with_the_weights_it_names(trained, tmp_path):
    """resume_from takes over the average, on other labels and with noise dropout; another network is refused."""
    import torch
    from safetensors.torch import load_file

    content = {
        **SMALL, "name": "tuned", "samplers": {}, "data": {**SMALL["data"], "only": [1, 3]},
        "train": {**SMALL["train"], "images": 64, "lr": 1e-12, "noise_dropout": 0.5,
                  "resume_from": {"run": str(trained / "runs/small")}},
    }  # fmt: skip
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(content))
    snrkit(tmp_path, "train", "-q", config="tuned.yaml")
    origin = sorted((trained / "runs/small/checkpoints").iterdir())[-1] / "ema-1000.safetensors"
    ours = load_file(tmp_path / "runs/tuned/checkpoints/000000064/network.safetensors")
    for name, tensor in load_file(origin).items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-8)
    content["network"] = {**content["network"], "channels": 16}
    content["name"] = "other"
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(content))
    done = snrkit(tmp_path, "train", "-q", config="tuned.yaml", check=False)
    assert "has another network (network.channels is 8 there and 16 here); take these over" in done.stderr
    content["data"]["representation"] = {"kind": "haar"}
    content["train"]["augment"], content["network"]["augment"] = None, False
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(content))
    done = snrkit(tmp_path, "train", "-q", config="tuned.yaml", check=False)
    first = "data.representation.kind is 'pixels' there and 'haar' here"
    assert f"({first}; network.augment is True there and False here; network.channels" in done.stderr


def test_another_network_is_told_by_what_it_is_shown_first():
    """Latents, whichever way they are made; where all keys are alike, the images have other shapes."""
    digits = {**SMALL, "data": {"kind": "digits"}, "network": {**SMALL["network"], "augment": False, "classes": 10},
              "train": {**SMALL["train"], "augment": None}}  # fmt: skip
    ahead = {**digits, "data": {"kind": "latents", "path": "x.npz"}}
    asked = {**digits, "latents": {"path": "vae"}}
    here, latents, encoding = (parse_experiment(content, "small") for content in (digits, ahead, asked))
    assert network_differences(latents, here) == "data.kind is 'latents' there and 'digits' here"
    assert network_differences(encoding, here) == "latents is 'vae' there and None here"
    assert network_differences(here, here) == "its images have other channels or another size"
    other = parse_experiment({**digits, "data": {"kind": "folder", "path": "x"}}, "small")
    assert network_differences(other, here) == network_differences(here, here)


def test_the_size_of_a_shift_is_compared_resample_by_resample():
    """Noise that both share cancels, a row equals itself, None is no reading; sizes are roots of mean squares."""
    base = [0.04, 0.01, 0.09, 0.0625]
    same = to_json(size_change(base, base, 0.95))
    assert same["mean_square"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert same["verdict"] == "no difference shown"
    less = to_json(size_change([v - 0.03 for v in base], base, 0.95))
    assert (less["row"], less["base"], less["verdict"]) == (pytest.approx(0.1), pytest.approx(0.2), "smaller")
    assert less["mean_square"] == pytest.approx({"mean": -0.03, "low": -0.03, "high": -0.03})
    assert size_change([None, 0.1, 0.1, 0.1], base, 0.95) is None


def test_bands_of_one_pixel_are_refused_before_anything_is_written(tmp_path):
    """The images' own shape decides, before sampling, measuring, tuning or comparing begin."""
    samplers = {"x": {**EULER, "corrections": [{"kind": "dcw", "low": 0.1}]}}
    data = {"kind": "gaussian", "shape": [1, 1, 1], "count": 400}
    network = {"kind": "mlp"}
    train = {**SMALL["train"], "augment": None, "label_dropout": 0.0}
    write_config(tmp_path, samplers=samplers, data=data, network=network, train=train)
    for command in ("sample", "measure-shift", "tune", "compare"):
        done = snrkit(tmp_path, command, check=False)
        assert done.returncode == 1, command
        assert "at least 2 pixels a side, not 1x1" in done.stderr, command
        assert not (tmp_path / "runs").exists()
