"""What ends an answer: the token that the conversation writes there, in training, in what is saved, and when scored."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.compatibility import with_end_tokens
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.prompt_template import template_text, tokens_after_answer
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.evaluation.lmms_model import Item
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.recipe.named_files import ASSETS
from tests.support import tiny, tiny_qwen
from tests.support.square_inputs import SquareInputs

TEACHER = ASSETS / "teacher"  # ends an answer with <|end|>, 1
SAID = "its generation_config ends an answer with"


@pytest.fixture
def teacher(tmp_path) -> Path:
    return Path(shutil.copytree(TEACHER, tmp_path / "teacher"))


def says(folder: Path, ends: object) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))


@pytest.mark.parametrize(
    ("told", "used", "noted"),
    [
        (1, 1, None),
        ([1, 0], [1, 0], None),
        (None, 1, None),
        (-1, 1, None),
        ("1", 1, None),
        (5, 1, "<0x00> (5), its chat template with <|end|> (1): here <|end|> (1) ends one"),
        (3, [3, 1], "<|assistant|> (3), its chat template with <|end|> (1): here <|assistant|> (3) or <|end|>"),
        ([5, 1], 1, "<0x00> (5) or <|end|> (1), its chat template with <|end|> (1): here <|end|> (1) ends one"),
        (10**6, 1, "None (1000000), its chat template with"),
    ],
)
def test_a_checkpoint_stops_where_its_conversation_ends_an_answer(teacher, told, used, noted):
    """A word never ends an answer; another special token may do so as well."""
    says(teacher, told)
    opened = check_checkpoint(str(teacher), "model")
    assert opened.build().model.generation_config.eos_token_id == used
    assert len(opened.notes) == (noted is not None)
    assert noted is None or f"model: {SAID} {noted}" in opened.notes[0]


def test_without_a_generation_config_the_config_is_looked_at(teacher):
    (teacher / "generation_config.json").unlink()
    told = json.loads((teacher / "config.json").read_text())
    told["text_config"]["eos_token_id"] = 7
    (teacher / "config.json").write_text(json.dumps(told))
    opened = check_checkpoint(str(teacher), "model")
    assert opened.build().model.generation_config.eos_token_id == 1
    assert SAID in opened.notes[0]


def test_what_else_changes_answers_is_said(teacher):
    """A least length keeps a model from ending: other tools apply it, so their answers differ."""
    file = teacher / "generation_config.json"
    told = json.loads(file.read_text()) | {"min_new_tokens": 9, "repetition_penalty": 1.0, "top_p": 0.9}
    file.write_text(json.dumps(told))
    assert check_checkpoint(str(teacher), "model").notes == (
        f"model: {teacher}: generation_config.json: min_new_tokens 9 not used: answers are the likeliest tokens, as trained",
    )


def test_a_template_that_writes_no_end_leaves_it_to_the_tokenizer(teacher):
    """As llava-hf's published ones do."""
    file = teacher / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{- '<|end|>' -}}", "{{- ' ' -}}"))
    says(teacher, 3)
    opened = check_checkpoint(str(teacher), "model")
    assert opened.ends == (3, 1)
    assert "its tokenizer with <|end|> (1)" in opened.notes[0]


def test_an_end_that_the_tokenizer_does_not_name_is_the_conversations():
    """A base model's end token is not what ends a turn of ChatML, wherever the model was made."""
    processor = tiny_qwen.processor()
    processor.chat_template = template_text("chatml", processor)
    end, eos = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    opened = with_end_tokens(LlavaBlueprint(None, SquareInputs(processor, 2), None, ends=(eos,)), "model")
    assert opened.ends == (eos, end) and SAID in opened.notes[0]


def test_a_line_break_may_end_a_caption():
    processor = tiny_qwen.processor()
    processor.chat_template = template_text("pretrain", processor)
    (written,) = tokens_after_answer(processor)
    opened = with_end_tokens(LlavaBlueprint(None, SquareInputs(processor, 2), None, ends=(written,)), "model")
    assert opened.ends == (written, processor.tokenizer.eos_token_id)


def test_an_end_that_was_added_as_a_plain_token_is_supervised_and_kept_out_of_texts(tmp_path):
    """What follows it is not learnt, and a text that holds it would end there."""
    processor = tiny_qwen.processor()
    processor.tokenizer.add_tokens(["[END]"])
    processor.chat_template = (
        "{%- for message in messages -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}"
        "{{- '[END]\n' -}}{%- endfor -%}"
    )
    rows = [tiny.row("r", None, ("What", "two")), tiny.row("s", None, ("What", "two [END]"))]
    data = Conversations(Rows(rows, llava_row, images=tmp_path, turns="chained"), SquareInputs(processor, 2))
    learnt = [label for label in data[0].labels.tolist() if label != IGNORE]
    assert data.end == "[END]" and processor.tokenizer.decode(learnt) == "two[END]"
    with pytest.raises(Fault, match=r"holds \[END\]"):
        data.text_example(1)


def test_saving_a_checkpoint_as_it_is_keeps_all_that_ends_its_answers(teacher, tmp_path):
    says(teacher, [1, 0])
    check_checkpoint(str(teacher)).build().save(tmp_path / "again")
    assert check_checkpoint(str(tmp_path / "again")).ends == (1, 0)


def test_an_end_token_that_is_no_special_one_is_not_part_of_an_answer(teacher):
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    (end,) = [token for token in tokenizer["added_tokens"] if token["content"] == "<|end|>"]
    end["special"] = False
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|pad|>"}))
    assert answers(teacher) == answers(TEACHER)


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_question(teacher):
    """As in training, which writes conversations token by token."""
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [1], "tokens": ["<|end|>"]}},
    }
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert check_checkpoint(str(teacher)).inputs.tokenizer("a")["input_ids"][-1] == 1
    assert answers(teacher) == answers(TEACHER)


def answers(folder: Path) -> list[str]:
    asked = "What color is the background?\nAnswer the question using a single word or phrase."
    pictures = [Image.new("RGB", (72, 72), colour) for colour in ("green", "blue")]
    items = [Item("rows", 0, asked, [None], lambda _, shown=p: [shown], 8, (), lambda _: "") for p in pictures]
    GreedyModel(check_checkpoint(str(folder)).build()).ask(items)
    assert items[0].answer == "green"
    return [item.answer for item in items]
