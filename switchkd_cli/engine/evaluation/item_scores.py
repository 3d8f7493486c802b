"""Scores of single items, by the stock tasks' own rules, so that runs can be compared item by item.

And which answers those rules can't read: what such an answer says does not matter.
"""

import re
from ast import literal_eval
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pandas
from lmms_eval.tasks._task_utils import mmmu_mcq_utils
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mme.utils import parse_pred_ans
from lmms_eval.tasks.mmmu.utils import evaluate_mmmu
from lmms_eval.tasks.scienceqa.utils import sqa_process_results

from switchkd_cli.benchmarks import Benchmark
from switchkd_cli.engine.evaluation.lmms_harness import no_judge, swapped
from switchkd_cli.engine.evaluation.lmms_model import Item

CIRCLE = 1_000_000  # MMBench: indices that differ by a multiple of it are one question


def item_scores(row: Benchmark, samples: Sequence[dict]) -> list[float]:
    """0..1 for each of lmms-eval's samples."""
    rule = RULES.get(row.task_folder, _plain)
    with no_judge():
        return [rule(sample[row.metric]) for sample in samples]


def categories(row: Benchmark, samples: Sequence[dict]) -> int:
    """How many categories the samples have, where the metric adds them up; else 1."""
    return len({sample[row.metric]["category"] for sample in samples}) if row.per_category else 1


def unit(row: Benchmark, sample: dict) -> dict[str, Any]:
    """What the metric adds up, where it is not single items: `unit`, the same for all its items, and `category`.

    MME's units are the two questions of a picture; MMBench's a question in all its circulated orders.
    """
    value = sample[row.metric]
    if row.task_folder == "mme":
        return {"unit": value["question_id"], "category": value["category"]}
    return {"unit": value["index"] % CIRCLE} if row.task_folder == "mmbench" else {}


def faults(row: Benchmark, sample: dict, item: Item, score: float) -> list[str]:
    """What is wrong with an answer itself, see protocol.FAULTS."""
    answer = sample["filtered_resps"][0]
    if not answer:
        unread = ["empty"]
    elif row.asks == "open":
        unread = ["unreadable"] if score == 0 and _among(answer, item.target) else []
    else:
        unread = [] if READ[row.task_folder](sample, answer) else ["unreadable"]
    return unread + ["at_limit"] * item.at_limit + ["too_long"] * item.too_long


def _among(answer: str, target: str) -> bool:
    """Whether the right answer stands among others of its words, which no rule for open questions looks for."""
    said, right = (" ".join(["", *re.findall(r"\w+", text.casefold()), ""]) for text in (answer, target))
    return right in said != right


def _scienceqa(sample: dict, answer: str) -> bool:
    """Whether it would be right if some option were."""
    choices = sample["doc"]["choices"]
    asked = [{"choices": choices, "answer": place} for place in range(len(choices))]
    return any(sqa_process_results(doc, [answer])["exact_match"] for doc in asked)


def _mmmu_read(sample: dict, answer: str) -> bool:
    """Whether its option is not a random one."""
    if sample["doc"]["question_type"] != "multiple-choice":
        return True
    index, choices = mmmu_mcq_utils.get_multi_choice_info(literal_eval(sample["doc"]["options"]))
    with swapped(mmmu_mcq_utils, random=SimpleNamespace(choice=lambda options: None)):
        return mmmu_mcq_utils.parse_mmmu_multi_choice_response(answer, choices, index) is not None


READ: dict[str, Callable[[dict, str], Any]] = {
    "mme": lambda sample, answer: parse_pred_ans(answer) != "other",
    "pope": lambda sample, answer: sample["pope_f1_score"]["prediction"] in ("yes", "no"),
    "mmbench": lambda sample, answer: MMBench_Evaluator().prefetch_answer(sample["gpt_eval_score"]),
    "scienceqa": _scienceqa,
    "mmmu": _mmmu_read,
}
"""By task folder, whether the stock rule finds one of the answers that it knows."""


def _plain(value: Any) -> float:
    """A number, or a record with its score."""
    return float(value["score"] if isinstance(value, dict) else value)


def _mmbench(value: dict) -> float:
    truth = {value["index"]: value["answer"]}
    return float(MMBench_Evaluator().eval_sub_data(pandas.DataFrame([value]), truth))


def _mmmu(value: dict) -> float:
    return float(evaluate_mmmu([value])[1]["acc"])


RULES: dict[str, Callable[[Any], float]] = {"mmbench": _mmbench, "mmmu": _mmmu}
"""By task folder; every other task says its items' scores itself."""
