"""certify: one answer for a sampler, confirmed on seeds that chose nothing, and kept so that it goes on."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from scipy.stats import nct
from scipy.stats import t as student

from snrkit.base.errors import ConfigError
from snrkit.base.records import read_record
from snrkit.base.sealed import read_json
from snrkit.base.starters import STARTERS
from snrkit.commands import certify, opening
from snrkit.commands.candidates import Candidate, Candidates, Made
from snrkit.commands.certify import RANGES, ROUNDING, _confirmations, _try
from snrkit.commands.certify_cost import Cost, cost_of, shorter
from snrkit.commands.certify_model import write_experiment
from snrkit.commands.compare_rows import comparison_layout
from snrkit.commands.pace import duration
from snrkit.commands.progress import EVALUATIONS
from snrkit.experiment.certificate import Certificate
from snrkit.experiment.experiment import load_experiment, parse_experiment
from snrkit.experiment.fits import FitOf
from snrkit.experiment.run import Run
from snrkit.reports.certificate import certificate_page, evaluation_card, sentence
from snrkit.sampling.corrections import EpsilonScaling
from snrkit.sampling.corrections.guidance import ClassifierFreeGuidance
from snrkit.sampling.grid import Karras, Listed
from snrkit.sampling.sampler import Sampler, bare, guided_alone
from snrkit.sampling.solvers import Heun, Ipndm, Unipc
from tests.reports.reading import read
from tests.small import SMALL, load_images, snrkit, write_config, written

GRID = {"kind": "karras", "steps": 4}
SAMPLERS = {
    "euler": {"grid": GRID, "solver": {"kind": "euler"}},
    "fine": {"grid": {"kind": "karras", "steps": 40}, "solver": {"kind": "ipndm"}},
    "drawn": {"grid": GRID, "solver": {"kind": "ancestral"}},
    "fit": {"grid": GRID, "solver": {"kind": "fitted"}},
}
FILE = {
    "samplers": SAMPLERS, "tune": {"seeds": "1000-1059", "noises": 20}, "sample": {"seeds": "0-63", "batch": 64},
    "compare": {"solvers": [{"kind": "heun"}, {"kind": "unipc"}, {"kind": "unipc", "p": 1}]},
    "network": {"kind": "mlp", "dim": 32, "depth": 1, "classes": 4, "augment": True},  # quick
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coarse):
    """A trained small model."""
    folder = tmp_path_factory.mktemp("certify")
    write_config(folder, **FILE)
    snrkit(folder, "train", "-q")
    return folder


@pytest.fixture(scope="module")
def certified(trained):
    """The certificate of Euler at 4 evaluations."""
    return json.loads(snrkit(trained, "certify", "--sampler", "euler", "--card", "--json", "-q").stdout)["euler"]


def test_the_card_says_what_the_certificate_says(trained, certified):
    """Front matter that YAML reads, with the numbers of the record, and the sentence."""
    text = Run(trained / "runs/small").certificate("euler", ".card.md").read_text()
    _, front, body = text.split("---\n", 2)
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    side = "fitted" if certified["advice"] == "use the recipe" else "base"
    assert values["rms_to_flow"] == certified["guard"][side]["value"]
    assert values["fd"] == certified["score"]["winner" if certified["advice"] == "use the recipe" else "base"]
    assert certified["sentence"] in body


@pytest.mark.parametrize(("advice", "side"), [("use the recipe", "winner"), ("leave it as it is", "base")])
def test_the_card_has_the_score_of_what_is_advised(trained, certified, advice, side):
    """Not that of a winner which was not confirmed."""
    stored = read_record(Certificate, Run(trained / "runs/small").certificate("euler"))
    assert stored.score is not None
    score = replace(stored.score, base=10.0, winner=99.0)
    text = evaluation_card(replace(stored, advice=advice, score=score))
    metrics = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["metrics"]
    assert next(m["value"] for m in metrics if m["type"] == score.key) == getattr(score, side)


def test_a_coarse_sampler_gets_a_recipe_or_is_left_by_the_rule(trained, certified):
    """What was chosen is the nearest of all that was tried; the advice follows from guard and score alone."""
    tried = {one["name"]: one for one in certified["candidates"]}
    assert list(tried) == [
        "as-it-is", "ipndm", "heun", "unipc", "unipc-2", "fitted", "fitted-on-own", "fitted-by-band", "dcw-table",
        "designed", "dcw-pixel", "dcw-bands", "epsilon-scaling", "constant-gain",
    ]  # fmt: skip
    distances = {name: one["distance"]["value"] for name, one in tried.items() if one["distance"]}
    assert certified["winner"] == min(distances, key=distances.get)
    assert distances["unipc"] != distances["unipc-2"]
    assert certified["winner"] != "as-it-is"
    use = certified["guard"]["helps"] and certified["score"]["verdict"] != "worse"
    assert certified["guard"]["base"]["value"] > ROUNDING
    assert certified["advice"] == ("use the recipe" if use else "leave it as it is")
    assert certified["not_tried"] == []
    for suffix in (".md", ".html"):
        page = Run(trained / "runs/small").certificate("euler", suffix).read_text()
        assert all(name in page for name in tried)
        assert "dcw (schedule table)" in page
        assert "samplers: {mine: {certificate: RUN/certify/euler.json}}" in page
    gap, tips = certified["shift"]["norm_gap"], read(page).tips
    assert tips["Norm gap", "norm gap", "norm gap"].split()[0] == f"{gap['value']:.4g}".replace("-", "\N{MINUS SIGN}")
    assert {name for figure, name, _ in tips if figure == "Distance to the flow"} == set(distances)
    stored = read_record(Certificate, Run(trained / "runs/small").certificate("euler"))
    assert stored.sentence == certified["sentence"]
    assert "euler at 4 evaluations" in stored.sentence


def test_the_run_s_own_fits_are_left_alone_and_scores_have_ranges(trained, certified):
    """What was fitted stands in the certificate; an interval is of RANGES ranges, though the file has fewer."""
    run = Run(trained / "runs/small")
    assert not (run.path / "fits").exists()
    assert {path.name for path in (run.path / "certify").glob("euler.*")} == {
        "euler.json", "euler.yaml", "euler.md", "euler.html", "euler.card.md",
    }  # fmt: skip
    assert load_experiment(trained / "small.yaml").metrics.ranges < RANGES
    assert len(read_json(run.compared("euler-certified"))["score"]["ranges"]) == RANGES
    assert certified["score"]["difference"]["low"] is not None


def test_candidates_of_other_seeds_are_not_taken_up(trained, certified, tmp_path):
    """They were fitted and shown on first states that might confirm now: another part of the seeds tries all anew."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    line = ("certify", "--sampler", "euler", "--minutes", "0", "--json", "-q")
    found = json.loads(snrkit(folder, *line, "--set", "tune.seeds=1040-1059,1000-1039").stdout)["euler"]
    assert [one["name"] for one in found["candidates"]] == ["as-it-is"]


