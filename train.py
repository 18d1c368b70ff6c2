"""Train one GPT to a FLOP budget and leave one record of it.

    python train.py --data_dir data/stdlib_bpe512 --flop_budget 1e11
    python train.py --preset gpt2 --max_iters 5000 --compile
    torchrun --nproc_per_node=8 train.py --flop_budget 1e16

The budget is C = 6 N D: N counts every weight that multiplies an activation
(the head, but not the embedding), D the training tokens. The record, run.json,
is what a sweep writes as one row of its runs.csv.
"""

import isoflop.installed  # noqa: F401 isort: skip
import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from isoflop import device as devices
from isoflop.cli import Parser, run_main
from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.data.loader import Loader
from isoflop.distributed import DistributedEnv, launch, leave, resume_command, stop_signals
from isoflop.files import folder_lock, writable_folder
from isoflop.kernels import gpt
from isoflop.optim import schedule
from isoflop.optim.build import build
from isoflop.optim.parallel import accumulate, broadcast_weights, gather_weights, replicate, shard
from isoflop.options import UserError, explain
from isoflop.train import checkpoint, compiled, evals, tracking
from isoflop.train.failures import blown_up, find_micro_batch, note_failure
from isoflop.train.plan import RunConfig, RunPlan, TrainConfig, resolve
from isoflop.train.prefetch import Batches
from isoflop.train.progress import Progress, progress_bar
from isoflop.train.record import RunRecord, make_record, run_id, trajectory
from isoflop.train.validation import evaluate, validation_rows
from model import GPT, generate, load_model, save_model

POLL = 8  # with several processes: they agree every so many steps whether to stop
TRAINED = ("ok", "diverged", "blown_up")  # statuses of runs that did not fail on the way: all ranks are there
INTERRUPTED = 75  # exit status of a run that a signal ended and that can be resumed: EX_TEMPFAIL of sysexits.h


class Interrupted(Exception):
    """stop() ended the run after a whole step; `saved` is its checkpoint, None where that could not be written."""

    def __init__(self, step: int, saved: Path | None):
        super().__init__(f"interrupted after step {step}")
        self.step, self.saved = step, saved


# ----- set-up -----


