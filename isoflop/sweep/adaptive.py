"""A sweep that chooses its own runs for what they tell about a target: sweep.py --design adaptive.

    python sweep.py --design adaptive --target_flops 1.5e14 --total_flops 3e13
    python sweep.py --design adaptive --target_flops 1.5e14 --dry_run   # what money buys

A first round of cheap runs that any law needs, then rounds of as many runs as are trained side by side, each chosen by
isoflop/fit/design.py given all that is known: among the candidates of candidates.py, at their marginal cost. It ends
when no run can be paid, when none tells more, or when the forecast's pi95 is within --until_width.

Every choice is a line of OUT_DIR/design.jsonl before its runs begin: after a kill the same command runs what is missing
of the recorded rounds, and goes on. What is chosen follows from rows and money alone, not from the order in which runs
end. A run that fails has its row and is replaced by the next round's choice; after MOST_FAILED in a row the sweep ends.

--total_flops caps the FLOPs of the chosen runs. What a kill cuts off is spent on top: how far such a run came is not
known, and the choices are to be the same with it as without.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from isoflop import display, files
from isoflop.fit.design import FIRST_RUNS, choose
from isoflop.fit.knowledge import Runs, Target, Width
from isoflop.options import UserError
from isoflop.sweep.candidates import SPAN, Menu, Pool, check_first_round, first_speed, make_pool, trunk_flags
from isoflop.sweep.cells import Cell, ModelSize, Planner
from isoflop.sweep.folder import cut_torn, free_name, move_aside, wrong_text

FIRST_ROUND = 8  # at most so many runs at once before any is known
TRIES = 3  # of a run whose worker dies
MOST_FAILED = 4
SHOWN = 5  # candidates whose scores are kept
DRY_SHARE = 0.1  # of the target's FLOPs: money of a --dry_run without any
WIDTHS = ("pi95_loss", "pi95_n", "sd_loss", "sd_n")


@dataclass
class Design:
    """
    The choices of one sweep.

    Parameters
    ----------
    sc : SweepConfig
    planner : Planner
    at_once : int
        Runs that are trained side by side, the size of a round.
    room_gb : float, optional
        Memory that one process may fill.
    say : function(text)
    """

    sc: object
    planner: Planner
    at_once: int = 1
    room_gb: float | None = None
    say: object = print
    ended: str = ""  # why there is no further round
    gave_up: bool = False  # because runs fail
    width: Width | None = None  # of the forecast, given all that is known
    rounds: list[dict] = field(default_factory=list)
    pools: dict = field(default_factory=dict)  # by their dearest run

    # ----- the rounds -----

    def stages(self, results, save: bool = True):
        """Lists of cells, each chosen when those before it have run; without `save` recorded rounds and one more."""
        say = self.say if save else _silent
        self.rounds = read_rounds(results.folder, self.sc.drop_bad_rows, save)
        if self.rounds and self.planner.source == "trained":
            self.planner.keep_type(self.rounds[0].get("dtype"))  # which a kill before the first row leaves nowhere else
        for number, one in enumerate(self.rounds, 1):
            yield from self._tried([self._recorded(run, number) for run in one["runs"]], results, save)
        while True:
            cells, one = self.next_round(results)
            if not cells:
                say(self.ended + self.width_text())
                return
            if self.planner.source == "trained":
                one["dtype"] = self.planner.compute[0]
            say(round_text(len(self.rounds) + 1, one, self.sc.target_flops))
            if save:
                results.folder.mkdir(parents=True, exist_ok=True)
                files.append_line(results.folder / "design.jsonl", json.dumps(one))
            self.rounds.append(one)
            yield from self._tried(cells, results, save)
            if not save:
                return

    def _tried(self, cells: list[Cell], results, save: bool):
        """The cells, and again those whose worker has died."""
        yield cells
        for _ in range(TRIES - 1):
            done = results.done()
            cells = [cell for cell in cells if cell.run_id not in done]
            if not cells or not save:
                return
            yield cells

    def _recorded(self, run: dict, number: int) -> Cell:
        """The cell of a recorded choice; UserError where the flags make another run of it."""
        size = ModelSize(run["n_embd"], run["n_layer"], run.get("n_head"))
        cell = self._cell(size, run["flop_budget"], run["seed"])
        if cell.run_id != run["run_id"]:
            raise UserError(
                f"--out_dir {self.planner.out_dir}: round {number} of its design.jsonl was chosen with other flags "
                f"(run {run['run_id']} is now {cell.run_id}); give the same flags, or name another --out_dir"
            )
        keep = tuple((step, self._checkpoint(cell, step)) for step in run["keep"])
        start = self._checkpoint(cell, run["start_step"]) if run["start_step"] else None
        return replace(cell, start=start, start_step=run["start_step"], trunk=run.get("trunk"), keep=keep)

    def _cell(self, size: ModelSize, flops: float, seed: int | None) -> Cell:
        return self.planner.cell(size, flops, seed, trunk_flags(self.sc, self.planner, size, seed))

    # ----- one choice -----

    def money(self, results) -> tuple[float, float]:
        """(all that may be spent, what is left of it), in FLOPs, or in hours where only those are capped."""
        sc = self.sc
        if sc.total_flops:
            spent = sum(float(row["flops_spent"]) for row in results.all_rows()) + results.elsewhere
            return sc.total_flops, sc.total_flops - spent
        if sc.max_hours:
            return sc.max_hours, sc.max_hours - results.hours()
        return DRY_SHARE * sc.target_flops, DRY_SHARE * sc.target_flops

    def flops_of_money(self, results) -> float:
        """All that may be spent, in FLOPs: at the speed of the runs so far, or at a guess of it."""
        whole, _ = self.money(results)
        if self.sc.total_flops or not self.sc.max_hours:
            return whole
        hours = results.hours()
        spent = sum(float(row["flops_spent"]) for row in results.all_rows())
        if hours and spent:
            return whole * spent / hours
        return whole * 3600 * first_speed(self.planner.env)

    def next_round(self, results, budget: float | None = None) -> tuple[list[Cell], dict]:
        """
        (cells of the next round, its record); no cells where it ends, with the reason in `ended`.

        budget : what may be spent more, in place of what is left of the money.
        """
        sc = self.sc
        whole, left = self.money(results)
        flops = self.flops_of_money(results)
        if budget is not None:
            whole = flops = whole - left + budget
            left = budget
        pool, known = self.pool(sc.max_cell_share * flops), runs_of(results.rows)
        if len(known) < FIRST_RUNS and not self.rounds:
            check_first_round(sc, self.planner, flops, pool, self.room_gb)
        if self._gives_up(results):
            return [], {}
        menu = Menu(pool, self.kept(results), results.rows, self)
        if left <= 0 or not menu.cells:
            self.ended = f"no run can be paid: {max(left, 0):.3g} of {whole:.3g} {self.unit} are left"
            return [], {}
        count = self.at_once
        if len(known) < FIRST_RUNS:
            count = max(count, FIRST_ROUND)
        share = min(1.0, sc.max_cell_share * whole / left)
        choice = choose(known, menu.candidates(results), Target(sc.target_flops), count, left, max_share=share)
        self.width = choice.before
        if not choice.decisions:
            self.ended = choice.note
            return [], {}
        if sc.until_width and len(known) >= FIRST_RUNS and choice.before.pi95_loss <= sc.until_width:
            self.ended = f"pi95 of the loss is within --until_width {sc.until_width:g}: {choice.before.pi95_loss:.3g}"
            return [], {}
        self.ended = ""
        cells = menu.take(choice.decisions)
        return cells, record_of(choice, menu, cells, len(known), left, self.unit)

    def pool(self, most: float, least: float | None = None) -> Pool:
        """The runs of at most so many FLOPs; planning them takes a while, choosing does not change them."""
        key = (most, least)
        if key not in self.pools:
            self.pools[key] = make_pool(self.sc, self.planner, least or most / SPAN, most, self.room_gb)
        return self.pools[key]

    @property
    def unit(self) -> str:
        return "hours" if self.sc.max_hours and not self.sc.total_flops else "FLOPs"

    def width_text(self) -> str:
        """The forecast's width, as the end of a sentence."""
        if self.width is None:
            return ""
        return f"; at {display.flops(self.sc.target_flops)} pi95 of the loss is {widths_text(width_row(self.width))}"

    def _gives_up(self, results) -> bool:
        """Whether the last runs that were chosen have all failed."""
        status = {row["run_id"]: row["status"] for row in results.rows}
        last = [run["run_id"] for one in self.rounds for run in one["runs"]][-MOST_FAILED:]
        found = [status.get(run_id, "died") for run_id in last]
        if len(found) < MOST_FAILED or "ok" in found:
            return False
        self.gave_up = True
        self.ended = f"the last {MOST_FAILED} runs that were chosen have failed ({', '.join(sorted(set(found)))})"
        return True

    def finish(self, missing: list[tuple[Cell, str]], capped: str) -> int:
        """Print which chosen runs have no result; the exit status, 1 where the design has not come to its own end.

        missing : (cell, status) of them. capped : the cap that stopped it, or "".
        """
        for cell, status in missing:
            self.say(f"no result: {cell}: {status}" + (f" ({cell.refused})" if cell.refused else ""))
        if missing and self.ended and not self.gave_up:
            self.say(f"{len(missing)} chosen runs have no result; others were chosen in their place")
        if capped:
            self.say(f"stopped: {capped}")
        return int(bool(capped) or self.gave_up or "not run" in [status for _, status in missing])

    # ----- trunks -----

    def _checkpoint(self, cell: Cell, step: int) -> str:
        """Folder of a checkpoint that runs of a cell's size and seed share."""
        name = f"{cell.size.n_embd}x{cell.size.n_layer}_{cell.plan.tokens_per_step}_{cell.seed}"
        return str(self.planner.out_dir / "trunks" / name / f"step_{step}")

    def kept(self, results) -> dict[tuple, dict[int, str]]:
        """{(size, seed): {step: run_id of the run that left a checkpoint there}} of the runs that have ended well."""
        fine = {row["run_id"] for row in results.rows if row["status"] == "ok"}
        found = {}
        for one in self.rounds:
            for run in one["runs"]:
                if run["run_id"] not in fine:
                    continue
                size = ModelSize(run["n_embd"], run["n_layer"], run.get("n_head"))
                steps = found.setdefault((size, run["seed"]), {})
                for step in run["keep"]:
                    folder = Path(self._checkpoint(self._cell(size, run["flop_budget"], run["seed"]), step))
                    if self.planner.source != "trained" or folder.is_dir():
                        steps[step] = run["run_id"]
        return found


