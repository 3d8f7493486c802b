"""What the commands do with runs, with a stand-in for the engine."""

import sys
import types
from pathlib import Path

import pytest

from switchkd_cli import cli
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe import run
from switchkd_cli.recipe.load import load
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import claim_folder
from switchkd_cli.scheduler import pool
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support import fake_engine
from tests.support.small_recipe import write


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "WORKER", (sys.executable, str(Path(fake_engine.__file__))))
    return fake_engine.install(monkeypatch)


def switchkd(monkeypatch, *arguments):
    """The exit code of the program in this process."""
    monkeypatch.setattr(sys, "argv", ["switchkd", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def names(calls):
    return [name for name, *_ in calls]


def test_distill_runs_the_row_and_its_controls_then_the_table(tmp_path, calls, monkeypatch, capsys):
    assert switchkd(monkeypatch, "distill", write(tmp_path)) == 0
    assert names(calls) == ["train_stages", "evaluate", "train_stages", "evaluate", "evaluate_teacher", "distillation"]
    runs, teacher = calls[-1][1]
    assert [run.row for run in runs] == ["switch-kd", "sft"]
    assert all(run.info["status"] == "finished" for run in runs)
    assert teacher == {"teacher": fake_engine.RESULTS}
    assert "Switch-KD (seed 0): distill 10/10 (100%) · 0:00 left · 1,234 tokens/s" in capsys.readouterr().err


def test_a_row_whose_images_broke_within_what_is_allowed_stands_in_its_table(tmp_path, calls, monkeypatch):
    worker = sys.modules["switchkd_cli.engine.run_stages"]
    train = worker.train_stages

    def broken(run, folder, *more, **others):
        train(run, folder, *more, **others)
        if run.row == "switch-kd":
            folder.log({"event": "inputs_changed", "about": {"fields": ["data.questions.images"], "allowed": True}})

    monkeypatch.setattr(worker, "train_stages", broken)
    assert switchkd(monkeypatch, "distill", write(tmp_path)) == 0
    runs, _ = calls[-1][1]
    assert [(run.row, run.info["key"] == "") for run in runs] == [("switch-kd", True), ("sft", False)]
    assert "data.questions.images" in runs[0].warnings["inputs"]


def test_overwrite_scores_the_teacher_again_where_other_versions_scored_it(tmp_path, calls, monkeypatch):
    file = write(tmp_path)
    switchkd(monkeypatch, "distill", file)
    calls.clear()
    switchkd(monkeypatch, "distill", file, "--overwrite")
    assert "evaluate_teacher" not in names(calls)
    (results,) = tmp_path.glob("runs/evaluations/*/results.json")
    write_json(results, {"teacher": {**fake_engine.RESULTS, "versions": {"torch": "1.0"}}})
    switchkd(monkeypatch, "distill", file)
    assert "evaluate_teacher" not in names(calls)
    switchkd(monkeypatch, "distill", file, "--overwrite")
    assert "evaluate_teacher" in names(calls) and list(tmp_path.glob("runs/evaluations/old-*"))


def test_a_second_time_nothing_is_trained(tmp_path, calls, monkeypatch, capsys):
    file = write(tmp_path)
    switchkd(monkeypatch, "distill", file)
    calls.clear()
    assert switchkd(monkeypatch, "distill", file) == 0
    assert names(calls) == ["distillation"]
    assert "finished before, reused" in capsys.readouterr().err


def test_overrides_reach_the_run_and_its_record(tmp_path, calls, monkeypatch):
    switchkd(monkeypatch, "distill", write(tmp_path), "stages.distill.lr=1e-4", "--seed", 5, "--row", "sft")
    (run, folder), _ = calls[0][1:]
    assert run.config.stages[1].lr == 1e-4 and folder.path.name == "seed5"
    assert "lr: 0.0001" in folder.recipe.read_text()
    assert names(calls).count("train_stages") == 1


def test_pretrain_stops_before_the_teacher(tmp_path, calls, monkeypatch, capsys):
    assert switchkd(monkeypatch, "pretrain", write(tmp_path)) == 0
    assert names(calls) == ["train_stages"]
    assert [stage.name for stage in calls[0][1][0].config.stages] == ["pretrain"]
    model = tmp_path / "runs" / "small" / "switch-kd.pretrain" / "seed0" / "model"
    assert model.is_dir() and f"model: {model}" in capsys.readouterr().err


def test_wrong_data_leaves_nothing_behind(tmp_path, calls, monkeypatch, capsys):
    file = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert switchkd(monkeypatch, "distill", file, "stages.distill.batch=7") == 2
    assert capsys.readouterr().err.splitlines() == ["data.questions: no such folder: pictures", "hint: mend it"]
    assert sorted(tmp_path.rglob("*")) == before


def test_ablate_runs_rows_and_seeds_and_goes_on_after_a_failure(tmp_path, calls, monkeypatch, capsys):
    file = write(tmp_path)
    assert switchkd(monkeypatch, "ablate", file, "--seeds", 2, "--jobs", 2) == 1
    done = {(f.info()["row"], f.info()["seed"]) for f in run_folder.finished(tmp_path / "runs")}
    assert done == {("switch-kd", 0), ("switch-kd", 1), ("sft", 0), ("sft", 1)}
    err = capsys.readouterr().err
    assert "long (seed 1): failed" in err and "ZeroDivisionError: the crash of this row" in err
    told = [line for line in err.splitlines() if " done" in line and " of " in line]
    assert len(told) >= 6 and told[-1] == "5 of 7 done, 2 failed"
    assert err.splitlines()[-1] == "2 of 6 runs failed; the same command tries again"
    crashed = run_folder.folder(tmp_path / "runs", load(file, "long"))
    assert crashed.info()["status"] == "failed"
    assert "the crash of this row" in crashed.text_log.read_text()
    assert names(calls) == ["ablation"]
    (runs, _), more = calls[-1][1:]
    assert [(run.row, run.seed) for run in runs] == sorted(done, key=lambda x: (x[0] == "sft", x[1]))
    assert [(run.row, run.seed) for run in more["planned"]][-1] == ("long", 1)
    assert list(more["controls"]) == ["sft"]


def test_ablate_skips_what_is_finished(tmp_path, calls, monkeypatch, capsys):
    file = write(tmp_path)
    arguments = ("ablate", file, "--rows", "sft,switch-kd", "--jobs", 1)
    assert switchkd(monkeypatch, *arguments) == 0
    before = {f.path: f.info()["ended"] for f in run_folder.finished(tmp_path / "runs")}
    assert switchkd(monkeypatch, *arguments) == 0
    assert {f.path: f.info()["ended"] for f in run_folder.finished(tmp_path / "runs")} == before
    assert "2 of 2 runs finished before, reused" in capsys.readouterr().err


def test_ablate_runs_again_only_what_failed_and_counts_the_rest(tmp_path, calls, monkeypatch, capsys):
    file = write(tmp_path)
    assert switchkd(monkeypatch, "ablate", file, "--jobs", 1) == 1
    before = {f.path: f.info()["ended"] for f in run_folder.finished(tmp_path / "runs")}
    capsys.readouterr()
    assert switchkd(monkeypatch, "ablate", file, "--jobs", 1) == 1
    err = capsys.readouterr().err
    assert "2 of 3 runs finished before, reused" in err
    assert "2 of 3 done, 1 failed" in err
    assert {f.path: f.info()["ended"] for f in run_folder.finished(tmp_path / "runs")} == before


def test_ablate_reports_a_user_s_error_of_one_row_and_finishes_the_others(tmp_path, calls, monkeypatch, capsys):
    change = ("stages.distill.objective.align.weight: 2.0", "stages.distill.batch: 7")
    assert switchkd(monkeypatch, "ablate", write(tmp_path, change), "--jobs", 2) == 2
    err = capsys.readouterr().err
    assert "long (seed 0): failed" in err and "  data.questions: no such folder: pictures" in err
    assert {f.info()["row"] for f in run_folder.finished(tmp_path / "runs")} == {"switch-kd", "sft"}
    assert names(calls) == ["ablation"]


def test_a_teacher_that_can_t_be_scored_is_reported_and_the_rows_have_their_table(tmp_path, calls, monkeypatch, capsys):
    file = write(tmp_path, ("items: 4", "items: 5"))
    assert switchkd(monkeypatch, "ablate", file, "--rows", "sft") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-3:] == [
        "the teacher and the baselines: failed",
        "  no teacher to be had",
        "not everything could be done; the same command tries again",
    ]
    (runs, teacher), _ = calls[-1][1:]
    assert [run.row for run in runs] == ["sft"] and teacher is None


def test_a_table_that_can_t_be_made_is_a_failure_too(tmp_path, calls, monkeypatch, capsys):
    def refused(*arguments, **more):
        raise UserError("sft: items is 4, that of switch-kd is 8")

    monkeypatch.setattr(sys.modules["switchkd_cli.report.tables.comparison"], "ablation", refused)
    assert switchkd(monkeypatch, "ablate", write(tmp_path), "--rows", "sft") == 2
    assert "small.yaml: its table: failed\n  sft: items is 4, that of switch-kd is 8\n" in capsys.readouterr().err


def test_a_worker_that_the_system_killed_is_reported_as_such(tmp_path, calls, monkeypatch):
    program = tmp_path / "worker.py"
    program.write_text("import os, sys; sys.stdin.read(); print('so far', flush=True); os.kill(os.getpid(), 9)")
    monkeypatch.setattr(pool, "WORKER", (sys.executable, str(program)))
    planned = [load(write(tmp_path))]
    failures = pool.in_workers(planned, RunOptions(out=tmp_path / "runs"), jobs=1)
    told = "ended by signal 9 (Killed), most likely out of memory: fewer --jobs need less"
    assert failures[0].error.problems == ("so far", told)
    with pytest.raises(UserError) as error:
        pool.check_failures(failures, planned)
    assert error.value.code == 1


def test_distill_can_run_its_rows_side_by_side(tmp_path, calls, monkeypatch):
    assert switchkd(monkeypatch, "distill", write(tmp_path), "--jobs", 2) == 0
    assert names(calls) == ["distillation"]  # the teacher was scored in a process of the pool, too
    assert run_folder.teacher_scores(tmp_path / "runs", [load(tmp_path / "small.yaml")]) is not None
    assert switchkd(monkeypatch, "distill", tmp_path / "small.yaml", "--row", "long", "--jobs", 2) == 1


def test_workers_share_the_cores(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(pool, "cores", lambda: 8)
    program = tmp_path / "worker.py"
    program.write_text("import os, sys; sys.stdin.read(); print('threads', os.environ['OMP_NUM_THREADS']); sys.exit(1)")
    monkeypatch.setattr(pool, "WORKER", (sys.executable, str(program)))
    failures = pool.in_workers([load(write(tmp_path))], RunOptions(out=tmp_path / "runs"), jobs=2)
    assert [failure.error.problems for failure in failures] == [("threads 4",)]


def test_eval_scores_the_newest_run_once(tmp_path, calls, monkeypatch, capsys):
    switchkd(monkeypatch, "distill", write(tmp_path))
    calls.clear()
    arguments = ("eval", "--benchmarks", "mme,gqa", "--items", 6)
    assert switchkd(monkeypatch, *arguments) == 0
    (model,), asked = calls[0][1:]
    assert model == str(tmp_path / "runs" / "small" / "sft" / "seed0" / "model")
    assert asked["benchmarks"] == ["mme", "gqa"] and asked["items"] == 6
    assert (asked["world"], asked["split"], asked["batch"]) == ("playground", "test", 64)
    shown = capsys.readouterr()
    assert "MME" in shown.out and "50.0" in shown.out
    assert switchkd(monkeypatch, *arguments) == 0
    assert names(calls) == ["evaluate_model"]
    assert "evaluated before, reused" in capsys.readouterr().err


def test_eval_knows_a_model_of_the_hub_by_its_commit(tmp_path, calls, monkeypatch):
    """Also where it is not in the cache yet, as in a fresh container with an old folder of runs."""
    commits = {}
    monkeypatch.setattr(run, "cached_commit", commits.get)
    hub = types.ModuleType("hub")
    hub.fetch = lambda name, who, **more: commits.update({name: hub.commit})
    monkeypatch.setitem(sys.modules, "switchkd_cli.engine.hub", hub)
    for hub.commit, count in (("c0ffee", 1), ("c0ffee", 1), ("decade", 2)):
        commits.clear()
        assert switchkd(monkeypatch, "eval", "--model", "org/model") == 0
        assert names(calls).count("evaluate_model") == count


def test_eval_says_how_many_answers_were_none(tmp_path, calls, monkeypatch, capsys):
    write(tmp_path)
    results = {"world": "playground", "split": "test", "sets_key": "k", "model": "m"}
    results["scores"] = {"pope": {"score": 0.0, "items": 200, "unreadable": 200, "example": "Yes."}}
    engine = sys.modules["switchkd_cli.engine.evaluation.score_model"]
    monkeypatch.setattr(engine, "evaluate", lambda model, **asked: results)
    assert switchkd(monkeypatch, "eval", "--model", tmp_path / "model") == 0
    told = "POPE: answers that can't be read by the metric: this model 200 of 200 (e.g. 'Yes.')"
    assert f"warning: {told}" in capsys.readouterr().err


def test_eval_asks_a_run_what_its_recipe_asks(tmp_path, calls, monkeypatch):
    switchkd(monkeypatch, "distill", write(tmp_path))
    switchkd(monkeypatch, "eval", "--model", "runs/small/switch-kd/seed0", "--split", "hard")
    asked = calls[-1][2]
    assert asked["benchmarks"] == ["mme", "pope"] and asked["items"] == 4 and asked["split"] == "hard"


def test_eval_of_a_model_folder_asks_all_ten(tmp_path, calls, monkeypatch):
    write(tmp_path)
    assert switchkd(monkeypatch, "eval", "--model", tmp_path / "model") == 0
    assert len(calls[0][2]["benchmarks"]) == 10 and calls[0][2]["items"] == 200
    assert switchkd(monkeypatch, "eval", "--model", tmp_path / "model", "--world", "hub") == 0
    assert calls[1][2]["items"] is None
    assert switchkd(monkeypatch, "eval", "--model", tmp_path / "model", "--world", "mars") == 2


def test_compare_takes_runs_a_recipe_or_all(tmp_path, calls, monkeypatch):
    file = write(tmp_path)
    switchkd(monkeypatch, "distill", file)
    for arguments in ((), (file,), ("runs/small/switch-kd/seed0", "runs/small/sft/seed0")):
        assert switchkd(monkeypatch, "compare", *arguments) == 0
        assert [run.row for run in calls[-1][1][0]] == ["switch-kd", "sft"]
    assert switchkd(monkeypatch, "compare", tmp_path / "model") == 2
    with pytest.raises(ZeroDivisionError), claim_folder(tmp_path / "runs", load(file, "long")):
        1 / 0  # noqa: B018
    assert switchkd(monkeypatch, "compare", "runs/small/long/seed0") == 2


def test_a_missing_library_is_the_machines_fault(tmp_path, calls, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "switchkd_cli.engine.run_stages")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert switchkd(monkeypatch, "distill", write(tmp_path)) == 3
    assert capsys.readouterr().err.splitlines() == ["torch is not installed", "hint: make setup"]
    assert not (tmp_path / "runs").exists()
