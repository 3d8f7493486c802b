"""`compare`: which runs are put together, what is refused, and what the tables say of known answers."""

import csv
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.commands.compare import compare
from switchkd_cli.commands.options import CompareOptions
from switchkd_cli.errors import INPUT, UserError
from switchkd_cli.report import show
from switchkd_cli.report.document import Interval, Number, Probability
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.results.row_runs import seeds_in_words
from switchkd_cli.report.stats.baselines import yes_no
from switchkd_cli.report.tables.comparison import ablation, comparison, distillation
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import made_up_runs as made

ITEMS = 40
TITLES = {"switch-kd": "Switch-KD", "sft": "SFT", "vsd": "VSD only"}
PAPER = {"switch-kd": {"gqa": 61.6, "average": 60.1}, "sft": {"gqa": 58.3, "average": 56.5}}


def answers(right: np.ndarray, task: str, **changed) -> list[dict]:
    """A run's lines; the first is changed."""
    lines = [
        {
            "doc_id": i,
            "key": f"{task}{i}",
            "kind": "",
            "prompt": f"What is image {i} of {task}?",
            "answer": "yes" if bool(r) == bool(i % 2) else "no",
            "target": "yes" if i % 2 else "no",
            "score": float(r),
        }
        for i, r in enumerate(right)
    ]
    lines[0] |= changed
    return lines


def f1(lines) -> float:
    right = sum(a["answer"] == a["target"] == "yes" for a in lines)
    of = sum((a["answer"] == "yes") + (a["target"] == "yes") for a in lines)
    return 200 * right / of


def finished(
    root: Path, row: str, seed: int = 0, tasks=("gqa", "vqav2_val", "pope"), versions=None, **changed
) -> RunFolder:
    """A run of made-up right and wrong answers; switch-kd knows more than sft."""
    random = np.random.default_rng([list(TITLES).index(row), seed])
    share = {"switch-kd": 0.85, "sft": 0.45, "vsd": 0.5}[row]
    lines = {task: answers(random.random(ITEMS) < share, task, **changed) for task in tasks}
    scores = {
        task: f1(of) if task == "pope" else 100 * float(np.mean([line["score"] for line in of]))
        for task, of in lines.items()
    }
    folder = made.run(root, row, TITLES[row], scores, seed=seed, paper=PAPER.get(row), items=ITEMS)
    results = json.loads(folder.results.read_text()) | {"versions": versions or {"lmms-eval": "0.7.3"}}
    for task, of in lines.items():
        results["scores"][task] |= yes_no(BENCHMARKS[task], of)
    folder.results.write_text(json.dumps(results))
    folder.answers.mkdir()
    for task, of in lines.items():
        write(folder, task, of)
    return folder


def write(folder: RunFolder, task: str, lines) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder.answers / f"{task}.jsonl").write_text(text)


def stored(folder: RunFolder, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder.answers / f"{task}.jsonl").read_text().splitlines()]


def compared(*folders: RunFolder, teacher=None, **more):
    return comparison([read(folder) for folder in folders], teacher, **more)


