"""Generate greedy answers to lmms-eval's questions in batches; each image is encoded once."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel, digest
from switchkd_cli.engine.models.vision_language_model import ProjectedImage, VisionLanguageModel

GREY = (127, 127, 127)
CACHE_BYTES = 2**28
"""Prepared images and visual tokens up to this size are cached, for images that occur again."""


class GreedyModel(LmmsModel):
    """A vision-language model that answers greedily, prompted by its own chat template.

    Answers end at the end-of-sequence token. `blind` replaces each image by a mid-grey one, to measure what the model
    answers without the image. `positions`: the most positions that the model is made for.
    """

    def __init__(
        self, model: VisionLanguageModel, *, blind: bool = False, positions: int | None = None, **options
    ) -> None:
        super().__init__(**options)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.inputs = model.inputs
        self.blind = blind
        self.positions = positions or math.inf
        self._projected: dict[tuple[str, ...], list[ProjectedImage]] = {}

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the prompt lengths in tokens."""
        return [len(ids) for ids in self.inputs.tokenizer([i.prompt for i in items])["input_ids"]]

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> list[str]:
        shown = [[Image.new("RGB", i.size, GREY) if self.blind else i for i in item.images] for item in items]
        images = self._project(shown)
        texts = [self._text(item.prompt, len(each)) for item, each in zip(items, images, strict=True)]
        lengths, answers = self.model.generate(texts, images, self._greedy(items[0].limit))
        for item, prompt, length in zip(items, lengths, self._answer_lengths(answers), strict=True):
            item.at_limit = length > item.limit
            item.too_long = prompt + min(length, item.limit) > self.positions
        return self.inputs.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _text(self, prompt: str, images: int) -> str:
        """Return the conversation up to the answer, with the template's placeholder for each image."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return self.inputs.apply_chat_template([{"role": "user", "content": content}], answer_next=True)

    def _project(self, images_by_question: Sequence[list[Image.Image]]) -> list[list[ProjectedImage]]:
        """Prepare and project the images of each question; those of earlier questions come from the cache."""
        keys = [tuple(map(digest, images)) for images in images_by_question]
        cached = sum(image.nbytes for images in self._projected.values() for image in images)
        if not set(keys) <= self._projected.keys() and cached > CACHE_BYTES:
            self._projected.clear()
        new = {key: images for key, images in zip(keys, images_by_question, strict=True) if key not in self._projected}
        prepared = [image for images in new.values() if images for image in self.inputs.prepare(images)]
        device = self.model.model.device
        inputs = [{name: value.to(device) for name, value in image.inputs.items()} for image in prepared]
        tokens = iter(self.model.project(self.model.encode(inputs), inputs) if inputs else ())
        projected = (ProjectedImage(image, next(tokens)) for image in prepared)
        self._projected |= {key: [next(projected) for _ in images] for key, images in new.items()}
        return [self._projected[key] for key in keys]

    def _answer_lengths(self, answers: Tensor) -> list[int]:
        """Return the length of each answer [B, T] with its end token; T + 1 where no end token was generated."""
        end_tokens = torch.as_tensor(self._greedy(1).eos_token_id, device=answers.device)
        is_end = torch.isin(answers, end_tokens)
        return torch.where(is_end.any(1), is_end.int().argmax(1), answers.shape[1]).add(1).tolist()

    def _greedy(self, limit: int) -> GenerationConfig:
        tokenizer = self.inputs.tokenizer
        end = self.model.model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        ends = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
        return GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=limit, **ends)
