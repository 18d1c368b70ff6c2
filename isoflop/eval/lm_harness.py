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
from isoflop.hf.weights import write_hf
from isoflop.options import UserError
from isoflop.train.run_dir import TrainedModel

HUB = "https://huggingface.co"
LOCAL_DATA = ("json", "csv", "parquet", "text", "arrow")  # dataset_path of a task whose data are files


class Harness:
    """lm-evaluation-harness with the requested tasks, loaded once for all models; UserError where one can't be had.

    left_out : label -> reason of tasks of a bundle that can't be scored.
    """

    def __init__(self, names: list[str], shots: int | None, limit: float | None, batch_size: int):
        """names: tasks, groups and tags of the harness, paths of .yaml files, bundles of suites.py."""
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
            raise UserError(f"--tasks needs {error.name or error}: pip install 'lm-eval[hf]'") from None
        self.version = lm_eval.__version__
        self._load(lm_eval.tasks.TaskManager, offline)

    def tasks_of(self, name: str) -> list[suites.Task]:
        """The tasks of one entry of --tasks."""
        if name.endswith(".yaml") and not Path(name).is_file():
            raise UserError(f"--tasks {name}: no such file")
        return suites.BUNDLES.get(name) or [suites.named(name, self.shots)]

    def _load(self, task_manager, offline: str | None):
        """Load every task; those of a bundle that can't be had are left out, others end in a UserError."""
        wanted = list(dict.fromkeys(task for name in self.names for task in self.tasks_of(name)))
        of_harness = [task.name for task in wanted if task.name and not task.name.endswith(".yaml")]
        manager = task_manager(include_defaults=bool(of_harness))
        unknown = [name for name in of_harness if name not in manager.all_tasks]
        if unknown:
            raise UserError(
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
            except Exception as error:  # of datasets, the hub, yaml, or the task itself
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if offline:
                    raise UserError(
                        f"--tasks {task.name}: its data is not here, and the hub can't be reached ({offline}); "
                        "connect, or give a local task: --tasks my_task.yaml"
                    ) from None
                if task.name in self.names:
                    raise UserError(f"--tasks {task.name} can't be loaded ({reason})") from None
                self.left_out[task.label] = reason

    def run(self, found: TrainedModel, device: str, dtype: str, names: list[str]) -> list[dict]:
        """Scores of a model on some of self.names: a dict for each task and each mean, with its name as entry."""
        import transformers
        from lm_eval.models.huggingface import HFLM

        transformers.utils.logging.disable_progress_bar()
        tasks_of = {name: self.tasks_of(name) for name in names}
        rows = {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            found.tokenizer()  # or says that it is unknown
            write_hf(found, Path(folder))
            size = found.model.config.block_size
            lm = HFLM(folder, device=device, dtype=dtype, batch_size=self.batch_size, max_length=size)
            for task in dict.fromkeys(task for tasks in tasks_of.values() for task in tasks):
                if task in self.loaded:
                    rows[task] = self._score(lm, task, required=task.name in names)
        out = []
        for name, tasks in tasks_of.items():
            of_name = [row for task in tasks for row in rows.get(task, [])]
            if name in suites.BUNDLES:
                of_name.append(suites.mean(name, of_name))
            out += [{"entry": name, **row} for row in of_name]
        return out

    def _score(self, lm, task: suites.Task, required: bool) -> list[dict]:
        """Rows of one task; where it fails, none and a reason in left_out, or a UserError if it is required."""
        import lm_eval

        limit = self.limit if self.limit is None or self.limit < 1 else int(self.limit)
        loaded, reported = self.loaded[task], self.reported(task)
        scored = [(loaded.get("groups") or loaded["tasks"])[name] for name in reported]
        try:
            result = lm_eval.simple_evaluate(lm, tasks=scored, num_fewshot=task.shots, limit=limit, log_samples=False)
        except Exception as error:  # of the task, or of a prompt that does not fit this model
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            if required:
                raise UserError(f"--tasks {task.name} failed in lm-eval {self.version} ({reason})") from None
            self.left_out[task.label] = reason
            return []
        rows = []
        for name in reported:
            label = task.label if len(reported) == 1 else name
            row = suites.score(suites.Task(label, name, task.shots, task.chance, task.metric), result["results"][name])
            counts = result.get("n-samples", {})
            counted = [counts[name]] if name in counts else counts.values()
            row["shots"] = result.get("n-shot", {}).get(name, task.shots)
            row["n"] = sum(count["effective"] for count in counted)
            rows.append(row)
        return rows

    def reported(self, task: suites.Task) -> list[str]:
        """Names with a score of their own: of a group itself, where it has one, of a tag each of its tasks."""
        loaded = self.loaded[task]
        groups, below = loaded.get("groups") or {}, set()
        for members in (loaded.get("group_map") or {}).values():
            below |= set(members)
        return [group for group in groups if group not in below] or list(loaded["tasks"])


def offline_reason(names: list[str]) -> str | None:
    """Why the hub can't be used, None where it can or is not needed: every task is a file with its data in files."""
    if all(is_local(name) for name in names):
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "HF_HUB_OFFLINE is set"
    hub = os.environ.get("HF_ENDPOINT", HUB)
    try:
        downloads.probe(hub)
    except (ConnectionError, ValueError) as error:
        return f"{hub}: {error}"
    return None


def is_local(name: str) -> bool:
    """Whether a task is a .yaml file whose data are files."""
    if not name.endswith(".yaml") or not Path(name).is_file():
        return False
    path = re.search(r"^dataset_path:\s*['\"]?([^\s'\"#]+)", Path(name).read_text("utf-8", "replace"), re.M)
    return path is not None and path[1] in LOCAL_DATA
