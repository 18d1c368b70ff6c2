"""Train one GPT to a FLOP budget and leave one record of it.

    python train.py --data_dir data/stdlib_bpe512 --n_embd 32 --n_layer 1 --flop_budget 1e11
    python train.py --max_iters 5000
    torchrun --nproc_per_node=8 train.py --flop_budget 1e16

The budget is C = 6 N D: N counts every weight that multiplies an activation (the head included, look-ups not), D the
training tokens. One run: resolve() does the arithmetic, train() does the work, RunRecord is what remains, one CSV row.
"""

import contextlib
import dataclasses
import gc
import json
import math
import shlex
import sys
import time
from collections import deque
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path

import torch
from tqdm import tqdm

from isoflop import device as devices
from isoflop import gpus
from isoflop.cli import Parser
from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.data.loader import Loader
from isoflop.data.tokenizer import load_tokenizer
from isoflop.distributed import World, failure, launch, launcher, stop_signals
from isoflop.optim import schedule
from isoflop.optim.build import build
from isoflop.train import checkpoint, run_dir, tracking
from isoflop.train.plan import RunPlan, TrainConfig, resolve
from isoflop.train.prefetch import Batches
from isoflop.train.record import RunRecord, commit, run_id, trajectory
from isoflop.train.validation import evaluate, validation_rows
from model import GPT, generate

UNTIMED = 4  # steps left out of the speed: they fill caches, or compile
POLL = 8  # steps after which several processes ask each other whether one was told to stop
INTERRUPTED = 75  # exit status of a run that a signal ended and that can go on: EX_TEMPFAIL of sysexits.h


# ----- one run -----


class Interrupted(Exception):
    """A signal ended the run after a whole step; `saved` is its checkpoint, None where that could not be written."""

    def __init__(self, step: int, saved: Path | None):
        super().__init__(f"interrupted after step {step}")
        self.step, self.saved = step, saved


