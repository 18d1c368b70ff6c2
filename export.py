"""Take a trained model to Hugging Face's transformers, or bring one from there.

    python export.py --ckpt out/RUN_ID --out exported --verify
    python export.py --from_hf gpt2 --out out/gpt2      # gpt2 is a local folder
    python sample.py --ckpt out/gpt2 --prompt "The meaning of life is"

What is written loads with AutoModelForCausalLM and AutoTokenizer, and no code
of ours. Three stock architectures are known, and a model that none of them
computes exactly is refused:

    GPT2LMHeadModel     learned positions, LayerNorm; presets gpt2* and nanogpt
    LlamaForCausalLM    rotary positions, RMSNorm, SwiGLU; presets llama*
    Qwen3ForCausalLM    the same with normalized queries and keys: the default

Stock models always have gains, and GPT-2 biases: where ours has none they are
ones and zeros. LLaMA's gated MLP computes squared ReLU as relu(gate) * up, with
one matrix in both places; the file is larger by that matrix.
"""

import isoflop.installed  # noqa: F401 isort: skip
import importlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from isoflop.cli import Parser, UserError, check, option, run_main
from isoflop.files import staged, write_json
from isoflop.hf import tokenizer
from isoflop.hf.weights import read_hf, write_hf
from isoflop.train import run_dir
from model import GPT, load_model, save_model

TOLERANCE = 1e-5  # largest difference of logits that --verify allows, over the largest logit or 1


@dataclass(frozen=True)
class ExportConfig:
    """From where to where."""

    ckpt: str | None = option(None, "folder of a run or checkpoint of train.py", group="model")
    from_hf: str | None = option(None, "folder of a GPT-2, LLaMA, Qwen or Mistral to bring here")
    tokenizer_dir: str | None = option(None, "its tokenizer (default: the copy in --ckpt)", aliases=("data_dir",))

    out: str | None = option(None, "folder to write", group="output")
    overwrite: bool = option(False, "replace the files that are in --out")
    verify: bool = option(False, "compare its logits in transformers with ours")

    def __post_init__(self):
        more = []
        if (self.ckpt is None) == (self.from_hf is None):
            more.append("give one of --ckpt (to Hugging Face) and --from_hf (from there)")
        if self.out is None:
            more.append("--out is missing: name the folder to write")
        check(self, more)


def verify(model: GPT, folder: Path) -> str:
    """Our logits against those of the folder in transformers, on random tokens; UserError where they differ."""
    transformers = importlib.import_module("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(model.config.vocab_size, (2, min(64, model.config.block_size)), generator=generator)
    with torch.no_grad():
        logits, their_logits = model.eval()(idx)[0], theirs(idx).logits.float()
    difference, largest = (logits - their_logits).abs().max().item(), max(1.0, logits.abs().max().item())
    if not difference <= TOLERANCE * largest:
        raise UserError(f"{folder}: logits differ by {difference:.3g} of {largest:.3g}; this is a fault of export.py")
    return f"logits equal transformers' {transformers.__version__} to {difference:.2g} of {largest:.3g}"


def import_model(folder: Path, out: Path) -> str:
    """A folder of Hugging Face's as one of ours: weights, configuration, tokenizer, and the record if it has one."""
    if not folder.is_dir():
        raise UserError(f"--from_hf {folder}: no such folder; get it first: hf download NAME --local-dir {folder}")
    model = read_hf(folder, GPT)
    spec, problem = tokenizer.from_folder(folder)
    with staged(out) as stage:
        if spec is not None:
            write_json(stage / "tokenizer.json", spec, indent=None)
        if (folder / "run.json").is_file():
            shutil.copyfile(folder / "run.json", stage / "run.json")
        save_model(model, stage)
    line = f"{out}: {sum(p.numel() for p in model.parameters()):,} weights, context {model.config.block_size:,}"
    return f"{line}; {problem}" if problem else line


def run(parser, args):
    config = parser.read(ExportConfig, args)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is not a folder; name another")
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()) and not config.overwrite:
        raise UserError(f"--out {out} exists and is not empty; name another folder or add --overwrite")
    if config.verify:
        importlib.import_module("transformers")  # before anything is written
    if config.from_hf is not None:
        print(import_model(Path(config.from_hf), out))
        model, folder = load_model(out), Path(config.from_hf)
    else:
        found = run_dir.load(config.ckpt, load_model, config.tokenizer_dir)
        print(write_hf(found, out))
        model, folder = found.model, out
    if config.verify:
        print(verify(model, folder))


def main(argv=None) -> int:
    return run_main(Parser("export.py", __doc__, ExportConfig), run, argv)


if __name__ == "__main__":
    sys.exit(main())
