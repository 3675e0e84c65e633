"""measure-shift and its probes: what a probe says of itself is all that commands, files and reports know of it."""

import json
from dataclasses import dataclass, fields, replace
from shutil import copytree
from typing import Annotated, ClassVar, Literal, Union, get_args

import pytest
import torch
import yaml
from pydantic import Field

import snrkit
from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError, RunError, SnrkitError
from snrkit.base.numerics import NUMERICS
from snrkit.base.records import to_json
from snrkit.base.sealed import read_json, write_json
from snrkit.commands.fit_estimator import run_estimating
from snrkit.commands.measure_shift import run_measuring
from snrkit.commands.run_all import run_everything
from snrkit.commands.train import run_training
from snrkit.experiment.experiment import Experiment, dump_yaml, file_schema, load_experiment, parse_experiment
from snrkit.experiment.instrument import check_arms_fit
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.yaml_files import apply_settings
from snrkit.reports.run_report import guide, write_report
from snrkit.shift import config
from snrkit.shift.config import ShiftConfig, every_probe
from snrkit.shift.files import Facts, probes_before, shift_record
from snrkit.shift.horizon import HorizonProbe
from snrkit.shift.measure import Shift
from snrkit.shift.probe import ProbeValue
from snrkit.training.randomness import ImageStreams
from tests.small import SMALL, drawing, written

WORLD = World(0, 1, torch.device("cpu"))
FEW = {"window_images": 8, "horizon_images": 16, "amplification_images": 2, "audit_pairs": 128, "why_substeps": 2}
SETTINGS = {**SMALL["shift"], **FEW, "estimator": {"images": 256, "batch": 64, "bins": 8, "channels": 4}}


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest absolute value at each level."""

    values: list[float]


class LargestProbe(ProbeValue):
    """A probe that nobody but this file knows."""

    kind: Literal["largest"] = "largest"
    scale: float = Field(default=1.0, gt=0)

    record: ClassVar[type[Largest]] = Largest
    columns: ClassVar[tuple[str, ...]] = ("largest value at first", "and at last")
    guide: ClassVar[str] = "Largest value: the absolute value that no pixel of any state exceeds."

    def watch(self, equipment):
        """The largest value of each state."""
        return lambda states, _: states.abs().flatten(1).amax(1).double()

    def read(self, specimen):
        """Of the sampler's own states."""
        return Largest((self.scale * specimen.reverse.of_states.watched["largest"].amax(1)).tolist())

    def cells(self, record):
        """First and last."""
        return f"{record.values[0]:.1f}", f"{record.values[-1]:.1f}"


@pytest.fixture(scope="module", autouse=True)
def _largest():
    """The union of probes with one more, which is the one line that a new probe takes."""
    known, field = config.AnyProbe, ShiftConfig.model_fields["probes"]
    more = Annotated[Union[(*get_args(get_args(known)[0]), LargestProbe)], Field(discriminator="kind")]
    for union in (more, known):
        config.AnyProbe, field.annotation = union, tuple[union, ...]
        for model in (ShiftConfig, Experiment):
            model.model_rebuild(force=True)
        if union is more:
            yield


def small(**shift):
    return parse_experiment({**SMALL, "shift": {**SETTINGS, **shift}, "train": {**SMALL["train"], "images": 320}}, "x")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, _largest, coarse):
    """(folder of runs, experiment, records, page) of a small run that was measured by every probe there is."""
    runs = tmp_path_factory.mktemp("measured")
    experiment = small(probes=[probe.kind for probe in every_probe()], largest_scale=2.0)
    run_training(experiment, runs, WORLD, quiet=True)
    run_estimating(experiment, runs, WORLD, quiet=True)
    with drawing():
        records = run_measuring(experiment, runs, WORLD, quiet=True)
        page, _ = write_report(Run(runs / "small"), experiment)
    return runs, experiment, records, page.with_suffix(".md").read_text()


