"""isoflop/data/formats.py: texts in files as people have them, and every file of ../shared/cases/text."""

import gzip
import json

import pytest
from helpers import ODD_TEXTS, ROOT, all_documents, data_folder, data_main, write_jsonl
from helpers import make_texts as odd_and_plain_texts

from isoflop.data.formats import Reading, between_markers, marker_counts, read_json_texts
from isoflop.data.reader import open_data
from isoflop.options import UserError

CASES = ROOT.parent / "shared" / "cases" / "text"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not here")

# file -> (documents, what is dropped, a part of the notes)
READ = {
    "json_lines.json.gz": (120, {}, ""),
    "array.json": (120, {}, ""),
    "bom_crlf.jsonl": (120, {}, ""),
    "torn_line.jsonl": (119, {"not JSON": 1}, "1 of 120 rows were dropped: 1 not JSON (first: "),
    "nulls.parquet": (90, {"null": 30}, "30 of 120 rows were dropped: 30 null (first: "),
    "binary.parquet": (120, {}, ""),
    "stories.txt": (120, {}, "stories.txt: documents end at the 119 <|endoftext|> in the text"),
}
REFUSED = {
    (
        "list_col.parquet",
        "text",
    ): "text holds lists of text, no text: 120 of 120 documents would be dropped",
    ("chat.parquet", "text"): "no --text_column 'text' among its columns (messages: lists of {role, content})",
    ("chat.parquet", "messages"): "messages holds lists of {role, content}, no text: 120 of 120 documents",
    ("input_ids.parquet", "text"): "among its columns (input_ids: lists of whole numbers)",
    (
        "input_ids.parquet",
        "input_ids",
    ): "100 of 100 documents would be dropped; if they are tokens, say of which tokenizer: --tokens_of gpt2",
}


def make_texts(n: int) -> list[str]:
    """Texts without an end marker in them."""
    return odd_and_plain_texts(n)[len(ODD_TEXTS) :]


def dropped(folder) -> dict:
    return {reason: n for reason, n in open_data(folder).meta["dropped"].items() if n}


@needs_cases
@pytest.mark.parametrize("name", READ)
def test_a_case_that_is_read(name, tmp_path, capsys):
    documents, expected, note = READ[name]
    out = str(tmp_path / "d")
    assert data_main("--source", str(CASES / name), "--tokenizer", "bpe:300", "--out_dir", out) == 0
    assert len(all_documents(out)) == documents and dropped(out) == expected
    assert note in capsys.readouterr().out
    assert not any("<|endoftext|>" in text for text in all_documents(out))


@needs_cases
@pytest.mark.parametrize("case", REFUSED)
def test_a_case_that_is_refused(case, tmp_path, capsys):
    name, column = case
    flags = ("--text_column", column, "--tokenizer", "bpe:300", "--out_dir", str(tmp_path / "d"))
    assert data_main("--source", str(CASES / name), *flags) == 2
    error = capsys.readouterr().err
    assert REFUSED[case] in error and error.count("\n") == 1 and "too little" not in error
    assert not (tmp_path / "d").exists()


@needs_cases
def test_every_case_is_tested():
    assert {path.name for path in CASES.iterdir()} == {*READ, *(name for name, _ in REFUSED)}


