"""The ablation table: means, intervals and paired differences, recomputed here another way."""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from switchkd_cli.report.document import words
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.results.row_runs import over_seeds, paired_difference
from switchkd_cli.report.show import publish
from switchkd_cli.report.tables.comparison import ablation
from tests.support import made_up_runs as made

TASKS = ("mme", "gqa", "pope")
COUNTED = [0, 2]  # gqa is left out
ROWS = {"switch-kd": "Switch-KD", "sft": "SFT", "frozen": "SFT, encoder frozen", "vsd": "VSD only"}
RISE = {"switch-kd": 6.0, "sft": 0.0, "frozen": 5.5, "vsd": 12.0}
MISSING = ("vsd", 2)
TEACHER = made.teacher(
    dict.fromkeys(TASKS, 90.0), dict.fromkeys(TASKS, 20.0), dict.fromkeys(TASKS, 30.0), {"gqa": ["blind"]}
)
Asked = namedtuple("Asked", "row title seed")
PLANNED = [Asked(row, title, seed) for row, title in ROWS.items() for seed in range(4)]


def made_up() -> dict[str, np.ndarray]:
    """Scores [4 seeds, 3 tasks] by row: seeds differ by much, rows by little more than noise."""
    random = np.random.default_rng(0)
    by_seed = 50 + 8 * random.standard_normal((4, 1))
    return {row: by_seed + rise + random.standard_normal((4, 3)) for row, rise in RISE.items()}


def finished(root: Path, rows=tuple(ROWS), seeds=range(4)) -> list:
    scores = made_up()
    return [
        made.run(root, row, ROWS[row], dict(zip(TASKS, scores[row][s], strict=True)), seed=s, seconds=100.0 + RISE[row])
        for row in rows
        for s in seeds
        if (row, s) != MISSING
    ]


def tabled(runs: list, controls: list[str]):
    """The table of a recipe that plans these runs and no other."""
    return ablation(runs, TEACHER, planned=runs, controls=controls)


@pytest.fixture
def report(tmp_path):
    return ablation([read(run) for run in finished(tmp_path)], TEACHER, planned=PLANNED, controls=["sft"])


def average(row: str) -> np.ndarray:
    """By seed, over the benchmarks that count, missing seeds left out."""
    values = made_up()[row][:, COUNTED].mean(axis=1)
    return np.delete(values, MISSING[1]) if row == MISSING[0] else values


def line(report, name: str, table=0) -> dict:
    heads, lines = report.tables[table].columns, report.tables[table].lines
    found = next(line for line in lines if line.name == name)
    return dict(zip(heads[1:], found.cells, strict=True))


def half(values: np.ndarray) -> float:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return (high - low) / 2


def test_means_over_seeds_and_their_intervals(report):
    for row, title in ROWS.items():
        number = line(report, title)["average"]
        assert number.value == pytest.approx(average(row).mean())
        assert number.interval == pytest.approx(half(average(row)))


def test_differences_are_paired_by_seed(report):
    for row in ("switch-kd", "frozen"):
        number = line(report, ROWS[row])["minus SFT"]
        test = stats.ttest_rel(average(row), average("sft")).confidence_interval(0.95)
        assert number.value - number.interval == pytest.approx(test.low)
        assert number.value + number.interval == pytest.approx(test.high)
    assert line(report, "SFT")["minus SFT"] is None


def test_pairs_need_both_seeds(report):
    number = line(report, "VSD only")["Switch-KD minus it"]
    test = stats.ttest_rel(np.delete(average("switch-kd"), 2), average("vsd")).confidence_interval(0.95)
    assert number.seeds == 3
    assert number.value + number.interval == pytest.approx(test.high)


def test_what_is_not_clear_is_called_so(report):
    assert line(report, "SFT")["Switch-KD minus it"].side == 1
    unclear = line(report, "SFT, encoder frozen")["Switch-KD minus it"]
    assert unclear.side == 0 and str(unclear).endswith(f" not clear, MDE {unclear.detectable:.1f}")
    assert "Switch-KD is clearly better than: SFT" in report.notes
    assert "Switch-KD does not clearly differ from: SFT, encoder frozen" in report.notes
    assert "Switch-KD is clearly worse than: VSD only" in report.notes


def test_missing_seeds_are_said(report):
    assert line(report, "VSD only")["seeds"] == "3 of 4"
    assert line(report, "SFT")["seeds"] == 4
    assert "VSD only: no finished run for seed 2" in report.notes


def test_a_row_that_never_finished_still_has_its_line(tmp_path):
    runs = [read(run) for run in finished(tmp_path, rows=("switch-kd", "sft", "frozen"))]
    report = ablation(runs, TEACHER, planned=PLANNED, controls=["sft"])
    assert line(report, "VSD only") == {
        "seeds": "0 of 4",
        "average": None,
        "minus SFT": None,
        "Switch-KD minus it": None,
        "train s": None,
    }
    assert "VSD only: no finished run for seeds 0-3" in report.notes


def test_cost_is_the_clock_of_the_last_stage(report):
    assert line(report, "Switch-KD")["train s"] == 106
    assert line(report, "SFT")["train s"] == 100


def test_means_of_each_benchmark(report):
    scores = line(report, "SFT", table=1)
    assert [scores[head].value for head in ("MME", "GQA", "POPE")] == pytest.approx(made_up()["sft"].mean(axis=0))
    assert scores["Avg"].value == pytest.approx(line(report, "SFT")["average"].value)
    assert not scores["GQA"].counted
    assert line(report, "blind", table=1)["Avg"].value == 20.0


def test_one_seed_shows_no_interval_and_proves_nothing(tmp_path):
    report = tabled([read(run) for run in finished(tmp_path, seeds=[0])], ["sft"])
    assert str(line(report, "SFT")["average"]).endswith(" ± ?")
    assert line(report, "Switch-KD")["minus SFT"].side == 0
    assert any(note.startswith("Switch-KD can't be told from (one seed in common)") for note in report.notes)


def test_the_reference_is_the_first_control(tmp_path):
    runs = [read(run) for run in finished(tmp_path)]
    assert "minus SFT, encoder frozen" in tabled(runs, ["frozen", "sft"]).tables[0].columns
    assert "minus SFT" in tabled(runs, []).tables[0].columns


def test_the_studied_row_alone_has_no_differences(tmp_path):
    report = tabled([read(run) for run in finished(tmp_path, rows=["switch-kd"])], ["sft"])
    assert report.tables[0].columns == ("row", "seeds", "average", "train s")


def test_printed_and_written(tmp_path, report, capsys):
    publish(report, tmp_path / "quick")
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert all(words(cell) in text for table in report.tables for row in table.lines for cell in row.cells)
    assert all(len(row) <= 100 for row in text.splitlines() if str(tmp_path) not in row)
    written = json.loads((tmp_path / "quick" / "table.json").read_text())
    assert [table["columns"][0] for table in written["tables"]] == ["row", "mean over seeds"]


def test_estimates_by_hand():
    three = over_seeds([1.0, 2.0, 3.0])
    assert (three.value, three.seeds) == (2.0, 3)
    assert three.interval == pytest.approx(4.30265 / 3**0.5, abs=1e-4)  # t(0.975, 2), s = 1
    assert over_seeds([]) is None
    assert over_seeds([5.0]).interval is None
    assert paired_difference({0: 1.0, 1: 2.0}, {2: 1.0}) is None
    assert paired_difference({0: 1.0, 1: 4.0}, {1: 1.0, 0: 0.0}).value == 2.0
