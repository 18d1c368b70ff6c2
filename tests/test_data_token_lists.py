"""isoflop/data/token_lists.py: packed tokens of a parquet become the documents that they were."""

import pytest
from helpers import all_documents, data_main, make_texts

from isoflop.data import token_lists
from isoflop.data.reader import open_data
from isoflop.options import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
LENGTH = 64
TEXTS = [text for text in make_texts(60) if "<|endoftext|>" not in text]


@pytest.fixture
def packed(tmp_path):
    """A parquet file of rows of LENGTH byte tokens: documents behind each other, each ended by 256."""
    stream = []
    for text in TEXTS:
        stream += [*text.encode(), 256]
    rows = [stream[at : at + LENGTH] for at in range(0, len(stream), LENGTH)]
    path = tmp_path / "packed.parquet"
    parquet.write_table(pyarrow.table({"tokens": pyarrow.array(rows, pyarrow.list_(pyarrow.uint16()))}), path)
    return path


def test_documents_are_whole_whatever_row_they_end_in(packed, tmp_path):
    flags = ["--source", packed, "--text_column", "tokens", "--tokens_of", "byte", "--out_dir", tmp_path / "d"]
    assert data_main(*flags, "--tokenizer", "bpe:300") == 0
    assert sorted(all_documents(tmp_path / "d")) == sorted(set(TEXTS))
    assert open_data(tmp_path / "d").meta["vocab_size"] == 300


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "tokens: lists of whole numbers); for tokens give --text_column tokens --tokens_of gpt2"),
        (["--text_column", "tokens"], "if they are tokens, say of which tokenizer: --tokens_of gpt2"),
        (["--text_column", "tokens", "--tokens_of", "bpe:300"], "give the data folder that holds it"),
        (["--text_column", "tokens", "--tokens_of", "nothing"], "--tokens_of nothing must be one of"),
    ],
)
def test_what_is_missing_is_one_line(packed, tmp_path, capsys, flags, words):
    assert data_main("--source", packed, *flags, "--tokenizer", "byte", "--out_dir", tmp_path / "d") == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "d").exists()


def test_ids_beyond_the_vocabulary_and_streams_without_an_end(monkeypatch):
    with pytest.raises(UserError, match=r"row 2: 300 is no token of --tokens_of byte \(257 tokens\)"):
        list(token_lists.documents([([65], "row 1", 0.0), ([300], "row 2", 0.5)], "byte"))
    monkeypatch.setattr(token_lists, "MOST_TOKENS", 3)
    rows = [([65, 66], "row 1", 0.0), (None, "row 2", 0.3), ([67, 68, 256, 256, 69], "row 3", 0.6)]
    assert [text for text, _ in token_lists.documents(rows, "byte")] == ["ABC", "D", "E"]
