"""The command line. Each command reads its arguments, calls one thing, and returns."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from switchkd_cli import __version__
from switchkd_cli.distributed import exit_status, signals
from switchkd_cli.distributed.launch_config import leave, spread
from switchkd_cli.errors import CRASH, UserError, show_in_any_encoding, system_told

app = typer.Typer(
    name="switchkd",
    help="Distil a large vision-language model into a small one with Switch-KD.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one in recipes/.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE ...", help="Changes to the recipe, such as stages.distill.lr=1e-4."),
]
Out = Annotated[Path, typer.Option(help="The folder that holds all runs.")]
Row = Annotated[str | None, typer.Option(help="The row of the recipe to run. Default: its first.")]
Seed = Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Move earlier runs that are in the way aside.")]
World = Annotated[
    str | None, typer.Option(help="Run the rows with small stand-ins for models and data: playground.")
]
ToResume = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="A recipe file, or the name of one in recipes/. With --resume also a run folder, or nothing: the run "
        "that was interrupted last.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with interrupted runs. The same command does so unasked, unless the program has changed since.",
    ),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="At each stage's first step, compare the loss and gradients that are computed in chunks with those of "
        "all logits at once.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run and what it needs, and stop.")]
Machine = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="Plan for such GPUs, as in gpus=8,memory=80,tflops=989,utilisation=0.35,zero=2 (what a bf16 recipe is "
        "planned for if nothing is said). Only with --dry-run.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(min=1, help="Train in so many processes, each with a GPU of this machine (docs/scale.md)."),
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="The same on the processor, without GPUs: to try it out.")
]
Nodes = Annotated[
    int | None,
    typer.Option(min=1, help="Machines, on each of which this command is given. Under srun: unasked."),
]
NodeRank = Annotated[int | None, typer.Option(min=0, help="Which of them this one is, from 0.")]
Meet = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where they meet: on the first of them.")]
HostFile = Annotated[
    Path | None,
    typer.Option(help="Machines that DeepSpeed's launcher reaches by ssh, as in 'host slots=8' lines."),
]

RUNS = Path("runs")


@app.command(epilog="Example: switchkd pretrain recipes/quickstart.yaml stages.pretrain.steps=100")
def pretrain(
    recipe: ToResume = None,
    overrides: Overrides = None,
    row: Row = None,
    seed: Seed = None,
    world: World = None,
    out: Out = RUNS,
    overwrite: Overwrite = False,
    resume: Resume = False,
    check: Check = False,
    dry_run: DryRun = False,
    machine: Machine = None,
    gpus: Gpus = None,
    processes: Processes = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    meet: Meet = None,
    hostfile: HostFile = None,
) -> None:
    """Run the leading stages that need no teacher, and stop."""
    from switchkd_cli.commands import distill as commands

    commands.pretrain(
        recipe,
        _checked(overrides, check),
        row,
        seed,
        world,
        out,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        machine=machine,
        spread=spread(gpus, processes, nodes, node_rank, meet, hostfile),
    )


@app.command(epilog="Example: switchkd distill recipes/quickstart.yaml stages.distill.lr=1e-4 --seed 1")
def distill(
    recipe: ToResume = None,
    overrides: Overrides = None,
    row: Row = None,
    seed: Seed = None,
    world: World = None,
    out: Out = RUNS,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    overwrite: Overwrite = False,
    resume: Resume = False,
    check: Check = False,
    dry_run: DryRun = False,
    machine: Machine = None,
    gpus: Gpus = None,
    processes: Processes = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    meet: Meet = None,
    hostfile: HostFile = None,
) -> None:
    """Run one row and its controls, and score them.

    Ends with a table: teacher, rows, gain, each benchmark.
    """
    from switchkd_cli.commands import distill as commands

    commands.distill(
        recipe,
        _checked(overrides, check),
        row,
        seed,
        world,
        out,
        jobs=jobs,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        machine=machine,
        spread=spread(gpus, processes, nodes, node_rank, meet, hostfile),
    )


@app.command(
    epilog="Example: switchkd ablate components loss --world playground --seeds 5. The paper's ablations: "
    "training-scheme, components, loss, knee, visual-encoder, teacher-size, weights."
)
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
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, counted from the recipe's.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first seed, instead of the recipe's.")] = None,
    world: World = None,
    out: Out = RUNS,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time. Default: 2 if there are cores.")
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    check: Check = False,
    dry_run: DryRun = False,
    machine: Machine = None,
    gpus: Gpus = None,
    processes: Processes = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    meet: Meet = None,
    hostfile: HostFile = None,
) -> None:
    """Run the rows of recipes over several seeds: ablations of the paper by their names, or any recipe files.

    What is finished is skipped, runs and stages in common are trained once; what fails is reported, the rest goes on.
    """
    from switchkd_cli.commands.ablate import ablate
    from switchkd_cli.commands.distill import words

    ablate(
        _checked(recipes, check),
        words(rows),
        seeds,
        seed,
        world,
        out,
        jobs=jobs,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        machine=machine,
        spread=spread(gpus, processes, nodes, node_rank, meet, hostfile),
    )


@app.command("eval", epilog="Example: switchkd eval --benchmarks mme,pope,gqa")
def evaluate(
    model: Annotated[
        str | None,
        typer.Option(help="A run folder, a model folder or a hub id. Default: the newest finished run."),
    ] = None,
    benchmarks: Annotated[str | None, typer.Option(help="lmms-eval tasks, separated by commas.")] = None,
    split: Annotated[str | None, typer.Option(help="validation, test or hard (playground).")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Questions of each benchmark.")] = None,
    world: Annotated[
        str | None, typer.Option(help="playground (made here) or hub (the real data sets).")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read tensors from pytorch_model.bin where nothing else is."),
    ] = False,
    out: Out = RUNS,
) -> None:
    """Score a model on benchmarks, through lmms-eval."""
    from switchkd_cli.commands import distill as commands

    asked = {"benchmarks": commands.words(benchmarks), "split": split, "items": items, "world": world}
    commands.evaluate(model, asked, out, allow_pickle=allow_pickle)


@app.command(epilog="Example: switchkd compare runs/quickstart/switch-kd/seed1 runs/quickstart/sft/seed1")
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN ... | RECIPE ...",
            help="Run folders, folders of switchkd eval, or recipes. Default: all runs.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="The row to measure by. Default: the first control, or the first row."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="text, markdown, latex, csv or json. Default: as --out-file ends."),
    ] = None,
    out_file: Annotated[Path | None, typer.Option(help="Write there instead of to the screen.")] = None,
    world: World = None,
    out: Out = RUNS,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw radar, curves, cost, knees, attention there (PNG, SVG)."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a report of the recipes named there, HTML and Markdown."),
    ] = None,
) -> None:
    """Show finished runs beside each other and the paper's numbers.

    Differences over the same items and over seeds, with 95 % intervals and corrected p-values.
    """
    from switchkd_cli.commands import distill as commands

    asked = {"--against": against, "--format": form, "--out-file": out_file, "--pictures": pictures}
    if report is not None:
        commands.report(names or [], world, out, report, asked)
    else:
        commands.compare(
            names or [], world, out, against=against, form=form, file=out_file, pictures=pictures
        )


def _checked(overrides: list[str] | None, check: bool) -> list[str]:
    return [*(overrides or []), *["check=true"] * check]


def _version(wanted: bool) -> None:
    if wanted:
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


def _tell_stopped(stopped: signals.Stopped) -> None:
    """What was saved, and last the command that goes on from there."""
    from switchkd_cli.terminal import console

    console.say(f"stopped: {stopped}")
    given = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    if given and given[0] in ("pretrain", "distill", "ablate"):
        console.say(f"resume: {shlex.join(['switchkd', *given, '--resume'])}")


def _check_here() -> None:
    """Raises UserError where the working directory was deleted: nearly every path would fail with a word on itself."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working directory can't be used: {error.strerror}", hint='cd "$HOME", or to another folder'
        ) from error


def main() -> None:
    """The program: a user's error becomes lines, a hint and an exit code; our bugs keep their traceback."""
    show_in_any_encoding()
    try:
        with exit_status.kept(), system_told(), signals.heeded(child=exit_status.FOLDER in os.environ):
            _check_here()
            app()
    except UserError as error:
        from switchkd_cli.terminal import console

        console.error(error)
        leave(error.code)
    except signals.Stopped as stopped:
        _tell_stopped(stopped)
        leave(stopped.code)
    except Exception:  # noqa: BLE001 (shown whole, and ended with our exit code)
        import traceback

        traceback.print_exc()
        leave(CRASH)


if __name__ == "__main__":  # for scripts written before `python -m switchkd_cli` worked
    main()
