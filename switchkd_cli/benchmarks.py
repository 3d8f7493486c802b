"""The protocol: how the paper's ten benchmarks and three more are run and scored here, one entry of benchmarks.yaml for each.

The entries name stock lmms-eval tasks (prompts and metrics unchanged), two of the three a task of the playground, and say
where the paper measured its printed number differently, so that a table can show the difference next to the score. No
answer is ever sent to a judge model. Every other task of lmms-eval can be asked too (stock_tasks.py): its score is the
number that lmms-eval gives.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from switchkd_cli.package_data import read_yaml

LMMS_EVAL = "0.7.3"
"""The release of lmms-eval whose tasks these entries describe."""

AnswerKind = Literal["open", "choice", "yes-no"]
_LISTED = read_yaml(__file__)
ANSWER_KINDS: Mapping[AnswerKind, str] = _LISTED["answer_kinds"]
FAULTS: Mapping[str, str] = _LISTED["faults"]


@dataclass(frozen=True)
class Benchmark:
    """One column of a table, and the task that measures it; the defaults are those of a task without an entry."""

    task: str
    """lmms-eval's name of the task, also used in recipes and results."""
    column: str
    """The head of the column, the paper's where it has one (Table 1)."""
    task_folder: str = ""
    """The task's folder under lmms_eval/tasks, so that only few of its 190 folders are read; whose rules read the answers."""
    data: str = ""
    """The folder (and configuration) of the data set under `owner`/."""
    split: str = "published"
    """The split of the data set that the task reads."""
    paper_split: str = "none"
    """The split of the paper's printed number; "none": the paper prints none."""
    asks: AnswerKind = "open"
    """The kind of answer that its questions want (in MMMU: nearly all of them)."""
    group: str = "Others"
    """The group of columns that the paper's Figure 1 shows it in."""
    owner: str = "lmms-lab-encoder"
    """Who publishes the data set. That of "switchkd" is not published: the benchmark exists in the playground alone."""
    pairs: bool = False
    """Whether two questions count as one: right where both are. Whoever tosses a coin is right in a quarter of them."""
    answer_tokens: int = 16
    """The most new tokens of an answer in the playground, where most answers are a word or two."""
    questions: int | None = None
    """Of the published split; None: not known here."""
    metric: str = "exact_match"
    """The key of the stock metric that is reported."""
    full: float = 1.0
    """The metric's value if every answer is right; the score is 100 x metric / full."""
    per_category: bool = False
    """Whether `full` is per category of the set (MME adds up its categories)."""
    target: str = "answer"
    """The column of the right answer; of a list of answers, the most frequent one is meant."""
    counted: str = ""
    """The only answer that the metric counts, if there is one (F1)."""
    scale: str = "% right"
    """The meaning of 100, and how the paper's numbers are converted if they are printed on another scale."""
    judge: str = "stock rule"
    """Who or what reads the answers."""
    paper_judge: str = ""
    """Who or what read the paper's answers, if this is known to differ."""
    ocr: bool = False
    """Whether OCR tokens are part of the prompt."""
    paper_ocr: bool = False
    note: str = ""
    """How the paper's convention differs, if it does."""

    stock: bool = False
    """Whether it is a task without an entry here: what is known of it stands in the results."""

    @property
    def in_points(self) -> bool:
        """Whether its score is 0..100 here, as the ten's and those of one's own rows; other numbers are lmms-eval's own."""
        return not self.stock or self.task in ROW_METRICS

    @property
    def digits(self) -> int:
        """Decimal places of its score: lmms-eval's own numbers are often between 0 and 1."""
        return 1 if self.in_points else 4

    @property
    def published(self) -> bool:
        return self.owner != "switchkd"

    def score(self, metric: float, categories: int = 1) -> float:
        """Return the stock metric on the paper's scale, 0..100."""
        return 100.0 * metric / (self.full * (categories if self.per_category else 1))


OWN_ROWS = "rows"
ROW_METRICS: Mapping[str, str] = {f"{OWN_ROWS}.{metric}": rule for metric, rule in _LISTED["row_metrics"].items()}
"""Benchmarks of a user's own rows (`evaluation.data`), one a metric, and how an answer is compared with the row's."""


class _Benchmarks(dict[str, Benchmark]):
    def __missing__(self, task: str) -> Benchmark:
        scale = "100 x the mean of the rows" if task in ROW_METRICS else "its own number"
        return Benchmark(task, task, scale=scale, judge=ROW_METRICS.get(task, "stock rule"), stock=True)


BENCHMARKS: Mapping[str, Benchmark] = _Benchmarks({t: Benchmark(t, **of) for t, of in _LISTED["benchmarks"].items()})
"""All with an entry, by task name: the ten in the order of the paper's columns, then the others.

It holds and lists only these; asked for another name, it gives what is known of any stock task.
"""
TEN = tuple(task for task, benchmark in BENCHMARKS.items() if benchmark.paper_split != "none")
"""The paper's, of which the average is."""

ACCURACY = " accuracy"
NAMES = tuple(name for task in BENCHMARKS for name in (task, task + ACCURACY))
"""The figures that a table may show: a benchmark's score by its task, then its accuracy, where it has one (F1)."""


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """These figures in the order of tables: `NAMES`, then other tasks by name."""
    return (*(name for name in NAMES if name in names), *sorted(set(names).difference(NAMES)))


def with_accuracies(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The scores of a results.json, by `NAMES`: an accuracy that stands in a score's entry gets one of its own."""
    entries: dict[str, Mapping[str, Any]] = {}
    for task, entry in scores.items():
        entries[task] = entry
        if "accuracy" in entry:
            entries[task + ACCURACY] = {**entry, "score": entry["accuracy"], "metric": "accuracy"}
    return entries


def head(name: str) -> str:
    """The head of a figure's column: `POPE`, or `POPE acc.` for its accuracy."""
    task = name.removesuffix(ACCURACY)
    return BENCHMARKS[task].column + " acc." * (task != name)
