"""sample.py: what is drawn, how it is written, and what a user types."""

import io
import json

import pytest
import torch
from helpers import TOY_MODELS, toy_model

import model as model_
import sample
import train
from isoflop.config import configure
from isoflop.data import tokenizer as data
from isoflop.train.run_dir import keep_tokenizer
from model import save_model


@pytest.fixture(scope="module")
def folder(toy_data, tmp_path_factory):
    """A model's folder as train.py leaves it, with the byte tokenizer of toy_data."""
    out = tmp_path_factory.mktemp("model")
    save_model(toy_model(**TOY_MODELS["default"]), out)
    keep_tokenizer(toy_data, out)
    return out


class Fixed(torch.nn.Module):
    """Says the same of every next token."""

    def __init__(self, logits, block_size=8):
        super().__init__()
        self.logits, self.config = torch.nn.Parameter(torch.tensor(logits)), configure(block_size=block_size)

    def forward(self, idx, cache=None):
        return self.logits.expand(*idx.shape, -1), None


# ----- drawing -----


@pytest.mark.parametrize("name", TOY_MODELS)
def test_the_cache_changes_no_token(name):
    """Greedy, three rows, from one token to twice the context: where the window slides, too."""
    model, idx = toy_model(**TOY_MODELS[name]), torch.tensor([[1, 7], [200, 3], [0, 0]])
    with_, without = (model_.generate(model, idx, 48, temperature=0, cache=cache) for cache in (True, False))
    assert torch.equal(with_, without)
    assert len(with_[:, 2:].unique()) > 3, "a text of one token would prove nothing"


def test_the_cache_gives_the_logits_of_the_whole_pass():
    model, idx = toy_model(**TOY_MODELS["llama3"]), torch.randint(257, (2, 20))
    cache = model.new_cache(2)
    with torch.no_grad():
        parts = [model(part, cache=cache)[0] for part in idx.split([7, 1, 1, 11], dim=1)]
        assert torch.allclose(torch.cat(parts, 1), model(idx)[0], atol=1e-5)


def test_a_sample_is_the_same_in_any_batch(folder):
    model, tokenizer = toy_model(**TOY_MODELS["default"]), data.load_tokenizer(folder)
    prompts = [list(b"abc"), list(b"z"), list(b"xyz"), list(b"abcd")]

    def draw(**more):
        sc = sample.SampleConfig("x", num_samples=3, max_new_tokens=12, seed=5, **more)
        return list(sample.samples(model, tokenizer, prompts, sc))

    alone = draw(batch_size=1)
    assert alone == draw(batch_size=5) == draw(batch_size=100, cache=False)
    assert len(alone) == 12 and len(set(alone[:3])) == 3, "samples of one prompt differ"


def test_batches_share_a_length_and_keep_to_their_size():
    lengths = [3, 3, 3, 1, 1, 1, 3, 3, 3, 3, 3, 3]
    assert sample.batches_of(lengths, 4) == [[0, 1, 2, 6], [3, 4, 5], [7, 8, 9, 10], [11]]
    assert sample.batches_of([], 4) == []


def test_pick_follows_the_probabilities():
    """Frequencies of 20,000 draws against softmax, within four standard errors; then what top_k and top_p leave."""
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    logits, g = p.log().expand(20000, 4), torch.Generator().manual_seed(0)

    def frequencies(temperature=1.0, top_k=0, top_p=None):
        return model_.pick(logits, temperature, top_k, top_p, g).bincount(minlength=4) / 20000

    def close(got, want):
        want = torch.tensor(want) / sum(want)
        return bool(((got - want).abs() <= 4 * (want * (1 - want) / 20000).sqrt()).all())

    assert close(frequencies(), p.tolist())
    assert close(frequencies(0.5), (p**2).tolist())
    assert close(frequencies(top_k=2), [0.5, 0.25, 0, 0])
    assert close(frequencies(top_p=0.76), [0.5, 0.25, 0.15, 0])
    assert close(frequencies(top_p=0.5), [1.0, 0, 0, 0]), "the first token alone holds one half"
    assert close(frequencies(top_p=1e-9), [1.0, 0, 0, 0])
    assert (frequencies(0) == torch.tensor([1.0, 0, 0, 0])).all()


def test_a_text_ends_with_the_end_of_text_and_unused_rows_are_not_drawn(folder):
    tokenizer = data.load_tokenizer(folder)  # 256 bytes and the end of text, 256
    sc = sample.SampleConfig("x", max_new_tokens=9, temperature=0, cache=False)
    ends = Fixed([0.0] * 256 + [1.0])
    assert list(sample.samples(ends, tokenizer, [[65], [66]], sc)) == ["", ""]
    padded = Fixed([0.0] * 65 + [1.0] + [0.0] * 191 + [9.0] * 7)
    assert list(sample.samples(padded, tokenizer, [[0]], sc)) == ["AAAAAAAAA"]


def test_half_a_character_waits_for_the_rest(folder):
    decoder = sample.Decoder(data.load_tokenizer(folder))
    assert [decoder.add(b) for b in "aé€".encode()] == ["a", "", "é", "", "", "€"]
    assert decoder.add(0xE2) == "" and decoder.end() == "\ufffd"


