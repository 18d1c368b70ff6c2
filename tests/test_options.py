"""What a field may hold: bounds from the metadata, numbers as typed, all mistakes in one message."""

import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from isoflop.options import UserError, check, default_text, integer, option, options_of, parse_value, problems, real


@dataclass(frozen=True)
class Config:
    n_layer: int = option(2, "layers", above=0)
    seed: int = option(0, "seed", min=0, below=2**63)
    workers: int | None = option(None, "workers", min=1, max=4096)
    top: int = option(1, "any whole number")
    docs: int | None = option(None, "documents", min=1, hint="leave it out for no limit")
    budget: float | None = option(None, "FLOPs", above=0)
    share: float = option(0.1, "share", min=0, below=1)
    top_p: float = option(1.0, "probability", above=0, max=1)
    heat: float = option(0.8, "temperature", min=0)
    shift: float = option(0.0, "any number")
    kind: str = option("a", "kind", choices=("a", "b"))
    name: str | None = option(None, "name")
    tied: bool = option(False, "tied")
    rates: tuple[float, ...] | None = option(None, "rates", above=0)
    kinds: tuple[str, ...] = option(("a",), "kinds", choices=("a", "b"))
    derived: int = 0

    def __post_init__(self):
        check(self)


def test_good_values_pass():
    Config(n_layer=np.int64(3), top=-5, budget=np.float32(2), shift=-1, tied=True, rates=(1, 2.5), kinds=("b", "a"))
    Config(n_layer=3.0, workers=4096, top_p=1, share=0, heat=0, name="x", derived=-1)


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(n_layer=0), "--n_layer 0 must be a positive number"),
        (dict(n_layer=None), "--n_layer None must be a positive number"),
        (dict(n_layer="64"), "--n_layer 64 must be a positive number"),
        (dict(n_layer=True), "--n_layer True must be a positive number"),
        (dict(n_layer=2.5), "--n_layer 2.5 must be a whole number"),
        (dict(n_layer=math.inf), "--n_layer inf must be a positive number"),
        (dict(n_layer=2**63), f"--n_layer {2**63} must be between -2^63 and 2^63"),
        (dict(n_layer=10**400), "must be between -2^63 and 2^63"),
        (dict(seed=-1), "--seed -1 must be at least 0 and below 2^63"),
        (dict(seed=2**63), "must be at least 0 and below 2^63"),
        (dict(workers=0), "--workers 0 must be at least 1 and at most 4096"),
        (dict(workers=4097), "--workers 4097 must be at least 1 and at most 4096"),
        (dict(top="x"), "--top x must be a whole number"),
        (dict(docs=0), "--docs 0 must be at least 1; leave it out for no limit"),
        (dict(budget=0), "--budget 0 must be a positive finite number"),
        (dict(budget=-1e20), "--budget -1e+20 must be a positive finite number"),
        (dict(budget=-1.0), "--budget -1 must be a positive finite number"),
        (dict(budget=math.nan), "--budget nan must be a positive finite number"),
        (dict(share=1), "--share 1 must be at least 0 and below 1"),
        (dict(top_p=0), "--top_p 0 must be above 0 and at most 1"),
        (dict(heat=math.inf), "--heat inf must be at least 0 and finite"),
        (dict(shift=math.nan), "--shift nan must be a finite number"),
        (dict(shift=None), "--shift None must be a finite number"),
        (dict(kind="c"), "--kind c must be one of a, b"),
        (dict(tied="yes"), "--tied yes must be true or false"),
        (dict(rates=(1.0, -2.0, 0.0)), "--rates -2 must be a positive finite number"),
        (dict(kind="9" * 5000), f"--kind {'9' * 60}... (5,000 characters) must be one of a, b"),
        (dict(kinds=("a", "c")), "--kinds c must be one of a, b"),
    ],
)
def test_bad_values_are_named(given, says):
    with pytest.raises(UserError) as error:
        Config(**given)
    assert says in str(error.value) and str(error.value).count("--") == 1