@dataclass(frozen=True)
class Setup:
    """A run that was checked and planned; nothing is built or written yet."""

    mc: ModelConfig
    tc: TrainConfig
    env: DistributedEnv
    plan: RunPlan
    tokens: reader.TokenData
    loader: Loader
    val_rows: int  # sequences of the validation range
    token_bytes: torch.Tensor | None  # int64 (vocab_size,), see evaluate(); None: no bits per byte
    dtype: str  # of the compute: float32 or bfloat16
    dtype_from: str  # what chose it, see device.ComputeType
    device_name: str
    compile: bool
    run_id: str
    trajectory: dict  # see record.trajectory()
    out_dir: Path
    finished: RunRecord | None  # the record, where the run was finished before and need not run again
    restored: checkpoint.Checkpoint | None  # where the run resumes from
    say: Callable  # prints a line on rank 0, or does nothing

    @property
    def first_step(self) -> int:
        return self.restored.step if self.restored else 0

    @property
    def log_every(self) -> int:
        return self.tc.log_every or max(1, self.plan.steps // 20)

    @property
    def autocast(self):
        return devices.autocast(self.dtype, self.env.device)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the model alone; one process has nobody to share with."""
        return self.tc.shard and self.env.size > 1

    def whole(self, model) -> GPT | None:
        """The model, or of a sharded one the whole on rank 0's CPU and None elsewhere; every rank must call it."""
        if not self.sharded:
            return model
        weights = gather_weights(model)
        if not weights:
            return None
        with torch.device("meta"):
            whole = GPT(self.mc)
        whole.load_state_dict(weights, assign=True)
        return whole

    @property
    def tail(self) -> int:
        """How many of the last steps train_loss is the mean of: a tenth."""
        return max(1, self.plan.steps // 10)


def set_up(mc: ModelConfig, tc: TrainConfig, env: DistributedEnv, quiet: bool = False, start=None) -> Setup:
    """Check and plan a run. Whatever is wrong with it is a UserError here, before anything is written.

    start : as in train().
    """
    tokens = reader.open_data(tc.data_dir)
    mc = dataclasses.replace(mc, vocab_size=tokens.meta["vocab_size"])
    plan = resolve(mc, tc, env.size, len(tokens.train))
    loader = Loader(tokens.train, mc.block_size, tc.seed, tc.pack, tokens.meta["eot_token"])
    val_rows = validation_rows(tokens, mc.block_size, tc.val_tokens)
    compute = compute_type(tc, env)
    dtype = compute.name
    device_name = devices.device_name(env.device)
    lengths = reader.token_bytes(tokens.folder)  # None where the tokenizer is unknown (nanoGPT's or llm.c's files)
    id_ = run_id(mc, tc, plan, dtype, tokens)
    decides = trajectory(mc, tc, plan, dtype, tokens)
    out_dir = Path(tc.out_dir or f"out/{id_}")
    if out_dir.exists() and out_dir.samefile(tokens.folder):
        raise UserError(f"--out_dir {out_dir} is the data folder; name another folder")
    checkpoint.check_cell(out_dir, id_)
    finished = restored = None
    if tc.resume == "auto" or not tc.overwrite:
        try:
            finished = checkpoint.finished_run(out_dir, id_)
        except UserError:  # its record is damaged
            if not tc.overwrite:
                raise
    if finished is None and (start or tc.resume):
        restored = checkpoint.find(out_dir, str(start or tc.resume))
    if restored:
        checkpoint.check_resumable(restored, decides, plan)
    if not tc.overwrite:
        checkpoint.check_no_other_run(out_dir, id_)
    return Setup(
        mc=mc,
        tc=tc,
        env=env,
        plan=plan,
        tokens=tokens,
        loader=loader,
        val_rows=val_rows,
        token_bytes=None if lengths is None else torch.from_numpy(lengths).long(),
        dtype=dtype,
        dtype_from=compute.source,
        device_name=device_name,
        compile=compiled.wanted(tc.compile, tc.compile_mode, plan, mc.n_layer, env.device, device_name),
        run_id=id_,
        trajectory=decides,
        out_dir=out_dir,
        finished=finished,
        restored=restored,
        say=_silent if quiet else env.print0,
    )


def compute_type(tc: TrainConfig, env: DistributedEnv) -> devices.ComputeType:
    """The compute type of a run, the same on every rank. With --dtype auto, a run that is in out_dir keeps its own."""
    before = None
    if tc.dtype == "auto" and not tc.overwrite:
        before = checkpoint.dtype_of(tc.out_dir, tc.resume)
    if before:
        found = devices.ComputeType(before, "folder")
    else:
        found = devices.compute_type(tc.dtype, env.device)
    # Ranks time on their own: rank 0's answer is everyone's.
    bf16 = env.any(env.rank == 0 and found.name == "bfloat16")
    return found._replace(name="bfloat16" if bf16 else "float32")


def _silent(*_):
    pass


# ----- the run -----


def train(
    mc: ModelConfig,
    tc: TrainConfig,
    env: DistributedEnv | None = None,
    quiet: bool = False,
    start: str | Path | None = None,
    keep: dict[int, Path] | None = None,
    stop=lambda: False,
    lock: bool = False,
) -> RunRecord:
    """Build, train, evaluate, save; the same for the command line, a sweep's cell and a test.

    Every rank calls it, and gets the same record; rank 0 alone prints and writes. A run that diverges, or that lacks
    memory, has that as the record's status.

    Parameters
    ----------
    quiet : print nothing.
    start : a checkpoint to begin from, of any run whose weights were the same up to there: same model, data, seed,
        batch and optimizer, and the same learning rate at each of its steps.
    keep : {step: folder}, checkpoints to save after those steps.
    stop : called after each step; True ends the run with a checkpoint and Interrupted.
    lock : hold out_dir against other processes; a sweep's cells need none, the sweep holds its own folder.

    Raises
    ------
    UserError : a mistake in the configurations, before anything is built or written; another process holds out_dir.
    Interrupted : stop() returned True.
    OSError : no room for the record.
    """
    clock = time.perf_counter()
    run = set_up(mc, tc, env or DistributedEnv(), quiet, start)
    if run.finished:
        way_out = "leave out --resume to run it again" if tc.overwrite else "--overwrite runs it again"
        run.say(f"{run.out_dir}: the run is finished already; {way_out}")
        return run.finished
    progress = Progress.begin(run, clock)
    if not tracking.sweep_of(run.out_dir):  # else the sweep has asked, once
        run.env.on_rank0(functools.partial(tracking.check_tracker, tc.tracker))
    if tc.tasks:
        run.env.on_rank0(functools.partial(check_tasks, run))
    with contextlib.ExitStack() as held:
        run.env.on_rank0(functools.partial(claim, run, held, lock))  # the first thing that is written
        announce(run)
        track = held.enter_context(tracker_of(run))
        model = optimizer = None
        with note_failure(progress):
            model = build_model(run)
            optimizer = build_optimizer(run, model)
            train_steps(run, progress, model, optimizer, track.log, keep or {}, stop)
            optimizer.finish()  # the weights that are evaluated and saved: the last, or with --ema their mean
            if progress.status == "ok":
                evals.at_end(run, progress, model, track.log, score_tasks)
        record = finish(run, progress, model, optimizer)
        track.finish(asdict(record))
        return record


def claim(run: Setup, held: contextlib.ExitStack, lock: bool):
    """Make sure that out_dir can be written; with `lock`, and that no other process does, until `held` is closed."""
    if lock:
        held.enter_context(folder_lock(run.out_dir, "train.py"))
    if not run.tc.overwrite:  # again: another process may have ended since
        checkpoint.check_no_other_run(run.out_dir, run.run_id)
    writable_folder(run.out_dir)


def train_steps(run: Setup, progress: Progress, model, optimizer, track, keep: dict, stop):
    """The loop: every step of the run from run.first_step on, until it ends, diverges or is stopped."""
    env, plan, tc, timer = run.env, run.plan, run.tc, progress.timer
    forward = wrapped(run, model)
    with progress_bar(run) as bar, batches_of(run) as batches:
        progress.loop_start = time.perf_counter()
        timer.start()
        for step in range(run.first_step, plan.steps):
            # ----- accumulate the gradients of one batch, micro-batch by micro-batch -----
            lr = schedule.lr_at(step, plan)
            loss = backward(forward, *next(batches), plan.micro_batch_size, run.autocast, optimizer, plan.z_loss)
            progress.losses.append(loss)  # no .item(): it would wait for the device at every step

            # ----- step: mean over the processes, clip, update, clear the gradients -----
            optimizer.step(lr)
            progress.step = done = step + 1
            bar.update()

            # ----- log -----
            if done == timer.timed_from:
                loss.item()  # waits, so that the untimed steps end here
                timer.tick(done)
            if done % run.log_every == 0 or done == plan.steps:
                progress.log(run, lr, track)
                if not math.isfinite(progress.curve[-1]["loss"]):  # a mean over all ranks, so that all leave
                    progress.status = "diverged"
                    break

            # ----- sample, checkpoint, stop: rare, and outside of the timed seconds -----
            # Ranks stop together or not at all: one that left alone would leave the others in the next collective.
            polled = env.size == 1 or done % POLL == 0
            stopping = polled and env.any(stop()) and done < plan.steps
            due = tc.ckpt_every and done % tc.ckpt_every == 0 and done < plan.steps
            sampling = tc.sample_every and done % tc.sample_every == 0
            evaluating = evals.due(tc, done, plan.steps)
            if not (stopping or due or sampling or evaluating or done in keep):
                continue
            loss.item()
            with timer.paused(done):
                if sampling:
                    run.say(excerpt(model, run.tokens.folder, run.autocast, seed=done))
                if evaluating:
                    evals.during(run, progress, model, track, score_tasks)
                if done in keep:
                    save(run, progress, model, optimizer, Path(keep[done]))
                if stopping or due:
                    folder = run.out_dir / "checkpoints" / f"step_{done:08d}"
                    saved = save(run, progress, model, optimizer, folder)
                    if saved and env.rank == 0:
                        checkpoint.remove_old(folder.parent)
                if stopping:
                    raise Interrupted(done, saved)


def wrapped(run: Setup, model):
    """The model as the steps call it: replicated, compiled. Itself it is saved, and its weights keep their names."""
    forward = model
    if run.env.size > 1 and not run.sharded:
        forward = replicate(model, run.env.device)
    if run.compile:
        forward = compiled.compiled(forward, run.tc.compile_mode, run.env, run.say)
    return forward


def backward(forward, idx, targets, micro_batch_size: int, autocast, optimizer, z_loss: float = 0.0):
    """Forward and backward over idx, targets (B, T); returns the batch's mean loss, detached, on the device."""
    total, waiting = 0.0, len(idx)  # sequences still to come
    for x, y in zip(idx.split(micro_batch_size), targets.split(micro_batch_size), strict=True):
        waiting -= len(x)
        with accumulate(forward, more=waiting > 0) as complete:
            share = len(x) / len(idx)  # the last micro-batch may be shorter
            if isinstance(forward, GPT) and forward.runs_in_one_piece:
                loss = gpt.add_gradients(forward, x, y, share, z_loss)
            else:
                with autocast:
                    loss = forward(x, y, z_loss=z_loss)[1] * share
                loss.backward()
        if complete:
            optimizer.gather()
        total = total + loss.detach()
    return total


# ----- its parts -----


def announce(run: Setup):
    """The run's head on the screen: where from, where to, and the plan."""
    env, data = run.env, Path(run.tc.data_dir).resolve()
    mode = ", compiled" if run.compile else ""
    where = f"[{run.device_name} x {env.size}, {run.dtype}{mode}]"
    run.say(f"run {run.run_id}  {data} -> {run.out_dir.resolve()}  {where}")
    run.say(run.plan.describe())
    if run.tc.pack == "bos":
        run.say(f"rows that begin with a document leave out {run.loader.cropped:.1%} of the training text")
    if run.restored:
        run.say(f"resuming after step {run.restored.step}, from {run.restored.folder}")


def build_model(run: Setup) -> GPT:
    """The model on its device, or sharded: with the weights of the checkpoint, or new ones."""
    env = run.env
    torch.manual_seed(run.tc.seed)  # here, so that a sweep's cell equals the same command line
    torch.set_float32_matmul_precision("high")  # TF32 where there are tensor cores; exact on a CPU
    model = load_model(run.restored.folder) if run.restored else GPT(run.mc)
    if run.sharded:
        shard(model, run.dtype, env.device)
        return model
    model = model.to(env.device)
    if env.size > 1:
        broadcast_weights(model)
    return model


def build_optimizer(run: Setup, model):
    """The plan's optimizer, with the checkpoint's state where there is one."""
    env = run.env
    optimizer = build(model, run.plan, run.tc.grad_clip, run.dtype, env.device, run.sharded)
    if run.restored:
        run.restored.restore(optimizer)
        run.restored.restore_random(env.rank, env.device)
    return optimizer


def batches_of(run: Setup):
    """The batches of this rank's steps: its slice of each global batch, from the first step on."""
    rows, size = run.plan.batch_size, run.env.size
    first = run.first_step * size * rows + run.env.rank * rows
    batches = Batches(run.loader, first, size * rows, rows, run.plan.steps - run.first_step, run.env.device)
    return contextlib.closing(batches)


def tracker_of(run: Setup) -> tracking.Tracker:
    """The --tracker, on rank 0."""
    kind = run.tc.tracker if run.env.rank == 0 else None
    settings = {"data_dir": str(run.tc.data_dir), **asdict(run.mc), **asdict(run.plan)}
    return tracking.Tracker(kind, run.out_dir, run.run_id, settings, run.env.print0)


def save(run: Setup, progress: Progress, model, optimizer, folder: Path) -> Path | None:
    """Save a checkpoint; every rank calls it. Returns its folder, or None where it could not be written."""
    state = progress.state(run)
    problem = checkpoint.save_checkpoint(folder, model, optimizer, state, run.env, save_model)
    if problem:
        run.say(f"warning: {folder} could not be written ({problem}); the run continues: make room for the next")
        return None
    return folder


def excerpt(model, folder, autocast, count: int = 64, seed: int = 0) -> str:
    """A line of text that the model writes after the end of a document; the global random state is left alone."""
    from isoflop.data.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        return f"sample | none: {error}"
    device, usable = next(model.parameters()).device, tokenizer.n_vocab
    idx = torch.full((1, 1), tokenizer.start_token, dtype=torch.int64, device=device)
    generator = torch.Generator().manual_seed(seed)
    try:
        with autocast:
            out = generate(model, idx, count, generator=generator, cache=False, usable=usable)
    except ValueError as error:  # logits that are not finite
        return f"sample | none: {error}"
    return "sample | " + repr(tokenizer.decode(out[0, 1:].tolist()))


def score_tasks(run: Setup, model) -> list[dict]:
    """Scores of the model as it is on the benchmarks of --tasks."""
    from isoflop.eval import while_training

    return while_training.score(run, model)


def check_tasks(run: Setup):
    """UserError where the benchmarks of --tasks can't be had, or not for this model."""
    from isoflop.eval import while_training

    while_training.check(run)


# ----- the end of a run -----


def finish(run: Setup, progress: Progress, model, optimizer) -> RunRecord:
    """Validate, and write record, curve and weights. Every rank gets the same record."""
    begun = time.perf_counter()
    env = run.env
    if progress.status in ("oom", "peer_lost") and run.say is not _silent:
        print(f"rank {env.rank}, step {progress.step + 1}: {progress.problem}", flush=True)  # from whichever rank it is
        if progress.status == "oom" and optimizer:
            print(advise(run, model, optimizer), flush=True)
    train_loss, val = None, dict.fromkeys(("val_loss", "val_loss_se", "bits_per_byte"))
    if progress.status in TRAINED:
        tail = torch.stack(list(progress.losses)[-run.tail :]).mean().item()
        train_loss = env.sum(tail)[0] / env.size
    if progress.status == "ok":
        # A sharded model casts its own weights.
        with contextlib.nullcontext() if run.sharded else devices.computing(model, run.dtype, env.device):
            found = evaluate(model, run.tokens, run.token_bytes, run.val_rows, env, run.autocast)
        if math.isfinite(found["val_loss"]):
            val = found
            if blown_up(found["val_loss"], progress.curve, run.plan, run.mc.vocab_size):
                progress.status = "blown_up"
        else:
            progress.status = "diverged"
    eval_s, peak_mem_gb = time.perf_counter() - begun, devices.peak_memory_gb(env.device)
    record = make_record(run, progress, train_loss, val, eval_s, peak_mem_gb)
    if progress.status in TRAINED:
        model = run.whole(model)
    problem = write(run, progress, model, record) if env.rank == 0 else None
    if progress.status in TRAINED:  # else other ranks may be gone
        env.barrier()
    if problem:
        raise problem
    return record


def advise(run: Setup, model, optimizer) -> str:
    """What to do about a lack of memory, found by trying."""
    if run.sharded:  # a trial would need the other ranks
        return (
            f"lower --micro_batch_size ({run.plan.micro_batch_size} was used) or --block_size, or take more processes"
        )

    def attempt(rows: int):
        idx = torch.zeros(rows, run.mc.block_size, dtype=torch.int64, device=run.env.device)
        backward(model, idx, idx, rows, run.autocast, optimizer)

    return find_micro_batch(attempt, run.plan.micro_batch_size, run.env.device)


def write(run: Setup, progress: Progress, model, record: RunRecord) -> OSError | None:
    """Record, curve, scores, tokenizer and, last, weights into out_dir: where there are weights, all is there.

    Returns why the record could not be written, or None.
    """
    from isoflop.train.run_dir import keep_tokenizer

    try:
        checkpoint.save_record(run.out_dir, record, progress.curve)
        evals.write(run.out_dir, progress.evals)
    except OSError as error:
        run.env.print0(json.dumps(asdict(record)))  # no room for the record itself: the screen has it
        return error
    keep_tokenizer(run.tokens.folder, run.out_dir, run.tokens.meta["tokenizer"])
    problem = None
    if progress.status in TRAINED:  # else half a step may be in its weights
        problem = checkpoint.save_weights(run.out_dir, model, save_model)
    if problem:
        run.env.print0(f"warning: {problem}; the record is in {run.out_dir}")
    return None


# ----- command line -----


def run_once(argv: list[str], parser: Parser, args) -> int:
    """One run of the command line; returns the exit status."""
    mc, tc = parser.read(ModelConfig, args), parser.read(TrainConfig, args)
    with stop_signals() as stop, launch(tc.device) as env:
        try:
            record = train(mc, tc, env, stop=stop, lock=True)
        except Interrupted as end:
            outcome = "not saved; run it again with"
            if end.saved:
                outcome = f"saved as {end.saved}; resume with"
            env.print0(f"{end}, {outcome}\n{resume_command(argv)}")
            return INTERRUPTED
        env.print0(record.summary())
        out_dir = Path(tc.out_dir or f"out/{record.run_id}")
        if env.rank == 0:
            try:
                tracking.draw_curve(out_dir, record)
            except ModuleNotFoundError:
                raise
            except (OSError, ValueError, KeyError, TypeError, ImportError, MemoryError) as error:
                # a full disk, a log.jsonl that was edited, no memory left for matplotlib
                env.print0(f"warning: no loss.png ({explain(error)})")
        if args.json:
            env.print0(json.dumps({**asdict(record), "seconds": record.train_s, "loss": record.train_loss}))
        complete = env.rank != 0 or (out_dir / checkpoint.WEIGHTS).exists()  # a full disk costs the weights
    return 0 if record.status == "ok" and complete else 1


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser("train.py", __doc__, RunConfig, ModelConfig, TrainConfig)
    parser.flag("json", bool, False, "print the record as the last line", group="logging")
    interrupted = "nothing was recorded since the last checkpoint"
    return run_main(parser, functools.partial(run_once, argv), argv, interrupted)


if __name__ == "__main__":
    leave(main())
