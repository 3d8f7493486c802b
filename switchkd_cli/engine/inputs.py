"""How conversations and images become a model's inputs: what a family of models says about its examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from switchkd_cli.engine.batch import ImageInput


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready for V, and the token ids that stand for it in the text: visual tokens and marks around them."""

    inputs: ImageInput
    ids: Sequence[int]


class InputProcessor(ABC):
    """How conversations and images become a model's inputs, around the processor that transformers has for it.

    It is sent to the processes that prepare data, so it can be pickled.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The model's own conversation (Jinja)."""
        return self.processor.chat_template

    @property
    def image_text(self) -> str:
        """What the chat template writes where an image is shown: one token of the tokenizer."""
        return self.processor.image_token

    @property
    def image_token(self) -> int:
        """The id of a visual token."""
        return self.tokenizer.convert_tokens_to_ids(self.image_text)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], template: str | None = None, *, answer_next: bool = False
    ) -> str:
        """The text of a conversation, by the model's own template where none is given.

        `answer_next` ends it where an answer begins. Raises jinja2.TemplateError where the template refuses it.
        """
        return self.processor.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer_next
        )

    @abstractmethod
    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        """The images of one example, which is the unit: how an image is cut may depend on how many there are."""

    @abstractmethod
    def placeholder_ids(self) -> Sequence[int]:
        """The token ids of an image that was not opened: as many as an ordinary one has."""

    def position(self, input_ids: Tensor, turn: Tensor, images: Sequence[ImageInput]) -> Tensor | None:
        """Position ids of the family's own, [T] or [A, T]; None: they are counted along the turns (see `Example`)."""
        return None
