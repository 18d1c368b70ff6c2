"""Every script on generated bad input: one line and status 2, or a result; no traceback, no hang, nothing written.

Inputs are drawn by hypothesis, the same ones each time. A script's inputs go through all kinds of input below; what is
wrong with any of them is listed at the end. A few of each script run by default, some hundred with -m slow.
"""

import base64
import copy
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from helpers import flags_of, script_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", 20))  # after which a call has hung
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 50))  # inputs of a script in the slow test
FEW = 2  # in the default test
LONGEST_LINE = 700  # characters of a message, without the value that was typed

TINY = "--n_layer 1 --n_embd 8 --block_size 16"
RUN = f"{TINY} --max_iters 2 --batch_size 1 --val_tokens 64 --device cpu"
CALLS = {  # for each script calls that succeed; @ is the folder of good inputs
    "model": [TINY, "--depth 2", "--preset gpt2"],
    "plan": [
        f"{TINY} --tokens 1e9", "--flop_budget 1e19 --gpu h100", "--n_params 1e9 --tokens 1e10", "--target_loss 2.5",
        "--tokens 1e9 --law @/fit/fit.json", "--config @/models.json --tokens 1e9", "--flop_budget 1e20 --measured "
        "@/ckpt/run.json",
    ],
    "fit": ["@/runs.csv --bootstrap 0 --no-plots --out_dir out", "@/runs.json --bootstrap 0 --no-plots --out_dir out",
            "--law hoffmann --predict_flops 1e20", "@/runs.csv --bootstrap 0 --no-plots --out_dir out --predict_runs "
            "@/runs.json"],
    "data": ["--source @/text.jsonl --tokenizer byte --out_dir out", "--info @/data", "--verify @/data"],
    "train": [f"--data_dir @/data --out_dir out {RUN}", f"--data_dir @/data --out_dir @/run --resume {RUN}"],
    "sweep": [
        "--simulate hoffmann --flop_budgets 1e18 1e19 1e20 --out_dir out --dry_run --sizes 3",
        "--dry_run --flop_budgets 1e7 2e7 --n_embds 8 16 --data_dir @/data --block_size 16 --val_tokens 64 "
        "--device cpu --out_dir out",
        "--simulate hoffmann --flop_budgets 1e18 1e19 --sizes 3 --out_dir @/sweep --dry_run",
        "--api SERVICE --total_flops 1e16 --flop_budgets 1e15 --n_embds 64 128 --lr 1e-3 --batch_size 128 "
        "--out_dir out --api_key_file @/key.txt",
    ],
    "sample": ["--ckpt @/ckpt --max_new_tokens 4", "--ckpt @/ckpt --max_new_tokens 4 --prompts @/prompts.jsonl"],
    "eval": ["--ckpt @/ckpt --data_dir @/data --val_tokens 64 --device cpu --out scores.jsonl"],
    "export": ["--ckpt @/ckpt --out out", "--from_hf @/hf --out out"],
}  # fmt: skip
LONG = {  # flags whose large values are allowed, and take their time
    "max_iters", "tokens_per_param", "flop_budget", "flop_budgets", "max_new_tokens", "num_samples", "bootstrap",
    "compile", "interactive", "bench", "tasks", "source", "mix", "dataset", "tracker", "api", "verify", "workers",
    "ablation", "hub_timeout", "parallel", "simulate",
}  # fmt: skip
WORDS = ["nan", "inf", "-inf", "-1", "", " ", "0", "1e30", "1e400", "0.5", "1e-300", "10000000000", "9" * 400, "None"]
WORDS += ["\udcff", "é\u2028\n", "x" * 3000, "[]", "{}", "a=b", "=", "--", "1e308", "65536", "1048576"]
REFUSED = ["nan", "inf", "-1", "", "1e400", "x", "\udcff", "9" * 400]
LEAVES = [None, True, -1, 0, 1, 2**31, 10**12, 10**400, 1e308, 1e-308, float("nan"), float("inf"), -0.5, "", "x"]
LEAVES += ["\ud800", "9" * 5000, [], {}, [[]], [None], {"": None}, [1, "a"], "nan", "y" * 100_000, {"point": None}]
FILES = [
    "fifo",
    "zero",
    "urandom",
    "folder",
    "empty",
    "binary",
    "forbidden",
    "absent",
    "deep",
    "digits",
    "text",
    "null",
]


WRITTEN = ("out", "out/", "scores.jsonl", "in/run", "in/sweep", "in/data/lengths.png")  # by calls that succeed
STATUSES = [(200, {}), (200, {}), (200, {}), (400, {}), (403, {}), (302, {"Location": "http://127.0.0.1:1/"})]
STATUSES += [(503, {"Retry-After": "99999999"}), (200, {"Content-Length": "99"})]


# ----- a training service -----


