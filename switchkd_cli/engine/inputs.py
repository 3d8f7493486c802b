"""How a family of models turns conversations and images into its inputs."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL.Image import Image, new
from torch import Tensor, nn
from transformers import MODEL_MAPPING, BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from switchkd_cli.engine.batch import ImageInput

USUAL = (448, 448)  # pixels of an image that stands for one that isn't opened
OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "text_replacement_offsets")


class PreparedImage(NamedTuple):
    """One image, ready for V, and its text in a conversation: visual tokens and any marks around them."""

    inputs: ImageInput
    text: str


class InputProcessor:
    """Turns conversations and images into a model's inputs, as transformers' processor of that model prepares them.

    It must be picklable: it is sent to the processes that prepare data. `chained_only`: why its model can't be given
    independent turns in one example; empty: it can. `seam`: where the family's vision tower ends (models/seams.py).
    """

    def __init__(self, processor: ProcessorMixin, config: PretrainedConfig, seam: Any) -> None:
        self.processor, self.config, self.seam = processor, config, seam
        kinds = {*(getattr(config.get_text_config(), "layer_types", None) or ())} - {"full_attention"}
        self.chained_only = f"its language model has layers of {', '.join(sorted(kinds))}" if kinds else ""
        core: Any = MODEL_MAPPING.get(type(config), None)
        self._counter = None
        if hasattr(core, "get_rope_index"):  # a model without weights: it counts positions from its config alone
            self._counter = core.__new__(core)
            nn.Module.__init__(self._counter)
            self._counter.config = config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template (Jinja)."""
        return self.processor.chat_template

    @property
    def image_text(self) -> str:
        """The text that the chat template writes for an image: one token of the tokenizer."""
        return self.processor.image_token

    @property
    def image_token(self) -> int:
        """The id of a visual token."""
        return self.config.image_token_id

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], template: str | None = None, *, answer_next: bool = False
    ) -> str:
        """Return the text of a conversation, by `template` or the model's own.

        `answer_next` ends it where an answer begins. Raises jinja2.TemplateError where the template refuses the messages.
        """
        how = {"tokenize": False, "add_generation_prompt": answer_next}
        return self.processor.apply_chat_template(messages, chat_template=template, **how)

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """Prepare all images of one example together: how an image is cropped may depend on their number.

        The tensors are those that the processor gives, under its names.
        """
        groups = [list(images)] if self.seam.of_row and images else [[image] for image in images]
        return [image for group in groups for image in self._prepared(group)]

    def _prepared(self, images: list[Image]) -> list[PreparedImage]:
        text = [self.image_text * len(images)]
        found = self.processor(images=[images], text=text, return_tensors="pt", return_text_replacement_offsets=True)
        texts = [image["replacement"] for image in found["text_replacement_offsets"][0]]
        tensors = {name: value for name, value in found.items() if name not in OF_TEXT}
        return list(map(PreparedImage, self.seam.of_images(tensors, len(images)), texts))

    @cached_property
    def usual(self) -> PreparedImage:
        """An image without content, of the usual size: for its text it stands for images that are not opened."""
        return self.prepare([new("RGB", USUAL)])[0]

    def with_images(self, texts: Sequence[str], images: Sequence[str]) -> list[str]:
        """Return what a chat template wrote, in one or several texts, with each image's own text in its place.

        Raises ValueError where the template didn't write each image once.
        """
        if (written := sum(text.count(self.image_text) for text in texts)) != len(images):
            raise ValueError(f"the chat template writes {written} of {len(images)} images")
        left = iter(images)
        split = [text.split(self.image_text) for text in texts]
        return ["".join(piece + next(left) for piece in pieces[:-1]) + pieces[-1] for pieces in split]

    def tokenized(self, texts: Sequence[str], images: Sequence[Sequence[str]]) -> BatchEncoding:
        """Return what a chat template wrote as token ids [B, T], padded on the left, with each image's own text in its place."""
        texts = [self.with_images([text], own)[0] for text, own in zip(texts, images, strict=True)]
        bos = self.tokenizer.bos_token or ""
        # of what the tokenizer puts around a text only what stands in front, as when it trains
        if self.tokenizer.bos_token_id in self.tokenizer("")["input_ids"]:
            texts = [text if text.startswith(bos) else bos + text for text in texts]
        how: dict[str, Any] = {"padding_side": "left", "add_special_tokens": False}
        return self.tokenizer(texts, padding=True, return_tensors="pt", **how)

    def position(self, input_ids: Tensor, turn: Tensor, images: Sequence[ImageInput]) -> Tensor | None:
        """Return the family's own position ids, [T] or [A, T]; None: they are counted along the turns (see `Example`).

        M-RoPE's are [3, T]: time, row and column. Independent turns all count on from the end of what they share.
        """
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
