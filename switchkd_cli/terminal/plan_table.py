"""The figures that `--dry-run` prints: what each run needs, and what all of them need together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from switchkd_cli.planning.estimate import GIB, RunEstimate, StageEstimate
from switchkd_cli.terminal.console import stdout

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "unknown"
PARTS = ("vision", "projector", "language")


def show_run(estimate: RunEstimate, before: RunEstimate | None = None) -> None:
    """Print one run's models, if they are not those of the run before, and its stages, a column a stage."""
    if before is None or before.models != estimate.models:
        table = _table("parameters", *PARTS, "all", "tokens an image")
        for model in estimate.models:
            counts = [*map(model.parameters.get, PARTS), sum(model.parameters.values()) or None]
            table.add_row(model.who, *map(_count, counts), _number(model.image_tokens))
        stdout().print(table)
        for model in estimate.models:
            print(f"{model.who}: {model.source}")
    print(estimate.vocabulary)
    stages = estimate.stages
    table = _table("stage", *(stage.name for stage in stages))
    for name, cell in _LINES.items():
        table.add_row(name, *map(cell, stages))
    for name in dict.fromkeys(name for stage in stages for name, size in stage.memory.items() if size):
        table.add_row(f"  {name}", *(_memory(stage.memory.get(name)) for stage in stages))
    together = [_memory(sum(stage.memory.values()) or None) for stage in stages]
    table.add_row(f"  together, of {estimate.machine.memory:g} GiB", *together)
    table.add_row("TFLOP a step", *(_number(stage.flops and stage.flops / 1e12) for stage in stages))
    table.add_row("time", *("reused" if stage.reused else _time(stage.hours) for stage in stages))
    table.add_row("saved student", *(_file_size(stage.saved_bytes) for stage in stages))
    stdout().print(table)
    for source in dict.fromkeys(f"{stage.data.name}: {stage.data.source}" for stage in stages):
        print(source)
    print()


def show_all(estimates: Sequence[RunEstimate]) -> None:
    """Print hours and disk of all runs (stages that they share count once), downloads, and what the figures rest on."""
    stages = {stage.key: stage for estimate in estimates for stage in estimate.stages if not stage.reused}
    downloads = {d.name + d.where: d for estimate in estimates for d in estimate.downloads}
    for machine in dict.fromkeys(estimate.machine for estimate in estimates):
        print(f"machine  {machine}")
    print(f"time     {_sum([stage.hours for stage in stages.values()], _time)} for what is to be trained")
    print(f"disk     {_sum([stage.saved_bytes for stage in stages.values()], _file_size)} of saved students")
    for download in downloads.values():
        size = "" if download.size is None else f", {_file_size(download.size)}"
        note = f" ({download.note})" if download.note else ""
        print(f"fetch    {download.name}{size} -> {download.where}{note}")
    for note in dict.fromkeys(note for estimate in estimates for note in estimate.notes):
        print(f"note     {note}")


def _largest(stage: StageEstimate) -> str:
    fits_none = stage.micro_batch is not None and stage.largest_micro_batch is None
    return "none" if fits_none else _number(stage.largest_micro_batch)


def _tokens(stage: StageEstimate) -> float | None:
    parts = [part for part in (stage.data.image, stage.data.prompt, stage.data.answer) if part is not None]
    return sum(parts) if parts else None


def _number(value: float | None) -> str:
    """No decimals from a hundred on; two digits of small numbers."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int) or value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _scaled(value: float | None, large: tuple[float, str], small: tuple[float, str]) -> str:
    """In the large unit from a tenth of it on."""
    if value is None:
        return UNKNOWN
    size, unit = large if value >= large[0] / 10 else small
    return f"{value / size:,.1f} {unit}"


_count = partial(_scaled, large=(1e6, "M"), small=(1e3, "K"))
_memory = partial(_scaled, large=(GIB, "GiB"), small=(2**20, "MiB"))
_file_size = partial(_scaled, large=(1e9, "GB"), small=(1e6, "MB"))


def _time(hours: float | None) -> str:
    if hours is None:
        return UNKNOWN
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _sum(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    known = form(sum(value for value in values if value is not None))
    return f"at least {known}, not all are known" if None in values else known


_LINES: dict[str, Callable[[StageEstimate], str]] = {
    "rows of data": lambda stage: _number(stage.data.rows),
    "tokens a row": lambda stage: _number(_tokens(stage)),
    "  image": lambda stage: _number(stage.data.image),
    "  prompt": lambda stage: _number(stage.data.prompt),
    "  answer": lambda stage: _number(stage.data.answer),
    "  longest row": lambda stage: _number(stage.data.longest),
    "steps": lambda stage: _number(stage.steps),
    "rows a step": lambda stage: _number(stage.batch),
    "  micro x accumulation x GPUs": lambda stage: (
        f"{_number(stage.micro_batch)} x {_number(stage.accumulation)} x {stage.gpus}"
    ),
    "  largest micro-batch that fits": _largest,
    "  padding, of all tokens": lambda stage: UNKNOWN if stage.padding is None else f"{stage.padding:.0%}",
    "parameters trained": lambda stage: _count(stage.trained),
    "memory of one GPU": lambda stage: "",
}


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
