"""Greedy answers to lmms-eval's questions, in batches; each image is encoded once."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel, digest
from switchkd_cli.engine.models.family import ProjectedImage, VisionLanguageModel

GREY = (127, 127, 127)
KEPT_BYTES = 2**28
"""Prepared images and visual tokens that are kept for images that come again."""


class GreedyModel(LmmsModel):
    """Puts questions by the model's own chat template and answers greedily.

    Answers end at the end-of-sequence token. `blind` puts a mid-grey image in place of each image: what the model
    answers without seeing. `positions`: those that the model was made for.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        blind: bool = False,
        positions: int | None = None,
        device: str | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.inputs = model.inputs
        self.blind = blind
        self.positions = positions or math.inf
        self._projected: dict[tuple[str, ...], list[ProjectedImage]] = {}

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Prompt lengths in tokens."""
        return [len(ids) for ids in self.inputs.tokenizer([i.prompt for i in items])["input_ids"]]

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> list[str]:
        images = self._project([self._shown(item) for item in items])
        texts = [self._text(item.prompt, len(each)) for item, each in zip(items, images, strict=True)]
        lengths, written = self.model.generate(texts, images, self._greedy(items[0].limit))
        for item, prompt, answer in zip(items, lengths, self._answer_lengths(written), strict=True):
            item.at_limit = answer > item.limit
            item.too_long = prompt + min(answer, item.limit) > self.positions
        return self.inputs.tokenizer.batch_decode(written, skip_special_tokens=True)

    def _shown(self, item: Item) -> list[Image.Image]:
        if self.blind:
            return [Image.new("RGB", picture.size, GREY) for picture in item.pictures]
        return item.pictures

    def _text(self, prompt: str, images: int) -> str:
        """The conversation up to the answer, with the template's mark for each image."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return self.inputs.apply_chat_template([{"role": "user", "content": content}], answer_next=True)

    def _project(self, shown: Sequence[list[Image.Image]]) -> list[list[ProjectedImage]]:
        """The images of each question, prepared together and projected; those of questions before are kept."""
        names = [tuple(map(digest, images)) for images in shown]
        if not set(names) <= self._projected.keys() and self._kept_bytes() > KEPT_BYTES:
            self._projected.clear()
        new = {name: images for name, images in zip(names, shown, strict=True) if name not in self._projected}
        prepared = [image for images in new.values() if images for image in self.inputs.prepare(images)]
        device = self.model.model.device
        inputs = [{name: value.to(device) for name, value in image.inputs.items()} for image in prepared]
        tokens = iter(self.model.project(self.model.encode(inputs), inputs) if inputs else ())
        projected = (ProjectedImage(image, next(tokens)) for image in prepared)
        self._projected |= {name: [next(projected) for _ in images] for name, images in new.items()}
        return [self._projected[name] for name in names]

    def _kept_bytes(self) -> int:
        return sum(image.nbytes for images in self._projected.values() for image in images)

    def _answer_lengths(self, written: Tensor) -> list[int]:
        """Tokens of each answer [B, T] with its end; one more than there are where the end was not reached."""
        ends = torch.as_tensor(self._greedy(1).eos_token_id, device=written.device)
        ended = torch.isin(written, ends)
        return torch.where(ended.any(1), ended.int().argmax(1), written.shape[1]).add(1).tolist()

    def _greedy(self, limit: int) -> GenerationConfig:
        tokenizer = self.inputs.tokenizer
        end = self.model.model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        pad = tokenizer.pad_token_id
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=end,
            pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        )
