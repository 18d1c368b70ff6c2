"""plan.py's answers as tables: text for a terminal of 100 columns, or Markdown.

First what each answer of advise.py shows, as sections; then sections as text. A section is a dict: title, header
(cells), rows (lists of cells, the first is the label), notes (lines), code (lines to be pasted).
"""

import textwrap

from isoflop.display import seconds

WIDTH = 100


def si(x, digits=4) -> str:
    """A count that is read at a glance: 1.545B, 524.3k; from a thousand trillions on in powers of ten; None a dash."""
    if x is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(x) < 1e15:
            return f"{x / size:.{digits}g}{unit}" if abs(x) / size < 999.5 else f"{x / size:.0f}{unit}"
    return f"{x:.{digits}g}"


def gb(x) -> str:
    """Bytes in GB of 1e9, with three digits."""
    return "-" if x is None else f"{x / 1e9:.3g} GB" if x >= 1e9 else f"{x / 1e6:.3g} MB"


def money(x) -> str:
    return "-" if x is None else f"${x:,.0f}" if x >= 100 else f"${x:,.2f}"


def time(x) -> str:
    return "-" if x is None else seconds(x)


# ----- what each answer shows -----


def of_runs(answers: list[dict], machine) -> list[dict]:
    """Sections of advise.describe()'s answers, one column each."""
    header = ["", *(a["name"] for a in answers)]

    def section(title, *rows, notes=()):
        cells = [[label, *(show(a) for a in answers)] for label, show in rows]
        return {
            "title": title,
            "header": header,
            "rows": [r for r in cells if set(r[1:]) - {"-"}],
            "notes": list(notes),
        }

    def count(x):  # to the last one where there is room
        return f"{x:,}" if len(answers) < 3 else si(x)

    def part(name):
        return lambda a: f"{count(a['parameters'][name])} {a['parameters'][name] / a['parameters']['total']:6.1%}"

    def whole(name):
        return lambda a: count(a["parameters"][name]) + " " * 7

    tokens = " tokens" if len(answers) < 3 else ""
    kinds = [k for k in answers[0]["parameters"] if k not in ("total", "non_embedding", "matmul")]
    kinds = [k for k in kinds if any(a["parameters"][k] for a in answers)]
    out = [
        section(
            "Model",
            ("layers x width", lambda a: f"{a['shape']['n_layer']} x {a['shape']['n_embd']}"),
            ("heads x size", lambda a: f"{a['shape']['n_head']} x {a['shape']['head_size']}"),
            ("key-value heads", lambda a: str(a["shape"]["n_kv_head"])),
            ("MLP", lambda a: f"{a['shape']['n_ffn']} {a['shape']['activation']}"),
            ("context", lambda a: f"{a['shape']['block_size']:,}"),
            ("vocabulary", lambda a: f"{a['shape']['vocab_size']:,}{' tied' if a['shape']['tied'] else ''}"),
        ),
        section(
            "Parameters",
            *((k, part(k)) for k in kinds),
            ("total", whole("total")),
            ("  of it non-embedding", whole("non_embedding")),
            ("matmul (N of 6ND)", whole("matmul")),
            ("a layer's attention", lambda a: si(a["per_layer"]["attention"])),
            ("a layer's MLP", lambda a: si(a["per_layer"]["mlp"])),
        ),
        section(
            "Training",
            ("tokens (D)", lambda a: si(a["run"]["tokens"])),
            ("steps", lambda a: f"{a['run']['steps']:,} x {a['run']['tokens_per_step']:,}{tokens}"),
            ("FLOPs a token, 6N", lambda a: f"{a['flops']['per_token_6n']:.4g}"),
            ("  with attention", lambda a: f"{a['flops']['per_token_exact']:.4g}"),
            ("FLOPs, 6ND", lambda a: f"{a['flops']['run_6nd']:.4g}"),
            ("  with attention", lambda a: f"{a['flops']['run_exact']:.4g}"),
            ("  over 6ND", lambda a: f"{a['flops']['exact_over_6n']:.3f}"),
        ),
        section(
            "Chinchilla: 20 tokens per parameter, N total",
            ("N", lambda a: si(a["chinchilla"]["n"])),
            ("D", lambda a: si(a["chinchilla"]["tokens"])),
            ("20 N", lambda a: si(a["chinchilla"]["tokens_wanted"], 3)),
            ("D / N", lambda a: f"{a['chinchilla']['ratio']:.1f}"),
            ("status", lambda a: a["chinchilla"]["status"]),
            ("shortfall, tokens", lambda a: si(a["chinchilla"]["shortfall"] or None, 3)),
            ("steps for 20 N", lambda a: f"{a['chinchilla']['iterations_wanted']:,}"),
            ("  still needed", lambda a: f"{a['chinchilla']['iterations_needed']:,}"),
        ),
    ]
    if "repeated" in answers[0]:
        out.append(
            section(
                "Repeated data (Muennighoff et al. 2023)",
                ("different tokens", lambda a: si(a["repeated"]["unique_tokens"])),
                ("epochs", lambda a: f"{a['repeated']['epochs']:.2f}"),
                ("worth, in new tokens", lambda a: si(a["repeated"]["effective_tokens"])),
                ("loss by their law", lambda a: f"{a['repeated']['loss']:.3f}"),
                ("  were all new", lambda a: f"{a['repeated']['loss_if_all_new']:.3f}"),
            )
        )
    conventions = {name: row["convention"] for name, row in answers[0]["loss"].items()}
    if conventions:
        rows = [(name, lambda a, name=name: f"{a['loss'][name]['loss']:.3f}") for name in conventions]
        counted = ", ".join(f"{name} counts N {kind.replace('_', '-')}" for name, kind in conventions.items())
        warned = list(dict.fromkeys(w for a in answers for w in a["warnings"] if ": N = " in w or ": D = " in w))
        notes = [counted + "; losses compare within one law, not between texts and tokenizers"]
        out.append(section("Predicted loss, nats a token", *rows, notes=notes + [f"outside: {w}" for w in warned]))
    out.append(_memory(answers, machine, section))
    if machine.speed:
        notes = [f"speed: {machine.speed.how}"]
        if machine.price_per_hour is not None:
            notes.append(f"price: ${machine.price_per_hour:.2f} an hour and device ({machine.price_source})")
        out.append(
            section(
                f"Time and cost on {machine.n_gpus} x {machine.gpu or 'this device'}",
                ("time", lambda a: time(a["time"]["seconds"])),
                ("device hours", lambda a: f"{a['time']['gpu_hours']:,.1f}"),
                ("cost", lambda a: money(a["time"]["dollars"])),
                notes=notes,
            )
        )
    return out


