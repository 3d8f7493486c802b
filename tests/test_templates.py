"""The named conversation templates, token by token, on a tokenizer that splits text as Qwen2's does."""

import pytest

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.llava_json import llava_row
from switchkd_cli.engine.data.messages import message_row
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.data.template import template_text
from switchkd_cli.engine.models import tinyllava
from switchkd_cli.errors import UserError
from switchkd_cli.registry import TEMPLATES
from tests import tiny, tiny_qwen

ASKED = (("How many dogs?", "two"), ("What is it?", "a dog"))
SYSTEM_VICUNA = (
    "A Ġchat Ġbetween Ġa Ġcurious Ġuser Ġand Ġan Ġartificial Ġintelligence Ġassistant . ĠThe Ġassistant Ġgives"
    " Ġhelpful , Ġdetailed , Ġand Ġpolite Ġanswers Ġto Ġthe Ġuser 's Ġquestions . "
)
SYSTEM_CHATML = "<|im_start|> system Ċ You Ġare Ġa Ġhelpful Ġassistant . <|im_end|> Ċ "


@pytest.fixture(scope="module")
def processor():
    return tiny_qwen.processor()


def written(processor, row, folder, parse=llava_row, turns="chained", **more):
    """The row's tokens, the supervised ones in brackets."""
    data = Conversations(Rows([row], parse, images=folder, turns=turns), processor, 2, **more)
    example = data._build(0)
    words = processor.tokenizer.convert_ids_to_tokens(example.input_ids)
    assert all(label in (IGNORE, id_) for label, id_ in zip(example.labels, example.input_ids, strict=True))
    return " ".join(
        word if label == IGNORE else f"[{word}]" for word, label in zip(words, example.labels, strict=True)
    )


PICTURED = {
    "pretrain": "<image> <image> [two] [Ċ] [a] [Ġdog] [Ċ]",
    "qwen2_base": (
        SYSTEM_VICUNA + "ĠUSER : Ġ <image> <image> Ċ How Ġmany Ġdogs ? ĠASSISTANT : [Ġtwo] [<|endoftext|>]"
        " USER : ĠWhat Ġis Ġit ? ĠASSISTANT : [Ġa] [Ġdog] [<|endoftext|>]"
    ),
    "chatml": (
        SYSTEM_CHATML + "<|im_start|> user Ċ <image> <image> Ċ How Ġmany Ġdogs ? <|im_end|> Ċ"
        " <|im_start|> assistant Ċ [two] [<|im_end|>] Ċ"
        " <|im_start|> user Ċ What Ġis Ġit ? <|im_end|> Ċ <|im_start|> assistant Ċ [a] [Ġdog] [<|im_end|>]"
    ),
}
TEXT_ONLY = {
    "pretrain": "[two] [Ċ] [a] [Ġdog] [Ċ]",
    "qwen2_base": (
        SYSTEM_VICUNA + "ĠUSER : ĠHow Ġmany Ġdogs ? ĠASSISTANT : [Ġtwo] [<|endoftext|>]"
        " USER : ĠWhat Ġis Ġit ? ĠASSISTANT : [Ġa] [Ġdog] [<|endoftext|>]"
    ),
    "chatml": (
        SYSTEM_CHATML + "<|im_start|> user Ċ How Ġmany Ġdogs ? <|im_end|> Ċ"
        " <|im_start|> assistant Ċ [two] [<|im_end|>] Ċ"
        " <|im_start|> user Ċ What Ġis Ġit ? <|im_end|> Ċ <|im_start|> assistant Ċ [a] [Ġdog] [<|im_end|>]"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_pictured_conversation_token_by_token(processor, tmp_path, template):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, row, tmp_path, template=template) == PICTURED[template]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_text_only_conversation_token_by_token(processor, tmp_path, template):
    row = tiny.row("r", None, *ASKED)
    assert written(processor, row, tmp_path, template=template) == TEXT_ONLY[template]


@pytest.mark.parametrize("template", ["qwen2_base", "chatml"])
@pytest.mark.parametrize("question", ["What is it?\n<image>", "<image>\n What is it? "])
def test_the_picture_stands_before_the_trimmed_question(processor, tmp_path, template, question):
    """TinyLLaVA moves the placeholder to the front and strips the question; ChatML keeps the words as they are."""
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), ("", "two"))
    row["conversations"][0]["value"] = question
    tokens = written(processor, row, tmp_path, template=template)
    if template == "qwen2_base":
        assert "USER : Ġ <image> <image> Ċ What Ġis Ġit ? ĠASSISTANT : [Ġtwo]" in tokens
    else:
        assert "user Ċ <image> <image> Ċ" in tokens


