"""Chat rows, the format of most published sets: `{messages: [{role, content}], images?: [...], id?}`."""

from pathlib import Path
from typing import Literal

from switchkd_cli.engine.batch import IMAGE
from switchkd_cli.engine.data.llava_json import SHOWN, picture_of
from switchkd_cli.engine.data.opening import open_rows
from switchkd_cli.engine.data.rows import Fault, Row, Rows, paired, told

FORMAT = "a list of {messages: [{role: user, content}, {role: assistant, content}, ...], images: [path]}"


def messages(
    cache: Path,
    *,
    file: str,
    images: str | None = None,
    limit: int | None = None,
    turns: Literal["chained", "independent"] = "chained",
    follow_links: bool = False,
) -> Rows:
    """Rows of a .json, .jsonl or .parquet file; image paths are relative to `images`.

    `follow_links` lets symbolic links in there lead elsewhere.
    """
    asked = {"images": images, "follow_links": follow_links, "limit": limit, "turns": turns}
    return open_rows(Path(file), message_row, FORMAT, cache=cache, **asked)


def message_row(value: object) -> Row:
    """A raw row of messages: an optional system message, then user and assistant in turn. Raises Fault."""
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise Fault("not a mapping with a `messages` list")
    id = "" if value.get("id") is None else told(value["id"])
    try:
        said = [_said(message) for message in value["messages"]]
        system = said.pop(0)[1] if said and said[0][0] == "system" else None
        speakers = [role for role, _ in said]
        if not said or speakers != ["user", "assistant"] * (len(said) // 2):
            shown = ", ".join(map(told, speakers[:SHOWN])) + (", ..." if len(speakers) > SHOWN else "")
            raise Fault(
                "messages must go user, assistant, user, assistant, ...;"
                f" a conversation needs an answer, got {shown or 'none'}"
            )
        image = _image(value)
        return Row(id, paired([text for _, text in said], image is not None), image, system)
    except Fault as fault:
        raise Fault(str(fault), id) from None


def _said(message: object) -> tuple[object, str]:
    """(role, text); content is text, or parts of which an image is as good as its placeholder."""
    if not isinstance(message, dict):
        raise Fault("a message is not a mapping")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        parts = [IMAGE if part.get("type") == "image" else part.get("text") for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise Fault("a message's content is not text")
    return message.get("role"), content


def _image(value: dict) -> str | bytes | None:
    images = value.get("images")
    if images is None:
        return picture_of(value.get("image"))
    if not isinstance(images, list) or len(images) > 1:
        count = len(images) if isinstance(images, list) else told(images)
        raise Fault(f"`images` is a list of at most one image, got {count}")
    return picture_of(images[0]) if images else None