def _memory(answers, machine, section):
    def row(key):
        return lambda a: gb(a["memory"][key])

    n = machine.n_gpus
    rows = [
        ("sequences per forward pass", lambda a: str(a["memory"]["micro_batch_size"])),
        ("weights", row("weights")),
        ("gradients", row("gradients")),
        ("optimizer", row("optimizer")),
        (f"  ZeRO-1 over {n}", row("optimizer_zero1")),
        ("activations", row("activations")),
        ("  checkpointed", row("activations_checkpointed")),
        ("logits and head", row("logits")),
        ("evaluation", row("evaluation")),
        ("peak", row("peak")),
        (f"  ZeRO-1 over {n}", row("peak_zero1")),
        ("  checkpointed", row("peak_checkpointed")),
        ("  both", row("peak_zero1_checkpointed")),
    ]
    if n == 1:
        rows = [r for r in rows if "ZeRO" not in r[0] and r[0] != "  both"]
    kind = answers[0]["memory"]
    notes = ["the peak is of one moment: components do not all overlap"]
    if kind["path"] == "cuda":
        notes.append("counted from what autograd saves under autocast; not yet measured on a GPU")
    if machine.memory is not None:
        rows.append((f"fits {machine.memory / 1e9:g} GB", lambda a: _fits(a["memory"])))
    return section(f"Memory of one process, {kind['path']}, {kind['dtype']}", *rows, notes=notes)


def _fits(m):
    return "yes" if m["fits"] else "--zero1" if m["fits_zero1"] else "no"


