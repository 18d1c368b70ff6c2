"""
Rows that are no finished, independent runs: checkpoints of a run, and rows that share N and D.

Checkpoints: rows of one run are its training curve, the last of them the run. A run is told by its run_id, by another
name beside a column of steps, or by --run_cols; without a name the rows at the end of their training are the runs.

Rows that share N and D: those that differ in the seed alone are repeats, all of them kept (fits take their mean). Where
they differ in a learning rate, a batch or another setting, the setting of the lowest loss answers for its (N, D).
"""

import re

import numpy as np

from isoflop.fit.names import NAMES, candidates, column, key_of
from isoflop.fit.values import decimal_of, floats, number
from isoflop.options import UserError

SAME_ND = ("auto", "lowest", "mean", "all")
END = 0.999  # of its training, from which a row is a run's last
MOST_CODES = 50_000  # distinct texts of a column that are told apart; a column of more is no setting
ROLES = ("n", "d", "c", "loss", "step", "portion", "epochs", "unique")  # whose columns are no settings
MOST_LABELS = 12  # distinct texts of a column that may name several series in one file
SETTING = re.compile(
    r"(^|_)(lr|lrs|learning_rates?|bs|gbs|mbs|batch|batch_size|batch_tokens|wd|weight_decay|beta_?[12]|eps|"
    r"warm_?up(_steps|_tokens|_frac)?|dropout|momentum|steps|ti|iters|iterations|tokens_per_step|"
    r"schedule_steps|grad_clip|init_std|peak_lr|max_lr|min_lr)(_|$)"
)
OUTCOME = re.compile(
    r"loss|ppl|perplexity|bpb|bpc|bits|nats|acc(uracy)?$|score|entropy|time|runtime|_s$|_ms$|second|hour|(^|_)mem|mfu|"
    r"tok_s|per_s|throughput|norm|started|created|date|commit|host|gpu|device|version|torch|index|unnamed|(^|_)rows?$|"
    r"seed|wall|cost|price|power|path|url|notes?$|tags?$|user|hash|git|checkpoint|rank|world|flops|(^|_)id$|params$|"
    r"per_param|progress|(^|_)name$|curve|status|state|smooth"
)


# ----- what columns hold, as small numbers -----


class Codes:
    """Texts of columns as whole numbers, the same in all files: {column: {text: code}}."""

    def __init__(self):
        self.of = {}

    def encode(self, name, cells):
        """Codes of cells; all 0 once the column has more than MOST_CODES texts."""
        known = self.of.setdefault(name, {})
        if len(known) > MOST_CODES:
            return np.zeros(len(cells), np.int32)
        return np.array([known.setdefault(str(cell).strip(), len(known)) for cell in cells], np.int32)

    def is_label(self, name):
        """Whether a column has a few words, no numbers: optimizer, data, variant."""
        texts = [text for text in self.of[name] if text and text != "None"]
        words = [text for text in texts if np.isnan(number(text))]
        return 2 <= len(texts) <= MOST_LABELS and len(words) == len(texts)

    def usable(self, name):
        return len(self.of[name]) <= MOST_CODES


def numbers_of(role, given, codes, coder):
    """
    (name of the column that plays a role of names.SETTINGS, its number in each run); (None, None) without one.

    Parameters
    ----------
    role : str
    given : str or None
        The column's name from --ROLE_col.
    codes : dict
        Column -> codes of the runs.
    coder : Codes

    Raises
    ------
    UserError
        The named column is not there.
    """
    header = list(codes)
    found = candidates(role, header)
    if given is not None:
        i = column(header, given)
        if i is None:
            flag = role.removesuffix("_tokens")
            raise UserError(f"--{flag}_col {given}: no such column; there are {', '.join(header)}")
        found = [i]
    if not found or not coder.usable(header[found[0]]):
        return None, None
    return header[found[0]], cells_of(header[found[0]], codes, coder)


