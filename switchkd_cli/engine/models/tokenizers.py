"""Tokenizers for a LLaVA model: add an image token, a padding token, and their rows in the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerBase

from switchkd_cli.engine.hub import NO_CODE, Stored, as_user_error
from switchkd_cli.errors import UserError

IMAGE = "<image>"
"""The token that stands for an image in the tokenizers of LLaVA models."""
FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # ends of the tensors' names


def read_tokenizer(stored: Stored) -> PreTrainedTokenizerBase:
    """Return the tokenizer with `<image>` and a padding token; each is added where it is missing.

    A new token takes the next free id. Raises UserError where there is no tokenizer.
    """
    if not stored.has(*FILES):  # transformers would make an empty one
        raise UserError(f"{stored}: no tokenizer there", hint=f"name one: {stored.who.split('.')[0]}.tokenizer=...")
    with as_user_error(f"{stored}: no readable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(stored.folder, **NO_CODE)
    if tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE]}, False
        )  # False: keep the other special tokens
    return with_padding(tokenizer)


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a padding token. Padding is masked, so the unknown or the end token will do."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def own_template(*holders: LlavaProcessor | PreTrainedTokenizerBase) -> str | None:
    """Return the chat template of the first holder that has one; of several named templates, the default."""
    for holder in holders:
        template = holder.chat_template
        if template := template.get("default") if isinstance(template, dict) else template:
            return template
    return None


def widen(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return the state with at least `rows` rows in the embeddings and the head.

    An unpadded checkpoint has no row for an added token. New rows are the mean of the old ones: a logit that is the mean
    of the others is never the largest.
    """
    for name, table in state.items():
        if name.endswith(EMBEDDINGS) and len(table) < rows:
            mean = table.float().mean(0, keepdim=True).to(table.dtype)
            state[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
    return state
