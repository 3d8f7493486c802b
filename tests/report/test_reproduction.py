"""The report of recipes: its numbers, its words on missing runs, and that its page needs no other file."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from switchkd_cli import cli
from switchkd_cli.benchmarks import ANSWER_KINDS, BENCHMARKS, TEN
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.report.document import Document, Facts, Line, Number, Table, Text
from switchkd_cli.report.formats.markup import to_html, to_markdown
from switchkd_cli.report.paper.findings import FINDINGS, Finding, check_findings
from switchkd_cli.report.reproduction.write import command, compose, write_report
from switchkd_cli.report.results.recipe_runs import control_of, gather
from switchkd_cli.report.stats import significance
from switchkd_cli.report.tables.columns import AVERAGE
from tests.support import made_up_report as made

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 200)


@pytest.fixture
def file(tmp_path):
    return made.recipe(tmp_path)


@pytest.fixture
def root(tmp_path, file):
    made.finished(tmp_path / "runs", file)
    return tmp_path / "runs"


class NoModels:
    def knee_position(self, folder):
        return None

    def attention_examples(self, folders):
        return []


def composed(root, *files):
    return compose([gather(file, None, root) for file in files], {})


def chapter(document):
    return next(section for section in document.sections if section.anchor == "components")


def tables(section):
    own = [block for block in section.blocks if isinstance(block, Table)]
    return own + [table for part in section.sections for table in tables(part)]


def table(document, head):
    """The chapter's table whose first head is this, as {line: {column: cell}}."""
    found = next(table for table in tables(chapter(document)) if table.columns[0] == head)
    return {line.name: dict(zip(found.columns[1:], line.cells, strict=True)) for line in found.lines}


def callouts(section):
    return [block.words for block in section.blocks if isinstance(block, Text) and block.tone == "problem"]


def half(values):
    if np.ptp(values) == 0:
        return 0.0
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return (high - low) / 2


def test_scores_are_means_of_the_results_files_with_their_intervals(root, file):
    found = table(composed(root, file), "row")
    for row, title in (("switch-kd", "Switch-KD"), ("sft", "SFT")):
        for i, task in enumerate(made.TASKS):
            scores = made.stored(root, row)[:, i]
            cell = found[title][BENCHMARKS[task].column]
            assert (cell.value, cell.interval) == pytest.approx((scores.mean(), half(scores)))
        assert found[title]["Avg"].value == pytest.approx(made.stored(root, row).mean())


def test_the_page_prints_those_numbers_and_no_other(root, file, tmp_path):
    """Every number of the Markdown's table of scores, and those of the results files worked out once more."""
    _, text = texts(composed(root, file), tmp_path)
    printed = text.split("### Scores")[1].split("0 to 100")[0].split("---: |\n", 1)[1]
    expected = []
    for row in made.RIGHT:
        scores = made.stored(root, row)
        for values in (*scores.T, made.accuracies(root, row), scores.mean(axis=1)):
            expected += [f"{values.mean():.1f}", f"{half(values):.1f}"]
    assert sorted(re.findall(r"\d+\.\d+", printed)) == sorted(expected)


def test_accuracy_and_rows_of_one_word_stand_with_the_scores(root, file, tmp_path):
    for seed in (0, 1, 2):
        results = root / "components" / "align" / f"seed{seed}" / "results.json"
        stored = json.loads(results.read_text())
        stored["scores"]["pope"] |= {"yes": 0, "no": 12, "accuracy": 50.0 + seed}
        results.write_text(json.dumps(stored))
    document = composed(root, file)
    found = table(document, "row")["Align"]["POPE acc."]
    assert (found.value, found.interval, found.counted) == (51.0, pytest.approx(half([50, 51, 52])), False)
    assert table(document, "minus SFT")["Align"]["POPE acc."].seeds == 3
    for text in texts(document, tmp_path):
        assert "95 % or more of the readable answers: Align 36 of 36" in text
        assert "(POPE acc.): accuracy, in no average" in text


def test_the_command_makes_the_same_runs(root, file):
    shutil.rmtree(root / "components" / "align")
    recipe = gather(file, None, root)
    words = command(recipe).split()
    assert words == [
        *("switchkd", "ablate", str(file), "--rows", "switch-kd,sft,sft-frozen,sft-compute"),
        *("--seeds", "3", "--out", str(root)),
    ]


def test_every_row_is_measured_by_sft_at_equal_steps_and_at_equal_compute(root, file):
    document = composed(root, file)
    for head, control in (("minus SFT", "sft"), ("minus Long SFT", "sft-compute")):
        found = table(document, head)
        gains = (made.stored(root, "align") - made.stored(root, control)).mean(axis=1)
        cell = found["Align"]["Avg"]
        assert (cell.value, cell.interval) == pytest.approx((gains.mean(), half(gains)))
    assert "SFT" not in table(document, "minus SFT")


