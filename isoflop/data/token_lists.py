"""Documents from a parquet column that holds tokens, not text: data.py --text_column tokens --tokens_of gpt2.

The lists of a file are one stream, as they were packed into rows of equal length. Documents end at the end-of-text
token, and are decoded, so that any --tokenizer can follow.
"""

import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from isoflop.data.tokenizer import Tokenizer, check_name, has_tokenizer, load_tokenizer, make_tokenizer, write_tokenizer
from isoflop.options import UserError

MOST_TOKENS = 2**20  # of a document; a stream without an end-of-text token is cut here


@cache
def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer of --tokens_of: a folder that data.py made, or a name of --tokenizer; UserError for another."""
    if Path(name).is_dir() and has_tokenizer(name):
        return load_tokenizer(name)
    try:
        check_name(name)
    except UserError as error:
        raise UserError(str(error).replace("--tokenizer", "--tokens_of")) from None
    if name.startswith("bpe:"):
        raise UserError(f"--tokens_of {name} does not say which {name[4:]}: give the data folder that holds it")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), make_tokenizer(name, ()))
        return load_tokenizer(folder)


def documents(rows: Iterable[tuple[list[int] | None, str, float]], name: str) -> Iterator[tuple[str, float]]:
    """
    (text, progress) of the documents in rows of tokens.

    rows : (tokens, where they are, progress in the file).
    UserError, with the row, for what is no token of the tokenizer.
    """
    tokenizer, held, progress = tokenizer_of(name), [], 0.0
    for ids, where, progress in rows:
        for i in ids or ():
            if i == tokenizer.eot_token:
                if held:
                    yield tokenizer.decode(held), progress
                held = []
                continue
            if i is None or not 0 <= i < tokenizer.n_vocab:
                raise UserError(f"{where}: {i} is no token of --tokens_of {name} ({tokenizer.n_vocab:,} tokens)")
            held.append(i)
            if len(held) >= MOST_TOKENS:
                yield tokenizer.decode(held), progress
                held = []
    if held:
        yield tokenizer.decode(held), 1.0
