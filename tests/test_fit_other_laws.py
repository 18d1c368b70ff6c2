"""fit.py --law_of: the hook for laws other than that of the loss."""

import json
from types import SimpleNamespace

import pytest

import fit
from isoflop.fit import other_laws


def toy(table, options, targets):
    mean = table.loss.mean()
    return {"mean": mean, "rows": len(table.n), "answer": [f"mean loss {mean:g}"]}, f"# Mean\n\n{mean:g}\n", None


@pytest.fixture
def runs(tmp_path):
    rows = [f"1e8,{d},{lr},{loss}" for d, lr, loss in ((2e9, 1, 3), (2e9, 2, 4), (4e9, 1, 2), (4e9, 2, 1))]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,lr,loss", *rows]) + "\n")
    return path


def test_a_law_gets_its_own_folder_and_the_rows_it_asks_for(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(other_laws.OTHER_LAWS, "toy", other_laws.OtherLaw(toy, {"same_nd": "all"}))
    options = SimpleNamespace(**vars(fit.Options(plots=False)) | {"law_of": "toy"})
    result = fit.fit_other_law([str(runs)], options)
    folder = tmp_path / "fit" / "toy"
    assert result["toy"]["mean"] == 2.5 and result["toy"]["rows"] == 4
    assert json.loads((folder / "fit.json").read_text()) == result
    assert (folder / "toy.md").read_text() == "# Mean\n\n2.5\n"


def test_flags_that_a_law_has_no_use_for_are_named(monkeypatch):
    monkeypatch.setitem(other_laws.OTHER_LAWS, "toy", other_laws.OtherLaw(toy, takes=("predict_runs",)))
    defaults = vars(fit.Options())
    given = SimpleNamespace(**defaults | {"law_of": "toy", "compare": True, "predict_runs": "more.csv"})
    assert other_laws.mistakes(given, defaults) == ["--compare is of no use to --law_of toy; leave one of them out"]


def test_a_law_that_is_unknown_is_one_line_and_status_2(runs, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit.main([str(runs), "--law_of", "tides"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "--law_of" in said and "tides" in said and "loss" in said and "\n" not in said
