"""What a data folder is to hold: data.py's flags, what they come to, and the sources behind them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from isoflop.data.errors import DataError
from isoflop.data.sources import (
    Source,
    decode,
    files_source,
    hub_source,
    installed_files,
    paths_source,
    source_files,
    stdin_rows,
    stdlib_files,
    stdlib_rows,
)
from isoflop.data.tokenizer import check_name

RULES = 2  # raise it with any change, in sources.py and tokenizer.py too, to the bytes of a folder that is made anew
STDLIB_RULES = 1  # 2 came with long documents cut up, which the standard library has none of
STDLIB_TOKENIZER = "bpe:512"  # GPT-2's 50,257 rows would be 98% of a model of width 32
FINEWEB_DOCS = 100_000  # the default sample of a hub source
HUB = {"fineweb": "HuggingFaceFW/fineweb", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
HUB_CONFIG = "sample-10BT"  # of those two
LIMITS = ("num_docs", "num_tokens")


def opt(default, help: str, type=str):
    return field(default=default, metadata={"help": help, "type": type})


def integer(text: str) -> int:
    """'5000', '5_000' or '5e3' as an int; ValueError for '1.5', 'nan' or '1e12x'."""
    value = float(text)
    if not value.is_integer():  # also False for inf and nan
        raise ValueError(text)
    return int(value)


@dataclass(frozen=True)
class DataConfig:
    source: str | tuple[str, ...] = opt(
        "fineweb", "fineweb, fineweb-edu, hub:NAME, stdlib, python, - (a line each), or txt, jsonl, parquet files"
    )
    mix: tuple[str, ...] | None = opt(None, "several sources and their shares of the bytes: SOURCE=WEIGHT ...")
    dataset: str | None = opt(None, f"hub dataset that --source fineweb streams [{HUB['fineweb']}]")
    config: str | None = opt(None, f"its configuration, or none [FineWeb: {HUB_CONFIG}; else none]")
    split: str = opt("train", "its split on the hub")
    text_column: str = opt("text", "where hub, jsonl and parquet rows have their text")
    tokenizer: str | None = opt(
        None, f"gpt2 or another of tiktoken's, byte, bpe:V, or a tokenizer.json [gpt2; stdlib: {STDLIB_TOKENIZER}]"
    )
    bpe_sample: int = opt(2**26, "bytes of text that bpe:V is trained on: the first train documents", int)
    out_dir: str | None = opt(None, "data folder to write [data/SOURCE_TOKENIZER]")
    num_docs: int | None = opt(None, f"documents at most [hub: {FINEWEB_DOCS:,}, some 70M tokens; else all]", int)
    num_tokens: int | None = opt(None, "stop after the document that reaches this many tokens", int)
    shard_tokens: int = opt(100_000_000, "a new file is begun after the document that reaches this many tokens", int)
    val_fraction: float = opt(
        0.055, "validation's share of the documents, by a hash of the text; stdlib: of the bytes", float
    )
    hub_timeout: float = opt(60.0, "seconds without a document after which the hub is given up", float)
    append: bool = opt(False, "go on from a folder with a smaller --num_docs or --num_tokens", bool)
    overwrite: bool = opt(False, "replace a data folder that is damaged or has other settings", bool)


def hub_name(source: str, cfg: DataConfig) -> tuple[str, str | None, str, str] | None:
    """(dataset, configuration, split, column) of a hub source: fineweb, or hub:NAME[:CONFIG[:SPLIT[:COLUMN]]]."""
    dataset, config, split, column = None, cfg.config, cfg.split, cfg.text_column
    if source.startswith("hub:"):
        dataset, config, split, column = (source[4:].split(":") + [""] * 3)[:4]
        config, split, column = config or None, split or cfg.split, column or cfg.text_column
    elif source in HUB:
        dataset = (cfg.dataset if source == "fineweb" else None) or HUB[source]
    if dataset is None:
        return None
    config = config or (HUB_CONFIG if dataset in HUB.values() else None)
    return dataset, None if config == "none" else config, split, column


def mixture(cfg: DataConfig) -> list[tuple[str | tuple[str, ...], float]]:
    """(source, weight) of each source."""
    if cfg.mix is None:
        return [(cfg.source, 1.0)]
    found = []
    for entry in cfg.mix:
        name, _, weight = entry.rpartition("=")
        try:
            found.append((name, float(weight)))
        except ValueError:
            name = ""
        if not name or not 0 < found[-1][1] < float("inf"):
            raise DataError(f"--mix {entry} must be SOURCE=WEIGHT with a weight above 0, such as fineweb=0.7")
    return found


def resolve(cfg: DataConfig) -> DataConfig:
    """Check every field and fill in those left None; ValueError names the flag, the value and the way out."""
    tokenizer = cfg.tokenizer or (STDLIB_TOKENIZER if (cfg.source, cfg.mix) == ("stdlib", None) else "gpt2")
    check_name(tokenizer)
    for name in (*LIMITS, "shard_tokens", "bpe_sample"):
        if getattr(cfg, name) is not None and getattr(cfg, name) < 1:
            way_out = "; leave it out for no limit" if name in LIMITS else ""
            raise DataError(f"--{name} {getattr(cfg, name)} must be 1 or more{way_out}")
    if not 0 < cfg.val_fraction < 1:
        raise DataError(f"--val_fraction {cfg.val_fraction} must lie between 0 and 1")
    if not 0 < cfg.hub_timeout < threading.TIMEOUT_MAX:
        raise DataError(f"--hub_timeout {cfg.hub_timeout} must be a number of seconds above 0")
    parts, num_docs = mixture(cfg), cfg.num_docs
    stems = []
    for source, _ in parts:
        hub = hub_name(source, cfg) if isinstance(source, str) else None
        if hub:
            stems.append(hub[0].rsplit("/", 1)[-1])
        elif source in ("stdlib", "python", "-"):
            stems.append("stdin" if source == "-" else source)
        else:
            first = Path(source_files(source)[0])
            named = Path(source) if isinstance(source, str) and os.path.exists(source) else first.parent
            stems.append(named.resolve().stem)
        if hub and num_docs is None and cfg.num_tokens is None:
            num_docs = FINEWEB_DOCS
    short = Path(tokenizer).resolve().parent.name if tokenizer.endswith(".json") else tokenizer.replace(":", "")
    out_dir = cfg.out_dir or f"data/{'_'.join(stems)}_{short}"
    return replace(cfg, tokenizer=tokenizer, num_docs=num_docs, out_dir=out_dir)


def settings(cfg: DataConfig) -> dict:
    """The fields that decide the tokens, for meta.json: two folders with equal settings hold the same data."""
    names = ["source"] if cfg.mix is None else ["mix"]
    found = {name: getattr(cfg, name) for name in names}
    hubs = [hub for source, _ in mixture(cfg) if isinstance(source, str) and (hub := hub_name(source, cfg))]
    if hubs and cfg.mix is None:
        found |= dict(zip(("dataset", "config", "split", "text_column"), hubs[0], strict=True))
    elif cfg.source != "stdlib" or cfg.mix:
        found |= {"text_column": cfg.text_column} | ({"split": cfg.split} if hubs else {})
    found |= {name: getattr(cfg, name) for name in ("tokenizer", *LIMITS, "val_fraction")}
    defaults = {f.name: f.default for f in fields(cfg)}
    found |= {k: getattr(cfg, k) for k in ("shard_tokens", "bpe_sample") if getattr(cfg, k) != defaults[k]}
    if cfg.tokenizer.endswith(".json"):
        found["tokenizer_sha256"] = hashlib.sha256(Path(cfg.tokenizer).read_bytes()).hexdigest()
    rules = STDLIB_RULES if (cfg.source, cfg.mix) == ("stdlib", None) else RULES
    return json.loads(json.dumps(found | {"rules": rules}))


def open_sources(cfg: DataConfig, worker: tuple[int, int]) -> list[Source]:
    """The sources of cfg, of each the part that is this worker's."""
    found = []
    for source, weight in mixture(cfg):
        hub = hub_name(source, cfg) if isinstance(source, str) else None
        more = {"worker": worker, "weight": weight}
        if hub:
            found.append(hub_source(*hub, cfg.hub_timeout, **more))
        elif source == "stdlib":
            paths = [path for _, path in stdlib_files()]
            fraction = cfg.val_fraction
            found.append(paths_source(source, paths, lambda n, f=fraction: islice_rows(stdlib_rows(f), n), **more))
        elif source == "python":
            paths = installed_files()
            read = lambda n, paths=paths: ((decode(path.read_bytes()), None) for path in paths[n:])  # noqa: E731
            found.append(paths_source(source, paths, read, **more))
        elif source == "-":
            found.append(paths_source("standard input", [], stdin_rows, **more))
        else:
            found.append(files_source(source, cfg.text_column, **more))
    return found


def islice_rows(rows: Iterator, n: int) -> Iterator:
    for i, row in enumerate(rows):
        if i >= n:
            yield row


def command(cfg: DataConfig) -> str:
    """The command line that makes this folder again."""
    words = ["python", "data.py"]
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        if value != f.default and f.name not in ("overwrite", "append") and not (f.name == "source" and cfg.mix):
            words += [f"--{f.name}", *(value if isinstance(value, tuple) else [str(value or "none")])]
    return shlex.join(words)
