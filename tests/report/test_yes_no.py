"""Accuracy next to scores that are F1, and rows that say one word to nearly all yes-or-no questions."""

import csv
import io
import json
from pathlib import Path

import pytest

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.commands.evaluate import show_scores
from switchkd_cli.report.document import words
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.show import FORMATS, to_csv, to_json
from switchkd_cli.report.stats.baselines import yes_no
from switchkd_cli.report.tables.comparison import ablation, comparison, distillation
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import made_up_runs as made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def line(place: int, target: str, score: float, *faults: str) -> dict:
    return {"doc_id": place, "key": f"k{place}", "prompt": "?", "target": target, "score": score, "faults": [*faults]}


LINES = [
    line(0, "Yes", 1.0),  # MME's spelling
    line(1, "no", 0.0),  # said yes
    line(2, "no", 1.0, "at_limit"),
    line(3, "no", 0.0),
    line(4, "yes", 0.0, "unreadable"),
    line(5, "no", 0.0, "empty"),
    line(6, "No.", 1.0),
    line(7, "no", 1.0),
]


def test_words_are_counted_as_the_metric_reads_them():
    assert yes_no(BENCHMARKS["mme"], LINES) == {"yes": 3, "no": 3}
    assert yes_no(BENCHMARKS["pope"], LINES) == {"yes": 3, "no": 3, "accuracy": 50.0}
    assert yes_no(BENCHMARKS["gqa"], LINES) == yes_no(BENCHMARKS["pope"], []) == {}


def scored(root: Path, row: str, title: str, *, seed=0, pope=40.0, mme=None, **counts) -> RunFolder:
    """A run of 100 questions of each kind; `counts` are POPE's, `mme` those of MME."""
    folder = made.run(root, row, title, {"pope": pope, "gqa": 50.0, "mme": 30.0}, seed=seed)
    results = json.loads(folder.results.read_text())
    results["scores"]["pope"] |= counts
    results["scores"]["mme"] |= mme or {}
    folder.results.write_text(json.dumps(results))
    return folder


def runs(root: Path) -> list:
    ours = scored(root, "switch-kd", "Switch-KD", pope=66.0, accuracy=49.0, yes=50, no=50)
    return [read(ours), read(scored(root, "sft", "SFT", pope=12.0, accuracy=54.5, yes=9, no=91))]


def teacher() -> dict:
    each = made.teacher(*[{"pope": 60.0, "gqa": 70.0, "mme": 50.0}] * 3)
    each["teacher"]["scores"]["pope"]["accuracy"] = 80.0
    return each


def test_accuracy_stands_next_to_f1_and_is_in_no_average(root):
    report = distillation(runs(root), teacher())
    assert report.tables[0].columns == ("points", "MME", "GQA", "POPE", "POPE acc.", "Avg")
    shown = {line.name: [words(cell) for cell in line.cells][2:] for line in report.tables[0].lines}
    assert shown["teacher"] == ["60.0", "(80.0)", "60.0"]
    assert shown["SFT (seed 0)"] == ["12.0", "(54.5)", "30.7"]
    assert shown["gain: Switch-KD minus SFT"] == ["+54.0", "(-5.5)", "+18.0"]
    assert shown["majority"] == ["60.0", "–", "60.0"]  # scored before accuracies were
    (note,) = (note for note in report.notes if note.startswith("(POPE acc.): "))
    assert "in no average" in note and 'POPE itself is F1, which counts only "yes"' in note


def test_every_format_has_it_and_csv_and_json_as_a_figure_of_its_own(root):
    report = comparison(runs(root), teacher())
    for form in ("text", "markdown", "latex"):
        assert all(number in FORMATS[form](report) for number in ("80.0", "54.5", "49.0")), form
    cells = [cell for cell in csv.DictReader(io.StringIO(to_csv(report))) if cell["table"] == "scores"]
    assert [cell["value"] for cell in cells if cell["column"] == "POPE acc."][:3] == ["80.0", "49.0", "54.5"]
    table = json.loads(to_json(report))["tables"][0]
    place = table["columns"].index("POPE acc.") - 1
    assert [line["cells"][place]["value"] for line in table["lines"][:3]] == [80.0, 49.0, 54.5]


def test_runs_without_accuracy_or_answers_have_no_such_column(root):
    known, old = runs(root)[0], read(scored(root, "old", "Old"))
    report = distillation([known, old], None)
    assert report.tables[0].columns == ("points", "MME", "GQA", "POPE", "Avg")
    assert not any("acc." in note for note in report.notes)


def keep(answers: Path, task: str, lines: list[dict]) -> None:
    answers.mkdir(parents=True, exist_ok=True)
    (answers / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_results_say_is_not_computed_again(root):
    folder = scored(root, "sft", "SFT", accuracy=54.5, yes=9, no=91)
    keep(folder.answers, "pope", [line(i, "yes", 1.0) for i in range(made.ITEMS)])
    assert read(folder).scores["pope accuracy"] == 54.5


def named(report) -> list[str]:
    return [note for note in report.notes if "of the readable answers" in note]


def test_a_row_that_always_says_one_word_is_named(root):
    known = teacher()
    known["blind"]["scores"]["pope"] |= {"yes": 0, "no": 100}
    known["majority"]["scores"]["pope"] |= {"yes": 100, "no": 0}  # constant by definition
    rows = [
        read(scored(root, "a", "A", yes=1, no=99, mme={"yes": 20, "no": 0})),
        read(scored(root, "b", "B", yes=94, no=6, mme={"yes": 60, "no": 40})),
    ]
    expected = [
        'MME: "yes" is 95 % or more of the readable answers: A 20 of 20',
        'POPE: "no" is 95 % or more of the readable answers: blind 100 of 100, A 99 of 100',
    ]
    assert named(distillation(rows, known)) == named(comparison(rows, known)) == expected


@pytest.mark.parametrize(("second", "said"), [(90, ["SFT 190 of 200"]), (89, [])])
def test_seeds_are_counted_together_from_95_per_cent_on(root, second, said):
    each = [read(scored(root, "sft", "SFT", seed=s, yes=100 - n, no=n)) for s, n in ((1, 100), (2, second))]
    notes = named(ablation(each, None, planned=each, controls=[]))
    assert [note.rpartition(": ")[2] for note in notes] == said


def test_a_score_of_one_model_shows_its_accuracy(root, capsys):
    show_scores("this model", runs(root)[1].results, (), root)
    printed = capsys.readouterr().out
    assert [row.split()[:4] for row in printed.splitlines() if "POPE" in row] == [
        ["POPE", "12.0", "m", "100"],
        ["POPE", "acc.", "54.5", "accuracy"],
    ]