def test_kinds_of_answer_are_measured_apart(root, file):
    found = next(table for table in tables(chapter(composed(root, file))) if "open questions" in table.columns)
    assert found.columns[1::3] == tuple(ANSWER_KINDS.values())
    line = next(line for line in found.lines if line.name == "Switch-KD")
    gains = (made.stored(root, "switch-kd") - made.stored(root, "sft"))[:, 0]
    assert line.cells[1].value == pytest.approx(gains.mean())


def test_each_benchmark_asks_for_one_kind_of_answer():
    kinds = {kind: {BENCHMARKS[task].column for task in TEN if BENCHMARKS[task].asks == kind} for kind in ANSWER_KINDS}
    assert kinds["open"] == {"VQAv2", "GQA", "TextVQA", "VizWiz"}
    assert kinds["choice"] == {"MMB", "MMB-CN", "SciQA", "MMMU"}
    assert kinds["yes-no"] == {"MME", "POPE"}


def test_the_papers_numbers_stand_in_a_table_of_their_own(root, file):
    own = [table for table in tables(chapter(composed(root, file))) if table.source == "paper"]
    assert [table.columns[0] for table in own] == ["as printed"]
    assert [line.name for line in own[0].lines] == ["Switch-KD", "Align", "Frozen SFT"]


def test_what_the_teachers_parts_would_give_stands_in_a_table(root, file):
    (found,) = [table for table in tables(chapter(composed(root, file))) if "teacher's eyes" in table.columns]
    lines = {line.name: dict(zip(found.columns[1:], line.cells, strict=True)) for line in found.lines}
    assert {line["eyes"] for line in lines.values()} == {"+10.0"}
    assert {line["interaction"] for line in lines.values()} == {"+40.0"}
    assert {line["grey image"] for line in lines.values()} == {"25.0"}
    assert {line["another image"] for line in lines.values()} == {None}, "not measured: no number"
    assert "(questions, held out)" in found.caption
    (found,) = [table for table in tables(chapter(composed(root, file))) if "CKA" in table.columns]
    for line in (dict(zip(found.columns[1:], line.cells, strict=True)) for line in found.lines):
        assert (line["agree, %"], line["CKA"], line["image, %"]) == ("75.0", "0.625", "37.5")
        assert line["teacher's image, %"] is line["faded image"] is None


def texts(document, folder):
    return to_html(document, folder), to_markdown(document)


def test_without_its_results_a_run_leaves_no_number(root, file, tmp_path):
    """One row gets scores that no other can have; they go when its files do."""
    for seed in (0, 1, 2):
        results = root / "components" / "align" / f"seed{seed}" / "results.json"
        content = json.loads(results.read_text())
        content["scores"]["mmmu_val"]["score"] = 77.7
        content["fidelity"]["agreement"] = 0.888
        results.write_text(json.dumps(content))
    for text in texts(composed(root, file), tmp_path):
        assert "77.7" in text and "88.8" in text
    for seed in (0, 1, 2):
        (root / "components" / "align" / f"seed{seed}" / "results.json").unlink()
    for text in texts(composed(root, file), tmp_path):
        assert "77.7" not in text and "88.8" not in text
        assert "3 runs are missing: Align: finished without scores, seeds 0-2" in text


def test_what_did_not_finish_is_counted_and_named(root, file):
    failed = root / "components" / "align" / "seed1"
    record = json.loads((failed / "run.json").read_text())
    (failed / "run.json").write_text(json.dumps(record | {"status": "failed"}))
    shutil.rmtree(root / "components" / "sft" / "seed2")
    document = composed(root, file)
    assert table(document, "row")["Align"]["seeds"] == "2 of 3"
    assert callouts(chapter(document)) == ["2 runs are missing: Align: failed, seed 1; SFT: never started, seed 2."]
    assert any("1 failed, 1 never started" in words for words in callouts(document))