def table(report, start: str):
    """The table whose title starts so, as {line: {column: cell}}."""
    found = next(t for t in report.tables if t.title.startswith(start))
    return {line.name: dict(zip(found.columns[1:], line.cells, strict=True)) for line in found.lines}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_two_runs_get_a_difference_an_interval_and_mcnemars_p(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    found = table(compared(ours, theirs), "Switch-KD minus SFT, seed 0")
    a, b = (np.array([line["score"] for line in stored(run, "gqa")]) for run in (ours, theirs))
    gqa = found["GQA"]
    assert gqa["difference"].value == pytest.approx(100 * (a - b).mean())
    only = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    assert gqa["p"].value == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    half = 196 * (a - b).std() / ITEMS**0.5
    assert (gqa["95 % items"].low, gqa["95 % items"].high) == pytest.approx(
        (gqa["difference"].value - half, gqa["difference"].value + half), abs=3
    )
    assert gqa["paper"].value == pytest.approx(3.3) and found["VQAv2"]["paper"] is None
    assert found["Avg"]["paper"].value == pytest.approx(3.6)
    assert set(found) == {"GQA", "VQAv2", "POPE", "POPE acc.", "Avg"}


def test_accuracy_next_to_f1_has_an_interval_over_its_questions_and_no_test_to_correct_for(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    found = table(compared(ours, theirs), "Switch-KD minus SFT, seed 0")["POPE acc."]
    gaps = np.subtract(*([line["score"] for line in stored(run, "pope")] for run in (ours, theirs)))
    mean, half = 100 * gaps.mean(), 196 * gaps.std() / ITEMS**0.5
    assert found["difference"].value == pytest.approx(mean) and not found["difference"].counted
    assert (found["95 % items"].low, found["95 % items"].high) == pytest.approx((mean - half, mean + half), abs=3)
    assert found["p"] is None and found["p, Holm"] is None and found["paper"] is None


def test_holms_correction_spans_every_test_of_the_report(root):
    report = compared(*(finished(root, row) for row in TITLES))
    cells = [
        (line["p"].value, line["p, Holm"].value)
        for start in ("Switch-KD minus", "VSD only minus")
        for name, line in table(report, start).items()
        if name != "POPE acc."
    ]
    assert len(cells) == 8
    raw = sorted(p for p, _ in cells)
    expected = np.minimum(np.maximum.accumulate([p * (8 - i) for i, p in enumerate(raw)]), 1)
    assert sorted(corrected for _, corrected in cells) == pytest.approx(list(expected))
    assert any("corrected for the 8 tests here" in note for note in report.notes)


def test_seeds_are_paired_and_give_mean_deviation_and_interval(root):
    ours = [finished(root, "switch-kd", seed) for seed in (1, 2, 3)]
    theirs = [finished(root, "sft", seed) for seed in (2, 3, 4)]
    report = compared(*ours, *theirs)
    found = table(report, "Switch-KD minus SFT, seeds 2, 3")["GQA"]
    gaps = [read(a).scores["gqa"] - read(b).scores["gqa"] for a, b in zip(ours[1:], theirs[:2], strict=True)]
    assert found["difference"].value == pytest.approx(np.mean(gaps))
    assert found["sd, seeds"].value == pytest.approx(np.std(gaps, ddof=1))
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert (found["95 % seeds"].low, found["95 % seeds"].high) == pytest.approx((low, high))
    own = table(report, "the average over seeds")["Switch-KD (seeds 1-3)"]
    assert own["seeds"] == 3 and own["sd"].value > 0


def test_a_difference_over_items_that_seeds_don_t_bear_out_is_reported(root):
    """Two seeds: the t interval of two values is wide."""
    report = compared(*(finished(root, row, seed) for row in ("switch-kd", "sft") for seed in (1, 2)))
    found = table(report, "Switch-KD minus SFT")
    del found["POPE acc."]  # it has no test
    wide = [n for n, line in found.items() if line["95 % seeds"].low < 0 and line["p, Holm"].value < 0.05]
    notes = [note for note in report.notes if "of these not beyond chance over seeds" in note]
    assert wide and all(name in notes[0] for name in wide)


def test_rows_without_a_common_seed_are_not_compared_and_it_is_said(root):
    folders = [finished(root, "switch-kd", seed) for seed in (1, 2)] + [finished(root, "sft", 3)]
    report = compared(*folders)
    assert [t.title.split(":")[0] for t in report.tables] == ["scores", "the average over seeds", "protocol"]
    assert "Switch-KD minus SFT: no seed in common, so not compared: name runs of the same seeds" in report.notes


def test_two_runs_of_one_row_are_put_beside_each_other(root):
    report = compared(finished(root, "sft", 1), finished(root, "sft", 2))
    found = table(report, "SFT (seed 2) minus SFT (seed 1)")
    assert "paper" not in found["GQA"]
    assert any("different seeds, so the seed is part of the difference" in note for note in report.notes)


def test_what_the_others_are_measured_against(root):
    folders = [finished(root, row) for row in TITLES]

    def titles(**more):
        return [table.title.split(",")[0] for table in compared(*folders, **more).tables[1:-1]]

    assert titles() == ["Switch-KD minus SFT", "VSD only minus SFT"]
    assert titles(controls=["vsd"]) == ["Switch-KD minus VSD only", "SFT minus VSD only"]
    assert titles(against="switch-kd") == ["SFT minus Switch-KD", "VSD only minus Switch-KD"]
    with pytest.raises(UserError, match="--against: .* got 'stf' .did you mean 'sft'"):
        titles(against="stf")


def test_a_benchmark_that_does_not_count_is_in_parentheses_and_in_no_verdict(root):
    folders = [finished(root, "switch-kd"), finished(root, "sft")]
    tasks = dict.fromkeys(("gqa", "vqav2_val", "pope"), 50.0)
    teacher = made.teacher(tasks, tasks, tasks, {"gqa": ["blind"]}, items=ITEMS, versions={"lmms-eval": "0.7.3"})
    report = compared(*folders, teacher=teacher)
    found = table(report, "Switch-KD minus SFT")
    assert str(found["GQA"]["difference"]).startswith("(+")
    counted_ones = [found[name]["difference"].value for name in ("VQAv2", "POPE")]
    assert found["Avg"]["difference"].value == pytest.approx(np.mean(counted_ones))
    verdict = next(note for note in report.notes if "beyond chance over items" in note)
    assert "GQA" not in verdict and "VQAv2" in verdict


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "What is image zero?"}, "GQA: 1 of 40 prompts differ; item 0 has 'What is image zero?'"),
        ({"key": "other"}, "GQA: 1 of 40 images differ; item 0 has 'other'"),
        ({"target": "maybe"}, "GQA: 1 of 40 right answers differ; item 0 has 'maybe'"),
        ({"doc_id": 77}, "GQA: 1 of 40 items differ; item 77 has 77"),
    ],
)
def test_runs_that_were_prompted_otherwise_are_refused_by_name(root, changed, message):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft", tasks=("gqa", "vqav2_val", "pope"))
    lines = stored(theirs, "gqa")
    lines[0] |= changed
    write(theirs, "gqa", lines)
    with pytest.raises(UserError) as refused:
        compared(ours, theirs)
    assert refused.value.code == INPUT and refused.value.hint
    (problem,) = refused.value.problems
    assert problem.startswith(f"{theirs.path}: {message}") and str(ours.path) in problem


