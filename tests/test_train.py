"""One run, by every road that leads to it: function, command line, torchrun; its record, its refusals."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train as train_module
from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.train import record as run_record
from isoflop.train.plan import TrainConfig, resolve
from isoflop.train.record import RunRecord
from isoflop.train.validation import evaluate
from model import GPT, load_model
from train import train

MC = ModelConfig(n_layer=1, n_embd=16, block_size=32)
FLAGS = ["--n_layer", 1, "--n_embd", 16, "--block_size", 32]


def config(toy_data, tmp_path, **more):
    defaults = dict(
        max_iters=20, batch_size=4, data_dir=toy_data, out_dir=str(tmp_path / "run"), val_tokens=2048, dtype="float32"
    )
    return TrainConfig(**{**defaults, **more})


def spelled(tokens):
    return torch.from_numpy(reader.token_bytes(tokens.folder)).long()


def test_record_and_files(toy_data, tmp_path):
    record = train(MC, config(toy_data, tmp_path, log_every=5), quiet=True)
    assert record.status == "ok" and record.val_loss < math.log(257)
    assert record.flops == 6 * record.n_params_matmul * record.tokens
    assert (record.steps, record.tokens) == (20, 20 * 4 * 32)
    assert record.bits_per_byte == pytest.approx(record.val_loss / math.log(2), rel=0.05)
    assert all(v is not None for k, v in dataclasses.asdict(record).items() if k not in ("mfu", "schedule_steps"))
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text()) == dataclasses.asdict(record)
    curve = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [5, 10, 15, 20]
    assert curve[-1]["flops"] == record.flops
    model = load_model(folder)
    tokens = reader.open_data(toy_data)
    again = evaluate(model, tokens, spelled(tokens), 2048 // 32, DistributedEnv(), torch.autocast("cpu", enabled=False))
    assert again["val_loss"] == record.val_loss
    left = ["config.json", "log.jsonl", "model.safetensors", "run.json", "tokenizer.json"]
    assert sorted(p.name for p in folder.iterdir()) == left


def test_one_cell_has_one_loss(toy_data, tmp_path, script):
    """Through train(), twice in one process, and through the command line: to the bit."""
    torch.set_num_threads(1)
    first = train(MC, config(toy_data, tmp_path, dtype="auto"), quiet=True)
    second = train(MC, config(toy_data, tmp_path, dtype="auto", out_dir=str(tmp_path / "again")), quiet=True)
    done = script("train.py", *FLAGS, "--max_iters", 20, "--batch_size", 4, "--data_dir", toy_data, "--val_tokens",
                  2048, "--out_dir", tmp_path / "cli", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    third = json.loads((tmp_path / "cli" / "run.json").read_text())
    assert first.val_loss == second.val_loss == third["val_loss"]
    assert first.run_id == second.run_id == third["run_id"]
    assert first.run_id in done.stdout and "step 00020/00020" in done.stdout


def test_json_is_the_last_line(toy_data, tmp_path, capsys):
    flags = [*map(str, FLAGS), "--max_iters", "20", "--batch_size", "4", "--data_dir", toy_data, "--val_tokens", "2048"]
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "run"), "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record.items() <= line.items()
    assert line["tokens"] == 20 * 4 * 32 and line["loss"] == record["train_loss"]
    assert line["tokens"] / line["seconds"] == pytest.approx(record["tokens_per_s"])


def test_run_id_follows_the_result_alone(toy_data, tmp_path):
    tokens = reader.open_data(toy_data)

    def name(mc=MC, **more):
        tc = config(toy_data, tmp_path, **more)
        return run_record.run_id(mc, tc, resolve(mc, tc), "float32", tokens)

    same = [name(), name(log_every=3), name(out_dir="elsewhere"), name(micro_batch_size=2),
            name(batch_size=None, total_batch_size=128, lr=resolve(MC, config(toy_data, tmp_path)).lr)]  # fmt: skip
    assert len(set(same)) == 1
    other = [name(seed=1), name(lr=1e-3), name(max_iters=21), name(batch_size=5), name(weight_decay=0.0),
             name(ModelConfig(n_layer=2, n_embd=16, block_size=32)), name(val_tokens=1024)]  # fmt: skip
    assert len({*same, *other}) == 1 + len(other)


def test_rows_may_begin_with_a_document_or_anywhere(toy_data, tmp_path, capsys):
    losses, ids = set(), set()
    for pack in ("windows", "random", "bos"):
        record = train(MC, config(toy_data, tmp_path, pack=pack, out_dir=str(tmp_path / pack)), quiet=False)
        losses.add(record.val_loss)
        ids.add(record.run_id)
    assert len(losses) == len(ids) == 3 and max(losses) < math.log(257)
    assert "of the training text" in capsys.readouterr().out


def test_accumulation_changes_nothing(toy_data, tmp_path):
    whole = train(MC, config(toy_data, tmp_path), quiet=True)
    pieces = train(MC, config(toy_data, tmp_path, micro_batch_size=3, out_dir=str(tmp_path / "b")), quiet=True)
    assert pieces.val_loss == pytest.approx(whole.val_loss, abs=1e-5)


def test_validation_does_not_depend_on_how_it_is_shared(toy_data):
    tokens = reader.open_data(toy_data)
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(MC, vocab_size=tokens.meta["vocab_size"]))
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    plain = torch.autocast("cpu", enabled=False)
    whole = evaluate(model, tokens, spelled(tokens), 50, DistributedEnv(), plain)
    chunked = evaluate(model, tokens, spelled(tokens), 50, DistributedEnv(), plain, chunk_tokens=96)
    assert whole["val_loss"] == pytest.approx(chunked["val_loss"], abs=1e-6)

    class Rank(DistributedEnv):  # stands in for one of three processes: records its own sums
        def sum(self, *values):
            shares.append(values)
            return values

    shares = []
    for rank in range(3):
        evaluate(model, tokens, spelled(tokens), 50, Rank(rank, 3), plain)
    n, total, squares, text_loss, text_bytes = np.sum(shares, axis=0)
    assert n == 50
    assert total / n == pytest.approx(whole["val_loss"], abs=1e-6)
    assert text_loss / text_bytes / math.log(2) == pytest.approx(whole["bits_per_byte"], abs=1e-6)


def test_bits_per_byte_by_hand(toy_data):
    """A model that knows nothing spends ln V on every token; only tokens that spell bytes count, over their bytes."""
    tokens = reader.open_data(toy_data)
    V = tokens.meta["vocab_size"]
    model = GPT(dataclasses.replace(MC, vocab_size=V))  # its head is zero
    rows = 20
    result = evaluate(model, tokens, spelled(tokens), rows, DistributedEnv(), torch.autocast("cpu", enabled=False))
    targets = np.array(tokens.val[: rows * 32 + 1])[1:]
    lengths = reader.token_bytes(tokens.folder)[targets]
    assert (lengths == 0).any(), "the range should hold an end-of-text token"
    assert result["val_loss"] == pytest.approx(math.log(V), abs=1e-6)
    assert result["bits_per_byte"] == pytest.approx((lengths > 0).sum() * math.log2(V) / lengths.sum(), abs=1e-6)


def test_standard_error_covers_the_spread_between_ranges(toy_data):
    """The stated error is of the size of the real scatter between disjoint validation ranges."""
    tokens = reader.open_data(toy_data)
    torch.manual_seed(1)
    model = GPT(dataclasses.replace(MC, vocab_size=tokens.meta["vocab_size"]))
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    plain = torch.autocast("cpu", enabled=False)
    parts = []
    for i in range(0, len(tokens.val) - 641, 640):
        part = dataclasses.replace(tokens, val=tokens.val[i : i + 641])
        parts.append(evaluate(model, part, spelled(tokens), 20, DistributedEnv(), plain))
    scatter = np.std([p["val_loss"] for p in parts], ddof=1)
    assert len(parts) >= 8
    assert 0.5 < np.mean([p["val_loss_se"] for p in parts]) / scatter < 2


def test_divergence_is_a_row(toy_data, tmp_path, script):
    record = train(MC, config(toy_data, tmp_path, lr=1e20, grad_clip=1e30), quiet=True)
    assert record.status == "diverged"
    assert record.val_loss is None and record.steps <= 20
    assert record.flops == 6 * record.n_params_matmul * record.tokens
    assert "diverged" in record.summary()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"


def test_a_record_is_not_buried(toy_data, tmp_path):
    train(MC, config(toy_data, tmp_path), quiet=True)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match="holds another run .*--overwrite"):
        train(MC, config(toy_data, tmp_path, seed=1), quiet=True)
    assert (tmp_path / "run" / "run.json").read_text() == before
    assert train(MC, config(toy_data, tmp_path, seed=1, overwrite=True), quiet=True).seed == 1


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
        (["--flop_budget", "1e9", "--n_embds", "32"], "--n_embds"),
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


def torchrun(script, n, *args):
    return script("-m", "torch.distributed.run", f"--nproc_per_node={n}", "--master_port=0", "--rdzv_backend=c10d",
                  "--rdzv_endpoint=localhost:0", *args, timeout=240)  # fmt: skip


@pytest.mark.parametrize("length", [["--max_iters", 20, "--total_batch_size", 256], ["--flop_budget", 5e8]])
def test_several_processes_train_the_same_model(toy_data, tmp_path, script, length):
    """With a batch over all processes: --total_batch_size, or the rule's, here of 4 sequences."""
    flags = ["train.py", *FLAGS, *length, "--data_dir", toy_data, "--val_tokens", 2048, "--dtype", "float32",
             "--device", "cpu", "--log_every", 1]  # fmt: skip
    alone = script(*flags, "--out_dir", tmp_path / "one")
    shared = torchrun(script, 2, *flags, "--out_dir", tmp_path / "many")
    assert alone.returncode == 0 and shared.returncode == 0, alone.stderr + shared.stderr
    one, many = (json.loads((tmp_path / d / "run.json").read_text()) for d in ("one", "many"))
    assert many["world_size"] == 2 and many["run_id"] == one["run_id"]
    assert many["batch_size"] == one["batch_size"] / 2 and many["lr"] == one["lr"]
    assert abs(many["val_loss"] - one["val_loss"]) < 1e-5
    curves = [[json.loads(x)["loss"] for x in open(tmp_path / d / "log.jsonl")] for d in ("one", "many")]
    assert np.abs(np.subtract(*curves)).max() < 1e-4
    last = f"step {one['steps']:05d}/{one['steps']:05d}"
    assert shared.stdout.count(last) == 1, "rank 0 alone prints"


