"""Muon for the hidden matrices, over the flat buffers of adamw.py."""

import math
from collections import defaultdict

import torch

from isoflop.optim.adamw import FlatAdamW


class FlatMuon(FlatAdamW):
    """Muon for the hidden matrices, AdamW for the rest; torch.optim.Muon's update on the same flat buffers.

    The momentum of each matrix, made orthogonal, is its step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
    adjust : see update_size(). inner : type of the iteration; torch's is bfloat16.
    """

    muon = True
    momentum = 0.95

    def __init__(self, *args, adjust="match_rms_adamw", inner=torch.bfloat16, **options):
        self.adjust, self.inner = adjust, inner
        super().__init__(*args, **options)
        for group in self.groups:
            start, group["matrices"] = 0, defaultdict(list)  # shape -> where matrices of it start
            for p in group["params"]:
                group["matrices"][tuple(p.shape)].append(start)
                start += p.numel()

    def _update(self, group, lr, weight_decay, scale):
        if not group["muon"]:
            return super()._update(group, lr, weight_decay, scale)
        w, g, m, _ = group["flat"]
        m.lerp_(g.div_(scale), 1 - self.momentum)
        g.lerp_(m, self.momentum)  # Nesterov's look ahead
        w.mul_(1 - lr * weight_decay)
        for (rows, columns), places in group["matrices"].items():
            cut = [slice(at, at + rows * columns) for at in places]
            steps = orthogonal(torch.stack([g[c].view(rows, columns) for c in cut]).to(self.inner))
            targets = [w[c].view(rows, columns) for c in cut]
            size = update_size(self.adjust, rows, columns)
            torch._foreach_add_(targets, list(steps.to(w.dtype).unbind()), alpha=-lr * size)


def update_size(adjust: str, rows: int, columns: int) -> float:
    """Factor on the orthogonal step of a matrix.

    "match_rms_adamw" makes the step as large per weight as AdamW's, so that rates carry over (Liu et al. 2025,
    arXiv:2502.16982, section 2.2); "original" gives it a spectral norm of about sqrt(max(1, rows / columns)).
    """
    if adjust == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def orthogonal(x, steps: int = 5, coefficients=(3.4445, -4.7750, 2.0315), eps: float = 1e-7):
    """About the nearest orthogonal matrix to each of x (n, rows, columns), by a quintic Newton-Schulz iteration.

    The coefficients make the slope at zero as steep as possible: singular values end between about 0.7 and 1.2.
    """
    a, b, c = coefficients
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
