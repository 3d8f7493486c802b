"""transformers' own processors of images and text: read without what needs torchvision, and what they prepare for a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoImageProcessor, AutoTokenizer, PretrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from switchkd_cli.engine.batch import ImageInput
from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.image_processors import PIL
from switchkd_cli.engine.models.seams import Seam
from switchkd_cli.engine.models.tokenizers import own_template, with_padding

VIDEO = "video_preprocessor_config.json"  # where older releases keep a processor's part for videos
OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "text_replacement_offsets")


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


class ProcessorInputs(InputProcessor):
    """Images and texts as transformers' processor of the model prepares them."""

    def __init__(self, processor: ProcessorMixin, config: PretrainedConfig, seam: Seam) -> None:
        super().__init__(processor)
        self.config, self.seam = config, seam
        kinds = {*(getattr(config.get_text_config(), "layer_types", None) or ())} - {"full_attention"}
        self.chained_only = f"its language model has layers of {', '.join(sorted(kinds))}" if kinds else ""
        core: Any = MODEL_MAPPING.get(type(config), None)
        self._counter = None
        if hasattr(core, "get_rope_index"):  # a model without weights: it counts positions from its config alone
            self._counter = core.__new__(core)
            nn.Module.__init__(self._counter)
            self._counter.config = config

    @property
    def image_token(self) -> int:
        return self.config.image_token_id

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """Return the tensors of each image as the processor gives them, under its names."""
        groups = [list(images)] if self.seam.of_row and images else [[image] for image in images]
        return [image for group in groups for image in self._prepared(group)]

    def _prepared(self, images: list[Image]) -> list[PreparedImage]:
        text = [self.image_text * len(images)]
        found = self.processor(images=[images], text=text, return_tensors="pt", return_text_replacement_offsets=True)
        texts = [image["replacement"] for image in found["text_replacement_offsets"][0]]
        tensors = {name: value for name, value in found.items() if name not in OF_TEXT}
        return list(map(PreparedImage, self.seam.of_images(tensors, len(images)), texts))

    def position(self, input_ids: Tensor, turn: Tensor, images: Sequence[ImageInput]) -> Tensor | None:
        """Return [3, T], M-RoPE: time, row and column. Independent turns all count on from the end of what they share."""
        if self._counter is None:
            return None
        grids = torch.cat([image["image_grid_thw"] for image in images]) if images else None
        types = (input_ids == self.image_token).int()[None]
        position = self._counter.get_rope_index(input_ids[None], types, image_grid_thw=grids)[0][:, 0]
        begin = int(position[:, turn == 0].max()) + 1 if (turn == 0).any() else 0
        for number in range(1, int(turn.max()) + 1):
            here = turn == number
            position[:, here] = begin + torch.arange(int(here.sum()))
        return position
