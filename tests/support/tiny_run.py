"""A whole run of the program on the tiny pair, in seconds; also what its files say, but for the clock."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from switchkd_cli.recipe import yaml_positions
from tests.support import tiny

OURS_ALONE = {"seconds", "tokens_per_second", "data_wait", "memory_mib", "sampling"}  # the clock's and the machine's
LANGUAGE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
LANGUAGE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
STUDENT = {"family": "llava", "vision": {"fresh": tiny.VISION}, "language": {"fresh": LANGUAGE}}
STUDENT |= {"tokenizer": "playground:tokenizer"}
CE = {"name": "ce", "loss": "cross_entropy"}
DISTILL = [
    CE,
    {"name": "align", "loss": "dbild", "to": "teacher"},
    {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"},
    {"name": "features", "loss": "token_mse", "to": "teacher"},  # unlike widths: an adapter is trained
]


def write(folder: Path, *, teacher: bool = True, rows: list | None = None, **more) -> Path:
    """A recipe of two stages with its teacher and data; `more` are keys of the recipe, `distill` of its last stage."""
    rows = tiny.rows(folder) if rows is None else rows
    (folder / "rows.json").write_text(json.dumps(rows))
    if teacher:
        tiny.model(24, seed=2).save(folder / "teacher")
    first = {"name": "pretrain", "data": "rows", "train": ["projector"], "lr": 1e-3, "batch": 2, "steps": 3}
    last = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    last |= {"batch": 4, "micro_batch": 2, "steps": 8, "workers": 0}
    last |= {"objective": DISTILL if teacher else [CE], **more.pop("distill", {})}
    recipe = {
        "title": "tiny",
        "student": STUDENT,
        **({"teacher": {"family": "llava", "checkpoint": str(folder / "teacher")}} if teacher else {}),
        "data": {
            "rows": {"source": "llava_json", "parameters": {"file": str(folder / "rows.json"), "images": str(folder)}}
        },
        "stages": [{**first, "objective": [CE]}, last],
        "checkpoints": {"every_steps": 2, "keep": 2},
        "rows": {"switch-kd": {"title": "tiny"}},
        **more,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml_positions.write(recipe))
    return file


def trace(folder: Path) -> list[dict]:
    """The metrics, line by line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OURS_ALONE} for line in lines]


def scalars(folder: Path) -> dict[str, list[tuple]]:
    """What tensorboard reads, by stage and figure: the step, counted over all stages, and the value."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.split("/")[-1] not in OURS_ALONE]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(tags)}
