"""Chat templates by name, checked against the tokenizer; start and end tokens of texts that they write."""

import re

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.errors import UserError
from switchkd_cli.registry import TEMPLATES, template

ANSWER = "[answer]"
MARKER = re.compile(r"<\|\w+\|>|</\w+>")


def template_text(name: str | None, inputs: InputProcessor) -> str:
    """Return the Jinja text of a named template, or of the model's own chat template where no name is given.

    Raises UserError where the model has none, or where a marker of the template is not a token of its tokenizer.
    """
    if name is None:
        if not inputs.chat_template:
            hint = f"give the data set a `template`: {', '.join(TEMPLATES)}"
            raise UserError("the model has no chat template of its own", hint=hint)
        return inputs.chat_template
    text = template(name)
    known = inputs.tokenizer.get_vocab()
    missing = [marker for marker in dict.fromkeys(MARKER.findall(text)) if marker not in known]
    if missing:
        hint = f"choose another `template` ({', '.join(TEMPLATES)}), or none for the model's own"
        raise UserError(f"template {name}: the model's tokenizer has no token {', '.join(missing)}", hint=hint)
    return text


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return all special tokens of the tokenizer and their ids, in whichever list or flag they are marked as special."""
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def tokens_after_answer(inputs: InputProcessor, text: str | None = None) -> list[int]:
    """Return the tokens that a template (None: the model's own) writes after an answer; none if it refuses an answer."""
    exchange = (("user", "[question]"), ("assistant", ANSWER))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in exchange]
    try:
        conversation = inputs.apply_chat_template(messages, text)
    except (TemplateError, TypeError):
        return []
    _, answer, after = conversation.rpartition(ANSWER)
    return inputs.tokenizer(after, add_special_tokens=False)["input_ids"] if answer else []


def end_token(tokenizer: PreTrainedTokenizerBase, after: list[int]) -> int | None:
    """Return the token that ends an answer, among those after it: the last special one, else the last added one."""
    for known in (set(special_tokens(tokenizer).values()), tokenizer.added_tokens_decoder):
        if candidates := [token for token in after if token in known]:
            return candidates[-1]
    return None
