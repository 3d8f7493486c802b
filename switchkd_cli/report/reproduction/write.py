"""Write the report of several recipes: the paper's findings and ours, a chapter per recipe, how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError, shown
from switchkd_cli.files.atomic import write_text
from switchkd_cli.report.document import Block, Callout, Document, Facts, FigureFile, Section, Text
from switchkd_cli.report.formats.html import to_html
from switchkd_cli.report.formats.markdown import to_markdown
from switchkd_cli.report.paper import findings
from switchkd_cli.report.reproduction import origins
from switchkd_cli.report.reproduction.chapter import chapter
from switchkd_cli.report.results.recipe_runs import STATES, RecipeRuns, control_of, gather
from switchkd_cli.report.tables.columns import protocol
from switchkd_cli.report.texts import TEXTS

if TYPE_CHECKING:
    from switchkd_cli.report.figures.draw import Models

PICTURES = "pictures"  # the folder's name; links to it are stored in written reports
WORLDS = {"playground": "the playground", "hub": "published data sets"}


def write_report(files: Sequence[Path], world: str | None, root: Path, folder: Path, models: Models) -> Iterator[str]:
    """Write report.html, report.md and pictures/ from the finished runs of the recipes; yield what was written.

    Raises UserError where no recipe has a run with scores.
    """
    recipes = [gather(file, world, root) for file in dict.fromkeys(files)]
    if not any(recipe.runs for recipe in recipes):
        names = ", ".join(recipe.name for recipe in recipes)
        raise UserError(f"{root}: no finished run with scores of {names}", hint=origins.command(recipes[0]))
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[Block]] = {recipe.name: [] for recipe in recipes}
    for recipe in recipes:
        if recipe.runs:
            yield from _draw(recipe, models, folder, figures[recipe.name])
    document = compose(recipes, figures)
    for name, text in (("report.html", to_html(document, folder)), ("report.md", to_markdown(document))):
        write_text(folder / name, text)
        yield f"report: {shown((folder / name).absolute())}"


def _draw(recipe: RecipeRuns, models: Models, folder: Path, blocks: list[Block]) -> Iterator[str]:
    """Draw a recipe's figures and append them to `blocks`, or the reason why there is none."""
    from switchkd_cli.report.figures.draw import FIGURES, draw  # matplotlib: only here

    def forms(name: str) -> tuple[str]:
        return ("png" if name == "attention" else "svg",)  # maps of patches are no drawing

    place = folder / PICTURES / recipe.stem
    for old in (place / f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")):
        old.unlink(missing_ok=True)
    control = control_of(recipe.own_world_rows, recipe.planned_rows[0].row, "steps")
    for drawn in draw(recipe.runs, recipe.teacher, models, place, reference=control, forms=forms):
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
    tasks = [task for task in BENCHMARKS if any(task in run.scores for run in runs)]
    splits = dict.fromkeys((run.results["world"], run.results["split"]) for run in runs)
    worlds = sorted({world for world, _ in splits})
    head = (
        Callout(TEXTS["world"]["playground" if worlds == ["playground"] else "hub"], "world"),
        *_problems(recipes),
        Facts(tuple(origins.facts(recipes, runs))),
    )
    said: list[Block] = [Text(findings.summary(checked)), *([table] if table else [])]
    chapters = (
        Section("The paper's findings, and ours", "findings", tuple(said)),
        *(chapter(recipe, figures.get(recipe.name, ())) for recipe in recipes),
        Section("How it was made", "made", tuple(origins.how_it_was_made(recipes, runs))),
        Section("The protocol", "protocol", tuple(protocol(tasks, world, split) for world, split in splits)),
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
        yield Callout(f"Not everything is here: {', '.join(lacking)}. Each chapter names its own.")
