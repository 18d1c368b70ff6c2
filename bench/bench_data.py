"""How fast data.py tokenizes beside tiktoken alone, and the memory it takes for more text.

    python bench/bench_data.py texts.parquet            # bare encode_ordinary_batch and data.prepare, in turn
    python bench/bench_data.py texts.parquet --memory   # peak memory for 100 MB and 1 GB of text made of it

Both sides encode the same documents with GPT-2's vocabulary on all cores. The bare one has its text in memory;
ours reads it, drops duplicates, and leaves a whole data folder. Times are of whole passes, medians of the rounds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq

import data
from isoflop.data import bpe, downloads, tokenizer
from isoflop.data.reader import SPLITS, open_data

ROOT = Path(__file__).resolve().parent.parent
MEASURE = """
import resource, sys, data
data.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    texts = pq.read_table(args.parquet, columns=["text"]).column(0).to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            memory(texts, Path(folder))
        else:
            speed(args.parquet, texts, args.rounds, Path(folder))


def total(folder: Path, unit: str) -> int:
    """Tokens, documents or bytes of both splits of a data folder."""
    meta = open_data(folder).meta
    return sum(meta[split][unit] for split in SPLITS)


def speed(path: str, texts: list[str], rounds: int, folder: Path):
    spec = {"name": "gpt2", "pattern": bpe.PATTERN, "tokens": downloads.gpt2_tokens(), "eot": 50256, "n_vocab": 50257}
    encoding = tokenizer.Tokenizer(spec).encoding
    rates = {"bare": [], "ours": []}  # tokens per second, without end-of-text tokens
    for i in range(rounds):
        start, n = time.perf_counter(), 0
        for at in range(0, len(texts), 1024):
            for ids in encoding.encode_ordinary_batch(texts[at : at + 1024], num_threads=tokenizer.cores()):
                n += len(ids)
        rates["bare"].append(n / (time.perf_counter() - start))
        start = time.perf_counter()
        made = data.prepare(data.DataConfig(source=path, out_dir=str(folder / str(i))), quiet=True)
        seconds = time.perf_counter() - start
        rates["ours"].append((total(made, "tokens") - total(made, "documents")) / seconds)
    for side, found in rates.items():
        low, middle, high = min(found) / 1e6, statistics.median(found) / 1e6, max(found) / 1e6
        print(f"{side}: {middle:.2f}M tokens/s ({low:.2f} .. {high:.2f})")
    pairs = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    print(f"ours / bare: {statistics.median(pairs):.2f} ({min(pairs):.2f} .. {max(pairs):.2f}), median of {rounds}")


def memory(texts: list[str], folder: Path):
    size = sum(len(text.encode()) for text in texts)
    for wanted in (1e8, 1e9):
        path, made = folder / f"{wanted:.0e}.parquet", folder / f"{wanted:.0e}"
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
            for copy in range(max(1, round(wanted / size))):  # a number in front, or they would be duplicates
                writer.write_table(pa.table({"text": [f"{copy} {text}" for text in texts]}), row_group_size=2000)
        command = [sys.executable, "-c", MEASURE, "--source", path, "--out_dir", made]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        seconds = time.perf_counter() - start
        assert done.returncode == 0, done.stderr
        peak_mb, rate = int(done.stdout.splitlines()[-1]) / 1e3, total(made, "tokens") / seconds / 1e6
        print(
            f"{total(made, 'bytes') / 1e6:,.0f} MB of text: peak {peak_mb:,.0f} MB, {rate:.2f}M tokens/s start to end"
        )


if __name__ == "__main__":
    main()
