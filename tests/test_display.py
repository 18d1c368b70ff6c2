"""Numbers for people, and tables of them."""

import math

import pytest

from isoflop import display
from isoflop.display import (
    count,
    estimate,
    fixed,
    flops,
    gb,
    interval,
    markdown_table,
    money,
    percent,
    seconds,
    si,
    sig,
    text_table,
)


@pytest.mark.parametrize("form", [sig, flops, si, count, fixed, percent, gb, money])
def test_what_is_not_known_is_a_dash(form):
    assert [form(x) for x in (None, math.nan, math.inf, -math.inf)] == ["-"] * 4


@pytest.mark.parametrize(
    "x, text",
    [(477.8, "477.8"), (0.347, "0.3470"), (1.2e-5, "1.2e-5"), (0, "0.000"), (123456, "123456"), (1e6, "1e6"),
     (-2.5, "-2.500"), (1234, "1234"), (1e-4, "0.0001000")],
)  # fmt: skip
def test_sig(x, text):
    assert sig(x) == text


def test_sig_digits():
    assert sig(2.34567, 2) == "2.3" and sig(19.96, 3) == "20.0"


@pytest.mark.parametrize("x, text", [(1e24, "1e24"), (5.76e23, "5.76e23"), (2.5e-7, "2.5e-7"), (-3e9, "-3e9")])
def test_flops(x, text):
    assert flops(x) == text


def test_flops_digits():
    assert flops(1.23456e21, 3) == "1.23e21" and flops(9.99e20, 1) == "1e21"


@pytest.mark.parametrize(
    "x, text, padded",
    [
        (1.405e9, "1.405B", "1.405B"), (524288, "524.3k", "524.3k"), (12.3e3, "12.3k", "12.30k"),
        (4.5e6, "4.5M", "4.500M"), (300.3e9, "300.3B", "300.3B"), (20, "20", "20.00"), (1000, "1k", "1.000k"),
        (8200, "8.2k", "8.200k"), (1.4e12, "1.4T", "1.400T"), (999.96e6, "1B", "1.000B"), (100e6, "100M", "100.0M"),
        (99999, "100k", "100.0k"), (3e15, "3e15", "3e15"), (999.96e12, "1e15", "1e15"), (0.5, "0.5", "0.5000"),
        (0, "0", "0.000"), (-2e6, "-2M", "-2.000M"),
    ],
)  # fmt: skip
def test_si(x, text, padded):
    assert si(x) == text and si(x, zeros=True) == padded


def test_si_digits():
    assert si(1.2345e9, 3) == "1.23B" and si(123456, 2) == "120k"


def test_shares_scores_and_counts():
    assert count(1234567) == "1,234,567" and count(0) == "0"
    assert fixed(2.53125) == "2.5312" and fixed(0.5, 1) == "0.5"
    assert percent(0.1234) == "12.3%" and percent(-0.0312, 2, sign=True) == "-3.12%"
    assert percent(0.5, 0, sign=True) == "+50%"


@pytest.mark.parametrize(
    "x, text",
    [(0.04, "0.0 s"), (12, "12.0 s"), (59.9, "59.9 s"), (60, "1.0 min"), (7200, "2.0 h"), (86400, "24.0 h"),
     (86400 * 1.5, "1.5 d"), (86400 * 10.5, "10.5 d"), (86400 * 700, "700.0 d"), (86400 * 365.25 * 2, "2.0 y"),
     (86400 * 365.25 * 1234, "1,234.0 y"), (math.inf, "never"), (math.nan, "-"), (None, "-")],
)  # fmt: skip
def test_seconds(x, text):
    assert seconds(x) == text


def test_bytes_and_dollars():
    assert [gb(x) for x in (3.2e9, 1e9, 12.34e6, 0)] == ["3.2 GB", "1 GB", "12.3 MB", "0 MB"]
    assert [money(x) for x in (1.789, 99.999, 1234.5, 0)] == ["$1.79", "$100.00", "$1,234", "$0.00"]


def test_intervals():
    assert interval((0.48, 0.5551)) == "[0.4800, 0.5551]"
    assert interval([1e6, None], si) == "[1M, ...]" and interval((None, 2.0), fixed) == "[..., 2.0000]"
    assert interval(None) == interval((None, None)) == ""
    assert estimate(0.5143, (0.48, 0.55)) == "0.5143 [0.4800, 0.5500]"
    assert estimate(12e6, None, si) == "12M" and estimate(None, (1, 2)) == "-"


# ----- tables -----

ROWS = [["A", 12, "2.5"], ["long name", None, "10"]]


def test_a_table_for_the_terminal():
    assert text_table(["model", "N", "loss"], ROWS).split("\n") == [
        "model       N  loss",
        "A          12   2.5",
        "long name   -    10",
    ]


def test_alignment_and_gaps():
    assert text_table(None, ROWS, align="l").split("\n") == ["A          12  2.5", "long name  -   10"]
    assert text_table(None, ROWS, align="r", gap=1).split("\n") == ["        A 12 2.5", "long name  -  10"]
    assert text_table(["a", "b", "c"], [["x", "y", "z"]], "llr", indent=2) == "  a  b  c\n  x  y  z"


def test_lines_have_no_spaces_at_their_end():
    assert text_table(["a", "b"], [["x", ""]], "l") == "a  b\nx"


def test_a_wide_table_is_cut_between_columns():
    rows = [["row", "11111", "22222", "33333"]]
    assert text_table(["", "a", "b", "c"], rows, width=17).split("\n") == [
        "         a      b",
        "row  11111  22222",
        "",
        "         c",
        "row  33333",
    ]
    assert text_table(["", "a", "b", "c"], rows, width=24).count("\n") == 1
    assert text_table(["", "a"], [["x", "far too wide"]], width=5).count("\n") == 1, "one column is never cut"


def test_markdown():
    assert markdown_table(["", "N", "loss"], [["a|b", 12, None], ["c\nd", 3, 4]]).split("\n") == [
        "|  | N | loss |",
        "| --- | --: | --: |",
        "| a\\|b | 12 | - |",
        "| c d | 3 | 4 |",
    ]
    assert markdown_table(None, [["x", "y"]], "l").split("\n") == ["|  |  |", "| --- | --- |", "| x | y |"]


def test_a_table_without_rows():
    assert text_table(None, []) == "" and text_table(["a", "b"], []) == "a  b"
    assert markdown_table(None, []) == "" and markdown_table(["a", "b"], []) == ""


def test_a_row_of_another_length_is_a_mistake():
    for table in (text_table, markdown_table):
        with pytest.raises(AssertionError, match="2 cells in a table of 3 columns"):
            table(["a", "b", "c"], [["x", "y"]])


def test_the_docstrings_examples():
    assert (si(1_545_000_000), flops(5.76e23), seconds(9000), gb(3.2e9), money(1234.5)) == (
        "1.545B", "5.76e23", "2.5 h", "3.2 GB", "$1,234",
    )  # fmt: skip
    assert "'1.545B', '5.76e23', '2.5 h', '3.2 GB', '$1,234'" in display.__doc__
