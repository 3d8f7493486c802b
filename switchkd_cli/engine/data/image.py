"""Open an image, upright, from a file or from bytes. Raises Fault for an image that can't be used."""

from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from os.path import isfile, realpath
from pathlib import Path
from unittest.mock import patch
from warnings import catch_warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.ExifTags import Base

from switchkd_cli.engine.data.rows import Fault, Row, Rows

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""The formats that are decoded. Pillow knows more, but some start other programs (EPS runs Ghostscript)."""

PIXELS = 1 << 26  # the most an image may have; 192 MiB once it is decoded
SIDE = 1 << 14  # pixels of the longer side, at most: a processor may pad the image to a square of this side
RATIO = 100  # longer to shorter side, at most: a processor may scale the shorter side up


def open_image(image: str | bytes, images: Path | None, *, follow_links: bool = False) -> Image.Image:
    """Return the image in RGB: its first frame, without transparency, turned as its EXIF orientation says.

    A path is relative to `images`. Raises Fault where it leads out of that folder, which symbolic links may do only with
    `follow_links`.
    """
    source, problem = _source(image, images, follow_links)
    try:
        # for the whole process Pillow may be set to fill truncated images with grey: importing lmms-eval does
        strict = patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
        with strict, catch_warnings(action="ignore"), Image.open(source, formats=FORMATS) as opened:
            _check_size(*opened.size)
            return _rgb(upright(opened))
    except Exception as error:  # noqa: BLE001 (decoders of damaged files raise nearly anything)
        raise Fault(f"{problem}: {error}") from None


def images_of(row: Row, rows: Rows) -> list[Image.Image]:
    """Return a row's images. Raises Fault: see `open_image`."""
    return [open_image(image, rows.images, follow_links=rows.follow_links) for image in row.images]


def usable_rows(rows: Rows) -> Iterator[tuple[Row, list[Image.Image]]]:
    """Yield the rows that can be used, each with its opened images."""
    for number in range(len(rows)):
        with suppress(Fault):
            row = rows[number]
            yield row, images_of(row, rows)


def stored(image: str | bytes, images: Path | None, *, follow_links: bool = False) -> bytes:
    """Return an image's bytes, not decoded. Raises Fault: see `open_image`."""
    source, problem = _source(image, images, follow_links)
    try:
        return source.read_bytes() if isinstance(source, Path) else source.getvalue()
    except OSError as error:
        raise Fault(f"{problem}: {error}") from None


def _source(image: str | bytes, images: Path | None, follow_links: bool) -> tuple[Path | BytesIO, str]:
    """Return where an image is read from, and what to say where that fails. Raises Fault: see `open_image`."""
    if isinstance(image, bytes):
        return BytesIO(image), "unreadable image"
    if images is None:
        raise Fault("has an image, but the data names no `images` folder")
    path = images / image
    if not isfile(path):
        raise Fault(f"no such image: {path}")
    if not follow_links and not Path(realpath(path)).is_relative_to(realpath(images)):
        why = f"image path leaves its folder by a link: {image} (follow_links: true would allow it)"
        raise Fault(why, refused=True)
    return path, f"unreadable image {path}"


def _check_size(width: int, height: int) -> None:
    """Raise ValueError for an image that is too large, before it is decoded.

    Pillow's own limit is only a warning at first, and lmms-eval lifts it.
    """
    if width * height > PIXELS or max(width, height) > SIDE or max(width, height) > RATIO * min(width, height):
        most = f"{PIXELS >> 20} Mi pixels, a side of {SIDE}, and one side {RATIO} times the other"
        raise ValueError(f"{width} x {height} pixels; the most are {most}")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. Grey of more than 8 bits is scaled: Pillow would turn everything above 255 white."""
    if image.mode.startswith("I"):
        levels = np.asarray(image, np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("levels of more than 16 bits")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("levels in floating point, of no known range")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated as its EXIF orientation says; the result has no orientation left.

    `datasets`, `transformers` and therefore lmms-eval decode images this way. An EXIF block that can't be read is ignored
    (there it is an error). Raises the errors of decoding.
    """
    image.load()  # PNG may store the block after its pixels; Pillow itself rotates TIFF
    try:
        orientation = image.getexif().get(Base.Orientation, 1)  # Pillow keeps what it has read
    except Exception:  # noqa: BLE001 (readers of damaged blocks raise nearly anything)
        return image
    if orientation not in range(2, 9):
        return image
    image.info = {}  # otherwise Pillow would write the rest of the block again, where that may fail
    return ImageOps.exif_transpose(image)
