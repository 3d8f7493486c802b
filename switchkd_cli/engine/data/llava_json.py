"""LLaVA-1.5 JSON files: the format of the paper's two data sets."""

from pathlib import Path

from switchkd_cli.engine.data.conversation import Conversations, read_rows
from switchkd_cli.engine.models.llava import Llava


def llava_json(
    model: Llava,
    cache: Path,
    *,
    file: str,
    images: str | None = None,
    limit: int | None = None,
    turns: str = "chained",
) -> Conversations:
    """Rows of a JSON list `{id, image?, conversations}`; image paths are relative to `images`.

    `cache` is not used: the data lies where the user put it.
    """
    folder = Path(images) if images is not None else None
    return Conversations(read_rows(Path(file), folder, limit), folder, model.processor, model.image_tokens, turns)
