"""Texts in files, one by one: .txt, JSON lines or one JSON array, .parquet, plain or compressed.

A reader takes (path, Reading, skip) and yields (text, progress in the file) behind the first `skip` texts. What is no
text is a Dropped with the reason: documents.py counts it, or stops at it under --strict.
"""

import contextlib
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from isoflop.data.bpe import EOT
from isoflop.files import regular
from isoflop.options import UserError

BLOCK = 2**20
BATCH_ROWS = 128
MOST_JSON = 2**31  # bytes of a JSON array, which is read whole
LOOSE_KINDS = (".json",)  # files of these names need not be texts


@dataclass(frozen=True)
class Dropped:
    """A row that is no text: a reason to count by, as "null" or "not JSON", and where it is."""

    reason: str
    where: str


@dataclass(frozen=True)
class Reading:
    """How files are read.

    column : column or key that holds the text.
    markers : strings that end a document of a .txt file.
    split_bytes : a .txt file without markers is cut at line ends into documents of this size.
    tokens_of : the tokenizer of a parquet column that holds tokens, see token_lists.py; None: it holds text.
    """

    column: str = "text"
    markers: tuple[str, ...] = (EOT,)
    split_bytes: int = sys.maxsize
    tokens_of: str | None = None
    counts: dict[str, Counter] = field(default_factory=dict, compare=False)  # path -> how often each marker is there


def kind(path: str | Path) -> str | None:
    """A key of READERS, by the name, which may end in .gz or .zst where the file is compressed; None for others."""
    suffixes = Path(path).suffixes
    packed = bool(suffixes) and suffixes[-1] in (".gz", ".zst")
    if packed:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in READERS or (packed and suffixes[-1] == ".parquet"):
        return None
    return suffixes[-1]