def cells_of(name, codes, coder):
    """The number of each run in a column, NaN where there is none."""
    texts = list(coder.of[name])
    return floats(texts, decimal_of(texts) or ".")[codes[name]]


def groups(*keys):
    """Rows of equal keys get equal numbers from 0: (R,) int."""
    order = np.lexsort(keys)
    new = np.zeros(len(order), bool)
    for key in keys:
        values = key[order]
        new[1:] |= values[1:] != values[:-1]
    out = np.empty(len(order), int)
    out[order] = np.cumsum(new)
    return out


def varies(group, code):
    """Mask of rows in whose group the codes are not all equal."""
    low, high = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
    np.minimum.at(low, group, code)
    np.maximum.at(high, group, code)
    return (low < high)[group]


# ----- checkpoints -----


def distinct(names):
    """Names of rows, each of its own: a second "a" in row 3 (from 0) is "a (3)"."""
    out, taken = [], set()
    for i, name in enumerate(names):
        out.append(name)
        if name in taken:
            out[-1] = f"{name} ({i})"
        taken.add(name)
    return np.array(out, object)


def name_runs(rows, found, header, seen):
    """
    Decide which rows of one file are one run, where no run_id says so.

    Parameters
    ----------
    rows : dict of arrays
        run, row, n, d, and where known name, step, total_steps, portion. `run` is set in place.
    found : dict
        Role -> column index.
    header : list of str
    seen : object with note(text), warn(code, text)

    Returns
    -------
    (mask, reason) of the rows that stay, the reason for the others.
    """
    stays = np.ones(len(rows["run"]), bool)
    if not len(stays):
        return stays, ""
    at = rows.get("portion", rows.get("step"))
    if "name" in found:
        names = rows["name"]
        repeated = len(set(names.tolist())) < len(names)
        if repeated and at is not None and len(set(zip(names.tolist(), rows["n"], at, strict=True))) == len(names):
            rows["run"] = names
            seen.note(f"rows of one {header[found['name']]} are one run, its last row the result")
            return stays, ""
        if repeated and at is None and len(set(zip(names.tolist(), rows["n"], rows["d"], strict=True))) == len(names):
            name = header[found["name"]]
            seen.note(
                f"rows of one {name} are taken as runs of their own; --run_cols {name!r} takes them as checkpoints"
            )
        rows["run"] = distinct(names)
    if at is None:
        return stays, ""
    if "portion" in rows:
        end, column = (100.0 if np.nanmax(at) > 1.5 else 1.0), header[found["portion"]]
    elif "total_steps" in rows:
        end, column = rows["total_steps"], header[found["step"]]
    else:
        _question_steps(rows, header[found["step"]], seen)
        return stays, ""
    last = at >= END * end
    if not last.any() or last.all():
        return stays, ""
    seen.note(
        f"{column} is short of its end in {int((~last).sum()):,} rows: checkpoints, left out; --run_cols names the "
        "columns that tell runs apart (their curves are used, too), --rows_are_runs keeps all"
    )
    return last, f"checkpoint before the end of {column}"


def _question_steps(rows, column, seen):
    """A warning where rows of one N differ in a step and nothing names their run."""
    several = varies(groups(rows["n"]), rows["step"])
    if several.any():
        seen.warn(
            "checkpoints",
            f"{int(several.sum()):,} rows of equal N differ in {column} and no column names their run: if they are "
            "checkpoints, name the columns that tell runs apart with --run_cols; if not, --rows_are_runs",
        )


# ----- rows that share N and D -----


