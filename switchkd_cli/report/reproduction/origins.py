"""Where a report's numbers come from: runs, seeds, seconds, machines, versions, commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from switchkd_cli.errors import shown
from switchkd_cli.recipe.find import find_or_none
from switchkd_cli.report.document import Block, Commands, Facts, Points, Text
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.results.finished_run import ScoredRun
from switchkd_cli.report.results.recipe_runs import RecipeRuns
from switchkd_cli.report.results.row_runs import seeds_in_words
from switchkd_cli.report.texts import TEXTS


def facts(recipes: Sequence[RecipeRuns], runs: Sequence[ScoredRun]) -> Iterator[tuple[str, str]]:
    """The facts at the top of the report."""
    started = sum(len(recipe.states) for recipe in recipes)
    many = f"{len(recipes)} recipes" if len(recipes) > 1 else "one recipe"
    yield "Runs", f"{len(runs)} finished and scored of {started} started or planned, in {many}"
    titles = grouped((seeds_in_words(of.seeds) if of.seeds else "no runs", of.title) for of in recipes)
    each = [f"{seeds}: {', '.join(own)}" for seeds, own in titles.items()]
    yield "Seeds", "; ".join(each if len(titles) > 1 else titles)
    # a row that another recipe has too is that recipe's run under a name of its own
    own = {run.info.get("reused", {}).get("from") or "/".join(run.path.parts[-3:]): run for run in runs}.values()
    if shared := len(runs) - len(own):
        yield "In common", f"{shared} of them are rows that another recipe has too, trained and scored once"
    trained = sum(sum(run.clocks.values()) for run in own)
    yield "Training", f"{_clock(trained)} in all (the stages' own clocks, some at the same time)"
    yield "Runs with scoring", _clock(sum(float(run.info.get("seconds") or 0) for run in own))
    yield "Machine", "; ".join(sorted(_recorded(runs, "machine"))) or "not recorded in these runs"
    if times := sorted(time[:16].replace("T", " ") for time in _recorded(runs, "ended")):
        yield "Finished", f"{times[0]} to {times[-1]} UTC"


def how_it_was_made(recipes: Sequence[RecipeRuns], runs: Sequence[ScoredRun]) -> Iterator[Block]:
    """The section at the end: commands, versions, how to read the report."""
    yield Text("To make the same runs again (finished ones are skipped):")
    yield Commands(tuple(command(recipe) for recipe in recipes))
    records = [record for run in runs for record in (run.info, run.info.get("reused") or {})]
    commands = dict.fromkeys(tuple(record.get("command") or ()) for record in records)
    if typed := [shlex.join(words) for words in commands if words[1:2] in (("ablate",), ("distill",))]:
        yield Text("The commands as typed:")
        yield Commands(tuple(typed))
    yield Facts(tuple(_versions(runs)))
    yield Text("How to read it:")
    yield Points(tuple(TEXTS["how to read"]))


def command(recipe: RecipeRuns) -> str:
    """The command that makes the recipe's runs again, under the same folder."""
    world = recipe.name.partition("@")[2]
    name = recipe.stem.replace("_", "-")
    known = find_or_none(name)
    own = known is not None and known.resolve() == recipe.file.resolve()
    parts = ["switchkd", "ablate", name if own else shown(recipe.file.absolute())]
    parts += ["--world", world] if world else []
    if recipe.started_rows and recipe.rows_not_started:
        parts += ["--rows", ",".join(run.row for run in recipe.started_rows)]
    seeds = recipe.seeds or [recipe.planned_rows[0].seed]
    parts += ["--seeds", str(seeds[-1] - seeds[0] + 1)]
    parts += ["--seed", str(seeds[0])] if seeds[0] != recipe.planned_rows[0].seed else []
    root = shown(recipe.runs[0].path.parents[2]) if recipe.runs else "runs"
    parts += ["--out", root] if root != "runs" else []
    return shlex.join(parts)


def _versions(runs: Sequence[ScoredRun]) -> Iterator[tuple[str, str]]:
    """Versions of training, scoring and this code; a library appears once per version."""
    scored = [run.results.get("versions") or {} for run in runs]
    for name, versions in (("Trained with", [run.versions for run in runs]), ("Scored with", scored)):
        pairs = {(library, str(v)) for each in versions for library, v in each.items() if v}
        yield name, ", ".join(f"{library} {version}" for library, version in sorted(pairs)) or "not recorded"
    yield "Commits", ", ".join(_recorded(runs, "commit")) or "not recorded"


def _recorded(runs: Sequence[ScoredRun], what: str) -> list[str]:
    """The different values that the runs' records have under a name."""
    return list(dict.fromkeys(str(run.info[what]) for run in runs if run.info.get(what)))


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    clock = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{seconds:,.0f} s ({clock})"
