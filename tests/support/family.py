"""What every family of models has to do: a test class that each family's own tests inherit."""

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig

from switchkd_cli import registry
from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.workload import Computation, Models
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.image import images_of
from switchkd_cli.engine.data.rows import Row, Rows
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.vision_language_model import ProjectedImage, VisionLanguageModel
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.training.loop import Loop, train
from switchkd_cli.engine.training.own_answers import answer_spans, with_answers
from switchkd_cli.recipe.schema import Stage
from tests.support.measured import micro_batch
from tests.support.tiny import SWITCH_KD

SIZES = {"a": (40, 24), "b": (24, 40), "c": (33, 25)}  # width and height of the images
ROWS = [
    Row("two", (("What differs?", "the dog"), ("And?", "a cat")), ("a.png", "b.png")),
    Row("one", (("What is it?", "a bus"),), ("c.png",)),
    Row("none", (("Say hi.", "hi there"),)),
]
OBJECTIVE = [
    {"name": "ce", "loss": "cross_entropy"},
    {"name": "align", "loss": "dbild", "of": "student", "to": "teacher"},
    {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"},
    {"name": "tokens", "loss": "token_mse", "of": "student", "to": "teacher", "weight": 0.1},
]
OWN = {"loss": "reverse_kl", "to": "teacher", "answers": "own"}


class FamilyTests(ABC):
    """Inherit it as `class TestName(FamilyTests)` and say what the family's models are."""

    family: str
    """Its name in the registry."""

    @abstractmethod
    def student(self) -> VisionLanguageModel:
        """A model of a few thousand parameters, always the same."""

    @abstractmethod
    def teacher(self) -> VisionLanguageModel:
        """A wider one, with the student's build of vision encoder but other weights."""

    @abstractmethod
    def whole(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        """Logits [B, T, V] of the model's own forward pass, not taken apart."""

    def data(
        self, model: VisionLanguageModel, folder: Path, rows: list[Row] | None = None, turns: str = "chained"
    ) -> Conversations:
        for number, (name, size) in enumerate(SIZES.items()):
            pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
        return Conversations(Rows(rows or ROWS, lambda row: row, images=folder, turns=turns), model.inputs)

    def batch(self, model: VisionLanguageModel, folder: Path, rows: list[Row] | None = None) -> Batch:
        data = self.data(model, folder, rows)
        return collate([data[i] for i in range(len(data))], pad_token=model.inputs.tokenizer.pad_token_id)

    def paths(self, student: VisionLanguageModel, teacher: VisionLanguageModel) -> Paths:
        return Paths(student, teacher, len(student.inputs.tokenizer)).eval()

    @pytest.fixture(autouse=True)
    def registered(self) -> None:
        assert self.family in registry.FAMILIES

    def test_a_batch_holds_examples_with_several_images_one_and_none(self, tmp_path):
        batch = self.batch(self.student(), tmp_path)
        assert batch.image_rows.tolist() == [0, 0, 1]
        assert batch.image.any(1).tolist() == [True, True, False]

    def test_an_example_in_a_batch_gives_what_it_gives_alone(self, tmp_path):
        student = self.student()
        batch = self.batch(student, tmp_path)
        keep = batch.predicting("all")
        with torch.no_grad():
            tokens = student.project(student.encode(batch.images), batch.images)
            together = student.logits(student.hidden_states(batch, tokens, keep))
            alone = []
            for part, kept in batch.rows(keep):
                tokens = student.project(student.encode(part.images), part.images)
                alone.append(student.logits(student.hidden_states(part, tokens, kept)))
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)

    def test_the_parts_one_after_another_are_the_whole_forward(self, tmp_path):
        student, teacher = self.student(), self.teacher()
        batch = self.batch(student, tmp_path)
        keep = batch.predicting("all")
        with torch.no_grad():
            logits = self.paths(student, teacher)(batch, {"student", "teacher"}, keep)
            for path, model in (("student", student), ("teacher", teacher)):
                torch.testing.assert_close(logits[path], self.whole(model, batch)[keep], rtol=1e-5, atol=1e-5)

    def test_a_teacher_as_its_own_student_gives_equal_logits_on_every_path(self, tmp_path):
        teacher = self.teacher()
        batch = self.batch(teacher, tmp_path)
        with torch.no_grad():
            names = (*SWITCH_KD, "reverse", "blind", "blind_student")
            logits = self.paths(copy.deepcopy(teacher), teacher)(batch, names, batch.predicting("all"))
        assert all(torch.equal(logits[path], logits["teacher"]) for path in ("student", "switch", "reverse"))
        assert torch.equal(logits["blind"], logits["blind_student"])
        assert not torch.equal(logits["blind"], logits["teacher"])

    def test_the_switch_gradient_reaches_the_student_s_vision_and_nothing_else(self, tmp_path):
        student, teacher = self.student(), self.teacher()
        paths = self.paths(student, teacher)
        batch = self.batch(student, tmp_path)
        paths(batch, {"switch"}, batch.predicting("answer"))["switch"].square().sum().backward()
        with_gradient = {id(p) for p in (*paths.parameters(), *teacher.parameters()) if p.grad is not None}
        assert with_gradient == {id(p) for p in student.used_parameters("vision").values()}

    def unlike_teacher(self) -> VisionLanguageModel:
        """A teacher with a vision encoder of another width, if the family's tests have one."""
        return self.teacher()

    def test_an_adapter_starts_as_nothing_and_learns_at_every_level(self, tmp_path):
        student = self.student()
        batch = self.batch(student, tmp_path)
        keep = batch.predicting("answer")
        for teacher in (self.teacher(), self.unlike_teacher()):
            both = [Blueprint(model.model.config, model.inputs, None) for model in (student, teacher)]
            paths, plain = self.paths(student, teacher), None
            if both[0].feature_map == both[1].feature_map:
                plain = paths(batch, {"switch"}, keep)["switch"]
            paths.switch_adapter = adapter = FeatureAdapter.between(*both, seed=0)
            logits = paths(batch, {"switch"}, keep)["switch"]
            assert plain is None or torch.equal(logits, plain)
            student.zero_grad()
            logits.square().sum().backward()
            with_gradient = {id(p) for p in (*paths.parameters(), *teacher.parameters()) if p.grad is not None}
            learning = {*student.used_parameters("vision").values(), *adapter.parameters()}
            assert with_gradient == {id(p) for p in learning}
            assert len(adapter.maps) == student.seam.levels(student.model.config)
            assert all(p.grad.any() for p in adapter.parameters())

    def test_text_alone_gives_every_trained_part_a_gradient(self, tmp_path):
        student, teacher = self.student(), self.teacher()
        batch = self.batch(student, tmp_path, ROWS[2:])
        logits = self.paths(student, teacher)(batch, {"student", "switch"}, batch.predicting("answer"))
        sum(each.square().sum() for each in logits.values()).backward()
        assert all(
            p.grad is not None for part in ("vision", "projector") for p in student.used_parameters(part).values()
        )

    def test_recomputing_layers_changes_no_gradient(self, tmp_path):
        gradients = []
        for what in ((), ("vision", "student", "switch")):
            student, teacher = self.student(), self.teacher()
            paths = self.paths(student, teacher)
            paths.recompute(what)
            batch = self.batch(student, tmp_path)
            logits = paths(batch, {"student", "switch"}, batch.predicting("answer"))
            sum(each.square().sum() for each in logits.values()).backward()
            gradients.append([p.grad for p in student.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(gradients[1]) > 0
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))

    def test_two_steps_are_trained_saved_read_again_and_answered(self, tmp_path):
        student, teacher = self.student(), self.teacher()
        data, lines = self.data(student, tmp_path), []
        before = {name: p.clone() for name, p in student.named_parameters()}
        settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
        stage = Stage.model_validate(settings | {"batch": 3, "steps": 2, "objective": OBJECTIVE})
        how = {"seed": 0, "precision": "fp32", "log": lines.append}
        train(stage, self.paths(student, teacher), data, **how)
        assert [line["step"] for line in lines if "step" in line] == [1, 2]
        (told,) = [line for line in lines if line.get("event") == "teacher"]
        assert {"images", "blank_images"} <= told.keys() and told["images"] != told["blank_images"]
        used = {id(p) for part in student.parts for p in student.used_parameters(part).values()}
        moved = {id(p) for name, p in student.named_parameters() if not torch.equal(p, before[name])}
        assert moved == used

        assert student.eval().save(tmp_path / "model", template=data.chat_template, end=data.end) == []
        again = check_checkpoint(str(tmp_path / "model"), family=self.family).build().eval()
        batch = self.batch(again, tmp_path)
        keep = batch.predicting("all")
        with torch.no_grad():
            logits = Paths(again, student, len(again.inputs.tokenizer))(batch, {"student", "teacher"}, keep)
        assert torch.equal(logits["student"], logits["teacher"])
        self.answers_are_the_forward_pass_s(again, tmp_path)

    def answers_are_the_forward_pass_s(self, model: VisionLanguageModel, folder: Path) -> None:
        """Greedy generation takes, token by token, what the forward pass has for its highest logit."""
        row = Row("q", (("What is it?", "x"),), ("c.png",))
        with Image.open(folder / "c.png") as image:
            prepared = model.inputs.prepare([image.convert("RGB")])
        content = [{"type": "image"}, {"type": "text", "text": row.exchanges[0][0]}]
        text = model.inputs.apply_chat_template([{"role": "user", "content": content}], answer_next=True)
        words = model.inputs.tokenizer
        generation = GenerationConfig(
            do_sample=False, max_new_tokens=4, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
        )
        with torch.inference_mode():
            inputs = [image.inputs for image in prepared]
            tokens = model.project(model.encode(inputs), inputs)
            shown = [ProjectedImage(image, each) for image, each in zip(prepared, tokens, strict=True)]
            lengths, answers = model.generate([text, text], [shown, shown], generation)
            assert torch.equal(answers[0], answers[1]) and lengths[0] == lengths[1]
            example = self.data(model, folder, [row])[0]
            prompt = example.input_ids[: lengths[0]]
            for number, token in enumerate(answers[0].tolist()):
                ids = torch.cat([prompt, answers[0][:number]])
                turn = torch.zeros_like(ids)
                position = model.inputs.position(ids, turn, inputs)
                given = type(example)("q", ids, ids, turn, ids == model.inputs.image_token, tuple(inputs), position)
                batch = collate([given], pad_token=words.pad_token_id)
                keep = torch.arange(len(ids))[None] == len(ids) - 1
                assert int(model.logits(model.hidden_states(batch, tokens, keep))[0].argmax()) == token
                if token == words.eos_token_id:
                    break

    def test_own_answers_are_written_as_the_data_s_are(self, tmp_path):
        """Other answers in an example's place are the example of a row with these answers, token by token."""
        student = self.student()
        asked = [
            (ROWS[0].exchanges, (("What differs?", "it"), ("And?", "the hat"))),
            *((r.exchanges,) * 2 for r in ROWS[1:]),
        ]
        rows = [[replace(row, exchanges=of[i]) for row, of in zip(ROWS, asked, strict=True)] for i in (0, 1)]
        for turns in ("chained",) if student.inputs.chained_only else ("chained", "independent"):
            given, other = (self.data(student, tmp_path, of, turns).with_teacher(student.inputs) for of in rows)
            for number in range(len(ROWS)):
                one, two = given[number], other[number]
                answers = [two.input_ids[slice(*span)] for span in answer_spans(two.labels)]
                end = student.inputs.tokenizer.convert_tokens_to_ids(given.end)
                written = with_answers(one, answers, end, student.inputs)
                for field in ("input_ids", "labels", "turn", "image"):
                    assert torch.equal(getattr(written, field), getattr(two, field)), field
                position = student.inputs.position(written.input_ids, written.turn, written.images)
                assert position is None or torch.equal(position, two.position)

    def test_greedy_own_answers_are_those_of_an_evaluation(self, tmp_path):
        student = self.student()
        data = self.data(student, tmp_path)
        settings = {"name": "distill", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 3, "steps": 1}
        settings |= {"answers": {"own": 1.0, "max_tokens": 4, "temperature": 0.0}, "objective": [OWN]}
        stage = Stage.model_validate(settings)
        loop = Loop(stage, self.paths(student, self.teacher()), data, seed=0, precision="fp32", log=print)
        batch = collate([data[i] for i in range(3)], pad_token=student.inputs.tokenizer.pad_token_id)
        ((own,), figures), reader = loop.answers([batch], 0), GreedyModel(student)
        assert figures["own/share"] == 1
        for row, example in zip(ROWS, own.examples(), strict=True):
            images = images_of(row, data.rows)
            with torch.inference_mode():
                text = reader._text(row.exchanges[0][0], len(images))
                expected = reader.generate([text], [images], 4)[1][0]
            begin, stop = answer_spans(example.labels)[0]
            # up to a token that no answer may have: a visual one, or one that the tokenizer doesn't know
            ends = torch.cat([loop.answers.never, torch.tensor([loop.answers.end])])
            count = next((i for i, token in enumerate(expected) if token in ends), len(expected))
            assert torch.equal(example.input_ids[begin : begin + count], expected[:count])
            assert stop - begin == 4 or example.input_ids[stop - 1] == loop.answers.end

    def test_the_plan_s_figures_are_those_that_are_measured(self, tmp_path):
        student, teacher = self.student(), self.teacher()
        family = registry.resolve("family", self.family)
        for model in (student, teacher):
            planned = family.shape(model.model.config)
            assert (planned.total, planned.trainable) == self.parameters(model)
        rows = [Row(str(i), (("What is it?", "a bus" + " and" * i),), (self.usual_image(tmp_path),)) for i in range(2)]
        batch = self.batch(student, tmp_path, rows)
        assert int(batch.image.sum()) == 2 * family.shape(student.model.config).projector.tokens
        paths = self.paths(student, teacher)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits = paths(batch, set(SWITCH_KD), batch.predicting("answer"))
            sum(each.square().sum() for path, each in logits.items() if path != "teacher").backward()
        both = {"student": student, "teacher": teacher}
        models = Models({name: family.shape(of.model.config) for name, of in both.items()}, 1)
        computed = Computation(models, frozenset(map(paths.known.get, SWITCH_KD)), frozenset(student.parts))
        planned = flops.step(micro_batch(batch), computed)
        assert planned == pytest.approx(counter.get_total_flops(), rel=1e-6)

    def parameters(self, model: VisionLanguageModel) -> tuple[dict[str, int], dict[str, int]]:
        """How many there are, part by part, and how many of them a forward pass uses."""
        unique = {part: {id(p): p for m in modules for p in m.parameters()} for part, modules in model.parts.items()}
        used = {part: sum(p.numel() for p in model.used_parameters(part).values()) for part in unique}
        return {part: sum(p.numel() for p in of.values()) for part, of in unique.items()}, used

    def usual_image(self, folder: Path) -> str:
        """An image of the size that a plan counts with."""
        Image.new("RGB", (32, 32)).save(folder / "usual.png")
        return "usual.png"
