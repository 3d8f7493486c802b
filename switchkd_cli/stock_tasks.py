"""The tasks and groups of the installed lmms-eval, and of a user's own folder, read from their YAML files alone.

lmms-eval takes seconds to import and to list its tasks. Here only the few lines of each file that say a name, the
members of a group, and what a task needs are parsed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from switchkd_cli.errors import did_you_mean

KEYS = "task|group|tag|class|include|output_type|dataset_path"
PART = re.compile(rf"^[\"']?(?:{KEYS})[\"']?[ ]*:.*\n?(?:(?:[ \t-].*|[ \t]*)(?:\n|\Z))*", re.MULTILINE)
INCLUDE = re.compile(r"^[\"']?include[\"']?[ ]*:[ ]*[\"']?([\w./-]+)", re.MULTILINE)
FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")
OF_LMMS_EVAL = re.compile(r"^(?:from|import)\s+lmms_eval\.tasks\.([\w.]+)", re.MULTILINE)
JUDGE = re.compile(r"get_server|openai|anthropic|API_KEY|requests\.post", re.IGNORECASE)
ANSWERED = "generate_until"
"""The only kind of task that can be asked here: one question, one greedy answer."""


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads `!function module.name` as nothing."""


_TaskLoader.add_constructor("!function", lambda loader, node: None)


@dataclass(frozen=True)
class StockTask:
    """A task, or a group (a tag) of tasks."""

    name: str
    file: Path | None = None
    """Where the task is described; None for a tag."""
    members: tuple[str, ...] = ()
    """Of a group: tasks, tags and other groups."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """The parsed `KEYS` of the task's file and of those that it includes."""

    @property
    def kind(self) -> str:
        return "python class" if "class" in self.keys else str(self.keys.get("output_type", ANSWERED))


def stock_folder() -> Path | None:
    """The folder of the installed lmms-eval's tasks; None where it is not installed. Imports nothing."""
    found = importlib.util.find_spec("lmms_eval")
    return Path(found.submodule_search_locations[0], "tasks") if found and found.submodule_search_locations else None


def known(tasks_path: str | None = None) -> Mapping[str, StockTask]:
    """Every task, group and tag by its name; those of the user's folder come before lmms-eval's of the same name."""
    stock = stock_folder()
    return {**(_scan(stock) if stock else {}), **(_scan(Path(tasks_path)) if tasks_path else {})}


@cache
def _scan(folder: Path) -> Mapping[str, StockTask]:
    found: dict[str, StockTask] = {}
    tags: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        keys, task = (read := _keys(file)), read.get("task")
        if isinstance(task, list) and isinstance(keys.get("group"), str):
            found[keys["group"]] = StockTask(keys["group"], file, tuple(_names(task)), keys)
        elif isinstance(task, str):
            found[task] = StockTask(task, file, keys=keys)
            for tag in (t for key in ("tag", "group") for t in _listed(keys.get(key))):
                tags.setdefault(tag, []).append(task)
    return {tag: StockTask(tag, members=tuple(members)) for tag, members in tags.items()} | found


def _keys(file: Path) -> dict[str, Any]:
    """The parsed `KEYS` of a file, over those of the files that it includes; nothing where it can't be read."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        own = yaml.load("".join(part[0] for part in PART.finditer(text)), _TaskLoader)
    except (OSError, yaml.YAMLError):
        return {}
    own = own if isinstance(own, dict) else {}
    included: dict[str, Any] = {}
    for name in reversed(_listed(own.pop("include", None))):
        included |= _keys(file.parent / name)
    return included | own


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [v for v in value or () if isinstance(v, str)]


def _names(members: Iterable[Any]) -> Iterator[str]:
    """The names in a group's list, in which a member may itself be a group without a file of its own."""
    for member in members:
        inner = member.get("task") if isinstance(member, dict) else member
        yield from _names(inner) if isinstance(inner, list) else [inner] if isinstance(inner, str) else ()


def expanded(name: str, tasks_path: str | None = None) -> list[str]:
    """The tasks that a name stands for: itself, or all of a group, each once; empty for an unknown name."""
    tasks = known(tasks_path)

    def leaves(name: str, above: frozenset[str]) -> Iterator[str]:
        if (found := tasks.get(name)) is None or name in above:
            return
        for member in found.members:
            yield from leaves(member, above | {name})
        if not found.members:
            yield name

    return list(dict.fromkeys(leaves(name, frozenset())))


def unknown(name: str, ours: Iterable[str], tasks_path: str | None = None) -> str:
    """Why a name is no benchmark, with the nearest of ours and of lmms-eval's; empty where it is one."""
    if name in ours or expanded(name, tasks_path):
        return ""
    tasks = known(tasks_path)
    absent = "" if stock_folder() else " (lmms-eval is not installed, so its tasks are not known)"
    return f"unknown benchmark, got {name!r}{did_you_mean(name, [*ours, *tasks])}{absent}"


def obstacles(name: str, tasks_path: str | None = None) -> list[str]:
    """What keeps a task from being asked at all: its kind, or packages that its code imports and that are missing."""
    task = known(tasks_path)[name]
    problems = [] if task.kind == ANSWERED else [f"{name}: only {ANSWERED} tasks can be asked here, got {task.kind}"]
    if missing := sorted(_missing(task)):
        problems.append(f"{name}: its code needs packages that are not installed: {', '.join(missing)}")
    return problems


def needs(name: str, tasks_path: str | None = None) -> list[str]:
    """What a task needs from outside, in words: its data, and a judge model where its code mentions one."""
    task = known(tasks_path)[name]
    path = task.keys.get("dataset_path")
    there = path is None or Path(path).exists() or path in ("json", "csv", "parquet", "text", "imagefolder")
    data = [] if there else [f"data {path} (network, unless cached; gated data: hf auth login)"]
    judge = "a judge model in some of its metrics, which is never called here: such an evaluation ends with an error"
    return data + [judge] * any(JUDGE.search(text) for text in _code(task).values())


def _code(task: StockTask) -> dict[Path, str]:
    """The Python files whose functions a task names, with their text."""
    if task.file is None:
        return {}
    stock, files, seen = stock_folder(), [task.file], set[Path]()
    code: dict[Path, str] = {}
    while files:
        file = files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8", errors="replace")
        sources = [file.parent.joinpath(*module.split(".")) for module in FUNCTION.findall(text)]
        for source in (source.with_suffix(".py") for source in sources):
            code |= _read(source)
            for module in OF_LMMS_EVAL.findall(code.get(source, "")):  # one import further
                code |= _read(Path(stock or "", *module.split(".")).with_suffix(".py"))
        files += [file.parent / name for name in INCLUDE.findall(text)]
    return code


def _read(source: Path) -> dict[Path, str]:
    return {source: source.read_text(encoding="utf-8", errors="replace")} if source.is_file() else {}


def _missing(task: StockTask) -> Iterator[str]:
    """Packages that these files import when they are loaded and that can't be found."""
    names: set[str] = set()
    for text in _code(task).values():
        try:
            body = ast.parse(text).body
        except SyntaxError:
            continue
        for line in body:
            if isinstance(line, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in line.names}
            elif isinstance(line, ast.ImportFrom) and line.module and not line.level:
                names.add(line.module.partition(".")[0])
    folders = {source.parent for source in _code(task)}  # some tasks put their own folder on the path
    own = {name for name in names for folder in folders if any(folder.rglob(f"{name}.py"))}
    yield from (name for name in names - own if importlib.util.find_spec(name) is None)