def content_of(runs, sampler="euler"):
    return read_json(Run(runs / "small").shift(sampler))


def test_a_probe_of_ones_own_is_read_and_shown(measured):
    """One file and one line: its record is in the JSON, its cells in the table, its sentences in the guide."""
    runs, _, records, page = measured
    found = records["euler"].probes["largest"]
    assert content_of(runs)["largest"] == {"values": found.values}
    noise = ImageStreams(range(32))
    noise.labels(4)
    assert found.values[0] == pytest.approx(2 * 80 * float(noise.normal((1, 8, 8)).abs().max()))  # sigma_max is 80
    row = next(line for line in page.splitlines() if "largest value at first" in line)
    assert row.split(" | ")[-1] == "and at last |"
    assert f"| {found.values[0]:.1f} | {found.values[-1]:.1f} |" in page
    assert LargestProbe.guide in page
    assert "largest_scale: 2.0" in (runs / "small/config.yaml").read_text()


def test_every_probe_reaches_the_report(measured):
    """Record, columns, guide, remark and picture of every probe of the union; a dash where nothing was read."""
    runs, _, records, page = measured
    run = Run(runs / "small")
    header = next(line for line in page.splitlines() if line.startswith("| sampler | nearest level"))
    for probe in every_probe():
        for name, record in records.items():
            found = record.probes[probe.kind]
            draws = (probe.kind, name) == ("flow", "ancestral")  # which has no flow to be near to
            assert found is None if draws else isinstance(found, probe.record)
            assert content_of(runs, name)[probe.kind] == (None if draws else to_json(found))
            cells = ("-",) * len(probe.columns) if draws else probe.cells(found)
            assert len(cells) == len(probe.columns)
            assert not cells or f"| {' | '.join(cells)} |" in page
        assert not probe.columns or f"| {' | '.join(probe.columns)} |" in header
        assert probe.guide in page
        assert probe.picture_guide in page
        remark = probe.remark([found for record in records.values() if (found := record.probes[probe.kind])])
        assert remark is None or remark in page
        assert probe.columns or remark
        drawn = probe.picture(records["euler"].probes[probe.kind], "title")
        path = run.shift("euler", f"@{probe.kind}.png")
        assert path.exists() == (drawn is not None)
        assert drawn is None or path.stat().st_size > 10_000
        assert (f"(shift/euler@{probe.kind}.png)" in page) == (drawn is not None)
        assert drawn is None or drawn.startswith(b"\x89PNG")
    assert guide()[3].startswith("Probes, all negative where states are noisier than told")


def test_the_keys_of_a_measurement(measured):
    """Those that scripts read, side by side, and one for every probe."""
    runs, *_ = measured
    probes = [probe.kind for probe in every_probe()]
    assert [*content_of(runs)] == [*(f.name for f in fields(Facts)), *(f.name for f in fields(Shift)), *probes]
    assert len({*content_of(runs)}) == len(fields(Facts)) + len(fields(Shift)) + len(probes)


def test_a_measurement_is_read_as_it_was_written(measured):
    """Field by field; a file from before a probe was known has none of it; what does not fit is named."""
    runs, _, records, _ = measured
    content, path = content_of(runs), Run(runs / "small").shift("euler")
    assert to_json(shift_record(content, path)) == content == to_json(records["euler"])
    older = {key: value for key, value in content.items() if key != "largest"}
    assert shift_record(older, path).probes["largest"] is None
    with pytest.raises(SnrkitError, match=r"euler\.json: horizon.*steps is 'two'"):
        shift_record({**content, "horizon": {**content["horizon"], "steps": "two"}}, path)
    assert probes_before(path, records["euler"].facts).keys() == {probe.kind for probe in every_probe()}
    assert probes_before(path, replace(records["euler"].facts, checkpoint_images=1)) == {}


