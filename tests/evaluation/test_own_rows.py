"""One's own held-out rows as a benchmark: asked one by one, scored item by item, compared like any other."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

pytest.importorskip("lmms_eval")

from switchkd_cli.commands.evaluate import _own_rows as own_rows_of
from switchkd_cli.commands.evaluate import evaluate as eval_command
from switchkd_cli.commands.options import EvalOptions
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel
from switchkd_cli.engine.evaluation.own_rows import scores
from switchkd_cli.engine.evaluation.score_model import check as check_evaluation
from switchkd_cli.engine.evaluation.score_model import majority, score_request
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.run import Fingerprints
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.recipe.validate import check
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.stats import significance
from switchkd_cli.report.stats.stored_answers import read_answers, units
from switchkd_cli.report.tables.comparison import comparison
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import tiny

FREE = ("rows.exact", "rows.anls", "rows.relaxed", "rows.f1")


def asked(folder: Path, *benchmarks: str, turns: str = "independent", **changes) -> Evaluation:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(tiny.rows(folder)))
    parameters = {"file": str(folder / "rows.json"), "images": str(folder), "turns": turns}
    data = {"source": "llava_json", "parameters": parameters}
    return Evaluation(**{"world": "rows", "data": data, "benchmarks": benchmarks or FREE, **changes})


class Says(LmmsModel):
    def __init__(self, say) -> None:
        super().__init__()
        self.say = say

    def answer(self, items: list[Item]) -> list[str]:
        return [self.say(item) for item in items]


def test_each_question_of_a_row_is_an_item_with_the_rows_image(tmp_path: Path) -> None:
    found = score_request(Says(lambda item: item.target.upper()), asked(tmp_path), tmp_path)
    assert found["world"] == "rows"
    assert {name: (of["score"], of["items"]) for name, of in found["scores"].items()} == dict.fromkeys(FREE, (100.0, 7))
    lines = read_answers(tmp_path / "answers", "rows.exact")
    assert [line["prompt"] for line in lines[:3]] == ["What is it?", "How many?", "Say hi."]
    assert len({line["image"] for line in lines}) == 4  # a, c, d and none
    assert lines[0]["image"] == lines[1]["image"] and lines[2]["image"] is None


def test_only_the_first_questions(tmp_path: Path) -> None:
    found = score_request(Says(lambda item: "no"), asked(tmp_path, "rows.exact", items=3), tmp_path)
    assert found["scores"]["rows.exact"]["items"] == 3


@pytest.mark.parametrize(
    ("metric", "answer", "target", "score"),
    [
        ("exact", " Three  red Apples", "three red apples", 1.0),
        ("exact", "three red apples.", "three red apples", 0.0),
        ("anls", "three red apple", "three red apples", 1 - 1 / 16),
        ("anls", "four", "three red apples", 0.0),  # less than half of it
        ("relaxed", "104", "100", 1.0),
        ("relaxed", "106", "100", 0.0),
        ("f1", "red apples, two", "three red apples", 2 / 3),
        ("f1", "", "cat", 0.0),
    ],
)
def test_a_metric(metric: str, answer: str, target: str, score: float) -> None:
    assert scores(metric, [answer], [target]) == [pytest.approx(score)]


def test_cider_prefers_the_right_caption() -> None:
    pytest.importorskip("pycocoevalcap")
    captions = ["a red cat on a mat", "two dogs in the snow", "a bus at a red light"]
    assert scores("cider", captions, captions) == pytest.approx([10.0, 10.0, 10.0])
    assert scores("cider", [captions[0], "a bus!", captions[1]], captions)[1:] == pytest.approx([0.0, 0.0])


def test_cider_says_what_it_needs_before_anything_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rows.cider needs pycocoevalcap .* not installed") as error:
        preflight.check_metrics(asked(tmp_path, "rows.cider"))
    assert error.value.hint == "pip install --no-deps pycocoevalcap"
    preflight.check_metrics(asked(tmp_path, "rows.exact"))


def test_the_majority_answer_is_scored_too(tmp_path: Path) -> None:
    question = asked(tmp_path / "rows", "rows.exact")
    fields = {name: getattr(question, name) for name in Evaluation.model_fields}
    found = majority(folder=tmp_path / "majority", **fields)
    # a constant for each kind: "no", and one of six words
    assert found["scores"]["rows.exact"]["score"] == pytest.approx(100 * 2 / 7)


def test_a_conversation_is_refused_and_every_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:  # before a model is trained or loaded
        check_evaluation(asked(tmp_path, turns="chained"))
    assert [problem.split(":")[1] for problem in error.value.problems] == [" row a", " row c"]


def test_compare_draws_the_images_of_rows_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 199)
    runs = []
    for name, say in {"right": lambda item: item.target, "no": lambda item: "no"}.items():
        folder = RunFolder(tmp_path / name)
        results = score_request(Says(say), asked(tmp_path / "rows", "rows.exact", "rows.f1"), folder.path)
        write_json(folder.results, {"model": name, **results})
        runs.append(read(folder))
    for run in runs:
        made = units("rows.f1", read_answers(run.path / "answers", "rows.f1"))
        assert len(made.gained) == 4 and made.score == pytest.approx(run.scores["rows.f1"])
    report = comparison(runs, None, against="no")
    table = next(table for table in report.tables if table.title.startswith("right minus no"))
    lines = {line.name: dict(zip(table.columns[1:], line.cells, strict=True)) for line in table.lines}
    assert str(lines["rows.exact"]["difference"]) == "+85.7"
    # without any of the paper's benchmarks, the average is that of the rows' metrics
    points = [run.scores for run in runs]
    expected = sum(points[0][name] - points[1][name] for name in ("rows.exact", "rows.f1")) / 2
    assert lines["Avg"]["difference"].value == pytest.approx(expected)
    assert 0 < lines["rows.exact"]["p"].value < 0.2
    assert any("questions on images, which are drawn and exchanged whole: rows.exact 7 on 4" in n for n in report.notes)


def test_other_rows_or_images_are_another_question(tmp_path: Path) -> None:
    question = asked(tmp_path)
    before = Fingerprints().evaluation(question)
    tiny.picture(tmp_path, "a.png", seed=9)
    after = Fingerprints().evaluation(question)
    changed = [field for field in before if before[field] != after[field]]
    assert changed == ["evaluation.data.images"]
    (tmp_path / "rows.json").write_text(json.dumps(tiny.rows(tmp_path)[:2]))
    assert Fingerprints().evaluation(question)["evaluation.data.file"] != before["evaluation.data.file"]


def test_a_recipe_names_what_is_missing() -> None:
    def problems(**evaluation) -> dict:
        return {path[1:]: text for path, text in check({"evaluation": evaluation}) if path[0] == "evaluation"}

    rows = {"source": "llava_json", "parameters": {"file": "rows.json"}}
    assert problems(world="rows", benchmarks=["rows.exact"], data=rows) == {}
    assert problems(world="rows", benchmarks=["rows.exact"]) == {("data",): "missing: rows.exact asks its rows"}
    assert problems(world="rows", benchmarks=["rows.exat"], data=rows) == {
        ("data",): "no benchmark asks its rows: name rows.exact, rows.anls ...",
        ("benchmarks", 0): "unknown benchmark, got 'rows.exat' (did you mean 'rows.exact'?)",
    }
    found = problems(world="rows", benchmarks=["gqa", "rows.f1"], data=rows | {"sourc": 1, "source": "llava"})
    assert found[("data", "source")].startswith("unknown source, got 'llava'")
    assert found[("benchmarks", 0)] == "is none of one's own rows, got 'gqa' with world: rows"
    of_csv = {"source": "hugging_face", "parameters": {"dataset": "mine", "format": {"question": "q", "answer": "a"}}}
    found = problems(world="rows", benchmarks=["rows.exact"], data=of_csv)
    assert found == {("data", "parameters", "format", "question"): "must be a list, got 'q'"}


def test_rows_next_to_the_playground_s_own_questions(tmp_path: Path) -> None:
    question = asked(tmp_path, "gqa", "rows.exact", world="playground", items=4)
    found = score_request(Says(lambda item: item.target), question, tmp_path)
    assert {name: entry["items"] for name, entry in found["scores"].items()} == {"gqa": 4, "rows.exact": 4}


def test_the_command_names_an_unknown_metric(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown benchmark, got 'rows.exat' \(did you mean 'rows.exact'\?\)"):
        eval_command(EvalOptions(data=tmp_path / "rows.json", metric=["exat,f1"]))


@pytest.mark.parametrize("form", ["llava_json", "messages"])
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_the_command_finds_the_form_of_rows(tmp_path: Path, form: str, ending: str) -> None:
    key = {"llava_json": "conversations", "messages": "messages"}[form]
    rows = [{"id": "a", key: [{"from": "human", "value": "What are messages?"}]}]
    file = tmp_path / f"rows.{ending}"
    if ending == "json":
        file.write_text(json.dumps(rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert own_rows_of(EvalOptions(data=file))["source"] == form
