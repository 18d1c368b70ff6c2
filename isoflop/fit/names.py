"""
Names of columns: which ones are usual for N, D, C, the loss and the like, and the unit that a name tells.

    >>> candidates("loss", ["Params (M)", "Tokens (B)", "val_ppl"])  # [2]
    >>> unit_in("Params (M)", "n"), loss_unit("val_ppl")             # 1e6, "perplexity"

Besides this project's own the names are those of nanochat, OLMo, marin (levanter), Step Law, W&B, Hugging Face's
Trainer, and of public tables of runs.
"""

import math
import re

from isoflop.fit.values import SCALES, scale_of

# First name present wins. Compared in lower case with every run of other characters as one underscore.
NAMES = {
    "n": "n_params_matmul n_params params parameters n num_params n_parameters model_size non_embedding_params "
    "n_params_non_embedding model_params num_parameters parameter_count param_count weight_params "
    "params_total total_params params_non_embedding params_active_precise n_active_params active_params size",
    "d": "tokens d n_tokens num_tokens training_tokens train_tokens tokens_seen total_tokens tokens_trained token_num "
    "throughput_total_tokens num_tokens_seen train_num_input_tokens_seen num_input_tokens_seen tokens_processed "
    "train_tokens_seen consumed_tokens",
    "c": "flops compute_budget c flop compute training_flop training_flops train_flops total_flops budget flop_budget "
    "flops_budget total_flos train_total_flos pf_days pflop_s_days petaflop_days throughput_total_flops "
    "throughput_total_training_flops actual_flops compute_flops training_compute train_compute",
    "loss": "val_loss final_loss loss l validation_loss valid_loss eval_loss test_loss train_loss training_loss "
    "final_val_loss best_val_loss openlm_loss val_bpb bpb bits_per_byte val_bpc bpc bits_per_character val_ppl ppl "
    "perplexity val_perplexity eval_perplexity",
    "run_id": "run_id run run_name id",
    "name": "name exp exp_name model_name experiment experiment_name display_name model run_path",
    "status": "status state",
    "loss_se": "val_loss_se loss_se",
    "step": "step _step current_step current_steps global_step trainer_global_step train_global_step iter iteration "
    "iterations_elapsed steps_elapsed it",
    "total_steps": "total_steps max_steps num_steps total_iters max_iters num_iterations",
    "portion": "portion_steps_elapsed fraction_of_training run_progress progress portion_elapsed",
    "epochs": "epochs n_epochs num_epochs data_epochs epoch",
    "ratio": "tokens_per_param tokens_per_parameter d_n tpp token_param_ratio",
    "unique": "unique_tokens n_unique_tokens num_unique_tokens",
}
SETTINGS = {  # columns that laws of the hyper-parameters need (hparam_law.py)
    "lr": "lr peak_lr learning_rate max_lr max_learning_rate base_lr lr_max learning_rates lrs",
    "batch_tokens": "tokens_per_step batch_tokens tokens_per_batch batch_size_tokens global_batch_tokens",
    "steps": "steps n_steps train_steps ti iters train_iters max_iters num_iterations total_steps max_steps num_steps "
    "total_iters iterations",
    "batch": "bs batch_size global_batch_size gbs batch",
}
SUMS = {("params_transformer", "params_lm_head"): "n"}  # nanochat: the N that its own scaling laws use
WEAK = {  # tried after the usual names: patterns of a key, the more telling first
    "loss": (r"(val|eval|test|valid).*(loss|cross_?entropy|_ce)$", r"(loss|cross_?entropy(loss)?)$",
             r"(val|eval|test|valid).*(bpb|bpc|ppl|perplexity)$", r"(bpb|bpc|ppl|perplexity)$"),
    "n": (r"(num|n|total|non_embedding).*param(eter)?s?$", r"(^|_)param(eter)?s(_count)?$"),
    "d": (r"(num|n|total|train|training|seen)_.*tokens?$", r"^tokens?_(seen|total|num|count)"),
    "c": (r"(total|train|training).*(flops?|compute)$",),
}  # fmt: skip
REMARKS = {  # behind another word, in brackets: "data (billion tokens)"
    "n": re.compile(r"[(\[{](?!.*(/|per)).*(params|parameters)\s*[)\]}]$", re.I),
    "d": re.compile(r"[(\[{](?!.*(/|per)).*tokens\s*[)\]}]$", re.I),
}
LOG = re.compile(r"\s*(log10|ln)[\s_]*[(\[]?\s*(.*?)\s*[)\]]?\s*$", re.I)  # "log" alone may be either
NO_N = re.compile(r"embed|wte|head|scalar|per_|tokens")
NO_D = re.compile(r"per_|batch|unique|val|eval")
LOGS = {"log10": 10.0, "ln": math.e}
LOSS_UNITS = {
    "perplexity": r"ppl|perplexity",
    "bits per byte": r"bpb|bits?_(per_)?byte",
    "bits per character": r"bpc|bits?_(per_)?char(acter)?s?",
    "bits per token": r"bpt|bits?_(per_)?tok(en)?s?|bits",
    "nats per byte": r"nats?_(per_)?byte",
    "nats per token": r"nats?(_(per_)?tok(en)?s?)?",
}
WORDS = sorted((word for words in SCALES.values() for word in words.split()), key=len, reverse=True)
TAIL = re.compile(rf"_(?:in_)?({'|'.join(WORDS)}|x?1e\d+|pf_?days?|pflops?_s_days?)(?:_(?:params|tokens|flops))?$")