def test_a_candidate_is_asked_for_by_all_that_decides_it():
    """Its name, its sampler with every option, and the first states that it is fitted and shown on."""
    sampler = Sampler.model_validate(SAMPLERS["euler"])
    other = sampler.model_copy(update={"solver": Unipc(p=1)})
    one = Candidate("a", sampler, partial(Made, sampler))
    asked = {
        one.asked([[1, 2], [3, 4]]), one.asked([[1, 2], [3, 5]]), one.asked([[1], [2, 3, 4]]),
        Candidate("b", sampler, one.make).asked([[1, 2], [3, 4]]),
        Candidate("a", other, one.make).asked([[1, 2], [3, 4]]),
        Candidate("a", other.model_copy(update={"solver": Unipc()}), one.make).asked([[1, 2], [3, 4]]),
    }  # fmt: skip
    assert len(asked) == 6


@pytest.mark.parametrize(("harm", "shown"), [(1, 0.40), (2, 0.91)])
def test_what_five_ranges_show(harm, shown):
    """The chance that a 95 % interval shows a harm of so many spreads of the paired differences, as the docs say."""
    dof = RANGES - 1
    power = float(nct.sf(student.ppf(0.975, dof), dof, harm * RANGES**0.5))
    assert power == pytest.approx(shown, abs=0.005)


