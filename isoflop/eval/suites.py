"""Bundles of benchmarks, by the names that lm-evaluation-harness gives them: core and gauntlet.

core : the 22 tasks of DCLM's CORE (Li et al. 2024, arXiv:2406.11794: the low-variance list of its evaluation code),
    with its numbers of examples in the prompt and its chance levels. A score is centred, (score - chance) / (1 -
    chance), so that chance is 0 and perfect 1, and CORE is the mean.
gauntlet : the 33 tasks of MosaicML's Evaluation Gauntlet v0.2 (llm-foundry), with its examples; chance is one over the
    number of choices that the harness gives.

The harness has no Jeopardy, no SVAMP and no simple arithmetic of MosaicML's; what it has is not always word for word
the same task (CORE compares choices by their likelihood per token, the harness per byte; its SQuAD asks that the answer
be contained). So a mean from here compares models that were all scored here; it is not the published number.
"""

from dataclasses import dataclass

from isoflop.options import UserError


@dataclass(frozen=True)
class Task:
    label: str  # in the bundle
    name: str | None  # in the harness; None where it has no such task
    shots: int | None  # examples in the prompt; None: as the harness has it
    chance: float | None
    metric: str | None  # None: the first of METRICS that there is


# Which number of a task is its score, where no metric is given: normalized accuracy before plain.
METRICS = ("acc_norm", "acc", "exact_match", "em", "contains", "f1", "mc2", "bleu_acc")

# label, harness, shots, chance, metric. DCLM: eval/mmlu_and_lowvar.yaml and eval/eval_meta_data_v1.csv
_CORE = """
hellaswag_zeroshot        hellaswag                                         0  0.25   acc_norm
jeopardy                  -                                                10  0      exact_match
bigbench_qa_wikidata      bigbench_qa_wikidata_generate_until              10  0      exact_match
arc_easy                  arc_easy                                         10  0.25   acc_norm
arc_challenge             arc_challenge                                    10  0.25   acc_norm
copa                      copa                                              0  0.5    acc
commonsense_qa            commonsense_qa                                   10  0.2    acc
piqa                      piqa                                             10  0.5    acc_norm
openbook_qa               openbookqa                                        0  0.25   acc_norm
lambada_openai            lambada_openai                                    0  0      acc
hellaswag                 hellaswag                                        10  0.25   acc_norm
winograd                  wsc273                                            0  0.5    acc
winogrande                winogrande                                        0  0.5    acc
bigbench_dyck_languages   bigbench_dyck_languages_generate_until           10  0      exact_match
agi_eval_lsat_ar          agieval_lsat_ar                                   3  0.2    acc_norm
bigbench_cs_algorithms    bigbench_cs_algorithms_generate_until            10  0      exact_match
bigbench_operators        bigbench_operators_generate_until                10  0      exact_match
bigbench_repeat_copy_logic  bigbench_repeat_copy_logic_generate_until      10  0      exact_match
squad                     squad_completion                                 10  0      contains
coqa                      coqa                                              0  0      em
boolq                     boolq                                            10  0.62   acc
bigbench_language_identification  bigbench_language_identification_multiple_choice  10  0.091  acc
"""

