"""The named conversation templates, token by token, on a tokenizer that splits text as Qwen2's does."""

from functools import partial

import pytest
from tokenizers.processors import ByteLevel

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.prompt_template import template_text
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.data.turns import llava_row, message_row
from switchkd_cli.engine.models.processors import IN_PARTS
from switchkd_cli.errors import UserError
from switchkd_cli.registry import TEMPLATES
from switchkd_cli.registry import template as registered
from tests.support import tiny, tiny_llama, tiny_qwen
from tests.support.square_inputs import SquareInputs

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
    data = Conversations(Rows([row], parse, images=folder, turns=turns), SquareInputs(processor, 2), **more)
    example = data._build(0)
    words = processor.tokenizer.convert_ids_to_tokens(example.input_ids)
    assert all(label in (IGNORE, id_) for label, id_ in zip(example.labels, example.input_ids, strict=True))
    return " ".join(word if label == IGNORE else f"[{word}]" for word, label in zip(words, example.labels, strict=True))


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


PICTURED["tinyllava"], TEXT_ONLY["tinyllava"] = PICTURED["qwen2_base"], TEXT_ONLY["qwen2_base"]


@pytest.mark.parametrize("template", PICTURED)
def test_a_pictured_conversation_token_by_token(processor, tmp_path, template):
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    assert written(processor, row, tmp_path, template=template) == PICTURED[template]


@pytest.mark.parametrize("template", TEXT_ONLY)
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
        ("chatml", "<|im_start|> system Ċ A Ġdog . <|im_end|> Ċ <|im_start|> user Ċ What"),
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


LLAMA = (
    "<s> ▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant. ▁The ▁assistant ▁gives"
    " ▁helpful, ▁detailed, ▁and ▁polite ▁answers ▁to ▁the ▁user's ▁questions. ▁USER: ▁"
)


@pytest.mark.parametrize("split", tiny_llama.SPLITS)
def test_a_llama_reads_tinyllavas_words_and_ends_with_its_own_token(tmp_path, split):
    """However its tokenizer was told to put a space before a text: an answer's first token is the word's, no space."""
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    again = "USER :" if split == "first" else "▁USER:"
    after = "<0x0A> Ho w" if split == "first" else "▁ <0x0A> Ho w"
    assert written(tiny_llama.processor(split), row, tmp_path, template="llama") == (
        f"{LLAMA} <image> <image> {after} ▁many ▁dogs? ▁ASSISTANT: [▁two] [</s>]"
        f" {again} ▁What ▁is ▁it? ▁ASSISTANT: [▁a] [▁dog] [</s>]"
    )


KINDS = {"qwen": tiny_qwen.processor} | {split: partial(tiny_llama.processor, split) for split in tiny_llama.SPLITS}


FITTING = [
    (kind, template)
    for kind in KINDS
    for template in TEMPLATES
    if template not in (("llama",) if kind == "qwen" else ("chatml", "qwen2_base"))
]


@pytest.mark.parametrize(("kind", "template"), FITTING)
def test_a_row_has_the_tokens_of_its_text_as_one_piece(kind, tmp_path, template):
    """What training sees is what the tokenizer makes of the whole conversation, as when the model is asked."""
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), *ASKED)
    processor = KINDS[kind]()
    data = Conversations(Rows([row], llava_row, images=tmp_path), SquareInputs(processor, 2), template=template)
    text = "".join(prompt + answer for prompt, answer in data._pieces(data.rows[0]))
    whole = processor.tokenizer(text.replace("<image>", "<image>" * 2))["input_ids"]
    assert data[0].input_ids.tolist() == whole


@pytest.mark.parametrize("kind", KINDS)
def test_turns_of_their_own_have_the_tokens_of_the_conversation_that_they_stand_for(kind, tmp_path):
    """Each as if it were the only one: the shared part, the question, the answer."""
    processor, picture = KINDS[kind](), tiny.picture(tmp_path, "r.png", 1)
    several, *alone = (
        Conversations(
            Rows([row], llava_row, images=tmp_path, turns=turns), SquareInputs(processor, 2), template="tinyllava"
        )[0]
        for row, turns in (
            (tiny.row("r", picture, *ASKED), "independent"),
            *((tiny.row("r", picture, asked), "chained") for asked in ASKED),
        )
    )
    for number, one in enumerate(alone, 1):
        seen = (several.turn == 0) | (several.turn == number)
        assert several.input_ids[seen].tolist() == one.input_ids.tolist()
        assert several.labels[seen].tolist() == one.labels.tolist()


def test_a_space_before_an_answer_that_a_tokenizer_trims_is_the_questions(processor, tmp_path):
    """As ByteLevel tokenizers do that say so of their offsets: Llama 3's."""
    processor.tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    processor.chat_template = (
        "{% for m in messages %}{{ m.content[0].text + (' ' if m.role == 'user' else '') }}{% endfor %}"
    )
    assert written(processor, tiny.row("r", None, ("What", "<two")), tmp_path).startswith("What Ġ [<]")


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
    processor.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    with pytest.raises(Fault, match="rewrites earlier turns"):
        written(processor, tiny.row("r", None, *ASKED), tmp_path)


def test_a_model_without_a_template_needs_a_named_one(processor):
    processor.chat_template = None
    with pytest.raises(UserError, match="no chat template of its own") as refused:
        template_text(None, processor)
    assert refused.value.hint == "give the data set a `template`: chatml, llama, pretrain, qwen2_base, tinyllava"


def test_a_template_whose_markers_the_tokenizer_lacks_is_refused():
    with pytest.raises(UserError) as refused:
        template_text("chatml", tiny.model().inputs.processor)
    assert refused.value.problems == ("template chatml: the model's tokenizer has no token <|im_start|>, <|im_end|>",)


def test_a_finished_model_is_asked_by_the_template_that_taught_it(processor, tmp_path):
    """Template texts are chat templates: transformers saves them, loads them and asks with them."""
    processor.chat_template = template_text("qwen2_base", processor)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path, backend="pil")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    asked = again.apply_chat_template([question], add_generation_prompt=True)
    assert asked.endswith("questions. USER: <image>\nWhat is it? ASSISTANT:")


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>"])
@pytest.mark.parametrize(
    ("question", "written"),
    [
        ("<image>\n How many dogs? \n", "<image>\nHow many dogs?"),
        ("How many dogs?\n<image>", "<image>\nHow many dogs?"),
        ("<image>", "<image>"),
        (" How many dogs? ", " How many dogs? "),
    ],
)
def test_tinyllavas_words_are_the_factorys(processor, end, question, written):
    """Source: TinyLLaVA_Factory's data/template (base, llama_template, qwen2_base_template): a pictured question
    loses its placeholder and the space around it, then `<image>` and a line break stand before it; others stay."""
    name = "llama" if end == "</s>" else "qwen2_base"
    told = [{"role": "user", "content": question}, {"role": "assistant", "content": " two "}] * 2
    for generation, said in ((True, told[:3]), (False, told)):
        asked = processor.apply_chat_template(
            said, chat_template=IN_PARTS + registered(name), tokenize=False, add_generation_prompt=generation
        )
        turn = f"USER: {written} ASSISTANT:  two {end}"
        rest = f"USER: {written} ASSISTANT:" if generation else turn
        assert asked.removesuffix(rest).endswith(f"user's questions. {turn}") and asked.endswith(rest)
