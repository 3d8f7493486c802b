"""What a teacher and a student must share, and what each must be by itself."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    SiglipImageProcessorPil,
)

from switchkd_cli.engine.build import Pair, read_rows, shown_to
from switchkd_cli.engine.compatibility import Vocabulary, check_alone, check_fit, compare, shared_vocabulary
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.recipe.schema import BUILT_IN, DataSet, Stage, Term
from tests.support import tiny

WORDS = len(AutoTokenizer.from_pretrained(ASSETS / "tokenizer"))


SWITCH = Term(name="vsd", loss="dbild", of="switch", to="teacher")
FEATURES = Term(loss="feature_mse", to="teacher")
ALIGN = Term(name="align", loss="dbild", to="teacher")
CE = Term(loss="cross_entropy")
ATTENTION = Term(loss="attention_mse", to="teacher")


def blueprint(of=None, **vision):
    """A tiny model's, of its own: tests may change it."""
    model = of or tiny.model(vision=vision)
    return LlavaBlueprint.of(copy.deepcopy(model.model.config), copy.deepcopy(model.inputs.processor), None)


def fitted(student, teacher, terms=(ALIGN,)):
    """The notes of two models that fit, and an error of others."""
    return check_fit(compare(student, teacher, terms))


def with_adapter(student, teacher, terms=()):
    """The same of a recipe whose switch has an adapter."""
    return check_fit(compare(student, teacher, terms), ("adapter",))


def problems(call, *arguments):
    with pytest.raises(UserError) as refused:
        call(*arguments)
    return list(refused.value.problems)


