"""Inputs for tests of conversations: images of one size, each of which takes a number of visual tokens that a test says."""

from collections.abc import Sequence

from PIL.Image import Image
from transformers import LlavaProcessor

from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.llava import SEAM


class SquareInputs(InputProcessor):
    """A LLaVA's inputs, with `image_tokens` in place of what its processor counts."""

    chained_only = ""
    seam = SEAM

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        self.processor, self.image_tokens = processor, image_tokens

    @property
    def image_token(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.image_text)

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return [PreparedImage({"pixel_values": each}, self.image_text * self.image_tokens) for each in pixels]

    def position(self, *_: object) -> None:
        """Counted along the turns."""
