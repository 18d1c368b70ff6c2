"""Text from a trained model.

    python sample.py --ckpt out/RUN_ID --prompt "def "
    python sample.py --ckpt out/RUN_ID --num_samples 4 --temperature 0.6
    python sample.py --ckpt out/RUN_ID --prompts prompts.jsonl > texts.txt
    python sample.py --ckpt out/RUN_ID --interactive
    python sample.py --ckpt out/RUN_ID --bench --max_new_tokens 512

Texts go to stdout, everything else to stderr. A text ends with the end-of-text
token or after --max_new_tokens. A cache of keys and values makes the next token
cost one position; past the model's context of block_size tokens the window
slides, every position changes, and each token costs a whole pass.
"""

import isoflop.installed  # noqa: F401 isort: skip
import codecs
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from isoflop.cli import Parser, UserError, check, option, run_main
from isoflop.files import regular
from isoflop.train import run_dir
from model import draw, generate, load_model


@dataclass(frozen=True)
class SampleConfig:
    """What is sampled, and how."""

    ckpt: str | None = option(None, "folder of a run or checkpoint of train.py", group="model")
    tokenizer_dir: str | None = option(None, "its tokenizer (default: the copy in --ckpt)", aliases=("data_dir",))
    device: str = option("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option("auto", "compute type", choices=("auto", "float32", "bfloat16"))
    compile: bool = option(False, "torch.compile whole passes")
    cache: bool = option(True, "keep keys and values")

    prompt: str | None = option(None, "text to continue; - for all of stdin", group="prompts")
    prompts: str | None = option(None, "file with a prompt a line, .jsonl, or - for stdin")
    interactive: bool = option(False, "read prompts, one a line, until end of file")
    bench: bool = option(False, "tokens/s with and without the cache")

    max_new_tokens: int = option(128, "tokens of a sample, at most", group="sampling", min=1, max=10**9)
    num_samples: int = option(1, "samples of each prompt", min=1, max=10**6)
    batch_size: int = option(16, "samples at a time; changes no sample", min=1, max=2**16)
    temperature: float = option(0.8, "divides the logits; 0: likeliest token", min=0, max=1e6)
    top_k: int = option(50, "draw from the k likeliest tokens; 0: all", min=0, max=2**31)
    top_p: float = option(1.0, "draw from the likeliest tokens with this sum", above=0, max=1)
    seed: int = option(0, "sample i has the seed seed + i", min=0, max=2**62)
    stream: bool = option(True, "print a single sample as it grows")

    def __post_init__(self):
        more = []
        if not self.ckpt:
            more.append("--ckpt is missing: name a folder that train.py wrote, as out/RUN_ID")
        if sum((self.prompt is not None, self.prompts is not None, self.interactive, self.bench)) > 1:
            more.append("--prompt, --prompts, --interactive and --bench exclude each other: give one")
        check(self, more)


def note(text: str):
    print(text, file=sys.stderr, flush=True)


def show(text: str):
    sys.stdout.write(text)
    sys.stdout.flush()


# ----- sampling -----


class Decoder:
    """Sampled tokens to text. Bytes of an incomplete character wait for the rest of it."""

    def __init__(self, tokenizer):
        self.bytes_of = tokenizer.decode_single_token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.bytes_of(token))

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


