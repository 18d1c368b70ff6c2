"""plan.py's answers as tables: text for a terminal of 100 columns, or Markdown."""

import textwrap
from dataclasses import dataclass

from isoflop.display import count, fixed, flops, gb, markdown_table, money, percent, seconds, si, text_table

WIDTH = 100


@dataclass(frozen=True)
class Section:
    """A title, a table (the first cell of a row is its label), notes, and lines of code to paste."""

    title: str
    rows: tuple | list = ()
    header: tuple | list | None = None
    notes: tuple | list = ()
    code: tuple | list = ()


def text(sections: list[Section]) -> str:
    return "\n\n".join(_section_text(section) for section in sections)


def _section_text(section: Section) -> str:
    lines = [section.title]
    if section.rows:
        lines.append(text_table(section.header, section.rows, indent=2, width=WIDTH))
    for line in section.code:  # never broken: it is to be pasted
        lines.append(f"  {line}")
    for note in section.notes:
        lines += textwrap.wrap(note, WIDTH - 2, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines)


def markdown(sections: list[Section]) -> str:
    blocks = []
    for section in sections:
        blocks.append(f"### {section.title}")
        if section.rows:
            blocks.append(markdown_table(section.header, section.rows))
        if section.code:
            blocks.append("\n".join(["```bash", *section.code, "```"]))
        if section.notes:
            blocks.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(blocks)


def _outside(warnings) -> list[str]:
    return [f"outside: {warning}" for warning in warnings]


# ----- plans of runs: a column for each -----


def of_runs(runs: list, machine) -> list[Section]:
    """Sections of RunEstimates, side by side."""
    names, warnings = [run.name for run in runs], []
    for run in runs:
        warnings += run.warnings
    sections = [_model(runs), _parameters(runs), _training(runs)]
    sections.append(of_verdicts(names, [run.chinchilla for run in runs]))
    if runs[0].repeated:
        sections.append(of_repeated(names, [run.repeated for run in runs]))
    sections.append(of_losses(names, [run.loss for run in runs], warnings))
    sections.append(_memory(runs, machine))
    if any(run.time.seconds for run in runs):
        sections.append(_time(runs, machine))
    return sections


def _columns(title: str, names: list[str], items: list, rows, notes=()) -> Section:
    """A column for each item; rows are (label, function of an item that returns a cell).

    A row of dashes alone is left out, and the header where no item has a name.
    """
    lines = []
    for label, cell_of in rows:
        cells = [cell_of(item) for item in items]
        if set(cells) != {"-"}:
            lines.append([label, *cells])
    return Section(title, lines, ["", *names] if any(names) else None, notes)


def _of_runs(title: str, runs: list, rows, notes=()) -> Section:
    return _columns(title, [run.name for run in runs], runs, rows, notes)


def _model(runs) -> Section:
    def vocabulary(run):
        tied = " tied" if run.shape["tied"] else ""
        return count(run.shape["vocab_size"]) + tied

    rows = [
        ("layers x width", lambda run: f"{run.shape['n_layer']} x {run.shape['n_embd']}"),
        ("heads x size", lambda run: f"{run.shape['n_head']} x {run.shape['head_size']}"),
        ("key-value heads", lambda run: str(run.shape["n_kv_head"])),
        ("MLP", lambda run: f"{run.shape['n_ffn']} {run.shape['activation']}"),
        ("context", lambda run: count(run.shape["block_size"])),
        ("vocabulary", vocabulary),
    ]
    return _of_runs("Model", runs, rows)


def _parameters(runs) -> Section:
    exact = count if len(runs) < 3 else si  # to the last one where there is room

    def share_of(name):
        return lambda run: f"{exact(run.parameters[name])} {run.parameters[name] / run.parameters['total']:6.1%}"

    def whole(name):
        return lambda run: exact(run.parameters[name]) + " " * 7  # above the shares

    def layer(name):
        return lambda run: si(run.per_layer[name])

    rows = []
    for name in runs[0].parameters:
        if name not in ("total", "non_embedding", "matmul") and any(run.parameters[name] for run in runs):
            rows.append((name, share_of(name)))
    rows += [
        ("total", whole("total")),
        ("  of it non-embedding", whole("non_embedding")),
        ("matmul (N of 6ND)", whole("matmul")),
        ("a layer's attention", layer("attention")),
        ("a layer's MLP", layer("mlp")),
    ]
    return _of_runs("Parameters", runs, rows)


