"""Rotate images as their EXIF orientation says: cameras and phones often store them rotated, with that tag."""

from PIL import Image, ImageOps
from PIL.ExifTags import Base


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
