"""Which column is what: usual names, columns that hold numbers, sums, and selections."""

import pytest

from isoflop.fit.columns import find_columns, find_sums, parse_where
from isoflop.fit.names import candidates, column, loss_unit, unit_in
from isoflop.fit.table import read
from isoflop.options import UserError

# ----- columns -----


@pytest.mark.parametrize(
    "names",
    [
        ("n_params", "tokens", "flops", "val_loss"),
        ("params", "D", "compute_budget", "final_loss"),
        ("Model Size", "training_tokens", "Training FLOP", "loss"),
        ("N", "tokens", "C", "L"),
    ],
)
def test_usual_names_are_found(names):
    found = find_columns(list(names), {}, "runs.csv")
    assert [found[role] for role in ("n", "d", "c", "loss")] == [0, 1, 2, 3]


def test_the_first_of_several_usual_names_wins():
    header = ["n_params", "n_params_matmul", "tokens", "loss", "val_loss", "flop_budget", "other"]
    found = find_columns(header, {"d": "other"}, "runs.csv")
    assert (found["n"], found["d"], found["loss"], found["c"]) == (1, 6, 4, 5)
    assert found["=flop_budget"] == 5 and found["=n_params"] == 0 and found["=n_params_matmul"] == 1


def test_missing_columns_are_listed():
    words = "needs columns for a loss .* and two of N .*; its columns are a, b; name them with --n_col"
    with pytest.raises(UserError, match=words):
        find_columns(["a", "b"], {}, "runs.csv")
    with pytest.raises(UserError, match="--n_col width: no such column in runs.csv; it has N, D, loss"):
        find_columns(["N", "D", "loss"], {"n": "width"}, "runs.csv")
    many = [f"c{i}" for i in range(30)]
    with pytest.raises(UserError, match="c19 ...; name"):
        find_columns(many, {}, "runs.csv")
    assert "loss" not in find_columns(["N", "D"], {}, "runs.csv", need_loss=False)


# ----- selections -----


@pytest.mark.parametrize(
    ("text", "cells", "kept"),
    [
        ("kind == adamw", ["adamw", " muon", "adamw "], [True, False, True]),
        ("kind = 'adamw'", ["adamw", "muon", ""], [True, False, False]),
        ("kind != adamw", ["adamw", "muon", None], [False, True, True]),
        ("depth >= 3", ["2", "3", "x"], [False, True, False]),
        ("depth<1e3", ["999", "1000", ""], [True, False, False]),
        ("a b > -1", [0, -2, 5], [True, False, True]),
    ],
)
def test_selections(text, cells, kept):
    column, test = parse_where(text)
    assert column == text.split("=")[0].split("!")[0].split(">")[0].split("<")[0].strip()
    assert test(cells).tolist() == kept


@pytest.mark.parametrize(("text", "says"), [("val_loss", "expected 'column op value'"), ("a < b", "is not a number")])
def test_mistaken_selections(text, says):
    with pytest.raises(UserError, match=says):
        parse_where(text)


def test_selections_read_numbers_as_people_write_them():
    _, test = parse_where("size >= 1.3B")
    assert test(["125M", "1.3B", "2e9", ""]).tolist() == [False, True, True, False]
    _, test = parse_where("size == 125M")
    assert test(["125M", "1.25e8", "126M"]).tolist() == [True, True, False]


# ----- names from elsewhere -----

FROM_ELSEWHERE = {
    "nanochat": "flops_budget,depth,model_dim,params_wte,params_value_embeds,params_lm_head,params_transformer,"
    "params_scalars,params_total,num_iterations,tokens_trained,val_bpb,core_score,train_time_sec",
    "OLMo": "throughput/total_tokens,throughput/total_training_Gflops,eval/c4_en-validation/CrossEntropyLoss,"
    "optim/learning_rate_group0,train/CrossEntropyLoss",
    "marin": "run,parameter_count,throughput/total_tokens,throughput/total_gflops,eval/loss,train/loss",
    "Step Law": "h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,exp_name,D,N,D/N",
    "W&B": "Name,State,Runtime,config.n_params,_step,summary.tokens,val/loss",
    "Trainer": "num_parameters,train/num_input_tokens_seen,train/total_flos,eval/loss",
    "datablations": "index,data,epochs,token_num,openLM_loss,num_params,model_args,tokens_per_epoch,flops",
}
TAKEN = {
    "nanochat": ("params_total", "tokens_trained", "flops_budget", "val_bpb"),
    "OLMo": (None, "throughput/total_tokens", "throughput/total_training_Gflops",
             "eval/c4_en-validation/CrossEntropyLoss"),
    "marin": ("parameter_count", "throughput/total_tokens", "throughput/total_gflops", "eval/loss"),
    "Step Law": ("N", "D", None, "loss"),
    "W&B": ("config.n_params", "summary.tokens", None, "val/loss"),
    "Trainer": ("num_parameters", "train/num_input_tokens_seen", "train/total_flos", "eval/loss"),
    "datablations": ("num_params", "token_num", "flops", "openLM_loss"),
}  # fmt: skip


