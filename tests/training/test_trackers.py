"""Trackers: what they are given, how a run resumes in them, and that one which fails ends no training."""

import inspect
import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from accelerate import tracking

from switchkd_cli.engine.training import trackers
from switchkd_cli.engine.training.trackers import Trackers
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load
from switchkd_cli.registry import TRACKERS
from switchkd_cli.runs.run_folder import RunFolder
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support import tiny_run
from tests.support.small_recipe import write

STAGES = [("pretrain", 3), ("distill", 8)]
RESUMED = {  # what a resumed run's tracker is started with, and whether it is given the recipe again
    "tensorboard": ({"run_name": "tensorboard"}, False),
    "wandb": ({"id": "its-id", "resume": "allow"}, False),
    "mlflow": ({"run_id": "its-id"}, False),
    "trackio": ({"name": "its-name", "resume": "allow"}, True),
    "comet_ml": ({"experiment_key": "its-id"}, True),
    "clearml": ({"reuse_last_task_id": "its-id", "continue_last_task": 0}, False),  # a name there would shift its steps
    "dvclive": ({"resume": True}, True),
    "swanlab": ({"id": "its-id", "resume": "allow"}, True),
    "aim": ({"run_hash": "its-hash", "force_resume": True}, True),
}
RESULTS = {"scores": {"gqa": {"score": 61.5}}, "fidelity": {"data": "rows", "agreement": 0.9}}


class Recorded:
    """A tracker that notes what it is given; `fails` names the method that raises, or waits for long."""

    fails, waits, made = "", "", []

    def __init__(self, run_name=None, **arguments):
        self.given = {"run_name": run_name, **arguments}
        self.tracker = SimpleNamespace(
            id="its-id", name="its-name", hash="its-hash", info=SimpleNamespace(run_id="its-id")
        )
        self.lines, self.recipe, self.ended, self.environment = [], None, False, {}
        self.made.append(self)

    def _call(self, method):
        if method == self.waits:
            time.sleep(60)
        if method == self.fails:
            raise SystemExit(f"no {method}")

    def start(self):
        self.environment = dict(os.environ)
        self._call("start")

    def store_init_configuration(self, values):
        self.recipe = values

    def log(self, values, step):
        self._call("log")
        self.lines.append((step, values))

    def log_images(self, values, step):
        self.images = values

    def finish(self):
        self._call("finish")
        self.ended = True


@pytest.fixture
def recorded(monkeypatch):
    """The class that stands for W&B's tracker: nothing fails, until a test says so."""
    kind = type("Recorded", (Recorded,), {"made": []})
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", kind)
    monkeypatch.setattr(trackers, "PATIENCE", 5.0)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return kind


@pytest.fixture
def run(tmp_path):
    return load(write(tmp_path), overrides=['trackers=["wandb", "tensorboard"]'])


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "small" / "switch-kd" / "seed0")
    folder.path.mkdir(parents=True)
    return folder


def steps(given):
    """Log the steps of a training, with an event between its stages."""
    for stage, count in STAGES:
        given.log({"event": "warning", "stage": stage, "text": "some"})
        for step in range(1, count + 1):
            given.log({"stage": stage, "step": step, "steps": count, "loss": 1 / step})


def told(folder):
    return [entry["text"] for entry in folder.entries() if entry.get("event") == "tracker"]


def test_the_registry_has_every_tracker_of_accelerate_with_arguments_that_it_takes():
    assert TRACKERS.keys() == tracking.LOGGER_TYPE_TO_CLASS.keys()
    for name, entry in TRACKERS.items():
        inspect.signature(tracking.LOGGER_TYPE_TO_CLASS[name]).bind(**entry["arguments"] | entry.get("resume", {}))


def test_a_tracker_is_given_the_recipe_every_step_the_scores_and_images(run, folder, recorded):
    with Trackers(run, folder) as given:
        given.start()
        given.images([trackers.np.zeros((4, 6, 3), "uint8")])
        steps(given)
        given.scores(RESULTS)
    (theirs,) = recorded.made
    assert theirs.given["run_name"] == "small" and theirs.given["name"] == "switch-kd/seed0"
    assert theirs.given["tags"] == ["small", "switch-kd"]
    assert theirs.given["dir"] == str(folder.trackers / "wandb")
    assert theirs.recipe["stages.distill.objective.vsd.weight"] == 0.5
    assert [step for step, _ in theirs.lines] == [*range(1, 12), 11, 11]
    assert theirs.lines[3] == (4, {"distill/loss": 1.0})
    assert theirs.lines[-2:] == [(11, {"scores/gqa": 61.5}), (11, {"fidelity/agreement": 0.9})]
    assert theirs.images["images/0"].shape == (1, 4, 6, 3) and theirs.ended
    assert told(folder) == [] and len(list(folder.entries())) == 13


