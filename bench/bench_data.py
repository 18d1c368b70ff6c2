"""How fast data.py tokenizes beside tiktoken alone, and the memory it takes for more text.

    python bench/bench_data.py texts.parquet            # bare encode_ordinary_batch and data.prepare, in turn
    python bench/bench_data.py texts.parquet --memory   # peak memory for 100 MB and 1 GB of text made of it

Both sides encode the same documents with GPT-2's vocabulary on all cores. The bare one has its text in memory;
ours reads it, drops duplicates, and leaves a whole data folder. Times are of whole passes, medians of the rounds.
"""

import argparse
import json
import os
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
from isoflop.data import bpe, config, downloads, reader, tokenizer

MEASURE = "import resource, sys, data; status = data.main(sys.argv[1:]); " + (
    "print('peak kB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet"), parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        (memory if args.memory else speed)(args, Path(folder))


def speed(args, folder: Path):
    texts = pq.read_table(args.parquet, columns=["text"]).column(0).to_pylist()
    spec = {"name": "gpt2", "pattern": bpe.PATTERN, "tokens": downloads.gpt2_tokens()}
    encoding = tokenizer.Tokenizer(spec | {"eot": 50256, "n_vocab": 50257}).encoding
    rates = {"bare": [], "ours": []}
    for i in range(args.rounds):
        start = time.perf_counter()
        n = 0
        for at in range(0, len(texts), 1024):
            n += sum(map(len, encoding.encode_ordinary_batch(texts[at : at + 1024], num_threads=tokenizer.cores())))
        rates["bare"].append(n / (time.perf_counter() - start))
        start = time.perf_counter()
        made = data.prepare(config.DataConfig(source=args.parquet, out_dir=str(folder / str(i))), quiet=True)
        seconds = time.perf_counter() - start
        meta = json.loads((made / "meta.json").read_text())
        rates["ours"].append(sum(meta[split]["tokens"] - meta[split]["documents"] for split in reader.SPLITS) / seconds)
    for side, found in rates.items():
        print(
            f"{side}: {statistics.median(found) / 1e6:.2f}M tokens/s ({min(found) / 1e6:.2f} .. {max(found) / 1e6:.2f})"
        )
    pairs = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    print(f"ours / bare: {statistics.median(pairs):.2f} ({min(pairs):.2f} .. {max(pairs):.2f}), median of {len(pairs)}")


def memory(args, folder: Path):
    table = pq.read_table(args.parquet, columns=["text"]).column(0).to_pylist()
    size = sum(len(text.encode()) for text in table)
    for wanted in (1e8, 1e9):
        path = folder / f"{wanted:.0e}.parquet"
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
            for copy in range(max(1, round(wanted / size))):  # a number in front, or they would be duplicates
                writer.write_table(pa.table({"text": [f"{copy} {text}" for text in table]}), row_group_size=2000)
        command = [sys.executable, "-c", MEASURE, "--source", str(path), "--out_dir", str(folder / "d"), "--overwrite"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
        lines = done.stdout.splitlines()
        assert done.returncode == 0, done.stderr
        meta = json.loads((folder / "d" / "meta.json").read_text())
        text, tokens = (sum(meta[split][k] for split in reader.SPLITS) for k in ("bytes", "tokens"))
        peak, seconds = int(lines[-1].split()[-1]) / 1e3, time.perf_counter() - start
        print(f"{text / 1e6:,.0f} MB of text: peak {peak:,.0f} MB, {tokens / seconds / 1e6:.2f}M tokens/s start to end")


if __name__ == "__main__":
    main()
