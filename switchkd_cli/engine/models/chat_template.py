"""How a saved model is spoken to: the conversation that it was taught, whichever way a tool writes its messages."""

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
"""Written before a template that knows messages in parts only, it makes parts of plain text. lmms-eval's
`llava_hf` puts "<image>\\n" before the question and asks with that: a template that doesn't expect it asks
nothing, or puts the picture where the model never saw one. In it and in our templates is nothing but what llama.cpp's
engines, @huggingface/jinja and minijinja know as well: no product of a list or a text, no `dict(...)`, no `replace`
as a filter."""
LAST = IN_PARTS.splitlines(keepends=True)[
    -1
]  # what follows it is the template, also behind what older versions wrote


def spoken(processor: LlavaProcessor, template: str | None, end: str | None) -> LlavaProcessor:
    """A copy of the processor with the conversation that the model was taught, to be saved with it.

    `template` is that conversation in Jinja and `end` the token that ends its answers; without them the
    processor's own stay. Tools look for the template in the processor or in the tokenizer, so both have it.
    """
    told = copy.deepcopy(processor)
    template = template or processor.chat_template
    if template:
        told.chat_template = told.tokenizer.chat_template = IN_PARTS + template.rpartition(LAST)[2]
    if end is not None:
        told.tokenizer.eos_token = end
    told.tokenizer.padding_side = "left"  # whoever generates in batches needs it
    pictures = told.image_processor
    if getattr(pictures, "crop_size", None) is None:  # SigLIP's has none; token counts are read from it
        pictures.crop_size = dict(pictures.size)
    return told
