"""A tiny LLaVA pair and a handful of rows, made on the spot for the engine's tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.models.llava_parts import design
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.recipe.schema import Parts

SWITCH_KD = ("student", "teacher", "switch")  # its paths
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 12,
}


def model(
    width: int = 16, layers: int = 2, *, seed: int = 0, feature_layer: int = -2, vision: dict | None = None
) -> VisionLanguageModel:
    """A LLaVA of a few thousand parameters with the playground's tokenizer and four image tokens."""
    language = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    parts = Parts(
        family="llava",
        vision={"fresh": VISION | (vision or {})},
        language={"fresh": language},
        tokenizer="playground:tokenizer",
        feature_layer=feature_layer,
    )
    return design(parts).build().eval()


def picture(folder: Path, name: str, seed: int) -> str:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return name


def row(name: str, image: str | None, *exchanges: tuple[str, str]) -> dict:
    """A LLaVA-1.5 row."""
    turns = []
    for number, (question, answer) in enumerate(exchanges):
        opening = "<image>\n" if image and number == 0 else ""
        turns += [{"from": "human", "value": opening + question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({"image": image} if image else {})


def rows(folder: Path) -> list[dict]:
    """Pictured and text-only rows with different numbers of turns and of answer tokens."""
    return [
        row("a", picture(folder, "a.png", 1), ("What is it?", "dog"), ("How many?", "three red apples")),
        row("b", None, ("Say hi.", "hi there")),
        row("c", picture(folder, "c.png", 2), ("Where?", "at the top left"), ("Yes?", "no"), ("What?", "a cat")),
        row("d", picture(folder, "d.png", 3), ("What is it?", "a bus")),
    ]


def conversations(
    of: VisionLanguageModel, folder: Path, turns: str = "chained", which: list[dict] | None = None
) -> Conversations:
    read = Rows(which or rows(folder), llava_row, images=folder, turns=turns)
    return Conversations(read, of.inputs)


def batch(of: VisionLanguageModel, folder: Path, turns: str = "chained", which: list[dict] | None = None) -> Batch:
    data = conversations(of, folder, turns, which)
    return together(of, [data[i] for i in range(len(data))])


def taught(
    student: VisionLanguageModel,
    teacher: VisionLanguageModel,
    folder: Path,
    turns: str = "chained",
    which: list[dict] | None = None,
) -> Batch:
    """A batch of a student's rows with those of a teacher of the same tokenizer, which may have other visual tokens."""
    data = conversations(student, folder, turns, which).with_teacher(teacher.inputs)
    return together(student, [data[i] for i in range(len(data))])


def together(of: VisionLanguageModel, examples: list) -> Batch:
    tokens = of.inputs.processor.tokenizer
    return collate(examples, pad_token=tokens.pad_token_id)


def pixels(of: Batch) -> torch.Tensor:
    """[P, 3, H, W] of a batch with images."""
    return torch.cat([image["pixel_values"] for image in of.images])