def test_a_broken_line_is_dropped_counted_and_named_or_stops_all(tmp_path, capsys):
    rows = [json.dumps({"text": text}) for text in make_texts(100)]
    rows[41] = rows[41][:-9]
    rows[60] = json.dumps({"error": "no text here"})
    rows[70] = json.dumps({"text": [1, 2]})
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    folder = str(tmp_path / "d")
    assert data_main("--source", str(tmp_path / "a.jsonl"), "--tokenizer", "byte", "--out_dir", folder) == 0
    assert dropped(folder) == {"not JSON": 1, "without text": 1, "a list of numbers": 1}
    said = capsys.readouterr().out
    assert "3 of 100 rows were dropped: " in said and "a.jsonl, line 42: " in said
    with pytest.raises(UserError, match="a.jsonl, line 42: .*without --strict such rows are dropped"):
        data_folder(tmp_path, source=str(tmp_path / "a.jsonl"), strict=True, out_dir=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("value", [None, ["a", "b"], [{"role": "user", "content": "a"}], {"en": "a"}, 7, True])
def test_lines_without_any_text_say_what_they_hold(tmp_path, value):
    source = write_jsonl(tmp_path / "a.jsonl", [value] * 50)
    for tokenizer in ("byte", "bpe:300"):
        with pytest.raises(UserError, match="no document is left: 50 of 50 rows were dropped: 50 (null|a|an|true) ?"):
            data_folder(tmp_path, source=source, tokenizer=tokenizer)


def test_too_little_text_names_what_was_dropped_and_a_tokenizer_that_works(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["ab", "cd", "xy", "uv", None, None])
    with pytest.raises(UserError, match="repeats nothing; .*--tokenizer byte; 2 of 6 rows were dropped: 2 null"):
        data_folder(tmp_path, source=source, tokenizer="bpe:300", val_fraction=0.5)
    data_folder(tmp_path, source=source, tokenizer="byte", val_fraction=0.5)


@pytest.mark.parametrize("shape", ["array", "pretty", "strings", "wrapped", "by column", "a line", "lines"])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_shapes_of_json(tmp_path, shape, name):
    texts = make_texts(60)
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    written = {
        "array": json.dumps(rows),
        "pretty": "\n" + json.dumps(rows, indent=2),
        "strings": json.dumps(texts),
        "wrapped": json.dumps({"version": 1, "data": rows}),
        "by column": json.dumps({"id": list(range(60)), "text": texts}, indent=1),
        "a line": "\n".join(json.dumps(row) for row in rows[:1]),
        "lines": "\r\n".join(json.dumps(row) for row in rows),
    }[shape].encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    found = [text for text, _ in read_json_texts(str(path), Reading(), 0)]
    assert found == (texts[:1] if shape == "a line" else texts)
    assert [text for text, _ in read_json_texts(str(path), Reading(), 7)] == found[7:]


def test_one_json_value_of_another_shape_is_named(tmp_path):
    path = tmp_path / "a.json"
    for raw, says in (
        ('{\n"a": 1,\n"b": 2}', r"one JSON value, an object of 2 keys \(a, b\); write an array"),
        ('[{"text": "a"},\n', "neither JSON lines nor one JSON array .*cut short"),
        ('{"content": "a"}', r"line 1: no --text_column 'text' among its columns \(content\)"),
    ):
        path.write_text(raw)
        with pytest.raises(UserError, match=says):
            list(read_json_texts(str(path), Reading(), 0))


def test_a_folder_of_texts_leaves_json_beside_them_alone(tmp_path):
    (tmp_path / "t").mkdir()
    write_jsonl(tmp_path / "t/a.jsonl", make_texts(40))
    (tmp_path / "t/info.json").write_text('{"license": "none"}')
    assert len(all_documents(data_folder(tmp_path, source=str(tmp_path / "t")))) == 40


def test_end_markers_split_a_text_wherever_the_blocks_end(tmp_path, monkeypatch):
    texts = [f"story {i}\nwith {'many ' * i}words" for i in range(40)]
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>" + "\n<|endoftext|>\r\n".join(texts) + "\n<|endoftext|>\n  <|endoftext|>\n")
    for block in (1, 5, 13, 14, 100, 2**20):
        monkeypatch.setattr("isoflop.data.formats.BLOCK", block)
        assert [piece.decode() for piece, _ in between_markers(str(path), Reading().markers)] == texts
        assert marker_counts(str(path), Reading()) == {"<|endoftext|>": 42}


def test_the_count_is_said_and_a_flag_takes_markers_as_text(tmp_path, capsys):
    path, out = tmp_path / "a.txt", str(tmp_path / "d")
    path.write_text("<|endoftext|>".join(make_texts(60)))
    same = ("--source", str(path), "--tokenizer", "byte", "--out_dir", out)
    assert data_main(*same) == 0
    assert "a.txt: documents end at the 59 <|endoftext|> in the text; --no-split_at_markers" in capsys.readouterr().out
    assert len(all_documents(out)) == 60 and data_main(*same) == 0 and "already prepared" in capsys.readouterr().out
    assert data_main(*same, "--no-split_at_markers", "--overwrite", "--val_fraction", "0.5") == 0
    found = all_documents(out)
    assert len(found) < 10 and sum(text.count("<|endoftext|>") for text in found) == 59
    assert open_data(out).meta["settings"]["rules"] == 2 and "--no-split_at_markers" in open_data(out).meta["command"]


def test_a_tokenizers_own_end_marker_splits_too(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    hf = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False)
    hf.train_from_iterator(make_texts(5), trainer)
    (tmp_path / "m").mkdir()
    hf.save(str(tmp_path / "m/tokenizer.json"))
    (tmp_path / "a.txt").write_text("</s>\n".join(make_texts(60)))
    folder = data_folder(tmp_path, source=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / "m/tokenizer.json"))
    assert len(all_documents(folder)) == 60 and "59 </s>" in open_data(folder).meta["notes"][0]
