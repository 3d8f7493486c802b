"""Plot a column of differences as marks on one scale: a dot for the mean, a line for its interval."""

from __future__ import annotations

from switchkd_cli.report.document.cells import Number
from switchkd_cli.report.document.model import Table

WIDTH, HEIGHT, EDGE = 240, 22, 8  # pixels
OVER = 12  # pixels by which the line of zero reaches into the lines above and below
CLASSES = {1: "up", -1: "down", 0: "unclear", None: ""}
"""HTML class of a clear or unclear difference, by `Number.side`."""


def whiskers(table: Table) -> dict[str, str]:
    """An SVG for each line of the table's plotted column, by the line's name; empty where none is plotted."""
    if table.plotted not in table.columns:
        return {}
    place = table.columns.index(table.plotted) - 1
    cells = {line.name: line.cells[place] for line in table.lines}
    numbers = {name: cell for name, cell in cells.items() if isinstance(cell, Number)}
    ends = [end for of in numbers.values() for end in (of.value - (of.interval or 0), of.value + (of.interval or 0))]
    low, high = min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)
    if low == high:
        return {}
    scale = (WIDTH - 2 * EDGE) / (high - low)

    def at(points: float) -> str:
        return f"{EDGE + (points - low) * scale:.1f}"

    marks, middle = {}, HEIGHT / 2
    for name, of in numbers.items():
        half = of.interval or 0
        marks[name] = (
            f'<svg class="whisker {CLASSES[of.side or 0]}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true">'
            f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="{-OVER}" y2="{HEIGHT + OVER}"/>'
            f'<line x1="{at(of.value - half)}" x2="{at(of.value + half)}" y1="{middle}" y2="{middle}"/>'
            f'<circle cx="{at(of.value)}" cy="{middle}" r="4.5"/></svg>'
        )
    return marks