def share_nd(table, codes, coder, mode="auto"):
    """
    One answer for each (N, D) whose rows differ in a setting.

    Parameters
    ----------
    table : Table
    codes : dict
        Column -> codes of the table's runs.
    coder : Codes
    mode : str
        auto: the setting of the lowest loss, of each label apart. lowest: over all labels. mean: the mean of all
        settings. all: every run.

    Returns
    -------
    (mask of runs that stay, losses or None, notes, warnings)
        Losses are new ones (means) for the runs that stay.
    """
    keep = np.ones(len(table.n), bool)
    pair = groups(table.n, table.d)
    if table.label is not None:  # --by: each series apart
        pair = groups(pair, np.unique(table.label.astype(str), return_inverse=True)[1])
    sharing = np.bincount(pair)[pair] > 1
    if not sharing.any():
        return keep, None, [], []
    settings, labels = _what_differs(pair, sharing, codes, coder)
    if mode == "lowest":
        settings, labels = settings + labels, []
    notes, warnings = [], []
    if labels:
        warnings.append(_said_of_labels(pair, codes, coder, labels))
    group = groups(pair, *(codes[name] for name in labels))
    settings = [name for name in settings if varies(group, codes[name]).any()]
    if not settings:
        return keep, None, notes, warnings
    mixed = np.any([varies(group, codes[name]) for name in settings], axis=0)
    pairs = len(np.unique(group[mixed]))
    text = f"{int(mixed.sum()):,} rows share N and D and differ in {', '.join(settings)}"
    losses = None
    if mode == "all":
        notes.append(f"{text}: all are taken, as independent runs")
        return keep, losses, notes, warnings
    if mode == "mean":
        totals = np.bincount(group, weights=table.loss) / np.bincount(group)
        losses = np.where(mixed, totals[group], table.loss)
        first = np.zeros(len(keep), bool)
        first[np.unique(group, return_index=True)[1]] = True
        keep = first | ~mixed
        notes.append(f"{text}: the mean loss of each of {pairs:,} (N, D) is taken")
        return keep, losses, notes, warnings
    keep = _lowest(group, groups(group, *(codes[name] for name in settings)), table.loss) | ~mixed
    notes.append(f"{text}: the lowest loss of each of {pairs:,} (N, D) is taken; --same_nd mean or all does otherwise")
    return keep, losses, notes, warnings


def _lowest(group, setting, loss):
    """Mask of the rows of each group's best setting, by the mean loss of its rows (they are repeats)."""
    mean = np.bincount(setting, weights=loss) / np.bincount(setting)
    _, first = np.unique(setting, return_index=True)
    group_of = group[first]
    order = np.lexsort((mean, group_of))
    best = order[np.unique(group_of[order], return_index=True)[1]]
    return np.isin(setting, best)


def _what_differs(pair, sharing, codes, coder):
    """(settings, labels): names of the columns in which rows of one (N, D) differ, outcomes and seeds left out."""
    settings, labels = [], []
    others = {
        key for role in ("n", "d", "c", "loss", "step", "portion", "epochs", "unique") for key in NAMES[role].split()
    }
    for name, code in codes.items():
        last = key_of(str(name).rsplit(".", 1)[-1])
        skipped = last in others or re.search("current|elapsed", last) or not coder.usable(name)
        if skipped or not varies(pair, code).any():
            continue
        if SETTING.search(last):
            settings.append(name)
        elif OUTCOME.search(last) or not last:
            continue
        elif coder.is_label(name):
            labels.append(name)
        elif len(np.unique(code[sharing])) <= sharing.sum() / 2 and _is_numeric(coder.of[name]):
            settings.append(name)
    return settings, labels


def _is_numeric(texts):
    some = [text for text in list(texts)[:100] if text]
    return bool(some) and all(not np.isnan(number(text)) for text in some)


def _said_of_labels(pair, codes, coder, labels):
    mixed = np.any([varies(pair, codes[name]) for name in labels], axis=0)
    name = labels[0]
    value = next(text for text in coder.of[name] if text)
    return (
        "series",
        f"{int(mixed.sum()):,} rows share N and D and differ in {', '.join(labels)}: one law is fitted through all; "
        f"--by {name!r} fits one each, --where '{name} == {value}' fits one of them, --same_nd lowest the best",
    )
