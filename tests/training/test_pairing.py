"""Minibatch optimal transport: the nearest noise, and nothing else is changed."""

from itertools import islice, permutations

import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import ConfigError
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.training.batches import micro_batch, micro_batches
from snrkit.training.pairing import MinibatchOt
from tests.opened import open_task
from tests.small import SMALL

WORLD = World(0, 1, torch.device("cpu"))
UNTOLD = {**SMALL["network"], "classes": 0, "augment": False}


def opened(network=UNTOLD, **train):
    content = {**SMALL, "network": network, "train": {**SMALL["train"], "augment": None, "label_dropout": 0.0, **train}}
    return open_experiment(parse_experiment(content, "small"), WORLD)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_no_order_is_nearer():
    """Than that which is found, of all 120; in float64."""
    x0, noise = normal(2, 5, 1, 3, 2).double()
    found = MinibatchOt().paired(x0, noise, 5)
    costs = [float((x0 - noise[list(order)]).square().sum()) for order in permutations(range(5))]
    assert float((x0 - found).square().sum()) == pytest.approx(min(costs), rel=1e-12)
    assert min(costs) < costs[0]


def test_in_one_dimension_it_sorts():
    """The smallest image gets the smallest noise (optimal transport on the line is monotone)."""
    x0, noise = normal(2, 64, 1, 1, 1)
    found = MinibatchOt().paired(x0, noise, 64)
    assert torch.equal(found.flatten()[x0.flatten().argsort()], noise.flatten().sort().values)


def test_noise_is_exchanged_within_groups_alone():
    """Each group holds the noise that was drawn for it, in the order that it would have alone; groups of 1 keep it."""
    x0, noise = normal(2, 12, 1, 2, 2)
    found = MinibatchOt().paired(x0, noise, 4)
    for start in range(0, 12, 4):
        part = slice(start, start + 4)
        assert torch.equal(found[part], MinibatchOt().paired(x0[part], noise[part], 4))
        assert sorted(map(tuple, found[part].flatten(1).tolist())) == sorted(
            map(tuple, noise[part].flatten(1).tolist())
        )
    assert torch.equal(MinibatchOt().paired(x0, noise, 1), noise)


def test_a_training_pair_differs_in_its_noise_alone():
    """Images, levels and conditions are those of independent pairs; the distance is less; one slice or more is one."""
    plain, paired = open_task(opened()), open_task(opened(pairing={"kind": "minibatch_ot"}))
    a, b = (next(islice(micro_batches(task, 3), 1)) for task in (plain, paired))
    assert torch.equal(a.logsnr, b.logsnr)
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.pair.x, b.pair.x)
    plan, draws = paired.plan(), paired.plan().draw(3, [0, 1])
    both = micro_batch(paired, draws, paired.pixels(draws))
    assert float((both.x0 - both.noise).square().sum()) < float((both.x0 - draws.noise).square().sum())
    alone = [micro_batch(paired, plan.draw(3, [k]), paired.pixels(plan.draw(3, [k]))).noise for k in (0, 1)]
    assert torch.equal(both.noise, torch.cat(alone))


def test_what_a_network_is_told_of_an_image_forbids_it():
    """Noise would depend on the label, and sampling begins with noise that does not."""
    with pytest.raises(ConfigError, match=r"train\.pairing: minibatch_ot makes noise depend on what the network is"):
        opened(network={**UNTOLD, "classes": 2}, pairing={"kind": "minibatch_ot"})


def test_results_of_before_there_was_any_stay_valid():
    """Without a pairing, what decides the weights is said as it was before the key was there; with one it is said."""
    assert "pairing" not in opened().experiment.model.identity()["train"]
    assert opened(pairing={"kind": "minibatch_ot"}).experiment.model.identity()["train"]["pairing"] is not None


def test_what_is_measured_of_it_is_not_what_was_trained():
    """Reports and tables say so."""
    with_it = opened(pairing={"kind": "minibatch_ot"}).experiment.training.train
    assert "independent noise" in with_it.cautions(10**9)[0]
    assert opened().experiment.training.train.cautions(10**9) == []
