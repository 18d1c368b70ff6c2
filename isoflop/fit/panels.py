"""
W&B's panel exports, a column of losses for each run, and the losses that they give to a table of the runs' N and D.

    >>> panel = Panel()
    >>> panel.add("panel.csv", *open_table("panel.csv"))
    >>> header, rows = panel.join(["run_name", "N", "D"], rows, "runs.csv", notes)  # a column panel.val_loss more

A column is called "RUN - METRIC"; RUN - METRIC__MIN and __MAX stand beside it. A run's loss is its last one.
"""

import os

import numpy as np

from isoflop.fit.names import candidates
from isoflop.fit.values import floats
from isoflop.options import UserError

NAMED = 4  # runs in a message


def is_panel(header):
    """Whether a header is that of a panel export."""
    return any(f"{name}__MIN" in header for name in header)


class Panel:
    """The last loss of each run in one or several panel exports; false while it holds none."""

    def __init__(self):
        self.loss, self.tokens, self.metric, self.files = {}, {}, "", []

    def __bool__(self):
        return bool(self.loss)

    def add(self, path, header, rows, decimal):
        """Take the runs of a panel export; UserError where it has none, or one that another file has, too."""
        rows = [row for row in rows if len(row) == len(header)]
        x = floats([row[0] for row in rows], decimal)
        of_tokens = bool(candidates("d", header[:1]))
        for i, name in enumerate(header):
            if f"{name}__MIN" not in header:
                continue
            run, _, metric = str(name).rpartition(" - ")
            run = run.removeprefix("Group: ").strip()
            values = floats([row[i] for row in rows], decimal)
            known = np.flatnonzero(np.isfinite(values))
            if not len(known):
                continue
            if run in self.loss:
                raise UserError(f"{path}: another panel export has run {run!r}, too; give one file of one metric")
            last = known[-1]
            self.loss[run], self.metric = values[last], self.metric or metric
            if of_tokens:
                self.tokens[run] = x[last]
        self.files.append(os.path.basename(path))

    def join(self, header, rows, path, notes):
        """
        The rows of a table with a column panel.METRIC more, and panel.tokens where the panel's first column is tokens.

        Returns
        -------
        (header, iterator of rows)

        Raises
        ------
        UserError
            No column holds names of the panel's runs.
        """
        rows = list(rows)
        names = [_names(rows, i) for i in range(len(header))]
        matches = [len(self.loss.keys() & set(own)) for own in names]
        if not any(matches):
            runs = _some(list(self.loss))
            raise UserError(f"{path}: no column names the runs of {self.files[0]} ({runs}); add one, called run_name")
        own = names[int(np.argmax(matches))]
        more = {f"panel.{self.metric}": self.loss}
        if self.tokens:
            more["panel.tokens"] = self.tokens
        joined = [[*row, *(values.get(name) for values in more.values())] for name, row in zip(own, rows, strict=True)]
        notes.append(f"{max(matches)} losses from {', '.join(self.files)}: the last {self.metric} of each run")
        missing = [run for run in self.loss if run not in own]
        if missing:
            notes.append(f"{len(missing)} runs of {', '.join(self.files)} are in no row of {path}: {_some(missing)}")
        return [*header, *more], iter(joined)

    def column(self):
        """The name of the joined loss."""
        return f"panel.{self.metric}"


def _names(rows, i):
    """The cells of a column as run names; "" where a row is too short."""
    return [str(row[i]).strip() if i < len(row) and row[i] is not None else "" for row in rows]


def _some(names):
    more = ", .." if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
