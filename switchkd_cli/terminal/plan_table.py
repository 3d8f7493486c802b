"""The figures that `--dry-run` prints: what each run needs, and what all of them need together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from switchkd_cli.planning.estimate import GIB, Download, Forecast, StageForecast
from switchkd_cli.terminal.console import stdout

UNKNOWN = "unknown"


def show_run(forecast: Forecast, before: Forecast | None = None) -> None:
    """One run's models, if they are not those of the run before, and its stages, a column a stage."""
    if before is None or before.models != forecast.models:
        _print_models(forecast)
    print(forecast.vocabulary)
    _print_stages(forecast)


def show_all(forecasts: Sequence[Forecast]) -> None:
    """Hours and disk of all runs, what stages they share counted once; downloads; what the figures rest on."""
    stages = {stage.key: stage for forecast in forecasts for stage in forecast.stages if not stage.reused}
    downloads = {d.name + d.where: d for forecast in forecasts for d in forecast.downloads}
    for machine in dict.fromkeys(forecast.machine for forecast in forecasts):
        print(f"machine  {machine}")
    print(f"time     {_sum([stage.hours for stage in stages.values()], _time)} for what is to be trained")
    print(f"disk     {_sum([stage.checkpoint for stage in stages.values()], _gigabytes)} of saved students")
    for download in downloads.values():
        print(f"fetch    {_download(download)}")
    for note in dict.fromkeys(note for forecast in forecasts for note in forecast.notes):
        print(f"note     {note}")


def _print_models(forecast: Forecast) -> None:
    table = _table("parameters", "vision", "projector", "language", "all", "tokens a picture")
    for model in forecast.models:
        counts = [_count(model.parts.get(part)) for part in ("vision", "projector", "language")]
        everything = _count(sum(model.parts.values()) or None)
        table.add_row(model.who, *counts, everything, _number(model.image_tokens))
    stdout().print(table)
    for model in forecast.models:
        print(f"{model.who}: {model.source}")


def _print_stages(forecast: Forecast) -> None:
    table = _table("stage", *(stage.name for stage in forecast.stages))
    for name, cell in _LINES.items():
        table.add_row(name, *(cell(stage) for stage in forecast.stages))
    components = dict.fromkeys(name for stage in forecast.stages for name in stage.memory)
    for name in components:
        if any(stage.memory.get(name) for stage in forecast.stages):
            table.add_row(f"  {name}", *(_memory(stage.memory.get(name)) for stage in forecast.stages))
    table.add_row(
        f"  together, of {forecast.machine.memory:g} GiB",
        *(_memory(sum(stage.memory.values()) or None) for stage in forecast.stages),
    )
    for name, cell in _ENDS.items():
        table.add_row(name, *(cell(stage) for stage in forecast.stages))
    stdout().print(table)
    for source in dict.fromkeys(f"{stage.data.name}: {stage.data.source}" for stage in forecast.stages):
        print(source)
    print()


def _batch(stage: StageForecast) -> str:
    """micro-batch x accumulation x GPUs."""
    return f"{_number(stage.micro)} x {_number(stage.accumulation)} x {stage.gpus}"


def _largest(stage: StageForecast) -> str:
    if stage.micro is None:
        return UNKNOWN
    return "none" if stage.largest is None else str(stage.largest)


_LINES: dict[str, Callable[[StageForecast], str]] = {
    "rows of data": lambda stage: _number(stage.data.rows),
    "tokens a row": lambda stage: _number(_tokens(stage)),
    "  picture": lambda stage: _number(stage.data.image),
    "  prompt": lambda stage: _number(stage.data.prompt),
    "  answer": lambda stage: _number(stage.data.answer),
    "  longest row": lambda stage: _number(stage.data.longest),
    "steps": lambda stage: _number(stage.steps),
    "rows a step": lambda stage: _number(stage.batch),
    "  micro x accumulation x GPUs": _batch,
    "  largest micro-batch that fits": _largest,
    "  padding, of all tokens": lambda stage: _share(stage.padding),
    "parameters trained": lambda stage: _count(stage.trained),
    "memory of one GPU": lambda stage: "",
}
_ENDS: dict[str, Callable[[StageForecast], str]] = {
    "TFLOP a step": lambda stage: _number(stage.flops and stage.flops / 1e12),
    "time": lambda stage: "reused" if stage.reused else _time(stage.hours),
    "saved student": lambda stage: _gigabytes(stage.checkpoint),
}


def _tokens(stage: StageForecast) -> float | None:
    parts = (stage.data.image, stage.data.prompt, stage.data.answer)
    return None if None in parts else sum(parts)


def _download(download: Download) -> str:
    note = f" ({download.note})" if download.note else ""
    size = "" if download.size is None else f", {_gigabytes(download.size)}"
    return f"{download.name}{size} -> {download.where}{note}"


def _sum(values: Sequence[float | None], told: Callable[[float], str]) -> str:
    known = told(sum(value for value in values if value is not None))
    return f"at least {known}, not all are known" if None in values else known


def _number(value: float | None) -> str:
    """Whole from a hundred on; two digits of what is small."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int) or value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}"


def _count(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value / 1e3:,.1f} K"


def _time(hours: float | None) -> str:
    if hours is None:
        return UNKNOWN
    return (
        f"{hours:,.1f} h"
        if hours >= 1
        else f"{60 * hours:.1f} min"
        if hours >= 1 / 60
        else f"{3600 * hours:.1f} s"
    )


def _memory(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value / GIB:,.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:,.1f} MiB"


def _gigabytes(value: float | None) -> str:
    return (
        UNKNOWN if value is None else f"{value / 1e9:,.1f} GB" if value >= 1e8 else f"{value / 1e6:,.1f} MB"
    )


def _table(first: str, *others: str):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
