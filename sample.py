"""Text from a trained model.

    python sample.py --ckpt out/RUN_ID --prompt "def "
    python sample.py --ckpt out/RUN_ID --num_samples 4 --temperature 0.6 --top_p 0.95 --seed 1
    python sample.py --ckpt out/RUN_ID --prompts prompts.jsonl --batch_size 8 > texts.txt
    python sample.py --ckpt out/RUN_ID --interactive
    python sample.py --ckpt out/RUN_ID --bench --max_new_tokens 512

Texts go to stdout, everything else to stderr. A text ends with the end-of-text token or with --max_new_tokens. Keys and
values of what was read are kept, so that a next token costs one position; past the model's context of block_size tokens
the window slides, every position changes its place, and each token costs a whole pass again.
"""

import codecs
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from isoflop.cli import Parser
from isoflop.options import option
from isoflop.train import run_dir
from model import draw, generate


@dataclass(frozen=True)
class SampleConfig:
    """What is drawn, and how."""

    ckpt: str = option("", "folder that train.py left, or one of its checkpoints")
    data_dir: str | None = option(None, "data folder whose tokenizer to use (default: the copy beside the weights)")
    prompt: str | None = option(None, "text to go on from, - for all of stdin (default: the start of a document)")
    prompts: str | None = option(None, "file of prompts, - for stdin: one a line; .jsonl: JSON strings")
    interactive: bool = option(False, "read a prompt a line until end of file")
    max_new_tokens: int = option(128, "tokens of a sample at most")
    num_samples: int = option(1, "samples of each prompt")
    batch_size: int = option(16, "samples drawn side by side; changes no sample")
    temperature: float = option(0.8, "divides the logits; 0 takes the likeliest token each time")
    top_k: int | None = option(50, "draw from the k likeliest tokens; 0: from all")
    top_p: float | None = option(None, "draw from the likeliest tokens that together have this probability")
    seed: int = option(0, "sample i draws with seed + i")
    stream: bool = option(True, "show tokens as they come, where one sample is drawn at a time")
    cache: bool = option(True, "keep keys and values of the tokens read so far")
    bench: bool = option(False, "time greedy text with and without the cache, and check that it is the same")
    device: str = option("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option(
        "auto", "type of weights and arithmetic; auto: float32 on a CPU", choices=("auto", "float32", "bfloat16")
    )
    compile: bool = option(False, "torch.compile whole passes; pays for texts much longer than the context")

    def __post_init__(self):
        problems = []
        if not self.ckpt:
            problems.append("--ckpt is missing: name a folder that train.py left, such as out/RUN_ID")
        for name in ("max_new_tokens", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"--{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"--temperature {self.temperature} must be at least 0 and finite")
        if self.top_k is not None and self.top_k < 0:
            problems.append(f"--top_k {self.top_k} must be at least 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"--top_p {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63 - 2**31:
            problems.append(f"--seed {self.seed} must be at least 0 and below 2^62")
        if sum((self.prompt is not None, self.prompts is not None, self.interactive, self.bench)) > 1:
            problems.append("--prompt, --prompts, --interactive and --bench exclude each other")
        if problems:
            raise ValueError("; ".join(problems))


# ----- texts -----


class Writer:
    """Sampled tokens to text: what no longer changes is given out as it comes, bytes of half a character are not."""

    def __init__(self, tokenizer):
        self.spell, self.decoder = tokenizer.decode_single_token_bytes, codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.spell(token))

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


def samples(model, tokenizer, prompts: list[list[int]], sc: SampleConfig, show=None, timer=None) -> Iterator[str]:
    """The texts of prompt 0's num_samples samples, then prompt 1's, ..., each without its prompt.

    Prompts of one length go through the model together, batch_size samples at a time. show(text), where one sample is
    drawn at a time, takes each piece as soon as it is known.
    """
    device, end = next(model.parameters()).device, tokenizer.eot_token
    jobs = [(p, sc.seed + p * sc.num_samples + i) for p in range(len(prompts)) for i in range(sc.num_samples)]
    texts, given = {}, 0
    for batch in together(jobs, [len(ids) for ids in prompts], 1 if show else sc.batch_size):
        idx = torch.tensor([prompts[p] for p, _ in batch], device=device)
        generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
        tokens = draw(model, idx, sc.temperature, sc.top_k, sc.top_p, generators, sc.cache, tokenizer.n_vocab)
        writers, running = [Writer(tokenizer) for _ in batch], [True] * len(batch)
        begun, made, pieces = time.perf_counter(), 0, [[] for _ in batch]
        for _, step in zip(range(sc.max_new_tokens), tokens, strict=False):
            for i, token in enumerate(step.tolist()):
                running[i] = running[i] and token != end
                if running[i]:
                    made += 1
                    pieces[i].append(writers[i].add(token))
                    if show:
                        show(pieces[i][-1])
            if not any(running):
                break
        if timer is not None:
            timer.append((made, time.perf_counter() - begun))
        for job, writer, text in zip(batch, writers, pieces, strict=True):
            text.append(writer.end())
            if show:
                show(text[-1])
            texts[job] = "".join(text)
        while given < len(jobs) and jobs[given] in texts:
            yield texts.pop(jobs[given])
            given += 1


def together(jobs: list[tuple[int, int]], lengths: list[int], most: int) -> list[list[tuple[int, int]]]:
    """Jobs (prompt, seed) in batches of at most `most` whose prompts have one length, the first prompts first."""
    open_, batches = {}, []
    for job in jobs:
        batch = open_.get(lengths[job[0]])
        if batch is None or len(batch) == most:
            batch = open_[lengths[job[0]]] = []
            batches.append(batch)
        batch.append(job)
    return batches


def read_prompts(path: str) -> list[str]:
    """One prompt a line; of a .jsonl file a JSON string, or an object with a "prompt"."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path} can't be read ({error})") from None
    lines = [line for line in text.split("\n") if line]
    if path.endswith(".jsonl"):
        for i, line in enumerate(lines):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            lines[i] = row.get("prompt") if isinstance(row, dict) else row
            if not isinstance(lines[i], str):
                raise ValueError(f'--prompts {path}, line {i + 1}: must be a JSON string or {{"prompt": "..."}}')
    if not lines:
        raise ValueError(f"--prompts {path} has no prompts: give one a line")
    return lines


# ----- command line -----


def ready(model, sc: SampleConfig):
    """The model on its device, in its type, compiled where that was asked for."""
    device, dtype = run_dir.place(sc.device, sc.dtype)
    model = model.to(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32).eval().requires_grad_(False)
    if sc.compile:
        model.compile(dynamic=True)
    note(f"{sc.ckpt}: {sum(p.numel() for p in model.parameters()):,} parameters, {device}, {dtype}")
    return model


def note(text: str):
    print(text, file=sys.stderr, flush=True)


def speed(timer: list[tuple[int, float]], sc: SampleConfig):
    made, seconds = (sum(column) for column in zip(*timer, strict=True))
    how = "with" if sc.cache else "without"
    note(f"{made:,} tokens in {seconds:.2f} s ({made / seconds:,.0f} tok/s, {how} the KV cache)")


@torch.no_grad()
def bench(model, sc: SampleConfig) -> str:
    """Greedy text from one token with and without the cache: tokens/s of each, and how much of the text is the same."""
    idx = torch.zeros((1, 1), dtype=torch.int64, device=next(model.parameters()).device)
    count, texts, rates = min(sc.max_new_tokens, model.config.block_size), {}, {}
    for cache in (True, False):
        generate(model, idx, min(8, count), 0, cache=cache)  # warms up, and compiles
        begun = time.perf_counter()
        texts[cache] = generate(model, idx, count, 0, cache=cache)
        rates[cache] = count / (time.perf_counter() - begun)
    same = int((texts[True] == texts[False]).long().cumprod(1).sum()) - 1
    return (
        f"{count:,} tokens: {rates[True]:,.0f} tok/s with the KV cache, {rates[False]:,.0f} without, "
        f"{rates[True] / rates[False]:.1f} x; {same:,} of {count:,} greedy tokens are the same"
    )


def main(argv=None):
    parser = Parser("sample.py", __doc__, SampleConfig)
    args = parser.parse_args(argv)
    try:
        sc = parser.read(SampleConfig, args)
        found = run_dir.load(sc.ckpt, sc.data_dir)
        if sc.bench:
            print(bench(ready(found.model, sc), sc))
            return 0
        tokenizer = found.tokenizer()
        if sc.prompts is not None:
            texts = read_prompts(sc.prompts)
        else:
            texts = [sys.stdin.read() if sc.prompt == "-" else sc.prompt or ""]
        model = ready(found.model, sc)
        if sc.interactive:
            interactive(model, tokenizer, sc)
        else:
            write_all(model, tokenizer, texts, sc)
    except (ValueError, OSError) as error:
        parser.fail(error)
    except KeyboardInterrupt:
        parser.exit(130, "\nsample.py: interrupted\n")
    return 0


def encode(tokenizer, text: str, size: int) -> list[int]:
    """Ids of a prompt; of none, the end of the document before. A note where the model can't see all of it."""
    ids = list(tokenizer.encode_ordinary(text)) or [tokenizer.eot_token]
    if len(ids) > size:
        note(f"a prompt has {len(ids):,} tokens; the model sees the last {size:,}")
    return ids[-size:]


def write_all(model, tokenizer, texts: list[str], sc: SampleConfig):
    """Each prompt with its continuation; several are separated by a line of dashes."""
    prompts, timer = [encode(tokenizer, text, model.config.block_size) for text in texts], []
    alone = sc.stream and len(texts) * sc.num_samples == 1

    def show(piece):
        sys.stdout.write(piece)
        sys.stdout.flush()

    if alone:
        show(texts[0])
    done = samples(model, tokenizer, prompts, sc, show if alone else None, timer)
    for i, text in enumerate(done):
        if not alone:
            show(("-" * 40 + "\n") * (i > 0) + texts[i // sc.num_samples] + text)
        show("\n")
    speed(timer, sc)


def interactive(model, tokenizer, sc: SampleConfig):
    """A prompt a line, until end of file; each starts anew."""
    asking = sys.stdin.isatty()
    if asking:
        note("a prompt, then Enter; Ctrl-D ends")
    while True:
        if asking:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        write_all(model, tokenizer, [line.rstrip("\n")], sc)


if __name__ == "__main__":
    sys.exit(main())
