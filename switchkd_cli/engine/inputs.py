"""How a family of models turns conversations and images into its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL.Image import Image, new
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from switchkd_cli.engine.batch import ImageInput

USUAL = (448, 448)  # pixels of an image that stands for one that isn't opened


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready for V, and its text in a conversation: visual tokens and any marks around them."""

    inputs: ImageInput
    text: str


class InputProcessor(ABC):
    """Turns conversations and images into a model's inputs; it wraps transformers' processor of that model.

    It must be picklable: it is sent to the processes that prepare data. `chained_only`: why its model can't be given
    independent turns in one example; empty: it can. `seam`: where the family's vision tower ends (models/seams.py).
    """

    chained_only = ""
    seam: Any = None

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor

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
        return self.tokenizer.convert_tokens_to_ids(self.image_text)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], template: str | None = None, *, answer_next: bool = False
    ) -> str:
        """Return the text of a conversation, by `template` or the model's own.

        `answer_next` ends it where an answer begins. Raises jinja2.TemplateError where the template refuses the messages.
        """
        return self.processor.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer_next
        )

    @abstractmethod
    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """Prepare all images of one example together: how an image is cropped may depend on their number."""

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
        return [
            "".join(piece + next(left) for piece in pieces[:-1]) + pieces[-1]
            for pieces in (text.split(self.image_text) for text in texts)
        ]

    def position(self, input_ids: Tensor, turn: Tensor, images: Sequence[ImageInput]) -> Tensor | None:
        """Return the family's own position ids, [T] or [A, T]; None: they are counted along the turns (see `Example`)."""
        return None
