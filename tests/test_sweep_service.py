"""Losses from a law and from a service: the pipeline without training, its caps, and what a grid is worth."""

import csv
import json
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import sweep
from isoflop import laws
from isoflop.fit import isoflop, parametric
from isoflop.fit import table as table_
from isoflop.sweep import api as service
from isoflop.sweep import grid, power

LAW = "E=1.69,A=406.4,B=410.7,alpha=.34,beta=.28"
GRID = "--flop_budgets 1e18 3e18 1e19 3e19 1e20 --vocab_size 32000".split()


def rows(folder, name="runs.csv"):
    with open(Path(folder) / name, newline="") as f:
        return list(csv.DictReader(f))


def run(*flags):
    """Exit status of sweep.py in this process."""
    try:
        return sweep.main([str(f) for f in flags])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They and a full bootstrap take seconds; tests/test_sweep.py and tests/test_report.py see them drawn."""
    with pytest.MonkeyPatch.context() as patch:
        whole = sweep.fit.run
        patch.setattr(sweep.fit, "run", lambda paths, **more: whole(paths, **more | {"plots": False, "bootstrap": 400}))
        yield


# ----- --simulate -----


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sim") / "out"
    assert run("--simulate", LAW, "--noise", ".003", *GRID, "--sizes", 9, "--out_dir", folder) == 0
    return folder


def test_a_simulated_sweep_gives_its_law_back(simulated):
    table, result = rows(simulated), json.loads((simulated / "fit.json").read_text())
    assert len(table) == 45 and {r["source"] for r in table} == {f"simulated {LAW}, noise 0.003"}
    law = laws.parse_law(LAW)
    off = [np.log(float(r["val_loss"]) / law.loss(float(r["n_params_matmul"]), float(r["tokens"]))) for r in table]
    assert 0.002 < np.std(off) < 0.004 and abs(np.mean(off)) < 0.0015
    for name, truth in law.params.items():
        low, high = result["parametric"][name]["ci95"]
        assert low <= truth <= high, name
    low, high = result["parametric"]["a"]["ci95"]
    assert low <= law.exponents()[0] <= high


def test_the_predicted_widths_are_those_of_the_fit(simulated):
    """--dry_run's half-widths against those of a fit of this grid, mean of several simulated sweeps."""
    table = [r for r in rows(simulated)]
    n, d, c, budget = (
        np.array([float(r[k]) for r in table]) for k in ("n_params_matmul", "tokens", "flops", "flop_budget")
    )
    law = laws.parse_law(LAW)
    said = power.worth(n, d, c, budget, law, 0.003, 1e21)
    result = json.loads((simulated / "fit.json").read_text())
    for method in ("isoflop", "parametric"):
        low, high = result[method]["a"]["ci95"]
        # one sweep's interval scatters about the median one; the median of many is within 30% (test below, slow)
        assert 0.5 < said[method]["a"] / ((high - low) / 2) < 2


@pytest.mark.slow
def test_the_predicted_widths_hold_on_fresh_draws(simulated):
    table = rows(simulated)
    n, d, c, budget = (
        np.array([float(r[k]) for r in table]) for k in ("n_params_matmul", "tokens", "flops", "flop_budget")
    )
    law, widths = laws.parse_law(LAW), {"isoflop": [], "parametric": []}
    said = power.worth(n, d, c, budget, law, 0.003, 1e21)
    for seed in range(1000, 1030):
        loss = laws.simulate(law, n, d, 0.003, seed)
        i = isoflop.fit_isoflop(n, d, c, loss, budget, seed=seed)
        p = parametric.fit_parametric(n, d, loss, seed=seed)
        widths["isoflop"].append(power.half(i.draws["a"]))
        widths["parametric"].append(power.half(p.draws.exponents()[0]))
    for method, found in widths.items():
        assert abs(said[method]["a"] / np.median(found) - 1) < 0.3, method


def test_again_draws_nothing_and_another_kind_is_refused(simulated, capsys):
    before = (simulated / "runs.csv").read_bytes()
    assert run("--simulate", LAW, "--noise", ".003", *GRID, "--sizes", 9, "--out_dir", simulated) == 0
    assert (simulated / "runs.csv").read_bytes() == before
    assert run("--simulate", "hoffmann", *GRID, "--out_dir", simulated) == 2
    err = capsys.readouterr().err
    assert "holds rows of another kind" in err and err.count("\n") == 1


def test_sizes_follow_the_sweep_s_own_fits(simulated):
    """The second and later budgets are centred on the fit of those below, and a rerun finds the same cells."""
    law, kept = laws.parse_law(LAW), json.loads((simulated / "grid.json").read_text())
    by = {float(k.split()[0]): v for k, v in kept.items()}
    assert by[1e18]["by"] == "D = 20 N" and {v["by"] for c, v in by.items() if c > 1e18} == {"own fits"}
    for c, v in by.items():
        if c > 3e18:
            assert abs(np.log(v["centre"] / law.optimum(c)[0])) < 0.5
    ns = sorted(float(r["n_params_matmul"]) for r in rows(simulated) if float(r["flop_budget"]) == 1e19)
    assert 8 < ns[-1] / ns[0] < 32, "two doublings either side"


