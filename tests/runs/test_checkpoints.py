"""Checkpoints on disk: complete or absent, old ones removed, and found when a run resumes."""

import json
import random
import shutil

import pytest
import torch

from switchkd_cli.engine.training.checkpointing import CheckpointWriter, read_state, write_state
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import Saving
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.checkpoints import SCORES, ResumePoint, resume_point, rewind
from switchkd_cli.runs.claim import claim_folder, folder_state
from tests.support.small_recipe import write


@pytest.fixture
def run(tmp_path):
    return load(write(tmp_path))


@pytest.fixture
def folder(tmp_path, run):
    made = run_folder.folder(tmp_path / "runs", run)
    made.path.mkdir(parents=True)
    return made


def names(folder):
    return sorted(path.name for path in folder.checkpoints.iterdir())


def save(folder, *steps, stage="distill", scores=(), **saving):
    writer = CheckpointWriter(folder, stage, Saving(**saving))
    for step, score in zip(steps, scores or [None] * len(steps), strict=True):
        if score is not None:
            writer.add_score({writer.saving.best: score})
        writer.save(step, {"step": step, "weights": {"w": torch.full((3,), float(step))}})
    return writer


# --- a state as files


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {
        "step": 3,
        "nothing": None,
        "exact": [0.1, 1e-300, float("inf")],
        "weights": {"a.b/c": torch.randn(2, 3), "half": torch.randn(2).bfloat16()},
        "list": [torch.arange(3), {"deep": torch.tensor(2.0)}],
    }
    write_state(state, tmp_path)
    back = read_state(tmp_path)
    assert back["exact"] == state["exact"] and back["step"] == 3 and back["nothing"] is None
    assert torch.equal(back["weights"]["a.b/c"], state["weights"]["a.b/c"])
    assert back["weights"]["half"].dtype == torch.bfloat16
    assert back["list"][0].tolist() == [0, 1, 2] and back["list"][1]["deep"] == 2


def test_no_state_with_a_weight_that_is_no_number_is_written(tmp_path):
    with pytest.raises(ValueError, match="not finite: weights/w"):
        write_state({"weights": {"w": torch.tensor([1.0, float("nan")])}}, tmp_path)
    assert not list(tmp_path.iterdir())


# --- complete or absent


def test_what_breaks_off_leaves_nothing_and_what_was_there(folder):
    save(folder, 2)
    with pytest.raises(ZeroDivisionError), checkpoints.writing(folder, "distill", 4) as partial:
        (partial / "state.json").write_text("{")
        1 / 0  # noqa: B018
    assert names(folder) == ["distill-2"]


def test_what_a_kill_left_is_swept_away_by_the_next(folder):
    (folder.checkpoints / ".distill-4.partial").mkdir(parents=True)
    (folder.checkpoints / ".marks.json.123").touch()
    save(folder, 6)
    assert names(folder) == ["distill-6"]


def test_a_manifest_reports_every_file(folder):
    save(folder, 2)
    (one,) = checkpoints.saved(folder, "distill")
    assert one.faults() == []
    manifest = json.loads((one.path / "manifest.json").read_text())
    assert manifest.keys() == {"state.json", "state.safetensors"}
    assert all(set(told) == {"bytes", "sha256"} for told in manifest.values())
    (one.path / "state.json").write_text("{}")
    assert one.faults() == [f"checkpoints/distill-2: state.json has 2 bytes of {manifest['state.json']['bytes']}"]


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '{"state.json": 1, "state.safetensors": 2}', "{"])
def test_a_manifest_that_is_none_is_reported(folder, manifest):
    save(folder, 2)
    (one,) = checkpoints.saved(folder, "distill")
    (one.path / "manifest.json").write_text(manifest)
    assert one.faults() == ["checkpoints/distill-2: manifest.json is missing or broken"]


