"""A teacher that doesn't see is reported before the first step; one that sees is not, and no number of the run changes."""

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from switchkd_cli import registry
from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.build import load
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training import loop as training
from switchkd_cli.engine.training.loop import Loop, train
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.engine.training.training_warnings import look
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny

ROWS = 24
CE = {"name": "ce", "loss": "cross_entropy"}
ALIGN = {"name": "align", "loss": "forward_kl", "to": "teacher"}
LABEL = "images of the teacher"


def stage(**changes):
    settings = {"name": "distill", "data": "rows", "train": ["projector"], "lr": 1e-3, "batch": 4, "steps": 2}
    return Stage.model_validate(settings | {"objective": [CE, ALIGN], "workers": 0} | changes)


# planted faults: each is given a `Case`, before its data are read


class Case:
    """The playground's teacher, with itself as a student that prepares the data, and rows of its world."""

    def __init__(self, model, rows, patch):
        self.teacher, self.student, self.patch = copy.deepcopy(model), copy.deepcopy(model), patch
        self.tower, self.processor = self.teacher.core.vision_tower, self.student.inputs.processor.image_processor
        self.data = Conversations(rows, self.student.inputs)

    def look(self):
        paths = Paths(self.student, self.teacher, len(self.student.inputs.tokenizer))
        examples = [self.data[row] for row in range(ROWS)]
        group = [tiny.together(self.student, examples[at : at + 8]) for at in range(0, ROWS, 8)]
        return look(Trainer(stage(), paths, 1, precision="fp32"), group)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    source, folder = registry.resolve("source", "playground"), tmp_path_factory.mktemp("world")
    return load("playground:teacher"), source(folder, kind="instructions", pictures=ROWS, turns=4, seed=2)


@pytest.fixture
def case(shipped, monkeypatch):
    return Case(*shipped, monkeypatch)


def fill(modules, std=0.0):
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        for weight in module.parameters():
            weight.data.normal_(0, std, generator=generator) if std else weight.data.zero_()


def decode_as(image):
    def plant(case):
        case.patch.setattr("switchkd_cli.engine.data.image._rgb", lambda *_: image)

    return plant


def zeroed_pixels(case):
    case.processor.rescale_factor, case.processor.image_mean = 0.0, [0.0] * 3


def huge_std(case):
    case.processor.image_std = [50.0] * 3


def no_place(case):
    """No token has the id that the config says: there is no place for the features."""

    def nowhere(input_ids, inputs_embeds, *_, **__):
        return torch.zeros_like(inputs_embeds, dtype=torch.bool)

    case.patch.setattr(case.teacher.core, "get_placeholder_mask", nowhere)


def other_rows_images(case):
    original = Conversations.example

    def shifted(self, row):
        return replace(original(self, row), images=original(self, (row + 1) % ROWS).images)

    case.patch.setattr(Conversations, "example", shifted)


def same_answers(case):
    original, yes = Conversations.example, case.student.inputs.tokenizer("yes").input_ids[-1]

    def answered(self, row):
        example = original(self, row)
        ids, labels = (torch.where(example.labels != IGNORE, yes, of) for of in (example.input_ids, example.labels))
        return replace(example, input_ids=ids, labels=labels)

    case.patch.setattr(Conversations, "example", answered)


# Not here: another feature layer. The playground's teacher still sees by any of its layers (its loss stays far below that for
# blank images), so that this check can't find it; nor one that is only short-sighted.
FAULTS = {
    "data of one colour": decode_as(Image.new("RGB", (72, 72), "red")),
    "every file is decoded as one image": decode_as(Image.radial_gradient("L").convert("RGB")),
    "the image processor zeroes the pixels": zeroed_pixels,
    "a huge standard deviation": huge_std,
    "no place for the features": no_place,
    "a projector of zeros": lambda case: fill(case.teacher.parts["projector"]),
    "a projector that was not loaded": lambda case: fill(case.teacher.parts["projector"], 0.02),
    "a tower of zeros": lambda case: fill([case.tower]),
    "a tower that reads no patches": lambda case: fill([case.tower.embeddings.patch_embedding]),
    "another row's image": other_rows_images,
    "answers that depend on no image": same_answers,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_teacher_that_does_not_see_is_reported(case, fault):
    FAULTS[fault](case)
    figures, warning = case.look()
    assert warning.startswith(f"the teacher may not see: its loss on the answers is {figures['images']:.3g} nats with")
    assert f"{figures['blank_images']:.3g} nats with blank ones" in warning and "image processor" in warning


@pytest.mark.parametrize("told", [False, True])
def test_a_teacher_that_sees_is_not(case, told):
    if told:  # a path that reads the answer in its question, in addition to the plain ones
        more = {"readers": ("told",), "prompt": "{answer}. {question}"}
        case.data = case.data.with_teacher(case.student.inputs, **more)
    figures, warning = case.look()
    assert not warning
    assert figures["images"] < 0.9 * min(figures["blank_images"], figures["other_images"])


# the tiny pair, whose teacher has learnt nothing


def loop_of(folder, lines, *, seed=0, rows=None, **changes):
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.tokenizer))
    data = tiny.conversations(student, folder, "independent", rows)
    return Loop(stage(**changes), paths, data, seed=seed, log=lines.append, precision="fp32")


