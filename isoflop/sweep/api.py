"""Losses that nobody trains here: drawn from a law, or asked of a training service over HTTP.

    python sweep.py --simulate hoffmann --noise 0.005 --flop_budgets 1e18 3e18 1e19 --vocab_size 32000
    python sweep.py --api http://HOST:8000 --api_key_file key.txt --total_flops 2e18 \\
        --flop_budgets 1e15 3e15 1e16 --depths 2 4 6 8 --lr 1e-3 --batch_size 128

Both take a planned cell and return the dict of its row. The service is one like that of Stanford's CS336, assignment 3:
GET URL/loss?d_model=..&num_layers=..&num_heads=..&batch_size=..&learning_rate=..&train_flops=..&api_key=.. answers
{"loss": .., "total_flops_used": ..}, and a configuration that it won't run with a 4xx status and a message.
"""

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from isoflop.sweep.cells import Cell, Planner

TRIES = 6  # of a request that failed for a reason that passes: 429, 5xx, no answer
FIRST_WAIT_S = 1.0  # before the second try; doubled before each further one
TIMEOUT_S = 120.0


class Refused(ValueError):
    """The service will not run this configuration."""


class Service:
    """A training service: each cell is one GET, tried again with growing waits, refused without a cost."""

    def __init__(self, url: str, key_file: str | None, first_wait_s: float | None = None):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"--api {url} is no address; give one such as http://HOST:8000")
        self.url, self.source = url.rstrip("/"), f"api {parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}"
        self.wait_s = FIRST_WAIT_S if first_wait_s is None else first_wait_s
        self.key = read_key(key_file)
        self.used: float | None = None  # FLOPs that the service says were used, over everything asked with this key

    def get(self, path: str, **query) -> dict:
        """The JSON answer; Refused for a 4xx, OSError where the service can't be reached. The key is never shown."""
        address = f"{self.url}/{path}?{urllib.parse.urlencode(query | {'api_key': self.key})}"
        for i in range(TRIES):
            wait = self.wait_s * 2**i
            try:
                with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                why = f"{error.code} {message(error)}".replace(self.key, "KEY")
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise Refused(why) from None
                with_header = error.headers.get("Retry-After", "")
                wait = max(wait, float(with_header)) if with_header.isdigit() else wait
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError:
                why = "an answer that is not JSON"
            if i < TRIES - 1:
                time.sleep(wait)
        raise OSError(f"--api {self.url}: {why}, {TRIES} times; what was answered is kept, the same command goes on")

    def flops_used(self) -> float | None:
        """What the service has counted so far; None where it doesn't tell."""
        try:
            answer = self.get("total_flops_used")
        except Refused as error:
            if error.args[0].startswith("404"):
                return None
            raise ValueError(f"--api {self.url}: {error}; is the key in --api_key_file right?") from None
        self.used = float(answer["total_flops_used"] if isinstance(answer, dict) else answer)
        return self.used

    def __call__(self, planner: Planner, cell: Cell) -> dict:
        mc, plan = cell.mc, cell.plan
        answer = self.get(
            "loss", d_model=mc.n_embd, num_layers=mc.n_layer, num_heads=mc.n_head, batch_size=plan.batch_size,
            learning_rate=plan.lr, train_flops=int(cell.flop_budget),
        )  # fmt: skip
        try:
            loss, self.used = float(answer["loss"]), float(answer["total_flops_used"])
        except (KeyError, TypeError, ValueError):
            raise OSError(f"--api {self.url}: an answer without loss and total_flops_used: {answer!r:.100}") from None
        # what the budget bought is the service's own affair: C as asked, N as it counts (no embedding, no head)
        n = plan.n_params_non_embedding
        tokens = round(cell.flop_budget / (6 * n))
        return planner.record(
            cell, "ok" if math.isfinite(loss) else "diverged", val_loss=loss if math.isfinite(loss) else None,
            n_params=n, n_params_matmul=n, flops=int(cell.flop_budget), tokens=tokens, tokens_per_param=tokens / n,
            flops_exact=None, device="service", dtype="unknown",
        )  # fmt: skip


def message(error: urllib.error.HTTPError) -> str:
    """What the service says of an error, in one line."""
    text = error.read(2000).decode(errors="replace")
    try:
        said = json.loads(text)
        text = said.get("message") or said.get("detail") or text if isinstance(said, dict) else text
    except ValueError:
        pass
    return " ".join(str(text).split())[:200] or error.reason


def read_key(key_file: str | None) -> str:
    """The key, from a file or from ISOFLOP_API_KEY: never from the command line, which others can read."""
    if key_file:
        try:
            key = Path(key_file).read_text().strip()
        except OSError as error:
            raise ValueError(f"--api_key_file {key_file} can't be read ({error.strerror})") from None
    else:
        key = os.environ.get("ISOFLOP_API_KEY", "").strip()
    if not key:
        raise ValueError("--api needs a key: --api_key_file FILE, or ISOFLOP_API_KEY in the environment")
    return key
