"""docs/scale.md has what scripts/scale.py prints, and plans are not far from hours that others printed."""

import pytest

from scripts import scale
from switchkd_cli.planning.estimate import Machine

pytestmark = pytest.mark.slow
PAGE = scale.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ratios():
    """Planned hours over printed ones, by training."""
    return {of.name: scale.planned(of).hours / of.hours for of in scale.PRINTED}


def test_plans_are_not_far_from_printed_hours(ratios):
    """With the default utilisation; the lengths of rows are assumptions (cost/published.yaml)."""
    assert all(0.55 < ratio < 1.4 for ratio in ratios.values()), ratios
    tunings = [ratio for name, ratio in ratios.items() if name.startswith("LLaVA-1.5") and name.endswith("tuning")]
    assert len(tunings) == 2 and tunings == pytest.approx([1, 1], abs=0.1)


def test_the_page_has_the_planned_hours(ratios):
    for of in scale.PRINTED:
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {of.name} |")]
        assert f"| {of.hours:g} h | {ratios[of.name] * of.hours:.1f} h | {ratios[of.name]:.2f} |" in line


def test_the_page_has_the_knee_of_table_1():
    points = scale.curve(None, None)
    at = scale.knee(points)
    assert f"| {at.gpus:,} GPUs | {at.hours:,.2f} h | ${at.dollars:,.0f} | {at.bound} |" in PAGE
    hours = [point.hours for point in points]
    used = hours[: scale.GPUS.index(at.gpus) + 1]
    assert used == sorted(used, reverse=True)
    assert hours[len(used) :] == pytest.approx([at.hours] * (len(hours) - len(used)), rel=0.01)  # the others idle
    assert points[-1].dollars == pytest.approx(4096 * hours[-1] * Machine().price)  # idle GPUs, too


def test_a_knee_is_where_a_doubling_takes_less_than_a_third_off():
    def of(*hours):
        return scale.knee([scale.Point(2**n, each, 0.0, "") for n, each in enumerate(hours)]).gpus

    assert of(8, 4, 2.5, 2.4) == 4
    assert of(8, 4, 2, 1) == 8
    assert of(8, 8) == 1


def test_the_figure_is_small_and_searchable():
    drawn = scale.FIGURE.read_text(encoding="utf-8")
    assert len(drawn) < 60_000 and "hours of training" in drawn and "1 B rows, batch 1,024" in drawn
