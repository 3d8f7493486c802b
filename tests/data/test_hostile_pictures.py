"""Pictures that were made to do harm, or are only odd: a counted skip, or the picture as training sees it."""

import json
import os
import random
import resource
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from switchkd_cli.engine.data import image as picture
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.image import PIXELS, RATIO, SIDE, open_image, upright
from switchkd_cli.engine.data.rows import Fault
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.engine.data.turns import IMAGE
from switchkd_cli.engine.models.processors import with_square_padding
from switchkd_cli.errors import INPUT, UserError
from tests.support import tiny

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, form="PNG", **more):
    held = BytesIO()
    image.save(held, form, **more)
    return held.getvalue()


def plain(size=(24, 24), colour=RED, mode="RGB"):
    return Image.new(mode, size, colour)


def png(width, height, *, depth=8, colour=2, pixels=b""):
    """A PNG that says it is so large, whatever it holds."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"

REFUSED = {
    "nothing": (b"", "cannot identify image file"),
    "no picture": (b"not a picture", "cannot identify image file"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00", "cannot identify image file"),
    "a program": (b"\x7fELF" + bytes(100), "cannot identify image file"),
    "a drawing that runs Ghostscript": (EPS, "cannot identify image file"),
    "a drawing in XML": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify image file"),
    "cut short": (encoded(Image.effect_noise((64, 64), 50))[:500], "image file is truncated"),
    "a bomb": (png(2**31 - 1, 2**31 - 1), "pixels"),
    "a bomb of one colour": (png(30_000, 30_000, pixels=zlib.compress(bytes(10**7))), "Image size (900000000 pixels) exceeds limit"),
    "just too many pixels": (png(8193, 8193), "8193 x 8193 pixels; the most are 64 Mi pixels, a side of 16384"),
    "one pixel wide": (encoded(plain((1, 30_000))), "1 x 30000 pixels; the most are 64 Mi pixels, a side of 16384"),
    "one pixel high": (encoded(plain((2000, 1))), "2000 x 1 pixels"),
    "no pixels": (png(0, 24), "unreadable image"),
    "levels in floating point": (encoded(plain(colour=0.5, mode="F"), "TIFF"), "of no known range"),
    "levels of 32 bits": (encoded(plain(colour=10**6, mode="I"), "TIFF"), "levels of more than 16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("where", ["file", "bytes"])
def test_a_picture_that_is_refused(tmp_path, name, where):
    content, expected = REFUSED[name]
    (tmp_path / "a.png").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Fault, match="unreadable image") as fault:
        open_image("a.png" if where == "file" else content, tmp_path)
    assert expected in str(fault.value) and not fault.value.refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB: nothing was decoded


def test_the_limits_hold_where_another_library_lifts_pillows(tmp_path, monkeypatch):
    """Tasks of lmms-eval do, for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(Fault, match="pixels; the most are"):
        open_image(png(100_000, 100_000), None)