def test_for_a_pipeline_only_its_own_solver_and_levels_are_tried():
    """Every candidate has the grid of the sampler, and its solver, alone or with steps fitted on it."""
    for solver in (Heun(), Ipndm()):
        given = Sampler(grid=Karras(steps=4), solver=solver, corrections=(EpsilonScaling(scale=1.01),))
        plain, cost = guided_alone(given), parse_experiment(SMALL, "small").model.parts.cost
        states = SimpleNamespace(x=torch.zeros(2, 1, 4, 4))
        every = list(Candidates(given, plain, cost(given), cost, (Unipc(),), states, states, None, True).every())
        assert {one.shape.grid for one in every} == {given.grid}
        assert {bare(one.shape).solver for one in every} == {solver}
        assert "fitted-on-own" in {one.name for one in every}


def test_what_cannot_be_had_says_so():
    """A listed grid has the steps that it lists: what would need others stays in the list, with the reason."""
    grid = Listed(sigma=(10.0, 1.0, 0.1))
    given = Sampler(grid=grid, solver=Heun())
    cost = parse_experiment(SMALL, "small").model.parts.cost
    states = SimpleNamespace(x=torch.zeros(2, 1, 4, 4))
    every = {one.name: one for one in Candidates(given, given, cost(given), cost, (), states, states, None).every()}
    for name in ("fitted", "fitted-by-band", "ipndm", "designed"):
        with pytest.raises(ConfigError, match="has no 5 evaluations with this solver"):
            every[name].make()


def test_a_candidate_that_does_not_stay_finite_is_none():
    """It has no distance, so that it cannot win, and the reason is kept."""
    sampler = Sampler.model_validate(SAMPLERS["euler"])
    states = SimpleNamespace(flow=SimpleNamespace(states=[torch.zeros(2, 1, 4, 4)], error=0.0))
    made = SimpleNamespace(sampler=sampler, rows=None, walked=lambda _: torch.full((2, 1, 4, 4), torch.nan))
    tried = _try(FitOf("", 0, "", "", 0, None, None), "", Candidate("nan", sampler, lambda: made), states)
    assert tried.distance is None
    assert "do not stay finite" in tried.why


def test_a_candidate_that_takes_too_much_memory_is_none():
    """Others are tried all the same; any other fault of a computation is one of snrkit's, and is raised."""

    def fails(error):
        raise error

    sampler, of = Sampler.model_validate(SAMPLERS["euler"]), FitOf("", 0, "", "", 0, None, None)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        tried = _try(of, "", Candidate("large", sampler, partial(fails, error)), SimpleNamespace())
        assert (tried.distance, tried.why) == (None, "it takes more memory than there is.")
    with pytest.raises(RuntimeError, match="shapes"):
        _try(of, "", Candidate("wrong", sampler, partial(fails, RuntimeError("shapes differ"))), SimpleNamespace())


def test_going_on_tries_nothing_twice(trained, certified):
    """The same command again reads what was kept; what is gone or damaged is made again, to the same bits."""
    run = Run(trained / "runs/small")
    before = written(trained)
    run.candidate("euler", "dcw-table").unlink()
    damaged = run.candidate("euler", "ipndm")
    damaged.write_text(damaged.read_text()[:-40])
    again = json.loads(snrkit(trained, "certify", "--sampler", "euler", "--json", "-q").stdout)["euler"]
    assert again == certified
    assert {p: c for p, c in written(trained).items() if "certify" in p.parts} == {
        p: c for p, c in before.items() if "certify" in p.parts
    }