def test_excerpt_leaves_the_random_state_alone_and_never_ends_a_run(folder, tmp_path):
    import contextlib

    before = torch.get_rng_state()
    line = train.excerpt(toy_model(**TOY_MODELS["default"]), folder, contextlib.nullcontext(), count=8)
    assert line.startswith("sample | ") and torch.equal(before, torch.get_rng_state())
    assert "tokenizer.json" in train.excerpt(toy_model(**TOY_MODELS["default"]), tmp_path, contextlib.nullcontext())


# ----- the command line -----


def run(capsys, *flags):
    status = sample.main([str(f) for f in flags])
    return status, capsys.readouterr()


def test_prompt_stdin_and_files(folder, tmp_path, capsys, monkeypatch):
    common = ["--ckpt", folder, "--max_new_tokens", 6, "--temperature", 0]
    status, said = run(capsys, *common, "--prompt", "ab")
    text = said.out
    assert status == 0 and text.startswith("ab") and "6 tokens in" in said.err and "with the KV cache" in said.err
    assert run(capsys, *common, "--prompt", "ab", "--no-stream", "--no-cache")[1].out == text
    monkeypatch.setattr("sys.stdin", io.StringIO("ab"))
    assert run(capsys, *common, "--prompt", "-")[1].out == text
    (tmp_path / "p.jsonl").write_text('\ufeff"ab"\n{"prompt": "c\\nd"}\n')
    many = run(capsys, *common, "--prompts", tmp_path / "p.jsonl")[1].out
    assert many.startswith(text + "-" * 40 + "\nc\nd")
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\ncd"))
    lines = run(capsys, *common, "--interactive")[1].out
    assert lines.startswith(text) and lines[len(text) :].startswith("cd")


def test_samples_differ_and_the_seed_repeats_them(folder, capsys):
    flags = ["--ckpt", folder, "--prompt", "x", "--num_samples", 3, "--max_new_tokens", 8]
    first = run(capsys, *flags, "--seed", 3)[1].out
    assert run(capsys, *flags, "--seed", 3)[1].out == first != run(capsys, *flags, "--seed", 9)[1].out
    texts = first.split("-" * 40 + "\n")
    assert len(texts) == 3 == len(set(texts))


def test_bench_bf16_and_compile(folder, capsys):
    out = run(capsys, "--ckpt", folder, "--bench", "--max_new_tokens", 24)[1].out
    assert "24 of 24 greedy tokens are the same" in out
    flags = ["--ckpt", folder, "--prompt", "a", "--dtype", "bfloat16", "--max_new_tokens", 4]
    assert "bfloat16" in run(capsys, *flags)[1].err


@pytest.mark.slow
def test_compiled_text_is_the_same(folder, capsys):
    """From one token past the context: what the cache serves is not compiled, whole passes are."""
    flags = ["--ckpt", folder, "--prompt", "ab", "--temperature", 0, "--max_new_tokens", 40]
    plain = run(capsys, *flags)[1].out
    assert run(capsys, *flags, "--compile")[1].out == plain
    assert run(capsys, *flags, "--compile", "--no-cache")[1].out == plain


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "--ckpt is missing"),
        (["--ckpt", "nowhere"], "no such folder"),
        (["--ckpt", "@", "--temperature", "-1"], "--temperature -1 must be at least 0"),
        (["--ckpt", "@", "--top_p", "1.5"], "--top_p 1.5 must be above 0"),
        (["--ckpt", "@", "--max_new_tokens", "0"], "--max_new_tokens 0 must be at least 1"),
        (["--ckpt", "@", "--prompt", "a", "--interactive"], "exclude each other"),
        (["--ckpt", "@", "--prompts", "nowhere.txt"], "--prompts nowhere.txt can't be read"),
        (["--ckpt", "@", "--tokenizer_dir", "nowhere"], "--tokenizer_dir nowhere has no tokenizer.json"),
        (["--ckpt", "@", "--data_dir", "nowhere"], "--tokenizer_dir nowhere has no tokenizer.json"),  # the old spelling
        (["--ckpt", "@", "--max_new_tokens", "1e12"], "--max_new_tokens 1000000000000 must be"),
        (["--ckpt", "@", "--device", "cuda"], "--device cuda"),
    ],
)
def test_mistakes_are_one_line(folder, flags, words, capsys):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit) as end:
        sample.main([str(folder) if f == "@" else f for f in flags])
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert words in said.err and said.err.count("\n") == 1


def test_a_bad_line_of_prompts_is_named(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('"fine"\n{"text": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        sample.read_prompts(str(tmp_path / "p.jsonl"))


@pytest.mark.slow
def test_as_a_user_runs_it(folder, script):
    done = script("sample.py", "--ckpt", folder, "--prompt", "ab", "--max_new_tokens", 4)
    assert done.returncode == 0 and done.stdout.startswith("ab")
    assert json.loads((folder / "config.json").read_text())["n_layer"] == 2