def test_pictures_at_the_limits_are_read():
    for size in ((RATIO, 1), (1, RATIO), (SIDE, SIDE // RATIO + 1)):
        assert open_image(encoded(plain(size)), None).size == size
    picture._check_size(PIXELS >> 12, 1 << 12)


def test_a_thousand_scrambled_pictures():
    """Whatever the bytes, a picture in RGB or a Fault."""
    chance = random.Random(5)
    noise = Image.effect_noise((24, 24), 50).convert("RGB")
    sound = [encoded(noise, form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")]
    read = 0
    for number in range(1000):
        content = bytearray(sound[number % len(sound)])
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(content) if chance.random() < 0.5 else min(60, len(content)))
            content[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        try:
            image = open_image(bytes(content), None)
        except Fault as fault:
            assert str(fault).startswith("unreadable image: ")
            continue
        assert image.mode == "RGB"
        read += 1
    assert 100 < read < 900


# --- odd pictures that are read


def rgb(content):
    return np.asarray(open_image(content, None))


def test_a_wrong_ending_does_not_matter(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(plain(), "JPEG", quality=100))
    (tmp_path / "a.txt").write_bytes(encoded(plain()))
    assert np.abs(np.asarray(open_image("a.png", tmp_path)).astype(int) - RED).max() < 3
    assert np.asarray(open_image("a.txt", tmp_path))[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_picture_is_read(form):
    lossless = {"lossless": True} if form == "WEBP" else {}
    content = encoded(plain(), form, save_all=True, append_images=[plain(colour=BLUE)] * 3, **lossless)
    assert Image.open(BytesIO(content)).n_frames > 1
    assert rgb(content)[0, 0].tolist() == list(RED)


def test_cmyk_and_grey_and_black_and_white():
    assert rgb(encoded(plain(colour=(0, 255, 255, 0), mode="CMYK"), "TIFF"))[0, 0].tolist() == list(RED)
    assert rgb(encoded(plain(colour=128, mode="L")))[0, 0].tolist() == [128] * 3
    assert rgb(encoded(plain(colour=1, mode="1")))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(form):
    """Pillow's own conversion makes everything but the darkest 1/256 white."""
    levels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    found = rgb(encoded(Image.fromarray(levels), form))
    assert np.abs(found[:, :, 0].astype(float) - levels / 257).max() <= 0.5
    assert (found == found[:, :, :1]).all()


def test_transparency_is_left_out():
    """The colours below it are what is seen, as LLaVA's own code does."""
    assert rgb(encoded(plain(colour=(*RED, 0), mode="RGBA")))[0, 0].tolist() == list(RED)
    palette = plain().convert("P")
    assert rgb(encoded(palette, transparency=bytes(256)))[0, 0].tolist() == list(RED)
    assert rgb(encoded(palette, "GIF", transparency=0)).shape == (24, 24, 3)


def quartered(orientation=None):
    """A picture with a red corner, stored so that `orientation` turns the corner to the top left."""
    image = Image.new("RGB", (24, 48), BLUE)
    image.paste(RED, (0, 0, 12, 24))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    return image if back is None else image.transpose(Image.Transpose(back))


def tagged(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(form, orientation):
    """As `datasets` does, through which lmms-eval decodes: training and evaluation see the same."""
    import datasets

    content = encoded(quartered(orientation), form, exif=tagged(orientation), **LOSSLESS[form])
    found = open_image(content, None)
    theirs = datasets.Image(mode="RGB").decode_example({"bytes": content, "path": None})
    assert np.array_equal(np.asarray(found), np.asarray(theirs))
    assert found.size == (24, 48) and np.abs(np.asarray(found).astype(int) - quartered()).max() < 12
    assert upright(found).size == (24, 48)  # once


@pytest.mark.parametrize(
    "damaged", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0no", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"x"]
)
def test_a_damaged_exif_block_says_nothing(damaged):
    assert open_image(encoded(quartered(), "JPEG", exif=damaged), None).size == (24, 48)


def test_an_orientation_that_there_is_not_says_nothing():
    assert open_image(encoded(quartered(), "PNG", exif=tagged(9)), None).size == (24, 48)


def test_warnings_of_the_decoder_stay_away(recwarn):
    open_image(encoded(plain().convert("P"), transparency=bytes(256)), None)
    with pytest.raises(Fault):
        open_image(png(12_000, 12_000), None)  # Pillow warns, ours is the error
    assert not recwarn.list


SQUARE = {"height": 24, "width": 24}
PROCESSORS = {
    "siglip": SiglipImageProcessorPil(size=SQUARE, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE),
    "padded": with_square_padding(CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE)),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 3), (1, 100), (100, 1), (3, 240), (2, 3), (4, 1)])
def test_pictures_of_every_shape_are_prepared_alike(name, size):
    """Sides of 1 and 3 pixels could be taken for colour channels."""
    image = Image.new("RGB", size, RED)
    pixels = PROCESSORS[name]([open_image(encoded(image), None)], return_tensors="pt")["pixel_values"].numpy()
    assert pixels.shape == (1, 3, 24, 24)
    middle = pixels[0, :, 12, 12]
    assert middle[0] > middle[1] == pytest.approx(middle[2], abs=0.3)


# --- where a picture may lie


@pytest.fixture
def place(tmp_path):
    """A folder of pictures beside a picture that is none of them."""
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for where in ("pictures", "pictures/more", "elsewhere"):
        tiny.picture(tmp_path / where, "a.png", 1)
    return tmp_path


def read(place, image, **more):
    raw = tiny.row("r", image, ("What?", "dog"))
    (place / "rows.json").write_text(json.dumps([raw] * 3 + [tiny.row("t", None, ("What?", "dog"))] * 7))
    asked = {"images": str(place / "pictures"), **more}
    rows = llava_json(place / "cache", file=str(place / "rows.json"), **asked)
    student = tiny.model()
    return Conversations(rows, student.inputs, max_faults=0.9)


LINKS = {
    "to a picture elsewhere": lambda folder: (folder / "x.png").symlink_to("../elsewhere/a.png"),
    "to a system file": lambda folder: (folder / "x.png").symlink_to("/etc/passwd"),
    "over another link": lambda folder: (
        (folder / "y").symlink_to("../elsewhere"),
        (folder / "x.png").symlink_to("y/a.png"),
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_the_folder_ends_the_run(place, name):
    LINKS[name](place / "pictures")
    with pytest.raises(UserError) as refused:
        read(place, "x.png").inspect()
    assert refused.value.code == INPUT
    assert refused.value.problems[0].endswith(
        "row 0: r: image path leaves its folder by a link: x.png (follow_links: true would allow it)"
    )
    assert "a path that leaves the image folder is never read" in refused.value.hint


def test_a_linked_folder_ends_the_run_unless_links_are_followed(place):
    """Data sets are often put together of links to folders on another disk."""
    (place / "pictures" / "coco").symlink_to("../elsewhere")
    with pytest.raises(UserError, match="leaves its folder by a link: coco/a.png"):
        read(place, "coco/a.png").inspect()
    followed = read(place, "coco/a.png", follow_links=True)
    followed.inspect()
    assert not followed.bad_rows.unusable


def test_links_that_stay_inside_are_followed(place):
    (place / "pictures" / "b.png").symlink_to("more/a.png")
    (place / "linked").symlink_to("pictures")
    for images in ("pictures", "linked", "./linked/../pictures/."):
        data = read(place, "b.png", images=str(place / images))
        data.inspect()
        assert not data.bad_rows.unusable


ODD = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing.png"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_no_picture(place, name):
    """A pipe that nobody writes to would be waited for, and a device read for ever."""
    ODD[name](place / "pictures" / "x.png")
    data = read(place, "x.png")
    data.inspect()
    assert {met.fault for met in data.bad_rows.unusable.values()} == {f"no such image: {place}/pictures/x.png"}


def test_no_file_outside_is_opened(place, monkeypatch):
    """Whatever a row names: neither read nor looked into."""
    touched = []
    monkeypatch.setattr(Image, "open", lambda source, **_: touched.append(source))
    (place / "pictures" / "x.png").symlink_to("/etc/passwd")
    for image in ("x.png", "../elsewhere/a.png", "/etc/passwd", "more/../../elsewhere/a.png"):
        raw = {**tiny.row("r", None, (f"{IMAGE}What?", "dog")), "image": image}
        (place / "rows.json").write_text(json.dumps([raw]))
        with pytest.raises(UserError, match="leaves its folder"):
            read(place, image).inspect()
    assert touched == []