def _training(runs) -> Section:
    unit = " tokens" if len(runs) < 3 else ""

    def of_flops(name):
        return lambda run: flops(run.flops[name])

    rows = [
        ("tokens (D)", lambda run: si(run.run["tokens"])),
        ("steps", lambda run: f"{run.run['steps']:,} x {run.run['tokens_per_step']:,}{unit}"),
        ("FLOPs a token, 6N", of_flops("per_token_6n")),
        ("  with attention", of_flops("per_token_exact")),
        ("FLOPs, 6ND", of_flops("run_6nd")),
        ("  with attention", of_flops("run_exact")),
        ("  over 6ND", lambda run: fixed(run.flops["exact_over_6n"], 3)),
    ]
    return _of_runs("Training", runs, rows)


def of_verdicts(names: list[str], verdicts: list) -> Section:
    rows = [
        ("N", lambda verdict: si(verdict.n)),
        ("D", lambda verdict: si(verdict.tokens)),
        ("20 N", lambda verdict: si(verdict.tokens_wanted, 3)),
        ("D / N", lambda verdict: fixed(verdict.ratio, 1)),
        ("status", lambda verdict: verdict.status),
        ("shortfall, tokens", lambda verdict: si(verdict.shortfall or None, 3)),
        ("steps for 20 N", lambda verdict: count(verdict.iterations_wanted)),
        ("  still needed", lambda verdict: count(verdict.iterations_needed)),
    ]
    return _columns("Chinchilla: 20 tokens per parameter, N total", names, verdicts, rows)


def of_repeated(names: list[str], answers: list[dict]) -> Section:
    rows = [
        ("tokens", lambda answer: si(answer["tokens"])),
        ("of them different", lambda answer: si(answer["unique_tokens"])),
        ("epochs", lambda answer: fixed(answer["epochs"], 2)),
        ("worth, in new tokens", lambda answer: si(answer["effective_tokens"])),
        ("most that repeating can give", lambda answer: si(answer["most"])),
        ("loss by this law", lambda answer: fixed(answer.get("loss"), 3)),
        ("  were all new", lambda answer: fixed(answer.get("loss_if_all_new"), 3)),
    ]
    source = answers[0].get("law")
    source = "Muennighoff et al. 2023" if source is None else f"--data_law, form {source}"
    return _columns(f"Repeated data ({source})", names, answers, rows)


def of_losses(names: list[str], predictions: list[dict], warnings: list[str]) -> Section:
    """predictions : of estimate.predict(), one for each name."""

    def loss_of(law):
        return lambda prediction: "> ln V" if prediction[law]["loss"] is None else fixed(prediction[law]["loss"], 3)

    rows, counted = [], []
    for law, prediction in predictions[0].items():
        rows.append((law, loss_of(law)))
        counted.append(f"{law} counts N {prediction['convention'].replace('_', '-')}")
    notes = [", ".join(counted) + "; losses compare within one law, not between texts and tokenizers"]
    about_laws = [warning for warning in dict.fromkeys(warnings) if warning.startswith(tuple(predictions[0]))]
    return _columns("Predicted loss, nats a token", names, predictions, rows, notes + _outside(about_laws))


def _memory(runs, machine) -> Section:
    def bytes_of(name):
        return lambda run: gb(getattr(run.memory, name))

    first = runs[0].memory
    rows = [("sequences per forward pass", lambda run: str(run.memory.micro_batch_size))]
    for name in ("weights", "gradients", "optimizer", "activations", "logits", "evaluation", "peak"):
        label = "logits and head" if name == "logits" else name
        rows.append((label, bytes_of(name)))
        if name in ("weights", "gradients", "optimizer", "peak") and machine.n_gpus > 1:
            rows.append((f"  --shard over {machine.n_gpus}", bytes_of(f"{name}_shard")))
    notes = ["the peak is of one moment: components do not all overlap"]
    if first.path == "cuda":
        notes.append("counted from what autograd saves under autocast; not yet measured on a GPU")
    if machine.memory is not None:
        rows.append((f"fits {machine.memory / 1e9:g} GB", lambda run: _fits(run.memory)))
    return _of_runs(f"Memory of one process, {first.path}, {first.dtype}", runs, rows, notes)


