"""EleutherAI's lm-evaluation-harness on our models, as export.py writes them: for eval.py --tasks.

The harness and transformers are optional, and are imported where they are used.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
from pathlib import Path

from isoflop.data import downloads
from isoflop.eval import suites
from isoflop.hf import weights
from isoflop.train import run_dir

HUB = "https://huggingface.co"
LOCAL_DATA = ("json", "csv", "parquet", "text", "arrow")  # dataset_path of a task whose data are files


class Harness:
    """lm-evaluation-harness with the tasks that were asked for, loaded once; ValueError says what can't be had."""

    def __init__(self, names: list[str], shots: int | None, limit: float | None, batch_size: int):
        """names: tasks, groups and tags of the harness, paths of .yaml files, bundles of tasks.py."""
        self.names, self.shots, self.limit, self.batch_size = names, shots, limit, batch_size
        self.loaded, self.left_out = {}, {}
        offline = offline_reason(names)
        if offline:  # must be set before anything imports the libraries: they read it once
            os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for name in ("lm_eval", "transformers", "datasets", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            import lm_eval
            import lm_eval.tasks
            from lm_eval.models.huggingface import HFLM  # noqa: F401  it needs transformers and accelerate
        except ImportError as error:
            raise ValueError(f"--tasks needs {error.name or error}: pip install 'lm-eval[hf]'") from None
        self.version = lm_eval.__version__
        wanted = self.wanted()
        local = all(task.name.endswith(".yaml") for task in wanted if task.name)
        manager = lm_eval.tasks.TaskManager(include_defaults=not local)
        unknown = [
            t.name for t in wanted if t.name and not t.name.endswith(".yaml") and t.name not in manager.all_tasks
        ]
        if unknown:
            raise ValueError(
                f"--tasks {', '.join(unknown)}: lm-eval {self.version} has no such task, see `lm-eval ls tasks`; "
                f"known besides: {', '.join(suites.BUNDLES)}, and paths of .yaml files"
            )
        for task in wanted:
            if task.name is None:
                self.left_out[task.label] = "lm-eval has no such task"
                continue
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    self.loaded[task] = manager.load([task.name])
            except Exception as error:  # datasets', the hub's, yaml's, or the task's own
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if offline:
                    raise ValueError(
                        f"--tasks {task.name}: its data is not here, and the hub can't be reached ({offline}); "
                        "connect, or give a local task: --tasks my_task.yaml"
                    ) from None
                if task.name in names:
                    raise ValueError(f"--tasks {task.name} can't be loaded ({reason})") from None
                self.left_out[task.label] = reason

    def wanted(self) -> list[suites.Task]:
        out = []
        for name in self.names:
            if name.endswith(".yaml") and not Path(name).is_file():
                raise ValueError(f"--tasks {name}: no such file")
            out += suites.BUNDLES.get(name) or [suites.named(name, self.shots)]
        return list(dict.fromkeys(out))

    def run(self, found: run_dir.Trained, device: str, dtype: str, names: list[str]) -> list[dict]:
        """Scores of a model on some of self.names: a dict for each task and each mean, with its name as entry."""
        import lm_eval
        import transformers
        from lm_eval.models.huggingface import HFLM

        transformers.utils.logging.disable_progress_bar()
        limit = self.limit if self.limit is None or self.limit < 1 else int(self.limit)
        wanted = {name: suites.BUNDLES.get(name) or [suites.named(name, self.shots)] for name in names}
        rows = {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            found.tokenizer()  # or says that there is none
            weights.write_hf(found, Path(folder))
            size = found.model.config.block_size
            lm = HFLM(folder, device=device, dtype=dtype, batch_size=self.batch_size, max_length=size)
            for task in dict.fromkeys(task for mine in wanted.values() for task in mine if task in self.loaded):
                loaded = self.loaded[task]
                held = [(loaded.get("groups") or loaded["tasks"])[name] for name in self.reported(loaded)]
                try:
                    out = lm_eval.simple_evaluate(
                        lm, tasks=held, num_fewshot=task.shots, limit=limit, log_samples=False
                    )
                except Exception as error:  # of the task, or of a prompt that does not fit this model
                    reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
                    if task.name in names:
                        raise ValueError(f"--tasks {task.name} failed in lm-eval {self.version} ({reason})") from None
                    self.left_out[task.label] = reason
                    continue
                rows[task] = [self.row(task, name, out) for name in self.reported(loaded)]
        out = []
        for name, mine in wanted.items():
            found_ = [row for task in mine for row in rows.get(task, [])]
            found_ += [suites.mean(name, found_)] if name in suites.BUNDLES else []
            out += [{"entry": name, **row} for row in found_]
        return out

    def reported(self, loaded) -> list[str]:
        """Of a group its own number, where it has one; of a tag each of its tasks."""
        top = [g for g in loaded.get("groups") or {} if not any(
            g in below for below in (loaded.get("group_map") or {}).values())]  # fmt: skip
        return top or list(loaded["tasks"])

    def row(self, task: suites.Task, name: str, out: dict) -> dict:
        label = task.label if len(self.reported(self.loaded[task])) == 1 else name
        named = suites.Task(label, name, task.shots, task.chance, task.metric)
        counts = out.get("n-samples", {})
        n = sum(c["effective"] for c in counts.values()) if name not in counts else counts[name]["effective"]
        return suites.score(named, out["results"][name]) | {
            "shots": out.get("n-shot", {}).get(name, task.shots),
            "n": n,
        }


def offline_reason(names: list[str]) -> str | None:
    """Why the hub can't be used, None where it can or is not needed: every task is a file with its data in files."""
    local = True
    for name in names:
        text = Path(name).read_text("utf-8", "replace") if name.endswith(".yaml") and Path(name).is_file() else ""
        path = re.search(r"^dataset_path:\s*['\"]?([^\s'\"#]+)", text, re.M)
        local &= path is not None and path[1] in LOCAL_DATA
    if local:
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "HF_HUB_OFFLINE is set"
    hub = os.environ.get("HF_ENDPOINT", HUB)
    try:
        downloads.probe(hub)
    except (ConnectionError, ValueError) as error:
        return f"{hub}: {error}"
    return None