def test_tensorboard_shows_what_the_metrics_say(run, folder, recorded):
    with Trackers(run, folder) as given:
        given.start()
        steps(given)
    lines = [entry for entry in folder.entries() if "steps" in entry]
    shown = tiny_run.scalars(folder.path)
    assert [step for step, _ in shown["pretrain/loss"] + shown["distill/loss"]] == list(range(1, 12))
    values = [value for _, value in shown["pretrain/loss"] + shown["distill/loss"]]
    assert values == pytest.approx([entry["loss"] for entry in lines])


def never():
    """Images that nobody should open."""
    raise AssertionError("opened")
    yield


def test_a_resumed_run_resumes_its_tracker_s_run_and_steps(run, folder, recorded):
    with Trackers(run, folder) as given:
        given.start()
        given.log({"stage": "pretrain", "step": 3, "steps": 3, "loss": 1.0})
    assert json.loads((folder.trackers / "wandb" / "resume.json").read_text()) == {"id": "its-id"}
    with Trackers(run, folder) as given:
        given.start()
        given.images(never())
        given.log({"stage": "distill", "step": 1, "steps": 8, "loss": 1.0})
    first, second = recorded.made
    assert "id" not in first.given and second.given["id"] == "its-id"
    assert second.recipe is None and not hasattr(second, "images")
    assert second.lines == [(4, {"distill/loss": 1.0})]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_goes_on_in_each_tracker_with_its_recipe(run, folder, recorded, monkeypatch, name):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, recorded)
    run = replace(run, config=run.config.model_copy(update={"trackers": (name,)}))
    for _ in range(2):
        with Trackers(run, folder) as given:
            given.start()
    first, second = recorded.made
    arguments, again = RESUMED[name]
    assert second.given == first.given | arguments
    assert (second.recipe is not None) is again and bool(first.recipe or first.lines)


def test_a_run_is_offline_unless_the_user_says_otherwise(run, folder, recorded, monkeypatch):
    with Trackers(run, folder) as given:
        given.start()
    assert recorded.made[0].environment["WANDB_MODE"] == "offline" and "WANDB_MODE" not in os.environ
    monkeypatch.setenv("WANDB_MODE", "online")
    with Trackers(run, folder) as given:
        given.start()
    assert recorded.made[1].environment["WANDB_MODE"] == os.environ["WANDB_MODE"] == "online"


@pytest.mark.parametrize(("fails", "failed"), [("start", "14 of 14"), ("log", "12 of 14"), ("finish", "1 of 14")])
@pytest.mark.parametrize("how", ["fails", "waits"])
def test_a_tracker_that_fails_or_hangs_is_told_once_and_counted(run, folder, recorded, monkeypatch, how, fails, failed):
    setattr(recorded, how, fails)
    monkeypatch.setattr(trackers, "PATIENCE", 5.0 if how == "fails" else 0.3)
    with Trackers(run, folder) as given:
        given.start()
        steps(given)
    problem = f"SystemExit: no {fails}" if how == "fails" else f"no answer for {1 if fails == 'start' else 0} seconds"
    first, last = told(folder)
    assert first == f"wandb: {problem}: the training continues without it"
    assert last == f"wandb: {failed} calls failed; metrics.jsonl has all figures"
    assert sum("steps" in entry for entry in folder.entries()) == 11
    assert len(tiny_run.scalars(folder.path)["distill/loss"]) == 8


def test_a_tracker_that_fails_for_a_while_is_given_the_later_steps(run, folder, recorded):
    with Trackers(run, folder) as given:
        given.start()
        recorded.fails = "log"
        given.log({"stage": "pretrain", "step": 1, "steps": 3, "loss": 1.0})
        recorded.fails = ""
        given.log({"stage": "pretrain", "step": 2, "steps": 3, "loss": 1.0})
    assert [step for step, _ in recorded.made[0].lines] == [2] and recorded.made[0].ended
    assert told(folder)[1:] == ["wandb: 1 of 5 calls failed; metrics.jsonl has all figures"]


def test_trackers_are_no_part_of_a_key_and_a_recipe_without_them_is_what_it_was(tmp_path):
    plain = load(write(tmp_path))
    other = load(write(tmp_path), overrides=RunOptions(tracker=["wandb"]).changes([]))
    assert other.config.trackers == ("wandb",) and "trackers:" not in plain.text
    assert other.key == plain.key and other.stage_key(1) == plain.stage_key(1)


def test_a_wrong_or_missing_tracker_is_told_before_training(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"trackers.0: unknown tracker, got 'wandbb' \(did you mean 'wandb'\?\)"):
        load(write(tmp_path), overrides=RunOptions(tracker=["wandbb"]).changes([]))
    with pytest.raises(UserError, match="trackers need different names, got 'mlflow' twice"):
        load(write(tmp_path), overrides=["trackers=[mlflow, mlflow]"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed, and the recipe needs it") as error:
        preflight.check_named([load(write(tmp_path), overrides=["trackers=[wandb]"])])
    assert (error.value.code, error.value.hint) == (MACHINE, "pip install wandb")