def test_the_command_that_repeats_it_names_a_file_of_its_own(trained, certified):
    """The experiment as it was, whatever later commands make of the run's config.yaml."""
    run = Run(trained / "runs/small")
    path = run.certificate("euler", ".yaml")
    assert certified["command"] == f"snrkit certify {path} --runs {trained / 'runs'} --sampler euler"
    then = load_experiment(path)
    snrkit(trained, "sample", "--sampler", "euler", "--set", "sample.seeds=0-7", "--overwrite", "-q")
    assert load_experiment(run.config).sample.seeds != then.sample.seeds == FILE["sample"]["seeds"]
    again = json.loads(snrkit(trained, *certified["command"].split()[1:], "--json", "-q", plain=True).stdout)
    assert again["euler"] == certified


def test_time_that_is_up_leaves_candidates_for_the_next_command(trained):
    """With no minutes only the sampler itself is tried, which is left as it is; what was not tried is named."""
    line = ("certify", "--sampler", "fine", "--minutes", "0", "--json", "-q")
    found = json.loads(snrkit(trained, *line).stdout)["fine"]
    assert found["winner"] == "as-it-is"
    assert found["advice"] == "leave it as it is"
    assert "fitted" in found["not_tried"]
    assert found["guard"]["base"]["value"] < ROUNDING
    assert "more closely than rounding to 8 bits" in found["sentence"]


def test_what_it_takes_is_foreseen(trained, tmp_path, monkeypatch):
    """Evaluations as they are counted, to a third; what --minutes does not spare is no less than without candidates."""
    folder, e, counted = tmp_path / "copy", load_experiment(trained / "small.yaml"), []
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "runs/small/certify", ignore_errors=True)
    monkeypatch.setattr(opening, "count", lambda unit, number: counted.append(number if unit == EVALUATIONS else 0))
    monkeypatch.setattr(certify, "evaluation_seconds", lambda *given: 0.001)
    cost = cost_of(e, [e.samplers["euler"]])
    snrkit(folder, "certify", "--sampler", "euler", "-q", "--minutes", "0")
    assert cost.before < sum(counted) <= cost.sure
    shutil.rmtree(folder / "runs/small/certify")
    counted.clear()
    snrkit(folder, "certify", "--sampler", "euler", "-q")
    assert sum(counted) == pytest.approx(cost.sure + cost.tried, rel=1 / 3)


def test_a_dry_run_says_how_long_and_what_would_be_shorter(trained, monkeypatch):
    """For as many minutes as are asked for; nothing is written."""
    monkeypatch.setattr(certify, "evaluation_seconds", lambda *given: 0.01)
    before = written(trained)
    line = ("certify", "--sampler", "euler", "--dry-run", "-q")
    more = ("--set", "tune.noises=200", "--set", "tune.seeds=1000-1999", "--set", "sample.seeds=0-899")
    printed = snrkit(trained, *line, *more, "--minutes", "1").stdout
    assert written(trained) == before
    e = load_experiment(trained / "small.yaml", [part for part in more if part != "--set"])
    cost = cost_of(e, [e.samplers["euler"]])
    takes = 0.01 * cost.after + max(60, 0.01 * cost.before)
    assert printed.startswith(f"certifying takes about {duration(takes)} here, less what was tried before, at 100 ")
    assert cost.seconds(0.01, 1) == takes < cost.seconds(0.01, None) == 0.01 * (cost.sure + cost.tried)
    guided = e.samplers["euler"].model_copy(update={"corrections": (ClassifierFreeGuidance(weight=1.0),)})
    assert cost_of(e, [guided]) == Cost(2 * cost.before, 2 * cost.tried, 2 * cost.after)
    least, settings = shorter(e)
    assert settings == "--set tune.noises=20 --set sample.seeds=0-199 --set metrics.decide=kid"
    assert f"With {settings} it takes about" in printed
    sure, tried = duration(0.01 * cost.sure), duration(takes - 0.01 * cost.sure)
    assert f": {sure} for flows, shifts and the score, and {tried} to try candidates, as --minutes counts" in printed
    names = printed.rstrip().rsplit("\n", 1)[1].removeprefix("tried in the place of euler: ").split(", ")
    assert {"as-it-is", "fitted", "ipndm", "designed", "dcw-pixel"} <= set(names)
    both = snrkit(trained, *line, "--sampler", "fine", *more).stdout
    assert both.startswith("certifying 2 samplers takes about ")
    assert f"With --sampler euler {settings} it takes about" in both
    assert both.count("tried in the place of ") == 2
    assert load_experiment(trained / "small.yaml", [*more[1::2], *settings.split()[1::2]]) == least
    refused = snrkit(trained, "certify", "model.pt", "--dry-run", check=False, plain=True)
    assert "--dry-run is of an experiment; snrkit init --from MODEL writes one" in refused.stderr


