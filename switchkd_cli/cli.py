"""The command line. Each command reads its arguments, calls one function, and returns."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from switchkd_cli import __version__
from switchkd_cli.commands.options import RUNS, Out, RunOptions, World, with_options
from switchkd_cli.distributed import exit_status, signals
from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.errors import CRASH, UserError, print_in_any_encoding, system_errors

app = typer.Typer(
    name="switchkd",
    help="Distil a large vision-language model into a small one with Switch-KD.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class GroupedHelp(TyperCommand):
    """A command whose `--help` lists options under the titles of their panels, without importing rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


RecipeOrRun = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="A recipe file, or the name of one in recipes/. With --resume also a run folder, or nothing: the run "
        "that was interrupted last.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE ...", help="Changes to the recipe, such as stages.distill.lr=1e-4."),
]
Row = Annotated[str | None, typer.Option(help="The row of the recipe to run. Default: its first.")]


@app.command(cls=GroupedHelp, epilog="Example: switchkd pretrain recipes/quickstart.yaml stages.pretrain.steps=100")
@with_options
def pretrain(recipe: RecipeOrRun = None, overrides: Overrides = None, row: Row = None, *, options: RunOptions) -> None:
    """Train the leading stages that need no teacher, and stop."""
    from switchkd_cli.commands import pretrain

    pretrain.pretrain(recipe, options.changes(overrides), row, options)


@app.command(
    cls=GroupedHelp, epilog="Example: switchkd distill recipes/quickstart.yaml stages.distill.lr=1e-4 --seed 1"
)
@with_options
def distill(
    recipe: RecipeOrRun = None,
    overrides: Overrides = None,
    row: Row = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at the same time.")] = 1,
    *,
    options: RunOptions,
) -> None:
    """Train one row and its controls, and score them.

    Ends with a table: teacher, rows, gain, each benchmark.
    """
    from switchkd_cli.commands import distill

    distill.distill(recipe, options.changes(overrides), row, jobs, options)


@app.command(
    cls=GroupedHelp,
    epilog="Example: switchkd ablate components loss --world playground --seeds 5. The paper's ablations: "
    "training-scheme, components, loss, knee, visual-encoder, teacher-size, weights.",
)
@with_options
def ablate(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE ... [KEY=VALUE ...]",
            help="Recipe files, or names of recipes/, and changes to each of them.",
        ),
    ],
    rows: Annotated[
        str | None,
        typer.Option(help="Rows, separated by commas; of several recipes those that each has. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, counted up from the first.")] = 1,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of runs at the same time. Default: 2 if there are enough cores.")
    ] = None,
    *,
    options: RunOptions,
) -> None:
    """Run the rows of recipes over several seeds: the paper's ablations by name, or any recipe files.

    Finished runs are skipped; runs and stages that several recipes share are trained once. A failed run is reported,
    and the others continue.
    """
    from switchkd_cli.commands import ablate

    ablate.ablate(options.changes(recipes), rows, seeds, jobs, options)


@app.command("eval", epilog="Example: switchkd eval --benchmarks mme,pope,gqa")
def evaluate(
    model: Annotated[
        str | None, typer.Option(help="A run folder, a model folder or a hub id. Default: the newest finished run.")
    ] = None,
    benchmarks: Annotated[str | None, typer.Option(help="lmms-eval tasks, separated by commas.")] = None,
    split: Annotated[str | None, typer.Option(help="validation, test or hard (playground).")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Number of questions of each benchmark.")] = None,
    world: Annotated[str | None, typer.Option(help="playground (made here) or hub (the real data sets).")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read tensors from pytorch_model.bin if there is no other file.")
    ] = False,
    out: Out = RUNS,
) -> None:
    """Score a model on benchmarks, through lmms-eval."""
    from switchkd_cli.commands import evaluate

    evaluate.evaluate(model, benchmarks, split, items, world, out, allow_pickle=allow_pickle)


@app.command(epilog="Example: switchkd compare runs/quickstart/switch-kd/seed1 runs/quickstart/sft/seed1")
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN ... | RECIPE ...", help="Run folders, folders of switchkd eval, or recipes. Default: all runs."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="The row that differences are taken from. Default: the first control, or the first row."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="text, markdown, latex, csv or json. Default: the ending of --out-file."),
    ] = None,
    out_file: Annotated[Path | None, typer.Option(help="Write the table to this file, not to the screen.")] = None,
    world: World = None,
    out: Out = RUNS,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            "--pictures",
            metavar="FOLDER",
            help="Draw figures into this folder (PNG, SVG): radar, curves, cost, knees, attention.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a report of the named recipes into this folder, HTML and Markdown."),
    ] = None,
) -> None:
    """Show finished runs next to each other and to the paper's numbers.

    Differences over the same items and over seeds, with 95 % intervals and corrected p-values.
    """
    from switchkd_cli.commands import compare

    compare.compare(names or [], world, out, against, form, out_file, figures, report)


def _version(shown: bool) -> None:
    if shown:
        print(f"switchkd {__version__}")
        raise typer.Exit


@app.callback()
def switchkd(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Distil a large vision-language model into a small one with Switch-KD.

    Start with: switchkd distill recipes/quickstart.yaml
    """


def main() -> None:
    """Run the program. A user's error becomes lines, a hint and an exit code; a bug of ours keeps its traceback."""
    print_in_any_encoding()
    child = exit_status.FOLDER in os.environ
    try:
        with exit_status.report_exit(), system_errors(), signals.stop_on_signals(child=child):
            try:
                os.getcwd()
            except OSError as error:  # it was deleted: nearly every path would fail with a line of its own
                problem = f"the working directory can't be used: {error.strerror}"
                raise UserError(problem, hint='cd "$HOME", or to another folder') from error
            app(prog_name="switchkd")
    except UserError as error:
        from switchkd_cli.terminal import console

        console.error(error)
        exit_process(error.code)
    except signals.Stopped as stopped:
        from switchkd_cli.terminal import console

        console.say(f"stopped: {stopped}")
        words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
        if words and words[0] in ("pretrain", "distill", "ablate"):
            console.say(f"resume: {shlex.join(['switchkd', *words, '--resume'])}")
        exit_process(stopped.code)
    except Exception:  # noqa: BLE001 (shown with its traceback, and ended with our exit code)
        import traceback

        traceback.print_exc()
        exit_process(CRASH)


if __name__ == "__main__":  # for scripts written before `python -m switchkd_cli` worked
    main()