def test_a_run_without_probes_has_no_columns_of_them(measured, tmp_path):
    """And no remark."""
    runs, experiment, *_ = measured
    (tmp_path / "small").symlink_to(runs / "small")
    plain = experiment.model_copy(update={
        "shift": experiment.shift.model_copy(update={"probes": (), "images": 24}),
        "samplers": {"other": experiment.samplers["euler"]},
    })  # fmt: skip
    record = run_measuring(plain, tmp_path, WORLD, quiet=True)["other"]
    assert set(record.probes.values()) == {None}
    page = write_report(Run(tmp_path / "small"), plain)[0].with_suffix(".md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| other | ") and "karras" not in line)
    assert " - " not in row
    assert "Training audit" not in page


def test_options_beside_the_probes_are_the_probes_own():
    """Every option of every probe, as <kind>_<option> and in a mapping, is one Value; a resolved file gives it back."""
    for probe in every_probe():
        for name, field in type(probe).model_fields.items():
            if name == "kind":
                continue
            assert not field.is_required()
            other = 2 * field.default
            beside = ShiftConfig.model_validate({"probes": [probe.kind], f"{probe.kind}_{name}": other})
            inside = ShiftConfig.model_validate({"probes": [{"kind": probe.kind, name: other}]})
            assert beside == inside == ShiftConfig(probes=(probe.model_copy(update={name: other}),))
            assert beside != ShiftConfig(probes=(probe,))
            assert beside.model_dump()[f"{probe.kind}_{name}"] == other
            assert ShiftConfig.model_validate(beside.model_dump()) == beside
            assert f'"{probe.kind}_{name}"' in json.dumps(file_schema())


def test_a_resolved_file_takes_settings_as_its_source_does():
    """--set acts on options and probes in what dump_yaml wrote, and leaves other options; so in files of old."""
    content = yaml.safe_load(dump_yaml(small(horizon_steps=3)))
    assert content["shift"]["probes"] == ["window", "horizon", "amplification", "audit", "response"]
    again = parse_experiment(apply_settings(content, ["shift.horizon_steps=2"]), "x")
    assert again.shift.probes[1] == HorizonProbe(steps=2, images=16)
    alone = parse_experiment(apply_settings(content, ["shift.probes=[horizon]"]), "x")
    assert alone.shift.probes == (HorizonProbe(steps=3, images=16),)
    old = {**content, "shift": {**content["shift"], "why_substeps": 4, "probes": ["window"]}}  # all were written out
    assert [probe.kind for probe in parse_experiment(old, "x").shift.probes] == ["window"]


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ({"horizon_steps": 0}, r"x: shift\.horizon_steps: input should be greater than or equal to 1, not 0$"),
        ({"probes": [], "why_substeps": 1}, r"shift\.why_substeps: input should be greater"),
        ({"horizon_step": 2}, r"shift: unknown key 'horizon_step'. Did you mean 'horizon_steps'\? Known keys: .*pairs"),
        (
            {"probes": ["windw"]},
            r"shift\.probes\.0: unknown kind 'windw'\. Did you mean 'window'\? Known kinds: estimator, window",
        ),
        ({"probes": [3]}, r"shift\.probes\.0: it needs a mapping, such as \{kind: \.\.\.\}, not 3"),
        (
            {"confidence": 0.99, "bootstrap": 199},
            r"shift: bootstrap 199 .* of confidence 0\.99; raise bootstrap to 200",
        ),
        ({"probes": "window"}, r"shift\.probes: input should be a valid tuple, not 'window'"),
        ({"probes": [{"kind": "why", "steps": 3}]}, r"shift\.probes\.0 \(why\): unknown key 'steps'"),
        ({"probes": ["why", {"kind": "why"}]}, "a probe is named twice"),
        ({"probes": [{"kind": "horizon", "steps": 3}], "horizon_steps": 2}, "horizon_steps is 2, and .* 3; give one"),
    ],
)
def test_wrong_probes_are_told_apart(shift, said):
    """One sentence with the key as the file has it."""
    with pytest.raises(ConfigError, match=said):
        parse_experiment({**SMALL, "shift": shift}, "x")