def test_a_picture_alone_can_be_the_question(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), ("", "two"))
    row["conversations"][0]["value"] = "<image>"
    tokens = written(processor, row, tmp_path, template="qwen2_base")
    assert tokens == SYSTEM_VICUNA + "ĠUSER : Ġ <image> <image> ĠASSISTANT : [Ġtwo] [<|endoftext|>]"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("qwen2_base", "A Ġdog . ĠUSER : ĠWhat"),
        (
            "chatml",
            "<|im_start|> system Ċ A Ġdog . <|im_end|> Ċ <|im_start|> user Ċ What",
        ),
    ],
)
def test_a_row_may_bring_its_own_system_message(processor, tmp_path, template, expected):
    said = [("system", "A dog."), ("user", "What is it?"), ("assistant", "a dog")]
    row = {"messages": [{"role": role, "content": text} for role, text in said]}
    assert written(processor, row, tmp_path, message_row, template=template).startswith(expected)


def test_turns_of_their_own_share_what_stands_before_the_question(processor, tmp_path):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, row, tmp_path, turns="independent", template="qwen2_base") == (
        SYSTEM_VICUNA + "ĠUSER : Ġ <image> <image>"
        " Ċ How Ġmany Ġdogs ? ĠASSISTANT : [Ġtwo] [<|endoftext|>]"
        " Ċ What Ġis Ġit ? ĠASSISTANT : [Ġa] [Ġdog] [<|endoftext|>]"
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_row_has_the_tokens_of_its_text_as_one_piece(processor, tmp_path, template):
    """What training sees is what the tokenizer makes of the whole conversation, as when the model is asked."""
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    data = Conversations(Rows([row], llava_row, images=tmp_path), processor, 2, template=template)
    text = "".join(prompt + answer for prompt, answer in data._pieces(data.rows[0]))
    whole = processor.tokenizer(text.replace("<image>", "<image>" * 2), add_special_tokens=False)["input_ids"]
    assert data[0].input_ids.tolist() == whole


def test_without_a_name_the_model_speaks_its_own_template(processor, tmp_path):
    """Here one that ends its messages with a line break, as Qwen's own does: the break is not supervised."""
    processor.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
        "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, row, tmp_path) == (
        "<|im_start|> user Ċ <image> <image> How Ġmany Ġdogs ? <|im_end|> Ċ"
        " <|im_start|> assistant Ċ [two] [<|im_end|>] Ċ"
        " <|im_start|> user Ċ What Ġis Ġit ? <|im_end|> Ċ <|im_start|> assistant Ċ [a] [Ġdog] [<|im_end|>] Ċ"
    )


def test_a_template_that_rewrites_earlier_turns_is_not_guessed_at(processor, tmp_path):
    processor.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    )
    with pytest.raises(Fault, match="rewrites earlier turns"):
        written(processor, tiny.row("r", None, *ASKED), tmp_path)


def test_a_model_without_a_template_needs_a_named_one(processor):
    processor.chat_template = None
    with pytest.raises(UserError, match="no chat template of its own") as refused:
        template_text(None, processor)
    assert refused.value.hint == "give the data set a `template`: chatml, pretrain, qwen2_base"


def test_a_template_whose_markers_the_tokenizer_lacks_is_refused():
    with pytest.raises(UserError) as refused:
        template_text("chatml", tiny.model().processor)
    assert refused.value.problems == (
        "template chatml: the model's tokenizer has no token <|im_start|>, <|im_end|>",
    )


def test_a_finished_model_is_asked_by_the_template_that_taught_it(processor, tmp_path):
    """Template texts are chat templates: transformers saves them, loads them and asks with them."""
    processor.chat_template = template_text("qwen2_base", processor)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path, backend="pil")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    asked = again.apply_chat_template([question], add_generation_prompt=True)
    assert asked.endswith("questions. USER: <image>\nWhat is it? ASSISTANT:")


@pytest.mark.parametrize("pictured", [False, True])
def test_a_tinyllava_checkpoint_is_asked_as_its_base_model_is_taught(processor, pictured):
    """Two texts say it, as the checkpoint's end token may be another: teacher and student must read the same."""
    question = [{"type": "text", "text": "How many dogs?"}]
    asked = [{"role": "user", "content": [{"type": "image"}, *question] if pictured else question}]
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]
    more = [*told, {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    for messages, generation in ((asked, True), (told, False), (more, True)):
        taught, read = (
            processor.apply_chat_template(
                messages, chat_template=text, tokenize=False, add_generation_prompt=generation
            )
            for text in (template_text("qwen2_base", processor), tinyllava.TEMPLATE)
        )
        assert taught == read