def _fits(memory) -> str:
    if memory.fits is None:
        return "-"
    if memory.fits:
        return "yes"
    return "--shard" if memory.fits_shard else "no"


def _time(runs, machine) -> Section:
    def time_for_20n(run):
        speed = run.time.tokens_per_s
        return seconds(run.chinchilla.tokens_wanted / speed if speed else None)

    rows = [
        ("tokens/s", lambda run: si(run.time.tokens_per_s, 3)),
        ("MFU", lambda run: percent(run.time.mfu)),
        ("time", lambda run: seconds(run.time.seconds)),
        ("  for 20 N", time_for_20n),
        ("device hours", lambda run: "-" if run.time.gpu_hours is None else f"{run.time.gpu_hours:,.1f}"),
        ("cost", lambda run: money(run.time.dollars)),
    ]
    title = f"Time and cost on {machine.n_gpus} x {machine.gpu or 'this device'}"
    names, notes = {}, []  # source -> the runs whose speed it gives
    for run in runs:
        names.setdefault(run.time.source or "unknown", []).append(run.name)
    for source, of in names.items():
        notes.append(f"speed of {', '.join(of)}: {source}" if len(names) > 1 else f"speed: {source}")
    return _of_runs(title, runs, rows, notes + _price_notes(machine))


def _machine_notes(machine) -> list[str]:
    notes = []
    if machine.speed:
        notes.append(f"speed: {machine.speed.source}")
    return notes + _price_notes(machine)


def _price_notes(machine) -> list[str]:
    if machine.price_per_hour is None:
        return []
    return [f"price: ${machine.price_per_hour:.2f} an hour and device ({machine.price_source})"]


def of_rules(table: dict, used: str, full: bool) -> Section:
    """The rules side by side; sources, ranges and what lies outside them for the rule in use, or for all."""
    rows, notes = [], []
    for name, rule in table.items():
        mark = " *" if name == used else ""
        subjects = [_subject(line) for line in rule["outside"]]
        rows.append([
            name + mark, f"{rule['lr']:.3g}", si(rule["batch_of_the_rule"], 3), f"{rule['weight_decay']:.3g}",
            f"{rule['beta2']:g}", percent(rule["warmup_frac"]), ", ".join(subjects) or "-",
        ])  # fmt: skip
        if full or name == used:
            notes.append(f"{name}: {rule['source']}. Measured: {rule['measured']}")
            notes += _outside(f"{name}: {line}" for line in rule["outside"])
    if not full:
        notes.append("* in use; --hparams NAME takes another, --rules prints every source and range")
    header = ["", "rate at this batch", "its own batch", "decay", "beta2", "warm-up", "outside its range"]
    return Section("Rules for the optimizer", rows, header, notes)


def _subject(line: str) -> str:
    """width, of "width 2.05e+03 is 8 times above what it was measured on"; init, of "--init normal: measured ..."."""
    return line.partition(":")[0].partition(" is ")[0].removeprefix("--").rpartition(" ")[0]


def of_commands(commands, name: str = "it") -> Section:
    code = [line for line in (commands.data, commands.train) if line]
    notes = [commands.note] if commands.note else []
    return Section(f"Train {name}", notes=notes, code=code)


def of_query(query: dict) -> Section:
    """What a service is to be asked for."""
    words = " ".join(f"{name}={value:.6g}" for name, value in query.items())
    notes = ["batch and rate are the rule's (--hparams), moved to what is allowed"]
    return Section("Ask the service for the first row", code=[words], notes=notes)


# ----- the search -----


