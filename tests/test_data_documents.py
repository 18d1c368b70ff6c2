"""isoflop/data/documents.py: what is dropped, split up and kept."""

import json

import numpy as np
import pytest
from helpers import ODD_TEXTS, all_documents, data_folder, data_main, documents_of, make_texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.data import check, documents, reader
from isoflop.data.reader import open_data
from isoflop.data.tokenizer import MAX_CHARS


def test_a_million_blanks_do_not_break_tiktoken(tmp_path):
    rows = [" " * 2_000_000 + "x", *make_texts()]
    found = all_documents(data_folder(tmp_path, rows))
    assert rows[0] in "".join(found) and max(map(len, found)) == MAX_CHARS


def test_duplicates_empty_and_foreign_rows_are_dropped(tmp_path):
    rows = make_texts(100)
    folder = data_folder(tmp_path, [*rows, *rows[:10], "", " \n\t", None, 3, "half \ud83d of a pair"])
    assert sorted(all_documents(folder)) == sorted([*rows, "half \ufffd of a pair"])
    assert open_data(folder).meta["dropped"] == {
        "duplicate": 10, "empty": 2, "not_text": 0, "null": 1, "a number": 1
    }  # fmt: skip


def test_equal_texts_fall_on_the_same_side_in_any_corpus(tmp_path):
    one, two = make_texts(150, seed=1), make_texts(150, seed=1)[::-1] + make_texts(50, seed=2)
    splits = [documents_of(data_folder(tmp_path, rows)) for rows in (one, two)]
    assert not set(splits[0]["train"]) & set(splits[1]["val"])
    assert not set(splits[1]["train"]) & set(splits[0]["val"])


def test_a_long_document_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_CHARS", 1000), monkeypatch.setattr(check, "MAX_CHARS", 1000)
    long = "".join(f"line {i} of a long text\n" for i in range(500))
    words, solid = "word " * 1000, "x" * 5000
    folder = data_folder(tmp_path, [*make_texts(100), long, words, solid])
    found = documents_of(folder)
    for whole, ending in ((long, "\n"), (words, " "), (solid, "x")):
        side = "train" if "".join(found["train"]).count(whole) else "val"
        assert whole in "".join(found[side]), "all parts are in one split, in order"
        parts = [part for part in found[side] if part in whole and len(part) > 400]
        assert all(part.endswith(ending) for part in parts) and max(map(len, parts)) <= 1000
    assert data_main("--verify", folder) == 0, "which puts the parts together again"


@pytest.mark.slow
def test_a_hundred_megabytes_in_one_document(tmp_path):
    line = "a line of a text that does not end, number {}\n"
    with open(tmp_path / "a.jsonl", "w") as f:
        f.write("".join(json.dumps({"text": text}) + "\n" for text in make_texts(300)))
        f.write('{"text": "' + "".join(json.dumps(line.format(i))[1:-1] for i in range(2_100_000)) + '"}\n')
    assert (tmp_path / "a.jsonl").stat().st_size > 1e8
    opened = open_data(data_folder(tmp_path, source=str(tmp_path / "a.jsonl")))
    parts = max(opened.meta[split]["bytes"] for split in reader.SPLITS) / MAX_CHARS
    assert sum(opened.meta[split]["documents"] for split in reader.SPLITS) > len(make_texts(300)) + parts - 1


ANY_TEXT = st.text(st.characters(), max_size=60)
ODD_TEXT = st.sampled_from(["", " ", "\0", "\ud800", "a\udfffb", *ODD_TEXTS])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_TEXT | ODD_TEXT, min_size=12, max_size=60, unique=True))
def test_any_text_comes_back(tmp_path, rows):
    """Odd unicode, lone surrogates, NUL bytes, blanks: what is kept is what was given, on one side of the split."""
    folder = data_folder(tmp_path, [*rows, *make_texts(60)], val_fraction=0.5)
    whole = [documents.clean(row)[0] for row in [*rows, *make_texts(60)]]
    kept = list(dict.fromkeys(row for row in whole if row.strip()))
    found, meta = documents_of(folder), open_data(folder).meta
    assert sorted(found["train"] + found["val"]) == sorted(kept) and not set(found["train"]) & set(found["val"])
    assert sum(meta["dropped"].values()) == len(whole) - len(kept)
    assert data_main("--verify", folder) == 0


def test_the_set_of_hashes_is_a_set(monkeypatch):
    monkeypatch.setattr(documents, "RECENT", 100)
    keys = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64).tolist() * 2
    seen, known = documents.HashSet(), set()
    for key in [*keys, 0, 2**64 - 1, 0, 2**64 - 1]:
        assert seen.add(key) == (key not in known)
        known.add(key)
    again = documents.HashSet(np.array(sorted(known), dtype=np.uint64))
    assert not any(again.add(key) for key in known) and again.add(12345)
