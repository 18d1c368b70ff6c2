"""What a data folder is to hold: data.py's flags, their defaults, and the sources they name."""

import json
import os
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

from isoflop.data import sources
from isoflop.data.bpe import EOT
from isoflop.data.formats import Reading, kind
from isoflop.data.hf_tokenizer import hf_end
from isoflop.data.tokenizer import check_name
from isoflop.files import sha256
from isoflop.options import UserError, check, option, real

# Raise them with any change, in sources.py, formats.py and tokenizer.py too, to the bytes of a folder made anew. The
# standard library's stayed at 1: 2 came with long documents split up, and it has none; 3 with end markers in .txt.
DATA_FORMAT_VERSION, STDLIB_FORMAT_VERSION, MARKERS_FORMAT_VERSION = 2, 1, 3
STDLIB_TOKENIZER = "bpe:512"  # GPT-2's 50,257 rows would be 98% of a model of width 32
FINEWEB_DOCS = 100_000  # the default sample of a hub source
HUB = {"fineweb": "HuggingFaceFW/fineweb", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
HUB_CONFIG = "sample-10BT"  # of those two
LIMITS = ("num_docs", "num_tokens")
NO_LIMIT = "leave it out for no limit"


@dataclass(frozen=True)
class DataConfig:
    source: str | tuple[str, ...] = option("fineweb", "see above (default: fineweb)", group="source")
    mix: tuple[str, ...] | None = option(None, "several sources, each with its share of the bytes")
    dataset: str | None = option(None, "another hub dataset for --source fineweb")
    config: str | None = option(None, f"its configuration, or none (FineWeb's: {HUB_CONFIG})")
    split: str = option("train", "its split on the hub")
    text_column: str = option("text", "column or key that holds the text")
    tokens_of: str | None = option(None, "the column holds tokens of this tokenizer, as gpt2")
    split_at_markers: bool = option(True, "documents of a .txt end at <|endoftext|>")
    strict: bool = option(False, "stop at a line or row that is no text, not drop it")
    tokenizer: str | None = option(None, f"see above (default: gpt2; stdlib: {STDLIB_TOKENIZER})", group="tokenizer")
    bpe_sample: int = option(2**26, "bytes of text to train bpe:V on", min=1, max=2**40)
    out_dir: str | None = option(None, "data folder (default: data/SOURCE_TOKENIZER)", group="output")
    num_docs: int | None = option(
        None, f"at most so many (default: hub {FINEWEB_DOCS:,}, else all)", min=1, max=2**40, hint=NO_LIMIT
    )
    num_tokens: int | None = option(None, "stop at this many tokens", min=1, max=2**50, hint=NO_LIMIT)
    shard_tokens: int = option(100_000_000, "tokens in a file", min=1, max=2**40)
    val_fraction: float = option(0.055, "share of documents that go to validation", above=0, below=1)
    hub_timeout: float = option(60.0, "seconds to wait for the next document", group="source", above=0, max=1e6)
    append: bool = option(False, "add to a folder made with smaller limits", group="output")
    overwrite: bool = option(False, "replace a damaged or different data folder")

    def __post_init__(self):
        check(self)


def hub_name(source: str | tuple[str, ...], cfg: DataConfig) -> tuple[str, str | None, str, str] | None:
    """(dataset, configuration, split, column) of a hub source: fineweb, or hub:NAME[:CONFIG[:SPLIT[:COLUMN]]]."""
    config, split, column = cfg.config, cfg.split, cfg.text_column
    if not isinstance(source, str):
        return None
    if source.startswith("hub:"):
        dataset, config, split, column = (source[4:].split(":") + [""] * 3)[:4]
        split, column = split or cfg.split, column or cfg.text_column
    elif source == "fineweb" and cfg.dataset:
        dataset = cfg.dataset
    elif source in HUB:
        dataset = HUB[source]
    else:
        return None
    if not config and dataset in HUB.values():
        config = HUB_CONFIG
    if config in ("", "none"):
        config = None
    return dataset, config, split, column


def mixture(cfg: DataConfig) -> list[tuple[str | tuple[str, ...], float]]:
    """(source, weight) of each source."""
    if cfg.mix is None:
        return [(cfg.source, 1.0)]
    found = []
    for entry in cfg.mix:
        name, _, text = entry.rpartition("=")
        try:
            weight = real(text)
        except UserError:
            weight = 0.0
        if not name or weight <= 0:
            raise UserError(f"--mix {entry} must be SOURCE=WEIGHT with a weight above 0, such as fineweb=0.7")
        found.append((name, weight))
    return found


def resolve(cfg: DataConfig) -> DataConfig:
    """cfg with the fields filled in that are None; UserError for a source or tokenizer that does not exist."""
    tokenizer = cfg.tokenizer
    if tokenizer is None:
        tokenizer = STDLIB_TOKENIZER if is_stdlib(cfg) else "gpt2"
    check_name(tokenizer)
    if cfg.tokens_of is not None:
        from isoflop.data.token_lists import tokenizer_of

        tokenizer_of(cfg.tokens_of)  # or says that there is none such
    names = []
    num_docs = cfg.num_docs
    for source, _ in mixture(cfg):
        names.append(folder_name(source, cfg))
        if hub_name(source, cfg) and cfg.num_docs is None and cfg.num_tokens is None:
            num_docs = FINEWEB_DOCS
    short = tokenizer.replace(":", "")
    if tokenizer.endswith(".json"):
        short = Path(tokenizer).resolve().parent.name
    out_dir = cfg.out_dir or f"data/{'_'.join(names)}_{short}"
    return replace(cfg, tokenizer=tokenizer, num_docs=num_docs, out_dir=out_dir)


def is_stdlib(cfg: DataConfig) -> bool:
    return cfg.source == "stdlib" and cfg.mix is None


def folder_name(source: str | tuple[str, ...], cfg: DataConfig) -> str:
    """A source's part of the default --out_dir."""
    hub = hub_name(source, cfg)
    if hub:
        return hub[0].rsplit("/", 1)[-1]
    if source == "-":
        return "stdin"
    if source in ("stdlib", "python"):
        return source
    path = Path(sources.source_files(source)[0]).parent
    if isinstance(source, str) and os.path.exists(source):
        path = Path(source)
    return path.resolve().stem


def settings(cfg: DataConfig) -> dict:
    """The fields that decide the tokens, for meta.json: two folders with equal settings hold the same data.

    The names, also "rules", are those of the first folders made, which stay valid.
    """
    hubs = [hub_name(source, cfg) for source, _ in mixture(cfg)]
    hubs = [hub for hub in hubs if hub]
    if cfg.mix is not None:
        found = {"mix": cfg.mix, "text_column": cfg.text_column}
        if hubs:
            found["split"] = cfg.split
    elif hubs:
        found = {"source": cfg.source}
        found["dataset"], found["config"], found["split"], found["text_column"] = hubs[0]
    elif is_stdlib(cfg):
        found = {"source": cfg.source}
    else:
        found = {"source": cfg.source, "text_column": cfg.text_column}
    for name in ("tokenizer", *LIMITS, "val_fraction"):
        found[name] = getattr(cfg, name)
    for name in ("shard_tokens", "bpe_sample", "tokens_of"):
        if getattr(cfg, name) != getattr(DataConfig, name):
            found[name] = getattr(cfg, name)
    if cfg.tokenizer.endswith(".json"):
        found["tokenizer_sha256"] = sha256(cfg.tokenizer)
    found["rules"] = DATA_FORMAT_VERSION
    if is_stdlib(cfg):
        found["rules"] = STDLIB_FORMAT_VERSION
    elif cfg.split_at_markers and any(reads_txt(source, cfg) for source, _ in mixture(cfg)):
        found["rules"] = MARKERS_FORMAT_VERSION
    return json.loads(json.dumps(found))  # tuples become lists, as in the file


def reads_txt(source: str | tuple[str, ...], cfg: DataConfig) -> bool:
    """Whether a source has .txt files."""
    if hub_name(source, cfg) or source in ("-", "stdlib", "python"):
        return False
    return any(kind(path) == ".txt" for path in sources.source_files(source))


def markers(cfg: DataConfig) -> tuple[str, ...]:
    """What ends a document of a .txt file: <|endoftext|>, and the end marker of a tokenizer.json."""
    if not cfg.split_at_markers:
        return ()
    if not cfg.tokenizer.endswith(".json"):
        return (EOT,)
    return tuple(dict.fromkeys((EOT, *hf_end(cfg.tokenizer))))


def open_sources(cfg: DataConfig, worker: tuple[int, int]) -> list[sources.Source]:
    """The sources of cfg, of each the share of worker (r, n)."""
    return [open_source(source, cfg, worker=worker, weight=weight) for source, weight in mixture(cfg)]


def open_source(source: str | tuple[str, ...], cfg: DataConfig, **more) -> sources.Source:
    """One source by its name; more : worker and weight."""
    hub = hub_name(source, cfg)
    if hub:
        return sources.hub_source(*hub, cfg.hub_timeout, **more)
    if source == "stdlib":
        paths = [path for _, path in sources.stdlib_files()]
        return sources.paths_source(source, paths, lambda: sources.stdlib_rows(cfg.val_fraction), **more)
    if source == "python":
        paths = sources.installed_files()
        return sources.paths_source(source, paths, lambda: sources.file_rows(paths), **more)
    if source == "-":
        return sources.paths_source("standard input", [], sources.stdin_rows, **more)
    reading = Reading(cfg.text_column, markers(cfg), tokens_of=cfg.tokens_of)
    return sources.files_source(source, reading, **more)


def command(cfg: DataConfig) -> str:
    """The command line that makes this folder again."""
    words = ["python", "data.py"]
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        if value == f.default or f.name in ("overwrite", "append") or (f.name == "source" and cfg.mix):
            continue
        if isinstance(value, bool):
            words.append(f"--{f.name}" if value else f"--no-{f.name}")
            continue
        words.append(f"--{f.name}")
        if isinstance(value, tuple):
            words += value
        else:
            words.append(str(value))
    return shlex.join(words)
