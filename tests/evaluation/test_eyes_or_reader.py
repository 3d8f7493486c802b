"""Eyes or reader: each path's accuracy by an explicit computation, parts that add up, and images that are changed."""

import math
from dataclasses import replace

import pytest
import torch

from switchkd_cli.engine.evaluation.against_teacher import eyes_or_reader, image_share
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import order
from switchkd_cli.report.texts import TEXTS
from tests.support import reference_losses, tiny


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


def read(paths, data, model, contrast, on="answer"):
    """One model's logits (or hidden states) of each example with an image, in float64, and the next tokens."""
    outputs, targets = [], []
    for example in (data[i] for i in range(len(data)) if data[i].images):
        batch = tiny.together(paths.student, [example])
        keep = batch.predicting(on)
        images = [{name: contrast * of for name, of in image.items()} for image in batch.images]
        with torch.no_grad():
            hidden = model.hidden_states(batch, model.project(model.encode(images), images), keep)
            outputs.append((hidden if on == "image" else model.logits(hidden)[:, : paths.vocabulary]).double())
        targets.append(batch.targets[keep])
    return outputs, torch.cat(targets)


def test_grounding_is_that_of_an_explicit_computation(pair):
    paths, data = pair
    found = eyes_or_reader(paths, data, precision="fp32")["grounding"]
    assert set(found) == {name for name, *_ in TEXTS["measured"]["grounding"].values()} | {
        "teacher_parameters",
        "teacher_context",
    }
    models = {"student": paths.student, "teacher": paths.teacher}
    losses = {}
    for image, contrast in {"given": 1.0, "faded": 0.5, "grey": 0.0}.items():
        outputs = {}
        for name, model in models.items():
            logits, targets = read(paths, data, model, contrast)
            outputs[name] = torch.cat(logits)
            losses[name, image] = torch.nn.functional.cross_entropy(outputs[name], targets).item()
        agreed = (outputs["student"].argmax(-1) == outputs["teacher"].argmax(-1)).double().mean().item()
        assert found[f"agreement_{image}"] == pytest.approx(agreed), image
    for name in models:
        context, guess = losses[name, "grey"] - losses[name, "given"], math.log(paths.vocabulary)
        assert found[f"{name}_context"] == pytest.approx(context, abs=1e-5)
        assert found[f"{name}_parameters"] == pytest.approx(guess - losses[name, "grey"], abs=1e-5)
    tokens = [read(paths, data, model, 1.0, on="image")[0] for model in (paths.teacher, paths.student)]
    each = torch.cat([reference_losses.cka(theirs, ours) for theirs, ours in zip(*tokens, strict=True)])
    assert found["cka"] == pytest.approx(1 - each.mean().item(), abs=1e-5)


def test_agreement_on_other_images_is_of_both_models_shown_the_same_one(pair):
    """Whether the teacher reads the same tokens as the student, or the row once more as its own."""
    paths, data = pair
    other, rows = eyes_or_reader(paths, data, precision="fp32")["grounding"]["agreement_other"], []
    last, chosen = None, order(len(data), len(data), seed=0)
    for example in (data[i] for i in chosen if data[i].images):
        if last is not None and not torch.equal(last[0]["pixel_values"], example.images[0]["pixel_values"]):
            rows.append(replace(example, images=last))
        last = example.images
    batch = tiny.together(paths.student, rows)
    with torch.no_grad():
        logits = paths(batch, ("student", "teacher"), batch.predicting("answer"))
    agreed = (logits["student"].argmax(-1) == logits["teacher"].argmax(-1)).double().mean().item()
    assert 0 < agreed < 1 and other == pytest.approx(agreed)
    twice = data.with_teacher(paths.teacher.inputs)
    assert eyes_or_reader(paths, twice, precision="fp32") == eyes_or_reader(paths, data, precision="fp32")


@pytest.mark.parametrize(
    ("loss", "grey", "tokens", "parameters", "context", "share"),
    [
        (0.0, math.log(4), 4, 0.0, math.log(4), 1.0),  # all is in the image
        (1.0, 1.0, math.exp(3), 2.0, 0.0, 0.0),  # nothing is
        (0.5, 1.5, math.exp(2.5), 1.0, 1.0, 0.5),
        (2.0, 1.0, math.exp(3), 2.0, -1.0, -1.0),  # it misleads
        (3.0, 3.5, math.exp(2), -1.5, 0.5, None),  # no better than a guess
    ],
)
def test_the_images_share_of_a_table(loss, grey, tokens, parameters, context, share):
    found = image_share(loss, grey, tokens)
    assert found == {
        "parameters": pytest.approx(parameters),
        "context": pytest.approx(context),
        "share": share if share is None else pytest.approx(share),
    }


def test_visual_tokens_are_likest_to_the_teachers_in_the_student_that_is_nearest_to_it(tmp_path):
    """Candidates before any training; CKA doesn't depend on their width."""
    teacher = tiny.model(24, seed=2)
    near, far = tiny.model(24, seed=2), tiny.model(16, seed=3)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    def cka(student):
        paths = Paths(student, teacher, len(student.inputs.processor.tokenizer))
        return eyes_or_reader(paths, tiny.conversations(student, tmp_path), precision="fp32")["grounding"]["cka"]

    assert cka(teacher) == pytest.approx(1.0, abs=1e-5) and 1 > cka(near) > cka(far) > 0


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
