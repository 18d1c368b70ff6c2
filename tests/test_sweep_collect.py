"""sweep.py --collect: records from anywhere become rows, once; what is no row is listed by name."""

import json
import shutil

import pytest
from helpers import SMALL_SIZES, finished_sweep, losses_of, quick_fits, rows_of, run_sweep

BUDGETS = ["--flop_budgets", "1e8", "2e8"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    quick_fits(monkeypatch)


@pytest.fixture(scope="module")
def swept(toy_data, tmp_path_factory):
    """(folder, flags) of a sweep of 8 cells."""
    folder = tmp_path_factory.mktemp("swept") / "out"
    flags = [*BUDGETS, *SMALL_SIZES, "--data_dir", toy_data, "--out_dir"]
    return finished_sweep(folder, flags)


@pytest.fixture
def pile(swept, tmp_path):
    """A folder with the cells of the sweep in folders of other names, two levels deep."""
    for i, cell in enumerate(sorted((swept[0] / "cells").iterdir())):
        shutil.copytree(cell, tmp_path / "pile" / f"host{i % 2}" / f"run{i}")
    return tmp_path / "pile"


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def collected(capsys, *flags) -> tuple[int, str, str]:
    capsys.readouterr()
    status = run_sweep(*flags)
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_every_run_is_taken_once(swept, pile, tmp_path, capsys):
    folder, flags = swept
    both = ["--collect", pile / "host0", pile / "host1", pile]
    status, out, _ = collected(capsys, *flags, tmp_path / "out", *both)
    assert status == 0 and "collected 8 runs" in out and "\nleft out: " not in out
    assert losses_of(tmp_path / "out") == losses_of(folder)
    before = {
        path: path.read_bytes() for path in (tmp_path / "out").glob("*") if path.is_file() and path.name[0] != "."
    }
    status, out, _ = collected(capsys, *flags, tmp_path / "out", *both)
    assert status == 0 and "collected 0 runs" in out
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_no_result_is_listed(swept, pile, tmp_path, capsys):
    folder, flags = swept
    paths = sorted(pile.glob("*/*/run.json"))
    edit(paths[0], status="peer_lost")
    edit(paths[1], status="diverged", val_loss=None, val_loss_se=None, bits_per_byte=None, train_loss=None)
    paths[2].write_text('{"run_id": "abc')
    edit(paths[3], run_id="0123456789ab")
    edit(paths[4], n_embd=13)
    edit(paths[5], val_loss=float("nan"))
    paths[6].write_text('["not a record"]')
    ids = sorted(path.name for path in (folder / "cells").iterdir())
    names = {path: json.loads((path.parent / "run.json").read_text()) for path in paths[:2]}
    (tmp_path / "out" / "cells" / ids[0] / "checkpoints" / "step_00000012").mkdir(parents=True)
    status, out, _ = collected(capsys, *flags, tmp_path / "out", "--collect", pile)
    assert status == 1 and "collected 2 runs" in out
    assert f"{names[paths[1]]['run_id']} | diverged" in out
    listed = [line for line in out.splitlines() if line.startswith("left out: ")]
    for i, reason in {
        0: "was cut after", 2: "is not JSON", 3: "0123456789ab is no cell of this grid", 4: "n_embd is 13",
        5: "val_loss 'nan' must be", 6: "is no record of a run",
    }.items():  # fmt: skip
        assert [line for line in listed if str(paths[i]) in line and reason in line], (paths[i], reason, listed)
    assert len(listed) == 6
    assert "7 of 8 cells have no result (6 not run, 1 diverged)" in out
    assert "cut, with a checkpoint after step 12" in out
    assert "--collect" not in out.splitlines()[-1]


def test_another_loss_of_the_same_run_is_listed(swept, pile, tmp_path, capsys):
    _, flags = swept
    twice = tmp_path / "twice"
    shutil.copytree(sorted(pile.glob("*/*"))[0], twice)
    edit(twice / "run.json", val_loss=1.5)
    status, out, _ = collected(capsys, *flags, tmp_path / "out", "--collect", pile, twice)
    assert status == 0 and "collected 8 runs" in out and f"{twice / 'run.json'}: val_loss 1.5 of" in out
    assert "1.5" not in {r["val_loss"] for r in rows_of(tmp_path / "out")}


def test_a_result_follows_a_failure(swept, pile, tmp_path, capsys):
    folder, flags = swept
    path = sorted(pile.glob("*/*/run.json"))[0]
    good = path.read_text()
    edit(path, status="oom", val_loss=None)
    status, out, _ = collected(capsys, *flags, tmp_path / "out", "--collect", pile)
    assert status == 1 and "1 of 8 cells have no result (1 oom)" in out
    path.write_text(good)
    status, out, _ = collected(capsys, *flags, tmp_path / "out", "--collect", pile)
    assert status == 0 and "collected 1 runs" in out
    assert [r["status"] for r in rows_of(tmp_path / "out")].count("ok") == 8


def test_folders_without_records_are_refused(swept, tmp_path, capsys):
    folder, flags = swept
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    record = sorted((folder / "cells").glob("*/run.json"))[0].read_text()
    (tmp_path / "foreign" / "run.json").write_text(record.replace('"run_id": "', '"run_id": "f'))
    for name, said in {"none": "no such folder", "empty": "no run.json", "foreign": "is no cell of this grid"}.items():
        status, out, err = collected(capsys, *flags, tmp_path / "out", "--collect", tmp_path / name)
        assert status == 2 and said in err and err.count("\n") == 1 and not out
        assert not (tmp_path / "out").exists()
