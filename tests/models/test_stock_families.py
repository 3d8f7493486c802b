"""transformers' own families: what a batch holds, and what V, P and L give, is what transformers' own code gives."""

import atexit
import copy
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from switchkd_cli import registry
from switchkd_cli.engine.batch import IGNORE, collate
from switchkd_cli.engine.build import check_checkpoint, open_data
from switchkd_cli.engine.compatibility import check_fit, compare
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.data_sample import DataSample, _counted, sample_data
from switchkd_cli.engine.cost.model_facts import describe_model
from switchkd_cli.engine.cost.run_estimate import _assumptions
from switchkd_cli.engine.cost.step_memory import FP32, activations
from switchkd_cli.engine.cost.workload import Computation, Models
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Row, Rows
from switchkd_cli.engine.models.vision_language_model import ProjectedImage, VisionLanguageModel
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import Machine
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.schema import Checkpoint, DataSet, Term
from tests.support import stock_models
from tests.support.family import ROWS, FamilyTests
from tests.support.measured import bytes_left
from tests.support.shipped_recipes import RECIPES
from tests.support.tiny import SWITCH_KD

PLACED = Row("placed", (("Is it ", "no"), ("Or this?", "yes")), ("c.png", "a.png"), places=((0, 6), (1, 0)))
SIZES = {"student": {"width": 32, "layers": 2, "seed": 1}, "teacher": {"width": 48, "layers": 3, "seed": 2}}
SIZES["unlike"] = SIZES["teacher"] | {"hidden_size": 64}  # of the tower
OPERATIONS = {"llava_next": 0.005, "llava_onevision": 0.005, "qwen2_vl": 0.001, "qwen3_vl": 0.001, "qwen2_5_vl": 0.01}
OPERATIONS |= {"qwen3_5": 0.03, "gemma4": 0.02}
ACTIVATIONS = {"qwen3_5": 0.45, "gemma4": 0.25}  # recurrent layers, and inputs of each layer, are not counted
OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@cache
def saved(family: str, role: str) -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sizes = dict(SIZES[role])
    if family == "qwen2_vl" and "hidden_size" in sizes:
        sizes["embed_dim"] = sizes.pop("hidden_size")
    return stock_models.save(family, folder, **sizes)


def messages(row: Row) -> list[dict]:
    """The row as the messages that one would give transformers."""
    told = []
    for number, (question, answer) in enumerate(row.exchanges):
        images = [(0, at) for at in [0] * len(row.images)] if not row.places else row.places
        content, before = [], 0
        for exchange, at in images:
            if exchange == number:
                content += [{"type": "text", "text": question[before:at]}] * (at > before) + [{"type": "image"}]
                before = at
        content.append({"type": "text", "text": question[before:]})
        told += [{"role": "user", "content": content}]
        told += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return told


