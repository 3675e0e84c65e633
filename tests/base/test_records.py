"""Records: what is written is what is read, and what does not fit is named."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snrkit.base.errors import SnrkitError
from snrkit.base.records import FLAT, from_json, read_record, to_json
from snrkit.base.sealed import write_json


@dataclass(frozen=True, slots=True)
class Point:
    """The inner record."""

    at: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Better:
    """What lies beside a row as a whole or not at all."""

    verdict: Literal["better", "worse"]
    by: float


@dataclass(frozen=True, slots=True)
class Row:
    """The outer record."""

    name: str
    points: tuple[Point, ...]
    counts: list[int]
    views: Mapping[str, Sequence[float]]
    first: Point | None
    definition: Mapping[str, Any]
    better: Better | None = field(metadata=FLAT)
    done: bool = True


@dataclass(frozen=True, slots=True)
class Scored:
    """Names that only the file knows."""

    images: int
    values: Mapping[str, float | None] = field(metadata=FLAT)
    warnings: tuple[str, ...] = ()


numbers = st.floats(allow_nan=False, allow_infinity=False)
points = st.builds(Point, numbers, st.none() | numbers)
rows = st.builds(
    Row, st.text(), st.lists(points).map(tuple), st.lists(st.integers()),
    st.dictionaries(st.text(), st.lists(numbers).map(tuple)), st.none() | points,
    st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
    st.none() | st.builds(Better, st.sampled_from(["better", "worse"]), numbers), st.booleans(),
)  # fmt: skip


@given(rows)
def test_a_record_comes_back_as_it_was(row):
    """from_json undoes to_json."""
    assert from_json(Row, to_json(row), "here") == row


def test_a_file_holds_every_bit(tmp_path):
    """Floats are read as they were written; what JSON cannot hold is NaN again where the type says float."""
    point = Point(0.1 + 0.2, 5e-324)
    write_json(tmp_path / "point.json", to_json(point))
    assert read_record(Point, tmp_path / "point.json") == point
    write_json(tmp_path / "point.json", to_json(Point(-math.inf, math.nan)))
    found = read_record(Point, tmp_path / "point.json")
    assert math.isnan(found.at)
    assert found.error is None


def test_flat_fields_lie_beside_the_record_s_own():
    """A mapping's names, and the keys of a record that may be missing, stand on the level of the others."""
    assert to_json(Scored(3, {"fd": 1.0, "kid": None})) == {"images": 3, "fd": 1.0, "kid": None, "warnings": []}
    row = Row("a", (), [], {}, None, {}, Better("worse", 2.0))
    assert {"verdict": "worse", "by": 2.0}.items() <= to_json(row).items()
    assert not {"verdict", "by", "better"} & to_json(Row("a", (), [], {}, None, {}, None)).keys()
    with pytest.raises(AssertionError, match="a key stands twice"):
        to_json(Scored(3, {"warnings": 1.0}))


WHOLE = to_json(Row("a", (Point(1.0, None),), [1], {"x": (1.0,)}, None, {"kind": "euler"}, None))
MISFITS = {
    "missing": ({key: value for key, value in WHOLE.items() if key != "name"}, "name is missing"),
    "within": ({**WHOLE, "points": [{"at": 1.0}]}, r"points\.0\.error is missing"),
    "unknown": ({**WHOLE, "points": [{"at": 1.0, "error": None, "odd": 1}]}, r"points\.0\.odd is unknown"),
    "type": ({**WHOLE, "counts": ["1"]}, r"counts\.0 is '1'"),
    "no float for int": ({**WHOLE, "counts": [1.5]}, r"counts\.0 is 1\.5"),
    "no number": ({**WHOLE, "views": {"x": [True]}}, r"views\.x\.0 is True"),
    "no list": ({**WHOLE, "points": {}}, "points is {}"),
    "null": ({**WHOLE, "name": None}, "name is None"),
    "half a part": ({**WHOLE, "verdict": "better"}, "by is missing"),
    "unknown beside": ({**WHOLE, "verdict": "better", "by": 1.0, "odd": 1}, "odd is unknown"),
    "literal": ({**WHOLE, "verdict": "good", "by": 1.0}, "verdict is 'good'"),
    "no record": ([], r"is \[\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name):
    """One sentence with the file, the key and what to do."""
    content, words = MISFITS[name]
    with pytest.raises(
        SnrkitError, match=rf"^runs/a\.json.*{words}; .* delete it and run the command that makes it\.$"
    ):
        from_json(Row, content, "runs/a.json")


def test_what_is_absent_has_its_default():
    """A file of before a field with a default is read."""
    assert from_json(Row, {key: value for key, value in WHOLE.items() if key != "done"}, "here").done