def test_a_row_that_failed_with_every_seed_keeps_its_line_and_one_that_was_not_run_is_named(root, file):
    shutil.rmtree(root / "components" / "sft-frozen")
    for record in (root / "components" / "align").glob("seed*/run.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "failed"}))
    document = composed(root, file)
    found = table(document, "row")
    assert found["Align"]["seeds"] == "0 of 3" and found["Align"]["Avg"] is None
    assert "Frozen SFT" not in found
    assert "Not run: Frozen SFT." in chapter(document).blocks[0].words


def test_a_run_that_two_rows_share_is_counted_once(root, file):
    for seed in (0, 1, 2):
        record = root / "components" / "align" / f"seed{seed}" / "run.json"
        made_as = {"reused": {"from": f"components/sft/seed{seed}"}}
        record.write_text(json.dumps(json.loads(record.read_text()) | made_as))
    facts = dict(next(block for block in composed(root, file).blocks if isinstance(block, Facts)).pairs)
    assert facts["In common"].startswith("3 of them")
    assert facts["Training"].startswith(f"{12 * 21} s")  # 21 seconds a run


def test_the_commands_as_typed_are_listed_once(root, file, tmp_path):
    for text in texts(composed(root, file), tmp_path):
        assert "The commands as typed:" in text and text.count("switchkd ablate x") == 1


def test_the_protocol_says_whose_tasks_they_are(root, file, tmp_path):
    for text in texts(composed(root, file), tmp_path):
        assert "protocol: stock tasks of lmms" in text


def test_without_any_run_there_is_no_report(file, tmp_path):
    with pytest.raises(UserError, match="no finished run with scores of components") as refused:
        list(write_report([file], None, tmp_path / "none", tmp_path / "out", NoModels))
    assert refused.value.hint == f"switchkd ablate {file} --seeds 1"
    assert not (tmp_path / "out").exists()


def test_runs_that_were_asked_other_questions_are_in_no_table_finding_or_figure(root, file, tmp_path):
    results = root / "components" / "align" / "seed1" / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"split": "hard"}))
    found = chapter(composed(root, file))
    assert any("can't be compared" in words and "split is hard" in words for words in callouts(found))
    assert not tables(found)
    claim = Finding("x", "S", "s", ["components"], "align", "sft", None)
    (checked,) = check_findings([gather(file, None, root)], [claim])
    assert checked.verdict.tone == "untested" and "can't be compared" in checked.verdict.text
    list(write_report([file], None, root, tmp_path / "out", NoModels))
    assert not list((tmp_path / "out").rglob("*.svg"))


def test_a_discredited_benchmark_is_greyed_and_in_no_average(root, file, tmp_path):
    recipe = gather(file, None, root)
    entry = {task: {"score": 50.0, "items": made.ITEMS} for task in made.TASKS}
    asked = {
        "world": "playground",
        "split": "test",
        "sets_key": "k",
        "scores": entry,
        "versions": {"lmms-eval": "0.7.3"},
    }
    teacher = {"teacher": asked, "blind": asked, "majority": asked, "not_beaten": {"pope": ["blind"]}}
    object.__setattr__(recipe, "teacher", teacher)
    document = compose([recipe], {})
    line = table(document, "row")["Switch-KD"]
    assert not line["POPE"].counted
    assert line["Avg"].value == pytest.approx(made.stored(root, "switch-kd")[:, :2].mean())
    page, text = texts(document, tmp_path)
    assert re.search(r'<td class="n out">\(\d', page) and re.search(r"\| \(\d+\.\d ± ", text)


def test_runs_of_another_recipe_text_are_reported(root, tmp_path):
    changed = made.recipe(
        tmp_path,
        (
            "title: Long SFT, drop: [align, vsd], set: {stages.distill.steps: 50}",
            "title: Long SFT, drop: [align, vsd], set: {stages.distill.steps: 60}",
        ),
    )
    assert gather(changed, None, root).changed_rows == ("Long SFT",)


def test_warnings_are_reported_once_and_counted_over_seeds(root, file, tmp_path):
    for seed, text in ((0, "k sits at its clamp at 41 %"), (2, "k sits at its clamp at 43 %")):
        line = {"event": "warning", "about": "k", "text": text}
        with (root / "components" / "align" / f"seed{seed}" / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps(line) + "\n")
    for text in texts(composed(root, file), tmp_path):
        assert "Align, 2 of 3 runs: k sits at its clamp at 41 %" in text and "43 %" not in text


def test_what_could_have_been_found_stands_beside_what_is_not_clear(root, file, tmp_path):
    document = composed(root, file)
    cell = table(document, "minus SFT")["Align"]["GQA"]
    assert cell.side == 0 and cell.ends.mde == f"MDE {cell.detectable:.1f}"
    page, text = texts(document, tmp_path)
    assert f"<small>{cell.ends.mde}</small>" in page and f"{cell.spread}, {cell.ends.mde}" in text
    for written in (page, text):
        assert f"Align ({table(document, 'minus SFT')['Align']['Avg'].ends.mde})" in written
        assert "minimum detectable effect" in written


