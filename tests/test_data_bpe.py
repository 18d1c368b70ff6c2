"""isoflop/data/bpe.py: the trainer against the textbook's."""

from collections import Counter

import pytest
from helpers import ODD_TEXTS, data_folder, documents_of, make_texts

from isoflop.data import bpe, sources, tokenizer
from isoflop.options import UserError


def naive_bpe(words: Counter, n_tokens: int) -> list[bytes]:
    """BPE as in the textbook: recount every pair for every merge."""
    tokens, spelled = [bytes([b]) for b in range(256)], {word: tuple(word.encode()) for word in words}
    while len(tokens) < n_tokens:
        counts = Counter()
        for word, ids in spelled.items():
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] += words[word]
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        new = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for word, ids in spelled.items():
            out = []
            for i in ids:
                if out and (out[-1], i) == best:
                    out[-1] = new
                else:
                    out.append(i)
            spelled[word] = tuple(out)
    return tokens


def test_trainer_equals_the_naive_one():
    import regex

    files = dict(sources.stdlib_files())
    sample = [files[name].read_text() for name in ("heapq.py", "bisect.py", "queue.py")]
    words = Counter(
        w for text in [*sample, *ODD_TEXTS] for w in regex.findall(bpe.PATTERN, text) if len(w) <= bpe.MAX_WORD
    )
    tokens = bpe.train_bpe([*sample, *ODD_TEXTS], 450)
    assert tokens == naive_bpe(words, 450)
    assert len(set(tokens)) == 450, "tiktoken looks tokens up by their bytes, so no two may be equal"


def test_trainer_on_runs_of_one_letter():
    import regex

    texts = ["aaaaaaaaaa aaaa aaa aaaaa", "abababab baba abab bab", "aa aa aa aab"]
    for n in (260, 262, 264):
        words = Counter(w for t in texts for w in regex.findall(bpe.PATTERN, t))
        assert bpe.train_bpe(texts, n) == naive_bpe(words, n)


def test_bpe_learns_from_train_alone(tmp_path):
    folder = data_folder(tmp_path, make_texts(300), tokenizer="bpe:320")
    tokens = tokenizer.read_tokenizer(folder)["tokens"]
    assert tokens == bpe.train_bpe(documents_of(folder)["train"], 319)


def test_too_little_text_for_the_vocabulary(tmp_path):
    with pytest.raises(UserError, match="too little text for --tokenizer bpe:4096: it repeats enough for bpe:"):
        data_folder(tmp_path, make_texts(20), tokenizer="bpe:4096", val_fraction=0.3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
