"""The report of several recipes: what the paper finds and what came out here, a chapter for each, how it was made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_text
from switchkd_cli.report.document import origins
from switchkd_cli.report.document.blocks import Block, Callout, Document, Facts, Picture, Section, Sheet, Text
from switchkd_cli.report.document.chapter import chapter
from switchkd_cli.report.figures.draw import CAPTIONS, Models, draw
from switchkd_cli.report.formats import html, markdown
from switchkd_cli.report.paper import verdicts as judged
from switchkd_cli.report.results.controls import Controls
from switchkd_cli.report.results.recipe_runs import STATES, Gathered, gather
from switchkd_cli.report.tables import footnotes
from switchkd_cli.report.tables.protocol import conditions
from switchkd_cli.runs.run_folder import shown

PICTURES = "pictures"
FORMS = {
    name: ("png",) if name == "attention" else ("svg",) for name in CAPTIONS
}  # maps of patches are no drawing
WORLDS = {"playground": "the playground", "hub": "published data sets"}
PLAYGROUND = (
    "Every score of this report is from the playground, the world of small drawings that ships with switchkd. It is "
    "none of the paper's benchmarks, whatever the columns are called: they name the format of the questions and the "
    "metric. Numbers of the paper stand in tables of their own, marked as printed, and were measured with other "
    "models on other data. Directions can be compared, numbers can't."
)
HUB = (
    "Scores are of the data sets that the columns name. Where split, prompt or judge are not the paper's, the protocol "
    "at the end says so. Numbers of the paper stand in tables of their own, marked as printed."
)


def write_report(
    files: Sequence[Path], world: str | None, root: Path, folder: Path, models: Models
) -> Iterator[str]:
    """Writes report.html, report.md and pictures/ from the finished runs of the recipes; says what it does.

    Raises UserError where no recipe has a run with scores.
    """
    recipes = [gather(file, world, root) for file in dict.fromkeys(files)]
    if not any(recipe.runs for recipe in recipes):
        names = ", ".join(recipe.name for recipe in recipes)
        raise UserError(f"{root}: no finished run with scores of {names}", hint=origins.command(recipes[0]))
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, list[Picture | Text]] = {}
    for recipe in recipes:
        yield from _drawn(recipe, models, folder, pictures)
    document = compose(recipes, pictures)
    for name, form in (("report.html", html.page), ("report.md", markdown.page)):
        write_text(folder / name, form(document, folder))
        yield f"report: {shown((folder / name).absolute())}"


def compose(recipes: Sequence[Gathered], pictures: Mapping[str, Sequence[Picture | Text]]) -> Document:
    """The whole report; `pictures` by the recipe's name, and why one is lacking."""
    every = [run for recipe in recipes for run in recipe.runs]
    verdicts = judged.judge(recipes)
    tasks = [task for task in BENCHMARKS if any(task in run.scores for run in every)]
    worlds = sorted({run.results["world"] for run in every})
    return Document(
        "Switch-KD, put to the test",
        f"{' and '.join(WORLDS.get(world, world) for world in worlds)} · {', '.join(dict.fromkeys(recipe.title for recipe in recipes))}",
        (
            Callout(PLAYGROUND if worlds == ["playground"] else HUB),
            *_problems(recipes),
            Facts(tuple(origins.facts(recipes, every))),
        ),
        (
            Section("The paper's findings, and ours", "findings", tuple(_findings(verdicts))),
            *(chapter(recipe, pictures.get(recipe.name, ())) for recipe in recipes),
            Section("How it was made", "made", tuple(origins.made(recipes, every))),
            Section(
                "The protocol",
                "protocol",
                tuple(
                    Sheet(conditions(tasks, world, split), source="protocol")
                    for world, split in dict.fromkeys((r.results["world"], r.results["split"]) for r in every)
                ),
            ),
        ),
    )


def _drawn(
    recipe: Gathered, models: Models, folder: Path, pictures: dict[str, list[Picture | Text]]
) -> Iterator[str]:
    if not recipe.runs:
        return
    place = folder / PICTURES / recipe.stem
    for old in (place / f"{name}.{kind}" for name in CAPTIONS for kind in ("png", "svg")):
        old.unlink(missing_ok=True)
    pictures[recipe.name] = blocks = []
    control = Controls(recipe.plain).of(recipe.planned[0].row, "steps")
    for drawn in draw(recipe.runs, recipe.teacher, models, place, reference=control, forms=FORMS):
        if drawn.reason:
            yield f"{recipe.name}: {drawn}"
            blocks.append(Text(f"{str(drawn).capitalize()}."))
        else:
            path = PurePosixPath(drawn.paths[0].relative_to(folder))
            blocks.append(Picture(path, f"{recipe.title}: {drawn.name}", CAPTIONS[drawn.name]))


def _problems(recipes: Sequence[Gathered]) -> Iterator[Block]:
    """Everything that was asked for and is not in the tables."""
    counts: dict[str, int] = defaultdict(int)
    for recipe in recipes:
        for state in recipe.states.values():
            counts[state] += 1
    lacking = [
        f"{counts[state]} {words}" for state, words in STATES.items() if state != "finished" and counts[state]
    ]
    empty = [recipe.title for recipe in recipes if not recipe.states]
    rows = sum(len(recipe.unasked) for recipe in recipes if recipe.states)
    lacking += [f"{rows} rows of which there is no run"] if rows else []
    lacking += [f"no run at all of {', '.join(empty)}"] if empty else []
    if lacking:
        yield Callout(f"Not everything is here: {', '.join(lacking)}. Each chapter names its own.", "problem")


def _findings(verdicts: Sequence[judged.Judged]) -> Iterator[Block]:
    yield Text(" ".join(judged.summary(verdicts)))
    table = judged.table(verdicts)
    if table is None:
        return
    yield Sheet(
        table,
        "Here: the first row minus the second, paired by seed, ± half of the 95 % t interval. A finding agrees or is "
        "opposite when that interval leaves 0 out; rows that the paper calls alike agree when it lies within "
        f"{judged.ALIKE:g} point of 0. Not corrected for the number of findings. [S] stated by the authors, [C] "
        f"computed from numbers that they print, [I] inferred, [T] a third party's reading of the paper. {footnotes.MDE}.",
    )