def _silent(text: str):
    pass


def runs_of(rows: list[dict]) -> Runs:
    """The runs with a result, in an order that does not depend on when they ended."""
    fine = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: (float(row["flops"]), row["run_id"]))
    columns = []
    for name in ("n_params_matmul", "tokens", "val_loss", "flops"):
        columns.append(np.array([float(row[name]) for row in fine]))
    return Runs(*columns)


# ----- design.jsonl -----


def round_text(number: int, one: dict, target: float) -> str:
    """The line before a round."""
    cost = sum(run["cost"] for run in one["runs"])
    now, then = one["width_before"], one["width_after"]
    text = f"round {number}: {counted(len(one['runs']), 'run')} for {cost:.3g} of {one['left']:.3g} {one['unit']} left"
    if now["pi95_loss"] is not None:
        text += f"; at {display.flops(target)} pi95 of the loss {widths_text(now)}, expected then {widths_text(then)}"
    return text


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def widths_text(width: dict) -> str:
    """pi95 of the loss as a share of it, and of N* as a factor."""
    text = display.percent(width["pi95_loss"], 2)
    if width["pi95_n"] is not None:
        text += f" (N* x{math.exp(width['pi95_n']):.2f})"
    return text


def record_of(choice, menu: Menu, cells: list[Cell], known: int, left: float, unit: str) -> dict:
    """The line of a round."""
    runs = []
    for decision, cell in zip(choice.decisions, cells, strict=True):
        run = {"run_id": cell.run_id, "n_embd": cell.size.n_embd, "n_layer": cell.size.n_layer}
        run |= {"n_head": cell.size.n_head, "flop_budget": cell.flop_budget, "seed": cell.seed}
        run |= {"start_step": cell.start_step, "trunk": cell.trunk, "keep": [step for step, _ in cell.keep]}
        runs.append(run | {"cost": rounded(decision.cost), "gain": rounded(decision.gain), "why": decision.why})
    best = []
    for i in np.argsort(-np.nan_to_num(choice.scores, nan=-1.0), kind="stable")[:SHOWN]:
        cell = menu.cells[i]
        one = {"n_embd": cell.size.n_embd, "n_layer": cell.size.n_layer, "flop_budget": cell.flop_budget}
        best.append(one | {"seed": cell.seed, "score": rounded(choice.scores[i])})
    out = {"known": known, "candidates": len(menu.cells), "left": rounded(left), "unit": unit, "runs": runs}
    out |= {"planned": len(choice.plan), "best": best}
    for name in ("before", "after", "planned"):
        out[f"width_{name}"] = width_row(getattr(choice, name))
    return out


