"""LLaVA-1.5 JSON files: the format of the paper's two data sets."""

from pathlib import Path
from typing import Literal

from transformers import LlavaProcessor

from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import read_rows


def llava_json(
    processor: LlavaProcessor,
    image_tokens: int,
    cache: Path,
    *,
    file: str,
    images: str | None = None,
    limit: int | None = None,
    turns: Literal["chained", "independent"] = "chained",
) -> Conversations:
    """Rows of a JSON list `{id, image?, conversations}`; image paths are relative to `images`.

    `cache` is not used: the data lies where the user put it.
    """
    folder = Path(images) if images is not None else None
    return Conversations(read_rows(Path(file), folder, limit), folder, processor, image_tokens, turns)
