"""Text within a width: whatever stands in a table, no line is wider, and nothing of it is lost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from snrkit.reports.layout import EMPTY, digits_of, measured, table, wrapped

WIDTHS = (80, 100, 160)
NUMBERS = st.floats(-1e6, 1e6).map(lambda value: f"{value:+.4f}")
INTERVALS = st.tuples(NUMBERS, NUMBERS, NUMBERS).map(lambda parts: f"{parts[0]} [{parts[1]}, {parts[2]}]")
LETTERS = st.characters(codec="utf-8", exclude_categories=("C", "Z", "M"))
NAMES = st.text(LETTERS, min_size=1, max_size=120)
HEADS = st.lists(st.sampled_from(["NFE", "FD-digits [95 %]", "its null", "norm gap less its null, nats", "∞", "漢字"]))


@st.composite
def tables(draw, cells):
    """A header and rows, the first column names."""
    heads = ["sampler", *draw(HEADS)]
    row = st.tuples(NAMES, *[cells | st.sampled_from(EMPTY) for _ in heads[1:]])
    return heads, draw(st.lists(row, max_size=5))


@pytest.mark.parametrize("width", WIDTHS)
@given(tables(NUMBERS | INTERVALS | NAMES))
def test_no_line_is_wider_than_the_console(width, given):
    """Names of any letters and lengths, wide ones too, and numbers."""
    assert all(cell_len(line) <= width for line in table(*given, width))


@pytest.mark.parametrize("width", WIDTHS)
@given(tables(NUMBERS | INTERVALS))
def test_every_value_stands_at_every_width(width, given):
    """As it is, whether side by side or one by one; of names, which may be longer than a line, all letters in order."""
    heads, rows = given
    lines = table(heads, rows, width)
    text = "\n".join(lines)
    for name, *cells in rows:
        assert "".join(name.split()) in "".join(text.split())
        assert all(cell in text for cell in cells if cell not in EMPTY)


def test_columns_that_are_empty_in_all_rows_are_left_out():
    """Of dashes and of nothing; one value keeps a column, and its dashes."""
    heads, rows = ("sampler", "IS", "KID", "FD"), [("a", "-", "", "1.0"), ("b", "-", "0.1", "-")]
    assert table(heads, rows, 80) == [
        "sampler  KID   FD",
        "-------  ---  ---",
        "a             1.0",
        "b        0.1    -",
    ]


def test_a_head_that_stands_twice_follows_the_one_before():
    """So that every column and every line has a name of its own."""
    heads, rows = ("sampler", "gap", "its null", "ratio", "its null"), [("a sampler", "1", "2", "3", "4")]
    assert table(heads, rows, 26) == [
        "a sampler",
        "  gap              1",
        "  gap: its null    2",
        "  ratio            3",
        "  ratio: its null  4",
    ]


def test_rows_stand_one_by_one_where_they_do_not_fit_side_by_side():
    """On a narrow console: what a row is called, and a line for each value; both may take several lines."""
    heads, rows = ("sampler", "FD-digits (min, max)", "verdict"), [("heun", "0.123 (0.1, 0.2)", "better than euler")]
    assert table(heads, rows, 40) == [
        "heun",
        "  FD-digits (min,      0.123 (0.1, 0.2)",
        "  max)",
        "  verdict              better than euler",
    ]
    assert table(heads, rows, 60)[0].split() == ["sampler", "FD-digits", "(min,", "verdict"]


def test_a_wide_console_divides_a_table_by_columns():
    """Each part names the rows again, and is as full as it can be; no column stands in two."""
    heads, rows = ("sampler", *(f"score {i}" for i in range(30))), [("heun", *["1.2345"] * 30), ("euler", *["-1"] * 30)]
    lines = table(heads, rows, 100)
    first, *others = "\n".join(lines).split("\n\n")
    assert others
    for part in (first, *others):
        assert [line[:5].strip() for line in part.splitlines()[-2:]] == ["heun", "euler"]
    assert [part.count("1.2345") for part in (first, *others)] == [11, 11, 8]


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.12345, 0.1, 0.15, "+0.123 [+0.100, +0.150]"),
        (1234.5678, 1200, 1260, "+1235 [+1200, +1260]"),
        (0.00001, -0.0004, 0.0004, "+0.00001 [-0.00040, +0.00040]"),
        (-0.0, -0.04, 0.04, "+0.000 [-0.040, +0.040]"),
        (0.5, None, None, "+0.5000"),
        (0.5, 0.5, 0.5, "+0.5000 [+0.5000, +0.5000]"),
        (math.nan, 0.0, 1.0, "-"),
        (math.inf, 0.0, math.inf, "+inf"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_supports(value, low, high, said):
    """Two significant digits of half its width; without one, four after the point."""
    assert measured(value, low, high, signed=True) == said


@given(st.floats(1e-8, 0.9))
def test_the_last_digit_is_the_second_of_the_half_width(half):
    """So that rounding moves a bound by a twentieth of the half width at most."""
    assert 0.5 * 10.0 ** -digits_of(half) <= half / 20 * 1.06


@given(st.text(LETTERS | st.just(" "), max_size=300), st.integers(2, 50))
def test_wrapping_keeps_all_words(text, width):
    """In their order, within the width; whole words are longer at most where they stand alone."""
    for whole in (False, True):
        lines = list(wrapped(text, width, whole))
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(cell_len(line) <= width or (whole and " " not in line) for line in lines)
