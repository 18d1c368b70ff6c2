"""Parameter groups: which learning rate and weight decay each tensor gets."""

from isoflop.optim.hparams import EMBEDDING_LR_MULT, LR_WIDTH


def param_groups(model, weight_decay: float) -> list[dict]:
    """Hidden matrices, head, look-up tables, vectors (gains and biases); lr_mult multiplies plan.lr.

    Every parameter is in exactly one group. With cfg.init "scaled" decay acts on the hidden matrices alone: the
    embedding's rows are seen at very different rates, and decay would shrink the rare ones most. A rate of 1 / width
    is right for what multiplies activations; tables and vectors take one that is the same at every width. A matrix
    that is both head and embedding takes the head's, and positions with it: they start as small. With "normal" there
    is one rate, and everything of two dimensions decays, as in nanoGPT.
    """
    cfg, named = model.config, dict(model.named_parameters())  # a shared matrix is named once
    head = model.lm_head.weight
    groups = [
        dict(params=[p for name, p in named.items() if name.startswith("h.") and p.ndim > 1], hidden=True, lr_mult=1.0),
        dict(params=[head], lr_mult=1.0),
        dict(
            params=[p for name, p in named.items() if name in ("wte.weight", "wpe.weight") and p is not head],
            lr_mult=1.0 if cfg.tied else EMBEDDING_LR_MULT * cfg.n_embd / LR_WIDTH,
        ),
        dict(params=[p for p in named.values() if p.ndim < 2], lr_mult=cfg.n_embd / LR_WIDTH, vector=True),
    ]
    for group in groups:
        if cfg.init == "normal":
            group["lr_mult"] = 1.0
        decays = not group.get("vector") if cfg.init == "normal" else group.get("hidden")
        group["weight_decay"] = weight_decay if decays else 0.0
    grouped = sorted(id(p) for group in groups for p in group["params"])
    assert grouped == sorted(id(p) for p in named.values()), "a parameter is in no optimizer group, or in two"
    return [group for group in groups if group["params"]]


def ordered_groups(model, weight_decay: float, muon: bool) -> list[dict]:
    """param_groups() in the order of checkpoints. `muon` in a group says that its matrices are Muon's: they come last,
    so that AdamW's second moment, which they lack, is a prefix."""
    groups = param_groups(model, weight_decay)
    for group in groups:
        group["muon"] = muon and group.get("hidden", False)
    return sorted(groups, key=lambda group: group["muon"])
