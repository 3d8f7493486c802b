"""Options that `pretrain`, `distill` and `ablate` share, declared once: names, help texts and defaults."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from switchkd_cli.distributed.launch_config import LaunchConfig, launch_config

RUNS = Path("runs")

World = Annotated[
    str | None, typer.Option(help="Run with small stand-ins for the recipe's models and data: playground.")
]
Out = Annotated[Path, typer.Option(help="The folder that holds all runs.")]
earlier_runs = partial(typer.Option, rich_help_panel="Resume or replace earlier runs")
checks = partial(typer.Option, rich_help_panel="Check and plan")
several = partial(typer.Option, rich_help_panel="Several processes")


@dataclass(frozen=True)
class RunOptions:
    """Where runs go, what happens to earlier ones, what is only checked, and in how many processes they train."""

    seed: Annotated[int | None, typer.Option(help="The seed, or the first of several. Default: the recipe's.")] = None
    world: World = None
    out: Out = RUNS
    resume: Annotated[
        bool,
        earlier_runs(
            "--resume",
            help="Resume even if code or library versions changed (otherwise the same command resumes by itself).",
        ),
    ] = False
    overwrite: Annotated[bool, earlier_runs("--overwrite", help="Move earlier runs aside and train again.")] = False
    check: Annotated[
        bool,
        checks(
            "--check",
            help="At each stage's first step, compare the chunked objective with the dense one: loss and gradients.",
        ),
    ] = False
    dry_run: Annotated[bool, checks("--dry-run", help="Print what would run and what it needs, and stop.")] = False
    machine: Annotated[
        str | None,
        checks(
            metavar="KEY=VALUE,...",
            help="GPUs to plan for, such as gpus=8,memory=80,tflops=989,utilisation=0.35,zero=2 (the default for a "
            "bf16 recipe). Only with --dry-run.",
        ),
    ] = None
    gpus: Annotated[
        int | None, several(min=1, help="GPUs of this machine to use, one process each (docs/scale.md).")
    ] = None
    processes: Annotated[
        int | None, several(min=1, help="Processes on the CPU instead of GPUs, to try things out.")
    ] = None
    nodes: Annotated[int | None, several(min=1, help="Machines; run this command on each (detected under srun).")] = (
        None
    )
    node_rank: Annotated[int | None, several(min=0, help="Number of this machine, from 0.")] = None
    rdzv_endpoint: Annotated[
        str | None, several("--rdzv-endpoint", "--meet", metavar="HOST:PORT", help="Rendezvous address on machine 0.")
    ] = None
    hostfile: Annotated[
        Path | None, several(help="File of 'host slots=8' lines: machines for DeepSpeed's launcher, over ssh.")
    ] = None

    def changes(self, overrides: Sequence[str] | None) -> list[str]:
        """The overrides of the recipe, that of --check included."""
        return [*(overrides or ()), *["check=true"] * self.check]

    def launch_config(self) -> LaunchConfig | None:
        """The processes to start; None when this process trains alone or was started by a launcher."""
        return launch_config(self.gpus, self.processes, self.nodes, self.node_rank, self.rdzv_endpoint, self.hostfile)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the command's parameter `options: RunOptions` by one parameter per field, as typer reads them."""
    signature = inspect.signature(command, eval_str=True)
    names = [field.name for field in fields(RunOptions)]

    @wraps(command)
    def flat(**values: Any) -> None:
        command(options=RunOptions(**{name: values.pop(name) for name in names}), **values)

    own = [p for p in signature.parameters.values() if p.name != "options"]
    shared = inspect.signature(RunOptions).parameters.values()
    flat.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return flat


def comma_separated(text: str | None) -> list[str] | None:
    """The words of an option's value."""
    return [word.strip() for word in text.split(",") if word.strip()] if text is not None else None
