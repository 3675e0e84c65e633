"""tune --by flow: coefficients and fitted steps of an experiment, and what samples with them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError
from snrkit.base.records import read_record
from snrkit.base.sealed import read_json
from snrkit.commands.candidates import certify_states
from snrkit.commands.compare_rows import comparison_layout
from snrkit.commands.design import design_states, run_design
from snrkit.commands.tune import run_tuning
from snrkit.diffusion.process import Edm
from snrkit.experiment import flows
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.flows import check_flows_fit
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from snrkit.fitting.guard import guarded
from snrkit.fitting.least_squares import HELD_AT_ONCE
from snrkit.reports.records import Designed
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.solvers import Fitted
from tests.small import SMALL, edit, load_images, snrkit, write_config, written

GRID = {"kind": "karras", "steps": 4}
SAMPLERS = {
    "euler": {"grid": GRID, "solver": {"kind": "euler"}},
    "dcw": {"grid": GRID, "solver": {"kind": "euler"}, "corrections": [{"kind": "dcw", "low": 0.01, "high": 0.01}]},
    "table": {"grid": GRID, "solver": {"kind": "euler"},
              "corrections": [{"kind": "dcw", "schedule": {"kind": "table"}}]},
    "fit": {"grid": GRID, "solver": {"kind": "fitted", "base": {"kind": "euler"}, "bands": "haar"}},
    "bns": {"grid": GRID, "solver": {"kind": "bns", "base": {"kind": "euler"}, "rounds": 5}},
    "drawn": {"grid": GRID, "solver": {"kind": "ancestral"}, "corrections": [{"kind": "dcw", "low": 0.01}]},
    "guided": {"grid": GRID, "solver": {"kind": "euler"}, "corrections": [{"kind": "cfg", "weight": 0.5}]},
}  # fmt: skip
TUNE = {"seeds": "1000-1059", "noises": 20}
FILE = {"samplers": SAMPLERS, "tune": TUNE, "sample": {"seeds": "0-63", "batch": 64}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coarse):
    """A trained small model, and all of its samplers tuned by flow that can be."""
    folder = tmp_path_factory.mktemp("flow")
    write_config(folder, **FILE)
    snrkit(folder, "train", "-q")
    named = [word for name in ("dcw", "table", "fit", "bns") for word in ("--sampler", name)]
    done = snrkit(folder, "tune", "--by", "flow", *named, "--json")
    return folder, json.loads(done.stdout)


def test_coefficients_come_with_interval_curve_and_verdict(trained):
    """Those of DCW: the values are in the YAML where the guard lets them pass, and neutral where not."""
    _, found = trained
    flow = found["dcw"]["found"]["flow"]
    for number, curve in zip(flow["flow"]["values"], flow["flow"]["curves"], strict=True):
        assert number["low"] <= number["value"] <= number["high"]
        assert len(curve) >= 5
    helps = flow["flow"]["guard"]["helps"]
    assert flow["values"] == [n["value"] if helps else 0.0 for n in flow["flow"]["values"]]


def test_fitted_steps_are_kept_and_sampled_with(trained):
    """Fitted to the network: sample takes them from the run; they come nearer to its flow, so that images differ."""
    folder, found = trained
    for name in ("fit", "table"):
        assert found[name]["guard"]["fitted"]["value"] < found[name]["guard"]["base"]["value"]
        assert found[name]["guard"]["helps"]
        assert found[name]["nfe"] == 4
    snrkit(folder, "sample", "--sampler", "fit", "--sampler", "table", "--sampler", "euler", "-q")
    run = Run(folder / "runs/small")
    images = {name: load_images(run.samples(name), range(8)) for name in ("fit", "table", "euler")}
    assert not (images["fit"] == images["euler"]).all()
    assert not (images["table"] == images["euler"]).all()
    snrkit(folder, "check", str(run.path), plain=True)
    page = snrkit(folder, "report")
    assert page.returncode == 0
    assert "nearest to the flow" in (run.path / "report.md").read_text()


def test_the_same_command_finds_the_same(trained):
    """Bit for bit, record for record, when it is made again."""
    folder, _ = trained
    before = {path: content for path, content in written(folder).items() if "fits" in path.parts}
    assert len(before) == 3
    for path in before:
        (folder / path).unlink()
    snrkit(folder, "tune", "--by", "flow", "-q", "--sampler", "fit", "--sampler", "table", "--sampler", "bns")
    assert before == {path: content for path, content in written(folder).items() if "fits" in path.parts}


def test_what_was_found_is_not_looked_for_again(trained, monkeypatch):
    """So that a command that was stopped goes on; by other first states, it is."""
    folder, found = trained
    named = [word for name in ("dcw", "table", "fit", "bns") for word in ("--sampler", name)]
    asked = ["tune", "--by", "flow", *named, "--json"]

    def refuse(*_):
        raise AssertionError("the flow is followed again")

    monkeypatch.setattr("snrkit.commands.tune_flow.follow_flow", refuse)
    again = json.loads(snrkit(folder, *asked).stdout)
    assert again == found
    for setting in ("tune.noises=21", "tune.seeds=1000-1060", "sample.average=network"):
        done = snrkit(folder, *asked, "--set", setting, check=False)
        assert "the flow is followed again" in done.stderr, setting


def test_without_names_it_tunes_what_can_be(trained, tmp_path):
    """Those with coefficients and those that take a fit, whatever else the file holds."""
    folder, _ = trained
    few = {name: SAMPLERS[name] for name in ("euler", "dcw", "fit")}
    write_config(folder, **{**FILE, "samplers": few})
    said = snrkit(folder, "tune", "--by", "flow").stdout
    write_config(folder, **FILE)
    assert "rms to the flow" in said
    assert "corrections.0.low" in said
    assert "fits/" in said
    assert "euler" not in said


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        (["--by", "flow", "--sampler", "drawn"], {}, "ancestral draws noise"),
        (["--by", "flow", "--sampler", "guided"], {}, "cfg changes the flow itself"),
        (["--by", "fd", "--sampler", "fit"], {}, "fitted by flow alone"),
        (["--by", "flow", "--sampler", "fit", "--parameter", "0.low"], {}, "takes a fit of every step"),
        (["--by", "flow", "--sampler", "fit"], {"tune": {"seeds": "1000-1019"}}, "give 256 at least, or fewer"),
        (["--by", "flow", "--sampler", "euler"], {}, "has no coefficient to tune"),
    ],
)
def test_what_cannot_be_tuned_is_refused(trained, arguments, changes, said):
    """In one sentence, with nothing written."""
    folder, _ = trained
    write_config(folder, **{**FILE, **changes})
    before = written(folder)
    done = snrkit(folder, "tune", *arguments, check=False)
    write_config(folder, **FILE)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert {p: c for p, c in written(folder).items() if "runs" in p.parts} == {
        p: c for p, c in before.items() if "runs" in p.parts
    }


def test_a_fit_of_another_model_is_refused(trained):
    """Of other weights, of another grid, and one that is damaged; what to do is said."""
    folder, _ = trained
    run = Run(folder / "runs/small")
    paths = sorted((run.path / "fits").glob("*.json"))
    kept = {path: path.read_bytes() for path in paths}
    for path in paths:
        edit(path, of={**read_json(path)["of"], "weights_checksum": "another"})
    done = snrkit(folder, "sample", "--sampler", "fit", "--overwrite", check=False)
    assert "weights checksum differ" in " ".join(done.stderr.split())
    assert "tune --by flow" in done.stderr
    for path, content in kept.items():
        path.write_bytes(content)
    other = {**SAMPLERS, "fit": {**SAMPLERS["fit"], "grid": {"kind": "karras", "steps": 5}}}
    write_config(folder, **{**FILE, "samplers": other})
    done = snrkit(folder, "sample", "--sampler", "fit", "--overwrite", check=False)
    assert "samplers.fit: it takes a fit" in " ".join(done.stderr.split())
    write_config(folder, **FILE)
    paths[0].write_text(paths[0].read_text()[:-40])
    assert snrkit(folder, "check", str(run.path), plain=True, check=False).returncode != 0
    for path, content in kept.items():
        path.write_bytes(content)


def test_seeds_that_were_fitted_on_are_not_scored(trained):
    """compare and certify refuse them, though the file names others to tune on now."""
    folder, _ = trained
    moved = ("--set", "tune.seeds=2000-2059", "--set", "sample.seeds=1018-1081", "-q")
    for line in (("compare",), ("certify", "--sampler", "euler")):
        done = snrkit(folder, *line, *moved, check=False)
        assert done.returncode != 0
        assert "of these seeds chose what" in " ".join(done.stderr.split())


def test_a_fit_is_of_the_weights_that_guidance_names_too(trained):
    """Where those are others than when it was fitted, it is refused."""
    folder, _ = trained
    weak = folder / "weak"
    shutil.copytree(folder / "runs/small", weak)
    guidance = {"kind": "autoguidance", "weight": 0.5, "run": str(weak), "average": "network"}
    write_config(folder, **{**FILE, "samplers": {"fit": {**SAMPLERS["fit"], "corrections": [guidance]}}})
    snrkit(folder, "tune", "--by", "flow", "--sampler", "fit", "-q")
    snrkit(folder, "sample", "--sampler", "fit", "-q", "--overwrite")
    shutil.rmtree(max((weak / "checkpoints").glob("[0-9]*")))
    done = snrkit(folder, "sample", "--sampler", "fit", "--overwrite", check=False)
    write_config(folder, **FILE)
    assert "named weights differ" in " ".join(done.stderr.split())


def test_the_base_of_a_fitted_row_is_its_base_solver():
    """At equal cost, without what was fitted."""
    few = {name: SAMPLERS[name] for name in ("fit", "table")}
    rows = comparison_layout(parse_experiment({**SMALL, "samplers": few}, "small"))
    assert rows[rows["fit"].base].sampler.solver.kind == "euler"
    assert rows["table"].base == rows["fit"].base
    assert not rows[rows["fit"].base].sampler.corrections


@pytest.mark.parametrize("name", ["euler", pytest.param("guided", marks=pytest.mark.slow)])
def test_a_designed_grid_is_sampled_with(trained, name):
    """At the number of evaluations that was asked for, rising levels, nearer to the flow than the plain sampler."""
    folder, _ = trained
    nfe = 3 if name == "euler" else 6
    found = json.loads(snrkit(folder, "design", "--sampler", name, "--nfe", str(nfe), "--json").stdout)[name]
    label = f"{name}-designed-{nfe}"
    assert found["sampler"] == label
    assert found["distance"] <= found["own_grid"]
    assert found["guard"]["fitted"]["value"] < found["guard"]["base"]["value"]
    assert len(found["grid"]["logsnr"]) == 3
    experiment = load_experiment(found["written"])
    assert experiment.model.parts.cost(experiment.samplers[label]) == nfe
    (folder / "designed.yaml").write_text(Path(found["written"]).read_text())
    snrkit(folder, "sample", "--sampler", label, "-q", config="designed.yaml")
    assert len(load_images(Run(folder / "runs/small").samples(label), range(8))) == 8


def test_a_design_that_is_not_confirmed_leaves_the_sampler_as_it_is(trained, monkeypatch):
    """Grid, solver and states: equal steps of the base on the designed levels were never looked at."""
    folder, _ = trained
    say_no = lambda *args: replace(guarded(*args), helps=False)  # noqa: E731
    monkeypatch.setattr("snrkit.commands.tune_flow.guarded", say_no)
    done = snrkit(folder, "design", "--sampler", "euler", "--nfe", "4", "--json")
    found = json.loads(done.stdout)["euler"]
    samplers = load_experiment(found["written"]).samplers
    asked = samplers["euler"].grid.model_copy(update={"steps": 4})
    assert samplers["euler-designed-4"] == samplers["euler"].model_copy(update={"grid": asked})
    assert found["grid"] == asked.model_dump(mode="json")
    said = " ".join(snrkit(folder, "design", "--sampler", "euler", "--nfe", "4").stdout.split())
    assert "as this is not confirmed, the file holds the sampler as it is" in said


def test_a_known_flow_is_no_reason_to_follow_it_with_noise(trained):
    """A sampler that draws noise is refused for that, after another of the same grid was tuned too."""
    folder, _ = trained
    same = {"one": SAMPLERS["table"], "drawn": {**SAMPLERS["table"], "solver": {"kind": "ancestral"}}}
    write_config(folder, **{**FILE, "samplers": same})
    done = snrkit(folder, "tune", "--by", "flow", "--sampler", "one", "--sampler", "drawn", check=False)
    write_config(folder, **FILE)
    assert "ancestral draws noise" in " ".join(done.stderr.split())


@pytest.mark.parametrize("by", ["gits", "oss"])
def test_a_published_grid_is_for_the_sampler_s_own_steps(trained, by):
    """A list of levels for the same solver, and both distances; nothing is fitted, and nothing kept in the run."""
    folder, _ = trained
    found = json.loads(snrkit(folder, "design", "--sampler", "euler", "--nfe", "3", "--by", by, "--json").stdout)
    record = found["euler"]
    sampler = load_experiment(record["written"]).samplers[f"euler-{by}-3"]
    assert sampler.grid.kind == "listed"
    assert sampler.solver.kind == "euler"
    assert not (folder / "runs/small/fits" / f"euler-{by}-3.json").exists()
    kept = read_record(Designed, folder / f"runs/small/design/euler-{by}-3.json")
    assert kept.seeds == TUNE["seeds"]  # which are not scored then
    assert 0 < record["distance"] != record["own_grid"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nfe", "3", "--by", "ays"], "choose fitted, gits, oss"),
        (["--nfe", "5", "--sampler", "guided"], "cannot have as many"),
        (["--nfe", "3", "--sampler", "drawn"], "ancestral draws noise"),
        (["--nfe", "3", "--sampler", "no"], "unknown sampler"),
        (["--nfe", "3", "--sampler", "drawn", "--set", "sample.seeds=1000-1020"], "are scored by sample.seeds too"),
    ],
)
def test_what_cannot_be_designed_is_refused(trained, arguments, said):
    """In one sentence."""
    folder, _ = trained
    done = snrkit(folder, "design", *arguments, check=False)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("command", ["tune", "design"])
def test_what_cannot_be_held_is_refused_before_anything_is_computed(command, tmp_path, monkeypatch):
    """In one sentence, where less is free than the flows take by estimate; where there is, the run is asked for."""
    experiment, world = parse_experiment({**SMALL, **FILE}, "small"), World(0, 1, torch.device("cpu"))
    begin = {
        "tune": lambda: run_tuning(experiment, tmp_path, world, ["fit"], "flow", []),
        "design": lambda: run_design(experiment, tmp_path, world, ["euler"], 3),
    }
    monkeypatch.setattr(flows, "free_memory", lambda _: 2**20)
    with pytest.raises(ConfigError, match=r"^tune\.noises: the flows from 20 .* 1\.0 MiB free; give fewer noises\.$"):
        begin[command]()
    monkeypatch.setattr(flows, "free_memory", lambda _: 2**40)
    with pytest.raises(RunError):
        begin[command]()
    assert not written(tmp_path)


def test_what_flows_need_grows_with_first_states_and_levels():
    """By 8 bytes for each number of each state that is kept."""
    setting = open_experiment(parse_experiment(SMALL, "small"), World(0, 1, torch.device("cpu"))).setting
    dims = math.prod(setting.data.dataset.shape)

    def enough(noises, states):
        low, high = 0, 2**60
        while high - low > 1:
            middle = (low + high) // 2
            try:
                check_flows_fit(setting, noises, states, middle)
                high = middle
            except ConfigError:
                low = middle
        return high

    assert enough(20, 90) - enough(20, 80) == 8 * dims * 20 * 10
    assert enough(40, 80) - HELD_AT_ONCE == 2 * (enough(20, 80) - HELD_AT_ONCE) > 2 * 8 * dims * 20 * 80


def test_a_certificate_holds_more_than_a_design():
    """The flows of its three sets of first states beside it."""
    sampler, process = Sampler.model_validate(SAMPLERS["euler"]), Edm()
    shape = sampler.model_copy(update={"solver": Fitted()})
    assert certify_states(sampler, process, lambda s: s.grid.steps) == design_states(shape, process) + 3 * 5


def test_the_probe_flow_reads_the_distance(trained):
    """Of Euler and of the steps that were fitted: smaller; none of a solver that draws noise."""
    folder, _ = trained
    line = ["measure-shift", "--sampler", "euler", "--sampler", "fit", "--sampler", "drawn", "--json", "-q"]
    options = ("shift.probes=[flow]", "shift.flow_images=20")
    found = json.loads(snrkit(folder, *line, *(part for o in options for part in ("--set", o))).stdout)
    read = {name: record["probes"]["flow"] if "probes" in record else record["flow"] for name, record in found.items()}
    assert read["drawn"] is None
    assert read["fit"]["distance"]["value"] < 0.8 * read["euler"]["distance"]["value"]
    assert read["euler"]["images"] == 20
    assert len(read["euler"]["at_levels"]) == 3