def test_answers_that_no_metric_reads_are_reported_beside_the_scores(root, file, tmp_path):
    for seed in (0, 1):
        results = root / "components" / "align" / f"seed{seed}" / "results.json"
        stored = json.loads(results.read_text())
        stored["scores"]["pope"] |= {"unreadable": 12 * seed, "example": "Yes.", "empty": 1}
        results.write_text(json.dumps(stored))
    scores = next(part for part in chapter(composed(root, file)).sections if part.title == "Scores")
    (warned,) = callouts(scores)
    assert warned.startswith("warning: POPE: ") and "Align 12 of 36 (e.g. 'Yes.')" in warned
    for text in texts(composed(root, file), tmp_path):
        assert "Align 12 of 36" in text and "POPE: answers that are empty: Align 2 of 36" in text


def test_one_seed_has_no_interval_and_calls_nothing_clear(file, tmp_path):
    made.finished(tmp_path / "one", file, seeds=[0])
    document = composed(tmp_path / "one", file)
    assert table(document, "row")["Align"]["Avg"].spread == ""
    assert str(table(document, "minus SFT")["Switch-KD"]["GQA"]).endswith("± ? not clear")
    _, text = texts(document, tmp_path)
    assert "Clearly above on average: none. Clearly below: none." in text and "| **+" not in text


def test_differences_are_drawn_on_one_scale_with_zero(tmp_path):
    lines = tuple(
        Line(name, (Number(value, half, 3, difference=True),))
        for name, value, half in (("a", 4.0, 1.0), ("b", -2.0, 3.0))
    )

    def drawn(**more):
        page = to_html(Document("gains", (Table(("row", "difference"), lines, **more),)), tmp_path)
        return dict(zip("ab", re.findall(r"<svg.*?</svg>", page), strict=False))

    marks = drawn(plotted="difference")
    at = {name: float(re.search(r'cx="([\d.]+)"', svg)[1]) for name, svg in marks.items()}
    zeros = {re.search(r'class="zero" x1="([\d.]+)"', svg)[1] for svg in marks.values()}
    assert len(zeros) == 1 and at["b"] < float(*zeros) < at["a"]
    assert (at["a"] - at["b"]) / (at["a"] - float(*zeros)) == pytest.approx(6 / 4, rel=0.01)
    assert "whisker up" in marks["a"] and "whisker unclear" in marks["b"]
    assert drawn() == {}


class Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                self.links.append(value)


def test_the_page_stands_alone(root, file, tmp_path):
    out = tmp_path / "report"
    said = list(write_report([file], None, root, out, NoModels))
    assert sum(line.startswith("report: ") for line in said) == 2
    parts = Parts()
    page = (out / "report.html").read_text()
    parts.feed(page)
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(parts.tags)
    assert all(link.startswith(("#", "data:image/")) for link in parts.links)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert parts.tags.count("svg") >= 3 and len(parts.ids) == len(set(parts.ids))
    assert {link[1:] for link in parts.links if link.startswith("#")} <= set(parts.ids)
    pictures = re.findall(r"!\[.*?\]\(<(.*?)>\)", (out / "report.md").read_text())
    assert pictures and all((out / picture).is_file() for picture in pictures)


def test_words_of_a_recipe_are_no_markup(tmp_path):
    file = made.recipe(tmp_path, ("title: Align,", "title: '<script>alert(1)</script> *V_S* | x',"))
    made.finished(tmp_path / "runs", file)
    page, text = texts(composed(tmp_path / "runs", file), tmp_path)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert r"\<script>alert(1)\</script> \*V\_S\* \| x" in text


def judged(root, file, ours, theirs, **more):
    finding = Finding("a claim", "S", "somewhere", ("elsewhere", "components"), ours, theirs, 1.0, **more)
    return check_findings([gather(file, None, root)], [finding])[0]


def test_a_finding_agrees_or_is_opposite_where_the_interval_leaves_0_out(root, file):
    found = judged(root, file, "switch-kd", "sft-frozen")
    gains = (made.stored(root, "switch-kd") - made.stored(root, "sft-frozen")).mean(axis=1)
    assert (found.difference.value, found.difference.interval) == pytest.approx((gains.mean(), half(gains)))
    assert found.verdict.tone == "agrees"
    assert judged(root, file, "sft-frozen", "switch-kd").verdict.tone == "opposite"


def test_a_finding_on_one_benchmark_is_measured_there(root, file):
    found = judged(root, file, "switch-kd", "sft", benchmark="gqa")
    gains = (made.stored(root, "switch-kd") - made.stored(root, "sft"))[:, 0]
    assert found.difference.value == pytest.approx(gains.mean())