def test_what_time_did_not_allow_is_not_said_to_be_no_better(trained, certified):
    """A sentence knows what was tried from what was not."""
    record = read_record(Certificate, Run(trained / "runs/small").certificate("euler"))
    used = replace(record, advice="use the recipe", winner="fitted", not_tried=("ipndm", "heun"))
    known = len(record.candidates)
    assert sentence(used).endswith(f" {known} of {known + 2} candidates were tried; the same command goes on.")
    assert "candidates were tried" not in sentence(replace(used, not_tried=()))
    left = replace(record, advice="leave it as it is", winner="as-it-is", rounding=0.0)
    assert sentence(left).endswith("nothing that was tried comes nearer to the network's own flow.")
    some = replace(left, not_tried=("fitted", "designed"))
    assert sentence(some).endswith(f"own flow. {known} of {known + 2} candidates were tried; the same command goes on.")
    score, guard = replace(record.score, verdict="too few images"), replace(record.guard, helps=True)
    few = replace(record, advice="leave it as it is", rounding=0.0, score=score, guard=guard)
    assert "its images are too few for FD" in sentence(few)
    none = replace(some, candidates=left.candidates[:1])
    assert sentence(none).endswith(
        "there was no time to try anything else. 1 of 3 candidates were tried; the same command goes on."
    )


def test_winners_that_the_same_seeds_were_asked_about_are_counted(trained, certified):
    """Another winner on the same first states and seeds is the second, the same one is not, and the page says so."""
    run = Run(trained / "runs/small")
    path = run.certificate("euler")
    before, record = path.read_bytes(), read_record(Certificate, path)
    certifier = SimpleNamespace(run=run)
    assert record.confirmed == 1
    assert _confirmations(certifier, record) == 1
    assert _confirmations(certifier, replace(record, winner="other")) == 2
    assert _confirmations(certifier, replace(record, winner="as-it-is")) == 1
    assert _confirmations(certifier, replace(record, scored_seeds="50-99", winner="other")) == 1
    assert _confirmations(certifier, replace(record, scored_seeds="50-99", winner="as-it-is")) == 0
    path.write_bytes(before[:-9])
    assert _confirmations(certifier, record) == 1
    path.write_bytes(before)
    assert "winner number" not in path.with_suffix(".md").read_text()
    certificate_page(Run(trained / "again"), replace(record, confirmed=2), False)
    assert "This is winner number 2" in Run(trained / "again").certificate("euler", ".md").read_text()


