"""One picture from its file or its bytes; anything wrong with it is a Fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageFile

from switchkd_cli.engine.data.rows import Fault


def opened(image: str | bytes, images: Path | None) -> Image.Image:
    """The picture in RGB; a path is relative to `images`. Raises Fault."""
    if isinstance(image, str):
        path = images / image
        if not path.is_file():
            raise Fault(f"no such image: {path}")
        return _decoded(path, f"unreadable image {path}")
    return _decoded(BytesIO(image), "unreadable image")


def _decoded(source: Path | BytesIO, complaint: str) -> Image.Image:
    try:
        with _cut_pictures_fail(), Image.open(source) as picture:
            return picture.convert("RGB")
    except Exception as error:  # noqa: BLE001 (decoders of damaged files raise nearly anything)
        raise Fault(f"{complaint}: {error}") from None


@contextmanager
def _cut_pictures_fail() -> Iterator[None]:
    """Pillow can be told, for a whole process, to fill truncated pictures with grey: importing lmms-eval does so."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
