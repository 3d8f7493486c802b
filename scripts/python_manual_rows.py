"""Write Python's own manual, as `help()` shows it, as rows of plain text for recipes/real_vocabulary.yaml.

    python -m scripts.python_manual_rows runs/python_manual

`train.json` and `held_out.json` there hold rows of messages: a topic's name and a number, then paragraphs of its text, 600
characters at most. A topic is in one file only: every tenth in the alphabet is held out. Nothing is fetched: the text comes
with Python (its licence is Python's), and differs a little between versions.
"""

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

LONGEST = 600


def parts(text: str) -> list[str]:
    """Return the text's paragraphs, as many together as fit; what is longer alone is left out (tables, grammar)."""
    found = [""]
    for paragraph in text.split("\n\n"):
        joined = f"{found[-1]}\n\n{paragraph}" if found[-1] else paragraph
        if len(joined) <= LONGEST:
            found[-1] = joined
        elif len(paragraph) <= LONGEST:
            found.append(paragraph)
    return [part.strip("\n") for part in found if part.strip()]


def rows(names: list[str]) -> list[dict]:
    """Return the rows of these topics."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Python's manual: {name}, part {number}"},
                {"role": "assistant", "content": part},
            ]
        }
        for name in names
        for number, part in enumerate(parts(topics[name]), 1)
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(topics)
    for file, of in (("train", [n for i, n in enumerate(names) if i % 10]), ("held_out", names[::10])):
        (folder / f"{file}.json").write_text(json.dumps(rows(of), indent=1), encoding="utf-8")
        print(f"{folder / file}.json: {len(rows(of))} rows")
