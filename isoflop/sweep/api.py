"""Losses from a training service over HTTP, for sweep.py --api.

    python sweep.py --api http://HOST:8000 --api_key_file key.txt --total_flops 2e18 \\
        --flop_budgets 1e15 3e15 1e16 --depths 2 4 6 8 --lr 1e-3 --batch_size 128

The service is one like that of Stanford's CS336, assignment 3:
GET URL/loss?d_model=..&num_layers=..&num_heads=..&batch_size=..&learning_rate=..&train_flops=..&api_key=.. answers
{"loss": .., "total_flops_used": ..}, and a configuration that it won't run with a 4xx status and a message.

Nothing that it answers is believed unchecked: an answer has a deadline and a largest size, its numbers are checked,
and redirects are not followed, so that the key goes to the given address alone.
"""

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from isoflop.laws import highest_loss
from isoflop.options import UserError
from isoflop.sweep.cells import Cell, Planner

TRIES = 6  # of a request that failed for a reason that passes: 408, 425, 429, 5xx, no answer, an answer cut short
FIRST_WAIT_S = 1.0  # before the second try; doubled before each further one
MOST_WAIT_S = 600.0  # that a service may ask for with Retry-After
DEADLINE_S = 120.0  # for one answer, from the first byte sent to the last one received
MOST_BYTES = 2**20  # of an answer
MOST_KEY_BYTES = 4096


class Refused(UserError):
    """The service will not run this configuration."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the HTTPError that it is: the address holds the key."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirects)


class Service:
    """A training service. Each cell is one GET; a cell that the service refuses costs nothing.

    key_file : file with the key; None reads ISOFLOP_API_KEY.
    Errors are UserError; Refused where this configuration won't be run; OSError where no answer came in TRIES tries.
    The key is in no message.
    """

    def __init__(self, url: str, key_file: str | None):
        try:
            parts = urllib.parse.urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
        except ValueError:  # a port that is no number
            good = False
        if not good or parts.query or parts.fragment:
            raise UserError(f"--api {url} must be an address such as http://HOST:8000")
        self.url = url.rstrip("/")
        self.source = f"api {parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}"  # column of the results file
        self.key = read_key(key_file)
        self.vocab_size: int | None = None  # where it is known, a loss above highest_loss() is "blown_up"
        self.used: float | None = None  # FLOPs that the service has counted for this key, over everything asked

    def hidden(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "KEY").replace(urllib.parse.quote_plus(self.key), "KEY")

    def get(self, path: str, **query):
        """The JSON answer to a request, tried again with growing waits."""
        address = f"{self.url}/{path}?{urllib.parse.urlencode(query | {'api_key': self.key})}"
        for tried in range(1, TRIES + 1):
            wait_s = FIRST_WAIT_S * 2 ** (tried - 1)
            try:
                status, headers, body = fetch(address)
                if 200 <= status < 300:
                    return json.loads(body)
                problem = self.hidden(f"{status} {message(body)}".strip())
                self.check_status(status, headers, problem)
                asked = headers.get("Retry-After", "")
                if asked.isdecimal():
                    wait_s = max(wait_s, float(asked))
            except UserError:
                raise
            except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
                problem = self.hidden(str(getattr(error, "reason", error)) or type(error).__name__)
            except (ValueError, RecursionError):
                problem = "an answer that is not JSON"
            if wait_s > MOST_WAIT_S:
                raise OSError(f"--api {self.url}: {problem}; it asks for a wait of {wait_s:.4g} s; try again then")
            if tried < TRIES:
                tqdm.write(f"{self.source}: {problem}; try {tried + 1} of {TRIES} in {wait_s:.4g} s")
                time.sleep(wait_s)
        raise OSError(f"--api {self.url}: {problem}, {TRIES} times; results are kept, run the same command again")

    def check_status(self, status: int, headers, problem: str):
        """Raise for a status that another try won't change."""
        if 300 <= status < 400:
            parts = urllib.parse.urlsplit(headers.get("Location", ""))
            to = self.hidden(f"{parts.scheme}://{parts.netloc}{parts.path}")
            raise UserError(f"--api {self.url} redirects to {to}, where the key was not sent; check the address")
        if status in (401, 403):
            raise UserError(f"--api {self.url}: {problem}; is the key in --api_key_file right?")
        if status < 500 and status not in (408, 425, 429):
            raise Refused(problem)

    def number(self, answer: dict, name: str) -> float:
        """A number of an answer, by its name; it may be nan or infinite."""
        value = answer.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"--api {self.url}: {name} must be a number, not {self.hidden(repr(value)):.60}")
        try:
            return float(value)
        except OverflowError:
            return math.inf

    def flops_used(self) -> float | None:
        """What the service has counted so far; None where it doesn't tell."""
        try:
            answer = self.get("total_flops_used")
        except Refused as error:
            if str(error).startswith("404"):
                return None
            raise UserError(f"--api {self.url}: {error}") from None
        if not isinstance(answer, dict):
            answer = {"total_flops_used": answer}
        return self.count(answer)

    def count(self, answer: dict) -> float:
        """Take note of the service's own counter in an answer."""
        used = self.number(answer, "total_flops_used")
        if not 0 <= used < math.inf:
            raise UserError(f"--api {self.url}: total_flops_used {used:g} must be finite and not negative")
        self.used = used
        return used

    def __call__(self, planner: Planner, cell: Cell) -> dict:
        """The row of a planned cell, without the columns that only a sweep knows; a loss of nan is "diverged"."""
        mc, plan = cell.mc, cell.plan
        answer = self.get(
            "loss", d_model=mc.n_embd, num_layers=mc.n_layer, num_heads=mc.n_head, batch_size=plan.batch_size,
            learning_rate=plan.lr, train_flops=int(cell.flop_budget),
        )  # fmt: skip
        if not isinstance(answer, dict):
            raise UserError(f"--api {self.url}: an answer must be an object with loss and total_flops_used")
        loss = self.number(answer, "loss")
        self.count(answer)
        status = "ok"
        if not math.isfinite(loss):
            status, loss = "diverged", None
        elif loss <= 0:
            raise UserError(f"--api {self.url}: loss {loss:g} of {cell} must be positive; nothing was recorded")
        elif self.vocab_size and loss > highest_loss(self.vocab_size):
            status = "blown_up"
        # What the budget bought is the service's own affair: C as requested, N as it counts (Planner.convention).
        return planner.record(
            cell, status, val_loss=loss, n_params=plan.n_params_matmul, flops_exact=None, device="service",
            dtype="unknown",
        )  # fmt: skip