def decode(raw: bytes) -> str | None:
    """The text of utf-8 bytes, None where they are not utf-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


# ----- bytes -----


@contextlib.contextmanager
def binary(path: str) -> Iterator[tuple[io.BufferedIOBase, Callable[[], float]]]:
    """The bytes of a file, uncompressed, and a function that says how much is read; UserError where it is cut short."""
    size = max(1, regular(path).stat().st_size)
    errors: tuple = (EOFError, gzip.BadGzipFile, zlib.error)
    with open(path, "rb") as f:
        unpacked = f
        if path.endswith(".gz"):
            unpacked = gzip.GzipFile(fileobj=f)
        elif path.endswith(".zst"):
            import zstandard

            errors += (zstandard.ZstdError,)
            unpacked = io.BufferedReader(ZstdFile(f, zstandard.ZstdDecompressor), 2**17)
        try:
            yield unpacked, lambda: f.tell() / size
        except errors as e:
            raise UserError(f"{path} can't be uncompressed ({e}); is it cut short?") from None


class ZstdFile(io.RawIOBase):
    """A zstd file of any number of frames; EOFError where the last is cut short (zstandard's reader just ends)."""

    def __init__(self, file, decompressor):
        self.file, self.decompressor = file, decompressor
        self.frame = None  # the decompressor of the current frame
        self.rest = b""  # compressed bytes behind the last frame
        self.out = b""  # uncompressed bytes to hand out

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.out:
            raw = self.rest or self.file.read(2**17)
            if not raw:
                if self.frame is not None:
                    raise EOFError("its last frame does not end")
                return 0
            self.frame = self.frame or self.decompressor().decompressobj()
            self.out, self.rest = self.frame.decompress(raw), b""
            if self.frame.eof:
                self.rest, self.frame = self.frame.unused_data, None
        n = min(len(buffer), len(self.out))
        buffer[:n], self.out = self.out[:n], self.out[n:]
        return n


# ----- .txt -----


def read_txt(path: str, reading: Reading, skip: int) -> Iterator[tuple[str | None, float]]:
    """The documents between end markers; of a file without any its text, cut at line ends."""
    if marker_counts(path, reading):
        pieces = between_markers(path, reading.markers)
    else:
        pieces = at_line_ends(path, reading.split_bytes)
    for number, (raw, progress) in enumerate(pieces):
        if number >= skip:
            yield decode(raw), progress


def at_line_ends(path: str, split_bytes: int) -> Iterator[tuple[bytes, float]]:
    """Pieces of split_bytes or a line more."""
    lines, size = [], 0
    with binary(path) as (f, part):
        for line in f:
            lines.append(line)
            size += len(line)
            if size >= split_bytes:
                yield b"".join(lines), part()
                lines, size = [], 0
    if lines:
        yield b"".join(lines), 1.0


def marker_pattern(markers: tuple[str, ...]) -> re.Pattern:
    return re.compile(b"|".join(re.escape(marker.encode()) for marker in markers))


def between_markers(path: str, markers: tuple[str, ...]) -> Iterator[tuple[bytes, float]]:
    """What stands between markers, without the line ends beside them and without what is blank."""
    pattern, reach = marker_pattern(markers), max(len(marker.encode()) for marker in markers)
    rest, searched = bytearray(), 0
    with binary(path) as (f, part):
        while block := f.read(BLOCK):
            rest += block
            start = 0
            # A marker that ends where the block does could be the beginning of a longer one: rare, and harmless.
            for found in pattern.finditer(rest, searched):
                piece = bytes(rest[start : found.start()]).strip(b"\r\n")
                start = found.end()
                if piece.strip():
                    yield piece, part()
            del rest[:start]
            searched = max(0, len(rest) - reach)
    piece = bytes(rest).strip(b"\r\n")
    if piece.strip():
        yield piece, 1.0


def marker_counts(path: str, reading: Reading) -> Counter:
    """How often each end marker stands in a .txt file: one look through its bytes."""
    if path not in reading.counts:
        found = Counter()
        if reading.markers:
            pattern, reach = marker_pattern(reading.markers), max(len(m.encode()) for m in reading.markers)
            with binary(path) as (f, _):
                tail = b""
                while block := f.read(BLOCK):
                    block, end = tail + block, 0
                    for hit in pattern.finditer(block):
                        found[hit[0].decode()] += 1
                        end = hit.end()
                    tail = block[max(end, len(block) - reach + 1) :]
        reading.counts[path] = found
    return reading.counts[path]


def marker_notes(files: list[str], reading: Reading) -> list[str]:
    """One line on the end markers in the .txt files."""
    total, holding = Counter(), []
    for path in files:
        if kind(path) == ".txt" and marker_counts(path, reading):
            total += marker_counts(path, reading)
            holding.append(path)
    if not total:
        return []
    counts = " and ".join(f"{n:,} {marker}" for marker, n in total.items())
    where = holding[0] if len(holding) == 1 else f"{len(holding):,} files"
    return [f"{where}: documents end at the {counts} in the text; --no-split_at_markers takes them as text"]


# ----- JSON -----


def read_json_texts(path: str, reading: Reading, skip: int) -> Iterator[tuple[str | Dropped | None, float]]:
    """JSON lines, or one JSON array of documents: what the file begins with says which."""
    rows = json_array(path, reading.column) if is_array(path) else json_lines(path)
    for number, (where, row, progress) in enumerate(rows):
        if number < skip:
            continue
        if isinstance(row, Dropped):
            yield row, progress
            continue
        has_text = isinstance(row, dict) and reading.column in row
        if number == 0 and not has_text and not isinstance(row, str):
            pick(row, reading.column, where)  # its UserError: the flag is wrong for the whole file
        if isinstance(row, str):
            yield row, progress
        elif has_text:
            yield text_of(row[reading.column], where), progress
        else:
            yield Dropped(f"without {reading.column}", where), progress


def is_array(path: str) -> bool:
    """Whether the file is one JSON value over many lines instead of a value a line."""
    with binary(path) as (f, _):
        line = b""
        while not line.strip(b" \t\r\n\xef\xbb\xbf"):
            line = f.readline(2**26)
            if not line:
                return False
        more = bool(f.readline(2**10).strip())
    first = line.strip(b" \t\r\n\xef\xbb\xbf")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return first[:1] == b"[" or first in (b"{", b"{}")  # an array or an object that goes on below
    if isinstance(value, list):
        return not more
    return kind(path) == ".json" and not more and isinstance(value, dict) and any(map(is_list, value.values()))


def is_list(value) -> bool:
    return isinstance(value, list)


def json_lines(path: str) -> Iterator[tuple[str, object, float]]:
    """(place, value or Dropped, progress) of each line that is not blank."""
    with binary(path) as (f, part):
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                row = Dropped("not JSON", f"{where}: {e}")
            yield where, row, part()


def json_array(path: str, column: str) -> Iterator[tuple[str, object, float]]:
    """(place, value, progress) of each element of the array; also of {"rows": [...]} and of {column: [...]}."""
    with binary(path) as (f, _):
        raw = f.read(MOST_JSON + 1)
    if len(raw) > MOST_JSON:
        raise UserError(f"{path}: a JSON array above 2 GiB; write a document a line instead: jq -c '.[]'")
    try:
        rows = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: neither JSON lines nor one JSON array ({e}); is it cut short?") from None
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        if isinstance(rows.get(column), list):
            rows = rows[column]
        elif len(lists) == 1:
            rows = lists[0]
    if not isinstance(rows, list):
        shape = f"an object of {len(rows):,} keys ({', '.join(list(rows)[:5])})"
        raise UserError(f"{path}: one JSON value, {shape}; write an array of documents or a document a line")
    for number, row in enumerate(rows, 1):
        yield f"{path}, element {number}", row, number / len(rows)


# ----- .parquet -----


def read_parquet(path: str, reading: Reading, skip: int) -> Iterator[tuple[str | Dropped | None, float]]:
    if reading.tokens_of is None:
        for value, where, progress in parquet_rows(path, reading, skip):
            yield text_of(value, where), progress
        return
    from isoflop.data.token_lists import documents

    rows = parquet_rows(path, reading, 0)  # a document may begin in any of them
    yield from islice(documents(rows, reading.tokens_of), skip, None)


def parquet_rows(path: str, reading: Reading, skip: int) -> Iterator[tuple[object, str, float]]:
    """(value, where it is, progress) of each row of the column behind the first `skip` rows."""
    import pyarrow
    import pyarrow.parquet

    column = reading.column
    try:
        with pyarrow.parquet.ParquetFile(path) as f:
            schema, total = f.schema_arrow, max(1, f.metadata.num_rows)
            check_schema(schema, column, path, total, reading.tokens_of)
            done = 0
            for group in range(f.num_row_groups):  # one at a time: the whole list would be kept in memory as it is read
                rows = f.metadata.row_group(group).num_rows
                if done + rows <= skip:
                    done += rows
                    continue
                for batch in f.iter_batches(BATCH_ROWS, [group], [column]):
                    for number, value in enumerate(batch.column(0).to_pylist(), done + 1):
                        if number > skip:
                            yield value, f"{path}, row {number}", done / total
                    done += len(batch)
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path}: {e}") from None