# llm-foundry: scripts/eval/yamls/eval_gauntlet_v0.2.yaml
_GAUNTLET = """
jeopardy                  -                                                 3  0      exact_match
bigbench_qa_wikidata      bigbench_qa_wikidata_generate_until               3  0      exact_match
arc_easy                  arc_easy                                          3  0.25   acc_norm
arc_challenge             arc_challenge                                     3  0.25   acc_norm
mmlu                      mmlu                                              5  0.25   acc
triviaqa_sm_sub           triviaqa                                          3  0      exact_match
copa                      copa                                              0  0.5    acc
siqa                      social_iqa                                        3  0.333   acc
commonsense_qa            commonsense_qa                                    0  0.2    acc
piqa                      piqa                                              0  0.5    acc_norm
openbook_qa               openbookqa                                       10  0.25   acc_norm
bigbench_strange_stories  bigbench_strange_stories_multiple_choice          0  0.5    acc
bigbench_strategy_qa      bigbench_strategyqa_multiple_choice               0  0.5    acc
lambada_openai            lambada_openai                                    0  0      acc
hellaswag                 hellaswag                                         0  0.25   acc_norm
winograd                  wsc273                                            3  0.5    acc
winogrande                winogrande                                        5  0.5    acc
bigbench_elementary_math_qa  bigbench_elementary_math_qa_multiple_choice    1  0.25   acc
bigbench_dyck_languages   bigbench_dyck_languages_generate_until            5  0      exact_match
bigbench_operators        bigbench_operators_generate_until                 3  0      exact_match
simple_arithmetic_withspaces  -                                             5  0      exact_match
simple_arithmetic_nospaces  -                                               5  0      exact_match
aqua                      agieval_aqua_rat                                  3  0.2    acc_norm
gsm8k                     gsm8k                                             8  0      exact_match
svamp                     -                                                 5  0      exact_match
agi_eval_sat_math         agieval_sat_math                                  3  0.25   acc_norm
agi_eval_lsat_ar          agieval_lsat_ar                                   5  0.2    acc_norm
squad                     squad_completion                                  3  0      contains
boolq                     boolq                                             0  0.5    acc
coqa                      coqa                                              0  0      em
agi_eval_lsat_rc          agieval_lsat_rc                                   5  0.2    acc_norm
agi_eval_lsat_lr          agieval_lsat_lr                                   5  0.2    acc_norm
agi_eval_sat_en           agieval_sat_en                                    5  0.25   acc_norm
"""


def _read(table: str) -> tuple[Task, ...]:
    tasks = []
    for line in table.strip().splitlines():
        label, name, shots, chance, metric = line.split()
        tasks.append(Task(label, None if name == "-" else name, int(shots), float(chance), metric))
    return tuple(tasks)


BUNDLES = {"core": _read(_CORE), "gauntlet": _read(_GAUNTLET)}
CHANCE = {task.name: task.chance for rows in BUNDLES.values() for task in rows if task.name}


def named(name: str, shots: int | None = None) -> Task:
    """A task of the harness by its name, or by the path of its .yaml."""
    label = name.rsplit("/", 1)[-1].removesuffix(".yaml")
    return Task(label, name, shots, CHANCE.get(name), None)


def score(task: Task, result: dict) -> dict:
    """The number that counts of a task's results in the harness, with its standard error, and centred.

    Parameters
    ----------
    result : the harness's numbers of a task, under "METRIC,FILTER" and "METRIC_stderr,FILTER".
    """
    numbers = {}
    for key, value in result.items():
        if "," in key and "_stderr," not in key and isinstance(value, (int, float)):
            numbers[key] = float(value)
    order = [task.metric] if task.metric else [*METRICS, *(key.split(",")[0] for key in numbers)]
    key = next((key for metric in order for key in numbers if key.split(",")[0] == metric), None)
    if key is None:
        raise UserError(
            f"task {task.label}: the harness gave no {task.metric or 'number'}; it gave {', '.join(result)}"
        )
    metric, kind = key.split(",", 1)
    stderr = result.get(f"{metric}_stderr,{kind}")
    stderr = float(stderr) if isinstance(stderr, (int, float)) else None  # "N/A" where it has none
    return {"task": task.label, "metric": metric, "score": numbers[key], "stderr": stderr, "chance": task.chance,
            "centred": centred(numbers[key], task.chance)}  # fmt: skip


def centred(value: float, chance: float | None) -> float | None:
    return None if chance is None else (value - chance) / (1 - chance)


def mean(bundle: str, rows: list[dict]) -> dict:
    """The mean of a bundle's centred scores, its standard error, and what is missing from it."""
    tasks, of_label = BUNDLES[bundle], {row["task"]: row for row in rows}
    scored = [of_label[task.label] for task in tasks if task.label in of_label]
    if not scored:
        raise UserError(f"--tasks {bundle}: none of its tasks could be scored")
    errors = [row["stderr"] / (1 - row["chance"]) for row in scored if row["stderr"] is not None]
    stderr = None
    if len(errors) == len(scored):
        stderr = sum(error**2 for error in errors) ** 0.5 / len(scored)
    value = sum(row["centred"] for row in scored) / len(scored)
    return {
        "task": bundle,
        "metric": f"mean of {len(scored)} of {len(tasks)}, centred",
        "score": value,
        "stderr": stderr,
        "chance": 0.0,
        "centred": value,
        "missing": [task.label for task in tasks if task.label not in of_label],
    }