@pytest.mark.parametrize("state", ["[]", "{}", '{"lengths": 3}', '{"lengths": {"metrics.jsonl": "x"}}'])
def test_files_that_are_whole_and_no_state_are_reported(folder, state):
    with checkpoints.writing(folder, "distill", 2) as partial:
        (partial / "state.json").write_text(state)
        (partial / "state.safetensors").touch()
    (one,) = checkpoints.saved(folder, "distill")
    assert one.faults() == ["checkpoints/distill-2: state.json is no state"]


@pytest.mark.parametrize("marks", ["[]", "{", '{"distill": 3}', '{"distill": {"metrics.jsonl": "x"}}'])
def test_marks_that_are_none_are_passed_over(folder, run, marks):
    folder.checkpoints.mkdir()
    (folder.checkpoints / "marks.json").write_text(marks)
    assert checkpoints.marks(folder) == {} and resume_point(folder, run) is None


@pytest.mark.parametrize("error", [KeyError("weights"), ValueError("other parameters"), RuntimeError("sizes")])
def test_a_state_that_can_not_be_loaded_is_a_users_error(folder, error):
    writer = save(folder, 2)

    def load(state):
        assert state["step"] == 2
        raise error

    with pytest.raises(UserError, match="distill-2: is not of this training"):
        writer.restore(load)


# --- how many


def test_the_newest_are_kept(folder):
    save(folder, 2, 4, 6, 8, keep=3)
    assert names(folder) == ["distill-4", "distill-6", "distill-8"]
    assert [one.step for one in checkpoints.saved(folder, "distill")] == [8, 6, 4]


@pytest.mark.parametrize(
    ("best", "scores"), [("loss", [3.0, 1.0, 2.0, 4.0]), ("agreement/student", [0.1, 0.9, 0.8, 0.2])]
)
def test_and_the_best(folder, best, scores):
    save(folder, 2, 4, 6, 8, keep=1, best=best, scores=scores)
    assert names(folder) == ["distill-4", "distill-8"]
    assert checkpoints.best_of(folder, "distill").step == 4


def test_a_score_is_the_mean_since_the_checkpoint_before(folder):
    writer = CheckpointWriter(folder, "distill", Saving(best="loss", keep=9))
    for step, loss in enumerate([9.0, 1.0, 4.0, 2.0], start=1):
        writer.add_score({"loss": loss})
        if step % 2 == 0:
            writer.save(step, {"weights": {}})
    assert [one.score for one in checkpoints.saved(folder, "distill")] == [3.0, 5.0]
    assert writer.best().name == "distill-4"


@pytest.mark.parametrize("stopped", [4, 13, 17, 22, 30])
def test_the_best_is_the_same_wherever_a_run_was_interrupted(folder, stopped):
    def trained(stop):
        writer = CheckpointWriter(folder, "distill", Saving(best="loss", every_steps=10, every_minutes=None, keep=1))
        noise = random.Random(0)
        for step in range(1, 41):
            writer.add_score({"loss": 2 - 0.01 * step + noise.gauss(0, 0.3)})
            state = {"weights": {"w": torch.tensor([float(step)])}}
            if writer.is_due(step):
                writer.save(step, state)
            if step == stop:  # as Loop does on a signal
                writer.save(step, state, scored=False)
                writer = CheckpointWriter(folder, "distill", writer.saving)
                writer.restore(lambda _: None)
        best = checkpoints.best_of(folder, "distill")
        shutil.rmtree(folder.checkpoints)
        return best.step, best.score

    assert trained(stopped) == trained(None)


