"""One picture from its file or its bytes; anything wrong with it is a Fault."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from os.path import isfile, realpath
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from switchkd_cli.engine.data.rows import Fault
from switchkd_cli.engine.exif_orientation import upright

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded. Pillow knows more; of those some start other programs (EPS runs Ghostscript)."""

PIXELS = 1 << 26  # of a picture; 192 MiB once it is decoded
SIDE = 1 << 14  # of its longer side: a processor may pad it to a square of that
RATIO = 100  # longer to shorter side: a processor may scale the shorter side up


def opened(image: str | bytes, images: Path | None, *, follow_links: bool = False) -> Image.Image:
    """The picture in RGB: the first frame, without transparency, turned as its EXIF orientation says.

    A path is relative to `images` and stays in there, its links followed, unless `follow_links`. Raises Fault.
    """
    if isinstance(image, bytes):
        return _decoded(BytesIO(image), "unreadable image")
    if images is None:
        raise Fault("has an image, but the data names no `images` folder")
    path = images / image
    if not isfile(path):
        raise Fault(f"no such image: {path}")
    if not follow_links and not Path(realpath(path)).is_relative_to(realpath(images)):
        told = f"image path leaves its folder by a link: {image} (follow_links: true would allow it)"
        raise Fault(told, refused=True)
    return _decoded(path, f"unreadable image {path}")


def _decoded(source: Path | BytesIO, complaint: str) -> Image.Image:
    try:
        with _quietly_whole(), Image.open(source, formats=FORMATS) as picture:
            _check_size(*picture.size)
            return _rgb(upright(picture))
    except Exception as error:  # noqa: BLE001 (decoders of damaged files raise nearly anything)
        raise Fault(f"{complaint}: {error}") from None


def _check_size(width: int, height: int) -> None:
    """Raises ValueError; nothing is decoded yet. Pillow's own limit is a warning first, and lmms-eval lifts it."""
    if (
        width * height > PIXELS
        or max(width, height) > SIDE
        or max(width, height) > RATIO * min(width, height)
    ):
        raise ValueError(
            f"{width} x {height} pixels; the most are {PIXELS >> 20} Mi pixels, a side of {SIDE}, "
            f"and one side {RATIO} times the other"
        )


def _rgb(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits is scaled: Pillow would cut everything above 255 to white."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture, np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("levels of more than 16 bits")
        picture = Image.fromarray((levels / 257).round().astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("levels in floating point, of no known range")
    return picture.convert("RGB")


@contextmanager
def _quietly_whole() -> Iterator[None]:
    """Without Pillow's warnings, and with its errors.

    Pillow can be told, for a whole process, to fill truncated pictures with grey: importing lmms-eval does so.
    """
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