# ----- one request -----


def fetch(address: str) -> tuple[int, object, bytes]:
    """(status, headers, body) of a GET; TimeoutError after DEADLINE_S, UserError for a body above MOST_BYTES.

    In a thread of its own: the timeout of a socket starts anew with every byte that a service lets drip.
    """
    box = {}

    def work():
        try:
            try:
                answer = OPENER.open(address, timeout=DEADLINE_S)
            except urllib.error.HTTPError as error:
                answer = error  # an answer of another status
            with answer:
                box["answer"] = answer.status, answer.headers, answer.read(MOST_BYTES + 1)
        except Exception as error:
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if "error" in box:
        raise box["error"]
    if "answer" not in box:
        raise TimeoutError(f"no whole answer within {DEADLINE_S:g} s")
    status, headers, body = box["answer"]
    if len(body) > MOST_BYTES:
        raise UserError(f"--api: an answer has more than {MOST_BYTES:,} bytes; check the address")
    if len(body) < int(headers.get("Content-Length") or 0):
        raise http.client.IncompleteRead(body)
    return status, headers, body


def message(body: bytes) -> str:
    """What a service says of an error, in one line."""
    text = body[:2000].decode(errors="replace")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        text = said.get("message") or said.get("detail") or text
    return " ".join(str(text).split())[:200]


def read_key(key_file: str | None) -> str:
    """The key, from a file or from ISOFLOP_API_KEY: never from the command line, which others can read."""
    if key_file:
        try:
            if not Path(key_file).is_file() or Path(key_file).stat().st_size > MOST_KEY_BYTES:
                raise UserError(f"--api_key_file {key_file} must be a file of at most {MOST_KEY_BYTES} bytes")
            key = Path(key_file).read_text("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise UserError(f"--api_key_file {key_file} is not text") from None
        except OSError as error:
            raise UserError(f"--api_key_file {key_file} can't be read ({error.strerror})") from None
    else:
        key = os.environ.get("ISOFLOP_API_KEY", "").strip()
    if not key:
        raise UserError("--api needs a key: --api_key_file FILE, or ISOFLOP_API_KEY in the environment")
    return key