def check_schema(schema, column: str, path: str, rows: int, tokens_of: str | None = None) -> None:
    """UserError where the column is not there or holds no text, with what each column holds.

    tokens_of : the tokenizer where it is to hold lists of tokens.
    """
    import pyarrow

    held = {name: holds(schema.field(name).type) for name in schema.names}
    if column not in held:
        known = ", ".join(f"{name}: {what}" for name, what in held.items())
        texts = [name for name, what in held.items() if what in ("text", "bytes")]
        tokens = [name for name, what in held.items() if what == "lists of whole numbers"]
        way_out = "none of them holds text: write one that does"
        if texts:
            way_out = f"give --text_column {texts[0]}"
        elif tokens:
            way_out = f"for tokens give --text_column {tokens[0]} --tokens_of gpt2, or whatever made them"
        raise UserError(f"{path}: no --text_column {column!r} among its columns ({known}); {way_out}")
    if tokens_of is not None:
        if held[column] != "lists of whole numbers":
            raise UserError(f"{path}: --text_column {column} holds {held[column]}, no tokens; leave --tokens_of out")
        return
    is_null = pyarrow.types.is_null(schema.field(column).type)
    if held[column] in ("text", "bytes") or is_null:
        return
    others = [name for name, what in held.items() if what == "text"]
    way_out = "write the text into a column of its own"
    if "ids" in column or held[column] == "lists of whole numbers":
        way_out = "if they are tokens, say of which tokenizer: --tokens_of gpt2, or a data folder with its tokenizer"
    elif "role" in held[column]:
        way_out = "make one text of each chat, with the template that you train for"
    elif held[column] == "lists of text":
        way_out = "join each list to one text"
    if others:
        way_out = f"--text_column {others[0]} holds text, or {way_out}"
    found = f"{path}: --text_column {column} holds {held[column]}, no text"
    raise UserError(f"{found}: {rows:,} of {rows:,} documents would be dropped; {way_out}")


def holds(kind_of_column) -> str:
    """What a column of this pyarrow type holds, in words."""
    import pyarrow.types as t

    if t.is_dictionary(kind_of_column):
        kind_of_column = kind_of_column.value_type
    for name in ("is_string", "is_large_string", "is_string_view"):
        if hasattr(t, name) and getattr(t, name)(kind_of_column):
            return "text"
    if t.is_binary(kind_of_column) or t.is_large_binary(kind_of_column):
        return "bytes"
    if t.is_integer(kind_of_column):
        return "whole numbers"
    if t.is_floating(kind_of_column) or t.is_decimal(kind_of_column):
        return "numbers"
    if t.is_list(kind_of_column) or t.is_large_list(kind_of_column) or t.is_fixed_size_list(kind_of_column):
        return f"lists of {holds(kind_of_column.value_type)}"
    if t.is_struct(kind_of_column):
        return "{" + ", ".join(kind_of_column.field(i).name for i in range(kind_of_column.num_fields)) + "}"
    return str(kind_of_column)


READERS = {
    ".txt": read_txt,
    ".jsonl": read_json_texts,
    ".ndjson": read_json_texts,
    ".json": read_json_texts,
    ".parquet": read_parquet,
}
KINDS = tuple(READERS)


# ----- values -----


def text_of(value, where: str) -> str | Dropped | None:
    """The text of a value, utf-8 bytes included; what holds none is dropped under the name of what it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return decode(value)
    names = {type(None): "null", dict: "an object", bool: "true or false", int: "a number", float: "a number"}
    reason = names.get(type(value), type(value).__name__)
    if isinstance(value, list):
        first = next(iter(value), None)
        inside = {str: "text", int: "numbers", float: "numbers", dict: "objects"}.get(type(first), "values")
        reason = f"a list of {inside}"
        if isinstance(first, dict):
            reason += " {" + ", ".join(map(str, list(first)[:4])) + "}"
    return Dropped(reason, where)


def pick(row: dict, column: str, where: str):
    """The value of a row; UserError naming the columns where it has none of this name."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object with a --text_column {column!r}")
    if column not in row:
        raise UserError(f"{where}: no --text_column {column!r} among its columns ({', '.join(map(str, row))})")
    return row[column]