def test_every_other_version_of_a_run_and_of_the_teacher_is_named_at_once(root):
    ours = finished(root, "switch-kd", versions={"lmms-eval": "0.7.3", "torch": "2.13.0"})
    theirs = finished(root, "sft", versions={"lmms-eval": "0.6.0", "torch": "2.12.0"})
    tasks = dict.fromkeys(("gqa", "vqav2_val", "pope"), 50.0)
    teacher = made.teacher(tasks, tasks, tasks, items=ITEMS, versions={"lmms-eval": "0.5.0", "torch": "2.13.0"})
    of_ours = f"that of {ours.path} is 0.7.3"
    runs = [read(ours), read(theirs)]
    for table_of in (comparison, distillation, partial(ablation, planned=(), controls=())):
        with pytest.raises(UserError) as refused:
            table_of(runs, teacher)
        assert refused.value.problems == (
            f"{theirs.path}: lmms-eval is 0.6.0, {of_ours}",
            f"{theirs.path}: torch is 2.12.0, that of {ours.path} is 2.13.0",
            *(f"{name}: lmms-eval is 0.5.0, {of_ours}" for name in ("teacher", "majority", "blind")),
        )


def test_every_answer_that_is_not_to_the_same_question_is_named_at_once(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    for task in ("gqa", "pope"):
        write(theirs, task, stored(theirs, task)[:-1])
    with pytest.raises(UserError) as refused:
        compared(ours, theirs)
    assert refused.value.problems == tuple(
        f"{theirs.path}: {head}: 39 answers, {ours.path} has 40" for head in ("GQA", "POPE")
    )


def test_seeds_of_one_row_with_other_settings_are_refused(root):
    """As a run with an override leaves them, next to those without."""
    first, second = (finished(root, "switch-kd", seed) for seed in (0, 1))
    text = second.recipe.read_text()
    more = "title: Mine\nseed: 1\nteacher: {weights: offloaded}\n"  # what no result depends on
    second.recipe.write_text(more + text.replace("batch: 32}]", "batch: 32, activation_checkpointing: true}]"))
    compared(first, second, finished(root, "sft"))
    second.recipe.write_text(text.replace("steps: 300", "steps: 400"))
    second.record.write_text(json.dumps(second.info() | {"inputs": {"student.vision": "other"}}))
    with pytest.raises(UserError) as refused:
        compared(first, second, RunFolder(root / "quick" / "sft" / "seed0"))
    assert refused.value.problems == (
        f"{second.path}: stages.distill.steps is 400, that of {first.path} is 300",
        f"{second.path}: inputs.student.vision is other, that of {first.path} is None",
    )
    other = finished(root, "vsd")
    other.recipe.write_text(second.recipe.read_text())  # another row may have them
    compared(first, other)


def test_rows_of_one_title_are_told_apart_in_notes_and_a_run_that_is_named_twice_counts_once(root):
    ours, theirs = finished(root, "sft"), finished(root, "vsd")
    theirs.record.write_text(json.dumps(theirs.info() | {"title": "SFT"}))
    results = json.loads(ours.results.read_text())
    results["scores"]["gqa"]["unreadable"] = 3
    ours.results.write_text(json.dumps(results))
    report = compared(ours, theirs, ours)
    (note,) = [note for note in report.notes if "can't be read" in note]
    assert note.endswith(f"{ours.path.parent}: SFT 3 of 40")


def test_what_changed_while_a_run_trained_stands_below_its_table(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    ours.record.write_text(json.dumps(ours.info() | {"key": "", "changed": ["data.rows.images"]}))
    report = compared(ours, theirs)
    assert any(note.endswith("changed while it ran, so it is never reused: data.rows.images") for note in report.notes)


def test_answers_that_were_not_kept_leave_no_test_and_it_is_said(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    (theirs.answers / "gqa.jsonl").unlink()
    report = compared(ours, theirs)
    found = table(report, "Switch-KD minus SFT")
    assert found["GQA"]["p"] is found["GQA"]["95 % items"] is found["Avg"]["p"] is None
    assert found["VQAv2"]["p"] is not None and found["GQA"]["difference"] is not None
    assert f"GQA: answers not kept, no test over items: {theirs.path}" in report.notes


def test_answers_that_do_not_give_the_score_are_not_tested(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    lines = stored(theirs, "gqa")
    lines[3]["score"] = 1 - lines[3]["score"]
    write(theirs, "gqa", lines)
    report = compared(ours, theirs)
    assert table(report, "Switch-KD minus SFT")["GQA"]["p"] is None
    assert any(note.startswith("GQA: no test over items: the answers of") for note in report.notes)


def test_training_with_other_versions_is_noted(root):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    for folder, version in ((ours, "2.13"), (theirs, "2.12")):
        folder.record.write_text(json.dumps(folder.info() | {"versions": {"torch": version, "numpy": "2"}}))
    notes = compared(ours, theirs).notes
    assert "not trained with the same torch: 2.13: Switch-KD; 2.12: SFT" in notes
    assert not any("numpy" in note for note in notes)


def test_the_protocol_stands_beside_every_column(root):
    found = table(compared(finished(root, "sft")), "protocol")
    assert found["VQAv2"]["split"] == "playground, test (paper: test-dev)"
    assert found["POPE"]["metric"] == "pope_f1_score" and "F1" in found["POPE"]["scale"]
    assert found["GQA"]["OCR"] == "off"


def test_the_protocol_says_where_the_paper_differs(root):
    folder = made.run(root, "sft", "SFT", dict.fromkeys(BENCHMARKS, 1.0), world="hub")
    found = table(comparison([read(folder)], None), "protocol")
    assert found["TextVQA"]["OCR"] == "off (paper: on)"
    assert found["GQA"]["split"] == "testdev (paper: test-dev, balanced)"
    assert "points / 2000" in found["MME"]["scale"]
    assert "MMBench server" in found["MMB-CN"]["scored by"]
    assert list(found) == [row.column for row in BENCHMARKS.values()]
    assert found["MMVP"]["split"] == "train (paper: none)" and "sacrebleu" in found["Captions"]["scored by"]
    notes = {task: row.note for task, row in BENCHMARKS.items() if row.column.startswith("MMB")}
    assert all("LLaVA-1.5's prompts" in note and "several options" in note for note in notes.values())
    assert "in other words" in notes["mmbench_cn_dev"]


def test_mme_on_the_papers_scale():
    """LLaVA-1.5's 1510.7 points of ten categories are printed as 75.5."""
    assert BENCHMARKS["mme"].score(1510.7, 10) == pytest.approx(75.5, abs=0.05)
    assert BENCHMARKS["gqa"].score(0.62) == pytest.approx(62.0)
    assert BENCHMARKS["mmbench_en_dev"].score(64.3) == pytest.approx(64.3)


def test_seeds_in_words():
    assert [seeds_in_words(s) for s in ([1], [1, 2], [1, 2, 3], [1, 3, 4])] == [
        "seed 1",
        "seeds 1, 2",
        "seeds 1-3",
        "seeds 1, 3, 4",
    ]


@pytest.fixture
def report(root):
    return compared(*(finished(root, row, seed) for row in ("switch-kd", "sft") for seed in (1, 2)))


def cells(report):
    return [
        (t, line, column, cell)
        for t in report.tables
        for line in t.lines
        for column, cell in zip(t.columns[1:], line.cells, strict=True)
    ]


def test_csv_has_a_line_for_each_cell_with_unrounded_numbers(report):
    rows = list(csv.DictReader(io.StringIO(show.to_csv(report))))
    body = [row for row in rows if row["table"] != "notes"]
    assert [row["text"] for row in rows if row["table"] == "notes"] == list(report.notes)
    for row, (t, line, column, cell) in zip(body, cells(report), strict=True):
        assert (row["table"], row["line"], row["column"]) == (t.title, line.name, column)
        if isinstance(cell, Number | Probability):
            assert float(row["value"]) == cell.value
        if isinstance(cell, Interval):
            assert (float(row["low"]), float(row["high"])) == (cell.low, cell.high)


def test_every_form_holds_every_number(report):
    texts = {str(cell) for *_, cell in cells(report) if isinstance(cell, Number | Interval)}
    assert len(texts) > 20
    for name, write_as in show.FORMATS.items():
        if name != "json":
            written = write_as(report)
            if name == "latex":
                written = written.replace(r"\(\pm\)", "±").replace(r"\(-\)", "-")
            if name == "markdown":
                written = written.replace(r"\[", "[").replace(r"\]", "]")
            assert all(text in written for text in texts)
    known = json.loads(show.FORMATS["json"](report))
    assert [t["title"] for t in known["tables"]] == [t.title for t in report.tables]


@pytest.mark.parametrize(
    ("name", "file", "form"),
    [(None, None, None), ("csv", None, "csv"), (None, "t.tex", "latex"), ("json", "t.txt", "json")],
)
def test_the_form_is_the_one_named_or_the_files(tmp_path, name, file, form):
    assert show.chosen_format(name, tmp_path / file if file else None) == form


def test_wrong_forms_and_files_are_named_at_once(tmp_path):
    with pytest.raises(UserError) as refused:
        show.chosen_format("latx", tmp_path / "no" / "where.tex")
    assert refused.value.problems == (
        "--format: unknown, got 'latx' (did you mean 'latex'?)",
        f"--out-file: {tmp_path / 'no'} is no folder",
    )
    with pytest.raises(UserError, match="which format"):
        show.chosen_format(None, tmp_path / "table.doc")


def test_the_command_writes_the_file_and_nothing_beside_the_runs(root, tmp_path, monkeypatch, capsys):
    ours, theirs = finished(root, "switch-kd"), finished(root, "sft")
    monkeypatch.setattr(RunFolder, "run", made.planned_without_teacher)
    before = sorted(root.rglob("*"))
    names = [str(ours.path), str(theirs.path)]
    compare(CompareOptions(names, out=root, out_file=tmp_path / "table.md"))
    assert "| GQA |" in (tmp_path / "table.md").read_text() and capsys.readouterr().out == ""
    compare(CompareOptions(names, out=root, form="csv", against="switch-kd"))
    assert "SFT minus Switch-KD" in capsys.readouterr().out
    assert sorted(root.rglob("*")) == before
