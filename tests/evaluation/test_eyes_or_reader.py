"""Eyes or reader: each path's accuracy by an explicit computation, parts that add up, and images that are exchanged."""

import pytest
import torch

from switchkd_cli.engine.evaluation.against_teacher import eyes_or_reader
from switchkd_cli.engine.paths import Paths
from switchkd_cli.report.texts import TEXTS
from tests.support import tiny


@pytest.fixture
def pair(tmp_path):
    """Paths of two unlike models, and rows of which one has no image."""
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer)).eval()
    return paths, tiny.conversations(student, tmp_path, which=tiny.rows(tmp_path) * 2)


def by_hand(paths, data, eyes, reader, image=lambda number: number):
    """The share of right first choices, row by row, with one model's tower before another's projector and language model."""
    examples = [data[i] for i in range(len(data))]
    seeing = [i for i, example in enumerate(examples) if example.images]
    right = []
    for place, i in enumerate(seeing):
        batch = tiny.together(paths.student, [examples[i]])
        keep = batch.predicting("answer")
        images = image(place, batch.images)
        with torch.no_grad():
            tokens = reader.project(eyes.encode(images), images)
            logits = reader.logits(reader.hidden_states(batch, tokens, keep))[:, : paths.vocabulary]
        right += (logits.argmax(-1) == batch.targets[keep]).tolist()
    return sum(right) / len(right)


def test_each_accuracy_is_that_of_its_tower_and_its_reader(pair):
    paths, data = pair
    student, teacher = paths.student, paths.teacher
    found = eyes_or_reader(paths, data, precision="fp32")
    assert set(found["accuracy"]) == {name for name, *_ in TEXTS["measured"]["accuracies"].values()}
    towers = {"student": (student, student), "reverse": (teacher, student), "switch": (student, teacher)}
    for name, (eyes, reader) in {**towers, "teacher": (teacher, teacher)}.items():
        expected = by_hand(paths, data, eyes, reader, lambda place, images: images)
        assert found["accuracy"][name] == pytest.approx(expected), name

    def grey(place, images):
        return [{name: torch.zeros_like(of) for name, of in image.items()} for image in images]

    for name, model in {"student_grey": student, "teacher_grey": teacher}.items():
        assert found["accuracy"][name] == pytest.approx(by_hand(paths, data, model, model, grey)), name


def test_the_parts_add_up_to_the_gap(pair):
    found = eyes_or_reader(*pair, precision="fp32")
    accuracy = found["accuracy"]
    assert found["gap"] == pytest.approx(accuracy["teacher"] - accuracy["student"])
    assert found["eyes"] + found["reader"] + found["interaction"] == pytest.approx(found["gap"])
    assert found["eyes"] == pytest.approx(accuracy["reverse"] - accuracy["student"])
    assert found["reader"] == pytest.approx(accuracy["switch"] - accuracy["student"])


def test_a_model_compared_with_itself_lacks_nothing(tmp_path):
    model = tiny.model(seed=1)
    paths = Paths(model, model, len(model.inputs.processor.tokenizer))
    found = eyes_or_reader(paths, tiny.conversations(model, tmp_path), precision="fp32")
    assert [found[part] for part in ("gap", "eyes", "reader", "interaction")] == [0.0] * 4


def test_another_image_is_one_of_an_earlier_row_and_differs(pair, monkeypatch):
    """Rows whose images are all alike have no other: nothing is measured with the row's own image under that name."""
    paths, data = pair
    original = type(data).__getitem__

    def alike(self, index):
        example = original(self, index)
        images = tuple({name: torch.ones_like(of) for name, of in image.items()} for image in example.images)
        return type(example)(**{**vars(example), "images": images})

    assert "student_other" in eyes_or_reader(paths, data, precision="fp32")["accuracy"]
    monkeypatch.setattr(type(data), "__getitem__", alike)
    assert "student_other" not in eyes_or_reader(paths, data, precision="fp32")["accuracy"]


def test_without_images_there_is_nothing_to_say(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer))
    rows = [tiny.row("a", None, ("What?", "nothing"))]
    assert eyes_or_reader(paths, tiny.conversations(student, tmp_path, which=rows), precision="fp32") is None
