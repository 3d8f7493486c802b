"""Write rows of plain English text, the help topics that come with Python, for recipes/real_vocabulary_text.yaml.

    python scripts/topics_rows.py runs/topics

A row shows 60 words, and the next 60 answer. One topic in eight is held out.
"""

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

WORDS = 60


def rows(names: list[str]) -> Iterator[dict]:
    for name in names:
        words = topics[name].split()
        passages = [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]
        for place, (shown, following) in enumerate(pairwise(passages)):
            turns = [{"from": "human", "value": shown}, {"from": "gpt", "value": following}]
            yield {"id": f"{name}-{place}", "conversations": turns}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(topics)
    for file, chosen in {"held_out": names[::8], "train": [name for name in names if name not in names[::8]]}.items():
        written = list(rows(chosen))
        (folder / f"{file}.json").write_text(json.dumps(written))
        print(f"{folder / file}.json: {len(written)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