def test_a_certificate_s_page_shows_the_same_seeds_of_both(trained, certified):
    """Of the sampler and of the winner, where images of both were scored; of a winner that was not, none."""
    run = Run(trained / "runs/small")
    record = read_record(Certificate, run.certificate("euler"))
    for score, pictures in ((record.score, 2), (None, 0)):
        certificate_page(run, replace(record, score=score), False)
        page = run.certificate("euler", ".html").read_text()
        assert page.count('class="samples"') == pictures
    certificate_page(run, record, False)


def test_a_run_with_certificates_is_sound(trained, certified):
    """check reads them."""
    assert snrkit(trained, "check", str(trained / "runs/small"), plain=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sampler", "drawn"], "ancestral draws noise"),
        (["--sampler", "fit"], "takes a fit, which certify makes by itself"),
        (["--sampler", "euler", "--set", "tune.seeds=0-59"], "scored by sample.seeds"),
        (["--sampler", "euler", "--set", "tune.noises=30"], "give 90 at least"),
        (["--sampler", "euler", "--set", "sample.seeds=0-8"], "9 images do not make 5 ranges"),
    ],
)
def test_what_cannot_be_certified_is_refused(trained, arguments, said):
    """In one sentence."""
    done = snrkit(trained, "certify", *arguments, "-q", check=False)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())


def test_a_certificate_is_a_sampler(trained, certified, tmp_path):
    """Named in a file it is the recipe, with the coefficients that stand in it, though the run has none."""
    run = Run(trained / "runs/small")
    path = run.certificate("euler")
    certified_sampler = {"certified": {"certificate": str(path)}}
    write_config(trained, **{**FILE, "samplers": {**SAMPLERS, **certified_sampler}})
    snrkit(trained, "sample", "--sampler", "certified", "-q")
    images = load_images(run.samples("certified"), range(8))
    if certified["advice"] == "use the recipe":
        kept = load_images(run.compared_samples("euler-certified"), range(8))
        assert torch.equal(images, kept)
    resolved = load_experiment(run.config)
    assert resolved.samplers["certified"].certificate == path
    rows = comparison_layout(resolved)
    assert rows[rows["certified"].base].sampler.certificate is None
    write_config(trained, **FILE)


def test_a_certificate_of_another_model_is_refused(trained, certified):
    """Of other weights, and one that is none; and beside it nothing else may be said."""
    path = str(Run(trained / "runs/small").certificate("euler"))
    for sampler, more, said in (
        ({"certificate": path}, ("--set", "sample.average=network"), "weights"),
        ({"certificate": path, "solver": {"kind": "unipc"}}, (), "the recipe has another solver"),
        ({"certificate": str(trained / "small.yaml")}, (), "name a certificate, which snrkit certify writes"),
        ({"certificate": "no.json"}, (), "no.json"),
    ):
        write_config(trained, **{**FILE, "samplers": {**SAMPLERS, "certified": sampler}})
        done = snrkit(trained, "sample", "--sampler", "certified", "-q", *more, check=False)
        write_config(trained, **FILE)
        assert done.returncode != 0
        assert said in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a YAML or a run directory"),
        (["no-such-model", "--data", "."], "there is no such file"),
        (["."], "give the images that it is to make by --data"),
        (["folder", "--data", "absent"], "--data: absent does not exist"),
        ([".", "--data", "."], "is of no kind that is known"),
        (["images", "--data", "images"], "images holds images, and no model that is known; name the model"),
    ],
)
def test_a_model_that_is_none_is_refused(tmp_path, monkeypatch, arguments, said):
    """In one sentence, with nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder/unet").mkdir(parents=True)
    if "images" in arguments:
        (tmp_path / "images/cats").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images/cats/0.png")
    before = written(tmp_path)
    done = snrkit(tmp_path, "certify", *arguments, plain=True, check=False)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert written(tmp_path) == before


def test_a_model_s_file_gets_a_yaml(tmp_path, monkeypatch):
    """Of its kind, with the sampler that such models are made for; the same command finds it as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snrkit.commands.certify_model.kinds_of", lambda path: ("edm",))
    (tmp_path / "edm-cifar10.pkl").write_bytes(b"")
    path = write_experiment(tmp_path / "edm-cifar10.pkl", tmp_path, 13)
    assert path == write_experiment(tmp_path / "edm-cifar10.pkl", tmp_path, 13)
    content = yaml.safe_load(path.read_text())
    assert content["samplers"]["heun-13"] == {"grid": {"kind": "karras", "steps": 7}, "solver": {"kind": "heun"}}
    assert content["model"]["kind"] == "edm"
    assert write_experiment(tmp_path / "edm-cifar10.pkl", tmp_path, 5) == path  # nobody has touched it
    path.write_text(path.read_text() + "name: mine\n")
    with pytest.raises(ConfigError, match="was edited"):
        write_experiment(tmp_path / "edm-cifar10.pkl", tmp_path, 13)


