"""A training service: whatever it answers, the sweep has correct rows, an end, and a key that stays secret."""

import http.server
import itertools
import json
import os
import shlex
import sys
import threading
import time
import urllib.parse
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from helpers import quick_fits, rows_of, run_sweep

from isoflop import laws
from isoflop.options import UserError
from isoflop.sweep import api

LAW = laws.parse_law("E=1.69,A=406.4,B=410.7,alpha=.34,beta=.28")


# ----- a service on loopback -----


class Stub(http.server.ThreadingHTTPServer):
    """Counts FLOPs, caches and refuses. What `next` holds is answered first: (status, body, headers), the last first.

    A body of bytes, or an iterator of them, sent one by one; with the status None it is sent in place of a response.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cache, self.used, self.asked, self.next = {}, 0.0, 0, []
        self.strict = False  # whether it runs what CS336's assignment 3 allows, and nothing else
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        if not isinstance(body, bytes) and not hasattr(body, "__next__"):
            body = json.dumps(body).encode()
        if status is not None:
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.end_headers()
        try:
            for part in iter([body]) if isinstance(body, bytes) else body:
                self.wfile.write(part)
                self.wfile.flush()
        except OSError:  # the other side has hung up
            pass

    def do_GET(self):
        server, parts = self.server, urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        server.asked += 1
        if server.next:
            return self.answer(*server.next.pop())
        if query.get("api_key") != "sesame":
            return self.answer(401, {"message": f"no such key {query.get('api_key')}"})
        if parts.path == "/total_flops_used":
            return self.answer(200, server.used)
        width, layers, heads = (int(query[name]) for name in ("d_model", "num_layers", "num_heads"))
        if server.strict:
            fine = 64 <= width <= 1024 and 2 <= layers <= 24 and 2 <= heads <= 16 and width % heads == 0
            fine = fine and query["batch_size"] in ("128", "256") and 1e-4 <= float(query["learning_rate"]) <= 1e-3
            if not fine or f"{float(query['train_flops']):.0e}"[0] not in "136":
                return self.answer(422, {"message": "out of range"})
        elif width > 1000:
            return self.answer(422, {"message": "d_model must be at most 1000"})
        key = json.dumps(query, sort_keys=True)
        if key not in server.cache:
            n, c = 12 * layers * width**2, float(query["train_flops"])
            server.cache[key] = float(LAW.loss(n, c / 6 / n))
            server.used += c
        return self.answer(200, {"loss": server.cache[key], "total_flops_used": server.used})


@contextmanager
def stub():
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drip(part: bytes):
    """A part every 20 ms, for 5 seconds."""
    for _ in range(250):
        yield part
        time.sleep(0.02)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("ISOFLOP_API_KEY", "sesame")
    monkeypatch.setattr(api, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(Stub, "block_on_close", False)  # a handler may still be sending for ever
    with stub() as server:
        yield server


@pytest.fixture
def service(server):
    return api.Service(server.url, None)


# ----- whole sweeps -----


@pytest.fixture
def sweep_flags(server, tmp_path, monkeypatch):
    quick_fits(monkeypatch)
    flags = "--flop_budgets 1e15 3e15 1e16 --depths 2 3 4 6 --lr 1e-3 --batch_size 128".split()
    return ["--api", server.url, *flags, "--out_dir", tmp_path / "out"]


def test_a_service_s_counter_agrees_and_cached_cells_are_free(server, sweep_flags):
    out = sweep_flags[-1]
    assert run_sweep(*sweep_flags) == 0
    table = rows_of(out)
    assert len(table) == 12 and {row["source"].split()[0] for row in table} == {"api"}
    assert server.used == sum(float(row["flops_spent"]) for row in table) == 4 * (1e15 + 3e15 + 1e16)
    for row in table:
        n, tokens = float(row["n_params_matmul"]), float(row["tokens"])
        assert n == 12 * int(row["n_layer"]) * int(row["n_embd"]) ** 2
        assert np.isclose(float(row["val_loss"]), LAW.loss(n, tokens), rtol=1e-6)
    before = server.asked
    assert run_sweep(*sweep_flags) == 0 and server.asked == before + 1, "a rerun asks for the counter alone"
    (out / "runs.csv").unlink()
    assert run_sweep(*sweep_flags) == 0 and server.used == 5.6e16, "the service has cached them too"


def test_a_service_s_loss_above_a_uniform_guess_is_no_result(server, sweep_flags, capsys):
    """Where the vocabulary is known: of 1,000 tokens, ln 1000 = 6.91."""
    assert run_sweep(*sweep_flags, "--vocab_size", 1000) == 1
    table = rows_of(sweep_flags[-1])
    high = [float(row["val_loss"]) for row in table if row["status"] == "blown_up"]
    low = [float(row["val_loss"]) for row in table if row["status"] == "ok"]
    assert len(high) + len(low) == 12 and min(high) > np.log(1000) + 0.1 > max(low)
    assert f"({len(high)} blown_up)" in capsys.readouterr().out


def test_a_service_s_cap_and_key_stay(server, sweep_flags, capsys, monkeypatch):
    assert run_sweep(*sweep_flags, "--total_flops", 5e15) == 1
    assert server.used == 4e15, "four cells of 1e15; 3e15 more would pass the cap"
    said = capsys.readouterr()
    files = [path for path in sweep_flags[-1].rglob("*") if path.suffix in (".csv", ".json", ".jsonl")]
    assert files and "sesame" not in said.out + said.err + "".join(path.read_text() for path in files)
    monkeypatch.setenv("ISOFLOP_API_KEY", "wrong-key")
    assert run_sweep(*sweep_flags) == 2
    err = capsys.readouterr().err
    assert "--api_key_file" in err and "wrong-key" not in err and err.count("\n") == 1
    monkeypatch.delenv("ISOFLOP_API_KEY")
    assert run_sweep(*sweep_flags) == 2 and "--api needs a key" in capsys.readouterr().err


def test_a_service_that_stumbles_is_asked_again_and_a_refusal_is_a_row(server, sweep_flags, capsys):
    server.next = [(503, b"later"), (429, {"message": "slow down"}), (200, b"not json")]
    flags = ["20" if flag == "6" else flag for flag in sweep_flags]  # 1280 wide: the stub refuses it
    assert run_sweep(*flags) == 1
    statuses = [row["status"] for row in rows_of(flags[-1])]
    assert statuses.count("refused") == 3 and statuses.count("ok") == 9
    assert server.used == 3 * (1e15 + 3e15 + 1e16)
    out = capsys.readouterr().out
    assert "429 slow down; try 3 of 6 in 0.02 s" in out and "d_model must be at most 1000" in out
    assert "3 of 12 cells have no result (3 refused)" in out and "--retry" in out.splitlines()[-1]


def test_a_dead_service_is_one_line(server, sweep_flags, capsys):
    server.next = [(500, b"broken")] * 50
    assert run_sweep(*sweep_flags) == 2
    err = capsys.readouterr().err
    assert "500 broken" in err and err.count("\n") == 1
    assert server.asked == api.TRIES


# ----- a service's constraints -----

CS336 = ["--constraints", ROOT / "docs" / "cs336_service.json"]


@pytest.fixture
def strict(server, tmp_path, monkeypatch):
    """The flags of a sweep of a service that keeps to its constraints."""
    quick_fits(monkeypatch)
    server.strict = True
    return ["--api", server.url, *CS336, "--out_dir", tmp_path / "out"]


@pytest.mark.slow
def test_the_cells_and_the_next_ones_obey_the_constraints(server, strict, capsys, monkeypatch):
    flags = [*strict, "--sizes", 4, "--flop_budgets", 1e15, 3e15, 1e16, "--predict_flops", 1e19]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, flags)])
    assert run_sweep(*flags) == 0
    table = rows_of(strict[-1])
    assert {row["status"] for row in table} == {"ok"}, "the stub refuses whatever is out of range"
    assert len(table) == 12 and np.isclose(server.used, 4 * 1.4e16)
    for row in table:
        n = 12 * int(row["n_layer"]) * int(row["n_embd"]) ** 2
        assert float(row["n_params_matmul"]) == float(row["n_params"]) == n, "N is the service's"
        assert np.isclose(float(row["tokens"]), float(row["flop_budget"]) / 6 / n, rtol=1e-6)
    out = capsys.readouterr().out
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("next: ")))
    words = command[command.index("sweep.py") + 1 :]
    assert words[words.index("--flop_budgets") + 1] == "3e+16"
    assert run_sweep(*words) == 0 and len(rows_of(strict[-1])) == 16
    page = (strict[-1] / "submission.md").read_text()
    best = {line.split("|")[1].strip(): line.split("|")[2].split()[0] for line in page.splitlines() if "| " in line}
    width, layers, heads = int(best["d_model"]), int(best["num_layers"]), int(best["num_heads"])
    assert 64 <= width <= 1024 and 2 <= layers <= 24 and width % heads == 0 and best["batch_size"] in ("128", "256")
    assert 1e-4 <= float(best["learning_rate"]) <= 1e-3
    goal = float(LAW.optimum(1e19)[0])
    assert abs(np.log(12 * layers * width**2 / goal)) < 0.7 and abs(float(best["predicted loss"]) / 2.986 - 1) < 0.1
    assert "for 1e19 FLOPs" in page and f"has counted {server.used:.4g}" in page


@pytest.mark.slow
def test_rates_that_are_tried_stay_in_the_range(server, strict):
    flags = ["--flop_budgets", 1e15, 3e15, "--n_embds", 128, 192, 256, "--tune_lr"]
    assert run_sweep(*strict, *flags) == 0
    rates = {float(row["lr"]) for row in rows_of(strict[-1], "probes.csv") + rows_of(strict[-1])}
    assert len(rates) >= 3 and 1e-4 <= min(rates) and max(rates) <= 1e-3
    assert "at 3e+15 FLOPs, where rates were tried" in (strict[-1] / "submission.md").read_text()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--flop_budgets", 2e15], "--flop_budgets 2e+15: train_flops 2e+15 must be 6e+14, 1e+15, 3e+15 or 6e+15"),
        (["--total_flops", 3e18], "--total_flops 3e+18 is above the 2e+18 of"),
        (["--flop_budgets", 1e15, "--lr", 0.01], "learning_rate 0.01 must be from 0.0001 to 0.001"),
        (["--flop_budgets", 1e15, "--n_embds", 2048], "d_model 2048 must be from 64 to 1024"),
    ],
)
def test_what_is_typed_and_not_allowed_is_one_line(server, strict, capsys, more, words):
    assert run_sweep(*strict, *more) == 2 and server.used == 0
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_design_chooses_among_what_is_allowed(server, strict):
    flags = ["--design", "adaptive", "--target_flops", 1e18, "--total_flops", 1e17, "--until_width", 0.3]
    assert run_sweep(*strict, *flags) == 0
    rows = rows_of(strict[-1])
    assert len(rows) >= 4 and {r["status"] for r in rows} == {"ok"} and server.used <= 1e17


def test_check_spends_nothing(server, strict, capsys, monkeypatch):
    server.used = 5e17
    assert run_sweep(*strict, "--check") == 0 and server.asked == 1 and not strict[-1].exists()
    assert "takes the key; it has counted 5e+17 FLOPs of 2e+18: 1.5e+18 are left; nothing" in capsys.readouterr().out
    server.next = [(404, b"")]
    assert run_sweep(*strict, "--check") == 0 and "has no counter" in capsys.readouterr().out
    monkeypatch.setenv("ISOFLOP_API_KEY", "wrong")
    assert run_sweep(*strict, "--check") == 2 and "is the key in --api_key_file right?" in capsys.readouterr().err
    assert run_sweep("--check") == 2 and "--check tries the service of --api" in capsys.readouterr().err
    assert run_sweep(*CS336) == 2 and "add --api URL, or --simulate LAW" in capsys.readouterr().err


# ----- answers that never end, are too large, or lead elsewhere -----


def header_drip():
    yield b"HTTP/1.0 200 OK\r\nX-Slow: "
    yield from drip(b"x")


@pytest.mark.parametrize(
    "status, body",
    [(200, drip(b" ")), (503, drip(b"busy ")), (None, header_drip()), (None, drip(b""))],
    ids=["body", "body of an error", "header", "nothing"],
)
def test_a_drip_has_a_deadline(server, service, monkeypatch, status, body):
    monkeypatch.setattr(api, "DEADLINE_S", 0.2)
    monkeypatch.setattr(api, "TRIES", 1)
    server.next = [(status, body)]
    with pytest.raises(OSError, match=r"(no whole answer within 0.2 s|timed out), 1 times; results are kept"):
        service.get("loss")


def test_a_body_without_an_end_is_cut_off(server, service):
    server.next = [(200, itertools.repeat(b" " * 2**16))]
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        service.get("loss")
    assert server.asked == 1


def test_an_answer_cut_short_is_asked_for_again(server, service):
    server.next = [(200, b"{}", {"Content-Length": "100"})]
    assert service.get("total_flops_used") == 0.0 and server.asked == 2


def test_retry_after_is_waited_for_up_to_a_limit(server, service, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(api, "time", SimpleNamespace(sleep=waits.append))
    server.next = [(503, b"soon", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), (429, b"", {"Retry-After": "7"})]
    assert service.get("total_flops_used") == 0.0 and waits == [7.0, 0.02]
    assert "429; try 2 of 6 in 7 s" in capsys.readouterr().out
    server.next = [(429, b"slow down", {"Retry-After": "99999999"})]
    with pytest.raises(OSError, match="429 slow down; it asks for a wait of 1e.08 s; try again then"):
        service.get("loss")
    assert len(waits) == 2


def test_the_key_goes_nowhere_else(server, service):
    with stub() as other:
        server.next = [(302, b"", {"Location": f"{other.url}/loss?api_key=sesame"})]
        with pytest.raises(UserError, match=f"redirects to {other.url}/loss, where") as caught:
            service.get("loss")
        assert other.asked == 0 and "sesame" not in str(caught.value)
    server.next = [(418, b"key sesame has no tea")]
    with pytest.raises(api.Refused, match="^418 key KEY has no tea$"):
        service.get("loss")


# ----- answers that are wrong -----

CELL = SimpleNamespace(
    mc=SimpleNamespace(n_embd=64, n_layer=1, n_head=1), flop_budget=1e12,
    plan=SimpleNamespace(batch_size=1, lr=1e-3, n_params_matmul=1000),
)  # fmt: skip
PLANNER = SimpleNamespace(record=lambda cell, status, **row: {"status": status, **row})


@pytest.mark.parametrize(
    "body, words",
    [
        ({"loss": "3.0", "total_flops_used": 1}, "loss must be a number, not '3.0'"),
        ({"loss": None, "total_flops_used": 1}, "loss must be a number, not None"),
        ({"loss": True, "total_flops_used": 1}, "loss must be a number, not True"),
        ({"loss": 0, "total_flops_used": 1}, "loss 0 of .* must be positive"),
        ({"loss": -5, "total_flops_used": 1}, "loss -5 of .* must be positive"),
        ({"total_flops_used": 1}, "loss must be a number, not None"),
        ({"loss": 3.0}, "total_flops_used must be a number, not None"),
        ({"loss": 3.0, "total_flops_used": "x" * 5000}, "total_flops_used must be a number, not 'xxx"),
        ({"loss": 3.0, "total_flops_used": -1}, "total_flops_used -1 must be finite and not negative"),
        ({"loss": 3.0, "total_flops_used": 10**400}, "total_flops_used inf must be finite"),
        ([3.0], "must be an object with loss and total_flops_used"),
    ],
)
def test_a_wrong_answer_is_refused_by_name(server, service, body, words):
    server.next = [(200, body)]
    with pytest.raises(UserError, match=words) as caught:
        service(PLANNER, CELL)
    assert server.asked == 1 and len(str(caught.value)) < 250


def test_a_loss_that_is_no_number_has_diverged(server, service):
    server.next = [(200, b'{"loss": NaN, "total_flops_used": 5}')]
    row = service(PLANNER, CELL)
    assert (row["status"], row["val_loss"], service.used) == ("diverged", None, 5.0)


def test_json_too_deep_to_read(server, service, monkeypatch):
    monkeypatch.setattr(api, "TRIES", 2)
    server.next = [(200, b"[" * 100_000)] * 2
    with pytest.raises(OSError, match="an answer that is not JSON, 2 times"):
        service.get("loss")


def test_a_service_without_a_counter(server, service):
    server.next = [(404, b"")]
    assert service.flops_used() is None
    server.next = [(200, {"total_flops_used": 7})]
    assert service.flops_used() == 7.0
    server.next = [(200, "seven")]
    with pytest.raises(UserError, match="total_flops_used must be a number, not 'seven'"):
        service.flops_used()


# ----- flags -----


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://host/?q=1", "http://a:b@host"])
def test_an_address_that_is_none(url, monkeypatch):
    monkeypatch.setenv("ISOFLOP_API_KEY", "sesame")
    with pytest.raises(UserError, match="must be an address such as http://HOST:8000"):
        api.Service(url, None)


def test_the_key_s_file(tmp_path):
    (tmp_path / "key").write_text(" sesame\n")
    assert api.read_key(str(tmp_path / "key")) == "sesame"
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_text("x" * 5000)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("absent", "bytes", "long", "empty", "fifo"):
        with pytest.raises(UserError, match="--api_key_file"):
            api.read_key(str(tmp_path / name))


def test_a_design_keeps_to_what_the_service_has_counted(server, tmp_path):
    flags = ["--design", "adaptive", "--target_flops", 1e18, "--total_flops", 1e17, "--until_width", 0.3]
    server.used = 5e16  # of others
    assert run_sweep(*flags, "--api", server.url, "--out_dir", tmp_path) == 0
    rows = rows_of(tmp_path)
    assert len(rows) >= 4 and {r["status"] for r in rows} == {"ok"}
    assert server.used == 5e16 + sum(float(r["flops_spent"]) for r in rows) <= 1e17
