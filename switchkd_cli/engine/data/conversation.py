"""LLaVA-1.5 conversations as training examples: rendered by the model's own chat template, masked, cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaProcessor

from switchkd_cli.engine.batch import IGNORE, IMAGE, Example
from switchkd_cli.engine.data.rows import is_pictured
from switchkd_cli.errors import UserError, did_you_mean

TURNS = ("chained", "independent")
CACHED = 8192  # examples kept in memory


class Conversations(Dataset[Example]):
    """Rows of `{id, image?, conversations: [{from: human|gpt, value}]}` as examples.

    Answers are supervised, the rest is not. With `turns="chained"` a row is one conversation and each turn sees
    the earlier ones; with `"independent"` each turn sees the picture and itself, exactly as if it were a row of
    its own, but the picture is encoded once for all of them.
    """

    def __init__(
        self,
        rows: Sequence[Mapping],
        images: Path | None,
        processor: LlavaProcessor,
        image_tokens: int,
        turns: str,
    ) -> None:
        if turns not in TURNS:
            raise UserError(f"turns: unknown value, got {turns!r}{did_you_mean(turns, TURNS)}")
        self.rows = rows
        self.images = images
        self.processor = processor
        self.image_tokens = image_tokens
        self.turns = turns
        self._example = lru_cache(CACHED)(self._build)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self._example(index)

    def _build(self, index: int) -> Example:
        row = self.rows[index]
        tokens, labels, turn = [], [], []
        for number, (prompt, answer) in enumerate(self._pieces(row)):
            for text, supervised in ((prompt, False), (answer, True)):
                ids = self._encode(text)
                tokens += ids
                labels += ids if supervised else [IGNORE] * len(ids)
                turn += [number if self.turns == "independent" else 0] * len(ids)
        return Example(
            id=str(row["id"]),
            input_ids=torch.tensor(tokens),
            labels=torch.tensor(labels),
            turn=torch.tensor(turn),
            picture=self._picture(row["image"]) if is_pictured(row) else None,
        )

    def _pieces(self, row: Mapping) -> list[tuple[str, str]]:
        """(prompt, answer) text of each turn; for independent turns the first piece is the shared part."""
        exchanges = exchanged(row)
        if self.turns == "chained":
            return self._chained(exchanges, is_pictured(row))
        pieces = [("", "")]
        for question, answer in exchanges:
            ((prompt, reply),) = self._chained([(question, answer)], is_pictured(row))
            shared, prompt = _split_after_image(prompt)
            pieces[0] = (shared, "")
            pieces.append((prompt, reply))
        return pieces

    def _chained(self, exchanges: Sequence[tuple[str, str]], pictured: bool) -> list[tuple[str, str]]:
        messages, said, pieces = [], "", []
        for number, (question, answer) in enumerate(exchanges):
            content = [{"type": "image"}] if pictured and number == 0 else []
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
            asked = self._render(messages, generation=True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            told = self._render(messages, generation=False)
            pieces.append((asked.removeprefix(said), told.removeprefix(asked)))
            said = told
        return pieces

    def _render(self, messages: Sequence[Mapping], *, generation: bool) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)

    def _encode(self, text: str) -> list[int]:
        expanded = text.replace(IMAGE, IMAGE * self.image_tokens)
        return self.processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]

    def _picture(self, name: str) -> Tensor:
        with Image.open(self.images / name) as picture:
            return self.processor.image_processor(picture.convert("RGB"), return_tensors="pt")[
                "pixel_values"
            ][0]


def exchanged(row: Mapping) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a row, without the image placeholder."""
    values = [turn["value"] for turn in row["conversations"]]
    questions = [
        value.replace(f"{IMAGE}\n", "").replace(f"\n{IMAGE}", "").replace(IMAGE, "") for value in values[::2]
    ]
    return list(zip(questions, values[1::2], strict=True))


def _split_after_image(prompt: str) -> tuple[str, str]:
    """(shared part up to the image, the rest); without an image nothing is shared."""
    before, image, after = prompt.rpartition(IMAGE)
    return before + image, after
