"""
The picture of an architecture's FLOPs, for model.py.

    python model.py --depth 12 --plot_flops flops.png
"""

import math
from dataclasses import replace
from pathlib import Path

from isoflop.config import ModelConfig
from isoflop.files import atomic
from isoflop.flops import count_params, flops_per_token_exact


def plot_flops(cfg: ModelConfig, path: str):
    """Draw exact FLOPs over 6ND, under each convention of N, as depth, width and context of cfg vary one at a time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    conventions = (
        ("matmul", "-", "N = weights that multiply, with the head"),
        ("total", "--", "N = all weights"),
        ("non_embedding", ":", "N = without embeddings and head"),
    )
    with plt.rc_context({"font.size": 13}):  # read on a phone, too
        fig, axes = plt.subplots(3, 1, figsize=(7, 12.5), layout="constrained")
        for ax, (label, here, models) in zip(axes, _varied(cfg), strict=True):
            ax.axhspan(0.95, 1.05, color="0.88", label="within 5%")
            for name, line, text in conventions:
                ratios = [flops_per_token_exact(model) / (6 * count_params(model)[name]) for model in models.values()]
                ax.plot(list(models), ratios, line, lw=2.5, marker="o", ms=4, label=text)
            ax.axvline(here, color="0.5", lw=1)
            ax.set(xscale="log", yscale="log", xlabel=label, ylabel="exact / 6ND")
            ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(2))
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x < 1024 else f"{x / 1024:g}k")
            ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(10, (1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            ax.minorticks_off()
            ax.grid(alpha=0.3)
        axes[0].legend(fontsize=12)
        axes[0].set_title(
            f"Exact FLOPs over 6ND around {cfg.n_layer} layers x {cfg.n_embd},\n"
            f"context {cfg.block_size:,}, vocabulary {cfg.vocab_size:,} (grey lines)"
        )
        with atomic(path, "wb") as f:
            fig.savefig(f, dpi=110, format=Path(path).suffix[1:] or "png")
        plt.close(fig)


def _varied(cfg: ModelConfig):
    """(axis label, cfg's own value, {value: ModelConfig}) for layers, width and context."""
    layers = {n: replace(cfg, n_layer=n) for n in _powers_of_two(cfg.n_layer, 1, 128)}
    widths = {}
    for heads in _powers_of_two(cfg.n_head, 1, 2**14 // cfg.head_size):
        width = heads * cfg.head_size
        n_ffn = round(cfg.n_ffn / cfg.n_embd * width)
        widths[width] = replace(cfg, n_embd=width, n_head=heads, n_kv_head=math.gcd(heads, cfg.n_kv_head), n_ffn=n_ffn)
    contexts = {n: replace(cfg, block_size=n) for n in _powers_of_two(cfg.block_size, 64, 2**17)}
    return [
        ("layers", cfg.n_layer, layers),
        ("width", cfg.n_embd, widths),
        ("context length in tokens", cfg.block_size, contexts),
    ]


def _powers_of_two(own, least, most):
    """Those from least to most, and `own`."""
    return sorted({own, *(2**i for i in range(20) if least <= 2**i <= most)})
