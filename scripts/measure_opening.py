"""Measure how long opening a file of the paper's size takes, and its memory: python scripts/measure_opening.py FOLDER.

Writes a file with the row counts, folders and quirks of llava_v1_5_mix665k.json (665,298 rows, about 1 GB: ids of two
types, text-only rows, indented JSON), then opens it twice and reads 1,000 rows of it, each time in a fresh process.
"""

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

# Rows by image folder, as counted in the published file; None is text only.
FOLDERS = {
    "coco/train2017": 364_100,
    "gqa/images": 72_140,
    "ocr_vqa/images": 80_000,
    "textvqa/train_images": 21_953,
    "vg/VG_100K": 43_209,
    "vg/VG_100K_2": 43_208,
    None: 40_688,
}
WORDS = ["the", "a", "of", "red", "dog", "two", "left", "café", "picture", "question", "“quoted”", "\\", "数", "yes"]


def write(file: Path) -> None:
    """Write rows in random order, about 1.5 KB each."""
    draw = random.Random(0)
    folders = [folder for folder, count in FOLDERS.items() for _ in range(count)]
    draw.shuffle(folders)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in range(2000)]
    with file.open("w", encoding="utf-8") as stream:
        for number, folder in enumerate(folders):
            turns = 2 * (draw.randint(2, 8) if folder else draw.randint(4, 20))
            said = [{"from": ("human", "gpt")[i % 2], "value": draw.choice(texts)} for i in range(turns)]
            row = {"id": number if folder and folder.startswith("vg") else f"{number:012}"}
            if folder:
                row["image"] = f"{folder}/{number:012}.jpg"
                said[0]["value"] = "<image>\n" + said[0]["value"]
            stream.write("[\n" if number == 0 else ",\n")
            stream.write(json.dumps(row | {"conversations": said}, indent=2, ensure_ascii=number % 2 == 0))
        stream.write("\n]\n")


def measure(file: Path, cache: Path) -> None:
    """Open the file as a training run does, without the images."""
    import numpy  # noqa: F401 (loaded in any case, so not measured)
    import pyarrow  # noqa: F401

    from switchkd_cli.engine.data.sources import llava_json

    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    rows = llava_json(cache, file=str(file), images=str(cache))
    opened = time.monotonic() - began
    chosen = random.Random(1).sample(range(len(rows)), 1000)
    began = time.monotonic()
    for index in chosen:
        rows[index]
    read = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "rows": len(rows),
        "seconds": round(opened, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "more_mib_at_peak": round((after.ru_maxrss - before.ru_maxrss) / 1024, 1),
        "milliseconds_a_row": round(read, 3),
        "index_mib": round(sum(f.stat().st_size for f in cache.rglob("*.npz")) / 2**20, 1),
    }
    print(json.dumps(figures))


def main() -> None:
    folder = Path(sys.argv[1])
    file = folder / "llava_v1_5_mix665k.json"
    if len(sys.argv) > 2:
        return measure(file, folder / "cache")
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write(file)
    for kept in folder.glob("cache/**/*.npz"):
        kept.unlink()
    print(f"{file}: {file.stat().st_size / 2**20:,.0f} MiB")
    for name in ("first time:", "again:"):
        print(name, end=" ", flush=True)
        kept = os.environ | {"SWITCHKD_CACHE": str(folder / "cache")}
        subprocess.run([sys.executable, __file__, str(folder), "measure"], check=True, env=kept)


if __name__ == "__main__":
    main()