def train(
    mc: ModelConfig,
    tc: TrainConfig,
    world: World | None = None,
    quiet: bool = False,
    start: str | Path | None = None,
    keep: dict[int, Path] | None = None,
    stop=lambda: False,
) -> RunRecord:
    """Build, train, evaluate, save; the same for the command line, a sweep's cell and a test.

    Every rank calls it, and gets the same record; rank 0 alone prints and writes.

    Parameters
    ----------
    start : a checkpoint to begin from, of any run whose weights were the same up to there: same model, data, seed,
        batch and optimizer, and the same learning rate at each of its steps.
    keep : {step: folder}, checkpoints to leave after those steps.
    stop : asked after each step; True ends the run with a checkpoint and Interrupted.

    Raises
    ------
    ValueError : what the user can mend, before anything is built or written.
    """
    clock, started = time.perf_counter, datetime.now(timezone.utc).isoformat(timespec="seconds")
    begun = clock()
    world, keep = world or World(), keep or {}
    say = (lambda *_: None) if quiet else world.print0
    tokens = reader.open_data(tc.data_dir)
    mc = dataclasses.replace(mc, vocab_size=tokens.meta["vocab_size"])
    plan = resolve(mc, tc, world.size, len(tokens.train))
    loader = Loader(tokens.train, mc.block_size, tc.seed, tc.pack, tokens.meta["eot_token"])
    val_rows = validation_rows(tokens, mc.block_size, tc.val_tokens)
    lengths = reader.token_bytes(
        tokens.folder
    )  # None for foreign bins whose tokenizer is unknown: no bits per byte then
    spelled = None if lengths is None else torch.from_numpy(lengths).long()
    dtype, gpu = devices.compute_dtype(tc.dtype, world.device), devices.device_name(world.device)
    id_, fixed = run_id(mc, tc, plan, dtype, tokens), trajectory(mc, tc, plan, dtype, tokens)
    out_dir = Path(tc.out_dir or f"out/{id_}")
    if tc.tracker:
        tracking.check_tracker(tc.tracker)
    if tc.resume and (held := checkpoint.finished(out_dir)) and (held["run_id"], held["status"]) == (id_, "ok"):
        say(f"{out_dir}: the run is finished already")
        return RunRecord(**held)
    came = checkpoint.find(out_dir, str(start or tc.resume)) if start or tc.resume else None
    if came:
        must_fit(came, fixed, plan)
    if world.rank == 0:
        checkpoint.claim(out_dir, id_, tc.overwrite)
    say(f"run {id_}  {Path(tc.data_dir).resolve()} -> {out_dir.resolve()}  [{gpu} x {world.size}, {dtype}]")
    say(plan.describe())

    torch.manual_seed(tc.seed)  # inside, so that a sweep's cell equals the same command line
    torch.set_float32_matmul_precision("high")  # TF32 where there are tensor cores; exact on a CPU
    autocast = devices.autocast(dtype, world.device)
    if tc.pack == "bos":
        say(f"rows that begin with a document leave out {loader.cropped:.1%} of the training text")
    log_every = tc.log_every or max(1, plan.steps // 20)
    tail = max(1, plan.steps // 10)
    losses = deque(maxlen=max(log_every, tail))  # on the device: reading one waits for it
    first, curve, timed = 0, [], ()
    if came:
        first, curve, timed = came.step, came.state["curve"], came.state["timed"]
        losses.extend(torch.tensor(came.state["losses"], device=world.device))
        say(f"going on after step {first}, from {came.folder}")
    timer = tracking.Timer(first, plan.tokens_per_step, *timed)
    untimed = first + min(UNTIMED, (plan.steps - first) // 2)
    done, status, model, first_ms = first, "ok", None, 0.0

    def log(lr: float):
        logged = curve[-1]["step"] if curve else 0
        recent = torch.stack(list(losses)[logged - done :]).mean().item()  # waits for the device
        ms, D = timer.tick(done), done * plan.tokens_per_step
        eta = (plan.steps - done) * (clock() - loop_start) / (done - first)
        point = {"run_id": id_, "step": done, "tokens": D, "n_params_matmul": plan.n_params_matmul}
        point |= {"flops": D * plan.flops_per_token, "loss": world.sum(recent)[0] / world.size, "lr": lr}
        curve.append(point | {"s": clock() - loop_start})
        track({k: point[k] for k in ("loss", "lr", "tokens")} | {"tokens_per_s": timer.tokens_per_s}, done)
        say(
            f"step {done:05d}/{plan.steps:05d} | loss {point['loss']:.4f} | lr {lr:.2e} | {ms:.1f} ms | "
            f"{timer.tokens_per_s:,.0f} tok/s | eta {eta / 60:.1f}m"
        )

    def leave(folder: Path) -> bool:
        means = [x / world.size for x in world.sum(*torch.stack(list(losses)).tolist())]
        state = {"run_id": id_, "step": done, "trajectory": fixed, "plan": asdict(plan), "losses": means}
        state |= {"curve": curve, "timed": [timer.tokens, timer.seconds]}
        problem = checkpoint.save_checkpoint(folder, model, optimizer, state, world)
        if problem:
            say(f"warning: no checkpoint after step {done} ({problem}); the run goes on")
        elif world.rank == 0 and folder.parent == out_dir / "checkpoints":
            checkpoint.thin(folder.parent)
        return not problem

    quiet_bar = world.rank != 0 or not sys.stderr.isatty()
    settings = {"data_dir": str(tc.data_dir), **asdict(mc), **asdict(plan)}
    with (
        contextlib.ExitStack() as stack,
        tqdm(total=plan.steps, initial=first, unit="step", desc=id_, leave=False, disable=quiet_bar) as bar,
        tracking.tracker(tc.tracker if world.rank == 0 else None, out_dir, id_, settings, say) as track,
    ):
        try:
            model = (came.model() if came else GPT(mc)).to(world.device)
            optimizer = build(model, plan, tc.grad_clip, dtype, world.device, world.size, tc.zero1)
            if came:
                optimizer.load(first, came.flat)
                came.random(world.rank, world.device)
            runner = torch.compile(model) if tc.compile else model
            rows, stride = plan.batch_size, world.size * plan.batch_size  # this rank's slice of the global batch
            here = first * stride + world.rank * rows
            batches = Batches(loader, here, stride, rows, plan.steps - first, world.device)
            stack.callback(batches.close)
            loop_start = timer.since = clock()
            for step in range(first, plan.steps):
                lr = schedule.lr_at(step, plan)
                losses.append(backward(runner, *next(batches), plan.micro_batch_size, autocast, optimizer, plan.z_loss))
                optimizer.step(lr)
                bar.update()
                done = step + 1
                if done == untimed:
                    losses[-1].item()
                    first_ms, timer.on = timer.tick(done), True
                if done % log_every == 0 or done == plan.steps:
                    log(lr)
                    if not math.isfinite(curve[-1]["loss"]):
                        status = "diverged"
                        break
                stopped = done % (POLL if world.size > 1 else 1) == 0 and world.any(stop()) and done < plan.steps
                due = tc.ckpt_every and done % tc.ckpt_every == 0 and done < plan.steps
                sampled = tc.sample_every and done % tc.sample_every == 0
                if not (stopped or due or sampled or done in keep):
                    continue
                losses[-1].item()
                with timer.paused(done):
                    if sampled:
                        say(excerpt(model, tokens.folder, autocast, seed=done))
                    if done in keep:
                        leave(Path(keep[done]))
                    own = out_dir / "checkpoints" / f"step_{done:08d}"
                    whole = (stopped or due) and leave(own)
                    if stopped:
                        raise Interrupted(done, own if whole else None)
            optimizer.finish()  # what is evaluated is what is saved
        except (RuntimeError, MemoryError) as error:
            status = failure(error)
            if status is None:
                raise
            problem = str(error).splitlines()[0]
    startup_s = loop_start - begun if model else clock() - begun

    # ----- validation and record -----
    start = clock()
    val = dict.fromkeys(("val_loss", "val_loss_se", "bits_per_byte"))
    train_loss = math.nan
    if status in ("oom", "peer_lost"):
        tell = (lambda *_, **__: None) if quiet else print  # from whichever rank it was
        tell(f"rank {world.rank}, step {done + 1}: {problem}", flush=True)
        if status == "oom" and model:
            tell(fewer_rows(model, optimizer, plan.micro_batch_size, world, autocast), flush=True)
    else:
        train_loss = world.sum(torch.stack(list(losses)[-tail:]).mean().item())[0] / world.size
    if status == "ok":
        val = evaluate(model, tokens, spelled, val_rows, world, autocast)
        if not math.isfinite(val["val_loss"]):
            status, val = "diverged", dict.fromkeys(val)
    known_gpu = gpus.find(gpu)
    peak = known_gpu.peak if known_gpu else None
    D = done * plan.tokens_per_step  # a run that failed is charged with the steps that it ran
    epochs = D / (loader.n_windows * mc.block_size if tc.pack == "bos" else len(tokens.train) - 1)
    tokens_per_s = round(timer.tokens_per_s, 1)
    compile_s = 0.0
    if tc.compile and tokens_per_s and first_ms:
        compile_s = round(max(0.0, (untimed - first) * (first_ms / 1e3 - plan.tokens_per_step / tokens_per_s)), 3)
    copied = {**asdict(tc), **asdict(mc), **asdict(plan)}
    known = {f.name: copied[f.name] for f in fields(RunRecord) if f.name in copied}
    record = RunRecord(**known | dict(
        run_id=id_, status=status, started=started, commit=commit(),
        torch_version=torch.__version__, device=gpu, world_size=world.size, dtype=dtype,
        data=f"{Path(tc.data_dir).name}@{tokens.meta['corpus_sha256'][:8]}",
        steps=done, tokens=D, flops=plan.flops_per_token * D, flops_exact=plan.flops_per_token_exact * D,
        flops_exact_over_6nd=round(plan.flops_per_token_exact / plan.flops_per_token, 6),
        tokens_per_param=D / plan.n_params_matmul, epochs=epochs,
        train_loss=train_loss if math.isfinite(train_loss) else None, **val, val_tokens=val_rows * mc.block_size,
        train_s=D / tokens_per_s if tokens_per_s else round(timer.seconds, 3), eval_s=round(clock() - start, 3),
        startup_s=round(startup_s, 3), compile_s=compile_s, tokens_per_s=tokens_per_s,
        peak_mem_gb=devices.peak_memory_gb(world.device),
        mfu=round(plan.flops_per_token_exact * tokens_per_s / world.size / peak, 4) if peak else None,
    ))  # fmt: skip
    if world.rank == 0:
        try:
            run_dir.keep_tokenizer(tokens.folder, out_dir, tokens.meta["tokenizer"])
            problem = checkpoint.save_run(out_dir, model if status in ("ok", "diverged") else None, record, curve)
        except OSError:
            world.print0(json.dumps(asdict(record)))  # no room for the record itself: here it is
            raise
        if problem:
            world.print0(f"warning: {problem}; the record is in {out_dir}")
    if status in ("ok", "diverged"):
        world.barrier()
    return record


def must_fit(came: checkpoint.Checkpoint, fixed: dict, plan: RunPlan):
    """ValueError where the run that left a checkpoint was another one before it."""
    was, old = came.state["trajectory"], RunPlan(**came.state["plan"])
    other = [k for k in fixed | was if json.dumps(fixed.get(k)) != json.dumps(was.get(k))]
    if "tokens_per_step" in other:
        raise ValueError(
            f"{came.folder} had {was['tokens_per_step']:,} tokens per step, this run has {fixed['tokens_per_step']:,}; "
            f"on another number of processes give --total_batch_size {was['tokens_per_step']}"
        )
    if other:
        k = other[0]
        raise ValueError(f"{came.folder} is of a run with another {k} ({was.get(k)}, not {fixed.get(k)})")
    for step in range(came.step):
        a, b = schedule.lr_at(step, old), schedule.lr_at(step, plan)
        if a != b:
            raise ValueError(
                f"{came.folder} is of a run with another learning rate: at step {step + 1} {a:.4g}, here {b:.4g}; "
                "give the flags of that run, its budget too"
            )
    if came.step >= plan.steps:
        raise ValueError(f"{came.folder} is after step {came.step}, this run ends with step {plan.steps}")


def fewer_rows(model, optimizer, rows: int, world: World, autocast) -> str:
    """What to do about a lack of memory: the largest half, quarter, ... of the rows that goes through, by trying."""
    T = model.config.block_size
    optimizer.mute()
    while rows := rows // 2:
        gc.collect()
        if world.device.startswith("cuda"):
            torch.cuda.empty_cache()
        idx = torch.zeros(rows, T, dtype=torch.int64, device=world.device)
        try:
            backward(model, idx, idx, rows, autocast, optimizer)
        except (RuntimeError, MemoryError) as error:
            if failure(error) != "oom":
                raise
            continue
        return f"{rows} sequences at a time fit: add --micro_batch_size {rows}, which leaves the batch as it is"
    return "not even one sequence at a time fits: lower --block_size or the model"


def backward(runner, idx, targets, micro_batch_size: int, autocast, optimizer, z_loss: float = 0.0):
    """Forward and backward over the batch in pieces; returns the batch's mean loss, detached, on the device."""
    total = 0.0
    for x, y in zip(idx.split(micro_batch_size), targets.split(micro_batch_size), strict=True):
        with autocast:
            loss = runner(x, y, z_loss=z_loss)[1] * (len(x) / len(idx))
        loss.backward()
        optimizer.gather()
        total = total + loss.detach()
    return total


# ----- command line -----


def again(argv: list[str]) -> str:
    """The command line that goes on with an interrupted run."""
    words, at = list(argv), argv.index("--resume") if "--resume" in argv else None
    if at is not None:
        del words[at : at + 1 + (len(words) > at + 1 and not words[at + 1].startswith("--"))]
    return shlex.join([*launcher(), "train.py", *words, "--resume"])


def main(argv=None):
    parser = Parser("train.py", __doc__, ModelConfig, TrainConfig)
    parser.add_argument("--json", action="store_true", help="print the record as the last line, for programs")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    try:
        mc, tc = parser.read(ModelConfig, args), parser.read(TrainConfig, args)
        with stop_signals() as stop, launch(tc.device) as world:
            try:
                record = train(mc, tc, world, stop=stop)
            except Interrupted as end:
                how = f"saved as {end.saved}; go on with" if end.saved else "not saved; do it again with"
                world.print0(f"{end}, {how}\n{again(argv)}")
                return INTERRUPTED
            world.print0(record.summary())
            if world.rank == 0:
                tracking.draw_curve(Path(tc.out_dir or f"out/{record.run_id}"), record)
            if args.json:
                world.print0(json.dumps({**asdict(record), "seconds": record.train_s, "loss": record.train_loss}))
    except (ValueError, OSError) as error:
        parser.fail(error)
    except KeyboardInterrupt:
        parser.exit(130, "train.py: interrupted at once; nothing was recorded since the last checkpoint\n")
    return 0 if record.status == "ok" else 1


def excerpt(model, folder, autocast, count: int = 64, seed: int = 0) -> str:
    """A line of text that the model writes after the end of a document; the global random state is left alone."""
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        return f"sample | none: {error}"
    device, usable = next(model.parameters()).device, tokenizer.n_vocab
    idx = torch.full((1, 1), tokenizer.eot_token, dtype=torch.int64, device=device)
    with autocast:
        out = generate(model, idx, count, generator=torch.Generator().manual_seed(seed), cache=False, usable=usable)
    return "sample | " + repr(tokenizer.decode(out[0, 1:].tolist()))


if __name__ == "__main__":
    sys.exit(main())