@pytest.mark.parametrize("origin", FROM_ELSEWHERE)
def test_names_from_elsewhere_need_no_flags(origin):
    header = FROM_ELSEWHERE[origin].split(",")
    found = find_columns(header, {}, "runs.csv")
    taken = tuple(header[found[role]] if role in found else None for role in ("n", "d", "c", "loss"))
    assert taken == TAKEN[origin]


def test_nanochat_counts_transformer_and_head(tmp_path):
    cells = [
        ["1e18", "12", "768", "100", "5", str(7 * k), str(9 * k), "1", str(120 * k), "10", "1e9", "0.9", "0.2", "60"]
        for k in (10**6, 10**7)
    ]
    (tmp_path / "r.csv").write_text("\n".join([FROM_ELSEWHERE["nanochat"], *map(",".join, cells)]))
    table = read([str(tmp_path / "r.csv")])
    assert table.n.tolist() == [16e6, 16e7] and table.info["n_convention"] == "params_transformer + params_lm_head"
    assert table.info["loss_unit"] == "bits per byte"


def test_sums_and_differences(tmp_path):
    (tmp_path / "r.csv").write_text("transformer,lm_head,wte,tokens,loss\n1e6,2e5,3e5,1e8,4\n2e6,4e5,6e5,2e8,3\n")
    path = str(tmp_path / "r.csv")
    assert read([path], {"n": "transformer + lm_head"}).n.tolist() == [1.2e6, 2.4e6]
    assert read([path], {"n": "transformer + lm_head - wte"}).n.tolist() == [0.9e6, 1.8e6]
    with pytest.raises(UserError, match="--n_col head: no such column"):
        find_sums(["transformer", "lm_head"], {"n": "transformer + head"}, "r.csv")


def test_tokens_per_parameter_stand_in_for_tokens(tmp_path):
    (tmp_path / "r.csv").write_text("params,tokens_per_param,loss\n1e6,20,4\n2e6,40,3\n")
    table = read([str(tmp_path / "r.csv")])
    assert table.d.tolist() == [2e7, 8e7] and table.c.tolist() == [1.2e14, 9.6e14]
    (tmp_path / "r.csv").write_text("tokens,D/N,loss\n2e7,20,4\n8e7,40,3\n")
    assert read([str(tmp_path / "r.csv")]).n.tolist() == [1e6, 2e6]


def test_no_header(tmp_path):
    (tmp_path / "r.csv").write_text("1e6,1e8,3\n2e6,1e8,2.9\n")
    with pytest.raises(UserError, match="has no header line: write the names of the columns above"):
        read([str(tmp_path / "r.csv")])


def test_a_column_of_numbers_goes_before_one_of_words(tmp_path):
    (tmp_path / "r.csv").write_text("params,num_params,tokens,loss\nsmall,1e6,1e8,4\nlarge,2e6,2e8,3\n")
    table = read([str(tmp_path / "r.csv")])
    assert table.n.tolist() == [1e6, 2e6]
    assert "params holds no numbers: N is taken from num_params" in table.info["notes"]


def test_a_named_column_needs_no_exact_case():
    assert column(["Val Loss", "N"], "val_loss") == 0 and column(["a.lr", "b.lr"], "lr") is None
    assert column(["config.lr"], "lr") == 0 and column(["x"], "y") is None


def test_units_of_names():
    names = {
        ("Params (M)", "n"): 1e6, ("tokens_B", "d"): 1e9, ("D (billion tokens)", "d"): 1e9, ("N [millions]", "n"): 1e6,
        ("compute (PF-days)", "c"): 8.64e19, ("compute_pf_days", "c"): 8.64e19, ("total_gflops", "c"): 1e9,
        ("C (x1e20)", "c"): 1e20, ("flops_1e18", "c"): 1e18, ("n_params", "n"): 1.0, ("zflops", "c"): 1e21,
    }  # fmt: skip
    for (name, role), factor in names.items():
        assert unit_in(name, role) == pytest.approx(factor) and candidates(role, [name]) == [0]
    units = {
        "val_ppl": "perplexity",
        "val_bpb": "bits per byte",
        "Loss (bits)": "bits per token",
        "loss": "nats per token",
    }
    assert {name: loss_unit(name) for name in units} == units
