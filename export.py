"""Take a trained model to Hugging Face's transformers, or bring one of theirs here.

    python export.py --ckpt out/RUN_ID --out exported --verify
    python export.py --from_hf gpt2 --out out/gpt2            # a folder with config.json and safetensors
    python sample.py --ckpt out/gpt2 --prompt "The meaning of life is"

What is written loads with AutoModelForCausalLM and AutoTokenizer and no code of ours. Three stock architectures are
known, and a model that none of them computes exactly is refused:

    GPT2LMHeadModel     learned positions, LayerNorm; presets gpt2* and nanogpt
    LlamaForCausalLM    rotary positions, RMSNorm, SwiGLU; presets llama*
    Qwen3ForCausalLM    the same with normalised queries and keys: the default architecture

Stock models always have gains, and GPT-2 biases: where ours has none they are ones and zeros. Squared ReLU is
relu(gate) * up with one matrix in both places: so LLaMA's MLP computes it, and the file is that much larger.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from isoflop.cli import Parser
from isoflop.hf import tokenizer
from isoflop.hf.weights import RELATED, need, read_hf, write_hf, write_json
from isoflop.options import option
from isoflop.train import run_dir
from model import GPT, save_model


@dataclass(frozen=True)
class ExportConfig:
    """From where to where."""

    ckpt: str | None = option(None, "folder that train.py left, or one of its checkpoints")
    from_hf: str | None = option(None, "folder of a GPT-2 or LLaMA model of Hugging Face's, to bring here")
    out: str | None = option(None, "folder to write")
    format: str = option("hf", "what --ckpt is written as", choices=("hf",))
    data_dir: str | None = option(None, "data folder whose tokenizer to use (default: the copy beside the weights)")
    verify: bool = option(False, "load the result with transformers and compare its logits with ours")
    overwrite: bool = option(False, "replace the files of an earlier export in --out")

    def __post_init__(self):
        if (self.ckpt is None) == (self.from_hf is None):
            raise ValueError("give one of --ckpt (to Hugging Face) and --from_hf (from there)")
        if self.out is None:
            raise ValueError("--out is missing: name the folder to write")


def verify(model: GPT, folder: Path) -> str:
    """Our logits against transformers' on the same random tokens; ValueError where they differ."""
    transformers = need("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = torch.Generator().manual_seed(0)
    idx = torch.randint(model.config.vocab_size, (2, min(64, model.config.block_size)), generator=rows)
    with torch.no_grad():
        a, b = model(idx)[0], theirs(idx).logits.float()
    worst, largest = (a - b).abs().max().item(), max(1.0, a.abs().max().item())
    if not worst <= RELATED * largest:
        raise ValueError(f"{folder}: logits differ by {worst:.3g} of {largest:.3g}; this is a mistake in export.py")
    return f"logits equal transformers' {transformers.__version__} to {worst:.2g} of {largest:.3g}"


def bring(folder: Path, out: Path) -> str:
    """A folder of Hugging Face's as one of ours: weights, configuration, tokenizer, and the record if it has one."""
    if not folder.is_dir():
        raise ValueError(f"--from_hf {folder}: no such folder; get it first: hf download NAME --local-dir {folder}")
    model = read_hf(folder)
    spec, problem = tokenizer.from_folder(folder)
    out.mkdir(parents=True, exist_ok=True)
    if spec is not None:
        write_json(out / "tokenizer.json", spec, indent=None)
    if (folder / "run.json").is_file():
        shutil.copyfile(folder / "run.json", out / "run.json")
    save_model(model, out)
    note = f"; {problem}" if problem else ""
    return f"{out}: {sum(p.numel() for p in model.parameters()):,} weights, context {model.config.block_size:,}{note}"


def claim(out: Path, overwrite: bool):
    """ValueError, before anything is read, where --out holds something that is not to be replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"--out {out} exists and is not empty; name another folder or add --overwrite")


def main(argv=None):
    parser = Parser("export.py", __doc__, ExportConfig)
    args = parser.parse_args(argv)
    try:
        ec = parser.read(ExportConfig, args)
        out = Path(ec.out)
        claim(out, ec.overwrite)
        if ec.verify:
            need("transformers")  # before anything is written
        if ec.from_hf is not None:
            print(bring(Path(ec.from_hf), out))
            if ec.verify:
                print(verify(run_dir.load(out).model, Path(ec.from_hf)))
        else:
            found = run_dir.load(ec.ckpt, ec.data_dir)
            print(write_hf(found, out))
            if ec.verify:
                print(verify(found.model, out))
    except (ValueError, OSError) as error:
        parser.fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