def sample_batch(model, tokenizer, prompts: list[list[int]], seeds: list[int], config: SampleConfig, stream=None):
    """(texts, number of tokens) of samples that are drawn together, one for each prompt; prompts have one length.

    stream : function that takes each piece of a single sample.
    """
    idx = torch.tensor(prompts, device=next(model.parameters()).device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = draw(
        model, idx, config.temperature, config.top_k, config.top_p, generators, config.cache, tokenizer.n_vocab
    )
    decoders, texts = [Decoder(tokenizer) for _ in prompts], [""] * len(prompts)
    running, n_tokens = set(range(len(prompts))), 0
    for _ in range(config.max_new_tokens):
        tokens = next(steps).tolist()
        running = {i for i in running if tokens[i] != tokenizer.eot_token}
        if not running:
            break
        n_tokens += len(running)
        for i in running:
            piece = decoders[i].add(tokens[i])
            texts[i] += piece
            if stream:
                stream(piece)
    ends = [decoder.end() for decoder in decoders]
    if stream:
        stream(ends[0])
    return [text + end for text, end in zip(texts, ends, strict=True)], n_tokens


def samples(model, tokenizer, prompts: list[list[int]], config: SampleConfig, stream=None, log=None) -> Iterator[str]:
    """The texts of prompt 0's num_samples samples, then prompt 1's, ..., each without its prompt.

    Parameters
    ----------
    prompts : token ids. Those of one length go through the model together, batch_size samples at a time.
    stream : function that takes each piece of text as soon as it is known; samples are then drawn one at a time.
    log : list to which (number of tokens, seconds) of each batch is added.
    """
    jobs = [prompt for prompt in range(len(prompts)) for _ in range(config.num_samples)]
    texts, first_waiting = {}, 0
    for batch in batches_of([len(prompts[prompt]) for prompt in jobs], 1 if stream else config.batch_size):
        begun = time.perf_counter()
        seeds = [config.seed + job for job in batch]
        found, n_tokens = sample_batch(model, tokenizer, [prompts[jobs[job]] for job in batch], seeds, config, stream)
        if log is not None:
            log.append((n_tokens, time.perf_counter() - begun))
        texts |= zip(batch, found, strict=True)
        while first_waiting in texts:  # in order, whatever the batches
            yield texts.pop(first_waiting)
            first_waiting += 1


def batches_of(lengths: list[int], most: int) -> list[list[int]]:
    """Indices in batches of at most `most` that have one length, the first ones first."""
    filling, batches = {}, []
    for i, length in enumerate(lengths):
        if len(filling.get(length, ())) in (0, most):
            filling[length] = []
            batches.append(filling[length])
        filling[length].append(i)
    return batches


@torch.no_grad()
def bench(model, config: SampleConfig) -> str:
    """Greedy text from one token with and without the cache: tokens/s of each, and how much of the text is the same."""
    idx = torch.zeros((1, 1), dtype=torch.int64, device=next(model.parameters()).device)
    count, texts, rates = min(config.max_new_tokens, model.config.block_size), {}, {}
    for cache in (True, False):
        generate(model, idx, min(8, count), 0, cache=cache)  # warms up, and compiles
        begun = time.perf_counter()
        texts[cache] = generate(model, idx, count, 0, cache=cache)
        rates[cache] = count / (time.perf_counter() - begun)
    same = int((texts[True] == texts[False]).long().cumprod(1).sum()) - 1  # without the first token, which was given
    return (
        f"{count:,} tokens: {rates[True]:,.0f} tok/s with the KV cache, {rates[False]:,.0f} without, "
        f"{rates[True] / rates[False]:.1f} x; {same:,} of {count:,} greedy tokens are the same"
    )


# ----- prompts and output -----


def read_prompts(path: str) -> list[str]:
    """One prompt a line; of a .jsonl file a JSON string, or an object with a "prompt"."""
    try:
        text = sys.stdin.read() if path == "-" else regular(path, 2**30).read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path} can't be read ({error}); name a text file, or - for stdin") from None
    lines = [line for line in text.split("\n") if line]
    if not lines:
        raise UserError(f"--prompts {path} has no prompts: give one a line")
    if not path.endswith(".jsonl"):
        return lines
    prompts = []
    for i, line in enumerate(lines, 1):
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        if isinstance(row, dict):
            row = row.get("prompt")
        if not isinstance(row, str):
            raise UserError(f'--prompts {path}, line {i}: must be a JSON string or {{"prompt": "..."}}')
        prompts.append(row)
    return prompts


def encode(tokenizer, text: str, block_size: int) -> list[int]:
    """Token ids of a prompt; of an empty one that after which a document begins."""
    ids = list(tokenizer.encode_ordinary(text)) or [tokenizer.start_token]
    if len(ids) > block_size:
        note(f"a prompt has {len(ids):,} tokens; the model sees the last {block_size:,}")
    return ids[-block_size:]


def write_samples(model, tokenizer, texts: list[str], config: SampleConfig):
    """Each prompt with its continuation; several are separated by a line of dashes."""
    prompts, log = [encode(tokenizer, text, model.config.block_size) for text in texts], []
    stream = show if config.stream and len(texts) * config.num_samples == 1 else None
    if stream:
        show(texts[0])
    for i, text in enumerate(samples(model, tokenizer, prompts, config, stream, log)):
        if not stream:
            if i > 0:
                show("-" * 40 + "\n")
            show(texts[i // config.num_samples] + text)
        show("\n")
    n_tokens, seconds = sum(n for n, _ in log), sum(s for _, s in log)
    cache = "with" if config.cache else "without"
    note(f"{n_tokens:,} tokens in {seconds:.2f} s ({n_tokens / seconds:,.0f} tok/s, {cache} the KV cache)")


def interact(model, tokenizer, config: SampleConfig):
    """A prompt a line, until end of file; each is a text of its own."""
    terminal = sys.stdin.isatty()
    if terminal:
        note("a prompt, then Enter; Ctrl-D ends")
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        write_samples(model, tokenizer, [line.rstrip("\n")], config)


# ----- command line -----


def run(parser, args):
    config = parser.read(SampleConfig, args)
    device, dtype = run_dir.place(config.device, config.dtype)
    found = run_dir.load(config.ckpt, load_model, config.tokenizer_dir)
    texts = [config.prompt or ""]
    if config.prompt == "-":
        texts = [sys.stdin.read()]
    elif config.prompts is not None:
        texts = read_prompts(config.prompts)
    tokenizer = None if config.bench else found.tokenizer()

    torch_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = found.model.to(device, torch_dtype).eval().requires_grad_(False)
    if config.compile:
        model.compile(dynamic=True)
    note(f"{config.ckpt}: {sum(p.numel() for p in model.parameters()):,} parameters, {device}, {dtype}")
    if config.bench:
        print(bench(model, config))
    elif config.interactive:
        interact(model, tokenizer, config)
    else:
        write_samples(model, tokenizer, texts, config)


def main(argv=None) -> int:
    return run_main(Parser("sample.py", __doc__, SampleConfig), run, argv, "what was printed is all there is")


if __name__ == "__main__":
    sys.exit(main())
