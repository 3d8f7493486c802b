"""Pictures as viewers show them: cameras and phones often store them turned, with a note of how to turn them back."""

from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, once: what is returned has no orientation left.

    As `datasets`, `transformers` and so lmms-eval decode pictures. An EXIF block that can't be read says nothing (those
    end with an error). Raises what decoding raises.
    """
    picture.load()  # PNG may keep the block behind its pixels; TIFF is turned by Pillow itself
    try:
        turn = TURNS.get(picture.getexif().get(Base.Orientation, 0))
    except Exception:  # noqa: BLE001 (readers of damaged blocks raise nearly anything)
        return picture
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info = {}
    return turned