class Service(http.server.BaseHTTPRequestHandler):
    """Answers as its address says: http://HOST/ANSWER/loss?..., ANSWER from address_of()."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        status, headers, body = json.loads(base64.urlsafe_b64decode(self.path.split("/")[1]))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture(scope="module")
def service():
    """address_of(status, headers, body) -> the address of a service that gives this answer to every request."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=served.serve_forever, daemon=True).start()

    def address_of(status, headers, body):
        answer = base64.urlsafe_b64encode(json.dumps([status, headers, body]).encode()).decode()
        return f"http://127.0.0.1:{served.server_address[1]}/{answer}"

    yield address_of
    served.shutdown()


# ----- calls -----


@pytest.fixture(scope="module")
def server():
    """call(script, argv, cwd) -> {status, out, err, hung}."""
    with script_server(CALLS, SECONDS) as call:
        yield call


@pytest.fixture(scope="module")
def good(server, tmp_path_factory):
    """The folder of inputs that every script takes."""
    folder = tmp_path_factory.mktemp("good")
    texts = [json.dumps({"text": f"document {i} of the text " * (1 + i % 7)}) for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(texts) + "\n")
    (folder / "key.txt").write_text("secret")
    (folder / "prompts.jsonl").write_text('"doc"\n{"prompt": "the"}\n')
    (folder / "models.json").write_text('{"A": {"n_layer": 2, "n_embd": 64}, "B": {"preset": "gpt2"}}')
    runs = []
    for i, c in enumerate((1e15, 3e15, 1e16, 3e16)):
        for j, n in enumerate((1e6, 2e6, 4e6, 8e6, 1.6e7)):
            n *= 1.7**i
            loss = 1.7 + 400 / n**0.34 + 410 / (c / 6 / n) ** 0.28
            runs.append({"run_id": f"{i}{j}", "params": n, "tokens": c / 6 / n, "flops": c, "loss": loss})
    (folder / "runs.json").write_text(json.dumps(runs))
    lines = [",".join(runs[0])] + [",".join(map(str, run.values())) for run in runs]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    made = [
        ("data", "--source text.jsonl --tokenizer byte --out_dir data --val_fraction 0.3"),
        ("train", f"--data_dir data --out_dir ckpt {RUN}"),
        ("train", f"--data_dir data --out_dir run --ckpt_every 1 {RUN}"),
        ("export", "--ckpt ckpt --out hf"),
        ("fit", "runs.csv --bootstrap 0 --no-plots --out_dir fit"),
        ("sweep", "--simulate hoffmann --flop_budgets 1e18 1e19 --sizes 3 --out_dir sweep"),
    ]
    for script, flags in made:
        answer = server(script, flags.split(), folder)
        assert answer["status"] in (0, 2 if script == "sweep" else 0), answer["err"]
    return folder


# ----- bad inputs -----


def strange_file(kind: str, path: Path):
    """Put something at path that is no file of the kind expected there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    texts = {"empty": "", "deep": "[" * 100_000, "digits": '{"E": ' + "9" * 400 + "}", "text": "a,b\n1", "null": "null"}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind in ("zero", "urandom"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(bytes(range(256)) * 16)
    elif kind == "forbidden":
        path.write_text("{}")
        path.chmod(0)
    elif kind in texts:
        path.write_text(texts[kind])


def places_in(value, path=()) -> list:
    """The path of each value within a JSON value."""
    found = [path]
    if isinstance(value, dict):
        children = list(value.items())[:60]
    else:
        children = list(enumerate(value[:10])) if isinstance(value, list) else []
    for key, child in children:
        found += places_in(child, (*path, key))
    return found


def mutated(value, rng):
    """A JSON value with one to three of its parts replaced or removed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(places_in(value))
        if not path:
            if rng.random() < 0.3:
                return rng.choice(LEAVES)
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if rng.random() < 0.2:
            del parent[path[-1]]
        else:
            parent[path[-1]] = rng.choice(LEAVES)
    return value


def json_files(words: list[str], good: Path) -> list[str]:
    """The JSON files among the inputs of a call, relative to the good folder."""
    found = []
    for word in words:
        if not word.startswith("@/"):
            continue
        path = good / word[2:]
        if path.is_dir():
            inside = [p for p in path.rglob("*.json") if p.stat().st_size < 10**6]
            found += sorted(str(p.relative_to(good)) for p in inside)
        elif path.suffix == ".json":
            found.append(word[2:])
    return found


def bad_flags(script: str, words: list[str], rng) -> list[str]:
    """The call with one to three more flags of strange values."""
    words = list(words)
    for action in rng.sample(flags_of(script), rng.choice((1, 1, 1, 2, 3))):
        words.append(rng.choice(action.option_strings))
        if action.nargs != 0:
            values = REFUSED if action.dest in LONG else WORDS
            words += rng.choices(values, k=rng.choice((1, 1, 2)) if action.nargs == "+" else 1)
    return words


def bad_answer(rng) -> tuple[int, dict, str]:
    """(status, headers, body) of a service that can't be trusted."""
    status, headers = rng.choice(STATUSES)
    body = json.dumps(mutated({"loss": 3.2, "total_flops_used": 1e15, "message": "no"}, rng))
    return status, headers, rng.choice([body, body, body, body[:-1], "[" * 10_000, ""])


