"""Draw the playground's atlas: every concept and digit by four hands. Run once by the maintainers.

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
COLUMNS = 16


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
    total = len(wanted) * len(PACKAGES)
    atlas = Image.new("RGBA", (COLUMNS * CELL, -(-total // COLUMNS) * CELL))
    cells: dict[str, tuple[int, int]] = {}
    for hand, package in PACKAGES.items():
        icons = json.loads((modules / "@iconify-json" / package / "icons.json").read_text(encoding="utf-8"))
        for name, icon in wanted.items():
            row, column = divmod(len(cells), COLUMNS)
            cells[f"{name}/{hand}"] = (column * CELL, row * CELL)
            atlas.paste(drawing(icons, icon), cells[f"{name}/{hand}"])
    assets = PLAYGROUND / "assets"
    assets.mkdir(exist_ok=True)
    atlas.save(assets / "atlas.png", optimize=True)
    index = {"cell": CELL, "cells": cells}
    (assets / "atlas.json").write_text(json.dumps(index, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
