"""Units of headers and --units, and questions where numbers can't be what they seem."""

import numpy as np
import pytest
from helpers import isoflop_runs, write_runs

from isoflop import laws
from isoflop.fit.table import read
from isoflop.fit.units import far_targets, parse_units
from isoflop.options import UserError

N, D, C, LOSS = isoflop_runs(laws.PUBLISHED["besiroglu"], budgets=(1e18, 3e18, 1e19))


def warnings_of(table):
    return {row["code"]: row["message"] for row in table.info["warnings"]}


@pytest.mark.parametrize(
    ("columns", "units"),
    [
        ({"Params (M)": N / 1e6, "tokens_B": D / 1e9, "compute (PF-days)": C / 8.64e19}, ()),
        ({"n_millions": N / 1e6, "D [B]": D / 1e9, "eflops": C / 1e18}, ()),
        ({"params": N / 1e6, "tokens": D / 1e9, "flops": C / 1e21}, ("n=M", "d=billion", "c=ZFLOPs")),
        ({"Params (K)": N / 1e6, "tokens": D / 1e9, "flops": C}, ("n=1e6", "d=1e9")),  # the flag goes before the header
    ],
)
def test_units_are_read(tmp_path, columns, units):
    table = read([write_runs(tmp_path / "r.csv", columns | {"loss": LOSS})], units=units)
    np.testing.assert_allclose(np.sort(table.n), np.sort(N), rtol=1e-12)
    np.testing.assert_allclose(np.sort(table.d), np.sort(D), rtol=1e-12)
    np.testing.assert_allclose(np.sort(table.c), np.sort(C), rtol=1e-12)
    assert not table.info["warnings"] and any("N times 1e+06" in note for note in table.info["notes"])


def test_cells_with_a_unit_need_none_from_the_header(tmp_path):
    cells = [f"{n / 1e6}M" for n in N]
    table = read([write_runs(tmp_path / "r.csv", {"Params (M)": cells, "tokens": D, "loss": LOSS})])
    np.testing.assert_allclose(np.sort(table.n), np.sort(N), rtol=1e-12)


def test_perplexity_is_taken_as_its_logarithm(tmp_path):
    columns = {"params": N, "tokens": D}
    table = read([write_runs(tmp_path / "r.csv", columns | {"val_ppl": [f"{v} ± {0.01 * v}" for v in np.exp(LOSS)]})])
    np.testing.assert_allclose(np.sort(table.loss), np.sort(LOSS), rtol=1e-9)
    np.testing.assert_allclose(table.loss_se, 0.01)
    assert table.info["loss_unit"] == "nats per token" and any("perplexity" in note for note in table.info["notes"])
    path = write_runs(tmp_path / "s.csv", columns | {"loss": np.exp(LOSS)})
    assert "--units loss=perplexity" in warnings_of(read([path]))["loss_unit"]
    np.testing.assert_allclose(np.sort(read([path], units=("loss=perplexity",)).loss), np.sort(LOSS), rtol=1e-9)


def test_the_loss_keeps_its_own_unit(tmp_path):
    for name, unit in {"val_bpb": "bits per byte", "bits_per_character": "bits per character"}.items():
        table = read([write_runs(tmp_path / "r.csv", {"params": N, "tokens": D, name: LOSS})])
        assert table.info["loss_unit"] == unit
    other = write_runs(tmp_path / "s.csv", {"params": N, "tokens": D, "loss": LOSS})
    with pytest.raises(UserError, match="loss is in nats per token, that of the file before in bits per character"):
        read([str(tmp_path / "r.csv"), other])


@pytest.mark.parametrize(
    ("scales", "says"),
    [
        ((1e6, 1e9, None), "N in millions and D in billions? then --units n=M d=B"),
        ((1e6, 1e9, 1.0), "N in millions and D in billions? then --units n=M d=B"),
        ((1e6, 1e6, None), "N in millions and D in millions? then --units n=M d=M"),
        ((1.0, 1e9, 1.0), "D in billions? then --units d=B"),
        ((1.0, 1.0, 1e18), "C in EFLOPs? then --units c=EFLOPs"),
        ((1.0, 1.0, 8.64e19), "C in PF-days? then --units c=PF-days"),
        ((1.0, 1.0, 1e5), "name the units with --units"),
    ],
)
def test_what_cannot_be_is_asked_about_and_the_hint_helps(tmp_path, scales, says):
    columns = {"params": N / scales[0], "tokens": D / scales[1], "loss": LOSS}
    if scales[2]:
        columns["flops"] = C / scales[2]
    path = write_runs(tmp_path / "r.csv", columns)
    message = warnings_of(read([path]))["units"]
    assert says in message
    if "then" in says:
        helped = read([path], units=says.split("--units ")[1].split())
        assert not helped.info["warnings"] and np.allclose(np.sort(helped.n), np.sort(N))


def test_real_runs_are_not_asked_about(tmp_path):
    small = write_runs(tmp_path / "r.csv", {"params": [15e3, 2e4, 1e5], "tokens": [2e5, 1e6, 3e6], "loss": [6, 5, 4]})
    assert read([small]).info["warnings"] == []


def test_tokens_per_parameter_that_cannot_be(tmp_path):
    path = write_runs(tmp_path / "r.csv", {"params": N * 1e12, "tokens": D, "loss": LOSS})
    assert "D/N is" in warnings_of(read([path]))["units"]


def test_far_targets():
    assert far_targets((1e22, 1e24), 1e21, "--predict_flops") == ""
    assert "1e22 is 1e18 times the largest C of the runs, 1e4" in far_targets((1e22,), 1e4, "--predict_flops")


@pytest.mark.parametrize("word", ["n", "x=M", "d=apples", "loss=apples"])
def test_mistaken_units(word):
    with pytest.raises(UserError, match=f"--units {word}: "):
        parse_units((word,))


def test_our_own_small_runs_are_not_questioned(tmp_path):
    """A column n_params_matmul is in parameters, toy models too; another column is asked about."""
    rows = [f"{n},{d},{4 + 1 / n + 1 / d}" for n in (300, 400, 500) for d in (900, 1000, 1200)]
    for name, asked in (("n_params_matmul", False), ("params", True)):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([f"{name},tokens,val_loss", *rows]) + "\n")
        assert ("units" in warnings_of(read([str(path)]))) == asked