def retold(folder, changes):
    """The playground's tokenizer with some added tokens under other names."""
    words = json.loads((ASSETS / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    for token in words["added_tokens"]:
        token["content"] = changes.get(token["content"], token["content"])
    words["model"]["vocab"] = [[changes.get(token, token), score] for token, score in words["model"]["vocab"]]
    AutoTokenizer.from_pretrained(ASSETS / "tokenizer").save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def test_equal_tokenizers_share_all_their_ids():
    student, teacher = blueprint(), blueprint()
    assert shared_vocabulary(student, teacher) == Vocabulary(WORDS, WORDS, WORDS)


def test_the_first_id_that_differs_is_named(tmp_path):
    student, teacher = blueprint(), blueprint()
    usual = student.inputs.processor.tokenizer
    last = len(usual) - 1
    names = {usual.convert_ids_to_tokens(i): f"other{i}" for i in (last, last - 3)}
    teacher.inputs.processor.tokenizer = retold(tmp_path, names)
    assert problems(fitted, student, teacher) == [
        (
            f"teacher: vocabulary: id {last - 3} is 'other{last - 3}', "
            f"the student's is {usual.convert_ids_to_tokens(last - 3)!r} (2 ids differ)"
        )
    ]


UNLIKE = {
    "positions": ([ALIGN], "add `alignment: bytes` to align; or "),
    "attention": ([ALIGN, ATTENTION], "add `alignment: bytes` to align and leave out attention_mse; or "),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_unlike_tokens_are_refused_where_a_term_compares_positions_and_the_hint_says_what_to_add(case):
    student, teacher = blueprint(), blueprint()
    student.inputs.processor.tokenizer.add_tokens(["quokka"])
    terms, expected = UNLIKE[case]
    facts = compare(student, teacher, [*terms, SWITCH, CE])
    (row,) = (fact for fact in facts if fact.name == "vocabulary")
    assert row.verdict == "bytes"
    assert hint(fitted, student, teacher, [*terms, SWITCH, CE]).startswith(expected)


def test_unlike_tokens_fit_terms_that_need_no_common_ones_and_are_noted():
    student, teacher = blueprint(), blueprint()
    student.inputs.processor.tokenizer.add_tokens(["quokka"])
    student.config.text_config.vocab_size += 1
    terms = [SWITCH, CE, FEATURES, ALIGN.model_copy(update={"alignment": "bytes"})]
    (note,) = fitted(student, teacher, terms)
    assert note.startswith(f"teacher: vocabulary: {WORDS} tokens, the student's has {WORDS + 1}")
    found = shared_vocabulary(student, teacher, terms)
    assert found == Vocabulary(WORDS + 1, WORDS + 1, WORDS, own=WORDS)
    assert "each model reads its own tokens" in str(found)


def test_where_one_term_compares_bytes_all_have_to():
    student, teacher = blueprint(), blueprint()
    terms = [ALIGN.model_copy(update={"alignment": "bytes"}), Term(name="kd", loss="forward_kl", to="teacher")]
    (problem,) = problems(fitted, student, teacher, terms)
    assert problem == "teacher: vocabulary: align: alignment: bytes, so that each model reads its own tokens"
    assert hint(fitted, student, teacher, terms).startswith("add `alignment: bytes` to kd; or")
    assert len(fitted(student, teacher, terms[:1])) == 1


def test_tokens_that_only_the_teacher_has_are_cut_off():
    student, teacher = blueprint(), blueprint()
    teacher.inputs.processor.tokenizer.add_tokens(["quokka"])
    teacher.config.text_config.vocab_size += 1
    assert shared_vocabulary(student, teacher) == Vocabulary(WORDS, WORDS, WORDS + 1)


def test_tokens_that_the_teacher_lacks_are_refused_and_the_first_is_named():
    student, teacher = blueprint(), blueprint()
    student.inputs.processor.tokenizer.add_tokens(["quokka", "wombat"])
    assert problems(fitted, student, teacher) == [
        (
            f"teacher: vocabulary: {WORDS} tokens, the student's has {WORDS + 2}, "
            f"{student.inputs.tokenizer.convert_ids_to_tokens(WORDS)!r} the first that the teacher lacks"
        )
    ]


def test_without_a_teacher_only_the_students_padding_is_cut():
    student = blueprint()
    student.config.text_config.vocab_size += 9
    assert shared_vocabulary(student, None) == Vocabulary(WORDS, WORDS + 9)


def test_heads_padded_to_the_widths_of_the_paper_are_no_difference_and_are_reported():
    student, teacher = blueprint(), blueprint()
    student.config.text_config.vocab_size, teacher.config.text_config.vocab_size = 151936, 152064
    agreed = shared_vocabulary(student, teacher)
    assert agreed == Vocabulary(WORDS, 151936, 152064)
    assert str(agreed) == (
        f"vocabulary: the first {WORDS:,} of the student's 151,936 and the teacher's 152,064 logits are read"
    )


def test_a_wider_head_is_cut_so_that_padding_never_enters_a_loss(tmp_path):
    student, narrow = tiny.model(seed=1), tiny.model(24, seed=2)
    config = copy.deepcopy(narrow.model.config)
    config.text_config.vocab_size += 33
    wide = VisionLanguageModel(LlavaForConditionalGeneration(config).eval(), narrow.inputs)
    weights, size = narrow.model.state_dict(), len(narrow.inputs.processor.tokenizer)
    with torch.no_grad():
        for name, tensor in wide.model.state_dict().items():
            if tensor.shape == weights[name].shape:
                tensor.copy_(weights[name])
            else:
                tensor.fill_(1e4)[:size] = weights[name]
    shared = shared_vocabulary(blueprint(student), blueprint(wide)).shared
    assert shared == size
    batch = tiny.batch(student, tmp_path)
    keep = batch.predicting("answer")
    cut, plain = (Paths(student, t, shared)(batch, {"student", "teacher", "switch"}, keep) for t in (wide, narrow))
    for path, logits in cut.items():
        assert logits.shape == (int(keep.sum()), size)
        torch.testing.assert_close(logits, plain[path])


def test_every_misfit_of_the_towers_is_reported_at_once():
    teacher = blueprint(hidden_size=32, image_size=36)
    teacher.inputs.processor.image_processor.image_mean = [0.4, 0.5, 0.6]
    assert problems(fitted, blueprint(), teacher) == [
        "teacher: vision width is 32, the student's is 16",
        "teacher: image size is 36, the student's is 24",
        "teacher: patch grid is 3 x 3, the student's is 2 x 2",
        "teacher: feature count is 9, the student's is 4",
        "teacher: image token count is 9, the student's is 4",
        (
            "teacher: image mean, std is ((0.4, 0.5, 0.6), (0.5, 0.5, 0.5)), "
            "the student's is ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"
        ),
    ]


def test_equal_pictures_cut_into_other_patches_are_refused():
    expected = [
        "teacher: patch grid is 4 x 4, the student's is 2 x 2",
        "teacher: feature count is 16, the student's is 4",
        "teacher: image token count is 16, the student's is 4",
    ]
    assert problems(fitted, blueprint(), blueprint(patch_size=6)) == expected
    assert with_adapter(blueprint(), blueprint(patch_size=6)) == expected  # as notes
    assert "switch.adapter=linear" in hint(fitted, blueprint(), blueprint(patch_size=6))


def test_an_adapter_helps_no_pair_that_prepares_images_otherwise_or_has_another_number_of_features_on_one_grid():
    small = {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}}
    wide = blueprint(hidden_size=32)
    wide.inputs.processor.image_processor = CLIPImageProcessorPil(**small, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert "are prepared differently" in problems(with_adapter, blueprint(), wide)[0]
    larger = problems(with_adapter, blueprint(), blueprint(image_size=36))
    assert larger == ["teacher: image size is 36, the student's is 24"]
    teacher = blueprint(patch_size=8)
    teacher.config.vision_feature_select_strategy = "default"  # no whole square
    assert problems(with_adapter, blueprint(), teacher) == [
        "teacher: patch grid is 3 x 3, the student's is 2 x 2",
        "teacher: feature count is 8, the student's is 4",
        "teacher: image token count is 8, the student's is 4",
    ]
    assert "whole square" in hint(with_adapter, blueprint(), teacher)


@pytest.mark.parametrize(
    "term",
    [
        Term(name="it", loss="feature_mse", to="teacher"),
        Term(name="it", loss="token_mse", to="switch"),
        Term(name="it", loss="forward_kl", to="teacher", on="image"),
        Term(name="it", loss="forward_kl", of="switch", to="teacher", on="all"),
    ],
)
def test_what_compares_visual_tokens_one_by_one_is_refused_where_their_numbers_differ(term):
    student, teacher = blueprint(), blueprint(patch_size=6)
    (told,) = problems(with_adapter, student, teacher, [term, SWITCH])
    assert told == "teacher: image token count is 16, the student's is 4: it can't compare the two"
    assert with_adapter(blueprint(hidden_size=32), blueprint(), [term]) != []
    assert with_adapter(student, teacher, [SWITCH, ALIGN, Term(loss="feature_mse", of="switch", to="teacher")])


def prepared(by, **changes):
    """A model of the usual build whose images are prepared by another processor."""
    model, square = blueprint(), {"height": 24, "width": 24}
    usual = {"size": square, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    model.inputs.processor.image_processor = by(**(usual | changes))
    return model


SQUARE = {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}}


@pytest.mark.parametrize(
    ("by", "changes", "expected"),
    [
        (LlavaImageProcessorPil, {"do_pad": True, **SQUARE}, "do_pad is True, the student's is None"),
        (CLIPImageProcessorPil, SQUARE, "do_center_crop is True, the student's is None"),
        (SiglipImageProcessorPil, {"do_rescale": False}, "do_rescale is False, the student's is True"),
    ],
)
def test_images_that_are_padded_cut_or_scaled_otherwise_are_refused_with_both_values(by, changes, expected):
    teacher = prepared(by, **changes)
    (told,) = problems(fitted, prepared(SiglipImageProcessorPil), teacher)
    assert re.match(r"teacher: images are prepared differently \(\d+% apart\): ", told) and expected in told
    assert "student.image_processor=" in hint(fitted, blueprint(), teacher)
    (other_way,) = problems(fitted, teacher, prepared(SiglipImageProcessorPil))
    assert "are prepared differently" in other_way


@pytest.mark.parametrize("resample", [0, 1, 2])
def test_another_way_of_resampling_is_noted_with_both_values(resample):
    teacher = prepared(SiglipImageProcessorPil, resample=resample)
    (note,) = fitted(prepared(SiglipImageProcessorPil), teacher)
    assert note.startswith("teacher: images are prepared nearly alike (")
    assert note.endswith(f"apart): resample is {resample}, the student's is 3")


def test_settings_that_change_no_image_are_no_difference():
    """A size to cut to that is not cut to, and another class that does the same."""
    ours = prepared(SiglipImageProcessorPil)
    for teacher in (
        prepared(SiglipImageProcessorPil, crop_size={"height": 9, "width": 9}),
        prepared(CLIPImageProcessorPil, do_center_crop=False),
    ):
        assert fitted(ours, teacher) == []


def read_at(layer):
    model = blueprint()
    model.config.vision_feature_layer = layer
    return model


@pytest.mark.parametrize("terms", [[SWITCH], [FEATURES], [SWITCH, ALIGN, FEATURES]])
def test_features_of_another_layer_are_refused_where_a_term_needs_them(terms):
    names = ", ".join(term.name for term in terms if term is not ALIGN)
    assert problems(fitted, read_at(-2), read_at(-1), terms) == [
        f"teacher: feature layer is -1, the student's is -2: {names} can't compare the two"
    ]
    assert "student.feature_layer" in hint(fitted, read_at(-2), read_at(-1), terms)
    assert fitted(read_at(-1), read_at(-1)) == []


def test_features_of_another_layer_are_noted_where_each_model_reads_its_own():
    """As in LLaVA-KD, where logits alone are compared."""
    terms = [ALIGN, Term(loss="token_mse", to="teacher")]
    assert fitted(read_at(-2), read_at(-1), terms) == ["teacher: feature layer is -1, the student's is -2"]


def test_positions_are_those_of_the_configs_stretched_where_they_are(monkeypatch):
    student, teacher = blueprint(), blueprint()
    student.config.text_config.max_position_embeddings = 512
    teacher.config.text_config.max_position_embeddings = 32768
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    teacher.config.text_config.rope_parameters = {"rope_theta": 1e6} | yarn
    stage = {"name": "s", "data": "rows", "train": ["language"], "lr": 1.0, "batch": 1, "steps": 1}
    taught, alone = (Stage.model_validate(stage | {"objective": [term]}) for term in (ALIGN, CE))
    other = alone.model_copy(update={"data": "other"})
    read = Rows([tiny.row("r", None, ("a", "b"))], llava_row)
    data = read_rows(read, DataSet(source="llava_json"), student.inputs)
    assert data.positions == {"student": 512}
    assert shown_to(data, student, teacher).positions == {"student": 512, "teacher": 131072}
    monkeypatch.setattr("switchkd_cli.engine.build.open_data", lambda *_: data)

    def shown(name, *stages):
        recipe = SimpleNamespace(stages=stages, known_paths=BUILT_IN, data={name: None})
        opened = Pair(student, teacher, Vocabulary(1, 1, 1), (), recipe).open_data(
            name, SimpleNamespace(inputs=0), None
        )
        return "teacher" in opened.positions

    assert shown("rows", other, taught) and not shown("other", other, taught) and not shown("rows", alone)


def hint(call, *arguments):
    with pytest.raises(UserError) as refused:
        call(*arguments)
    return refused.value.hint


def test_a_teacher_that_drops_a_patch_asks_for_a_student_that_does():
    teacher = blueprint()
    teacher.config.vision_feature_select_strategy = "default"
    assert problems(fitted, blueprint(), teacher) == [
        "teacher: feature count is 3, the student's is 4",
        "teacher: image token count is 3, the student's is 4",
    ]
    assert "student.feature_select" in hint(fitted, blueprint(), teacher)


def test_what_to_do_is_reported_for_each_pair_that_differs(tmp_path):
    teacher = blueprint(hidden_size=32)
    usual = teacher.inputs.processor.tokenizer
    teacher.inputs.processor.tokenizer = retold(tmp_path, {usual.convert_ids_to_tokens(len(usual) - 1): "other"})
    told = hint(fitted, blueprint(), teacher)
    assert "switch.adapter=linear" in told and "student.tokenizer" in told


def test_a_sound_model_passes():
    check_alone(blueprint(), "student")


def no_template(model):
    model.inputs.processor.chat_template = None


def text_template(model):
    model.inputs.processor.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    )


def blind_template(model):
    model.inputs.processor.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"


def no_padding(model):
    model.inputs.processor.tokenizer.pad_token = None


def few_words(model):
    model.config.text_config.vocab_size = 100


def another_image_token(model):
    model.config.image_token_id = 7


def too_deep(model):
    model.config.vision_feature_layer = -4


def from_the_front(model):
    model.config.vision_feature_layer = 2


def another_count(model):
    model.inputs.processor.vision_feature_select_strategy = "default"


def no_deviation(model):
    model.inputs.processor.image_processor.image_std = [0.0, 0.5, 0.5]


def larger_pictures(model):
    model.inputs.processor.image_processor.size = {"height": 48, "width": 48}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_template, "no chat template, in its processor or its tokenizer, so a question can't be written"),
        (text_template, "the chat template writes no <image> for an image: it is a text model's"),
        (blind_template, "the chat template writes no <image> for an image: it is a text model's"),
        (no_padding, "the tokenizer has no padding token"),
        (few_words, f"the tokenizer has {WORDS} tokens, the language model only 100"),
        (another_image_token, "<image> is token 4 of the tokenizer, the config says 7"),
        (too_deep, "feature_layer is counted from the end, -1 to -3, got -4"),
        (from_the_front, "feature_layer is counted from the end, -1 to -3, got 2"),
        (another_count, "the processor puts 3 image tokens into the text, the model makes 4"),
        (
            no_deviation,
            "the image processor makes values that are not finite (mean (0.5, 0.5, 0.5), std (0.0, 0.5, 0.5))",
        ),
        (larger_pictures, "the image processor makes images of (48, 48), the vision tower takes 24 x 24"),
    ],
)
def test_a_model_that_does_not_fit_itself_is_reported(spoil, expected):
    model = blueprint()
    spoil(model)
    assert problems(check_alone, model, "teacher") == [f"teacher: {expected}"]


def test_all_that_is_wrong_with_a_model_is_reported_at_once():
    model = blueprint()
    for spoil in (no_template, no_padding, too_deep):
        spoil(model)
    assert len(problems(check_alone, model, "student")) == 3
