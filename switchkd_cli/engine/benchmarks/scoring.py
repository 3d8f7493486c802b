"""Scores of single items, by the stock tasks' own rules, so that runs can be compared item by item."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

from switchkd_cli.engine.benchmarks.harness import no_judge
from switchkd_cli.protocol import Benchmark


def item_scores(row: Benchmark, samples: Sequence[dict]) -> list[float]:
    """0..1 for each of lmms-eval's samples."""
    rule = RULES.get(row.task_folder, _plain)
    with no_judge():
        return [rule(sample[row.metric]) for sample in samples]


def categories(row: Benchmark, samples: Sequence[dict]) -> int:
    """How many categories the samples have, where the metric adds them up; else 1."""
    return len({sample[row.metric]["category"] for sample in samples}) if row.per_category else 1


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
