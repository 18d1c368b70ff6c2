"""Pictures drawn in a process beside the fit are those drawn here, and a process that dies costs none."""

import filecmp

import pytest
from helpers import simulated_table

import fit
from isoflop import laws
from isoflop.fit import drawing
from isoflop.fit.result import bands, to_arrays, to_json

LAW = laws.Law(E=1.8, A=400.0, B=600.0, alpha=0.34, beta=0.29)


@pytest.fixture(scope="module")
def work():
    """A result and its arrays."""
    analysis = fit.analyse(simulated_table(LAW), fit.Options(bootstrap=100))
    return to_json(analysis), to_arrays(analysis) | {"bands": bands(analysis)}


@pytest.mark.slow
def test_pictures_drawn_beside_are_those_drawn_here(work, tmp_path, capfd):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    answer = drawing.draw(*work, here, "png")
    with drawing.Beside() as beside:
        assert beside.draw(*work, there, "png") == answer
    assert beside.process is None or beside.process.returncode is not None
    assert capfd.readouterr() == ("", "")
    names = answer[0]
    assert len(names) >= 4 and filecmp.cmpfiles(here, there, names, shallow=False)[0] == names
    missing = tmp_path / "none" / "below"
    drawn, why, full = drawing.draw(*work, missing, "png")
    assert not drawn and isinstance(full, FileNotFoundError)


def test_a_process_that_dies_costs_no_picture(work, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "PICTURES", {"optimum": drawing.PICTURES["optimum"]})
    monkeypatch.setattr(drawing, "SERVE", "raise SystemExit(0)")
    monkeypatch.setattr(drawing.os, "cpu_count", lambda: 2)
    with drawing.Beside() as beside:
        assert beside.process.wait(60) == 0
        assert beside.draw(*work, tmp_path, "png") == (["optimum.png"], [], None)


def test_no_process_on_one_core_or_where_it_is_not_wanted(monkeypatch):
    with drawing.Beside(False) as beside:
        assert beside.process is None
    monkeypatch.setattr(drawing.os, "cpu_count", lambda: 1)
    with drawing.Beside() as beside:
        assert beside.process is None
