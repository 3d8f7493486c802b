"""`compare` with a model that `switchkd eval` scored: paired like a run, and what is not known of it shown so."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from switchkd_cli.commands.compare import compare
from switchkd_cli.commands.options import CompareOptions
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.runs.run_folder import RunFolder
from tests.commands import test_compare as runs
from tests.support import made_up_runs as made

MODEL = "HaoyiSun/Switch-KD-Qwen2.5-CLIP-1.8B"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def evaluation(root, row="vsd", *, model=MODEL, key="abc", **changed):
    """What `switchkd eval` leaves of a model that answers as this row would."""
    asked = runs.finished(root.parent / "other", row, seed=7)
    folder = RunFolder(root / "evaluations" / key)
    folder.path.mkdir(parents=True)
    shutil.copytree(asked.answers, folder.answers)
    results = json.loads(asked.results.read_text()) | {"model": str(model), "blind": False, "notes": []}
    folder.results.write_text(json.dumps(results | changed))
    shutil.rmtree(asked.path)
    return folder


def test_a_model_stands_beside_one_run_with_interval_and_mcnemars_p(root):
    ours, theirs = runs.finished(root, "switch-kd", seed=3), evaluation(root)
    found = runs.table(runs.compared(ours, theirs, against=MODEL), f"Switch-KD minus {MODEL}, seed 3")["GQA"]
    a, b = (np.array([line["score"] for line in runs.stored(each, "gqa")]) for each in (ours, theirs))
    assert found["difference"].value == pytest.approx(100 * (a - b).mean())
    only = int((a > b).sum()), int((a < b).sum())
    assert found["p"].value == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert found["95 % items"].low <= found["difference"].value <= found["95 % items"].high


def test_every_seed_of_a_row_is_held_against_it(root):
    ours = [runs.finished(root, "switch-kd", seed) for seed in (1, 2, 3)]
    theirs = evaluation(root)
    report = runs.compared(*ours, theirs, against=MODEL)
    found = runs.table(report, f"Switch-KD minus {MODEL}, seeds 1-3")["GQA"]
    gaps = [read(run).scores["gqa"] - read(theirs).scores["gqa"] for run in ours]
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert found["difference"].value == pytest.approx(np.mean(gaps))
    assert (found["95 % seeds"].low, found["95 % seeds"].high) == pytest.approx((low, high))


def test_what_is_not_known_of_it_is_a_dash_and_said(root):
    ours = [runs.finished(root, "switch-kd", seed) for seed in (1, 2)]
    report = runs.compared(*ours, evaluation(root))
    own = runs.table(report, "the average over seeds")[MODEL]
    assert own["seeds"] is own["sd"] is None and str(own["mean, 95 % t"]).count("±") == 0
    assert MODEL in runs.table(report, "scores")
    notes = [note for note in report.notes if MODEL in note]
    assert f"scored by switchkd eval, its seed, training and recipe not known here (–): {MODEL}" in notes
    assert not any("trained" in note or "one seed" in note for note in notes)
    assert report.title.startswith(f"{read(ours[0]).recipe}: ")


def test_two_models_are_rows_of_their_own(root):
    one, other = evaluation(root), evaluation(root, "sft", model="org/other", key="def")
    report = runs.compared(one, other)
    assert {MODEL, "org/other"} <= runs.table(report, "scores").keys()
    assert runs.table(report, f"org/other minus {MODEL}")["GQA"]["p"] is not None
    assert not any("seed" in note and MODEL in note and "switchkd eval" not in note for note in report.notes)


def test_a_model_prompted_otherwise_is_refused_like_a_run(root):
    ours = runs.finished(root, "switch-kd")
    with pytest.raises(UserError, match="lmms-eval is 0.6.0"):
        runs.compared(ours, evaluation(root, versions={"lmms-eval": "0.6.0"}))
    theirs = evaluation(root, key="def")
    runs.write(theirs, "gqa", [line | {"prompt": "another"} for line in runs.stored(theirs, "gqa")])
    with pytest.raises(UserError, match="40 of 40 prompts differ"):
        runs.compared(ours, theirs)
    with pytest.raises(UserError, match="world is hub"):
        runs.compared(ours, evaluation(root, key="ghi", world="hub"))


def test_a_model_is_called_as_one_would_type_it(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    named = {
        MODEL: MODEL,
        ASSETS / "teacher": "playground:teacher",
        root.parent / "mine" / "model": "mine/model",
        "/elsewhere/model": "/elsewhere/model",
    }
    for i, (model, name) in enumerate(named.items()):
        assert read(evaluation(root, model=model, key=str(i))).name == name


def test_the_command_takes_its_folder(root, monkeypatch, capsys):
    ours, theirs = runs.finished(root, "switch-kd"), evaluation(root)
    monkeypatch.setattr(RunFolder, "run", made.planned_without_teacher)
    compare(CompareOptions([str(ours.path), str(theirs.path)], out=root, form="csv"))
    assert f"{MODEL} minus Switch-KD" in capsys.readouterr().out
    compare(CompareOptions([str(theirs.path)], out=root, form="csv"))
    assert MODEL in capsys.readouterr().out


def test_figures_are_drawn_of_what_there_is(root, tmp_path):
    from switchkd_cli.report.figures import style
    from switchkd_cli.report.figures.scores import gain_and_cost, radar
    from switchkd_cli.report.figures.training_curves import curves

    theirs, ours = read(evaluation(root)), read(runs.finished(root, "sft"))
    rows = style.plotted_rows([theirs, ours])
    assert [row.title for row in rows] == [MODEL, "SFT"]
    assert radar(rows, None) is not None and gain_and_cost(rows, None) is not None
    assert curves(rows[:1]) is None
    curves(rows)


def test_a_run_with_few_bits_is_a_row_with_its_size_and_its_loss(root):
    """Measured against the same model in full, whichever row the others are measured against."""
    ours, other = runs.finished(root, "switch-kd", seed=3), runs.finished(root, "sft", seed=3)
    sizes = {"engine": "transformers", "bits": 4, "bytes": 1_387_576, "full_bytes": 3_668_536}
    theirs = evaluation(root, model=ours.model, **sizes)
    name = "Switch-KD (seed 3), 4 bits"
    report = runs.compared(ours, other, theirs)
    found = runs.table(report, "size of the weights")[name]
    assert (found["MB"], found["full MB"]) == ("1.4", "3.7")
    columns = ("gqa", "vqav2_val", "pope")
    gaps = [read(theirs).scores[task] - read(ours).scores[task] for task in columns]
    assert found["average minus full"].value == pytest.approx(np.mean(gaps)) and found["average minus full"].difference
    assert name in runs.table(report, "scores") and runs.table(report, f"{name} minus SFT")
    alone = runs.table(runs.compared(other, theirs), "size of the weights")[name]
    assert alone["average minus full"] is None  # its model in full is no row here
    assert not any(table.title.startswith("size of the weights") for table in runs.compared(ours, other).tables)


def test_a_model_in_another_engine_is_named_so(root):
    assert read(evaluation(root, engine="vllm 0.32.0")).title == f"{MODEL}, vllm 0.32.0"
    assert read(evaluation(root, key="def", engine="transformers")).title == MODEL
