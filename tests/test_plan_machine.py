"""isoflop/plan/machine.py: time is exact FLOPs over speed, money is hours times price, and a micro-batch fits."""

import json

import pytest
from helpers import FOUR_RUNS, plan_answer

import plan
from bench.bench_memory import run
from isoflop.config import ModelConfig, configure
from isoflop.data import reader
from isoflop.flops import flops_per_token_exact
from isoflop.options import UserError
from isoflop.plan.config import read_configs
from isoflop.plan.machine import Machine, make_machine, read_speed
from isoflop.plan.memory import estimate_memory

RECORD = {
    "status": "ok", "n_params_matmul": 10, "flops_exact": 6e9, "train_s": 2.0, "world_size": 3, "device": "cpu",
    "run_id": "abc",
}  # fmt: skip


def test_time_is_exact_flops_over_the_speed_of_a_run(toy_data, tmp_path):
    cfg = ModelConfig(1, 32, vocab_size=reader.open_data(toy_data).meta["vocab_size"])
    record = run(cfg, toy_data, tmp_path, max_iters=12, batch_size=4, val_tokens=2**11)
    machine = make_machine(measured=str(tmp_path / "run.json"))
    assert machine.bill(cfg, record.tokens).seconds == pytest.approx(record.train_s)
    assert record.run_id in machine.speed.source
    three = make_machine(n_gpus=3, measured=str(tmp_path / "run.json"))
    assert three.speed.flops_per_s == 3 * machine.speed.flops_per_s


def test_the_largest_finished_run_of_a_csv_gives_the_speed(tmp_path):
    rows = ["status,n_params_matmul,flops_exact,train_s,world_size,device,run_id", "ok,10,6e9,2,3,cpu,a",
            "ok,20,8e9,2,1,cpu,b", "failed,30,,,1,cpu,c"]  # fmt: skip
    (tmp_path / "runs.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    speed = read_speed(tmp_path / "runs.csv", 2)
    assert speed.flops_per_s == 2 * 4e9 and "run b" in speed.source


def test_time_and_money_by_hand():
    cfg = configure("gpt2")
    machine = make_machine("a100", 8, mfu=0.5, price_per_hour=1.5)
    assert machine.speed.flops_per_s == 8 * 0.5 * 312e12 and "assumed" not in machine.speed.source
    bill = machine.bill(cfg, 1e9)
    assert bill.seconds == flops_per_token_exact(cfg) * 1e9 / (4 * 312e12)
    assert bill.gpu_hours == bill.seconds * 8 / 3600 and bill.dollars == bill.gpu_hours * 1.5
    assert "assumed" in make_machine("a100").speed.source and make_machine("a100").price_per_hour == 1.79
    unknown = make_machine().bill(cfg, 1e9)
    assert (unknown.seconds, unknown.dollars, unknown.gpu_hours) == (None, None, None)
    assert make_machine(peak_flops=1e15, mfu=0.5).speed.flops_per_s == 5e14


def test_the_micro_batch_is_the_largest_that_fits():
    cfg = configure("gpt2")
    needed = {rows: estimate_memory(cfg, rows, n_gpus=4) for rows in (1, 2, 4, 8, 9)}
    roomy = Machine(n_gpus=4, memory=needed[9].peak)
    assert roomy.find_micro_batch(cfg, 9) == (9, False)
    smaller = Machine(n_gpus=4, memory=(needed[4].peak + needed[8].peak) / 2)
    assert smaller.find_micro_batch(cfg, 9) == (4, False)
    assert smaller.memory_of(cfg, 4).fits and not smaller.memory_of(cfg, 8).fits
    sharded = Machine(n_gpus=4, memory=needed[1].peak_shard)
    assert sharded.find_micro_batch(cfg, 9) == (1, True) and not sharded.memory_of(cfg, 1).fits
    assert Machine(memory=1e6).find_micro_batch(cfg, 9) == (1, False)
    assert Machine().find_micro_batch(cfg, 9) == (9, False)


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "3", '"text"', "[" * 100_000, json.dumps({"status": "ok"}), json.dumps(RECORD | {"train_s": 0}),
     json.dumps(RECORD | {"flops_exact": [1]}), json.dumps(RECORD | {"train_s": float("nan")}),
     json.dumps(RECORD | {"world_size": None}), "1" * 5000],
)  # fmt: skip
def test_a_file_without_a_finished_run_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="--measured .* holds no finished run") as refused:
        read_speed(tmp_path / "run.json", 1)
    assert "\n" not in str(refused.value)


def test_a_good_record_is_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    assert read_speed(tmp_path / "run.json", 1).flops_per_s == 1e9


def test_mistakes_name_the_flag(tmp_path):
    with pytest.raises(UserError, match="--gpu h300 is unknown; known: a100-40gb"):
        make_machine("h300")
    with pytest.raises(UserError, match="--mfu 1.5 must be above 0 and at most 1"):
        make_machine("h100", mfu=1.5)
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="--measured .* holds no finished run"):
            read_speed(path, 1)


def test_a_card_that_is_not_in_the_table_with_a_peak(capsys):
    """The way out that the refusal names works."""
    flags = "--gpu t4 --flop_budget 1e17 --json".split()
    with pytest.raises(SystemExit):
        plan.main(flags)
    assert "or give --peak_flops" in capsys.readouterr().err
    assert plan.main([*flags, "--peak_flops", "65e12"]) == 0
    machine = make_machine("t4", peak_flops=65e12)
    assert machine.gpu == "t4" and machine.memory is None and "65.0 TFLOP/s" in machine.speed.source
    assert make_machine("a100-80gb").memory == 80e9


def test_a_configuration_states_its_own_speed(capsys):
    """Four published runs on two A6000: MFU 24.5% of one, 8,500 tokens/s of another, the rest as assumed."""
    words = [word.replace("'LLaMA-3 2.2B'", "'LLaMA-3 2.2B' mfu=0.245") for word in FOUR_RUNS]
    words = [word.replace("'LLaMA-2 1.36B'", "'LLaMA-2 1.36B' tokens_per_s=11500") for word in words]
    first, second, _, fourth = plan_answer(*words, "--gpu", "a6000", "--n_gpus", 2)["configurations"]
    assert fourth["time"]["mfu"] == pytest.approx(0.245) and second["time"]["tokens_per_s"] == pytest.approx(11500)
    assert second["time"]["seconds"] == pytest.approx(second["run"]["tokens"] / 11500)
    assert first["time"]["mfu"] == pytest.approx(0.4) and "assumed" in first["time"]["source"]
    for one in (first, second, fourth):
        flops = one["flops"]["per_token_exact"] * one["time"]["tokens_per_s"]
        assert one["time"]["mfu"] == pytest.approx(flops / (2 * 154.8e12))
    assert plan.main([*words, "--gpu", "a6000", "--n_gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert "24.5%" in out and "speed of LLaMA-3 2.2B: 24.5% of 2 x 154.8 TFLOP/s, as stated" in out


def test_a_speed_without_a_device_or_two_speeds_are_one_line():
    cfg = ModelConfig()
    assert make_machine().stated(cfg, tokens_per_s=1000.0).bill(cfg, 1e6).seconds == pytest.approx(1000)
    assert make_machine().stated(cfg, tokens_per_s=1000.0).bill(cfg, 1e6).mfu is None
    with pytest.raises(UserError, match="mfu=0.3 is a share of a peak: add --gpu NAME"):
        make_machine().stated(cfg, mfu=0.3)
    with pytest.raises(UserError, match="mfu and tokens_per_s all give the speed"):
        read_configs(["n_layer=2 mfu=0.3 tokens_per_s=1000"])
