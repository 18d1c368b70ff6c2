"""Every number that can be typed has a least and a most; 1e30, inf, nan and -1 are one line and status 2."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from helpers import flags_of

from isoflop.options import options_of, type_of

ROOT = Path(__file__).resolve().parent.parent
BASE = {  # flags with which a script that took a number would end soon after, for another reason
    "train": ["--data_dir", "no/such/folder", "--max_iters", "1"],
    "plan": ["--n_embd", "64", "--tokens", "1e6"],
    "sweep": ["--dry_run", "--data_dir", "TOY"],
    "data": ["--source", "no_such_file.txt"],
    "fit": ["no_such_file.csv"],
}
SCRIPTS = ("model", "plan", "fit", "data", "train", "sweep", "sample", "eval", "export")
LARGE = {"flop_budgets", "total_flops", "predict_flops", "predict_params", "exclude_flops_above"}  # FLOPs: 1e30 is one
OTHER_END = {"flop_budget", "tokens_per_param", "max_iters"}  # a run takes one of these, and the base has one


def configurations() -> list[type]:
    """Every dataclass made of option() in the scripts and the package."""
    found = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("isoflop/**/*.py")]:
        if path.name == "__init__.py":
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and dataclasses.is_dataclass(value) and options_of(value):
                found.append(value)
    return found


def test_every_number_has_both_bounds():
    numbers, unbounded = 0, []
    for config in configurations():
        for f in options_of(config):
            m = f.metadata
            if type_of(f) not in (int, float) or m["choices"]:
                continue
            numbers += 1
            if (m["min"] is None and m["above"] is None) or (m["max"] is None and m["below"] is None):
                unbounded.append(f"{config.__name__}.{f.name}")
    assert unbounded == [] and numbers >= 98


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_number_of_any_flag_is_too_large_or_none(script, toy_data, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main, tried = importlib.import_module(script).main, 0
    for action in flags_of(script):
        try:
            action.type("x")
            continue  # a text
        except TypeError:
            continue  # a switch
        except Exception:
            tried += 1
        for value in ("1e30", "inf", "nan", "-1"):
            if value == "1e30" and action.dest in LARGE:
                continue
            base = [word.replace("TOY", toy_data) for word in BASE.get(script, [])]
            if action.dest in OTHER_END:
                base = base[:2]
            with pytest.raises(SystemExit) as stop:
                main([*base, action.option_strings[0], value])
            out, err = capsys.readouterr()
            assert stop.value.code == 2 and err.count("\n") == 1 and out == "", (action.dest, value, out, err)
            names = [f"--{action.dest}", *action.option_strings]  # of an alias, the field's own
            assert any(f"{name} " in err for name in names), (action.dest, value, err)
    assert tried >= {"export": 0, "fit": 8, "data": 6, "eval": 4, "sample": 7}.get(script, 9)
    assert list(tmp_path.iterdir()) == []
