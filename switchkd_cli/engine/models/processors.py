"""Read transformers' own processors of images and text, without what needs torchvision."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.engine.models.image_processors import PIL
from switchkd_cli.engine.models.tokenizers import own_template, with_padding

VIDEO = "video_preprocessor_config.json"  # where older releases keep a processor's part for videos


class _Unread(dict):
    """The settings of a part for videos or sound, which is saved again as it was."""

    __getattr__ = dict.get


def read_processor(checkpoint: CheckpointFolder, model_type: str) -> ProcessorMixin:
    """Return a folder's processor, of transformers' class for this type of model. Raises UserError where it can't be read.

    Its parts for videos and sound are left as settings: AutoProcessor would refuse them where torchvision isn't installed.
    """
    with as_user_error(f"{checkpoint}: no readable processor"):
        kind: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
        fields = kind.get_processor_dict(checkpoint.folder, **NO_CODE)[0]
        if checkpoint.has(VIDEO):
            fields.setdefault("video_processor", checkpoint.json(VIDEO))
        given = {name: fields[name] for name in inspect.signature(kind.__init__).parameters if name in fields}
        given |= {part: _Unread(given.get(part) or {}) for part in kind.get_attributes()}
        given["tokenizer"] = with_padding(AutoTokenizer.from_pretrained(checkpoint.folder, **NO_CODE))
        given["image_processor"] = AutoImageProcessor.from_pretrained(checkpoint.folder, **PIL, **NO_CODE)
        processor = kind.__new__(kind)
        processor.check_argument_for_proper_class = lambda part, value: None  # it knows no settings
        kind.__init__(processor, **given)
        del processor.check_argument_for_proper_class
        processor.chat_template = own_template(processor, processor.tokenizer)
    return processor
