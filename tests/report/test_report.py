"""The tables: what is in them, what is left out, what is refused, and how they are printed."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from switchkd_cli.benchmarks import BENCHMARKS, TEN
from switchkd_cli.errors import INPUT, UserError
from switchkd_cli.report.document import words
from switchkd_cli.report.formats.markup import plain, to_markdown
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.show import publish, show
from switchkd_cli.report.tables.comparison import comparison, distillation
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import made_up_runs as made

OURS = {"pope": 71.5, "gqa": 41.2, "mme": 55.5, "mmmu_val": 99.0}
SFT = {"pope": 70.5, "gqa": 45.3, "mme": 50.1, "mmmu_val": 1.0}
TEACHER = made.teacher(
    {"mme": 80.0, "gqa": 60.0, "mmmu_val": 30.0, "pope": 90.0},
    blind={"mme": 49.9, "gqa": 10.6, "mmmu_val": 29.7, "pope": 50.8},
    majority={"mme": 48.9, "gqa": 20.4, "mmmu_val": 33.3, "pope": 66.7},
    not_beaten={"mmmu_val": ["majority", "blind"]},
)
PAPER = {"gqa": 61.6, "average": 60.1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def pair(root: Path, **asked) -> list[RunFolder]:
    """Switch-KD and its control."""
    return [made.run(root, "switch-kd", "Switch-KD", OURS, paper=PAPER), made.run(root, "sft", "SFT", SFT, **asked)]


def lines(report, table=0) -> dict[str, list[str]]:
    return {line.name: [words(cell) for cell in line.cells] for line in report.tables[table].lines}


def distilled(root: Path):
    return distillation([read(run) for run in pair(root)], TEACHER)


def piped(report) -> str:
    """What is printed of it on a console that is no terminal."""
    output = io.StringIO()
    show(report, Console(file=output, markup=False, highlight=False))
    return output.getvalue()


def test_columns_follow_the_paper_and_end_with_the_average(root):
    report = distilled(root)
    assert report.tables[0].columns == ("points", "MME", "GQA", "MMMU", "POPE", "Avg")


def test_a_benchmark_the_teacher_does_not_clear_is_in_nobodys_average(root):
    report = distilled(root)
    assert lines(report) == {
        "teacher": ["80.0", "60.0", "(30.0)", "90.0", "76.7"],
        "SFT (seed 0)": ["50.1", "45.3", "(1.0)", "70.5", "55.3"],
        "Switch-KD (seed 0)": ["55.5", "41.2", "(99.0)", "71.5", "56.1"],
        "gain: Switch-KD minus SFT": ["+5.4", "-4.1", "(+98.0)", "+1.0", "+0.8"],
        "majority": ["48.9", "20.4", "(33.3)", "66.7", "45.3"],
        "blind": ["49.9", "10.6", "(29.7)", "50.8", "37.1"],
        "Switch-KD": ["–", "61.6", "–", "–", "60.1"],  # the paper's own average, as printed
    }
    note = "(MMMU): the teacher does not clearly beat the majority answer or itself without the image"
    assert any(text.startswith(note) and "left out of the average" in text for text in report.notes)


def test_stand_ins_are_noted_with_the_names_that_they_make_alike(root):
    small, large = "org/small", "org/large"
    runs = [
        made.run(root, "a", "A", OURS, stages=made.STAGES + f"stand_ins: {{{small}: toy:reader, org/v: toy:v}}"),
        made.run(root, "b", "B", SFT, stages=made.STAGES + f"stand_ins: {{{large}: toy:reader, org/v: toy:v}}"),
    ]
    notes = comparison([read(run) for run in runs], TEACHER).notes
    assert [note for note in notes if "stands in for" in note] == [
        "toy:reader stands in for org/small and org/large alike: they can't be told apart here",
        "toy:v stands in for org/v",
    ]
    assert not any("stands in for" in note for note in distilled(root).notes)


def test_more_seeds_are_run_in_the_same_world(root):
    here = [read(run) for run in pair(root)]
    elsewhere = [replace(run, recipe="quick@toy") for run in here]
    for runs, command in (
        (here, "switchkd ablate quick --seeds 5"),
        (elsewhere, "switchkd ablate quick --world toy --seeds 5"),
    ):
        assert any(note.endswith(command) for note in distillation(runs, TEACHER).notes)


def test_every_benchmark_left_out_leaves_no_average(root):
    teacher = {**TEACHER, "not_beaten": {task: ["blind"] for task in OURS}}
    report = distillation([read(run) for run in pair(root)], teacher)
    assert lines(report)["Switch-KD (seed 0)"] == ["(55.5)", "(41.2)", "(99.0)", "(71.5)", "–"]
    assert "no benchmark is left: there is no average" in report.notes


def test_a_benchmark_that_is_not_the_papers_is_a_column_and_in_no_average(root):
    extra = {"captions": 88.0, "swap": 77.0}
    runs = [made.run(root, row, row, {**scores, **extra}) for row, scores in (("ours", OURS), ("sft", SFT))]
    each = {name: {**{t: s["score"] for t, s in TEACHER[name]["scores"].items()}, **extra} for name in made.NAMES}
    report = distillation([read(run) for run in runs], made.teacher(*each.values(), TEACHER["not_beaten"]))
    assert report.tables[0].columns == ("points", "MME", "GQA", "MMMU", "POPE", "Swap", "Captions", "Avg")
    assert lines(report)["ours (seed 0)"] == ["55.5", "41.2", "(99.0)", "71.5", "(77.0)", "(88.0)", "56.1"]
    assert "(Swap, Captions): not among the paper's ten: in no average" in report.notes
    assert any(note.startswith("Swap: right on both images of a pair") for note in report.notes)
    assert not any("Swap" in note for note in distilled(root / "other").notes)


def test_without_any_of_the_papers_benchmarks_there_is_no_average_and_nothing_is_left_out_of_it(root):
    runs = [made.run(root, row, row, {"mmvp": score}) for row, score in (("ours", 50.0), ("sft", 40.0))]
    report = distillation([read(run) for run in runs], None)
    assert lines(report)["ours (seed 0)"] == ["50.0", "–"]
    assert any(note.startswith("Avg: of the paper's ten benchmarks, or") for note in report.notes)


def test_without_a_teacher_all_count_and_the_table_says_so(root):
    report = distillation([read(run) for run in pair(root)], None)
    assert lines(report)["Switch-KD (seed 0)"][-1] == "66.8"
    assert "teacher" not in lines(report)
    assert any("no teacher was scored" in note for note in report.notes)


def test_baselines_stand_without_a_teacher(root):
    alone = {name: value for name, value in TEACHER.items() if name != "teacher"} | {"not_beaten": {}}
    report = distillation([read(run) for run in pair(root)], alone)
    assert lines(report)["majority"][-1] == "42.3"
    assert any("no teacher was scored" in note for note in report.notes)


def test_title_and_notes_say_what_the_numbers_are(root):
    report = distilled(root)
    assert "playground" in report.title and "test split" in report.title
    assert "not the paper's benchmarks" in report.title
    text = "\n".join(report.notes)
    for part in (
        "one seed (0)",
        "items per benchmark: 100",
        "trained equally long: pretrain 60 steps of 32, distill 300 steps of 32",
        f"files: {root / 'quick' / 'switch-kd' / 'seed0'}",
        "no number here is comparable",
    ):
        assert part in text


def test_unequal_training_is_named(root):
    longer = made.STAGES.replace("300", "560")
    report = distillation([read(run) for run in pair(root, stages=longer)], TEACHER)
    notes = [note for note in report.notes if note.startswith("not trained equally long")]
    assert any("560 steps of 32: SFT" in note for note in notes)
    assert any("300 steps of 32: Switch-KD" in note for note in notes)


def test_a_gain_that_rounds_to_nothing_has_no_minus_sign(root):
    runs = [
        read(made.run(root, "switch-kd", "Switch-KD", {"gqa": 50.0})),
        read(made.run(root, "sft", "SFT", {"gqa": 50.04})),
    ]
    assert lines(distillation(runs, None))["gain: Switch-KD minus SFT"] == ["+0.0", "+0.0"]


def test_the_protocols_deviations_stand_beside_real_benchmarks(root):
    runs = [made.run(root, "switch-kd", "Switch-KD", {"textvqa_val": 50.0}, paper=PAPER, world="hub")]
    report = comparison([read(run) for run in runs], None)
    assert "playground" not in report.title
    assert f"TextVQA: {BENCHMARKS['textvqa_val'].note}" in report.notes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"world": "hub"}, "world is hub, that of {first} is playground"),
        ({"split": "hard"}, "split is hard, that of {first} is test"),
        ({"items": 30}, "items is 30, that of {first} is 100"),
        ({"sets_key": "other"}, "sets_key is other, that of {first} is k"),
    ],
)
def test_scores_of_other_questions_are_refused(root, asked, message):
    ours, sft = pair(root, **asked)
    with pytest.raises(UserError) as refused:
        comparison([read(ours), read(sft)], None)
    assert refused.value.code == INPUT
    assert refused.value.problems == (f"{sft.path}: {message.format(first=ours.path)}",)
    assert refused.value.hint


def test_all_differences_are_named_at_once(root):
    ours, sft = pair(root, split="hard", items=30, sets_key="other")
    with pytest.raises(UserError) as refused:
        comparison([read(ours), read(sft)], None)
    assert [problem.split(": ", 1)[1].split(" is ")[0] for problem in refused.value.problems] == ["split", "items"]


def test_other_benchmarks_are_refused(root):
    runs = [
        made.run(root, "switch-kd", "Switch-KD", {"gqa": 1.0}),
        made.run(root, "sft", "SFT", {"gqa": 1.0, "pope": 2.0}),
    ]
    with pytest.raises(UserError, match="benchmarks is gqa, pope, that of .* is gqa"):
        comparison([read(run) for run in runs], None)


def test_a_teacher_asked_other_questions_is_refused(root):
    teacher = made.teacher(OURS, OURS, OURS, sets_key="other")
    with pytest.raises(UserError, match="teacher: sets_key is other"):
        distillation([read(run) for run in pair(root)], teacher)


def test_a_run_without_scores_is_refused(root):
    ours, sft = pair(root)
    sft.results.unlink()
    with pytest.raises(UserError, match="no scores: results.json is missing"):
        distillation([read(run) for run in (ours, sft)], TEACHER)


def test_compare_keeps_the_order_and_distinguishes_namesakes(root):
    first = made.run(root, "sft", "SFT", SFT)
    other = made.run(root.parent / "elsewhere", "sft", "SFT", SFT)
    info = json.loads(other.record.read_text())
    other.record.write_text(json.dumps(info | {"recipe": "long"}))
    report = comparison([read(run) for run in (other, first)], None)
    assert list(lines(report)) == ["long: SFT (seed 0)", "quick: SFT (seed 0)"]


def test_piped_output_is_whole_plain_and_narrow(root):
    runs = pair(root)
    text = piped(distillation([read(run) for run in runs], TEACHER))
    assert "\x1b" not in text and "…" not in text
    cells = Counter(
        cell for cells in lines(distillation([read(run) for run in runs], TEACHER)).values() for cell in cells
    )
    assert cells <= Counter(text.split())
    path = str(runs[0].path)
    assert path in text.replace("\n", " ")
    assert all(len(line) <= 100 for line in text.splitlines() if "files: " not in line and path not in line)


def test_numbers_stay_whole_however_long_the_titles(root):
    everything = {task: 100.0 - i / 10 for i, task in enumerate(TEN)}
    runs = [
        made.run(root, row, "a title that goes on and on, with [markup] and more than a line of words", everything)
        for row in ("one", "two")
    ]
    teacher = made.teacher(everything, everything, everything, {task: ["blind"] for task in everything})
    text = piped(distillation([read(run) for run in runs], teacher))
    for value in everything.values():
        assert len(re.findall(rf"(?<![\d.])\({value:.1f}\)", text)) == 5  # teacher, two runs, two baselines
    assert "[markup]" in text
    table = text[text.index("points") : text.index("(MME")]
    assert all(len(line) <= 100 for line in table.splitlines())


def test_a_terminal_gets_the_same_numbers(root):
    output = io.StringIO()
    narrow = Console(file=output, force_terminal=True, width=40, markup=False)
    show(distilled(root), narrow)
    plain = re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())
    assert {"(+98.0)", "+5.4", "56.1"} <= set(plain.split())


def test_markdown_holds_the_same_cells(root):
    report = distilled(root)
    rows = [line for line in to_markdown(report).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == list(report.tables[0].columns)
    assert [row[1:] for row in cells[2:]] == list(lines(report).values())
    assert cells[-1][0] == "paper (its own benchmarks): Switch-KD"
    assert all(f"- {plain(note)}" in to_markdown(report) for note in report.notes)


def test_the_json_beside_the_results_is_the_report(root):
    runs = pair(root)
    report = distillation([read(run) for run in runs], TEACHER)
    publish(report, runs[0].path)
    written = json.loads((runs[0].path / "table.json").read_text())
    assert written["title"] == report.title and written["notes"] == list(report.notes)
    gain = next(line for line in written["tables"][0]["lines"] if line["kind"] == "gain")
    assert gain["cells"][-1]["value"] == pytest.approx((5.4 - 4.1 + 1.0) / 3)
    assert [cell["counted"] for cell in gain["cells"]] == [True, True, False, True, True]


def faulty(root: Path, row: str, title: str, seed: int = 0, **counts) -> RunFolder:
    """A run of 100 answers to POPE with these counts of answers that can't be right."""
    folder = made.run(root, row, title, {"pope": 40.0, "gqa": 50.0}, seed=seed)
    results = json.loads(folder.results.read_text())
    results["scores"]["pope"] |= counts
    folder.results.write_text(json.dumps(results))
    return folder