def of_sight(lines):
    return [line for line in lines if line.get("event") == "teacher" or line.get("about") == LABEL]


def test_the_figures_are_means_over_the_answers_of_rows_with_an_image(tmp_path):
    lines = []
    loop = loop_of(tmp_path, lines, micro_batch=2)
    teacher, examples = loop.trainer.paths.teacher, [loop.data[row] for row in range(4)]
    loop.run()
    losses = {"images": [], "blank_images": [], "other_images": []}
    visited = [examples[row] for row in loop.rounds.left(0)[:4] if examples[row].images]
    for example, other in zip(visited, [visited[0], *visited], strict=False):  # the image of the row before
        blank = ({"pixel_values": torch.zeros_like(example.images[0]["pixel_values"])},)
        for name, images in zip(losses, (example.images, blank, other.images), strict=True):
            batch = tiny.together(teacher, [replace(example, images=images)])
            keep = batch.predicting("answer")
            with torch.no_grad():
                tokens = teacher.project(teacher.encode(batch.images), batch.images)
                logits = teacher.logits(teacher.hidden_states(batch, tokens, keep))
            losses[name] += torch.nn.functional.cross_entropy(logits, batch.targets[keep], reduction="none").tolist()
    told, warning = of_sight(lines)
    assert {name: told[name] for name in losses} == pytest.approx({n: sum(of) / len(of) for n, of in losses.items()})
    assert lines[:2] == [told, warning] and warning["event"] == "warning"  # before the first step


@pytest.mark.parametrize("states", ["batched", "by_row"])
def test_looking_changes_no_number(tmp_path, monkeypatch, states):
    def numbers():
        lines = []
        loop = loop_of(tmp_path, lines, steps=3, teacher_states=states)
        loop.run()
        clock = {"seconds", "tokens_per_second", "data_wait", "memory_mib"}
        steps = [{k: v for k, v in line.items() if k not in clock} for line in lines if "step" in line]
        states_seen = loop.trainer.paths.states and vars(loop.trainer.paths.states)
        return steps, states_seen, list(loop.trainer.trained.values()), torch.get_rng_state(), len(of_sight(lines))

    *looked, count = numbers()
    monkeypatch.setattr(training, "look", lambda *_: None)
    *blind, none = numbers()
    assert looked[:2] == blind[:2] and (count, none) == (2, 0)
    assert all(torch.equal(a, b) for a, b in zip((*looked[2], looked[3]), (*blind[2], blind[3]), strict=True))


def test_the_first_step_with_an_image_counts_and_a_resumed_run_does_not_look_again(tmp_path):
    seed = next(
        seed for seed in range(50) if loop_of(tmp_path, [], seed=seed, batch=1).rounds.left(0)[0] == 1
    )  # row b: no image
    lines, resumed = [], []
    loop = loop_of(tmp_path, lines, seed=seed, batch=1, steps=4)
    loop.steps = 1
    loop.run()
    assert not of_sight(lines) and not loop.looked
    loop = loop_of(tmp_path, lines, seed=seed, batch=1, steps=4)
    loop.steps = 3
    loop.run()
    assert len(of_sight(lines)) == 2
    state = loop.state_dict()
    loop = loop_of(tmp_path, resumed, seed=seed, batch=1, steps=4)
    loop.load_state_dict(state)
    loop.run()
    assert [line["step"] for line in resumed if "step" in line] == [4] and not of_sight(resumed)


def test_without_images_or_teacher_nothing_is_said(tmp_path):
    student, lines = tiny.model(seed=1), []
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.tokenizer))
    text = tiny.conversations(student, tmp_path, which=[tiny.row("b", None, ("Say hi.", "hi there"))] * 4)
    train(stage(train=["language"]), paths, text, seed=0, precision="fp32", log=lines.append)
    pictured = tiny.conversations(student, tmp_path)
    train(stage(objective=[CE]), paths, pictured, seed=0, precision="fp32", log=lines.append)
    assert len([line for line in lines if "step" in line]) == 4 and not of_sight(lines)


def test_a_single_image_is_compared_with_a_blank_one_alone(tmp_path):
    lines = []
    loop_of(tmp_path, lines, rows=tiny.rows(tmp_path)[-1:] * 4, batch=1, steps=1).run()
    told, warning = of_sight(lines)
    assert "other_images" not in told and "another row" not in warning["text"]
