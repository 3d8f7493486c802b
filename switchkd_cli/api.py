"""switchkd from Python and notebooks: the commands as functions, and their results as pandas frames.

    from switchkd_cli import api
    api.distill("recipes/quickstart.yaml", "stages.distill.steps=50", seed=1)
    api.compare("runs/quickstart/switch-kd/seed1", "runs/quickstart/sft/seed1")

Recipes, overrides, run folders and printed tables are those of the command line. Every function raises UserError, with all
problems in its text, where a command would print them. To train in several processes, start a command. What else a run has
left is in its folder (docs/runs.md): `pandas.read_json(folder / "answers" / "gqa.jsonl", lines=True)`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from switchkd_cli import registry
from switchkd_cli.commands import compare as comparing
from switchkd_cli.commands import evaluate as evaluation
from switchkd_cli.commands import train as training
from switchkd_cli.commands.options import AblateOptions, CompareOptions, DistillOptions, EvalOptions, TrainOptions
from switchkd_cli.errors import UserError, did_you_mean, shown
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.named_files import find
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RUNS

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

    from switchkd_cli.report.results.finished_run import ScoredRun

PathLike = str | Path
Options = TypeVar("Options", EvalOptions, TrainOptions, DistillOptions, AblateOptions)


def pretrain(recipe: PathLike, *changes: str, **options: Any) -> Path:
    """Train the leading stages that need no teacher. Returns the model's folder.

    `changes` are overrides such as "stages.distill.lr=1e-4"; `options` are fields of `TrainOptions`: row, seed, world, out,
    resume, overwrite, tracker.
    """
    asked = _options(TrainOptions, recipe=str(recipe), overrides=changes, **options)
    (folder,) = training.run_all(training.one_row(asked, leading=True))
    return folder.model


def distill(recipe: PathLike, *changes: str, **options: Any) -> pandas.DataFrame:
    """Train a row and its controls and score them. Returns their scores, see `scores`.

    `options` are those of `pretrain`, and jobs: how many runs train at the same time.
    """
    asked = _options(DistillOptions, recipe=str(recipe), overrides=changes, **options)
    return _frame(*comparing.with_scores(training.run_all(training.one_row(asked, asked.jobs)), asked.out))


def ablate(recipes: PathLike | Sequence[PathLike], *changes: str, **options: Any) -> pandas.DataFrame:
    """Run the rows of recipes over several seeds. Returns their scores, see `scores`.

    `options` are fields of `AblateOptions`: rows (a list of names), seeds, jobs, and those of `pretrain` except row.
    """
    names = [recipes] if isinstance(recipes, str | Path) else recipes
    asked = _options(AblateOptions, recipes=[*map(str, names), *changes], **options)
    return _frame(*comparing.with_scores(training.run_all(training.rows_and_seeds(asked)), asked.out))


def evaluate(model: PathLike, benchmarks: list[str] | None = None, **options: Any) -> pandas.DataFrame:
    """Score a model: a run's folder, a checkpoint's or a hub id. Returns its scores, see `scores`.

    `options` are fields of `EvalOptions`: items, split, world, engine, bits, allow_pickle, out.
    """
    asked = _options(EvalOptions, model=str(model), benchmarks=benchmarks, **options)
    return _frame(*comparing.with_scores([evaluation.evaluate(asked)], asked.out))


def scores(*names: PathLike, out: PathLike = RUNS, world: str | None = None) -> pandas.DataFrame:
    """Return the scores, 0 to 100, of finished runs: of run folders, or of recipes' runs; of all where nothing is named.

    A line for each run, under its row and seed: its benchmarks, the average that tables show ("Avg"), and its folder.
    """
    runs, teacher, _ = comparing.compared(CompareOptions([*map(str, names)], world=world, out=Path(out)))
    return _frame(runs, teacher)


def compare(
    *names: PathLike, against: str | None = None, out: PathLike = RUNS, world: str | None = None
) -> pandas.DataFrame:
    """Compare finished runs as `switchkd compare` does: a line for each cell of its tables, and for each note.

    Columns: table, line, column, text (as printed), value, interval (half of it), low, high, and more. A table is
    `frame[frame.table == "..."].pivot(index="line", columns="column", values="text")`.
    """
    import pandas

    from switchkd_cli.report.show import to_csv
    from switchkd_cli.report.tables.comparison import comparison

    runs, teacher, controls = comparing.compared(CompareOptions([*map(str, names)], world=world, out=Path(out)))
    document = comparison(runs, teacher, controls=controls, against=against)
    return pandas.read_csv(io.StringIO(to_csv(document)))


class ShownRow(NamedTuple):
    """A row of data: its images, and its questions with their answers."""

    images: list[Image]
    exchanges: tuple[tuple[str, str], ...]


class ShownRows(list[ShownRow]):
    """Rows of data; a notebook shows each with its images."""

    def _repr_html_(self) -> str:
        return "".join(f"<p>{''.join(_html(example))}</p>" for example in self)


def examples(recipe: PathLike, *changes: str, data: str, count: int = 4, **options: Any) -> ShownRows:
    """Return the first usable rows of a recipe's data set `data`, to be looked at; `options` are those of `pretrain`."""
    asked = _options(TrainOptions, **options)
    (run,) = load_rows(find(str(recipe)), [asked.row], asked.changes(changes), asked.seed, asked.world)
    if data not in run.config.data:
        raise UserError(f"data: {recipe} has none of this name, got {data!r}{did_you_mean(data, run.config.data)}")
    spec = run.config.data[data]
    rows = registry.resolve("source", spec.source)(asked.out.absolute(), **spec.parameters)
    found = islice(launch.engine("data.image").usable_rows(rows), count)
    return ShownRows(ShownRow(images, row.exchanges) for row, images in found)


def _html(example: ShownRow) -> Iterator[str]:
    for image in example.images:
        png = io.BytesIO()
        image.save(png, "png")
        yield f'<img src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}" style="max-width: 20em"> '
    for question, answer in example.exchanges:
        yield f"<br>{html.escape(question)} <b>{html.escape(answer)}</b>"


def _frame(runs: Sequence[ScoredRun], teacher: dict[str, Any] | None) -> pandas.DataFrame:
    import pandas

    from switchkd_cli.report.tables.columns import Columns

    columns = Columns.of_runs(runs, teacher)
    lines = [
        {"row": run.title, "seed": run.seed}
        | dict(zip(columns.heads, (*map(run.scores.get, columns.names), columns.run_average(run)), strict=True))
        | {"folder": shown(run.path)}
        for run in runs
    ]
    return pandas.DataFrame(lines).set_index(["row", "seed"])


def _options(kind: type[Options], *, out: PathLike = RUNS, **fields: Any) -> Options:
    """Return a command's options."""
    return kind(out=Path(out), **fields)
