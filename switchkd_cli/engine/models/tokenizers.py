"""Tokenizers and chat templates for a LLaVA model: what is added when they are read, and when they are saved."""

import copy
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerBase, ProcessorMixin

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.errors import UserError

IMAGE = "<image>"
"""The token that stands for an image in the tokenizers of LLaVA models."""
FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # ends of the tensors' names


IN_PARTS = files(__package__).joinpath("messages_in_parts.jinja").read_text(encoding="utf-8")
"""Jinja that turns plain-text messages into parts, written before a template that reads only messages in parts.

lmms-eval's `llava_hf` sends "<image>\\n" and the question as plain text: a template that doesn't expect this drops the
question, or puts the image where the model never saw one in training. This code and our templates use only what
llama.cpp's engines, @huggingface/jinja and minijinja support too: no product of a list or a text, no `dict(...)`, no
`replace` filter."""
LAST = IN_PARTS.splitlines(keepends=True)[-1]
"""The template itself follows this line, also in files that older versions wrote."""


def read_tokenizer(checkpoint: CheckpointFolder) -> PreTrainedTokenizerBase:
    """Return the tokenizer with `<image>` and a padding token; each is added where it is missing.

    A new token takes the next free id. Raises UserError where there is no tokenizer.
    """
    if not checkpoint.has(*FILES):  # transformers would make an empty one
        hint = f"name one: {checkpoint.who.split('.')[0]}.tokenizer=..."
        raise UserError(f"{checkpoint}: no tokenizer there", hint=hint)
    with as_user_error(f"{checkpoint}: no readable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **NO_CODE)
    if tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, False)  # False: keep the others
    return with_padding(tokenizer)


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a padding token. Padding is masked, so the unknown or the end token will do."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def own_template(*holders: ProcessorMixin | PreTrainedTokenizerBase) -> str | None:
    """Return the chat template of the first holder that has one; of several named templates, the default."""
    templates = (holder.chat_template for holder in holders)
    defaults = (template.get("default") if isinstance(template, dict) else template for template in templates)
    return next(filter(None, defaults), None)


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


def to_be_saved(processor: ProcessorMixin, template: str | None, end: str | None) -> Any:
    """Return a copy of the processor with the chat template and the end token of the training, to be saved.

    `template` is Jinja and `end` the token that ends an answer; None keeps the processor's own. Tools look for the
    template in the processor or in the tokenizer, so both get it.
    """
    saved: Any = copy.deepcopy(processor)
    if isinstance(saved, LlavaProcessor):
        template = template or saved.chat_template
        template = template and IN_PARTS + template.rpartition(LAST)[2]
        # SigLIP's has none; token counts are read from it
        if getattr(saved.image_processor, "crop_size", None) is None:
            saved.image_processor.crop_size = dict(saved.image_processor.size)
    if template:
        saved.chat_template = saved.tokenizer.chat_template = template
    if end is not None:
        saved.tokenizer.eos_token = end
    saved.tokenizer.padding_side = "left"  # generation in batches needs it
    return saved
