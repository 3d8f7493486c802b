"""A conversation template by name, checked against the tokenizer that is to read its markers, and what opens a text."""

import re
from pathlib import Path

from transformers import LlavaProcessor, PreTrainedTokenizerBase

from switchkd_cli.errors import UserError
from switchkd_cli.registry import TEMPLATES

MARKER = re.compile(r"<\|\w+\|>")


def template_text(name: str | None, processor: LlavaProcessor) -> str:
    """The Jinja text of a named template, or of the model's own chat template where no name is given.

    Raises UserError where the model has none, or where a marker of the template is not one token to its tokenizer.
    """
    if name is None:
        if not processor.chat_template:
            raise UserError(
                "the model has no chat template of its own",
                hint=f"give the data set a `template`: {', '.join(TEMPLATES)}",
            )
        return processor.chat_template
    text = (Path(__file__).with_name("templates") / f"{name}.jinja").read_text(encoding="utf-8")
    known = processor.tokenizer.get_vocab()
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
