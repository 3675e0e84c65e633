"""Random streams: no two names share a key, no two keys a stream, and every stream has a name."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

from snrkit.base import streams
from snrkit.base.streams import Stream, generator

NAMED = {name: value for name, value in vars(streams).items() if isinstance(value, Stream)}
PACKAGE = Path(streams.__file__).parents[1]


def slots(stream):
    """What stands at each place of a key: the values it may have, as (least, largest)."""
    whole = stream.key(*([max(1, stream.least)] * len(stream.arguments)))
    free = [(0, 2**64 - 1)] * len(whole)
    free[0] = (stream.purpose, stream.purpose)
    if stream.arguments:
        free[1] = (stream.least, 2**64 - 1)
    if stream.part is not None:
        free[2 if stream.arguments else 1] = (stream.part, stream.part)
    return free


def meet(one, other):
    """Whether two names have a key in common: keys of equal length that agree at every place."""
    a, b = slots(one), slots(other)
    return len(a) == len(b) and all(p[0] <= q[1] and q[0] <= p[1] for p, q in zip(a, b, strict=True))


def test_no_two_names_share_a_key():
    """For all arguments: some place of the key tells them apart. Names that met would be found."""
    assert len(NAMED) > 30
    assert not [(a, b) for (a, one), (b, other) in combinations(NAMED.items(), 2) if meet(one, other)]
    assert meet(Stream(12, ("seed",)), Stream(12, part=1))
    assert meet(Stream(9, ("count",)), Stream(9, ("count",), least=3))


@pytest.mark.parametrize("name", NAMED)
def test_a_key_has_its_arguments_where_the_proof_takes_them_to_be(name):
    """Purpose first, then the first argument, the part, and the rest; a key may be given in part."""
    stream = NAMED[name]
    arguments = [100 + index for index in range(len(stream.arguments))]
    key = stream.key(*arguments)
    assert all(low <= number <= high for number, (low, high) in zip(key, slots(stream), strict=True))
    assert [number for number in key if number >= 100] == arguments
    assert stream.open(*arguments).random() == generator(*key).random()
    assert not arguments or stream.key(*arguments[:1]) == key[: len(stream.key(*arguments[:1]))]


def test_streams_of_all_keys_differ_and_numbers_above_32_bits_count():
    """No two keys share a stream."""
    draws = {generator(*key).random() for key in [(1, 5), (2, 5), (2, 5 + 2**32), (2, 5, 0), (5, 2), (2, 5, 1)]}
    assert len(draws) == 6


MAKERS = {"Generator", "Philox", "PCG64", "RandomState", "SeedSequence", "default_rng", "Stream", "generator"}
DRAWS = {"bernoulli", "manual_seed", "multinomial", "normal", "rand", "rand_like", "randint", "randn", "randn_like",
         "randperm", "seed"}  # fmt: skip
DIRECT = {  # beside the names: what is drawn by torch's own generator, seeded, while something is made or dropped out
    "shift/arms.py": {"generator"},  # of keys that it is given
    "data/dataset.py": {"torch.Generator"},  # in place of the one that a loader draws from, of which nothing is made
    "metrics/kernel.py": {"np.random.RandomState"},  # of torch-fidelity's subsets
    "metrics/classifier.py": {"torch.manual_seed"}, "networks/__init__.py": {"torch.manual_seed"},
    "shift/estimator.py": {"torch.manual_seed"}, "training/train.py": {"torch.manual_seed"},
    "networks/edm.py": {"torch.randn"}, "networks/edm2.py": {"torch.rand", "torch.randn"},
}  # fmt: skip


def drawn(tree):
    """What a module calls to make or to use generators that have no name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert not {alias.name for alias in node.names} & DRAWS
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.split(".")[-1]
            if last in MAKERS or (last in DRAWS and name.startswith("torch.")) or name.startswith("random."):
                yield name


def test_all_randomness_of_the_package_has_a_name():
    """Nothing else makes a generator, by whatever name it is imported, and nothing else draws of torch's."""
    assert set(drawn(ast.parse("default_rng(1); a.Philox(2); Stream(1).open(); torch.randn(2); random.random()"))) == {
        "default_rng", "a.Philox", "Stream", "torch.randn", "random.random"
    }  # fmt: skip
    for path in PACKAGE.rglob("*.py"):
        if path != Path(streams.__file__):
            name = path.relative_to(PACKAGE).as_posix()
            assert set(drawn(ast.parse(path.read_text()))) == DIRECT.get(name, set()), name