def key_of(name):
    """A name in lower case, every run of other characters one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower()).strip("_")


def is_known(name):
    """Whether a name is one of the usual ones."""
    key = key_of(name)
    return any(key in names.split() for names in NAMES.values())


def keys_of(name):
    """The keys that a column goes by, the best first: its own, without its path, without a remark, without a unit."""
    log = LOG.fullmatch(str(name))
    key, text = key_of(name), log[2] if log and log[2] else str(name)
    out = [key, key_of(text.rsplit(".", 1)[-1])]
    bare = key_of(re.sub(r"\s*[(\[{][^)\]}]*[)\]}]\s*$", "", text.rsplit(".", 1)[-1]))
    out += [bare, TAIL.sub("", out[1]), re.sub(r"(^|_)([kmgtpez]|giga|peta|exa|zetta)flop", r"\1flop", out[1])]
    return list(dict.fromkeys(one for one in out if one))


def column(header, name):
    """Index of the column that a person means by name: itself, else the only one of the same key; None for none."""
    if name in header:
        return header.index(name)
    for rank in range(5):
        same = []
        for i, other in enumerate(header):
            keys = keys_of(other)
            if rank < len(keys) and keys[rank] == key_of(name):
                same.append(i)
        if len(same) == 1:
            return same[0]
    return None


def candidates(role, header):
    """Indices of the columns that may play a role by their names, the likeliest first."""
    keys = [keys_of(name) for name in header]
    found = []
    for rank in range(5):  # a column's own name before what is left of it without its unit
        for usual in (NAMES | SETTINGS)[role].split():
            for i, own in enumerate(keys):
                if rank < len(own) and own[rank] == key_of(usual):
                    found.append(i)
    for pattern in WEAK.get(role, ()):
        for i, own in enumerate(keys):
            barred = {"n": NO_N, "d": NO_D}.get(role)
            if not own or (barred and barred.search(own[0])):  # no name, or of something else
                continue
            if re.search(pattern, own[-1]):
                found.append(i)
    if role in REMARKS:
        found += [i for i, name in enumerate(header) if REMARKS[role].search(str(name))]
    return list(dict.fromkeys(found))


# ----- units -----


def unit_in(name, role):
    """
    The factor in a column's name for N, D or C: 1e6 of "Params (M)", 1e9 of tokens_B; 1 without a unit. For a
    logarithm its name, a key of LOGS.
    """
    text = str(name)
    log = LOG.fullmatch(text)
    if log and log[2]:
        return log[1].lower()
    inside = re.search(r"[(\[{]\s*(?:in )?([^)\]}]*?)\s*[)\]}]\s*$", text)
    if inside:
        return scale_of(inside[1]) or 1.0
    key = key_of(text.rsplit(".", 1)[-1])
    if re.search(r"p(f|flops?_s)_?days?$|petaflops?_(s_)?days?$", key):
        return scale_of("pf-days")
    flops = re.search(r"(?:^|_)([kmgtpez]|giga|peta|exa|zetta)flop[s]?$", key)
    if role == "c" and flops:
        return scale_of(flops[1])
    tail = TAIL.search(key)
    plain = key in NAMES[role].split()
    if tail and not plain and TAIL.sub("", key):
        return scale_of(tail[1]) or 1.0
    return 1.0


def loss_unit(name):
    """What a loss column's name says it is measured in; nats per token where it says nothing."""
    key = key_of(name)
    for unit, pattern in LOSS_UNITS.items():
        if re.search(rf"(^|_)({pattern})(_|$)", key):
            return unit
    return "nats per token"