def of_rules(table: dict, used: str, full: bool) -> dict:
    """The rules side by side; sources, ranges and what lies outside them for the rule in use, or for all."""
    rows = [
        [name + (" *" if name == used else ""), f"{r['lr']:.3g}", si(r["batch_of_the_rule"], 3),
         f"{r['weight_decay']:.3g}", f"{r['beta2']:g}", f"{r['warmup_frac']:.1%}", _outside(r["outside"])]
        for name, r in table.items()
    ]  # fmt: skip
    notes = []
    for name, r in table.items():
        if full or name == used:
            notes.append(f"{name}: {r['source']}. Measured: {r['measured']}")
            notes += [f"outside: {name}: {line}" for line in r["outside"]]
    notes += [] if full else ["* in use; --hparams NAME takes another, --rules prints every source and range"]
    header = ["", "rate at this batch", "its own batch", "decay", "beta2", "warm-up", "outside its range"]
    return {"title": "Rules for the optimizer", "header": header, "rows": rows, "notes": notes}


def _outside(lines):
    return ", ".join(line.split(":")[0].removeprefix("--").rsplit(" is ")[0].rsplit(" ", 1)[0] for line in lines) or "-"


def of_commands(c: dict, name: str | None = None) -> dict:
    return {
        "title": f"Train {name or 'it'}",
        "code": [line for line in (c["data"], c["train"]) if line],
        "notes": [c["note"]] if c["note"] else [],
    }


def of_search(a: dict, machine) -> list[dict]:
    counted = "with attention" if a["exact"] else "6ND"
    named = {"n_params": "N total"}.get(a["convention"], f"N {a['convention'].replace('_', '-')}")
    header = ["layers x width", "heads", "N", "D", "D/N", "loss", "gap", "memory", "fits", "time", "cost"]

    def table(title, rows, notes=()):
        cells = [_candidate(r) for r in rows]
        return {"title": title, "header": header, "rows": cells, "notes": list(notes)}

    shape = a["best"][0]["cfg"]
    notes = [
        f"family {a['family']}: context {shape.block_size:,}, vocabulary {shape.vocab_size:,}, {shape.activation}"
        f"{', tied' if shape.tied else ''}; --family, --block_size, --vocab_size and any field change it",
        f"{a['candidates']:,} architectures; the best depth of each width is listed. {named}, as {a['law']} counts it; "
        f"its own optimum at 6ND: N {si(a['optimum']['n'])}, D {si(a['optimum']['tokens'])}",
        "the law knows N and D, not shapes: rows within 0.001 nats are equally good",
        f"memory: {a['memory_of']}",
    ]
    if machine.speed:
        notes.append(f"speed: {machine.speed.how}")
    if machine.price_per_hour is not None:
        notes.append(f"price: ${machine.price_per_hour:.2f} an hour and device ({machine.price_source})")
    notes += [f"outside: {w}" for w in a["warnings"]]
    return [
        table(f"{a['flops']:.4g} FLOPs ({counted}): least loss by {a['law']}", a["best"]),
        table(f"The same with D = {a['ratio']:g} N (to 5%)", a["constrained"], notes),
    ]


def _candidate(r: dict) -> list[str]:
    cfg, memory = r["cfg"], r["memory"]
    heads = f"{cfg.n_head}" + (f"/{cfg.n_kv_head}" if cfg.n_kv_head != cfg.n_head else "")
    size = [si(r["n"]), si(r["tokens"]), f"{r['ratio']:.1f}", f"{r['loss']:.4f}", f"{r['gap']:+.4f}"]
    fits = _fits(memory) if "fits" in memory else "-"
    bill = [time(r["time"]["seconds"]), money(r["time"]["dollars"])]
    return [f"{cfg.n_layer} x {cfg.n_embd}", heads, *size, gb(memory["peak"]), fits, *bill]


def of_best_size(a: dict) -> dict:
    rows = [
        [name, si(r["tokens"]), f"{r['ratio']:.1f}", f"{r['flops']:.3g}",
         "-" if r["loss"] is None else f"{r['loss']:.3f}", time(r["seconds"])]
        for name, r in a["answers"].items()
    ]  # fmt: skip
    header = ["", "tokens", "D/N", "FLOPs, 6ND", "loss", "time"]
    return {"title": f"Tokens for {si(a['n'])} parameters", "header": header, "rows": rows,
            "notes": [f"outside: {w}" for w in a["warnings"]]}  # fmt: skip


def of_loss(a: dict) -> dict:
    rows = [
        [name, f"{r['flops']:.3g}", si(r["n"]), si(r["tokens"]), f"{r['ratio']:.1f}", time(r["seconds"])]
        for name, r in a["answers"].items()
    ]
    header = ["", "FLOPs, 6ND", "N", "D", "D/N", "time"]
    return {"title": f"Least compute for a loss of {a['loss']:g} nats a token", "header": header, "rows": rows,
            "notes": [f"outside: {w}" for w in a["warnings"]]}  # fmt: skip


