"""Run folders: who may write where, what is found again, and what is left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import hold, read_json, write_json
from switchkd_cli.recipe.load import load
from switchkd_cli.runs import provenance, run_folder
from switchkd_cli.runs.claim import claim_folder, folder_state
from tests.support.small_recipe import write


@pytest.fixture
def run(tmp_path):
    return load(write(tmp_path))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "out" / "runs"


def finish(root, run, **more):
    with claim_folder(root, run, **more) as (folder, state):
        assert state == "new"
        folder.log({"stage": "distill", "step": 1})
    return folder


def test_a_new_run_gets_a_folder_with_its_recipe_and_record(root, run):
    with claim_folder(root, run) as (folder, state):
        assert state == "new"
        assert folder.path == root.absolute() / "small" / "switch-kd" / "seed0"
        assert folder.root == root.absolute()
        assert folder.recipe.read_text() == run.text
        info = folder.info()
        assert (info["status"], info["seed"], info["key"], info["row"]) == ("running", 0, run.key, "switch-kd")
        assert info["versions"]["torch"] and info["versions"]["python"]
    info = folder.info()
    assert info["status"] == "finished" and info["seconds"] >= 0 and info["ended"] >= info["started"]


def test_a_run_is_read_back_from_its_folder(root, run):
    assert finish(root, run).run() == run


def test_a_finished_run_is_reused(root, run):
    finish(root, run)
    with claim_folder(root, run) as (folder, state):
        assert state == "finished"
    assert folder.info()["status"] == "finished"


def test_a_run_that_ends_while_its_folder_is_made_is_in_nobody_s_way(root, run, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("switchkd_cli.runs.claim.write_json", interrupted)
        finish(root, run)
    assert folder_state(run_folder.folder(root, run), run) == "new"
    left = run_folder.folder(root, run).path.with_name(".seed0.partial")  # as after a kill
    left.mkdir(parents=True)
    (left / "recipe.yaml").write_text("half")
    assert finish(root, run).info()["status"] == "finished"
    assert not left.exists()


def test_overwrite_moves_the_finished_run_aside(root, run, capsys):
    first = finish(root, run)
    (first.path / "mark").write_text("old")
    again = finish(root, run, overwrite=True)
    assert not (again.path / "mark").exists()
    assert (again.path.parent / "old-seed0-1" / "mark").read_text() == "old"
    assert "moved to old-seed0-1" in capsys.readouterr().err
    finish(root, run, overwrite=True)
    assert (again.path.parent / "old-seed0-2").is_dir()
    assert [f.path for f in run_folder.finished(root)] == [again.path]


def test_another_run_in_the_folder_is_left_alone(root, run, tmp_path):
    folder = finish(root, run)
    other = load(tmp_path / "small.yaml", overrides=["stages.distill.steps=11"])
    with pytest.raises(UserError, match="holds another run") as caught, claim_folder(root, other):
        pass
    assert "--overwrite" in caught.value.hint and caught.value.code == 2
    assert folder.info()["key"] == run.key
    assert folder.metrics.exists()


def test_foreign_files_in_the_folder_are_left_alone(root, run):
    path = run_folder.folder(root, run).path
    path.mkdir(parents=True)
    (path / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match="holds another run"), claim_folder(root, run):
        pass
    assert [p.name for p in path.iterdir()] == ["thesis.doc"]


def test_a_failed_run_says_so_and_is_moved_aside_by_the_next(root, run, capsys):
    with pytest.raises(ZeroDivisionError), claim_folder(root, run) as (folder, _):
        1 / 0  # noqa: B018
    assert folder.info()["status"] == "failed" and "ZeroDivisionError" in folder.info()["error"]
    assert folder_state(folder, run) == "unfinished"
    finish(root, run)
    assert (folder.path.parent / "unfinished-seed0-1" / "run.json").exists()
    assert "starting again" in capsys.readouterr().err


def test_a_users_error_before_the_first_step_leaves_nothing(root, run, tmp_path):
    with pytest.raises(UserError), claim_folder(root, run) as (folder, _):
        folder.log({"event": "stage", "stage": "pretrain"})
        raise UserError("no such image folder")
    assert not (tmp_path / "out").exists()


def test_a_users_error_after_steps_keeps_them(root, run):
    with pytest.raises(UserError), claim_folder(root, run) as (folder, _):
        folder.log({"stage": "pretrain", "step": 1})
        raise UserError("a truncated file")
    assert folder.info()["status"] == "failed" and folder.metrics.exists()


def test_a_users_error_brings_back_what_was_moved_aside(root, run):
    folder = finish(root, run)
    with pytest.raises(UserError), claim_folder(root, run, overwrite=True):
        raise UserError("no such image folder")
    assert folder.info()["status"] == "finished" and folder.metrics.exists()


def test_a_folder_is_held_by_one_process_at_a_time(root, run):
    with claim_folder(root, run):
        with pytest.raises(UserError, match="in use by a running process") as caught, claim_folder(root, run):
            pass
        assert caught.value.code == 2 and "--out" in caught.value.hint
    with claim_folder(root, run) as (_, state):
        assert state == "finished"
    assert not list(root.rglob("*.lock"))


def test_a_killed_process_does_not_keep_its_folder(root, run, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from switchkd_cli.runs.claim import claim_folder; from switchkd_cli.recipe.load import load\n"
        f"with claim_folder(Path({str(root)!r}), load({str(tmp_path / 'small.yaml')!r})):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="in use"), claim_folder(root, run):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    folder = finish(root, run)
    assert json.loads((folder.path.parent / "unfinished-seed0-1" / "run.json").read_text())["status"] == "running"


def test_newest_finished(root, run, tmp_path):
    with pytest.raises(UserError, match="no finished run") as caught:
        run_folder.newest(root)
    assert caught.value.hint.startswith("switchkd ")
    finish(root, run)
    last = finish(root, load(tmp_path / "small.yaml", "sft"))
    with pytest.raises(ZeroDivisionError), claim_folder(root, load(tmp_path / "small.yaml", "long")):
        1 / 0  # noqa: B018
    assert run_folder.newest(root) == last
    assert [f.info()["row"] for f in run_folder.finished(root)] == ["switch-kd", "sft"]
    assert run_folder.finished(root, "other") == []


def test_metrics_are_lines_of_valid_json(root, run):
    class Number:
        def __float__(self):
            return 0.5

    with claim_folder(root, run) as (folder, _):
        folder.log({"stage": "a", "step": 1, "loss": float("nan"), "gap": float("inf"), "x": Number(), "text": "é"})
        folder.log({"event": "warning", "text": "b"})
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines[0] == {"stage": "a", "step": 1, "loss": None, "gap": None, "x": 0.5, "text": "é"}
    assert lines[1] == {"event": "warning", "text": "b"}


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "none.json") is None


def test_a_shared_folder_is_built_once_and_whole(root):
    shared = run_folder.stage(root, "key")
    with pytest.raises(ZeroDivisionError), shared.build() as partial:
        (partial / "half").write_text("x")
        1 / 0  # noqa: B018
    assert not shared.done
    with shared.build() as partial:
        assert list(partial.iterdir()) == []
        assert not shared.done
        (partial / "model").write_text("x")
    assert shared.done and (shared.path / "model").exists()
    with shared.build() as partial:
        assert partial is None


def _count(path: Path, log: Path) -> None:
    shared = run_folder.SharedFolder(path)
    with shared.build() as partial, log.open("a") as stream:
        stream.write("waited\n" if partial is None else "built\n")
        time.sleep(0.05)


def test_processes_share_the_work(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_count, args=(tmp_path / "stages" / "k", log)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(log.read_text().split()) == ["built"] + ["waited"] * 5


def test_a_lock_is_let_go(tmp_path):
    with hold(tmp_path / "a"), pytest.raises(UserError, match="in use"), hold(tmp_path / "a", wait=False):
        pass
    with hold(tmp_path / "a", wait=False):
        pass
    assert os.listdir(tmp_path) == []


def test_a_recipe_can_not_take_the_name_of_a_shared_folder(tmp_path, root):
    file = write(tmp_path).rename(tmp_path / "stages.yaml")
    with pytest.raises(UserError, match="can't have this name"):
        run_folder.folder(root, load(file))


def test_the_record_holds_no_environment(root, run, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "a-secret-value")
    assert "a-secret-value" not in finish(root, run).record.read_text()


def test_the_commit_is_of_this_code_or_none():
    commit = provenance.commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
