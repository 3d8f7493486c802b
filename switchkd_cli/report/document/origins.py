"""Where a report's numbers come from: runs, seeds, seconds, machines, versions, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from switchkd_cli.recipe.find import find_or_none
from switchkd_cli.report.document.blocks import Block, Commands, Facts, Points, Text
from switchkd_cli.report.results.finished_run import Scored
from switchkd_cli.report.results.recipe_runs import Gathered
from switchkd_cli.report.tables import footnotes
from switchkd_cli.runs.run_folder import shown


def facts(recipes: Sequence[Gathered], every: Sequence[Scored]) -> Iterator[tuple[str, str]]:
    """What stands at the top."""
    asked = sum(len(recipe.states) for recipe in recipes)
    many = f"{len(recipes)} recipes" if len(recipes) > 1 else "one recipe"
    yield "Runs", f"{len(every)} finished and scored of {asked} asked for, in {many}"
    yield "Seeds", "; ".join(_each(recipes, lambda r: footnotes.counted(r.seeds) if r.seeds else "no runs"))
    own = {_made_as(run): run for run in every}.values()
    if len(own) < len(every):
        yield (
            "In common",
            f"{len(every) - len(own)} of them are rows that another recipe has too, trained and scored once",
        )
    yield (
        "Training",
        f"{_clock(sum(run.trained for run in own))} in all (the stages' own clocks, some side by side)",
    )
    yield "Runs with scoring", _clock(sum(float(run.info.get("seconds") or 0) for run in own))
    machines = sorted({str(run.info["machine"]) for run in every if run.info.get("machine")})
    yield "Machine", "; ".join(machines) or "not recorded in these runs"
    times = sorted(str(run.info["ended"])[:16].replace("T", " ") for run in every if run.info.get("ended"))
    if times:
        yield "Finished", f"{times[0]} to {times[-1]} UTC"


def made(recipes: Sequence[Gathered], every: Sequence[Scored]) -> Iterator[Block]:
    """What stands at the end."""
    yield Text("The same runs again, from nothing; what is finished is skipped:")
    yield Commands(tuple(command(recipe) for recipe in recipes))
    commands = dict.fromkeys(
        tuple(record.get("command") or ())
        for run in every
        for record in (run.info, run.info.get("reused") or {})
    )
    typed = [shlex.join(words) for words in commands if words[1:2] in (["ablate"], ["distill"])]
    if typed:
        yield Text("As they were typed:")
        yield Commands(tuple(typed))
    yield Facts(tuple(_versions(every)))
    yield Text("How to read it:")
    yield Points(tuple(_reading()))


def command(recipe: Gathered) -> str:
    """What makes the recipe's runs again, under the same folder."""
    world = recipe.name.partition("@")[2]
    name = recipe.stem.replace("_", "-")
    parts = [
        "switchkd",
        "ablate",
        name if _is(find_or_none(name), recipe.file) else shown(recipe.file.absolute()),
    ]
    parts += ["--world", world] if world else []
    parts += ["--rows", ",".join(run.row for run in recipe.asked)] if recipe.asked and recipe.unasked else []
    seeds = recipe.seeds or [recipe.planned[0].seed]
    parts += ["--seeds", str(seeds[-1] - seeds[0] + 1)]
    parts += ["--seed", str(seeds[0])] if seeds[0] != recipe.planned[0].seed else []
    root = shown(recipe.runs[0].path.parents[2]) if recipe.runs else "runs"
    parts += ["--out", root] if root != "runs" else []
    return shlex.join(parts)


def _is(one: Path | None, other: Path) -> bool:
    return one is not None and one.resolve() == other.resolve()


def _made_as(run: Scored) -> str:
    """Which run was trained: a row that another recipe has too is that recipe's run under a name of its own."""
    return run.info.get("reused", {}).get("from") or "/".join(run.path.parts[-3:])


def _versions(every: Sequence[Scored]) -> Iterator[tuple[str, str]]:
    """Of what trained, of what scored, and of this code; a library once more where runs differ in it."""
    trained = [run.versions for run in every]
    scored = [run.results.get("versions") or {} for run in every]
    for name, versions in (("Trained with", trained), ("Scored with", scored)):
        pairs = dict.fromkeys((library, str(v)) for each in versions for library, v in each.items() if v)
        yield name, ", ".join(f"{library} {version}" for library, version in sorted(pairs)) or "not recorded"
    commits = dict.fromkeys(str(run.info["commit"]) for run in every if run.info.get("commit"))
    yield "Commits", ", ".join(commits) or "not recorded"


def _reading() -> Iterator[str]:
    yield "no number stands here that is not in, or computed from, the files of a finished run or the paper as printed"
    yield "over seeds: would other trainings say the same on these questions? Over items: would other questions say the same of these models? docs/compare.md has the tests"
    yield "intervals over seeds are t intervals of the mean; with one seed there is none, and nothing is called clear"


def _each(recipes: Sequence[Gathered], told: Callable[[Gathered], str]) -> list[str]:
    """What is said of the recipes, once for those of which the same is said."""
    said: dict[str, list[str]] = defaultdict(list)
    for recipe in recipes:
        said[told(recipe)].append(recipe.title)
    if len(said) == 1:
        return list(said)
    return [f"{words}: {', '.join(titles)}" for words, titles in said.items()]


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    clock = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{seconds:,.0f} s ({clock})"