def test_answers_that_cant_be_right_are_counted_by_benchmark_and_row(root):
    runs = [
        faulty(root, "a", "A", 0, unreadable=7, example="Yes,\nit is."),
        faulty(root, "a", "A", 1, unreadable=2, empty=3),
        faulty(root, "b", "B", 0, unreadable=1, example="no!"),
    ]
    notes = comparison([read(run) for run in runs], None).notes
    assert [note for note in notes if "answers that" in note] == [
        r"POPE: answers that can't be read by the metric: A 9 of 200 (e.g. 'Yes,\\nit is.'), B 1 of 100 (e.g. 'no!')",
        "POPE: answers that are empty: A 3 of 200",
    ]
    without = [read(made.run(root / "old", row, row, {"pope": 1.0})) for row in ("a", "b")]
    assert not any("answers that" in note for note in comparison(without, None).notes)


@pytest.mark.parametrize("fault", ["unreadable", "empty", "at_limit", "too_long"])
def test_more_than_half_in_one_run_is_a_warning(root, fault):
    """Also where its row's other seeds are well, and of the teacher, which decides what counts."""
    runs = [read(faulty(root, "a", "A", seed, **{fault: 51 * seed})) for seed in (0, 1)]
    (note,) = (note for note in comparison(runs, None).notes if "answers that" in note)
    assert note.startswith("warning: POPE: ") and "A 51 of 200" in note and "says little" in note
    well = [read(made.run(root / "well", row, row, {"pope": 40.0, "gqa": 50.0})) for row in ("a", "b")]
    teacher = made.teacher(*[{"pope": 0.0, "gqa": 50.0}] * 3)
    teacher["teacher"]["scores"]["pope"] |= {fault: 99}
    (note,) = (note for note in comparison(well, teacher).notes if "answers that" in note)
    assert note.startswith("warning: POPE: ") and "teacher 99 of 100" in note
