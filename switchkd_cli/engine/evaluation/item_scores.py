"""Scores and faults of single items, by the stock tasks' own rules, so that runs can be compared item by item.

A fault is, for example, an answer that these rules can't read: then its content does not count.
"""

from ast import literal_eval
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pandas
from lmms_eval.tasks._task_utils import mmmu_mcq_utils
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mme.utils import parse_pred_ans
from lmms_eval.tasks.mmmu.utils import evaluate_mmmu
from lmms_eval.tasks.scienceqa.utils import sqa_process_results

from switchkd_cli.benchmarks import Benchmark
from switchkd_cli.engine.evaluation.lmms_harness import no_judge
from switchkd_cli.engine.evaluation.lmms_model import Item
from switchkd_cli.report.stats.stored_answers import spaced_words

CIRCLE = 1_000_000  # MMBench: items whose indices differ by a multiple of this are one question


def read(row: Benchmark, outcome: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict], list[dict]]:
    """Return the score of a benchmark with an entry, as one of results.json; its samples; each one's score (0..1) and unit."""
    samples = [sample for sample in outcome["samples"][row.task] if row.metric in sample]
    value = float(outcome["results"][row.task][f"{row.metric},none"])
    values = [sample[row.metric] for sample in samples]
    categories = len({of["category"] for of in values}) if row.per_category else 1
    entry = {"score": row.score(value, categories), "metric": row.metric, "value": value}
    with no_judge():
        return entry, samples, [{"score": RULES.get(row.task_folder, _own_score)(of)} | _unit(row, of) for of in values]


def _unit(row: Benchmark, value: Any) -> dict[str, Any]:
    """Return the `unit` and `category` of an item, where the metric does not add up single items; else nothing.

    A unit of MME is the two questions about an image, one of MMVP or Swap a question about two images; a unit of MMBench is
    a question in all orders of its options.
    """
    if row.task_folder == "mme":
        return {"unit": value["question_id"], "category": value["category"]}
    if row.pairs:
        return {"unit": value["pair_index"]}
    return {"unit": value["index"] % CIRCLE} if row.task_folder == "mmbench" else {}


def faults(row: Benchmark, sample: dict, item: Item, score: float | None) -> list[str]:
    """Return the faults of an answer (see `benchmarks.FAULTS`)."""
    answer = sample["filtered_resps"][0]
    if not answer:
        faults_of_text = ["empty"]
    elif row.stock:
        faults_of_text = []  # what its rule can read is not known here
    elif row.asks == "open":
        faults_of_text = ["unreadable"] if score == 0 and _contains(answer, item.target) else []
    else:
        faults_of_text = [] if READABLE[row.task_folder](sample, answer) else ["unreadable"]
    return faults_of_text + ["at_limit"] * item.at_limit + ["too_long"] * item.too_long


def _contains(answer: str, target: str) -> bool:
    """Whether the right answer occurs among other words, where the rules for open questions don't find it."""
    words, right = spaced_words(answer), spaced_words(target)
    return right in words != right


def _scienceqa_readable(sample: dict, answer: str) -> bool:
    """Whether the answer names any option: whether it would be right if that option were."""
    choices = sample["doc"]["choices"]
    variants = [{"choices": choices, "answer": place} for place in range(len(choices))]
    return any(sqa_process_results(doc, [answer])["exact_match"] for doc in variants)


def _mmmu_readable(sample: dict, answer: str) -> bool:
    """Whether the answer names an option; for one that does not, MMMU's rule draws an option at random."""
    if sample["doc"]["question_type"] != "multiple-choice":
        return True
    index, choices = mmmu_mcq_utils.get_multi_choice_info(literal_eval(sample["doc"]["options"]))
    with patch.object(mmmu_mcq_utils, "random", SimpleNamespace(choice=lambda options: None)):
        return mmmu_mcq_utils.parse_mmmu_multi_choice_response(answer, choices, index) is not None


READABLE: dict[str, Callable[[dict, str], Any]] = {
    "mme": lambda sample, answer: parse_pred_ans(answer) != "other",
    "pope": lambda sample, answer: sample["pope_f1_score"]["prediction"] in ("yes", "no"),
    "mmbench": lambda sample, answer: MMBench_Evaluator().prefetch_answer(sample["gpt_eval_score"]),
    "scienceqa": _scienceqa_readable,
    "mmmu": _mmmu_readable,
    "mmvp": lambda sample, answer: sample["mmvp_pair_accuracy"]["pred_letter"],
}
"""By task folder: whether the stock rule finds an answer that it knows."""


def _own_score(value: Any) -> float:
    """Return the score that the task itself gives: a number, or a record with a `score`."""
    return float(value["score"] if isinstance(value, dict) else value)


def _mmbench(value: dict) -> float:
    truth = {value["index"]: value["answer"]}
    return float(MMBench_Evaluator().eval_sub_data(pandas.DataFrame([value]), truth))


RULES: dict[str, Callable[[Any], float]] = {
    "mmbench": _mmbench,
    "mmmu": lambda value: float(evaluate_mmmu([value])[1]["acc"]),
    "mmvp": lambda value: float(value["is_correct"]),
}
"""Score rules by task folder; every other task scores its items itself."""
