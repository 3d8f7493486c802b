"""Draw the playground's atlas: every concept and digit by the hands that have it. Run once by the maintainers.

A concept needs three of the four hands. Cell i of atlas.webp, counted along the rows, shows the i-th of atlas.json's `cells`.

Needs `pip install cairosvg` and a node_modules folder made by
`npm install @iconify-json/noto @iconify-json/noto-v1 @iconify-json/fluent-emoji-flat @iconify-json/twemoji`:

    python scripts/build_atlas.py node_modules
"""

import argparse
import io
import json
from pathlib import Path

import cairosvg
import yaml
from PIL import Image

PLAYGROUND = Path(__file__).resolve().parent.parent / "switchkd_cli" / "playground"
PACKAGES = {"noto": "noto", "noto_v1": "noto-v1", "fluent": "fluent-emoji-flat", "twemoji": "twemoji"}
CELL = 40
COLUMNS = 64
QUALITY, ALPHA_QUALITY = 65, 50


def drawing(icons: dict, name: str) -> Image.Image:
    """Return one icon as a CELL x CELL RGBA picture, cropped to its drawn pixels and centred, so that all things have one size.

    Raises KeyError if the set has no such icon.
    """
    icon = icons["icons"][icons.get("aliases", {}).get(name, {}).get("parent", name)]
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    scale = 8 * CELL
    large = Image.open(io.BytesIO(cairosvg.svg2png(svg.encode(), output_width=scale, output_height=scale)))
    ink = large.convert("RGBA").crop(large.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox())
    side = max(ink.size)
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("node_modules", type=Path)
    modules = parser.parse_args().node_modules
    words = yaml.safe_load((PLAYGROUND / "names.yaml").read_text(encoding="utf-8"))
    wanted = {name: entry["icon"] for name, entry in words["concepts"].items()}
    wanted |= {str(digit): f"keycap-{digit}" for digit in range(10)}
    drawings: dict[str, Image.Image] = {}
    for hand, package in PACKAGES.items():
        icons = json.loads((modules / "@iconify-json" / package / "icons.json").read_text(encoding="utf-8"))
        for name, icon in wanted.items():
            if icon in icons["icons"] or icon in icons.get("aliases", {}):
                drawings[f"{name}/{hand}"] = drawing(icons, icon)
    for name in wanted:
        if sum(f"{name}/{hand}" in drawings for hand in PACKAGES) < len(PACKAGES) - 1:
            raise SystemExit(f"{name}: fewer than three hands have {wanted[name]}")
    atlas = Image.new("RGBA", (COLUMNS * CELL, -(-len(drawings) // COLUMNS) * CELL))
    for index, picture in enumerate(drawings.values()):
        row, column = divmod(index, COLUMNS)
        atlas.paste(picture, (column * CELL, row * CELL))
    assets = PLAYGROUND / "assets"
    assets.mkdir(exist_ok=True)
    atlas.save(assets / "atlas.webp", quality=QUALITY, alpha_quality=ALPHA_QUALITY, method=6)
    listing = {"cell": CELL, "columns": COLUMNS, "cells": list(drawings)}
    (assets / "atlas.json").write_text(json.dumps(listing, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