@pytest.mark.slow
def test_two_nodes(toy_data, tmp_path, script):
    """Two torchrun agents, as on two machines, that meet at an address: the model that one process trains."""
    flags = ["train.py", *FLAGS, "--max_iters", 20, "--total_batch_size", 256, "--data_dir", toy_data, "--val_tokens",
             2048, "--dtype", "float32", "--device", "cpu", "--log_every", 1]  # fmt: skip
    alone = script(*flags, "--out_dir", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    agent = "-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --rdzv_id=7 --rdzv_backend=c10d".split()
    node = [sys.executable, *agent, f"--rdzv_endpoint=127.0.0.1:{port}", *flags, "--out_dir", tmp_path / "two"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict(
        cwd=Path(train_module.__file__).parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    nodes = [subprocess.Popen([*map(str, node)], **pipes) for _ in range(2)]
    said = [n.communicate(timeout=240)[0] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], said
    one, two = (json.loads((tmp_path / d / "run.json").read_text()) for d in ("one", "two"))
    assert two["world_size"] == 2 and two["run_id"] == one["run_id"]
    curves = [[json.loads(x)["loss"] for x in open(tmp_path / d / "log.jsonl")] for d in ("one", "two")]
    assert np.abs(np.subtract(*curves)).max() < 1e-5
    assert sum(text.count("step 00020/00020") for text in said) == 1, "rank 0 alone prints"


def test_batch_size_is_per_process(toy_data, tmp_path, script):
    flags = ["train.py", *FLAGS, "--max_iters", 10, "--batch_size", 4, "--lr", 0.01, "--data_dir", toy_data,
             "--val_tokens", 2048, "--device", "cpu", "--out_dir", tmp_path / "two"]  # fmt: skip
    done = torchrun(script, 2, *flags)
    assert done.returncode == 0, done.stderr
    record = RunRecord(**json.loads((tmp_path / "two" / "run.json").read_text()))
    assert record.tokens_per_step == 2 * 4 * 32
    assert record.lr == pytest.approx(0.01 * math.sqrt(2))
    assert done.stdout.count("on 2 processes the peak lr goes from 0.01 to 0.0141") == 1


def test_mistake_under_torchrun_is_said_once(toy_data, script):
    done = torchrun(script, 2, "train.py", "--flop_budget", 0, "--data_dir", toy_data)
    assert done.returncode != 0
    assert done.stderr.count("train.py: error:") == 1


# ----- a pin on the numbers -----


def test_golden_loss(toy_data, tmp_path):
    """A 20-step run, pinned: a change that moves it changes every law, and must raise record.TRAIN_VERSION."""
    torch.set_num_threads(1)
    record = train(MC, config(toy_data, tmp_path), quiet=True)
    assert record.val_loss == pytest.approx(GOLDEN, abs=5e-4)


GOLDEN = 2.17683
