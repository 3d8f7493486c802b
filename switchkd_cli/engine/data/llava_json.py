"""Data source for LLaVA-1.5 rows, the format of the paper's two data sets: `{id, image?, conversations: [{from, value}]}`."""

from pathlib import Path
from typing import Literal

from switchkd_cli.engine.data.open_file import open_rows
from switchkd_cli.engine.data.rows import Row, Rows
from switchkd_cli.engine.data.turns import Form

FORMAT = "a list of {id, image, conversations: [{from: human, value}, {from: gpt, value}, ...]}"
TURNS = Form("conversations", "from", "value", asks="human", answers="gpt")


def llava_json(
    cache: Path,
    *,
    file: str,
    images: str | None = None,
    limit: int | None = None,
    turns: Literal["chained", "independent"] = "chained",
    follow_links: bool = False,
) -> Rows:
    """Return the rows of a .json, .jsonl or .parquet file; image paths are relative to `images`.

    With `follow_links` symbolic links may lead out of that folder.
    """
    return open_rows(
        Path(file), llava_row, FORMAT, cache=cache, images=images, follow_links=follow_links, limit=limit, turns=turns
    )


def llava_row(value: object) -> Row:
    """Parse a raw LLaVA-1.5 row. Raises Fault."""
    return TURNS.row(value)