def of_lifetime(a: dict) -> dict:
    rows = []
    for name, r in a["answers"].items():
        rows.append([f"{name}: loss {r['loss']:.3f}", "training alone", si(r["n_training_only"]),
                     si(r["tokens_training_only"]), f"{r['tokens_training_only'] / r['n_training_only']:.1f}",
                     f"{r['flops_training_only']:.3g}", ""])  # fmt: skip
        rows.append(["", "whole life", si(r["n"]), si(r["tokens"]), f"{r['ratio']:.1f}", f"{r['flops']:.3g}",
                     f"{r['saved']:.1%}"])  # fmt: skip
    header = ["", "best for", "N", "D", "D/N", "all FLOPs", "saved"]
    title = (
        f"Over a life of {si(a['inference_tokens'])} inference tokens: 6 N D + 2 N D_inference (Sardana et al. 2023)"
    )
    return {"title": title, "header": header, "rows": rows, "notes": [f"outside: {w}" for w in a["warnings"]]}


def of_verdict(v: dict, losses: dict) -> dict:
    rows = [["N", si(v["n"])], ["D", si(v["tokens"])], ["20 N", si(v["tokens_wanted"], 3)]]
    rows += [["D / N", f"{v['ratio']:.1f}"], ["status", v["status"]], ["shortfall", si(v["shortfall"] or None, 3)]]
    rows += [[f"loss, {name}", f"{loss:.3f}"] for name, loss in losses.items()]
    return {"title": "Chinchilla: 20 tokens per parameter", "rows": rows}


def of_repeated(r: dict) -> dict:
    rows = [["tokens", si(r["tokens"])], ["of them different", si(r["unique_tokens"])]]
    rows += [["epochs", f"{r['epochs']:.2f}"], ["worth, in new tokens", si(r["effective_tokens"])]]
    rows += [["  share", f"{r['effective_tokens'] / r['tokens']:.1%}"], ["most that repeating can give", si(r["most"])]]
    if "loss" in r:
        rows += [["loss by their law", f"{r['loss']:.3f}"], ["  were all new", f"{r['loss_if_all_new']:.3f}"]]
    return {"title": "Repeated data (Muennighoff et al. 2023)", "rows": rows}


# ----- sections as text -----


def text(sections) -> str:
    return "\n\n".join("\n".join(_text(s)) for s in sections)


def _text(section):
    if section.get("title"):
        yield section["title"]
    header, rows = section.get("header"), section.get("rows", [])
    lines = [header, *rows] if header else rows
    if lines:
        widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
        for some in _columns(widths):
            for at, row in enumerate(lines):
                if at == 0 and header and some[0] != 1:
                    yield ""
                cells = [row[0].ljust(widths[0])] + [_aligned(row[i], widths[i], section) for i in some]
                yield ("  " + "  ".join(cells)).rstrip()
    for line in section.get("code", []):  # never broken: it is to be pasted
        yield f"  {line}"
    for note in section.get("notes", []):
        yield from textwrap.wrap(note, WIDTH - 2, initial_indent="  - ", subsequent_indent="    ")


def _aligned(cell, width, section):
    return cell.ljust(width) if section.get("left") else cell.rjust(width)


def _columns(widths):
    """Column numbers, in groups that fit the terminal beside the first column."""
    group, used = [], widths[0] + 2
    for i, width in enumerate(widths[1:], 1):
        if group and used + width + 2 > WIDTH:
            yield group
            group, used = [], widths[0] + 2
        group.append(i)
        used += width + 2
    if group:
        yield group


def markdown(sections) -> str:
    out = []
    for s in sections:
        if s.get("title"):
            out += [f"### {s['title']}", ""]
        rows = s.get("rows", [])
        if rows:
            header = s.get("header") or [""] * len(rows[0])
            out += [_row(header), _row(["---"] + [":--" if s.get("left") else "--:"] * (len(header) - 1))]
            out += [_row(r) for r in rows] + [""]
        if s.get("code"):
            out += ["```bash", *s["code"], "```", ""]
        out += [f"- {note}" for note in s.get("notes", [])] + [""] * bool(s.get("notes"))
    return "\n".join(out).rstrip()


def _row(cells):
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