def of_search(found, machine) -> list[Section]:
    """Sections of a SearchResult."""
    counted = "with attention" if found.exact else "6ND"
    n_counted = found.convention.replace("_", "-")
    cfg, memory = found.best[0].cfg, found.best[0].memory
    tied = ", tied" if cfg.tied else ""
    notes = [
        f"family {found.family}: context {cfg.block_size:,}, vocabulary {cfg.vocab_size:,}, {cfg.activation}{tied}; "
        "--family, --block_size, --vocab_size and any field change it",
        f"{found.candidates:,} architectures; the best depth of each width is listed. N {n_counted}, as {found.law} "
        f"counts it; its own optimum at 6ND: N {si(found.optimum['n'])}, D {si(found.optimum['tokens'])}",
        "gap: nats above the least loss of all. The law knows N and D, not shapes: rows within 0.001 nats are equally "
        "good",
        f"memory: one sequence per forward pass, {memory.path}, {memory.dtype}, without --shard",
        *_machine_notes(machine),
        *([] if machine.speed else ["fits, time and cost need a device: --gpu NAME, as h100"]),
        *_outside(found.warnings),
    ]
    constrained = f"The same with D = {found.ratio:g} N (to 5%)"
    if not found.ratio_met:
        constrained = f"No architecture has D = {found.ratio:g} N to 5%; the nearest"
    header = ["layers x width", "heads", "N", "D", "D/N", "loss", "gap", "memory", "fits", "time", "cost"]
    first = f"{flops(found.flops)} FLOPs ({counted}): least loss by {found.law}"
    return [
        Section(first, [_candidate(row) for row in found.best], header),
        Section(constrained, [_candidate(row) for row in found.constrained], header, notes),
    ]


def _candidate(row) -> list[str]:
    cfg = row.cfg
    heads = str(cfg.n_head)
    if cfg.n_kv_head != cfg.n_head:
        heads += f"/{cfg.n_kv_head}"
    return [
        f"{cfg.n_layer} x {cfg.n_embd}", heads, si(row.n), si(row.tokens), fixed(row.ratio, 1), fixed(row.loss),
        f"{row.gap:+.4f}", gb(row.memory.peak), _fits(row.memory), seconds(row.time.seconds), money(row.time.dollars),
    ]  # fmt: skip


# ----- closed forms -----


def of_tokens_for_size(answer: dict) -> Section:
    rows = []
    for name, row in answer["answers"].items():
        rows.append([name, si(row["tokens"]), fixed(row["ratio"], 1), flops(row["flops"], 3),
                     fixed(row["loss"], 3), seconds(row["seconds"])])  # fmt: skip
    header = ["", "tokens", "D/N", "FLOPs, 6ND", "loss", "time"]
    return Section(f"Tokens for {si(answer['n'])} parameters", rows, header, _outside(answer["warnings"]))


def of_compute_for_loss(answer: dict) -> Section:
    rows = []
    for name, row in answer["answers"].items():
        rows.append([name, flops(row["flops"], 3), si(row["n"]), si(row["tokens"]), fixed(row["ratio"], 1),
                     seconds(row["seconds"])])  # fmt: skip
    header = ["", "FLOPs, 6ND", "N", "D", "D/N", "time"]
    title = f"Least compute for a loss of {answer['loss']:g} nats a token"
    return Section(title, rows, header, _outside(answer["warnings"]))


def of_inference(answer: dict) -> Section:
    rows = []
    for name, row in answer["answers"].items():
        n, tokens = row["n_training_only"], row["tokens_training_only"]
        rows.append([f"{name}: loss {row['loss']:.3f}", "training alone", si(n), si(tokens), fixed(tokens / n, 1),
                     flops(row["flops_training_only"], 3), ""])  # fmt: skip
        rows.append(["", "whole life", si(row["n"]), si(row["tokens"]), fixed(row["ratio"], 1),
                     flops(row["flops"], 3), percent(row["saved"])])  # fmt: skip
    header = ["", "best for", "N", "D", "D/N", "all FLOPs", "saved"]
    inference = si(answer["inference_tokens"])
    title = f"Over a life of {inference} inference tokens: 6 N D + 2 N D_inference (Sardana et al. 2023)"
    return Section(title, rows, header, _outside(answer["warnings"]))
