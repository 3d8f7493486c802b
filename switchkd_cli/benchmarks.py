"""The protocol: how the paper's ten benchmarks and three more are run and scored here, one entry of benchmarks.yaml for each.

The entries name stock lmms-eval tasks (prompts and metrics unchanged), two of the three a task of the playground, and say
where the paper measured its printed number differently, so that a table can show the difference next to the score. No
answer is ever sent to a judge model. Every other task of lmms-eval can be asked too: its score is the
number that lmms-eval gives. Its tasks and groups, and those of a user's own folder, are read from their YAML files alone, in
half a second: lmms-eval takes many to import and to list its tasks.
"""

import importlib.util
import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from switchkd_cli.errors import did_you_mean
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
        return not self.stock or self.task in IN_POINTS

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
EXPOSURE = f"{OWN_ROWS}.exposure"
"""The one among them that is not in points but in bits, and the lower the better."""
IN_POINTS = ROW_METRICS.keys() - {EXPOSURE}


class _Benchmarks(dict[str, Benchmark]):
    def __missing__(self, task: str) -> Benchmark:
        scale = "100 x the mean of the rows" if task in IN_POINTS else "its own number"
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


OURS = (*BENCHMARKS, *ROW_METRICS)
"""Benchmarks that switchkd describes itself; a task of lmms-eval with such a name is run as described."""
ANSWERED = "generate_until"
"""The only kind of task that can be asked here: one question, one greedy answer."""
FORMATS = ("json", "csv", "parquet", "text", "imagefolder")
"""As `dataset_path`, these name a form of local files."""
FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")
OF_LMMS_EVAL = re.compile(r"^(?:from|import)\s+(lmms_eval\.tasks\.[\w.]+)", re.MULTILINE)
JUDGE = re.compile(r"get_server|openai|anthropic|API_KEY|requests\.post", re.IGNORECASE)


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads `!function module.name` as nothing."""


_TaskLoader.add_constructor("!function", lambda loader, node: None)


@dataclass(frozen=True)
class StockTask:
    """A task, or a group (a tag) of tasks."""

    file: Path = Path()
    """Where it is described; a tag has no file of its own."""
    config: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    """Of a group: tasks, tags and other groups."""

    @property
    def kind(self) -> str:
        return "python class" if "class" in self.config else str(self.config.get("output_type", ANSWERED))


def stock_folder() -> Path | None:
    """The folder of the installed lmms-eval; None where it is not installed. Imports nothing."""
    found = importlib.util.find_spec("lmms_eval")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def known_tasks(tasks_path: str | None = None) -> Mapping[str, StockTask]:
    """Every task, group and tag by its name; those of the user's folder come before lmms-eval's of the same name."""
    stock = stock_folder()
    return {**(_scan(stock / "tasks") if stock else {}), **(_scan(Path(tasks_path)) if tasks_path else {})}


@cache
def _scan(folder: Path) -> Mapping[str, StockTask]:
    found: dict[str, StockTask] = {}
    tags: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        config = dict(ChainMap(*map(_parsed, _with_includes(file))))
        task, group = config.get("task"), config.get("group")
        if isinstance(task, list) and isinstance(group, str):
            found[group] = StockTask(file, config, tuple(_names(task)))
        elif isinstance(task, str):
            found[task] = StockTask(file, config)
            for tag in _names([config.get("tag"), group]):
                tags.setdefault(tag, []).append(task)
    return {tag: StockTask(members=tuple(tasks)) for tag, tasks in tags.items()} | found


def _with_includes(file: Path) -> Iterator[Path]:
    """A task's file and those that it includes; what an earlier one says holds."""
    yield file
    for name in _names(_parsed(file).get("include")):
        yield from _with_includes(file.parent / name)


@cache
def _parsed(file: Path) -> dict[str, Any]:
    """What a file itself says; nothing where it can't be read: not every YAML file in such a folder is a task's."""
    try:
        content = yaml.load(_text(file), _TaskLoader)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _names(value: Any) -> list[str]:
    """One name, or those of a list, in which a member may itself be a group without a file of its own."""
    if isinstance(value, dict):
        return _names(value.get("task"))
    if isinstance(value, list):
        return [name for each in value for name in _names(each)]
    return [value] if isinstance(value, str) else []


def expanded(name: str, tasks_path: str | None = None) -> list[str]:
    """The tasks that a name stands for: itself, or all of a group, each once; empty for an unknown name."""
    if name in OURS:
        return [name]
    tasks, names, found = known_tasks(tasks_path), [name], []
    for each in names:  # grows by the members of groups
        if each in tasks and not tasks[each].members:
            found.append(each)
        elif each in tasks:
            names += [member for member in tasks[each].members if member not in names]
    return found


def refusal(name: str, tasks_path: str | None = None) -> str:
    """Why a name is no benchmark that can be asked, with the nearest that is one; else empty."""
    if name in OURS:
        return ""
    tasks, asked = known_tasks(tasks_path), expanded(name, tasks_path)
    if not asked:
        absent = "" if stock_folder() else " (lmms-eval is not installed, so its tasks are not known)"
        return f"unknown benchmark, got {name!r}{did_you_mean(name, [*OURS, *tasks])}{absent}"
    other = [f"{task} is {tasks[task].kind}" for task in asked if tasks[task].kind != ANSWERED]
    return f"only {ANSWERED} tasks can be asked here, got {name!r} ({', '.join(other)})" if other else ""


def needs(names: Iterable[str], tasks_path: str | None = None) -> list[str]:
    """What stock benchmarks need from outside, in words: their data, and a judge model where their code mentions one."""
    found = []
    for name in (name for name in names if name not in OURS):
        for task in (known_tasks(tasks_path)[each] for each in expanded(name, tasks_path)):
            path = task.config.get("dataset_path")
            if path is not None and path not in FORMATS and not Path(path).exists():
                found.append(f"{name} needs data {path} (network, unless cached; gated data: hf auth login)")
            if any(map(JUDGE.search, _code(task.file))):
                judge = "a judge model in some of its metrics, which is never called here"
                found.append(f"{name} needs {judge}: such an evaluation ends with an error")
    return list(dict.fromkeys(found))


def _code(file: Path) -> Iterator[str]:
    """The Python code that a task names, and that of lmms-eval's tasks which this imports."""
    for each in _with_includes(file):
        for module in FUNCTION.findall(_text(each)):
            yield (code := _text(each.parent.joinpath(*module.split(".")).with_suffix(".py")))
            for other in OF_LMMS_EVAL.findall(code):
                yield _text((stock_folder() or Path()).parent.joinpath(*other.split(".")).with_suffix(".py"))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
