"""One's own held-out rows as a benchmark: asked one by one, scored item by item, compared like any other."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

pytest.importorskip("lmms_eval")

from switchkd_cli.commands.evaluate import _own_rows as own_rows_of
from switchkd_cli.commands.evaluate import evaluate as eval_command
from switchkd_cli.commands.options import EvalOptions
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel
from switchkd_cli.engine.evaluation.own_rows import exposure, scores
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
from switchkd_cli.report.stats.stored_answers import read_answers, readable, units
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


@pytest.mark.parametrize(
    ("nats", "bits"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2.0),  # the likeliest of four
        ([2.5, 2.0, 3.0, 4.0], 1.0),
        ([9.0, 2.0, 3.0, 4.0], 0.0),
        ([2.0, 2.0, 3.0, 4.0], 1.0),  # what is as likely stands before it
        ([7.0] * 4, 0.0),
        ([1.0, *[2.0] * 1023], 10.0),
    ],
)
def test_exposure_of_a_table(nats: list[float], bits: float) -> None:
    assert exposure(nats) == pytest.approx(bits)


def canaries(folder: Path, **changes) -> Evaluation:
    """Two questions on images with four and two answers, the canary first, in turns."""
    asked(folder)
    answers = ("What is it?", "a.png", "three red apples"), ("Where?", "c.png", "at the top left")
    answers += ("What is it?", "a.png", "a bus"), ("Where?", "c.png", "no")
    answers += ("What is it?", "a.png", "a cat"), ("What is it?", "a.png", "hi there")
    rows = [tiny.row(str(i), image, (question, answer)) for i, (question, image, answer) in enumerate(answers)]
    (folder / "rows.json").write_text(json.dumps(rows))
    parameters = {"file": str(folder / "rows.json"), "images": str(folder), "turns": "independent"}
    data = {"source": "llava_json", "parameters": parameters}
    return Evaluation(**{"world": "rows", "data": data, "benchmarks": ("rows.exposure",), "batch": 4, **changes})


class Weighs(Says):
    def __init__(self, *nats: float) -> None:
        super().__init__(lambda item: "yes")
        self.told = nats

    def nats(self, data, count: int) -> list[float]:
        return list(self.told[:count])


def test_the_exposure_of_canaries_is_their_mean_over_questions_in_bits(tmp_path: Path) -> None:
    model = Weighs(1.0, 5.0, 2.0, 4.0, 0.5, 3.0)  # second of four, last of two
    entry = score_request(model, canaries(tmp_path, benchmarks=("rows.exposure", "rows.exact")), tmp_path)["scores"]
    of = entry["rows.exposure"]
    assert (of["score"], of["items"], of["higher_is_better"]) == (pytest.approx(0.5), 2, False)
    lines = read_answers(tmp_path / "answers", "rows.exposure")
    assert [(line["target"], line["score"]) for line in lines] == [("three red apples", 1.0), ("at the top left", 0.0)]
    assert entry["rows.exact"]["items"] == 6  # the same rows
    results = {"model": "m", **score_request(model, canaries(tmp_path), tmp_path / "m")}
    write_json(RunFolder(tmp_path / "m").results, results)
    run = read(RunFolder(tmp_path / "m"))
    assert units("rows.exposure", lines).score == pytest.approx(0.5)
    assert not readable(lines), "another reader would score the answer, which is not what was scored"
    notes = comparison([run, run], None).notes
    assert any("lower is better, so a negative difference is a gain: rows.exposure" in note for note in notes)


def test_an_answers_cross_entropy_is_that_of_an_explicit_formula_and_training_on_it_exposes_it(tmp_path: Path) -> None:
    question, student = canaries(tmp_path), tiny.model(seed=1)
    reader = GreedyModel(student, batch=4)
    data = tiny.conversations(student, tmp_path, "independent", json.loads((tmp_path / "rows.json").read_text()))
    expected = []
    for i in range(len(data)):
        batch = tiny.together(student, [data[i]])
        keep = batch.predicting("answer")
        with torch.no_grad():
            tokens = student.project(student.encode(batch.images), batch.images)
            log_p = student.logits(student.hidden_states(batch, tokens, keep)).double().log_softmax(-1)
        expected.append(-log_p.gather(1, batch.targets[keep][:, None]).sum().item())
    assert reader.nats(question.data, 6) == pytest.approx(expected, rel=1e-5)
    blind = GreedyModel(student, batch=4, blind=True).nats(question.data, 6)
    assert blind != pytest.approx(expected, rel=1e-5)
    before = score_request(reader, question, tmp_path / "before")["scores"]["rows.exposure"]["score"]
    batch, parameters = tiny.together(student, [data[0], data[1]]), list(student.parameters())
    adam = torch.optim.Adam([p.requires_grad_() for p in parameters], 0.01)
    for _ in range(30):
        keep = batch.predicting("answer")
        hidden = student.hidden_states(batch, student.project(student.encode(batch.images), batch.images), keep)
        torch.nn.functional.cross_entropy(student.logits(hidden), batch.targets[keep]).backward()
        adam.step()
        adam.zero_grad()
    after = score_request(reader, question, tmp_path / "after")["scores"]["rows.exposure"]["score"]
    assert before < after == pytest.approx(1.5)  # the mean of log2 4 and log2 2: the most that these rows can show


def test_exposure_needs_other_answers_to_a_question_and_an_engine_with_probabilities(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: no other row asks its question"):
        check_evaluation(canaries(tmp_path, items=3))
    with pytest.raises(UserError, match="row a: several questions"):
        check_evaluation(asked(tmp_path / "other", "rows.exposure"))
    with pytest.raises(UserError, match="gives no probabilities") as error:
        score_request(Says(lambda item: "yes"), canaries(tmp_path), tmp_path)
    assert error.value.hint == "--engine transformers"


def test_a_constant_exposes_nothing(tmp_path: Path) -> None:
    question = canaries(tmp_path)
    fields = {name: getattr(question, name) for name in Evaluation.model_fields}
    assert majority(folder=tmp_path / "majority", **fields)["scores"]["rows.exposure"]["score"] == 0


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


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (["Before: <image>\nWhich one?", "this"], "an image inside or behind a question"),
        (["<image>\nWhat is it?", "dog", "<image>\nAnd this?", "cat"], "an image inside or behind a question"),
        (["What is it?", "dog", "How many?", ""], "an answer that is empty or not to be learnt"),
    ],
)
def test_a_row_that_would_be_asked_as_another_one_is_refused(tmp_path: Path, turns: list[str], problem: str) -> None:
    question = asked(tmp_path)
    spoken = [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 2, turns, strict=False)]
    pictures = ["a.png"] * "".join(turns).count("<image>")
    row = {"id": "odd", "image": [*pictures, "c.png"] if len(pictures) == 1 else pictures, "conversations": spoken}
    if len(pictures) == 1:
        spoken[0]["value"] = f"<image>{spoken[0]['value']}"
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(UserError) as error:
        check_evaluation(question)
    assert [f"row odd: {problem}" in each for each in error.value.problems] == [True]
