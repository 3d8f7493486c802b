"""The names of benchmarks, with every task and group of the installed lmms-eval and of a user's own folder.

They are read from the YAML files alone, in half a second: lmms-eval takes many to import and to list its tasks.
"""

import importlib.util
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from switchkd_cli.benchmarks import BENCHMARKS, ROW_METRICS
from switchkd_cli.errors import did_you_mean

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


def known(tasks_path: str | None = None) -> Mapping[str, StockTask]:
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
    tasks, names, found = known(tasks_path), [name], []
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
    tasks, asked = known(tasks_path), expanded(name, tasks_path)
    if not asked:
        absent = "" if stock_folder() else " (lmms-eval is not installed, so its tasks are not known)"
        return f"unknown benchmark, got {name!r}{did_you_mean(name, [*OURS, *tasks])}{absent}"
    other = [f"{task} is {tasks[task].kind}" for task in asked if tasks[task].kind != ANSWERED]
    return f"only {ANSWERED} tasks can be asked here, got {name!r} ({', '.join(other)})" if other else ""


def needs(names: Iterable[str], tasks_path: str | None = None) -> list[str]:
    """What stock benchmarks need from outside, in words: their data, and a judge model where their code mentions one."""
    tasks, found = known(tasks_path), []
    for name in (name for name in names if name not in OURS):
        for task in (tasks[each] for each in expanded(name, tasks_path)):
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
