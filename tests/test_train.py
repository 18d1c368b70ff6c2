"""One run, by every road that leads to it: function, command line, torchrun; its record, its refusals."""

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL_FLAGS, SMALL_MODEL, curve_of, failing_drive, record_of, same_weights, small_run, torchrun

import train as train_module
from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.files import folder_lock
from isoflop.train import checkpoint
from isoflop.train.validation import evaluate
from model import load_model
from train import INTERRUPTED, train

ROOT = Path(__file__).resolve().parent.parent
MC = ModelConfig(**SMALL_MODEL)


def test_record_and_files(toy_data, tmp_path):
    record = train(MC, small_run(toy_data, tmp_path / "run", log_every=5), quiet=True)
    assert record.status == "ok" and record.val_loss < math.log(257)
    assert record.flops == 6 * record.n_params_matmul * record.tokens
    assert (record.steps, record.tokens) == (20, 20 * 4 * 32)
    assert record.bits_per_byte == pytest.approx(record.val_loss / math.log(2), rel=0.05)
    assert all(v is not None for k, v in dataclasses.asdict(record).items() if k not in ("mfu", "schedule_steps"))
    folder = tmp_path / "run"
    assert record_of(folder) == dataclasses.asdict(record)
    curve = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [5, 10, 15, 20]
    assert curve[-1]["flops"] == record.flops
    model = load_model(folder)
    tokens = reader.open_data(toy_data)
    token_bytes = torch.from_numpy(reader.token_bytes(tokens.folder)).long()
    plain = torch.autocast("cpu", enabled=False)
    again = evaluate(model, tokens, token_bytes, 2048 // 32, DistributedEnv(), plain)
    assert (again["val_loss"], again["bits_per_byte"]) == (record.val_loss, record.bits_per_byte)
    left = ["config.json", "log.jsonl", "model.safetensors", "run.json", "tokenizer.json"]
    assert sorted(p.name for p in folder.iterdir()) == left


def test_the_last_evaluation_is_in_the_compute_type_and_the_weights_in_float32(toy_data, tmp_path):
    record = train(MC, small_run(toy_data, tmp_path, dtype="bfloat16"), quiet=True)
    model = load_model(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokens = reader.open_data(toy_data)
    asked = tokens, None, 2048 // 32, DistributedEnv(), torch.autocast("cpu", enabled=False)
    exact = evaluate(model, *asked)["val_loss"]
    assert evaluate(model.bfloat16(), *asked)["val_loss"] == record.val_loss != exact
    assert record.val_loss == pytest.approx(exact, abs=0.01)


@pytest.mark.slow
def test_one_cell_has_one_loss(toy_data, tmp_path, script):
    """Through train(), twice in one process, and through the command line: to the bit."""
    torch.set_num_threads(1)
    first = train(MC, small_run(toy_data, tmp_path / "run", dtype="auto"), quiet=True)
    second = train(MC, small_run(toy_data, tmp_path / "again", dtype="auto"), quiet=True)
    flags = [*SMALL_FLAGS, "--max_iters", 20, "--batch_size", 4, "--data_dir", toy_data]
    done = script("train.py", *flags, "--out_dir", tmp_path / "cli")
    assert done.returncode == 0, done.stderr
    third = record_of(tmp_path / "cli")
    assert first.val_loss == second.val_loss == third["val_loss"]
    assert first.run_id == second.run_id == third["run_id"]
    assert first.run_id in done.stdout and "step 00020/00020" in done.stdout


def test_json_is_the_last_line(toy_data, tmp_path, capsys):
    flags = [*SMALL_FLAGS, "--max_iters", "20", "--batch_size", "4", "--data_dir", toy_data]
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "run"), "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = record_of(tmp_path / "run")
    assert record.items() <= line.items()
    assert line["tokens"] == 20 * 4 * 32 and line["loss"] == record["train_loss"]
    assert line["tokens"] / line["seconds"] == pytest.approx(record["tokens_per_s"])


def test_rows_may_begin_with_a_document_or_anywhere(toy_data, tmp_path, capsys):
    losses, ids = set(), set()
    for pack in ("windows", "random", "bos"):
        record = train(MC, small_run(toy_data, tmp_path / pack, pack=pack), quiet=False)
        losses.add(record.val_loss)
        ids.add(record.run_id)
    assert len(losses) == len(ids) == 3 and max(losses) < math.log(257)
    assert "of the training text" in capsys.readouterr().out


def test_accumulation_changes_nothing(toy_data, tmp_path):
    whole = train(MC, small_run(toy_data, tmp_path / "run"), quiet=True)
    parts = train(MC, small_run(toy_data, tmp_path / "b", micro_batch_size=3), quiet=True)
    assert parts.val_loss == pytest.approx(whole.val_loss, abs=1e-5)


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_model(toy_data, tmp_path):
    """Its weights have the module's own names, and what compiling took is not in its speed."""
    plain = train(MC, small_run(toy_data, tmp_path / "a"), quiet=True)
    compiled = train(MC, small_run(toy_data, tmp_path / "b", compile=True), quiet=True)
    assert compiled.run_id == plain.run_id and compiled.val_loss == pytest.approx(plain.val_loss, abs=1e-3)
    assert load_model(tmp_path / "b").config == load_model(tmp_path / "a").config
    assert plain.compile_s == 0 < compiled.compile_s


def test_divergence_is_a_row(toy_data, tmp_path):
    record = train(MC, small_run(toy_data, tmp_path / "run", lr=1e12, grad_clip=1e12), quiet=True)
    assert record.status == "diverged"
    assert record.val_loss is None and record.steps <= 20
    assert record.flops == 6 * record.n_params_matmul * record.tokens
    assert "diverged" in record.summary()
    assert record_of(tmp_path / "run")["status"] == "diverged"


@pytest.mark.parametrize("flags, way_out", [(dict(lr=5.0), "lower --lr"), (dict(beta2=0.0), "raise --beta2")])
def test_a_loss_above_a_uniform_guess_is_blown_up(toy_data, tmp_path, flags, way_out):
    record = train(MC, small_run(toy_data, tmp_path / "run", **flags), quiet=True)
    assert record.status == "blown_up" and record.val_loss > math.log(257)
    found = record_of(tmp_path / "run")
    assert (found["status"], found["val_loss"]) == ("blown_up", record.val_loss)
    assert f"of a uniform guess; {way_out} (" in record.summary()
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_finished_run_is_shown_and_not_run_again(toy_data, tmp_path, capsys):
    flags = [*SMALL_FLAGS, "--max_iters", "20", "--batch_size", "4", "--data_dir", toy_data]
    flags += ["--out_dir", str(tmp_path / "run")]
    assert train_module.main(flags) == 0
    first, summary = record_of(tmp_path / "run"), capsys.readouterr().out.splitlines()[-1]
    for more in ([], ["--resume"]):
        assert train_module.main([*flags, *more]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert "finished already; --overwrite runs it again" in shown[0] and shown[1:] == [summary]
        assert record_of(tmp_path / "run") == first
    assert train_module.main([*flags, "--overwrite"]) == 0
    assert "step 00020/00020" in capsys.readouterr().out
    (tmp_path / "run" / "model.safetensors").unlink()  # as a full disk leaves it: the same command makes them
    assert train_module.main(flags) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()
    record = record_of(tmp_path / "run") | {"val_loss": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        train_module.main(flags)
    assert "run.json is damaged; --overwrite runs the run again" in capsys.readouterr().err


def test_one_process_holds_a_folder(toy_data, tmp_path, capsys):
    flags = [*SMALL_FLAGS, "--max_iters", "20", "--batch_size", "4", "--data_dir", toy_data]
    with folder_lock(tmp_path / "run", "train.py"), pytest.raises(SystemExit) as stop:
        train_module.main([*flags, "--out_dir", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "is in use by another train.py (process" in err and err.count("\n") == 1
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "run")]) == 0, "a lock that was let go blocks nobody"


def test_a_run_that_ends_between_check_and_lock_is_not_buried(toy_data, tmp_path, monkeypatch):
    lock = train_module.folder_lock

    def late(*args):
        monkeypatch.undo()
        train(MC, small_run(toy_data, tmp_path / "run"), quiet=True)
        return lock(*args)

    monkeypatch.setattr(train_module, "folder_lock", late)
    with pytest.raises(ValueError, match="holds another run"):
        train(MC, small_run(toy_data, tmp_path / "run", seed=1), quiet=True, lock=True)
    assert record_of(tmp_path / "run")["seed"] == 0


def test_a_record_is_not_buried(toy_data, tmp_path):
    train(MC, small_run(toy_data, tmp_path / "run"), quiet=True)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match="holds another run .*--overwrite"):
        train(MC, small_run(toy_data, tmp_path / "run", seed=1), quiet=True)
    with failing_drive("run.json"), pytest.raises(OSError, match="run.json"):
        train(MC, small_run(toy_data, tmp_path / "run", seed=1), quiet=True)
    assert (tmp_path / "run" / "run.json").read_text() == before
    (tmp_path / "run" / "run.json").write_text(before[:-9])  # an edit gone wrong
    for resume in (None, "auto"):
        with pytest.raises(ValueError, match="run.json is damaged; --overwrite"):
            train(MC, small_run(toy_data, tmp_path / "run", resume=resume), quiet=True)
    assert train(MC, small_run(toy_data, tmp_path / "run", resume="auto", overwrite=True), quiet=True).steps == 20
    assert train(MC, small_run(toy_data, tmp_path / "run", seed=1, overwrite=True), quiet=True).seed == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data_dir", "nowhere", "--flop_budget", "1e9"], "data.py"),
        (["--flop_budget", "0"], "--flop_budget 0"),
        (["--flop_budget", "-1"], "--flop_budget -1"),
        (["--flop_budget", "nan"], "--flop_budget nan"),
        (["--flop_budget", "1e12x"], "1e12x"),
        (["--flop_budget", "1e9", "--n_embd", "100", "--n_head", "12"], "--n_embd 100 is not divisible by --n_head 12"),
        (["--flop_budget", "1e12", "--batch_size", "1e6"], "--batch_size 1000000"),
        (["--flop_budget", "1e9", "--n_experts", "32"], "--n_experts"),
        (["--flop_budget", "1e9", "--block_size", "1e5"], "--block_size 100000"),
        (["--flop_budget", "1e9", "--device", "tpu"], "tpu"),
    ],
)
def test_mistakes_are_one_line(toy_data, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = flags if "--data_dir" in flags else [*flags, "--data_dir", toy_data]
    with pytest.raises(SystemExit) as stop:
        train_module.main(flags)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was written"


def test_unwritable_out_dir_and_truncated_bin(toy_data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        train_module.main(["--max_iters", "5", "--data_dir", toy_data, "--out_dir", str(tmp_path / "file" / "x")])
    assert stop.value.code == 2 and "--out_dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_module.main(["--max_iters", "5", "--data_dir", toy_data, "--out_dir", toy_data])
    assert "is the data folder; name another folder" in capsys.readouterr().err
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in os.listdir(toy_data):
        content = open(os.path.join(toy_data, name), "rb").read()
        (cut / name).write_bytes(content[:-100] if name == "train.bin" else content)
    with pytest.raises(SystemExit) as stop:
        train_module.main(["--max_iters", "5", "--data_dir", str(cut), "--out_dir", str(tmp_path / "o")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "train.bin" in err and "data.py" in err and err.count("\n") == 1
    assert not (tmp_path / "o").exists()


# ----- several processes -----


@pytest.mark.slow
@pytest.mark.parametrize("length", [["--max_iters", 20, "--total_batch_size", 256], ["--flop_budget", 5e8]])
def test_several_processes_train_the_same_model(toy_data, tmp_path, script, length):
    """With a batch over all processes: --total_batch_size, or the rule's, here of 4 sequences."""
    flags = ["train.py", *SMALL_FLAGS, *length, "--data_dir", toy_data, "--dtype", "float32", "--log_every", 1]
    alone = script(*flags, "--out_dir", tmp_path / "one")
    shared = torchrun(script, 2, *flags, "--out_dir", tmp_path / "many")
    assert alone.returncode == 0 and shared.returncode == 0, alone.stderr + shared.stderr
    one, many = (record_of(tmp_path / d) for d in ("one", "many"))
    assert many["world_size"] == 2 and many["run_id"] == one["run_id"]
    assert many["batch_size"] == one["batch_size"] / 2 and many["lr"] == one["lr"]
    assert abs(many["val_loss"] - one["val_loss"]) < 1e-5
    curves = [curve_of(tmp_path / d) for d in ("one", "many")]
    assert np.abs(np.subtract(*curves)).max() < 1e-4
    last = f"step {one['steps']:05d}/{one['steps']:05d}"
    assert shared.stdout.count(last) == 1, "rank 0 alone prints"


@pytest.mark.slow
def test_two_nodes(toy_data, tmp_path, script):
    """Two torchrun agents, as on two machines, that meet at an address: the model that one process trains."""
    flags = ["train.py", *SMALL_FLAGS, "--max_iters", 20, "--total_batch_size", 256, "--data_dir", toy_data,
             "--dtype", "float32", "--log_every", 1]  # fmt: skip
    alone = script(*flags, "--out_dir", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    agent = "-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --rdzv_id=7 --rdzv_backend=c10d".split()
    node = [sys.executable, *agent, f"--rdzv_endpoint=127.0.0.1:{port}", *flags, "--out_dir", tmp_path / "two"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict(cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    nodes = [subprocess.Popen([*map(str, node)], **pipes) for _ in range(2)]
    said = [n.communicate(timeout=240)[0] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], said
    one, two = (record_of(tmp_path / d) for d in ("one", "two"))
    assert two["world_size"] == 2 and two["run_id"] == one["run_id"]
    curves = [curve_of(tmp_path / d) for d in ("one", "two")]
    assert np.abs(np.subtract(*curves)).max() < 1e-5
    assert sum(text.count("step 00020/00020") for text in said) == 1, "rank 0 alone prints"


@pytest.mark.slow
def test_batch_size_is_per_process(toy_data, tmp_path, script):
    flags = ["train.py", *SMALL_FLAGS, "--max_iters", 10, "--batch_size", 4, "--lr", 0.01, "--data_dir", toy_data,
             "--out_dir", tmp_path / "two"]  # fmt: skip
    done = torchrun(script, 2, *flags)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path / "two")
    assert record["tokens_per_step"] == 2 * 4 * 32
    assert record["lr"] == pytest.approx(0.01 * math.sqrt(2))
    assert done.stdout.count("on 2 processes the peak lr goes from 0.01 to 0.0141") == 1


@pytest.mark.slow
def test_mistake_under_torchrun_is_said_once(toy_data, script):
    done = torchrun(script, 2, "train.py", "--flop_budget", 0, "--data_dir", toy_data)
    assert done.returncode != 0
    assert done.stderr.count("train.py: error:") == 1
    assert "exitcode  : 2 (pid" in done.stderr.split("Root Cause")[1], "rank 0's own status is in torchrun's report"


# ----- signals, memory, lost ranks -----


def start(tmp_path, *command):
    out = open(tmp_path / "out.txt", "w")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out, preexec_fn=heed_sighup)


def heed_sighup():
    """nohup ignores it, and so would the run."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(path, text, seconds=300):
    """Until a file has a text; the deadline is for a process that hangs."""
    end = time.time() + seconds
    while text not in (shown := path.read_text()):
        assert time.time() < end, shown
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_names_the_command_that_resumes(toy_data, tmp_path, script, number):
    run = start(tmp_path, "train.py", *SMALL_FLAGS, "--max_iters", 20000, "--log_every", 20, "--batch_size", 4,
                "--data_dir", toy_data, "--out_dir", tmp_path / "run")  # fmt: skip
    wait_for(tmp_path / "out.txt", "step 00040/")
    run.send_signal(number)
    assert run.wait(timeout=300) == INTERRUPTED
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[-1].startswith("python train.py --n_layer 1") and lines[-1].endswith("--resume")
    assert "interrupted after step" in lines[-2]
    found = checkpoint.find(tmp_path / "run", "auto")
    assert found.step >= 40 and str(found.folder) in lines[-2]
    assert not (tmp_path / "run" / "run.json").exists(), "an interrupted run has no record yet"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
@pytest.mark.parametrize("both", [False, True])
def test_a_closed_pipe_saves(toy_data, tmp_path, both):
    """python train.py | head -1, and 2>&1 | head -1."""
    flags = [*SMALL_FLAGS, "--max_iters", "100000", "--batch_size", "4", "--data_dir", toy_data, "--log_every", "1"]
    command = [sys.executable, "train.py", *flags, "--out_dir", str(tmp_path / "run")]
    stderr = subprocess.STDOUT if both else subprocess.PIPE
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr}
    run = subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=heed_sighup, **pipes)
    run.stdout.readline()
    run.stdout.close()
    err = "" if both else run.stderr.read()
    assert run.wait(60) == 75
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    if not both:
        assert err.startswith("standard output is closed\n") and f"saved as {saved}; resume with" in err


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_too(toy_data, tmp_path):
    run = start(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
                "--rdzv_endpoint=localhost:0", "train.py", *SMALL_FLAGS, "--max_iters", 20000, "--log_every", 20,
                "--batch_size", 4, "--data_dir", toy_data, "--out_dir", tmp_path / "run")  # fmt: skip
    wait_for(tmp_path / "out.txt", "step 00040/")
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=300) != 0
    assert checkpoint.find(tmp_path / "run", "auto").step >= 40
    assert "_enter_buffered_busy" not in (tmp_path / "out.txt").read_text()
    assert "torchrun --nproc_per_node=2 train.py" in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"]])
def test_a_rank_that_dies_is_a_status(toy_data, tmp_path, more):
    run = start(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
                "--rdzv_endpoint=localhost:0", "train.py", *SMALL_FLAGS, "--max_iters", 20000, "--log_every", 20,
                "--batch_size", 4, "--data_dir", toy_data, "--out_dir", tmp_path / "run", *more)  # fmt: skip
    wait_for(tmp_path / "out.txt", "step 00040/")
    ranks = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    assert run.wait(timeout=300) != 0
    record = record_of(tmp_path / "run")
    assert record["status"] == "peer_lost" and record["val_loss"] is None and record["steps"] >= 40


@pytest.mark.slow
def test_out_of_memory_names_a_batch_that_fits(toy_data, tmp_path):
    """A real lack of it: the process may map no more than it has, and half a gigabyte."""
    code = """
import resource, sys, torch, train
torch.ones(8, 8) @ torch.ones(8, 8)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**29,) * 2)
sys.exit(train.main(sys.argv[1:]))
"""
    flags = [*SMALL_FLAGS, "--max_iters", "2", "--batch_size", "1500", "--dtype", "float32", "--data_dir", toy_data]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *flags, "--out_dir", tmp_path / "run", "--n_embd", "256"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    record = record_of(tmp_path / "run")
    assert record["status"] == "oom" and record["val_loss"] is None
    assert "sequences at a time fit: add --micro_batch_size" in done.stdout
    rows = done.stdout.split("add --micro_batch_size ")[1].split(",")[0]
    done = subprocess.run([*command, "--micro_batch_size", rows], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ----- samples and picture -----


def test_samples_and_picture(toy_data, tmp_path, capsys):
    flags = [*SMALL_FLAGS, "--max_iters", "20", "--batch_size", "4", "--data_dir", toy_data]
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "a"), "--sample_every", "10"]) == 0
    assert capsys.readouterr().out.count("sample | ") == 2
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "b")]) == 0
    assert same_weights(tmp_path / "a", tmp_path / "b"), "a sample changes nothing"
    assert (tmp_path / "b" / "loss.png").read_bytes().startswith(b"\x89PNG")


# ----- a pin on the numbers -----


def test_golden_loss(toy_data, tmp_path):
    """A 20-step run, pinned: a change that moves it changes every law, and must raise record.TRAIN_VERSION."""
    torch.set_num_threads(1)
    record = train(MC, small_run(toy_data, tmp_path / "run", dtype="float32"), quiet=True)
    assert record.val_loss == pytest.approx(GOLDEN, abs=5e-4)


GOLDEN = 2.17683
