"""The options of each command, and how a function of them becomes a command; options.toml describes them."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from switchkd_cli.scheduler.run_options import RUNS, RunOptions

DESCRIBED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """A row of a recipe."""

    recipe: str | None = None
    overrides: list[str] | None = None
    row: str | None = None


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainOptions):
    """A row of a recipe with its controls, and how many of them train at once."""

    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class AblateOptions(RunOptions):
    """Recipes and changes to each of them, their rows, and how many seeds of each; None: as many jobs as there are cores for."""

    recipes: list[str]
    rows: list[str] | None = None
    seeds: int = 1
    jobs: int | None = None


@dataclass(frozen=True)
class EvalOptions:
    """The model, and the benchmark questions that it is scored on."""

    model: str | None = None
    benchmarks: list[str] | None = None
    tasks_path: Path | None = None
    data: Path | None = None
    images: Path | None = None
    metric: list[str] | None = None
    rescore: Path | None = None
    reader: str | None = None
    split: str | None = None
    items: int | None = None
    world: str | None = None
    allow_pickle: bool = False
    out: Path = RUNS


@dataclass(frozen=True)
class CompareOptions:
    """What is compared with what, and the form of the answer."""

    names: list[str] | None = None
    against: str | None = None
    form: str | None = None
    out_file: Path | None = None
    world: str | None = None
    out: Path = RUNS
    figures: Path | None = None
    report: Path | None = None


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Describe the command's options to typer: a parameter for each field of the dataclass that it takes."""
    (options,) = signature(command, eval_str=True).parameters.values()

    @wraps(command)
    def flat(**values: Any) -> None:
        command(options.annotation(**values))

    fields = signature(options.annotation).parameters
    # its own before shared ones
    names = [name for owner in options.annotation.__mro__ for name in getattr(owner, "__annotations__", ())]
    described = [_described(command.__name__, fields[name]) for name in dict.fromkeys(names)]
    flat.__signature__ = Signature(described)  # type: ignore[attr-defined]
    return flat


def _described(command: str, parameter: Parameter) -> Parameter:
    name, kind = parameter.name, parameter.annotation
    about = dict(DESCRIBED.get(command, {}).get(name) or DESCRIBED["shared"][name])
    # a flag without names would also get --no-NAME
    names = about.pop("names", [f"--{name.replace('_', '-')}"] if kind is bool else [])
    declared = typer.Argument if about.pop("argument", False) else partial(typer.Option, *names)
    about["rich_help_panel"] = about.pop("panel", None)
    return parameter.replace(annotation=Annotated[kind, declared(**about)])


def comma_separated(texts: Sequence[str] | None) -> list[str] | None:
    """The words of an option that was given once or several times; None where it was not given."""
    return [word.strip() for text in texts for word in text.split(",") if word.strip()] if texts is not None else None
