"""A second reader of stored answers tells what is format from what is knowledge."""

import json

import pytest

from switchkd_cli.commands.evaluate import evaluate
from switchkd_cli.commands.options import EvalOptions
from switchkd_cli.errors import UserError
from switchkd_cli.report.results.finished_run import read, require_one_table
from switchkd_cli.report.results.paired_items import answer_units
from switchkd_cli.report.stats.stored_answers import disagreement, reread
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import made_up_runs

PROMPT = "What is at the top?\nA. rabbit\nB. fire fly\nC. fly"


@pytest.mark.parametrize(
    ("answer", "target", "strict", "options"),
    [
        ("B", "B", 1, 1),
        ("b", "B", 1, 0),  # no option by the stricter look at letters, nor its text
        ("The answer is B, I think.", "B", 0, 1),
        ("(B) fire fly", "B", 0, 1),
        ("A fire fly", "B", 0, 1),  # an article, and the longer option's words
        ("a fly", "C", 0, 1),
        ("A or B", "B", 0, 0),
        ("rabbit or fire fly", "B", 0, 0),
        ("(b)", "(b)", 1, 1),
        ("", "B", 0, 0),
        ("Yes.", "yes", 0, 1),
        ("yes", "Yes", 1, 1),
        ("yes and no", "yes", 0, 0),
        ("I know it", "no", 0, 0),
        ("It is red.", "red", 0, 1),
        ("It is reddish.", "red", 0, 0),
    ],
)
def test_what_a_reader_finds(answer: str, target: str, strict: int, options: int) -> None:
    line = {"answer": answer, "target": target, "prompt": PROMPT, "score": 0.5}
    found = [reread(reader, line)["score"] for reader in ("strict", "options", "stock")]
    assert found == [strict, options, 0.5]


def test_answers_without_one_right_text_or_a_score_are_not_read() -> None:
    line = {"answer": "red", "target": "red", "score": 1.0}
    told = line | {"answer": "blue"}
    assert (disagreement([line]), disagreement([line, told])) == ("", "1 and 0 of 2")
    for broken in ({"score": None}, {"target": ["a"]}, {"answer": None}, {"score": 3.5}):
        assert disagreement([told, line | broken]) == ""


POPE = [("Yes.", "yes", 0), ("no", "no", 1), ("yes", "no", 0), ("No, it is not.", "no", 0)]
GQA = [("red", "red", 1), ("It is red.", "red", 0), ("blue", "red", 0), ("", "red", 0)]


def finished(root, row: str, **changed) -> RunFolder:
    scores = {"pope": 0.0, "gqa": 25.0}
    folder = made_up_runs.run(root, row, row.upper(), scores, items=4)
    folder.answers.mkdir()
    for task, said in {"pope": POPE, "gqa": GQA}.items():
        lines = [
            {
                "doc_id": i,
                "key": f"{task}{i}",
                "image": f"i{i}",
                "prompt": "?",
                "answer": a,
                "target": t,
                "score": float(s),
                "faults": [],
            }
            for i, (a, t, s) in enumerate(said)
        ]
        (folder.answers / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_scored_again_without_a_model(tmp_path, capsys) -> None:
    run = finished(tmp_path, "sft")
    evaluate(EvalOptions(rescore=run.path, reader="options", out=tmp_path))
    (made,) = (tmp_path / "evaluations").glob("*/results.json")
    found = read(RunFolder(made.parent))
    assert found.scores["gqa"] == 50.0
    assert found.scores["pope"] == pytest.approx(100 * 2 * 1 / (2 + 1))  # F1 of yes: said twice, once right
    assert found.scores["pope accuracy"] == 75.0
    assert not {"yes", "unreadable", "value"} & set(found.results["scores"]["pope"])  # the stock rule's
    assert found.title == "SFT (seed 0), read by options" and str(made.parent) in "".join(capsys.readouterr())
    lines = [json.loads(line) for line in (made.parent / "answers" / "pope.jsonl").read_text().splitlines()]
    assert (lines[0]["answer"], lines[0]["said"]) == ("yes", "Yes.")
    evaluate(EvalOptions(rescore=run.path, reader="options", out=tmp_path))  # found again
    assert len(list((tmp_path / "evaluations").glob("*/results.json"))) == 1
    with pytest.raises(UserError, match="already read again"):
        evaluate(EvalOptions(rescore=made.parent, reader="strict", out=tmp_path))
    with pytest.raises(UserError, match="reader is options, that of"):
        require_one_table([read(run), found])


def test_compare_says_where_the_readers_disagree(tmp_path) -> None:
    runs = [read(finished(tmp_path, row)) for row in ("sft", "kd")]
    notes = "\n".join(answer_units(runs, ("gqa", "pope")).notes)
    assert "GQA: answers that only the stock rule, and that only the reader of options finds right: " in notes
    assert "SFT (seed 0) 0 and 1 of 4; KD (seed 0) 0 and 1 of 4" in notes
    assert (
        "POPE: answers that only the stock rule, and that only the reader of options finds right: SFT (seed 0) 0 and 2 of 4"
        in notes
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rescore": "run"}, r"--reader: must be a reader, got None \(known: stock, strict, options\)"),
        ({"rescore": "run", "reader": "option"}, r"--reader: .* got 'option' \(did you mean 'options'\?\)"),
        ({"reader": "options"}, "--reader: needs --rescore RUN, the run whose answers are read again"),
    ],
)
def test_what_the_command_misses_is_said(tmp_path, options, problem) -> None:
    paths = {"rescore": tmp_path / options["rescore"]} if "rescore" in options else {}
    with pytest.raises(UserError, match=problem):
        evaluate(EvalOptions(**{**options, **paths}, out=tmp_path))