def test_rows_called_alike_must_be_shown_to_be(root, file, tmp_path):
    assert judged(root, file, "switch-kd", "sft-frozen", alike=True).verdict.tone == "opposite"
    assert judged(root, file, "align", "sft", alike=True).verdict.tone == "unclear"
    made.finished(tmp_path / "same", file, right={**made.RIGHT, "switch-kd": made.RIGHT["sft"]})
    assert judged(tmp_path / "same", file, "switch-kd", "sft", alike=True).verdict.tone == "agrees"


def test_a_finding_that_nothing_tests_says_why(root, file, tmp_path):
    assert "no finished run of vsd" in judged(root, file, "switch-kd", "vsd").verdict.text
    for seed in (1, 2):
        for row in ("switch-kd", "align"):
            shutil.rmtree(root / "components" / row / f"seed{seed}")
    assert judged(root, file, "switch-kd", "align").verdict.text == "not clear (one seed)"
    both = [root / "components" / row / "seed0" / "run.json" for row in ("switch-kd", "align")]
    both[1].write_text(json.dumps(json.loads(both[1].read_text()) | {"key": json.loads(both[0].read_text())["key"]}))
    assert "one and the same run" in judged(root, file, "switch-kd", "align").verdict.text


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.claim)
def test_findings_name_rows_that_are_there_and_print_what_the_paper_does(finding):
    for name in finding.recipes:
        files = (folder / f"{name}.yaml" for folder in (RECIPES, RECIPES / "methods"))
        rows = {run.row: run.paper for run in load_rows(next(file for file in files if file.exists()))}
        ours, theirs = rows[finding.ours], rows[finding.theirs]
        if finding.benchmark in ours and finding.benchmark in theirs and name != "quickstart":
            assert finding.printed == pytest.approx(ours[finding.benchmark] - theirs[finding.benchmark], abs=0.051)
        else:
            assert finding.benchmark == AVERAGE or name == "quickstart"


# All rows of candidates.yaml and ours.yaml take equal operations, those of real_vocabulary*.yaml equal steps.
ONE_BUDGET = {
    "candidates": ("compute",),
    "ours": ("compute",),
    "real_vocabulary": ("steps",),
    "real_vocabulary_pictures": ("steps",),
}
TABLES = [file for file in sorted(RECIPES.glob("*.yaml")) if file.stem not in ONE_BUDGET]


@pytest.mark.parametrize("stem", ONE_BUDGET)
def test_a_recipe_of_one_budget_has_the_control_of_that_budget(stem):
    rows = load_rows(RECIPES / f"{stem}.yaml")
    assert tuple(kind for kind in ("steps", "compute") if control_of(rows, rows[0].row, kind)) == ONE_BUDGET[stem]


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_each_recipe_has_both_controls_for_the_row_that_it_studies(file):
    rows = load_rows(file)
    length = {run.row: run.config.stages[-1].steps or run.config.stages[-1].epochs for run in rows}
    steps, compute = (control_of(rows, rows[0].row, kind) for kind in ("steps", "compute"))
    assert length[steps] == length[rows[0].row] < length[compute]
    assert control_of(rows, steps, "steps") is None and control_of(rows, compute, "compute") is None


def test_each_student_is_measured_by_its_own_sft():
    rows = load_rows(RECIPES / "teacher_size.yaml")
    assert control_of(rows, "t7-large", "steps") == "sft-large" and control_of(rows, "t7-small", "steps") == "sft-small"


def test_a_number_is_bold_only_where_its_interval_leaves_0_out(root, file, tmp_path):
    _, text = texts(composed(root, file), tmp_path)
    gains = re.findall(r"\| (\**)([-+]\d+\.\d) ± (\d+\.\d)", text)
    assert {bool(stars) for stars, *_ in gains} == {True, False}
    assert all(bool(stars) == (abs(float(value)) > float(spread)) for stars, value, spread in gains)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--report: no recipe is named"),
        (("{recipe}", "--format", "csv"), "--format: can't be combined with --report, which chooses it itself"),
        (("{run}",), "{run}: a run folder; a report is of recipes"),
        (("componets",), "componets: no recipe has this name"),
    ],
)
def test_wrong_input_is_reported(root, file, tmp_path, monkeypatch, capsys, arguments, problem):
    places = {"recipe": str(file), "run": str(root / "components" / "sft" / "seed0")}
    words = [word.format(**places) for word in arguments]
    monkeypatch.setattr(
        "sys.argv", ["switchkd", "compare", *words, "--out", str(root), "--report", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert problem.format(**places) in capsys.readouterr().err