def bad_call(script: str, kind: str, rng, good: Path, case: Path, address_of) -> list[str]:
    """The argv of a call with a bad input of a kind: "flags", "json" or "file". Inputs are copied into case/in.

    A call that asks a service has a bad answer, too.
    """
    words = rng.choice(CALLS[script]).split()
    inputs = case / "in"
    shutil.copytree(good, inputs, symlinks=True)
    if "SERVICE" in words:
        words[words.index("SERVICE")] = address_of(*bad_answer(rng))
    documents = json_files(words, good)
    if kind == "json" and documents:
        path = inputs / rng.choice(documents)
        path.write_text(json.dumps(mutated(json.loads(path.read_text()), rng)))
    elif kind == "file" and any("@" in word for word in words):
        path = inputs / rng.choice([word for word in words if word.startswith("@/")])[2:]
        inside = []
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
        strange_file(rng.choice(FILES), rng.choice([path, *inside]))
    else:
        words = bad_flags(script, words, rng)
    return [word.replace("@", str(inputs), 1) if word.startswith("@/") else word for word in words]


# ----- what must hold -----


def listing(folder: Path) -> dict:
    """{path: (size, time of change)} of all in a folder; of folders None."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in folders:
            found[os.path.join(parent, name)] = None
        for name in names:
            about = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (about.st_size, about.st_mtime_ns)
    return found


def changes(before: dict, after: dict) -> list[str]:
    """The paths that differ in two listings."""
    return sorted(path for path in after.keys() | before.keys() if after.get(path, 0) != before.get(path, 0))


def faults(script: str, answer: dict, argv: list[str], before: dict, after: dict) -> list[str]:
    """What is wrong with an answer."""
    status, err, found = answer["status"], answer["err"], []
    if answer["hung"]:
        return ["hang"]
    if "Traceback" in err or "Error:" in err.replace("RuntimeError: ", "") and status not in (0, 2):
        found.append(f"traceback: {err.strip().splitlines()[-1][:150]}")
    elif status not in (0, 1, 2, 75):
        found.append(f"status {status}")
    if status == 1 and not found and script not in ("train", "eval", "sweep", "plan"):
        found.append("status 1")
    if "Warning" in err:
        found.append(f"warning: {err[:150]}")
    if status == 2:
        typed = max([len(word) for word in argv] + [0])
        if err.count("\n") != 1 and not found:
            found.append(f"{err.count(chr(10))} lines")
        if len(err) > LONGEST_LINE + typed + 200 * (typed > 200):
            found.append(f"a line of {len(err)} characters")
        changed = changes(before, after)
        if changed and "--api" not in argv:  # which writes what the service answered before
            found.append(f"written: {', '.join(changed[:3])}")
    return found


def fuzz(script: str, examples: int, server, good, tmp_path, service):
    """Run a number of bad inputs of a script; fails with the list of all faults."""
    problems, counts = [], {"inputs": 0}

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(kind=st.sampled_from(("flags", "json", "file")), rng=st.randoms(use_true_random=True))
    def one(kind, rng):
        case = tmp_path / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        argv = bad_call(script, kind, rng, good, case, service)
        before = listing(case)
        answer = server(script, argv, case)
        found = faults(script, answer, argv, before, listing(case))
        counts["inputs"] += 1
        shown = " ".join(word.replace(str(case), "") for word in argv)[-300:]
        problems.extend(f"{ascii(fault)}\n      {kind}: {shown!a}\n      {answer['err'][-300:]!a}" for fault in found)
        for fault in found:
            key = fault.split(":")[0]
            counts[key] = counts.get(key, 0) + 1

    one()
    assert not problems, f"{script}.py {counts}\n" + "\n".join(problems)


@pytest.mark.slow
def test_a_few_bad_inputs(server, good, tmp_path, service):
    for script in CALLS:
        fuzz(script, FEW, server, good, tmp_path, service)


@pytest.mark.slow
@pytest.mark.parametrize("script", CALLS)
def test_many_bad_inputs(script, server, good, tmp_path, service):
    fuzz(script, EXAMPLES, server, good, tmp_path, service)


@pytest.mark.slow
@pytest.mark.parametrize("script", CALLS)
def test_good_calls_write_nothing_beside_their_output(script, server, good, tmp_path, service):
    for i, call in enumerate(CALLS[script]):
        case = tmp_path / str(i)
        shutil.copytree(good, case / "in")
        address = service(200, {}, '{"loss": 3.2, "total_flops_used": 1e15}')
        argv = [word.replace("@", str(case / "in")).replace("SERVICE", address) for word in call.split()]
        before = listing(case)
        answer = server(script, argv, case)
        assert answer["status"] == 0 or "all three methods were refused" in answer["err"], (call, answer)
        elsewhere = []
        for path in changes(before, listing(case)):
            if not os.path.relpath(path, case).startswith(WRITTEN):
                elsewhere.append(path)
        assert elsewhere == [], call
