"""One integer says which numbers a version makes, and it is part of whatever is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import RunError
from snrkit.base.numerics import NUMERICS
from snrkit.commands import sweep
from snrkit.commands.sample import check_claim, manifest
from snrkit.data.dataset import Split, memory_dataset
from snrkit.data.digits import Digits
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.models import Weights
from snrkit.experiment.opening import Model, open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.sample_folder import SampleFolder
from snrkit.experiment.trajectories import trajectories
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import make_extractor
from snrkit.metrics.features import reference_features
from tests.opened import open_network
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))


def test_the_changelog_says_what_it_stands_for():
    """Every number from 2 on is an entry under Numerics, the newest first."""
    page = (Path(__file__).parents[2] / "CHANGELOG.md").read_text().split("### Numerics")[1]
    assert [f"- numerics {n}:" in page for n in range(2, NUMERICS + 2)] == [True] * (NUMERICS - 1) + [False]


def test_samples_of_other_numerics_are_refused(tmp_path, monkeypatch):
    """A folder whose manifest was written under another number is named, and deleted with --overwrite alone."""
    opened = open_experiment(parse_experiment(SMALL, "small"), WORLD)
    model, sampler = (
        Model(open_network(opened), Weights("network", 1, ""), Run(tmp_path)),
        opened.experiment.samplers["euler"],
    )
    samples = trajectories(opened, model)
    record = manifest(samples.sources.names, sampler)
    folder = SampleFolder(tmp_path)
    folder.write(record, {})
    assert not check_claim(folder, json.loads(json.dumps(record)), False)
    monkeypatch.setattr("snrkit.commands.sample.NUMERICS", NUMERICS + 1)
    later = manifest(samples.sources.names, sampler)
    with pytest.raises(RunError, match="numerics"):
        check_claim(folder, later, False)
    assert check_claim(folder, later, True)


def test_rows_of_a_sweep_are_kept_under_it(tmp_path, monkeypatch):
    """Another number, another row."""
    trial = sweep.Trial("arm", 0, parse_experiment(SMALL, "small"))
    before = sweep.row_path(trial, tmp_path)
    monkeypatch.setattr("snrkit.commands.sweep.NUMERICS", NUMERICS + 1)
    assert sweep.row_path(trial, tmp_path) != before


@pytest.mark.parametrize("features", ["pixels", "classifier"])
def test_cached_features_are_kept_under_it(features, tmp_path, monkeypatch):
    """Extractors that are fitted, and statistics of references, are made anew under another number."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("snrkit.metrics.classifier.IMAGES", 512)
    monkeypatch.setattr("snrkit.metrics.classifier.EPOCHS", 1)
    whole = Digits(sigma_data=0.5).open()
    dataset = replace(memory_dataset("few", whole.pixels(range(96)), whole.labels[:96]), classes=whole.classes)
    config = MetricsConfig(features=features)

    def made():
        extractor = make_extractor(config, dataset, Split(tuple(range(96)), ()), WORLD.device)
        reference_features(extractor, dataset, range(96), 32, WORLD)
        return {path.name for path in tmp_path.iterdir()}

    first = made()
    assert made() == first
    for module in ("features", "extractors", "classifier"):
        monkeypatch.setattr(f"snrkit.metrics.{module}.NUMERICS", NUMERICS + 1)
    assert len(made()) == 2 * len(first)