def test_what_a_probe_asks_for_is_missed_before_anything_runs(tmp_path):
    """An estimator that was never fitted, also by snrkit run, which would otherwise train first."""
    with pytest.raises(
        ConfigError, match=r"^shift\.probes: estimator asks .*; run snrkit fit-estimator .*probe out\.$"
    ):
        run_everything(small(probes=["estimator"]), tmp_path, WORLD, quiet=True)
    assert not written(tmp_path)


def test_a_probe_says_what_it_holds():
    """The covariance behind gains counts in the memory that is needed, twice in float64 for every training image."""
    opened = open_experiment(small(), WORLD)
    with pytest.raises(ConfigError, match="MiB free"):
        check_arms_fit(opened.setting, opened.experiment.shift, 0)
    assert needed(["amplification"]) - needed([]) == 2 * 8 * len(opened.data.split.train) * 64


def test_the_probe_flow_holds_a_flow_for_each_grid():
    """Samplers of the same levels share theirs, and no probe follows more first states than there are."""
    four, nine = (snrkit.Sampler(grid=snrkit.Karras(steps=n), solver=snrkit.Euler()) for n in (4, 9))
    other = four.model_copy(update={"solver": snrkit.Heun()})
    images = min(small().shift.images, 128)
    assert needed(["flow"], four, nine) - needed(["flow"], four) == 8 * 64 * images * 10
    assert needed(["flow"], four, other) == needed(["flow"], four) > needed([], four) + 8 * 64 * images * 5


def needed(probes, *samplers):
    """Bytes that suffice to measure samplers."""
    opened = open_experiment(small(probes=probes), WORLD)
    low, high = 0, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check_arms_fit(opened.setting, opened.experiment.shift, middle, samplers)
            high = middle
        except ConfigError:
            low = middle
    return high


def test_the_file_of_before(tmp_path):
    """A file with every option beside its probes, as all were written until now, loads."""
    shift = {**SETTINGS, "probes": ["window", "horizon", "amplification", "audit", "estimator", "why", "flow"]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**SMALL, "shift": shift}))
    found = load_experiment(tmp_path / "x.yaml", ["shift.why_substeps=3"]).shift
    assert [probe.kind for probe in found.probes] == shift["probes"]
    assert (found.probes[0].images, found.probes[3].pairs, found.probes[5].substeps) == (8, 128, 3)


def test_an_estimator_of_other_numerics_is_refused(measured, tmp_path):
    """Its record says which numbers it was fitted on; one that says another, or none, is not read."""
    runs, experiment, _, _ = measured
    copytree(runs / "small", tmp_path / "small")
    path = Run(tmp_path / "small").estimator / "estimator.json"
    record = read_json(path)
    assert record["numerics"] == NUMERICS
    write_json(path, {**record, "numerics": NUMERICS - 1})
    with pytest.raises(RunError, match=r"of another version of the numerics; run snrkit fit-estimator again\.$"):
        run_measuring(experiment, tmp_path, WORLD, quiet=True)
    write_json(path, {k: v for k, v in record.items() if k != "numerics"})
    with pytest.raises(SnrkitError, match="numerics is missing"):
        run_measuring(experiment, tmp_path, WORLD, quiet=True)


@pytest.mark.parametrize(("seeds", "said"), [("0-9", "sample.seeds are 10: the seeds that follow"), ("0-99", "")])
def test_trajectories_beyond_the_images_are_said(seeds, said):
    """Where shift.images are more than sample.seeds; where they are not, nothing is."""
    from snrkit.commands.measure_shift import _further

    found = _further(parse_experiment(apply_settings(SMALL, [f"sample.seeds={seeds}", "shift.images=32"]), "x"))
    assert found.startswith("shift.images is 32") if said else found == ""
    assert said in found
