"""
The laws that a table of runs holds besides that of the loss, by the name that fit.py's --law_of knows them by.

To add one: a module with a function (table, options, targets) -> (section, page, figure), and a row in OTHER_LAWS.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.files import atomic, write_json, write_text
from isoflop.fit import data_report, hparam_page, task_page
from isoflop.fit.axes import RC
from isoflop.fit.result import clean

# options that only the law of the loss has a use for
OF_LOSS = (
    "loss_se_col", "same_nd", "by", "base", "budget_tol", "isoflop_method", "law_family", "prior", "envelope_rule",
    "envelope_keep_ends", "huber_delta", "predict_flops", "predict_params", "target_loss", "predict_runs", "compare",
    "suggest", "target_flops", "target_runs", "pool", "spend", "draws",
)  # fmt: skip


@dataclass(frozen=True)
class OtherLaw:
    """How fit.py answers --law_of NAME."""

    # (table, options, targets) -> (what fit.json holds under the law's name, the page's text, a function that draws the
    # picture). UserError where the runs determine no law. targets: rows of --predict_runs, or None. The first has
    # "answer", lines for the terminal.
    fit: Callable
    # options of table.read() beside those of flags, or a function of fit.py's options that gives them
    reading: dict | Callable = field(default_factory=dict)
    takes: tuple[str, ...] = ()  # those of OF_LOSS that this law has a use for, too


OTHER_LAWS: dict[str, OtherLaw] = {
    "data": OtherLaw(data_report.fit, {"same_nd": "all"}, ("predict_flops",)),
    "hparams": OtherLaw(
        hparam_page.answer, {"same_nd": "all", "settings": hparam_page.WANTED}, takes=("predict_runs",)
    ),
    "task": OtherLaw(task_page.answer, task_page.reading, takes=("predict_runs",)),
}
NAMES = ("loss", *OTHER_LAWS)  # the choices of --law_of
OF_ONE = {
    "unique_tokens": "data",
    "lr_col": "hparams",
    "batch_col": "hparams",
    "task_cols": "task",
    "task_loss_cols": "task",
    "chance": "task",
    "percent": "task",
}  # options that only one of these laws has a use for


def mistakes(options, defaults: dict) -> list[str]:
    """What is wrong with the flags beside --law_of: those that another law has a use for."""
    out = []
    for name, law in OF_ONE.items():
        if law != options.law_of and getattr(options, name) != defaults[name]:
            out.append(f"--{name} is of no use to --law_of {options.law_of}; add --law_of {law}, or leave it out")
    if options.law_of not in OTHER_LAWS:  # loss, or unknown, which is said elsewhere
        return out
    takes = OTHER_LAWS[options.law_of].takes
    for name in OF_LOSS:
        if name not in takes and getattr(options, name) != defaults[name]:
            out.append(f"--{name} is of no use to --law_of {options.law_of}; leave one of them out")
    return out


def write(name: str, info: dict, answer, folder: Path, plots: bool, format: str) -> dict:
    """Write fit.json (input, and the law under its name), NAME.md and NAME.png; what fit.json holds."""
    section, text, draw = answer
    result = clean({"input": info, name: section})
    if plots:
        _save(draw, folder / f"{name}.{format}", format)
        text += f"\n![{name}]({name}.{format})\n"
    write_json(folder / "fit.json", result, indent=1, allow_nan=False)
    write_text(folder / f"{name}.md", text)
    return result


def _save(draw, path: Path, format: str):
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(RC):
        fig = draw()
        with atomic(path, "wb") as f:
            fig.savefig(f, format=format)
        matplotlib.pyplot.close(fig)
