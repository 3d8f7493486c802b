"""Data source for chat rows, the format of most published sets: `{messages: [{role, content}], images?: [...], id?}`."""

from pathlib import Path
from typing import Literal

from switchkd_cli.engine.data.open_file import open_rows
from switchkd_cli.engine.data.rows import Row, Rows
from switchkd_cli.engine.data.turns import Form

FORMAT = "a list of {messages: [{role: user, content}, {role: assistant, content}, ...], images: [path]}"
TURNS = Form("messages", "role", "content", asks="user", answers="assistant")


def messages(
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
        Path(file), message_row, FORMAT, cache=cache, images=images, follow_links=follow_links, limit=limit, turns=turns
    )


def message_row(value: object) -> Row:
    """Parse a raw row of chat messages. Raises Fault."""
    return TURNS.row(value)
