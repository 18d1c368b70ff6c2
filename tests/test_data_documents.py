"""isoflop/data/documents.py: what is dropped, split up and kept."""


def test_a_million_blanks_do_not_break_tiktoken(tmp_path):
    rows = [" " * 2_000_000 + "x", *texts()]
    folder = prepare(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", rows), tokenizer="byte",
                                out_dir=str(tmp_path / "d")), quiet=True)  # fmt: skip
    found = sum(documents_of(folder).values(), [])
    assert rows[0] in "".join(found) and max(map(len, found)) == errors.MAX_CHARS


def test_duplicates_empty_and_foreign_rows_are_dropped(tmp_path):
    rows = texts(100)
    source = write_jsonl(tmp_path / "a.jsonl", [*rows, *rows[:10], "", " \n\t", None, 3, "half \ud83d of a pair"])
    folder = prepare(DataConfig(source=source, tokenizer="byte", out_dir=str(tmp_path / "d")), quiet=True)
    found = documents_of(folder)
    assert sorted(found["train"] + found["val"]) == sorted([*rows, "half \ufffd of a pair"])
    assert open_data(folder).meta["dropped"] == {"duplicate": 10, "empty": 2, "not_text": 2}


def test_equal_texts_fall_on_the_same_side_in_any_corpus(tmp_path):
    one, two = texts(150, seed=1), texts(150, seed=1)[::-1] + texts(50, seed=2)
    splits = []
    for i, rows in enumerate((one, two)):
        cfg = DataConfig(
            source=write_jsonl(tmp_path / f"{i}.jsonl", rows), tokenizer="byte", out_dir=str(tmp_path / str(i))
        )
        splits.append(documents_of(prepare(cfg, quiet=True)))
    assert not set(splits[0]["train"]) & set(splits[1]["val"])
    assert not set(splits[1]["train"]) & set(splits[0]["val"])


def test_a_long_document_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "MAX_CHARS", 1000), monkeypatch.setattr(describe, "MAX_CHARS", 1000)
    long = "".join(f"line {i} of a long text\n" for i in range(500))
    words, solid = "word " * 1000, "x" * 5000
    folder = made(tmp_path, source=write_jsonl(tmp_path / "a.jsonl", [*texts(100), long, words, solid]))
    found = documents_of(folder)
    for whole, ending in ((long, "\n"), (words, " "), (solid, "x")):
        side = "train" if "".join(found["train"]).count(whole) else "val"
        assert whole in "".join(found[side]), "all pieces are on one side, in order"
        mine = [piece for piece in found[side] if piece in whole and len(piece) > 400]
        assert all(piece.endswith(ending) for piece in mine) and max(map(len, mine)) <= 1000
    assert data.main(["--verify", str(folder)]) == 0, "which puts the pieces together again"


@pytest.mark.slow
def test_a_hundred_megabytes_in_one_document(tmp_path):
    line = "a line of a text that does not end, number {}\n"
    with open(tmp_path / "a.jsonl", "w") as f:
        f.write("".join(json.dumps({"text": text}) + "\n" for text in texts(300)))
        f.write('{"text": "' + "".join(json.dumps(line.format(i))[1:-1] for i in range(2_100_000)) + '"}\n')
    assert (tmp_path / "a.jsonl").stat().st_size > 1e8
    opened = open_data(made(tmp_path, source=str(tmp_path / "a.jsonl")))
    pieces = max(opened.meta[split]["bytes"] for split in reader.SPLITS) / errors_.MAX_CHARS
    assert sum(opened.meta[split]["documents"] for split in reader.SPLITS) > len(texts(300)) + pieces - 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(), max_size=60) | st.sampled_from(["", " ", "\0", "\ud800", "a\udfffb", *ODD]),
                min_size=12, max_size=60, unique=True))  # fmt: skip
def test_any_text_comes_back(tmp_path, rows):
    """Odd unicode, lone surrogates, NUL bytes, blanks: what is kept is what was given, on one side of the split."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in [*rows, *texts(60)]))
    folder = made(tmp_path, source=str(tmp_path / "a.jsonl"), val_fraction=0.5)
    whole = [stream.clean(row)[0] for row in [*rows, *texts(60)]]
    kept = list(dict.fromkeys(row for row in whole if row.strip()))
    found, meta = documents_of(folder), open_data(folder).meta
    assert sorted(found["train"] + found["val"]) == sorted(kept) and not set(found["train"]) & set(found["val"])
    assert sum(meta["dropped"].values()) == len(whole) - len(kept)
    assert data.main(["--verify", str(folder)]) == 0


def test_the_set_of_hashes_is_a_set(monkeypatch):
    monkeypatch.setattr(stream, "RECENT", 100)
    keys = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64).tolist() * 2
    seen, known = stream.Seen(), set()
    for key in [*keys, 0, 2**64 - 1, 0, 2**64 - 1]:
        assert seen.add(key) == (key not in known)
        known.add(key)
    again = stream.Seen(np.array(sorted(known), dtype=np.uint64))
    assert not any(again.add(key) for key in known) and again.add(12345)
