"""Differences as marks on one scale beside their table: a dot for the mean, a line for its interval."""

from __future__ import annotations

from collections.abc import Callable

from switchkd_cli.report.document.blocks import Sheet
from switchkd_cli.report.tables.cells import Number

WIDTH, HEIGHT, EDGE = 240, 22, 8  # pixels
OVER = 12  # pixels by which the line of zero reaches into the lines above and below


def whiskers(sheet: Sheet) -> dict[str, str]:
    """An SVG for each line of the column that the sheet wants drawn, by the line's name; nothing drawn, nothing given."""
    if sheet.drawn not in sheet.table.columns:
        return {}
    place = sheet.table.columns.index(sheet.drawn) - 1
    found = {line.name: line.cells[place] for line in sheet.table.lines}
    numbers = {name: cell for name, cell in found.items() if isinstance(cell, Number)}
    ends = [end for of in numbers.values() for end in _ends(of)]
    low, high = min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)
    if low == high:
        return {}
    scale = (WIDTH - 2 * EDGE) / (high - low)
    return {name: _drawn(of, lambda x: EDGE + (x - low) * scale) for name, of in numbers.items()}


def _ends(of: Number) -> tuple[float, float]:
    half = of.interval or 0.0
    return of.value - half, of.value + half


def _drawn(of: Number, at: Callable[[float], float]) -> str:
    low, high = (f"{at(end):.1f}" for end in _ends(of))
    middle, looks = HEIGHT / 2, "unclear" if not of.clear else "up" if of.value > 0 else "down"
    return (
        f'<svg class="whisker {looks}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true">'
        f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{-OVER}" y2="{HEIGHT + OVER}"/>'
        f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{at(of.value):.1f}" cy="{middle}" r="4.5"/></svg>'
    )
