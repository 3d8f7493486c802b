"""How a saved model is spoken to: the conversation that it was taught, whichever way a tool writes its messages."""

from __future__ import annotations

import copy

from transformers import LlavaProcessor

IN_PARTS = """\
{%- set told = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set parts = message.content -%}
{%- if message.content is string -%}
{%- set pieces = message.content.split('<image>') -%}
{%- set text = pieces | join -%}
{%- set parts = [{'type': 'image'}] * (pieces | length - 1) -%}
{%- set parts = parts + [{'type': 'text', 'text': text.lstrip() if parts else text}] -%}
{%- endif -%}
{%- set told.messages = told.messages + [dict(message, content=parts)] -%}
{%- endfor -%}
{%- set messages = told.messages -%}
"""
"""Written before a template that knows messages in parts only, it makes parts of plain text. lmms-eval's
`llava_hf` puts "<image>\\n" before the question and asks with that: a template that doesn't expect it asks
nothing, or puts the picture where the model never saw one."""


def spoken(processor: LlavaProcessor, template: str | None, end: str | None) -> LlavaProcessor:
    """A copy of the processor with the conversation that the model was taught, to be saved with it.

    `template` is that conversation in Jinja and `end` the token that ends its answers; without them the
    processor's own stay. Tools look for the template in the processor or in the tokenizer, so both have it.
    """
    told = copy.deepcopy(processor)
    template = template or processor.chat_template
    if template:
        told.chat_template = told.tokenizer.chat_template = IN_PARTS + template.removeprefix(IN_PARTS)
    if end is not None:
        told.tokenizer.eos_token = end
    told.tokenizer.padding_side = "left"  # whoever generates in batches needs it
    pictures = told.image_processor
    if getattr(pictures, "crop_size", None) is None:  # SigLIP's has none; token counts are read from it
        pictures.crop_size = dict(pictures.size)
    return told