def test_best_guess_of_edges_and_few_budgets():
    def row(n, c, loss):
        return {
            "status": "ok",
            "n_params_matmul": n,
            "tokens": c / 6 / n,
            "flops": c,
            "flop_budget": c,
            "val_loss": loss,
        }

    falling = [row(n, 1e12, 5 - k * 0.1) for k, n in enumerate((1e4, 2e4, 4e4, 8e4))]
    assert grid.best_guess(1e12, falling) is None, "a budget does not guess for itself"
    assert np.isclose(grid.best_guess(4e12, falling), 8e4 * 2), "from the lowest run, at an end, with slope 1/2"
    valley = [row(n, 1e12, 3 + np.log(n / 3e4) ** 2) for n in (1e4, 2e4, 4e4, 8e4)]
    assert np.isclose(grid.best_guess(1e14, valley), 3e5, rtol=0.02)


def test_the_cap_stops_before_the_cell_that_breaks_it(tmp_path, capsys):
    flags = ["--simulate", LAW, *GRID, "--n_embds", 320, 512, 768, "--out_dir", tmp_path / "out"]
    assert run(*flags, "--total_flops", 2e19) == 1
    out = capsys.readouterr().out
    spent = sum(float(r["flops_spent"]) for r in rows(tmp_path / "out"))
    assert len(rows(tmp_path / "out")) == 6 and 1.1e19 < spent <= 2e19, "three of 1e18 and of 3e18; 1e19 would pass it"
    assert "--total_flops 2e+19" in out.splitlines()[-2] and out.splitlines()[-1].startswith("9 of 15 cells")
    assert run(*flags, "--total_flops", 2e19) == 1 and len(rows(tmp_path / "out")) == 6, "cached cells are free"
    assert run(*flags) == 0 and len(rows(tmp_path / "out")) == 15


