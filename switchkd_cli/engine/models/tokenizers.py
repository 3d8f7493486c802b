"""Tokenizers for a LLaVA model: an image token, a padding token, and embeddings with a row for each."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerBase

from switchkd_cli.engine.hub import NO_CODE, Stored, as_user_error
from switchkd_cli.errors import UserError

IMAGE = "<image>"
"""The token that stands for an image in the tokenizers of LLaVA models."""
FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
TABLES = ("embed_tokens.weight", "lm_head.weight")  # how their names end


def read_tokenizer(stored: Stored) -> PreTrainedTokenizerBase:
    """The tokenizer with `<image>` and a padding token; both are added where it has none.

    A new token takes the next free id. Raises UserError where there is no tokenizer.
    """
    if not stored.has(*FILES):  # transformers would make an empty one up
        raise UserError(
            f"{stored}: no tokenizer there", hint=f"name one: {stored.who.split('.')[0]}.tokenizer=..."
        )
    with as_user_error(f"{stored}: no readable tokenizer"):
        words = AutoTokenizer.from_pretrained(stored.folder, **NO_CODE)
    if words.convert_tokens_to_ids(IMAGE) in (None, words.unk_token_id):
        words.add_special_tokens({"additional_special_tokens": [IMAGE]}, False)  # beside those it has
    return padding(words)


def padding(words: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token. Padding is never looked at, so the unknown or the end token serves."""
    if words.pad_token is None:
        words.pad_token = words.unk_token or words.eos_token
    return words


def own_template(*holders: LlavaProcessor | PreTrainedTokenizerBase) -> str | None:
    """The chat template of the first that has one; of several by name the default."""
    for holder in holders:
        told = holder.chat_template
        if told := told.get("default") if isinstance(told, dict) else told:
            return told
    return None


def widen(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The state with at least `rows` rows in the embeddings and the head.

    A checkpoint that was not padded has no row for a token that is added. Its new rows are the mean of the old
    ones: a logit that is the mean of the others is never the largest.
    """
    for name, table in state.items():
        if name.endswith(TABLES) and len(table) < rows:
            mean = table.float().mean(0, keepdim=True).to(table.dtype)
            state[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
    return state
