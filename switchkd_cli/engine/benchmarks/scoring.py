"""Scores of single items, by the stock tasks' own rules, so that runs can be compared item by item."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

from switchkd_cli.engine.benchmarks.harness import no_judge
from switchkd_cli.protocol import Benchmark

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
