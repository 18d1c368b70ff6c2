"""isoflop/hf/tokenizer.py: the same ids on both sides, and vocabularies of other kinds."""

import base64
import json
import random

import pytest

from isoflop.data.tokenizer import load_tokenizer, make_tokenizer, write_tokenizer
from isoflop.hf import tokenizer

NEEDS = "exports are read back with transformers: pip install transformers tokenizers"


def own_tokenizer(folder, kind):
    """tokenizer.json of a small BPE over odd text, with GPT-2's pattern or another."""
    tokens = make_tokenizer("bpe:400", odd_texts(2000))
    if kind == "other pattern":
        tokens["pattern"] = r"""\p{L}++|\p{N}{1,3}+|\s++|[^\s\p{L}\p{N}]++"""
    write_tokenizer(folder, tokens)
    return tokens


def odd_texts(count, seed=0):
    luck = random.Random(seed)
    parts = list(" \n\t\r-=aabxyz019'\u00e9\u4e2d\u2028\x85\x1c\u00a0\u0301\U0001f469\u200d")
    parts += ["'ll", "  ", "----", "self", "<|endoftext", "\n\n"]
    return ["".join(luck.choice(parts) for _ in range(luck.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["GPT-2's pattern", "other pattern"])
def test_tokenizers_give_the_same_ids(kind, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason=NEEDS)
    own_tokenizer(tmp_path, kind)
    spec = tokenizer.read_spec(tmp_path / "tokenizer.json")
    hf, own = tokenizer.to_hf(spec), load_tokenizer(tmp_path)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(hf))
    back = tokenizer.own_spec(hf, "any")
    assert tokenizer.same(back, spec | {"pattern": tokenizer.without_possessive(spec["pattern"])}), "and back"
    longest = 0
    for text in odd_texts(3000, seed=1):
        ids = own.encode_ordinary(text)
        assert theirs.encode(text, add_special_tokens=False).ids == list(ids), repr(text)
        assert theirs.decode(list(ids)) == text
        longest = max([longest, *(len(base64.b64decode(spec["tokens"][i])) for i in ids)])
    assert longest >= 4, "merges were used"
    assert theirs.token_to_id("<|endoftext|>") == own.eot_token


def test_a_vocabulary_of_another_kind_is_kept_whole(tmp_path):
    """SentencePiece's, as LLaMA's: our own format can't say it, so the file goes along as it is."""
    hf = {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"<s>": 0, "</s>": 1, "\u2581a": 2}, "merges": []},
          "added_tokens": [{"id": 1, "content": "</s>", "special": True}], "pre_tokenizer": None}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(hf))
    spec, note = tokenizer.from_folder(tmp_path)
    assert spec == {"name": tmp_path.name, "hf": hf, "eot": 1, "n_vocab": 3} and "tokenizers" in note
    assert tokenizer.to_hf(spec) == hf


def test_gpt2s_first_files_are_enough(tmp_path):
    character = tokenizer.characters()
    vocab = {character[b]: b for b in range(256)} | {character[97] * 2: 256, "<|endoftext|>": 257}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    spec, note = tokenizer.from_folder(tmp_path)
    assert note == "" and [base64.b64decode(t) for t in spec["tokens"]] == [*(bytes([b]) for b in range(256)), b"aa"]
    assert tokenizer.eot_of(spec) == 257
