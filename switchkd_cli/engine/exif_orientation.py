"""Rotate images as their EXIF orientation says: cameras and phones often store them rotated, with that tag."""

from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

TRANSPOSES = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated as its EXIF orientation says; the result has no orientation left.

    `datasets`, `transformers` and therefore lmms-eval decode images this way. An EXIF block that can't be read is ignored
    (there it is an error). Raises the errors of decoding.
    """
    image.load()  # PNG may store the block after its pixels; Pillow itself rotates TIFF
    try:
        transpose = TRANSPOSES.get(image.getexif().get(Base.Orientation, 0))
    except Exception:  # noqa: BLE001 (readers of damaged blocks raise nearly anything)
        return image
    if transpose is None:
        return image
    rotated = image.transpose(transpose)
    rotated.info = {}
    return rotated
