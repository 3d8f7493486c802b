"""The command line. Each command reads its arguments, calls one function, and returns."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from switchkd_cli import __version__
from switchkd_cli.commands import options
from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.errors import CRASH, UserError, import_errors, print_in_any_encoding, system_errors

app = typer.Typer(
    name="switchkd", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


class GroupedHelp(TyperCommand):
    """A command whose `--help` lists options under the titles of their panels, without importing rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in sorted(groups.items(), key=lambda group: group[0] != "Arguments"):
            with formatter.section(title):
                formatter.write_dl(records)


def command(example: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command, with its options and an example below its help."""
    register = app.command(cls=GroupedHelp, epilog=f"Example: switchkd {example}", **settings)
    return lambda function: register(options.with_options(function))


@command("pretrain recipes/quickstart.yaml stages.pretrain.steps=100")
def pretrain(options: options.TrainOptions) -> None:
    """Train the leading stages that need no teacher, and stop."""
    from switchkd_cli.commands.train import one_row, run_all

    run_all(one_row(options, leading=True))


@command("distill recipes/quickstart.yaml stages.distill.lr=1e-4 --seed 1")
def distill(options: options.DistillOptions) -> None:
    """Train one row and its controls, and score them.

    Ends with a table: teacher, rows, gain, each benchmark.
    """
    from switchkd_cli.commands.train import one_row, run_all

    run_all(one_row(options, options.jobs))


@command(
    "ablate components loss --world playground --seeds 5. The paper's ablations: training-scheme, components, loss, "
    "knee, visual-encoder, teacher-size, weights."
)
def ablate(options: options.AblateOptions) -> None:
    """Run the rows of recipes over several seeds: the paper's ablations by name, or any recipe files.

    Finished runs are skipped; runs and stages that several recipes share are trained once. A failed run is reported,
    and the others continue.
    """
    from switchkd_cli.commands.train import rows_and_seeds, run_all

    run_all(rows_and_seeds(options))


@command("eval --benchmarks mme,pope,gqa", name="eval")
def evaluate(options: options.EvalOptions) -> None:
    """Score a model on benchmarks, through lmms-eval."""
    from switchkd_cli.commands.evaluate import evaluate

    evaluate(options)


@command("compare runs/quickstart/switch-kd/seed1 runs/quickstart/sft/seed1")
def compare(options: options.CompareOptions) -> None:
    """Show finished runs next to each other and to the paper's numbers.

    Differences over the same items and over seeds, with 95 % intervals and corrected p-values.
    """
    from switchkd_cli.commands.compare import compare

    compare(options)


@command("export runs/quickstart/switch-kd/seed1 --to gguf --bits 4")
def export(options: options.ExportOptions) -> None:
    """Write a trained student for llama.cpp, ONNX, MLX or vLLM.

    What the runtime can't represent is said first, with the field of the recipe that would change it.
    """
    from switchkd_cli.commands.export_student import export

    export(options)


@app.command(hidden=True)
def worker(file: Path) -> None:
    """Do the job in a file: train a run, or score its teacher, as one process of a matrix of runs."""
    from switchkd_cli.scheduler.pool import work

    work(file)


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
    """Distil a large vision-language model into a small one with Switch-KD."""


def main() -> None:
    """Run the program. A user's error becomes lines, a hint and an exit code; a bug of ours keeps its traceback."""
    print_in_any_encoding()
    child = stopping.REPORTS in os.environ or "worker" in sys.argv[1:2]
    try:
        with stopping.report_exit(), system_errors(), import_errors(), stopping.stop_on_signals(child=child):
            try:
                os.getcwd()
            except OSError as error:  # it was deleted: nearly every path would fail with a line of its own
                problem = f"the working directory can't be used: {error.strerror}"
                raise UserError(problem, hint='cd "$HOME", or to another folder') from error
            app(prog_name="switchkd")
    except (UserError, stopping.Stopped) as end:
        from switchkd_cli.terminal import console

        if isinstance(end, UserError):
            console.say("\n".join(end.lines))
        else:
            console.say(f"stopped: {end}")
            words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
            if words and words[0] in ("pretrain", "distill", "ablate"):
                console.say(f"resume: {shlex.join(['switchkd', *words, '--resume'])}")
        exit_process(end.code)
    except Exception:  # noqa: BLE001 (shown with its traceback, and ended with our exit code)
        traceback.print_exc()
        exit_process(CRASH)