def test_a_checkpoint_is_due_by_steps_by_minutes_or_never(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    by_steps = CheckpointWriter(folder, "distill", Saving(every_steps=4, every_minutes=None))
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [4, 8]
    by_minutes = CheckpointWriter(folder, "distill", Saving(every_minutes=2))
    never = CheckpointWriter(folder, "distill", Saving(every_minutes=None))
    now[0] = 119.0
    assert not by_minutes.is_due(1)
    now[0] = 120.0
    assert by_minutes.is_due(1) and not never.is_due(1)
    by_minutes.save(1, {"weights": {}})
    assert not by_minutes.is_due(2)


# --- where a run stands


def begin(folder, run, *, steps=0, stage="distill", all_steps=10):
    """The folder of a run in its last stage."""
    folder.log({"event": "models", "text": "m"})
    checkpoints.mark(folder, stage)
    folder.log({"event": "stage", "stage": stage})
    for step in range(1, steps + 1):
        folder.log({"stage": stage, "step": step, "steps": all_steps})


def done(folder, run, index):
    run_folder.stage(folder.root, run.stage_key(index)).path.mkdir(parents=True)


def test_a_run_without_marks_stands_nowhere(folder, run):
    folder.log({"stage": "distill", "step": 1, "steps": 10})
    assert resume_point(folder, run) is None


def test_a_run_resumes_from_its_newest_checkpoint_and_what_came_after_is_cut_off(folder, run):
    done(folder, run, 0)
    begin(folder, run, steps=4)
    (folder.tensorboard / "distill").mkdir(parents=True)
    events = folder.tensorboard / "distill" / "events"
    events.write_bytes(b"four")
    save(folder, 4)
    folder.log({"stage": "distill", "step": 5, "steps": 10})
    events.write_bytes(b"four and five")
    (events.parent / "events.later").touch()
    folder.skipped.touch()
    at = resume_point(folder, run)
    assert (at.stage, at.step, at.faults) == ("distill", 4, ())
    rewind(folder, at)
    assert [entry.get("step") for entry in folder.entries()] == [None, None, 1, 2, 3, 4]
    assert events.read_bytes() == b"four"
    assert not (events.parent / "events.later").exists() and not folder.skipped.exists()


def test_without_a_checkpoint_it_goes_on_from_the_beginning_of_its_stage(folder, run):
    done(folder, run, 0)
    begin(folder, run, steps=3)
    at = resume_point(folder, run)
    assert (at.stage, at.step) == ("distill", 0)
    rewind(folder, at)
    assert [entry["event"] for entry in folder.entries()] == ["models"]


def test_a_stage_that_another_run_has_trained_meanwhile_is_cut_off_whole(folder, run):
    begin(folder, run, stage="pretrain", steps=2, all_steps=4)
    done(folder, run, 0)
    at = resume_point(folder, run)
    assert at.stage == "distill" and at.lengths == checkpoints.marks(folder)["pretrain"]


def test_a_stage_that_this_run_has_trained_stays(folder, run):
    begin(folder, run, stage="pretrain", steps=4, all_steps=4)
    done(folder, run, 0)
    assert resume_point(folder, run) == ResumePoint("distill", lengths=None)


def test_an_earlier_stage_that_is_gone_takes_a_later_one_s_checkpoints_along(folder, run):
    """As after --overwrite of another run that shares the stage."""
    begin(folder, run, stage="pretrain", steps=4, all_steps=4)
    begin(folder, run, steps=2)
    save(folder, 2)
    at = resume_point(folder, run)
    assert at.stage == "pretrain"
    rewind(folder, at)
    assert names(folder) == ["marks.json"]


def test_a_trained_run_only_lacks_its_scores(folder, run):
    done(folder, run, 0)
    begin(folder, run, steps=10)
    done(folder, run, 1)
    assert resume_point(folder, run) == ResumePoint(None, lengths=None)
    checkpoints.mark(folder, SCORES)
    folder.log({"event": "evaluate"})
    at = resume_point(folder, run)
    assert str(at) == "its scores" and at.lengths["metrics.jsonl"] < folder.metrics.stat().st_size


# --- whose folder


def leave(root, run, versions=None):
    """A run that was interrupted at step 2."""
    with pytest.raises(KeyboardInterrupt), claim_folder(root, run) as (folder, _):
        begin(folder, run, steps=2)
        save(folder, 2)
        folder.log({"stage": "distill", "step": 3, "steps": 10})
        raise KeyboardInterrupt
    if versions:
        write_json(folder.record, {**folder.info(), "versions": versions})
    return folder


@pytest.fixture
def left(tmp_path, run):
    root = tmp_path / "runs"
    stage = run_folder.stage(root, run.stage_key(0)).path
    stage.mkdir(parents=True)
    return root, leave(root, run)


def test_the_same_run_again_resumes(left, run, capsys):
    root, folder = left
    assert folder.info()["status"] == "interrupted" and folder_state(folder, run) == "interrupted"
    with claim_folder(root, run) as (again, state):
        assert state == "resumed" and again == folder
        assert max(entry.get("step", 0) for entry in folder.entries()) == 2
    assert "interrupted, resumes from stage distill, step 2" in capsys.readouterr().err
    info = folder.info()
    (resumed,) = info["resumed"]
    assert (resumed["stage"], resumed["step"]) == ("distill", 2) and info["status"] == "finished"
    assert "error" not in info and not folder.checkpoints.exists()


def test_a_users_error_in_a_resumed_run_keeps_all_of_it(left, run):
    root, folder = left
    with pytest.raises(UserError), claim_folder(root, run):
        raise UserError("no such image folder")
    assert names(folder) == ["distill-2", "marks.json"] and folder.info()["status"] == "failed"
    assert folder_state(folder, run) == "interrupted"


def test_overwrite_starts_again(left, run):
    root, folder = left
    with claim_folder(root, run, overwrite=True) as (_, state):
        assert state == "new" and not folder.metrics.exists()
    assert (folder.path.parent / "unfinished-seed0-1" / "checkpoints" / "distill-2").is_dir()


def test_overwrite_starts_again_where_no_checkpoint_is_whole(left, run):
    root, folder = left
    (folder.checkpoints / "distill-2" / "state.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint of stage distill is intact"), claim_folder(root, run):
        pass
    with claim_folder(root, run, overwrite=True) as (_, state):
        assert state == "new"


def test_a_run_that_was_killed_before_its_record_was_whole_is_a_new_one(tmp_path, run):
    root = tmp_path / "runs"
    folder = run_folder.folder(root, run)
    folder.path.mkdir(parents=True)
    (folder.path / ".run.json.123").write_text("{")
    with claim_folder(root, run) as (_, state):
        assert state == "new"
    assert not list(folder.path.glob(".*"))


def test_another_program_asks_first(tmp_path, left, run):
    root, folder = left
    write_json(folder.record, {**folder.info(), "versions": {"torch": "1.0"}})
    with pytest.raises(UserError) as asked, claim_folder(root, run):
        pass
    assert any("interrupted at stage distill, step 2, and begun with torch 1.0, now" in p for p in asked.value.problems)
    assert asked.value.hint.startswith("add --resume")
    with claim_folder(root, run, resume=True) as (_, state):
        assert state == "resumed"


def test_how_often_is_saved_makes_no_other_run(tmp_path, run):
    other = load(tmp_path / "small.yaml", overrides=["checkpoints.every_steps=7", "checkpoints.best=loss/ce"])
    assert other.config.checkpoints.every_steps == 7
    assert other.key == run.key and other.stage_key(1) == run.stage_key(1)


def test_skipping_makes_another_run_and_its_default_none(tmp_path, run):
    stop = load(tmp_path / "small.yaml", overrides=["stages.distill.not_finite=stop"])
    skip = load(tmp_path / "small.yaml", overrides=["stages.distill.not_finite=skip"])
    assert stop.key == run.key != skip.key
    assert "not_finite" not in run.config.stages[1].model_dump(mode="json")
    assert "not_finite: skip" in skip.text


def test_a_best_figure_that_is_not_logged_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="unknown figure, got 'loss/algin' .did you mean 'loss/align'"):
        load(tmp_path / "small.yaml", overrides=["checkpoints.best=loss/algin"])
