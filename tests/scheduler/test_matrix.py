"""A matrix of runs: its counts, and the estimate of the time that is left."""

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchkd_cli.terminal.progress import Follower, Matrix, clock, matrix_line, seconds_left

LAST = "distill"
NOON = datetime(2026, 1, 1, 12, 0)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def matrix_of(*rows, jobs=1, took=None):
    now = Clock()
    waiting = [Follower(Path(), str(place), row=row, last=LAST) for place, row in enumerate(rows)]
    return Matrix(waiting, jobs=jobs, took=took or {}, now=now), now


def step(done, of, seconds, stage=LAST):
    return {"stage": stage, "step": done, "steps": of, "seconds": seconds}


def run(matrix, now, seconds, failed=False):
    matrix.start()
    now.seconds += seconds
    matrix.end(matrix.running[-1], failed=failed)


def test_nothing_foretells_a_first_run():
    matrix, now = matrix_of("a", "a")
    assert matrix.left is None
    matrix.start()
    now.seconds += 30
    matrix.running[0].step = step(5, 10, 20.0, stage="pretrain")
    assert matrix.left is None  # how long the next stage takes is not known in this one


def test_a_run_in_its_last_stage_foretells_itself_and_its_like():
    matrix, now = matrix_of("a", "a", "a")
    matrix.start()
    now.seconds += 30
    matrix.running[0].step = step(5, 10, 20.0)
    assert matrix.left == 20 + 2 * (30 + 20)


def test_a_row_that_ended_foretells_its_seeds_and_other_rows():
    matrix, now = matrix_of("a", "a", "b", "b")
    run(matrix, now, 100)
    assert matrix.left == 300
    run(matrix, now, 140)
    assert matrix.left == 2 * 120
    run(matrix, now, 10)
    assert matrix.left == 10  # row b is known by now


def test_rows_count_alike_however_many_seeds_they_have():
    matrix, now = matrix_of("a", "a", "a", "b", "c")
    for seconds in (100, 100, 100, 20):
        run(matrix, now, seconds)
    assert matrix.left == 60


def test_what_runs_needs_less_as_time_goes_on_and_never_less_than_nothing():
    matrix, now = matrix_of("a", took={"a": [100.0]})
    matrix.start()
    for gone, left in ((0, 100), (60, 60 - 20), (100, 0), (500, 0)):
        now.seconds = 1000 + gone
        assert matrix.left == left
    matrix.running[0].step = step(1, 2, 70.0)
    assert matrix.left == 70  # slower than its like: its own steps say so


def test_a_failed_run_foretells_nothing():
    matrix, now = matrix_of("a", "a", "a")
    run(matrix, now, 3, failed=True)
    assert matrix.left is None
    run(matrix, now, 100)
    assert (matrix.left, matrix.done, matrix.failed, matrix.total) == (100, 1, 1, 3)


def test_runs_side_by_side_end_with_the_last_of_them():
    matrix, _ = matrix_of("a", "b", "b", jobs=2, took={"a": [100.0], "b": [30.0]})
    assert matrix.left == 100
    matrix, _ = matrix_of("b", "b", "a", jobs=2, took={"a": [100.0], "b": [30.0]})
    assert matrix.left == 130  # in their order: both b first


@given(costs=st.lists(st.integers(1, 100), min_size=1, max_size=12), jobs=st.integers(1, 4), gone=st.integers(0, 12))
def test_what_is_foretold_is_what_comes_when_runs_take_what_their_rows_took(costs, jobs, gone):
    """A simulated launcher, event after event, from any point on."""
    rows = [str(cost) for cost in costs]
    matrix, now = matrix_of(*rows, jobs=jobs, took={row: [float(row)] for row in rows})
    ends: dict[Follower, float] = {}
    foretold = None
    started = 0
    while started < len(costs) or ends:
        while started < len(costs) and len(ends) < jobs:
            matrix.start()
            ends[matrix.running[-1]] = now() + costs[started]
            started += 1
        if matrix.done - len(set(rows)) >= min(gone, len(costs) - 1) and foretold is None:
            foretold = now() + matrix.left
        first = min(ends, key=ends.get)
        now.seconds = ends.pop(first)
        matrix.end(first, failed=False)
    assert foretold == pytest.approx(now())
    assert matrix.over and matrix.left == 0


def test_runs_that_finished_before_are_counted():
    matrix, _ = matrix_of("a", "b", took={"a": [10.0, 30.0]})
    assert matrix_line(matrix, NOON) == "2 of 4 done, 2 to come · 0:40 left · ends about 12:00"


def test_the_line_counts_what_there_is():
    matrix, now = matrix_of("a", "a", "a", "a")
    assert matrix_line(matrix, NOON) == "0 of 4 done, 4 to come"
    run(matrix, now, 5, failed=True)
    run(matrix, now, 4000)
    matrix.start()
    expected = "1 of 4 done, 1 failed, 1 running, 1 to come · 2:13:20 left · ends about 14:13"
    assert matrix_line(matrix, NOON) == expected


def test_an_end_on_another_day_says_which():
    matrix, _ = matrix_of("a", took={"a": [86_400.0]})
    assert matrix_line(matrix, NOON).endswith("24:00:00 left · ends about Fri 02 Jan 12:00")


def test_the_last_line_reports_no_time():
    matrix, now = matrix_of("a")
    run(matrix, now, 10)
    assert matrix.over and matrix_line(matrix, NOON) == "1 of 1 done"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3725, "1:02:05")])
def test_a_clock(seconds, text):
    assert clock(seconds) == text


def test_a_step_without_a_time_has_no_end():
    assert seconds_left({"step": 1, "steps": 2}) is None
    assert seconds_left(step(1, 4, 10.0)) == 30.0
