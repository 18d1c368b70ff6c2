"""
The laws of fit.py --law_of hparams, data and task against known ones, and against what public runs' authors publish.

    python bench/bench_laws.py --tables 60
    python bench/bench_laws.py --tables 0 --step_law ../shared/cases/tables/lr_batch_sweep.csv
    python bench/bench_laws.py --tables 0 --olmo OLMo-ladder --gadre scaling    # clones of allenai's, mlfoundations'

Simulated tables of runs: how often the 95% intervals hold the truth. Public runs: ours and the published numbers.
"""

import argparse
import csv
import json
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from isoflop.display import estimate, sig, text_table  # noqa: E402
from isoflop.fit.data_law import fit_data_law, from_letters  # noqa: E402
from isoflop.fit.hparam_law import cells_of, fit_hparams  # noqa: E402
from isoflop.fit.hparam_page import WANTED, batch_of  # noqa: E402
from isoflop.fit.table import read  # noqa: E402
from isoflop.fit.task_law import fit_task  # noqa: E402


def inside(value, ends):
    return ends[0] <= value <= ends[1]


# ----- learning rate and batch: a known law -----

LR, BATCH = (1.79, -0.713, 0.307), (0.58, 0.571)  # Step Law: Li et al. 2025, arXiv:2503.04715
CURVATURE = np.array([[0.012, -0.005], [-0.005, 0.010]])  # of ln loss, as in their runs
CUBE = 0.0015  # of ln loss by (ln lr)^3: the side of high rates is steeper
CELLS = [(n, d) for n in (1e8, 3e8, 1e9) for d in (2e9, 8e9, 3e10)]


def best_setting(n, d):
    return np.log([LR[0] * n ** LR[1] * d ** LR[2], BATCH[0] * d ** BATCH[1]])


def hparam_runs(noise, cube, seed):
    """N, D, C, loss, lr, batch of 9 cells of 7 x 6 runs, the grid up to sqrt 2 off the optimum."""
    rng, rows = np.random.default_rng(seed), []
    for n, d in CELLS:
        centre = best_setting(n, d) + np.log(2) * rng.uniform(-0.5, 0.5, 2)
        for i in range(7):
            for j in range(6):
                x = centre + np.log(2) * np.array([i - 3, j - 2.5])
                off = x - best_setting(n, d)
                z = np.log(1.7 + 400 / n**0.34 + 400 / d**0.28) + 0.5 * off @ CURVATURE @ off + cube * off[0] ** 3
                rows.append((n, d, 6 * n * d, np.exp(z + noise * rng.standard_normal()), *np.exp(x)))
    return np.array(rows).T


def hparam_coverage(seeds):
    out = []
    for cube in (0.0, CUBE):
        for noise in (0.0005, 0.001, 0.002):
            held = []
            for seed in seeds:
                found = fit_hparams(*hparam_runs(noise, cube, seed), seed=seed)
                lr = next(form for form in found.lr_forms if form.letters == "ND")
                batch = next(form for form in found.batch_forms if form.letters == "D")
                one = [inside(LR[0], lr.k_ci95), inside(LR[1], lr.ci95["N"]), inside(LR[2], lr.ci95["D"])]
                held.append([*one, inside(BATCH[0], batch.k_ci95), inside(BATCH[1], batch.ci95["D"])])
            shape = "cubic" if cube else "quadratic"
            out.append(["hparams", f"{shape}, noise {noise:.2%}", *_shares(held, ("k", "N", "D", "k_B", "D_B"))])
    return out


def _shares(held, names):
    """The share of all intervals that hold the truth, and each letter's."""
    held = np.array(held, float)
    each = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, held.mean(0), strict=True))
    return f"{held.mean():.3f}", each


# ----- repeated data: a known law -----

BASE = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
DATA = {
    "excess": BASE | {"K": 1e-4 * 3e8**0.8 / 3e8**1.0, "kappa": 1.0, "gamma": 0.8},
    "effective": BASE | {"R_D": 15.4},
}
DATA["excess"]["K"] = 0.01 / (1e8 / 1e9**0.8)


def data_coverage(seeds):
    grid = np.meshgrid([2e7, 6e7, 2e8, 6e8], [1e8, 4e8, 1.6e9, 6.4e9], 2.0 ** np.arange(6), indexing="ij")
    n, u, epochs = (v.ravel() for v in grid)
    d, out = u * epochs, []
    for form, letters in DATA.items():
        truth = from_letters(form, letters).loss(n, d, u)
        held = []
        for seed in seeds:
            loss = truth * np.exp(0.005 * np.random.default_rng(seed).standard_normal(len(n)))
            fit = fit_data_law(n, d, u, loss, form=form, resamples=200, seed=seed)
            held.append([inside(value, fit.ci(letter)) for letter, value in letters.items()])
        out.append(["data", f"{form}, 96 runs, noise 0.50%", *_shares(held, letters)])
    return out