def test_all_problems_are_in_one_message():
    with pytest.raises(ValueError) as error:
        Config(n_layer=0, kind="c", share=2.0)
    assert str(error.value) == (
        "--n_layer 0 must be a positive number; --share 2 must be at least 0 and below 1; --kind c must be one of a, b"
    )


def test_problems_between_fields_follow_those_of_fields():
    good = Config()
    check(good)
    check(good, [])
    with pytest.raises(UserError, match="^--a and --b exclude each other; leave one out$"):
        check(good, ["--a and --b exclude each other; leave one out"])
    bad = dataclasses.replace(good)
    object.__setattr__(bad, "seed", -1)
    assert problems(bad) == ["--seed -1 must be at least 0 and below 2^63"]
    with pytest.raises(UserError, match="^--seed -1 .*; own$"):
        check(bad, ["own"])


@pytest.mark.parametrize(
    "text, value",
    [("5", 5), ("5e3", 5000), ("5_000", 5000), ("1.5e3", 1500), ("-3", -3), ("1e23", 10**23), (" 7 ", 7), ("0.0", 0),
     ("12345678901234567891", 12345678901234567891)],
)  # fmt: skip
def test_integers(text, value):
    assert integer(text) == value and isinstance(integer(text), int)


@pytest.mark.parametrize("text", ["1.5", "nan", "inf", "-inf", "sNaN", "", "5k", "1e30", "1e999999999", "1e-9", "0x10"])
def test_no_integers(text):
    with pytest.raises(UserError, match="must be a whole number, as 5000, 5_000 or 5e3"):
        integer(text)


def test_a_long_text_is_cut_in_a_message():
    for read in (integer, real):
        with pytest.raises(UserError, match=r"^y{60}\.\.\. \(100,000 characters\) must be a"):
            read("y" * 100_000)


def test_reals():
    assert [real(t) for t in ("5e3", "1_000", "-.5", "7")] == [5000.0, 1000.0, -0.5, 7.0]
    for text in ("nan", "-inf", "1e999", "", "1e12x"):
        with pytest.raises(UserError, match="must be a finite number"):
            real(text)


def test_words_become_values_of_the_fields_type():
    fields = {f.name: f for f in options_of(Config)}
    assert "derived" not in fields
    words = dict(n_layer="5e3", budget="1e12", kind="b", name="5", tied="True", rates="2", kinds="b")
    values = {name: parse_value(fields[name], text) for name, text in words.items()}
    assert values == dict(n_layer=5000, budget=1e12, kind="b", name="5", tied=True, rates=2.0, kinds="b")
    assert parse_value(fields["budget"], "none", may_be_none=True) is None
    for name, text, says in (
        ("budget", "none", "none must be a positive finite number"),
        ("heat", "none", "none must be a number at least 0 and finite"),
        ("tied", "yes", "yes must be true or false"),
        ("kind", "c", "c must be one of a, b"),
    ):
        with pytest.raises(UserError, match=says):
            parse_value(fields[name], text, may_be_none=name == "heat")


def test_defaults_as_text():
    shown = {f.name: default_text(f) for f in options_of(Config)}
    assert shown["n_layer"] == "2" and shown["top_p"] == "1" and shown["share"] == "0.1" and shown["workers"] == ""
    assert shown["tied"] == "false" and shown["kinds"] == "a"


def test_the_base_modules_are_light():
    """None of them loads a package that takes more than the standard library does."""
    names = ("cli", "options", "files", "display", "gpus")
    code = "import sys; before = set(sys.modules); " + "; ".join(f"import isoflop.{name}" for name in names)
    code += "; print(*(m for m in set(sys.modules) - before if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "isoflop" in loaded and "json" in loaded
    assert loaded - {"isoflop"} <= set(sys.stdlib_module_names)
