"""The chat template that is saved with a model: it takes messages with plain text or with parts."""

from __future__ import annotations

import copy

from transformers import LlavaProcessor

IN_PARTS = """\
{%- set told = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set said = namespace(parts=[], text=message.content) -%}
{%- for piece in message.content.split('<image>') -%}
{%- if loop.first -%}{%- set said.text = piece -%}{%- else -%}
{%- set said.parts = said.parts + [{'type': 'image'}] -%}
{%- set said.text = said.text + piece -%}
{%- endif -%}
{%- endfor -%}
{%- if said.parts -%}{%- set said.text = said.text.lstrip() -%}{%- endif -%}
{%- set parts = said.parts + [{'type': 'text', 'text': said.text}] -%}
{%- set told.messages = told.messages + [{'role': message.role, 'content': parts}] -%}
{%- else -%}
{%- set told.messages = told.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = told.messages -%}
"""
"""Jinja that turns plain-text messages into parts, written before a template that reads only messages in parts.

lmms-eval's `llava_hf` sends "<image>\\n" and the question as plain text: a template that doesn't expect this drops the
question, or puts the image where the model never saw one in training. This code and our templates use only what
llama.cpp's engines, @huggingface/jinja and minijinja support too: no product of a list or a text, no `dict(...)`, no
`replace` filter."""
LAST = IN_PARTS.splitlines(keepends=True)[
    -1
]  # the template itself follows this line, also in files that older versions wrote


def with_chat_template(processor: LlavaProcessor, template: str | None, end: str | None) -> LlavaProcessor:
    """Return a copy of the processor with the chat template and the end token of the training, to be saved.

    `template` is Jinja and `end` the token that ends an answer; None keeps the processor's own. Tools look for the
    template in the processor or in the tokenizer, so both get it.
    """
    saved = copy.deepcopy(processor)
    template = template or processor.chat_template
    if template:
        saved.chat_template = saved.tokenizer.chat_template = IN_PARTS + template.rpartition(LAST)[2]
    if end is not None:
        saved.tokenizer.eos_token = end
    saved.tokenizer.padding_side = "left"  # generation in batches needs it
    image_processor = saved.image_processor
    if getattr(image_processor, "crop_size", None) is None:  # SigLIP's has none; token counts are read from it
        image_processor.crop_size = dict(image_processor.size)
    return saved