# ----- tasks: a known law -----


def task_loss(n, d):
    return 0.4 + 40.0 / n**0.25 + 60.0 / d**0.25


CURVES = {
    "sigmoid": lambda x: 0.25 + 0.72 / (1.0 + np.exp(6.0 * (x - 0.85))),
    "exponential": lambda x: 0.25 + 3.0 * np.exp(-3.0 * x),
}
LADDER = [(n, 20.0 * m * n) for n in (1.9e8, 3.7e8, 7.6e8, 1.28e9) for m in (1, 2, 5, 10)]  # as OLMo's
AHEAD = [(3.2e9, 64e9), (7e9, 1.4e11), (7e9, 4e12)]


def drawn_law(form, rng):
    """(loss of N and D, score of the loss): letters drawn about as the weak priors of task_law.py have them, laws kept
    whose floor is .3 to .98 of the least loss, whose best runs are above chance, and which end below 1."""
    n, d = np.array(LADDER).T
    middle = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    while True:
        alpha, beta = np.maximum(0.35 + 0.15 * rng.standard_normal(2), 0.05)
        a, b = 0.2 * np.exp(1.5 * rng.standard_normal(2))
        floor = 0.6 * np.exp(0.5 * rng.standard_normal())
        loss = partial(_sum_of_powers, floor, (a, alpha, middle[0]), (b, beta, middle[1]))
        x = loss(n, d)
        width, centre, low = np.ptp(x), np.median(x), 0.25 + 0.02 * rng.standard_normal()
        if form == "sigmoid":
            top = min(0.97 + 0.05 * rng.standard_normal(), 1.0)
            k, x0 = 3 / width * np.exp(0.7 * rng.standard_normal()), centre + 1.5 * width * rng.standard_normal()
            score = partial(_sigmoid, low, top, k, x0)
        else:
            lift, gamma = 0.25 * np.exp(rng.standard_normal()), 2 / width * np.exp(0.7 * rng.standard_normal())
            score = partial(_exponential, low, lift, gamma, centre)
        y = score(x)
        told = np.sort(y)[-4:].mean() > 0.29 and np.ptp(y) > 0.03
        if told and 0.3 < floor / x.min() < 0.98 and score(loss(*AHEAD[-1])) <= 1.0:
            return loss, score


def _sum_of_powers(floor, of_n, of_d, n, d):
    (a, alpha, n0), (b, beta, d0) = of_n, of_d
    return floor + a * (n / n0) ** -alpha + b * (d / d0) ** -beta


def _sigmoid(low, top, k, x0, x):
    return low + (top - low) / (1.0 + np.exp(np.clip(k * (x - x0), -500, 500)))


def _exponential(low, lift, gamma, centre, x):
    return low + lift * np.exp(-gamma * (x - centre))


def task_coverage(seeds):
    """Laws drawn as the priors have them, whose intervals should hold 95%; and one law near the middle of every prior,
    whose intervals hold more where the runs' noise leaves much to the priors."""
    out, said = [], [f"{end}, {c:.0f}x C" for c in _times() for end in ("ci95", "pi95")]
    for kind in ("drawn", "one"):
        for form in CURVES:
            for noise in (0.002, 0.005, 0.01):
                held = []
                for seed in seeds:
                    loss, score = task_loss, CURVES[form]
                    if kind == "drawn":
                        loss, score = drawn_law(form, np.random.default_rng([seed, 1]))
                    one = _task_table(loss, score, noise, seed)
                    if one:
                        held.append(one)
                label = f"{kind} {form}, 16 runs, noise {noise:.2%}, {len(held)} answered"
                out.append(["task", label, *_shares(held, said)])
    return out


