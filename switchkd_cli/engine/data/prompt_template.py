"""A conversation template by name, checked against the tokenizer that is to read its markers.

And what opens a text and ends an answer in it.
"""

import re

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.errors import UserError
from switchkd_cli.registry import TEMPLATES, template

ANSWER = "[answer]"
MARKER = re.compile(r"<\|\w+\|>|</\w+>")


def template_text(name: str | None, inputs: InputProcessor) -> str:
    """The Jinja text of a named template, or of the model's own chat template where no name is given.

    Raises UserError where the model has none, or where a marker of the template is not one token to its tokenizer.
    """
    if name is None:
        if not inputs.chat_template:
            raise UserError(
                "the model has no chat template of its own",
                hint=f"give the data set a `template`: {', '.join(TEMPLATES)}",
            )
        return inputs.chat_template
    text = template(name)
    known = inputs.tokenizer.get_vocab()
    missing = [marker for marker in dict.fromkeys(MARKER.findall(text)) if marker not in known]
    if missing:
        raise UserError(
            f"template {name}: the model's tokenizer has no token {', '.join(missing)}",
            hint=f"choose another `template` ({', '.join(TEMPLATES)}), or none for the model's own",
        )
    return text


def opening(words: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer opens every text with: Llama's has one, Qwen2's none.

    A text that a template begins with that token already does not get another, as in transformers' processors.
    """
    return [token for token in words("")["input_ids"] if token == words.bos_token_id]


def special(words: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokenizer's special tokens and their ids, by whichever list or flag they are special."""
    added = {token.content: id for id, token in words.added_tokens_decoder.items() if token.special}
    return added | dict(zip(words.all_special_tokens, words.all_special_ids, strict=True))


def after_answer(inputs: InputProcessor, text: str | None = None) -> list[int]:
    """The tokens that a template's text (none: the processor's own) writes after an answer; none if it refuses one."""
    said = [
        {"role": role, "content": [{"type": "text", "text": words}]}
        for role, words in (("user", "[question]"), ("assistant", ANSWER))
    ]
    try:
        told = inputs.apply_chat_template(said, text)
    except (TemplateError, TypeError):
        return []
    _, found, after = told.rpartition(ANSWER)
    return inputs.tokenizer(after, add_special_tokens=False)["input_ids"] if found else []


def end_of(words: PreTrainedTokenizerBase, written: list[int]) -> int | None:
    """What ends an answer, of the tokens written after it: the last special one, else the last one added."""
    for known in (set(special(words).values()), words.added_tokens_decoder):
        if found := [token for token in written if token in known]:
            return found[-1]
    return None