def test_seeds_make_a_noise_floor_that_weighs_the_fit(tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--simulate", LAW, "--noise", ".01", *GRID, "--n_embds", 320, 512, 768, 1024, "--seeds", 0, 1, 2]
    assert run(*flags, "--out_dir", out) == 0
    said = float(capsys.readouterr().out.split("seeds move a loss by ")[1].split("%")[0])
    assert 0.6 < said < 1.4, "of 1%"
    table = rows(out, "seeds.csv")
    assert len(table) == 60 and all(0.003 < float(r["seed_noise"]) / float(r["val_loss"]) < 0.02 for r in table)
    assert json.loads((out / "fit.json").read_text())["input"]["files"] == [str(out / "seeds.csv")]


# ----- rates -----


def test_best_rate_is_the_vertex_or_an_edge():
    rates = [0.01, 0.02, 0.04, 0.08, 0.16]
    losses = [3 + 0.1 * np.log(r / 0.03) ** 2 for r in rates]
    at, edge = grid.best_rate(rates, losses)
    assert not edge and np.isclose(at, 0.03, rtol=1e-6)
    assert grid.best_rate(rates, [1, 2, 3, 4, 5]) == (pytest.approx(0.01), True)
    assert grid.best_rate(rates[::-1], [5, 4, 3, 2, 1][::-1]) == (pytest.approx(0.16), True)
    assert np.isclose(grid.rate_between(2e4, [(1e4, 0.04), (4e4, 0.01)]), 0.02)


def test_a_rate_on_the_edge_is_marked_in_the_picture(simulated, tmp_path):
    table = rows(simulated)
    for i, r in enumerate(table):
        r["lr_on_edge"] = 1 if i < 9 else 0 if i < 18 else ""
    with open(tmp_path / "runs.csv", "w", newline="") as f:
        out = csv.DictWriter(f, list(table[0]))
        out.writeheader()
        out.writerows(table)
    o = sweep.fit.Options(bootstrap=0)
    result, arrays = sweep.fit.analyse(table_.read([str(tmp_path / "runs.csv")]), o)
    assert arrays["lr_on_edge"].sum() == 9
    import matplotlib

    matplotlib.use("Agg")
    from isoflop.fit import figures

    marked = figures.draw_isoflop(result, arrays)
    crosses = [v for v in marked.axes[0].collections if v.get_label() == figures.ON_EDGE["label"]]
    assert len(crosses) == 1 and len(crosses[0].get_offsets()) == 9
    arrays["lr_on_edge"][:] = False
    plain = figures.draw_isoflop(result, arrays)
    assert not [v for v in plain.axes[0].collections if v.get_label() == figures.ON_EDGE["label"]]


def test_depths_are_the_one_knob_family(tmp_path):
    out = tmp_path / "out"
    assert run("--simulate", LAW, *GRID[:3], *GRID[-2:], "--depths", 4, 6, 8, "--out_dir", out, "--block_size", 64) == 0
    shapes = {(r["n_layer"], r["n_embd"], r["n_head"]) for r in rows(out)}
    assert shapes == {("4", "256", "4"), ("6", "384", "6"), ("8", "512", "8")} and len(rows(out)) == 6


# ----- --api -----


class Stub(ThreadingHTTPServer):
    """A training service on loopback: counts FLOPs, caches, refuses, and fails as often as it is told to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cache, self.used, self.asked, self.fail = {}, 0.0, 0, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body):
        text = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        s, parts = self.server, urllib.parse.urlsplit(self.path)
        q = {k: v[0] for k, v in urllib.parse.parse_qs(parts.query).items()}
        s.asked += 1
        if s.fail:
            return self.answer(*s.fail.pop())
        if q.get("api_key") != "sesame":
            return self.answer(401, {"message": f"no such key {q.get('api_key')}"})
        if parts.path == "/total_flops_used":
            return self.answer(200, s.used)
        if int(q["d_model"]) > 1000:
            return self.answer(422, {"message": "d_model must be at most 1000"})
        key = json.dumps(q, sort_keys=True)
        if key not in s.cache:
            n, c = 12 * int(q["num_layers"]) * int(q["d_model"]) ** 2, float(q["train_flops"])
            s.cache[key], s.used = float(laws.parse_law(LAW).loss(n, c / 6 / n)), s.used + c
        return self.answer(200, {"loss": s.cache[key], "total_flops_used": s.used})


@contextmanager
def stub():
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_API_KEY", "sesame")
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    flags = "--flop_budgets 1e15 3e15 1e16 --depths 2 3 4 6 --lr 1e-3 --batch_size 128".split()
    with stub() as server:
        yield server, ["--api", server.url, *flags, "--out_dir", tmp_path / "out"], tmp_path / "out"


def test_a_service_s_counter_agrees_and_cached_cells_are_free(asked):
    server, flags, out = asked
    assert run(*flags) == 0
    table = rows(out)
    assert len(table) == 12 and {r["source"].split()[0] for r in table} == {"api"}
    assert server.used == sum(float(r["flops_spent"]) for r in table) == 4 * (1e15 + 3e15 + 1e16)
    law = laws.parse_law(LAW)
    for r in table:
        assert int(r["n_params_matmul"]) == 12 * int(r["n_layer"]) * int(r["n_embd"]) ** 2
        assert np.isclose(float(r["val_loss"]), law.loss(float(r["n_params_matmul"]), float(r["tokens"])), rtol=1e-6)
    before = server.asked
    assert run(*flags) == 0 and server.asked == before + 1, "a rerun asks for the counter alone"
    (out / "runs.csv").unlink()
    assert run(*flags) == 0 and server.used == 5.6e16, "the service has cached them too"


def test_a_service_s_cap_and_key_stay(asked, capsys, monkeypatch):
    server, flags, out = asked
    assert run(*flags, "--total_flops", 5e15) == 1
    assert server.used == 4e15, "four cells of 1e15; 3e15 more would pass the cap"
    said = capsys.readouterr()
    written = "".join(p.read_text(errors="replace") for p in out.rglob("*") if p.suffix in (".csv", ".json", ".jsonl"))
    assert "sesame" not in said.out + said.err + written
    monkeypatch.setenv("ISOFLOP_API_KEY", "wrong-key")
    assert run(*flags) == 2
    err = capsys.readouterr().err
    assert "--api_key_file" in err and "wrong-key" not in err and err.count("\n") == 1
    monkeypatch.delenv("ISOFLOP_API_KEY")
    assert run(*flags) == 2 and "--api needs a key" in capsys.readouterr().err


def test_a_service_that_stumbles_is_asked_again_and_a_refusal_is_a_row(asked, capsys):
    server, flags, out = asked
    server.fail = [(503, b"later"), (429, {"message": "slow down"}), (200, b"not json")]
    flags = [f if f != "6" else "20" for f in map(str, flags)]  # 1280 wide: the stub refuses it
    assert run(*flags) == 1
    table = rows(out)
    assert [r["status"] for r in table].count("refused") == 3 and [r["status"] for r in table].count("ok") == 9
    assert server.used == 3 * (1e15 + 3e15 + 1e16)
    out_text = capsys.readouterr().out
    assert "d_model must be at most 1000" in out_text and "3 of 12 cells have no result (3 refused)" in out_text
    assert "--retry" in out_text.splitlines()[-1]


def test_a_dead_service_is_one_line(asked, capsys):
    server, flags, out = asked
    server.fail = [(500, b"broken")] * 50
    assert run(*flags) == 2
    err = capsys.readouterr().err
    assert "500 broken" in err and err.count("\n") == 1
    assert server.asked == service.TRIES