def _task_table(loss, score, noise, seed):
    """Whether the intervals of one table hold the score of the law and of a new run, at AHEAD; [] where refused."""
    n, d = np.array(LADDER).T
    rng, one = np.random.default_rng(seed), []
    x = loss(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    y = np.minimum(score(x) + noise * rng.standard_normal(len(n)), 1.0)
    fit = fit_task("task", n, d, 6 * n * d, x, y, 0.25, seed=seed)
    if fit.refused:
        return one
    for far in AHEAD:
        found, truth = fit.predict(*far), score(loss(*far))
        new = score(loss(*far) * np.exp(noise * rng.standard_normal())) + noise * rng.standard_normal()
        one += [inside(truth, found.ci95), inside(min(new, 1.0), found.pi95)]
    return one


def _times():
    largest = max(n * d for n, d in LADDER)
    return [n * d / largest for n, d in AHEAD]


# ----- public runs -----


def three(x):
    return sig(x, 3)


def least_squares(columns, y):
    """Coefficients of ln y on columns and a constant."""
    x = np.stack([np.ones(len(y)), *columns], 1)
    return np.linalg.lstsq(x, y, rcond=None)[0]


def step_law(path):
    """Ours on Step Law's dense runs, and what their own released code gives there: all runs within .25% of the least
    smoothed loss of their (N, D), least squares, runs (theirs) or whole (N, D) (ours) resampled."""
    table = read([str(path)], {"loss": "smooth loss"}, same_nd="all", settings=WANTED)
    batch, lr = batch_of(table)[0], table.settings["lr"]
    cells, rng = cells_of(table.n, table.d), np.random.default_rng(0)
    near = [rows[table.loss[rows] < 1.0025 * table.loss[rows].min()] for rows in cells]
    ln_n, ln_d, ln_lr, ln_b = (np.log(v) for v in (table.n, table.d, lr, batch))

    def fit(rows):
        rate, size = least_squares([ln_n[rows], ln_d[rows]], ln_lr[rows]), least_squares([ln_d[rows]], ln_b[rows])
        return [np.exp(rate[0]), rate[1], rate[2], np.exp(size[0]), size[1]]

    every = np.concatenate(near)
    by_runs = [fit(rng.choice(every, len(every))) for _ in range(1000)]
    by_cells = []
    for _ in range(1000):
        drawn = rng.integers(0, len(near), len(near))
        by_cells.append(fit(np.concatenate([near[i] for i in drawn])))
    found = fit_hparams(table.n, table.d, table.c, table.loss, lr, batch)
    form, size = found.lr, next(form for form in found.batch_forms if form.letters == "D")
    ours = [form.k, *form.exponents.values(), size.k, size.exponents["D"]]
    ends = [form.k_ci95, *form.ci95.values(), size.k_ci95, size.ci95["D"]]
    rows = [["published", *(three(v) for v in (*LR, *BATCH))]]
    point = fit(every)
    for name, draws in (("their code, runs resampled", by_runs), ("the same, (N, D) resampled", by_cells)):
        theirs = np.percentile(draws, (2.5, 97.5), axis=0).T
        rows.append([name, *(estimate(v, pair, three) for v, pair in zip(point, theirs, strict=True))])
    rows.append(["ours", *(estimate(v, pair, three) for v, pair in zip(ours, ends, strict=True))])
    print(text_table(["", "lr factor", "N", "D", "B factor", "D"], rows))


MMLU = {"stem": 0.215, "humanities": 0.335, "social_sciences": 0.219, "other": 0.231}  # weights of their own mean
OLMO_CHANCE = {"piqa_val": 0.5, "csqa_val": 0.2, "socialiqa_val": 1 / 3}


def olmo(folder):
    """Scores of OLMo 2 7B and 13B from the ladder's 16 runs, beside their published predictions for 13B."""
    paper = Path(folder) / "src" / "scripts" / "paper"
    published = {}
    with open(paper / "figures" / "chained_main.csv") as f:
        for row in csv.DictReader(f):
            published[row["Task"].removesuffix("_5shot")] = float(row["Pred"]), float(row["Actual"])
    config = json.loads((paper / "configs" / "final.json").read_text())
    rows, errors = [], []
    for task, (theirs, _) in published.items():
        parts = {task: 1.0}
        if task.startswith("mmlu"):
            parts = {f"mmlu_{part}_test": weight for part, weight in MMLU.items()}
        runs, ahead = [], []
        for entry in config.values():
            for path in entry["paths"]:
                last = 5 if entry["mode"] == "train" else 1  # evaluations averaged, as they do
                run = (entry["n"], *_last_of(Path(folder) / path, parts, last))
                kind = runs if entry["mode"] == "train" else ahead
                kind.append((run[0], run[1], entry["flops"] * run[1], *run[2:]))
        fit = fit_task(task, *np.array(runs).T, OLMO_CHANCE.get(task, 0.25))
        row = [task]
        for n, d, c, _, score in ahead:
            found = fit.predict(n, d, c)
            row += [f"{found.score:.3f} [{found.pi95[0]:.3f}, {found.pi95[1]:.3f}]", f"{score:.3f}"]
        rows.append([*row, f"{theirs:.3f}"])
        errors.append([abs(found.score / score - 1), abs(theirs / score - 1)])
    head = ["task", "7B-4T, pi95", "measured", "13B-5T, pi95", "measured", "published"]
    print(text_table(head, rows))
    print("mean relative error at 13B: ours {:.1%}, published {:.1%}".format(*np.mean(errors, 0)))


def _last_of(path, parts, last):
    """(tokens, bits per byte, accuracy) of a run, the mean of its last evaluations."""
    with open(path) as f:
        rows = list(csv.DictReader(f))
    end = rows[-1]
    if end.get("throughput/total_tokens"):
        tokens = float(end["throughput/total_tokens"])
    else:
        tokens = float(end["_step"]) * float(end["batch_size_in_tokens"])
    bits, score = [], []
    for row in rows[-last:]:
        bits.append(sum(w * float(row[f"eval/downstream_bpb/{k}_rc_5shot_bpb"]) for k, w in parts.items()))
        score.append(sum(w * float(row[f"eval/downstream/{k}_rc_5shot_len_norm"]) for k, w in parts.items()))
    weight = sum(parts.values())
    return tokens, np.mean(bits) / weight, np.mean(score) / weight


SUBSET = (  # the 17 tasks of Gadre et al.'s headline
    "bigbench_operators pubmed_qa_labeled hellaswag_zeroshot boolq arc_easy coqa bigbench_dyck_languages "
    "lambada_openai bigbench_novel_concepts winograd bigbench_cs_algorithms commonsense_qa bigbench_qa_wikidata "
    "hellaswag copa squad piqa"
).split()


def gadre(folder):
    """Mean error of 17 tasks of Gadre et al.'s 1.4B and 7B runs, from those up to .4B and the 1.4B of 20 tokens per
    parameter; published for RedPajama: 3.6% off at 1.4B, 640 tokens per parameter, .05% at 7B."""
    data, chance = Path(folder) / "exp_data", []
    with open(data / "eval_metadata.csv") as f:
        for row in csv.DictReader(f):
            if row["Eval Task"] in SUBSET:
                chance.append(float(row["Random baseline"]) / 100)
    rows, texts = [], {}
    for path in sorted((data / "models").glob("*.json")):
        run = json.loads(path.read_text())
        scores = json.loads((data / "evals" / f"evaluation_{path.stem}_heavy.json").read_text())["eval_metrics"]["icl"]
        loss = next(r["loss"] for r in run["results"] if r["val_data"][0].split("/")[-2] == "c4_val")
        about, mean = run["hyperparameters"], np.mean([scores[task] for task in SUBSET])
        small = about["params"] < 1e9 or (about["params"] < 5e9 and about["chinchilla_multiplier"] == 1)
        one = (about["params"], about["tokens"], 6.0 * about["params"] * about["tokens"], loss, mean)
        texts.setdefault(run["dataset_name"], ([], []))[0 if small else 1].append(one)
    for text, (runs, ahead) in texts.items():
        fit = fit_task(text, *np.array(runs).T, np.mean(chance))
        for n, d, _, _, score in ahead:
            found = fit.predict(n, d)
            error, ours = 1 - score, 1 - found.score
            ends = f"{ours:.3f} [{1 - found.pi95[1]:.3f}, {1 - found.pi95[0]:.3f}]"
            rows.append([text, len(runs), three(n), three(d), ends, f"{error:.3f}", f"{ours / error - 1:+.1%}"])
    print(text_table(["text", "runs", "N", "D", "mean error of 17 tasks, pi95", "measured", "off"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=60, help="simulated tables per law")
    parser.add_argument("--first_seed", type=int, default=0, help="of the simulated tables")
    parser.add_argument("--laws", nargs="+", default=["hparams", "data", "task"], help="of which laws")
    parser.add_argument("--step_law", help="Step Law's dense runs")
    parser.add_argument("--olmo", help="a clone of github.com/allenai/OLMo-ladder")
    parser.add_argument("--gadre", help="a clone of github.com/mlfoundations/scaling")
    args = parser.parse_args()
    coverage = {"hparams": hparam_coverage, "data": data_coverage, "task": task_coverage}
    for law in args.laws if args.tables else []:
        rows = coverage[law](range(args.first_seed, args.first_seed + args.tables))
        print(text_table(["law", f"{args.tables} tables of", "in ci95", "each"], rows, width=None), flush=True)
    for path, show in ((args.step_law, step_law), (args.olmo, olmo), (args.gadre, gadre)):
        if path:
            show(path)


if __name__ == "__main__":
    main()
