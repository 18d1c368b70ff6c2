"""The commands that make the data of a planned run and train it."""

import shlex
from dataclasses import dataclass, fields

from isoflop.config import ModelConfig, configure, from_depth
from isoflop.options import options_of
from isoflop.train.plan import TrainConfig

GPT2_VOCAB, NEAR_GPT2 = 50257, 64  # vocabularies so near (padded ones) are trained on GPT-2's tokens
FIRST = ["n_layer", "n_embd", "n_head", "n_kv_head"]  # what decides whether the rest can be built
IMPLIED = ["vocab_size", "head_size", "ffn_mult"]  # by the data, by n_head and by n_ffn


@dataclass(frozen=True)
class Commands:
    """Lines to paste. data: None where the folder was named; note: what differs from the plan, or None."""

    data: str | None
    train: str
    note: str | None


def architecture_flags(cfg: ModelConfig, preset: str | None = None, depth: int | None = None) -> list[str]:
    """The fewest flags of train.py that make cfg, as words; its vocabulary comes from the data.

    From the preset (or the depth family) field by field: what a given width implies is not given again.
    """
    said = {"vocab_size": cfg.vocab_size}
    out, rare = [], []
    if preset:
        out += ["--preset", preset]
    start = {}
    if depth:
        out += ["--depth", str(depth)]
        start = from_depth(depth)
    of_name = {f.name: f for f in options_of(ModelConfig)}
    names = [f.name for f in fields(ModelConfig) if f.name not in FIRST + IMPLIED]
    for name in FIRST + names:
        value = getattr(cfg, name)
        try:
            implied = getattr(configure(preset, depth, **said), name)
        except ValueError:  # heads of the preset do not divide the new width, and come next
            implied = None
        always = name in ("n_layer", "n_embd") and not preset and name not in start
        if value == implied and not always:
            continue
        said[name] = value
        text = f"{value:.12g}" if isinstance(value, float) else str(value)
        if of_name[name].metadata["rare"]:
            rare.append(f"{name}={text.lower()}")
        else:
            out += [f"--{name}", text]
    if rare:
        out += ["--model", *rare]
    return out


def train_flags(args, shard: bool) -> list[str]:
    """The typed flags of the training run that make_commands() has no words for."""
    replaced = "flop_budget max_iters tokens_per_param data_dir total_batch_size micro_batch_size shard".split()
    words = []
    for f in fields(TrainConfig):
        if not hasattr(args, f.name) or f.name in replaced:
            continue
        value = getattr(args, f.name)
        if isinstance(value, bool):
            words.append(f"--{f.name}" if value else f"--no-{f.name}")
        else:
            words += [f"--{f.name}", f"{value:.12g}" if isinstance(value, float) else str(value)]
    return words + ["--shard"] * shard


def make_commands(
    cfg: ModelConfig, plan, micro_batch_size: int, n_gpus: int, preset=None, depth=None, more=(), data_dir=None,
    unique=None,
) -> Commands:  # fmt: skip
    """Shell commands: the data that this vocabulary needs, and the training run.

    Parameters
    ----------
    plan : the RunPlan of train.plan.resolve().
    preset, depth : what the configuration was made from, so that the flags are few.
    more : further flags of train.py, as words; without --batch_size among them the plan's batch is given in tokens.
    data_dir : a token folder that is there; None has one made, of `unique` tokens or of the plan's.
    """
    vocab, note, data = cfg.vocab_size, None, None
    if data_dir:
        folder, note = data_dir, f"the model gets the vocabulary of {data_dir}"
    else:
        kind, folder = f"bpe:{vocab}", f"data/fineweb_bpe{vocab}"
        if abs(vocab - GPT2_VOCAB) <= NEAR_GPT2:
            kind, folder = "gpt2", "data/fineweb_gpt2"
            if vocab != GPT2_VOCAB:
                note = f"the data has GPT-2's 50,257 tokens: train.py builds the model with those, not with {vocab:,}"
        elif vocab > 2**16:
            note = f"a vocabulary of {vocab:,} learned by data.py stands in for a published one of that size"
        data = f"python data.py --tokenizer {kind} --num_tokens {int(unique or plan.tokens)} --out_dir {folder}"
    words = ["python", "train.py"]
    if n_gpus > 1:
        words = ["torchrun", "--standalone", f"--nproc_per_node={n_gpus}", "train.py"]
    words += ["--data_dir", folder, *architecture_flags(cfg, preset, depth), "--max_iters", str(plan.steps)]
    if "--batch_size" not in more:
        words += ["--total_batch_size", str(plan.tokens_per_step)]
    if micro_batch_size < plan.batch_size:
        words += ["--micro_batch_size", str(micro_batch_size)]
    return Commands(data, shlex.join([*words, *more]), note)