class StockTests(FamilyTests):
    """A family as `stock_models` saves it: without any code of ours."""

    def student(self) -> VisionLanguageModel:
        return check_checkpoint(str(saved(self.family, "student"))).build().eval()

    def teacher(self) -> VisionLanguageModel:
        return check_checkpoint(str(saved(self.family, "teacher"))).build().eval()

    def unlike_teacher(self) -> VisionLanguageModel:
        return check_checkpoint(str(saved(self.family, "unlike"))).build().eval()

    def stock(self, row: Row, folder: Path, *, prompt: bool = False) -> dict:
        """What transformers' own processor makes of a row, or of it up to its last answer."""
        processor, told = stock_models.processor(self.family), messages(row)
        text = processor.apply_chat_template(told[: -1 if prompt else None], add_generation_prompt=prompt)
        images = [Image.open(folder / name).convert("RGB") for name in row.images]
        has_bos = bool(processor.tokenizer.bos_token) and text.startswith(processor.tokenizer.bos_token)
        given = {"images": [images]} if images else {}
        return dict(processor(text=[text], return_tensors="pt", add_special_tokens=not has_bos, **given))

    def test_an_example_in_a_batch_gives_what_it_gives_alone(self, tmp_path):
        """In double precision: recurrent layers (Qwen3.5) add up more rounding than single precision leaves room for."""
        self.student = lambda: StockTests.student(self).double()
        super().test_an_example_in_a_batch_gives_what_it_gives_alone(tmp_path)

    def whole(self, model, batch):
        raise NotImplementedError  # see the tests below

    test_the_parts_one_after_another_are_the_whole_forward = None

    def test_the_plan_s_figures_are_those_that_are_measured(self, tmp_path):
        """Parameters exactly; operations and activations, images of all sizes, within the errors that docs/plan.md states."""
        student, teacher = self.student(), self.teacher()
        family = registry.resolve("family", self.family)
        for model in (student, teacher):
            planned = family.shape(model.model.config)
            assert (planned.total, planned.trainable) == self.parameters(model)
        batch, paths = self.batch(student, tmp_path), self.paths(student, teacher).train()
        data = self.data(student, tmp_path)
        rows = tuple(_counted(data.example(row), len(ROWS[row].images)) for row in range(len(ROWS)))
        both = {"student": student, "teacher": teacher}
        sample = DataSample(len(rows), rows, False, "")
        pair = sample.of_images(Models({name: family.shape(of.model.config) for name, of in both.items()}, 1))
        work = sample.padded(rows, "answer", [pair.student.projector.tokens, pair.teacher.projector.tokens])
        assert work.images * pair.student.features == pytest.approx(
            sum(map(len, student.encode(batch.images))), rel=0.08
        )
        keep = batch.predicting("answer")

        def forward():
            return paths(batch, set(SWITCH_KD), keep)

        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            sum(each.square().sum() for path, each in forward().items() if path != "teacher").backward()
        computed = Computation(pair, frozenset(map(paths.known.get, SWITCH_KD)), frozenset(student.parts))
        operations = flops.step(work, computed) / counter.get_total_flops()
        left = bytes_left(forward, paths, teacher)
        kept = activations(work, computed, FP32).saved / left
        print(f"{self.family}: operations {operations:.4f}, activations {kept:.3f} of those that are measured")
        assert operations == pytest.approx(1, rel=OPERATIONS.get(self.family, 1e-6))
        assert 1 - ACTIVATIONS.get(self.family, 0.08) < kept < 1.05

    def test_ids_and_pixels_are_those_of_transformers_own_processor(self, tmp_path):
        model = self.student()
        rows = [*ROWS, PLACED]
        data = self.data(model, tmp_path, rows)
        for example, row in zip(map(data.example, range(len(rows))), rows, strict=True):
            stock = self.stock(row, tmp_path)
            assert torch.equal(example.input_ids, stock["input_ids"][0])
            pixels = {name: value for name, value in stock.items() if name not in OF_TEXT}
            if example.images:
                ours = model.seam.visual(example.images, torch.float32)
                assert ours.keys() == pixels.keys()
                for name, value in ours.items():
                    assert torch.equal(value.reshape(pixels[name].shape), pixels[name]), name
            else:
                assert not pixels

    def test_v_p_and_l_one_after_another_are_the_stock_forward(self, tmp_path):
        for model in (self.student(), self.teacher()):
            rows = [*ROWS, PLACED]
            batch = self.batch(model, tmp_path, rows)
            keep = batch.turn >= 0
            with torch.no_grad():
                for row, (part, kept) in zip(rows, batch.rows(keep), strict=True):
                    tokens = model.project(model.encode(part.images), part.images)
                    ours = model.logits(model.hidden_states(part, tokens, kept))
                    stock = model.model(**self.stock(row, tmp_path), use_cache=False).logits[0]
                    assert torch.equal(ours, stock), (row.id, (ours - stock).abs().max())

    def test_the_switch_is_the_stock_forward_of_a_teacher_that_holds_the_student_s_tower(self, tmp_path):
        student, teacher = self.student(), self.teacher()
        both = copy.deepcopy(teacher)
        with torch.no_grad():
            for module, other in zip(both.parts["vision"], student.parts["vision"], strict=True):
                module.load_state_dict(other.state_dict())
            for row in ROWS:
                batch = self.batch(student, tmp_path, [row])
                keep = batch.turn >= 0
                logits = self.paths(student, teacher)(batch, {"switch", "teacher"}, keep)
                stock = both.model(**self.stock(row, tmp_path), use_cache=False).logits[0]
                assert torch.equal(logits["switch"], stock[:, : logits["switch"].shape[1]])
                assert torch.equal(logits["switch"], logits["teacher"]) == (not row.images)

    def test_what_is_learnt_is_the_answers_with_their_end_token(self, tmp_path):
        model = self.student()
        example = self.data(model, tmp_path).example(0)
        words = model.inputs.tokenizer
        runs = "".join(words.decode(i) if i != IGNORE else "\n" for i in example.labels.tolist()).split("\n")
        end = words.eos_token
        assert [run.strip() for run in runs if run.strip()] == [f"the dog{end}", f"a cat{end}"]

    def test_answers_are_those_that_transformers_generates_from_pixels(self, tmp_path):
        model = self.student()
        self.data(model, tmp_path)
        words = model.inputs.tokenizer
        generation = GenerationConfig(do_sample=False, max_new_tokens=4, pad_token_id=words.pad_token_id)
        texts, shown, expected = [], [], []
        with torch.inference_mode():
            for row in ROWS:
                stock = self.stock(row, tmp_path, prompt=True)
                answers = model.model.generate(**stock, generation_config=generation)
                expected.append(answers[0, stock["input_ids"].shape[1] :])
                prepared = model.inputs.prepare([Image.open(tmp_path / name).convert("RGB") for name in row.images])
                inputs = [image.inputs for image in prepared]
                tokens = model.project(model.encode(inputs), inputs)
                shown.append([ProjectedImage(*pair) for pair in zip(prepared, tokens, strict=True)])
                texts.append(model.inputs.apply_chat_template(messages(row)[:-1], answer_next=True))
                lengths, alone = model.generate(texts[-1:], shown[-1:], generation)
                assert lengths == [stock["input_ids"].shape[1]] and torch.equal(alone[0], expected[-1])
            assert torch.equal(model.generate(texts, shown, generation)[1], torch.stack(expected))

    def test_what_is_saved_is_read_by_transformers_own_classes(self, tmp_path):
        student = self.student()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1.01)
        data = self.data(student, tmp_path)
        assert student.save(tmp_path / "model", template=data.chat_template, end=data.end) == []
        stock = self.stock(ROWS[0], tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
        with torch.no_grad():
            assert torch.equal(again(**stock).logits, student.model(**stock).logits)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert (tokenizer.eos_token, tokenizer.chat_template) == (data.end, data.chat_template)
        image = Image.open(tmp_path / "a.png").convert("RGB")
        ours = student.inputs.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        theirs = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")([image], return_tensors="pt")
        assert torch.equal(ours, theirs["pixel_values"])
        written, before = (
            json.loads((folder / "processor_config.json").read_text())
            for folder in (tmp_path / "model", saved(self.family, "student"))
        )
        assert written.get("video_processor") == before.get("video_processor")
        assert json.loads((tmp_path / "model/config.json").read_text())["tie_word_embeddings"] is False

    def test_independent_turns_are_rows_of_one_turn_or_refused(self, tmp_path):
        model = self.student()
        self.data(model, tmp_path)

        def opened(*rows: Row, turns: str) -> Conversations:
            return Conversations(Rows(rows, lambda row: row, images=tmp_path, turns=turns), model.inputs)

        if model.inputs.chained_only:
            with pytest.raises(UserError, match="independent.*language model has layers of"):
                opened(ROWS[0], turns="independent")
            return
        several = Row("turns", (("What differs?", "the dog"), ("And?", "a cat"), ("Who?", "me")), ("a.png", "b.png"))
        pad = model.inputs.tokenizer.pad_token_id
        together = collate([opened(several, turns="independent").example(0)], pad_token=pad)
        apart = [Row("turn", (exchange,), several.images) for exchange in several.exchanges]
        with torch.no_grad():
            tokens = model.project(model.encode(together.images), together.images)
            ours = model.logits(model.hidden_states(together, tokens, together.predicting("answer")))
            alone = []
            for row in apart:
                batch = collate([opened(row, turns="chained").example(0)], pad_token=pad)
                tokens = model.project(model.encode(batch.images), batch.images)
                alone.append(model.logits(model.hidden_states(batch, tokens, batch.predicting("answer"))))
        torch.testing.assert_close(ours, torch.cat(alone), rtol=1e-4, atol=1e-5)

    def test_a_teacher_of_other_vision_is_refused_and_one_of_equal_vision_is_not(self, tmp_path):
        blueprint = check_checkpoint(str(saved(self.family, "student")))
        teacher = check_checkpoint(str(saved(self.family, "teacher")))
        check_fit(compare(blueprint, teacher))
        other = copy.deepcopy(teacher.config)
        field = "embed_dim" if self.family == "qwen2_vl" else "hidden_size"
        setattr(other.vision_config, field, 64)
        with pytest.raises(UserError, match="teacher: vision width is 64, the student's is 32"):
            check_fit(compare(blueprint, type(teacher)(other, teacher.inputs, teacher.weights)))

    def test_attention_to_images_is_the_first_layer_s(self, tmp_path):
        model = self.student()
        if not hasattr(model.language.layers[0], "self_attn"):
            pytest.skip("its first layer has no attention")
        batch = self.batch(model, tmp_path)
        with torch.no_grad():
            tokens = model.project(model.encode(batch.images), batch.images)
            found = model.attention(batch, tokens)
        assert [tuple(each.shape) for each in found] == [(batch.turn.shape[1], len(each), 4) for each in tokens]
        for of_image, row in zip(found, batch.image_rows.tolist(), strict=True):
            text = (batch.turn[row] >= 0) & ~batch.image[row]
            assert not of_image[~text].any() and of_image[text].sum() > 0


FAMILIES = tuple(name for name in registry.FAMILIES if name in stock_models.PREPARED)
for name in FAMILIES:
    globals()[f"Test_{name}"] = type(f"Test_{name}", (StockTests,), {"family": name})


def test_every_family_of_transformers_is_tested():
    assert set(FAMILIES) | {"llava"} >= {name for name in registry.FAMILIES if not name.startswith("toy")}


# what goes wrong silently where a family's peculiarities are left out


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_text_row_after_one_with_images_is_not_read_at_its_positions(family, tmp_path):
    """transformers keeps the last batch's `rope_deltas` in the model."""
    tests = globals()[f"Test_{family}"]()
    model = tests.student()
    text = tests.batch(model, tmp_path, ROWS[2:])
    keep = text.turn >= 0
    with torch.no_grad():
        before = model.hidden_states(text, (), keep)
        model.model(**tests.stock(ROWS[0], tmp_path))
        assert model.model.model.rope_deltas is not None
        assert torch.equal(model.hidden_states(text, (), keep), before)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3"])
def test_without_what_the_seam_gives_the_logits_would_be_others(family, tmp_path):
    tests = globals()[f"Test_{family}"]()
    model = tests.student()
    batch = tests.batch(model, tmp_path, ROWS[:1])
    keep = batch.turn >= 0
    with torch.no_grad():
        tokens = model.project(model.encode(batch.images), batch.images)
        right = model.hidden_states(batch, tokens, keep)
        if family == "gemma3":  # an image sees itself in both directions
            object.__setattr__(model, "seam", copy.copy(model.seam))
            object.__setattr__(model.seam, "types", None)
            wrong = model.hidden_states(batch, tokens, keep)
        elif family == "qwen2_vl":  # M-RoPE
            flat = torch.arange(batch.turn.shape[1]).expand(3, 1, -1)
            wrong = model.hidden_states(type(batch)(**vars(batch) | {"position": flat}), tokens, keep)
        else:  # DeepStack
            shallow = tokens.clone() if torch.is_tensor(tokens) else tuple(each.clone() for each in tokens)
            for each in shallow:
                each[:, 32:] = 0
            wrong = model.hidden_states(batch, shallow, keep)
    assert (right - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_an_image_of_zeros_is_no_padding(family, tmp_path):
    tests = globals()[f"Test_{family}"]()
    model = tests.student()
    batch = tests.batch(model, tmp_path, ROWS[:2])
    images = [{**image, "pixel_values": torch.zeros_like(image["pixel_values"])} for image in batch.images]
    with torch.no_grad():
        tokens = model.project(model.encode(images), images)
        assert sum(map(len, tokens)) == int(batch.image.sum())
        assert model.hidden_states(batch, tokens, batch.turn >= 0).isfinite().all()


def test_the_tiles_of_an_image_depend_on_the_images_of_its_row():
    inputs = Test_llava_onevision().student().inputs  # noqa: F821
    one, (two, _) = (inputs.prepare([Image.new("RGB", (80, 40))] * n) for n in (1, 2))
    assert len(one[0].inputs["pixel_values"]) > len(two.inputs["pixel_values"]) == 1
    assert len(one[0].text) > len(two.text)


def spoilt(family: str, **fields) -> list[str]:
    """What is wrong with a model of a family whose config has other fields; `text_` before a name: of the language model."""
    blueprint = check_checkpoint(str(saved(family, "student")))
    changed = copy.deepcopy(blueprint.config)
    for name, value in fields.items():
        setattr(changed.get_text_config() if name.startswith("text_") else changed, name.removeprefix("text_"), value)
    return list(type(blueprint)(changed, blueprint.inputs, blueprint.weights).problems())


def test_a_head_that_does_more_than_a_product_and_a_bound_is_refused():
    assert spoilt("gemma3") == []
    assert spoilt("gemma3", text_logits_scaling=8.0) == ["its config has logits_scaling 8.0, which is not supported"]


def test_a_bound_of_the_logits_is_part_of_the_objective_in_chunks_too(tmp_path):
    tests = Test_gemma4()  # noqa: F821
    student, teacher = tests.student(), tests.teacher()
    assert student.cap == teacher.cap == 5.0
    batch = tests.batch(student, tmp_path)
    terms = [Term(name=of, loss="dbild", of=of, to="teacher") for of in ("student", "switch")]
    objective = Objective([Term(name="ce", loss="cross_entropy"), *terms])
    keep, paths = objective.keep(batch), tests.paths(student, teacher)
    both = ChunkedObjective(objective).outputs | objective.outputs
    outputs = paths(batch, both, keep)
    heads = paths.heads()
    for path in ("student", "teacher", "switch"):
        torch.testing.assert_close(heads(path, outputs[f"{path}.hidden"]), outputs[path])
        assert outputs[path].abs().max() < 5.0
    inputs = LossInputs(outputs, heads, batch, keep, objective.counts([batch]))
    total, parts = ChunkedObjective(objective)(inputs)
    torch.testing.assert_close(sum(parts.values()), ChunkedObjective(objective, dense=True)(inputs)[0].detach())
    used = list(student.used_parameters("language").values())
    (dense, chunked) = (
        torch.autograd.grad(value, used, retain_graph=True, allow_unused=True)
        for value in (ChunkedObjective(objective, dense=True)(inputs)[0], total)
    )
    for one, other in zip(dense, chunked, strict=True):
        torch.testing.assert_close(one, other)


def test_layers_that_the_projector_can_not_read_are_refused():
    assert spoilt("internvl", vision_feature_layer=-2) == ["feature_layer is counted from the end, -1 to -1, got -2"]
    told = "feature_layer is counted from the end, -1 to -3, got [-2, -1]"
    assert spoilt("llava_next", vision_feature_layer=[-2, -1]) == [told]


def test_an_image_token_that_the_processor_does_not_write_is_named():
    """Gemma 3's processor calls the mark before an image its image token; the config's is the one of visual tokens."""
    inputs = Test_gemma3().student().inputs  # noqa: F821
    assert inputs.image_text == "<start_of_image>"
    assert inputs.tokenizer.convert_ids_to_tokens(inputs.image_token) == "<image_soft_token>"
    told = "the processor writes no token 7 for an image, the config's image token"
    assert spoilt("gemma3", image_token_id=7) == [told]


def test_marks_around_an_image_are_no_visual_tokens(tmp_path):
    tests = Test_internvl()  # noqa: F821
    batch = tests.batch(tests.student(), tmp_path, ROWS[1:2])
    marks = [tests.student().inputs.tokenizer.convert_tokens_to_ids(mark) for mark in ("<img>", "</img>")]
    assert all(
        (batch.input_ids == mark).sum() == 1 and not batch.image[batch.input_ids == mark].any() for mark in marks
    )


def test_a_student_in_single_precision_passes_its_features_to_a_teacher_in_half(tmp_path):
    tests = Test_qwen3_vl()  # noqa: F821
    student, teacher = tests.student(), tests.teacher().to(torch.bfloat16)
    batch = tests.batch(student, tmp_path, ROWS[:1])
    tests.paths(student, teacher)(batch, {"switch"}, batch.predicting("answer"))["switch"].float().sum().backward()
    assert all(p.grad is not None for p in student.used_parameters("vision").values())


def test_a_tokenizer_s_image_token_and_a_tied_head_are_saved_as_they_are(tmp_path):
    """transformers takes a missing `tie_word_embeddings` for true in some families, and would lose the head."""
    student = Test_qwen2_vl().student()  # noqa: F821
    student.model.config.tie_word_embeddings = True  # as a config without the field would be read
    student.save(tmp_path)
    again = check_checkpoint(str(tmp_path), needs_template=False).build()
    assert torch.equal(again.head, student.head)
    assert not torch.equal(again.head, again.model.get_input_embeddings().weight)


def test_a_folder_without_a_part_for_videos_is_read_and_saved_without_one(tmp_path):
    """Older releases keep the image processor in a file of its own, and no processor_config.json at all."""
    shutil.copytree(saved("qwen2_vl", "student"), tmp_path / "old")
    (tmp_path / "old" / "processor_config.json").unlink()
    model = check_checkpoint(str(tmp_path / "old")).build()
    model.save(tmp_path / "new")
    assert "video_processor" not in json.loads((tmp_path / "new/processor_config.json").read_text())
    images = [Image.new("RGB", (40, 24))]
    again = check_checkpoint(str(tmp_path / "new"))
    assert again.inputs.prepare(images)[0].text == model.inputs.prepare(images)[0].text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_says_where_it_counts_too_few_activations(family):
    model = describe_model(Checkpoint(checkpoint=str(saved(family, "student"))), "student", {})
    (run,) = load_rows(RECIPES / "families" / "gemma3.yaml", ["sft"])
    notes = [note for note in _assumptions(run, [model], {}, Machine()) if "twice the activations" in note]
    assert bool(notes) == (family in ACTIVATIONS)


@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm", "gemma3"])
def test_a_plan_s_sample_has_the_tokens_of_the_images_as_large_as_they_are(family, tmp_path):
    told = []
    for number, size in enumerate([(96, 32), (32, 64), (40, 40)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a dog"}]
        told.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(told))
    spec = DataSet(source="llava_json", parameters={"file": str(tmp_path / "rows.json"), "images": str(tmp_path)})
    model = describe_model(Checkpoint(checkpoint=str(saved(family, "student"))), "student", {})
    sample = sample_data(spec, model, tmp_path, tmp_path)
    data = open_data(spec, model.blueprint.inputs, tmp_path)
    examples = [data.example(row) for row in range(3)]
    assert sorted(row.length for row in sample.lengths) == sorted(len(of.input_ids) for of in examples)
    assert {row.images for row in sample.lengths} == {1}
    assert (len({row.image for row in sample.lengths}) > 1) == (family != "gemma3")
