"""How a function becomes a command: its parameters are the command's options, as options.toml describes them."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from switchkd_cli.scheduler.run_options import RUNS

DESCRIBED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


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
    """Describe the command's parameters to typer; its `options`, a dataclass, becomes one parameter per field."""
    given = signature(command, eval_str=True)
    kind = given.parameters["options"].annotation
    shared = signature(kind).parameters

    @wraps(command)
    def flat(**values: Any) -> None:
        command(options=kind(**{name: values.pop(name) for name in shared}), **values)

    own = [parameter for name, parameter in given.parameters.items() if name != "options"]
    described = [_described(command.__name__, parameter) for parameter in (*own, *shared.values())]
    flat.__signature__ = given.replace(parameters=described)  # type: ignore[attr-defined]
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
