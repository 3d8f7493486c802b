"""Generate greedy answers to lmms-eval's questions in batches; each image is encoded once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from switchkd_cli.benchmarks import EXPOSURE
from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.build import open_data
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel, digest
from switchkd_cli.engine.hub import CheckpointFolder, as_user_error
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.low_bits import quantise
from switchkd_cli.engine.models.vision_language_model import ProjectedImage, VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.figures import Figure, measure
from switchkd_cli.engine.weights import weight_files
from switchkd_cli.files.hashes import cache_home
from switchkd_cli.recipe.schema import DataSet

GREY = (127, 127, 127)
Images = list[Image.Image]
CACHE_BYTES = 2**28
"""Prepared images and visual tokens up to this size are cached, for images that occur again."""


class PromptedModel(LmmsModel):
    """A model that answers greedily, prompted by its own chat template, in any engine.

    Answers end at the end-of-sequence token. `blind` replaces each image by a mid-grey one, to measure what the model
    answers without the image. `positions`: the most positions that the model is made for.
    """

    about: dict[str, Any]
    """What results.json says of how it answers."""
    ends: int | list[int]
    """The ids that end an answer."""

    def __init__(
        self, inputs: InputProcessor, *, blind: bool = False, positions: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.inputs = inputs
        self.blind = blind
        self.positions = positions or math.inf

    @abstractmethod
    def generate(self, texts: Sequence[str], images: Sequence[Images], limit: int) -> tuple[list[int], Tensor]:
        """Continue each text, with its images. Returns the texts' lengths in tokens and the new ids [B, <= limit]."""

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the prompt lengths in tokens."""
        return [len(ids) for ids in self.inputs.tokenizer([i.prompt for i in items])["input_ids"]]

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> list[str]:
        shown = [[Image.new("RGB", i.size, GREY) if self.blind else i for i in item.images] for item in items]
        texts = [self._text(item.prompt, len(each)) for item, each in zip(items, shown, strict=True)]
        lengths, answers = self.generate(texts, shown, items[0].limit)
        ends = self._answer_lengths(answers)
        for item, prompt, length in zip(items, lengths, ends, strict=True):
            item.at_limit = length > item.limit
            item.too_long = prompt + min(length, item.limit) > self.positions
        # without the end token, which may be no special one
        said = [ids[: end - 1] for ids, end in zip(answers.tolist(), ends, strict=True)]
        return self.inputs.tokenizer.batch_decode(said, skip_special_tokens=True)

    def _text(self, prompt: str, images: int) -> str:
        """Return the conversation up to the answer, with the template's placeholder for each image."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return self.inputs.apply_chat_template([{"role": "user", "content": content}], answer_next=True)

    def _answer_lengths(self, answers: Tensor) -> list[int]:
        """Return the length of each answer [B, T] with its end token; T + 1 where no end token was generated."""
        is_end = torch.isin(answers, torch.as_tensor(self.ends, device=answers.device))
        return torch.where(is_end.any(1), is_end.int().argmax(1), answers.shape[1]).add(1).tolist()


class GreedyModel(PromptedModel):
    """A model that transformers runs."""

    def __init__(self, model: VisionLanguageModel, **options: Any) -> None:
        super().__init__(model.inputs, **options)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.about = {"engine": "transformers"}
        self._projected: dict[tuple[str, ...], list[ProjectedImage]] = {}

    def generate(self, texts: Sequence[str], images: Sequence[Images], limit: int) -> tuple[list[int], Tensor]:
        tokenizer, end = self.inputs.tokenizer, self.model.model.generation_config.eos_token_id
        self.ends = tokenizer.eos_token_id if end is None else end
        ends = {"eos_token_id": self.ends, "pad_token_id": tokenizer.pad_token_id}
        greedy = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=limit, **ends)
        return self.model.generate(texts, self._project(images), greedy)

    @torch.inference_mode()
    def nats(self, data: DataSet, count: int) -> list[float]:
        rows, device = open_data(data, self.inputs, cache_home()), self.model.model.device
        paths, found = Paths(self.model, None, len(self.model.head)), list[float]()
        for first in range(0, count, self.batch):
            with as_user_error(EXPOSURE):  # a row that can't be used
                examples = [rows.example(number) for number in range(first, min(first + self.batch, count))]
            batch = collate(examples, pad_token=self.inputs.tokenizer.pad_token_id).to(device)
            keep = batch.predicting("answer")
            seen = batch.with_blank_images() if self.blind else batch
            each = measure([Figure(loss="loss")], paths, seen, keep)["loss"]
            found += torch.zeros(keep.shape, device=device).masked_scatter(keep, each).sum(1).tolist()
        return found

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


def in_transformers(
    checkpoint: CheckpointFolder, blueprint: Blueprint, *, bits: int | None = None, **options: Any
) -> GreedyModel:
    """Read a checkpoint's model, with the linear layers rounded to `bits` bits if that is given."""
    # half precision saves memory and time on a GPU; a CPU computes faster in float32
    model = blueprint.build("auto" if torch.cuda.is_available() else "float32")
    reader = GreedyModel(model, **options)
    if bits is not None:
        size = sum(file.stat().st_size for file in weight_files(checkpoint))
        saved = quantise(model, bits, blueprint.config.dtype or torch.float32)
        reader.about |= {"bits": bits, "bytes": size - saved, "full_bytes": size}
    return reader