def width_row(width: Width) -> dict:
    return {key: rounded(getattr(width, key)) for key in WIDTHS}


def rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def read_rounds(folder: Path, drop: bool = False, repair: bool = False) -> list[dict]:
    """The rounds in design.jsonl; [] where there is none. A last line that a kill cut short is left out.

    drop : leave out everything from a wrong line on; with `repair` the file is kept as design.bad.jsonl.
    UserError where a line is wrong.
    """
    path = Path(folder) / "design.jsonl"
    if not path.exists():
        return []
    rounds, problem = [], ""
    raw = files.regular(path).read_bytes()
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        mistake, one = mistake_in(line)
        if mistake and number == len(lines):  # cut short by a kill, before its runs began
            if repair:
                cut_torn(path, raw, len(raw) - len(line))
        elif mistake:
            problem = f"{path}, line {number}: {mistake}"
            break
        else:
            rounds.append(one)
    if problem and not drop:
        raise UserError(wrong_text(problem, 1, free_name(path), "its runs are chosen anew"))
    if problem and repair:
        move_aside(path)
        files.write_text(path, "".join(json.dumps(one) + "\n" for one in rounds))
    return rounds


def mistake_in(line: bytes) -> tuple[str, dict]:
    """(what is wrong with a line of design.jsonl, its object)."""
    try:
        one = files.parse_json(line.decode())
    except ValueError:
        return f"{line[:40].decode(errors='replace')!r} is not JSON", {}
    runs = one.get("runs") if isinstance(one, dict) else None
    if not isinstance(runs, list) or not runs:
        return "it has no runs", {}
    if one.get("dtype") not in (None, "float32", "bfloat16"):
        return f"dtype {json.dumps(one['dtype'])[:40]} must be float32 or bfloat16", {}
    kinds = {"run_id": str, "n_embd": int, "n_layer": int, "seed": int, "start_step": int}
    kinds |= {"keep": list}
    for run in runs:
        try:
            files.check_fields(run, kinds, "a run", tuple(kinds))
        except ValueError as error:
            return str(error), {}
        head, trunk = run.get("n_head"), run.get("trunk")
        optional = (head is None or type(head) is int) and (trunk is None or type(trunk) is str)
        whole = all(type(step) is int and step > 0 for step in run["keep"])
        flops = run.get("flop_budget")
        sizes = run["n_embd"] > 0 and run["n_layer"] > 0 and type(flops) in (int, float) and 0 < flops < math.inf
        if not (sizes and whole and optional):
            return f"a run is {json.dumps(run)[:60]}", {}
    return "", one
