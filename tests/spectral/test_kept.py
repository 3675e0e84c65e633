"""What a run keeps of its images' spectra."""

import torch

from snrkit.data.measured import Measured
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.experiment.run import Run
from snrkit.experiment.sources import prepare_sampling, run_spectra
from tests.small import SMALL
from tests.spectral.test_levels import SPECTRAL, WORLD


def opened(**network):
    train = {**SPECTRAL["train"], "label_dropout": 0.0}
    changes = {"network": {**SPECTRAL["network"], **network}, "train": train}
    return open_experiment(parse_experiment({**SMALL, **SPECTRAL, **changes}, "small"), WORLD)


def test_a_network_without_labels_keeps_spectra_without_classes(tmp_path):
    """Also of images that have labels, which it does not see; the file is written once and read from then on."""
    for classes in (0, 4):
        run, found = Run(tmp_path / str(classes)), opened(classes=classes)
        run.path.mkdir()
        prepare_sampling(found.setting, run)
        written = (run.path / "spectra.safetensors").read_bytes()
        model = run_spectra(found.setting, run).known().model
        assert model.class_means.shape == (classes, 5)
        assert model.weights.shape[0] == classes + 1
        assert (run.path / "spectra.safetensors").read_bytes() == written


def test_nothing_is_measured_before_it_is_asked_for_nor_twice():
    """Opening measures no spectra; the level sampler is made once, and the spectra that it takes with it."""
    asked = []

    class Counted(Measured):
        def once(self, measure):
            asked.append(measure not in self._found)
            return super().once(measure)

    found = opened()
    assert not found.data.measured._found
    counted = Counted(found.data.measured.dataset, found.data.measured.split, torch.device("cpu"))
    levels = found.experiment.levels
    assert counted.once(levels.open) is counted.once(levels.open)
    assert asked == [True, True, False]  # the levels, for them the spectra, and neither again
