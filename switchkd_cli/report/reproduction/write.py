"""Write the report of several recipes: the paper's findings and ours, a chapter per recipe, how it was made."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from switchkd_cli.benchmarks import in_order
from switchkd_cli.errors import UserError, shown
from switchkd_cli.files.atomic import write_text
from switchkd_cli.recipe.named_files import find_or_none
from switchkd_cli.report.document import Block, Document, Facts, FigureFile, Points, Text
from switchkd_cli.report.formats.markup import to_html, to_markdown
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.paper import findings
from switchkd_cli.report.reproduction.chapter import chapter
from switchkd_cli.report.results.finished_run import ScoredRun
from switchkd_cli.report.results.recipe_runs import STATES, RecipeRuns, control_of, gather
from switchkd_cli.report.results.row_runs import seeds_in_words
from switchkd_cli.report.tables.columns import protocol
from switchkd_cli.report.texts import TEXTS

PICTURES = "pictures"  # the folder's name; links to it are stored in written reports
WORLDS = {"playground": "the playground", "hub": "published data sets"}


def write_report(
    files: Sequence[Path], world: str | None, root: Path, folder: Path, of_models: Callable[[], Any]
) -> Iterator[str]:
    """Write report.html, report.md and pictures/ from the finished runs of the recipes; yield what was written.

    Raises UserError where no recipe has a run with scores.
    """
    recipes = [gather(file, world, root) for file in dict.fromkeys(files)]
    if not any(recipe.runs for recipe in recipes):
        names = ", ".join(recipe.name for recipe in recipes)
        raise UserError(f"{root}: no finished run with scores of {names}", hint=command(recipes[0]))
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[Block]] = {recipe.name: [] for recipe in recipes}
    for recipe in recipes:
        if recipe.runs and not recipe.refusal:
            yield from _draw(recipe, of_models, folder, figures[recipe.name])
    document = compose(recipes, figures)
    for name, text in (("report.html", to_html(document, folder)), ("report.md", to_markdown(document))):
        write_text(folder / name, text)
        yield f"report: {shown((folder / name).absolute())}"


def _draw(recipe: RecipeRuns, of_models: Callable[[], Any], folder: Path, blocks: list[Block]) -> Iterator[str]:
    """Draw a recipe's figures and append them to `blocks`, or the reason why there is none."""
    from switchkd_cli.report.figures.draw import FIGURES, draw  # matplotlib: only here

    place = folder / PICTURES / recipe.stem
    forms = {name: ("svg",) for name in FIGURES} | {"attention": ("webp",)}  # maps of patches are no drawing
    for name, (form,) in forms.items():
        (place / f"{name}.{form}").unlink(missing_ok=True)
    control = control_of(recipe.own_world_rows, recipe.planned_rows[0].row, "steps")
    for drawn in draw(recipe.runs, recipe.teacher, of_models, place, reference=control, forms=forms):
        if drawn.reason:
            yield f"{recipe.name}: {drawn}"
            blocks.append(Text(f"N{str(drawn)[1:]}."))
        else:
            path = PurePosixPath(drawn.paths[0].relative_to(folder))
            blocks.append(FigureFile(path, f"{recipe.title}: {drawn.name}", FIGURES[drawn.name]["caption"]))


def compose(recipes: Sequence[RecipeRuns], figures: Mapping[str, Sequence[Block]]) -> Document:
    """The whole report. `figures`, by the recipe's name, holds its figures, or why there is none."""
    runs = [run for recipe in recipes for run in recipe.runs]
    checked = findings.check_findings(recipes)
    table = findings.table(checked)
    measured = {task: entry for run in runs for task, entry in run.results["scores"].items()}
    tasks = in_order(measured)
    splits = dict.fromkeys((run.results["world"], run.results["split"]) for run in runs)
    worlds = sorted({world for world, _ in splits})
    about = TEXTS["world"]["playground" if worlds == ["playground"] else "hub"]
    head = (Text(about, "world"), *_problems(recipes), Facts(tuple(_facts(recipes, runs))))
    said: list[Block] = [Text(findings.summary(checked)), *([table] if table else [])]
    chapters = (
        Document("The paper's findings, and ours", tuple(said), anchor="findings"),
        *(chapter(recipe, figures.get(recipe.name, ())) for recipe in recipes),
        Document("How it was made", tuple(_how_it_was_made(recipes, runs)), anchor="made"),
        Document("The protocol", tuple(protocol(tasks, *each, measured) for each in splits), anchor="protocol"),
    )
    titles = ", ".join(dict.fromkeys(recipe.title for recipe in recipes))
    subtitle = f"{' and '.join(WORLDS.get(world, world) for world in worlds)} · {titles}"
    return Document("Switch-KD, put to the test", head, chapters, subtitle)


def _problems(recipes: Sequence[RecipeRuns]) -> Iterator[Block]:
    """Every planned run that is not in the tables, counted."""
    counts = Counter(state for recipe in recipes for state in recipe.states.values())
    lacking = [f"{counts[state]} {words}" for state, words in STATES.items() if state != "finished" and counts[state]]
    empty = [recipe.title for recipe in recipes if not recipe.states]
    rows = sum(len(recipe.rows_not_started) for recipe in recipes if recipe.states)
    lacking += [f"{rows} rows without any run"] if rows else []
    lacking += [f"no run at all of {', '.join(empty)}"] if empty else []
    if lacking:
        yield Text(f"Not everything is here: {', '.join(lacking)}. Each chapter names its own.", "problem")


def _facts(recipes: Sequence[RecipeRuns], runs: Sequence[ScoredRun]) -> Iterator[tuple[str, str]]:
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


def _how_it_was_made(recipes: Sequence[RecipeRuns], runs: Sequence[ScoredRun]) -> Iterator[Block]:
    """The section at the end: commands, versions, how to read the report."""
    yield Text("To make the same runs again (finished ones are skipped):")
    yield Text("\n".join(map(command, recipes)), "shell")
    records = [record for run in runs for record in (run.info, run.info.get("reused") or {})]
    commands = dict.fromkeys(tuple(record.get("command") or ()) for record in records)
    if typed := [shlex.join(words) for words in commands if words[1:2] in (("ablate",), ("distill",))]:
        yield Text("The commands as typed:")
        yield Text("\n".join(typed), "shell")
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
