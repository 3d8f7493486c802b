"""The comparison of a teacher and a student, a row a property, and real pairs, from what is published of their configs.

Sizes are those of transformers' conversion scripts, configs and model cards; (m) from memory. What isn't known of a model is
left out: then both of a pair have transformers' default. Processors, and so vocabularies, are the tiny ones of these tests.
"""

import pytest
from transformers import AutoConfig

from switchkd_cli import registry
from switchkd_cli.engine.compatibility import check_fit, compare, shared_vocabulary
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import Misfit
from switchkd_cli.recipe.schema import Term
from tests.support import stock_models

VIT_300M = {"vision_config": {"hidden_size": 1024, "image_size": [448, 448], "patch_size": [14, 14]}}
VIT_6B = {"vision_config": {"hidden_size": 3200, "image_size": [448, 448], "patch_size": [14, 14]}}  # (m)
QWEN2_TOWER = {"embed_dim": 1280, "depth": 32, "patch_size": 14, "spatial_merge_size": 2}
QWEN2_5_TOWER = {"hidden_size": 1280, "depth": 32, "patch_size": 14, "spatial_merge_size": 2}
QWEN3_LARGE = {"vision_config": {"hidden_size": 1152, "depth": 27, "deepstack_visual_indexes": [8, 16, 24]}}
QWEN3_SMALL = {"vision_config": {"hidden_size": 1024, "depth": 24, "deepstack_visual_indexes": [5, 11, 17]}}
SMOL = {"vision_config": {"hidden_size": 768, "image_size": 512, "patch_size": 16}, "scale_factor": 4}
SMOL_2B = {"vision_config": {"hidden_size": 1152, "image_size": 384, "patch_size": 14}, "scale_factor": 3}
ALIGN = Term(name="align", loss="dbild", to="teacher")
WIDTH = {"vision width": "adapter"}
GRID = {
    "image size": "impossible",  # both read one preparation of an image
    "patch grid": "adapter",
    "feature count": "adapter",
    "image token count": "adapter",
}


def vision(width):
    return {"vision_config": {"hidden_size": width}}


def qwen(tower, vocabulary):
    return {"vision_config": tower, "text_config": {"vocab_size": vocabulary}}


PAIRS = {
    "InternVL3.5 8B, 1B": ("internvl", VIT_300M, "internvl", VIT_300M, {}),
    "InternVL3 38B, 8B": ("internvl", VIT_6B, "internvl", VIT_300M, WIDTH),
    "Qwen2-VL 7B, 2B": ("qwen2_vl", qwen(QWEN2_TOWER, 152064), "qwen2_vl", qwen(QWEN2_TOWER, 151936), {}),
    "Qwen2.5-VL 7B, 3B": ("qwen2_5_vl", qwen(QWEN2_5_TOWER, 152064), "qwen2_5_vl", qwen(QWEN2_5_TOWER, 151936), {}),
    "Qwen3-VL 32B, 8B": ("qwen3_vl", QWEN3_LARGE, "qwen3_vl", QWEN3_LARGE, {}),
    "Qwen3-VL 4B, 2B": ("qwen3_vl", QWEN3_SMALL, "qwen3_vl", QWEN3_SMALL, {}),
    "Qwen3-VL 8B, 4B": ("qwen3_vl", QWEN3_LARGE, "qwen3_vl", QWEN3_SMALL, WIDTH),
    "Gemma 4 31B, E4B": ("gemma4", vision(1152), "gemma4", vision(768), WIDTH),
    "SmolVLM2 500M, 256M": ("smolvlm", SMOL, "smolvlm", SMOL, {}),
    "SmolVLM2 2.2B, 500M": ("smolvlm", SMOL_2B, "smolvlm", SMOL, WIDTH | GRID),
    "InternVL3.5 8B, Qwen2.5-VL 3B": (
        *("internvl", VIT_300M, "qwen2_5_vl", qwen(QWEN2_5_TOWER, 151936)),
        {"family": "impossible", **WIDTH, "vocabulary": "bytes"},
    ),
}


def stub(family, config):
    """A model of this config with its family's tiny processor; no weights are made."""
    processor = stock_models.processor(family)
    of = registry.resolve("family", family)
    return of.blueprint(AutoConfig.for_model(family, **config), processor, None)


@pytest.mark.parametrize("pair", PAIRS)
def test_real_pairs_need_what_is_known_of_them(pair):
    of_teacher, teacher, of_student, student, expected = PAIRS[pair]
    facts = compare(stub(of_student, student), stub(of_teacher, teacher), [ALIGN])
    assert {fact.name: fact.verdict for fact in facts if fact.verdict != "yes"} == expected


def test_heads_padded_to_the_widths_of_the_qwens_are_no_difference():
    student, teacher = (stub("qwen2_5_vl", qwen(QWEN2_5_TOWER, width)) for width in (151936, 152064))
    assert check_fit(compare(student, teacher)) == []
    assert "the student's 151,936 and the teacher's 152,064 logits" in str(shared_vocabulary(student, teacher))


@pytest.mark.parametrize(
    ("family", "config", "tokens", "levels"),
    [
        ("internvl", VIT_300M, "256", "1"),
        ("smolvlm", SMOL, "64", "1"),
        ("smolvlm", SMOL_2B, "81", "1"),
        ("qwen3_vl", QWEN3_LARGE, "196", "4"),
    ],
)
def test_an_image_or_a_tile_takes_as_many_tokens_as_published(family, config, tokens, levels):
    """Of Qwen3-VL, of one of 448 x 448 pixels."""
    model = stub(family, config)
    rows = {fact.name: (fact.student, fact.teacher) for fact in compare(model, model)}
    assert rows["image token count"] == (tokens, tokens) and rows["vision level count"] == (levels, levels)


def test_another_tokenizer_needs_bytes_and_the_first_difference_is_in_both_columns():
    """As InternVL3-9B's, whose language model is not Qwen's."""
    teacher, student = stub("internvl", VIT_300M), stub("internvl", VIT_300M)
    student.inputs.processor.tokenizer.add_tokens(["quokka"])
    teacher.inputs.processor.tokenizer.add_tokens(["wombat"])
    facts = compare(student, teacher, [ALIGN])
    (row,) = (fact for fact in facts if fact.verdict != "yes")
    count = len(student.inputs.tokenizer)
    assert (row.name, row.verdict) == ("vocabulary", "bytes")
    assert row.student == f"{count} tokens, id {count - 1} is 'quokka'"
    assert row.teacher == f"{count} tokens, id {count - 1} is 'wombat'"


def test_a_refusal_says_what_the_rows_say_and_carries_them():
    facts = compare(stub("qwen3_vl", QWEN3_SMALL), stub("internvl", VIT_300M))
    with pytest.raises(Misfit) as refused:
        check_fit(facts)
    assert refused.value.facts == facts
    assert refused.value.problems == tuple(fact.difference for fact in facts if fact.verdict != "yes")
    assert refused.value.problems[0] == "teacher: family is internvl, the student's is qwen3_vl"
    assert isinstance(refused.value, UserError) and refused.value.code == 2
