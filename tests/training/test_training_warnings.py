"""Training warnings: each appears with its cause, and only then."""

import io

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.diagnostics import gradient_norms_by_term
from switchkd_cli.engine.training.loop import train
from switchkd_cli.engine.training.training_warnings import FAINT, SMOOTHED, STARVED, TrainingWarnings
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.terminal.progress import Progress
from tests.support import tiny, together

CE = {"name": "ce", "loss": "cross_entropy"}
ALIGN = {"name": "align", "loss": "dbild", "of": "student", "to": "teacher"}
VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}


def stage(**changes):
    settings = {
        "name": "distill",
        "data": "rows",
        "train": ["vision", "projector", "language"],
        "lr": 1e-3,
        "batch": 4,
        "steps": 4,
        "objective": [CE, ALIGN, VSD],
    }
    return Stage.model_validate(settings | changes)


def log_of(folder, **changes):
    """Return a stage's log; the teacher is untrained."""
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    paths, lines = Paths(student, teacher, len(student.inputs.processor.tokenizer)), []
    data = tiny.conversations(student, folder)
    train(stage(**changes), paths, data, seed=0, precision="fp32", log=lines.append)
    return lines


def warned(lines):
    return {line["about"]: line["text"] for line in lines if line.get("event") == "warning"}


def warnings_of(figures, *, steps=SMOOTHED, **changes):
    """Return the warnings if every diagnosed step has the same figures."""
    warnings = TrainingWarnings(stage(**changes))
    return [w for step in range(steps) for w in warnings.check(step, figures, last=False)]


def test_a_student_that_passes_its_teacher_is_reported_with_both_figures(tmp_path):
    lines = log_of(tmp_path, objective=[CE, ALIGN | {"weight": 0.01}], steps=40, lr=1e-2)
    text = warned(lines)["teacher"]
    assert "not better than the student on the training tokens" in text and "nats at step" in text
    ahead = {"teacher_ce": 0.5, "student_ce": 1.0}
    assert not warnings_of(ahead)
    assert [about for about, _ in warnings_of({"teacher_ce": 1.0, "student_ce": 1.0})] == ["teacher"]


@pytest.mark.parametrize(
    ("bounds", "about", "bound"), [({"max_k": 4}, "k cut", "max_k"), ({"min_k": 400}, "k raised", "min_k")]
)
def test_a_bound_that_overrules_the_knee_is_reported_with_its_share(tmp_path, bounds, about, bound):
    lines = log_of(tmp_path, objective=[CE, ALIGN | {"parameters": bounds}])
    text = warned(lines)[about]
    assert f"sits at {bound}" in text and "teacher 100%" in text and "student 100%" in text
    free = log_of(tmp_path, objective=[CE, ALIGN])
    assert not {"k cut", "k raised"} & warned(free).keys()


def test_a_term_whose_gradient_is_lost_beside_another_is_reported(tmp_path):
    lines = log_of(tmp_path, objective=[CE, ALIGN | {"weight": 1e-6}])
    assert {f"gradient of align on {part}" for part in stage().train} <= warned(lines).keys()
    assert "of ce's" in warned(lines)["gradient of align on language"]
    assert not any(about.startswith("gradient") for about in warned(log_of(tmp_path, objective=[CE, ALIGN])))


def test_a_term_without_weight_is_left_alone(tmp_path):
    lines = log_of(tmp_path, objective=[CE, ALIGN | {"weight": 0.0}])
    assert not any(about.startswith("gradient") for about in warned(lines))


def test_the_switch_is_weighed_on_the_vision_tower_only(tmp_path):
    first = next(line for line in log_of(tmp_path) if "step" in line)
    measured = {name for name in first if name.startswith("grad/")}
    parts = stage().train
    assert measured == {f"grad/{term}/{part}" for term in ("ce", "align") for part in parts} | {"grad/vsd/vision"}


def test_a_vision_tower_that_an_adapter_starves_is_reported_with_the_remedy():
    starved = {"vision_share/vsd": 0.5 * STARVED}
    ((about, text),) = warnings_of(starved)
    assert about == "adapter and vsd" and "0.025 of vsd's gradient reaches the vision tower" in text
    assert "stages.distill.lr_scale='{adapter: 0.1}'" in text
    assert not warnings_of({"vision_share/vsd": STARVED})


@pytest.mark.parametrize("objective", [[VSD], [CE, VSD]])
def test_the_share_that_reaches_the_vision_tower_is_that_of_the_two_norms(tmp_path, objective):
    paths, lines = together.untrained(adapted=True), []
    data = tiny.conversations(paths.student, tmp_path).with_teacher(paths.teacher.inputs)
    trained = ["vision", *["language"] * (CE in objective), "adapter"]
    train(stage(objective=objective, train=trained), paths, data, seed=0, precision="fp32", log=lines.append)
    measured = [line for line in lines if "vision_share/vsd" in line]
    assert len(measured) == 4 and not any("vision_share/ce" in line for line in lines)
    for line in measured:
        vision, adapter = (line[f"grad/vsd/{part}"] for part in ("vision", "adapter"))
        assert line["vision_share/vsd"] == pytest.approx(vision / (vision + adapter))


def test_gradient_norms_are_the_norms_of_the_weighted_gradients_of_the_vectors():
    gain, matrix = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(2, 2, requires_grad=True)
    weighed = {"ce": (gain**2).sum() + matrix.sum(), "align": 0.5 * (3 * gain).sum()}
    measured = gradient_norms_by_term(weighed.items(), {"language": [gain, matrix]})
    assert measured == pytest.approx({"grad/ce/language": 20**0.5, "grad/align/language": 1.5 * 2**0.5})
    weighed["ce"].backward()  # the graph is still there, and nothing was added to any gradient
    assert gain.grad.tolist() == [2.0, 4.0]


def test_measuring_changes_no_step(tmp_path, monkeypatch):
    with_it = log_of(tmp_path)
    monkeypatch.setattr("switchkd_cli.engine.training.trainer.gradient_norms_by_term", lambda *_: {})
    without = log_of(tmp_path)
    assert [s["loss"] for s in with_it if "step" in s] == [s["loss"] for s in without if "step" in s]


def test_a_warning_is_said_once_and_not_before_there_is_enough_to_average():
    faint = {"grad/ce/vision": 1.0, "grad/vsd/vision": 0.5 * FAINT}
    assert not warnings_of(faint, steps=SMOOTHED - 1)
    assert len(warnings_of(faint, steps=3 * SMOOTHED)) == 1
    assert len(TrainingWarnings(stage()).check(0, faint, last=True)) == 1


def test_a_warning_is_one_line_of_progress(tmp_path):
    file, output = tmp_path / "metrics.jsonl", io.StringIO()
    file.write_text('{"event": "warning", "stage": "distill", "about": "teacher", "text": "it is worse: 2 nats"}\n')
    with Progress(output) as shown:
        shown.follow(file, "SFT (seed 1)")
    assert output.getvalue() == "SFT (seed 1): warning distill: it is worse: 2 nats\n"
