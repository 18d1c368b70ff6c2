"""Numbers as people write them."""

import numpy as np
import pytest

from isoflop.fit.values import decimal_of, floats, has_word, number, scale_of, with_errors

WRITTEN = {
    "125M": 125e6, "1.3B": 1.3e9, "1.3 billion": 1.3e9, "300k": 3e5, "6.45 B tokens": 6.45e9, "~70M": 70e6,
    "1.00x10^18": 1e18, "2.5 × 10^20": 2.5e20, "3·10¹⁹": 3e19, "10^18": 1e18, "1e18 FLOPs": 1e18, "3 EFLOPs": 3e18,
    "2 PF-days": 2 * 8.64e19, "25,845,713": 25845713, "1,234.5": 1234.5, "1.234,5": 1234.5, "25.845.713": 25845713,
    "1 234 567": 1234567, "1'234'567": 1234567, "-3.5": -3.5, "−3.5": -3.5, "`1e6`": 1e6, "**1e6**": 1e6, 
    "3,65528": 3.65528, "1,00E+18": 1e18, "0,123": 0.123, ".5": 0.5,
}  # fmt: skip
UNREADABLE = ("", "abc", "1.2.3", "12,34,56", "25.845,7.13", "5 apples", "M", "e5", None, "1,2,3", "12 34")


@pytest.mark.parametrize("text", WRITTEN)
def test_as_people_write_them(text):
    assert number(text) == pytest.approx(WRITTEN[text], rel=1e-12)


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_is_no_number(text):
    assert np.isnan(number(text))


def test_what_is_ambiguous_goes_by_the_column():
    assert number("1,234", ".") == 1234 and number("1,234", ",") == 1.234
    assert number("1.234", ".") == 1.234 and number("1.234", ",") == 1234
    assert decimal_of(["1,234", "25.845.713"]) == "," and decimal_of(["1.234", "3.65528"]) == "."
    assert decimal_of(["1,234", "5,678"]) == "" and decimal_of(["3,5", "3.5"]) == ""


def test_columns_of_cells():
    assert floats([1, "2e3", 3.5]).tolist() == [1, 2000, 3.5]
    np.testing.assert_array_equal(floats(["1,5", "", None, "x"], ","), [1.5, np.nan, np.nan, np.nan])
    assert np.isnan(floats(["3.5M"], words=False)[0]) and floats(["3.5 nats"], words=False)[0] == 3.5
    assert has_word(["1e6", "125M"]) and not has_word(["1e6", 3, "abc"])


def test_errors_behind_values():
    values, errors = with_errors(["3.65 ± .003", "3.6 +/- 0.01", "3.5 (0.02)", "3.4"])
    assert values == ["3.65", "3.6", "3.5", "3.4"]
    np.testing.assert_array_equal(errors, [0.003, 0.01, 0.02, np.nan])
    assert with_errors(["3.4", 3.5]) == (["3.4", 3.5], None)


def test_unit_words():
    assert scale_of("M") == 1e6 and scale_of("billion tokens") == 1e9 and scale_of("1e18") == 1e18
    assert scale_of("PF-days") == scale_of("pflop/s-days") == 8.64e19 and scale_of("apples") is None
