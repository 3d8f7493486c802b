"""Pairs of models with random weights, and batches for them, in the sizes of the measured steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from switchkd_cli.engine.batch import IGNORE, Batch, Example, collate
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.llava import SEAM
from switchkd_cli.engine.models.processors import default_image_processor
from switchkd_cli.engine.models.shape import image_tokens_of
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.recipe.named_files import locate

TEACHER, LANGUAGE = locate("playground:teacher"), locate("playground:language")
FEWEST = 0.6  # the shortest row's text, as a share of the longest's
ANSWERED = 1 / 3  # the share of a row's text that is supervised


@dataclass(frozen=True)
class Size:
    """A pair: one tower for both, two language models, and a micro-batch of `rows` with up to `text` tokens each.

    Without its own shape it has the playground's.
    """

    name: str
    rows: int
    text: int
    vocabulary: int = 0
    tower: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)

    def configs(self) -> tuple[LlavaConfig, LlavaConfig]:
        """The student's and the teacher's."""
        if not self.tower:
            teacher = LlavaConfig.from_pretrained(TEACHER)
            student = copy.deepcopy(teacher)
            student.text_config = Qwen2Config.from_pretrained(LANGUAGE)
            return student, teacher
        return tuple(self._config(language) for language in (self.student, self.teacher))

    def _config(self, language: Mapping[str, Any]) -> LlavaConfig:
        return LlavaConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **self.tower),
            text_config=Qwen2Config(vocab_size=self.vocabulary, tie_word_embeddings=True, **language),
            image_token_index=LlavaConfig.from_pretrained(TEACHER).image_token_index,
            vision_feature_select_strategy="full",
            vision_feature_layer=-2,
            tie_word_embeddings=True,
        )


SMALL = Size("small", rows=16, text=128)
MIDDLING = Size(
    "middling",
    rows=2,
    text=64,
    vocabulary=32_000,
    tower={
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 160,
        "patch_size": 20,
    },
    student={
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    teacher={
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
)
WIDE = Size(
    "wide",
    rows=4,
    text=64,
    vocabulary=151_936,
    tower={
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 160,
        "patch_size": 20,
    },
    student={
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 10,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    teacher={
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
)
"""Small layers under a vocabulary as wide as Qwen2.5's: heads and losses are nearly all of a step."""
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
QWEN = {"0.5B": (896, 4864, 24, 14, 2), "1.5B": (1536, 8960, 28, 12, 2), "3B": (2048, 11008, 36, 16, 2)}
"""Qwen2.5's width, inner width, layers, heads and key heads."""
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def paper(teacher: str) -> Size:
    """Return the paper's pair: SigLIP-so400m with Qwen2.5 0.5B, and a larger teacher."""
    student, larger = (dict(zip(FIELDS, QWEN[name], strict=True)) for name in ("0.5B", teacher))
    return Size(
        f"paper's, {teacher}", rows=4, text=256, vocabulary=151_936, tower=SO400M, student=student, teacher=larger
    )


def build(size: Size, device: torch.device, seed: int = 0) -> Paths:
    """Return the pair on the device. Both have the playground's tokenizer and the tower's usual image processing."""
    torch.manual_seed(seed)
    student, teacher = (_model(config, device) for config in size.configs())
    return Paths(student, teacher, student.model.config.text_config.vocab_size)


def _model(config: LlavaConfig, device: torch.device) -> VisionLanguageModel:
    config.image_seq_length = image_tokens_of(config)
    config.text_config.dtype = config.vision_config.dtype = "float32"  # shipped weights are stored in half precision
    processor = AutoProcessor.from_pretrained(TEACHER)
    processor.image_processor = default_image_processor(config.vision_config)
    processor.patch_size = config.vision_config.patch_size
    with device:
        return VisionLanguageModel(LlavaForConditionalGeneration(config), InputProcessor(processor, config, SEAM))


def batch(size: Size, paths: Paths, device: torch.device) -> Batch:
    """Return a micro-batch of random examples: one image each, texts of evenly spread lengths, the last third supervised."""
    config = paths.student.model.config
    image, side, columns = (config.image_token_id, config.vision_config.image_size, config.text_config.vocab_size)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number, share in enumerate(torch.linspace(FEWEST, 1, size.rows).tolist()):
        text = torch.randint(image + 1, columns, (round(share * size.text),), generator=draw)
        tokens = torch.cat([torch.full((image_tokens_of(config),), image), text])
        supervised = torch.arange(len(tokens)) >= len(tokens) - round(ANSWERED * len(text))
        images = ({"pixel_values": torch.randn(3, side, side, generator=draw)},)
        labels = torch.where(supervised, tokens, IGNORE)
        rows.append(Example(str(number), tokens, labels, torch.zeros_like(tokens), tokens == image, images))
    return collate(rows, pad_token=0).to(device)
