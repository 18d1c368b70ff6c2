"""isoflop/data/bpe.py: the trainer against the textbook's."""


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
                if out and (out[-1], i) == best and out[-1] != "used":
                    out[-1] = new
                else:
                    out.append(i)
            spelled[word] = tuple(out)
    return tokens


def test_trainer_equals_the_naive_one():
    import regex

    sample = [
        path.read_text() for name, path in sources.stdlib_files() if name in ("heapq.py", "bisect.py", "queue.py")
    ]
    words = Counter(w for text in [*sample, *ODD] for w in regex.findall(bpe.PATTERN, text) if len(w) <= bpe.MAX_WORD)
    tokens = bpe.train_bpe([*sample, *ODD], 450)
    assert tokens == naive_bpe(words, 450)
    assert len(set(tokens)) == 450, "tiktoken looks tokens up by their bytes, so no two may be equal"


def test_trainer_on_runs_of_one_letter():
    texts = ["aaaaaaaaaa aaaa aaa aaaaa", "abababab baba abab bab", "aa aa aa aab"]
    for n in (260, 262, 264):
        import regex

        words = Counter(w for t in texts for w in regex.findall(bpe.PATTERN, t))
        assert bpe.train_bpe(texts, n) == naive_bpe(words, n)


def test_bpe_learns_from_train_alone(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(300))
    folder = prepare(DataConfig(source=source, tokenizer="bpe:320", out_dir=str(tmp_path / "d")), quiet=True)
    tokens = tok.read_tokenizer(folder)["tokens"]
    assert tokens == bpe.train_bpe(documents_of(folder)["train"], 319)


def test_too_little_text_for_the_vocabulary(tmp_path):
    with pytest.raises(DataError, match="too little text for --tokenizer bpe:4096: it repeats enough for bpe:"):
        prepare(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", texts(20)), tokenizer="bpe:4096", val_fraction=0.3,
                           out_dir=str(tmp_path / "d")), quiet=True)  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