@pytest.mark.parametrize("kind", ["folder", "zip", "npz"])
def test_images_are_named_as_what_they_are(kind, tmp_path, monkeypatch):
    """A folder, a zip or an .npz; nothing else."""
    monkeypatch.chdir(tmp_path)
    model, data = STARTERS / "digits.safetensors", tmp_path / ("images" if kind == "folder" else f"images.{kind}")
    data.mkdir() if kind == "folder" else data.write_bytes(b"")
    made = yaml.safe_load(write_experiment(model, data, 5).read_text())
    assert made["data"] == {"kind": kind, "path": str(data)}
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="is no folder, zip or"):
        write_experiment(model, tmp_path / "notes.txt", 5)


def test_a_size_is_another_model(tmp_path, monkeypatch):
    """Of a model that takes several: its own file and run, so that what is found at one size is refused at another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snrkit.commands.certify_model.kinds_of", lambda path: ("diffusers",))
    (tmp_path / "model/scheduler").mkdir(parents=True)
    (tmp_path / "model/scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    paths = [write_experiment(tmp_path / "model", tmp_path, 5, size) for size in (None, 8, 16)]
    parts = [yaml.safe_load(path.read_text())["model"] for path in paths]
    assert [part.get("sides") for part in parts] == [None, [8, 8], [16, 16]]
    assert len({path.stem for path in paths}) == 3
    monkeypatch.setattr("snrkit.commands.certify_model.kinds_of", lambda path: ("edm",))
    with pytest.raises(ConfigError, match="whose file says its one size"):
        write_experiment(tmp_path / "model", tmp_path, 5, 8)


def test_a_folder_of_diffusers_is_certified_without_a_yaml(tmp_path, monkeypatch, coarse):
    """With a folder of images, at a size that is not its own; no time is left for more than the sampler as it is."""
    diffusers = pytest.importorskip("diffusers")
    from tests.checkpoints.test_diffusers import opened, unet

    monkeypatch.chdir(tmp_path)
    opened(tmp_path / "model", diffusers.DDIMScheduler(), unet(sample_size=16))
    (tmp_path / "images").mkdir()
    draws = torch.Generator().manual_seed(0)
    for index in range(60):
        image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=draws)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"images/{index}.png")
    settings = {
        "data.holdout": 0.5, "tune.noises": 20, "tune.seeds": "1000-1059", "sample.seeds": "0-19", "shift.images": 20,
        "shift.bootstrap": 100, "metrics.pixel_components": 2,
    }  # fmt: skip
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    line = ("certify", tmp_path / "model", "--data", tmp_path / "images", "--nfe", "3", "--size", "8", "--minutes", "0")
    found = json.loads(snrkit(tmp_path, *line, *changes, "--json", "-q", plain=True).stdout)["euler-3"]
    assert found["advice"] == "leave it as it is"
    assert found["nfe"] == 3
    assert "fitted" in found["not_tried"]
    assert Run(tmp_path / "runs/certify-model-8").certificate("euler-3").exists()
