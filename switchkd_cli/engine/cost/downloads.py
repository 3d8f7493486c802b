"""What a run needs and this machine lacks: where it comes from and where it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import constants

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.cost.model_facts import published
from switchkd_cli.engine.cost.parameters import Parameters
from switchkd_cli.engine.hub import configs_only, fetch
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import Download
from switchkd_cli.recipe.model_paths import locate
from switchkd_cli.recipe.schema import Checkpoint, DataSet, Model, Recipe

PUBLISHED_BYTES = 2  # of a parameter: language models are published in half precision
WEIGHTS = ("*.safetensors", "*.bin")


def downloads(config: Recipe, sizes: Mapping[str, Parameters]) -> Iterator[Download]:
    """In the order in which a run meets them."""
    yield from _of_model(config.student, "student", sizes.get("student"))
    if config.teacher is not None:
        yield from _of_model(config.teacher, "teacher", sizes.get("teacher"))
    for name in dict.fromkeys(stage.data for stage in config.stages):
        yield from _of_data(config.data[name])
    if config.evaluation is not None and config.evaluation.world == "hub":
        sets = {f"lmms-lab/{BENCHMARKS[b].data.partition('/')[0]}" for b in config.evaluation.benchmarks}
        yield Download(
            f"{len(sets)} benchmarks",
            None,
            f"{constants.HF_HOME}/datasets",
            "fetched by lmms-eval unless they are there",
        )


def _of_model(spec: Model, who: str, size: Parameters | None) -> Iterator[Download]:
    towers = published()["towers"]
    if isinstance(spec, Checkpoint):
        wanted = {"checkpoint": PUBLISHED_BYTES * size.all if size else None}
    else:
        read = PUBLISHED_BYTES * size.total["language"] if size else None
        wanted = {"vision": None, "language": read, "tokenizer": None, "image_processor": None}
    for field, needed in wanted.items():
        name = getattr(spec, field)
        if isinstance(name, str) and _may_be_fetched(name) and not _here(name, who):
            tower = towers.get(name, {})
            needed = tower["gigabytes"] * 1e9 if tower else needed
            yield Download(name, needed, constants.HF_HUB_CACHE, tower.get("note", ""))


def _of_data(spec: DataSet) -> Iterator[Download]:
    for key in ("file", "images"):
        path = spec.parameters.get(key)
        if isinstance(path, str) and not Path(path).exists():
            facts = published()["files"].get(Path(str(spec.parameters.get("file"))).name)
            origin = f"from {facts['from']}" if facts else ""
            yield Download(Path(path).name, None, path, f"by hand, {origin}" if origin else "by hand")


def _may_be_fetched(name: str) -> bool:
    """Whether it is a hub id: what is not has a folder of its own, or is made by another run."""
    try:
        return locate(name) == name
    except UserError:
        return False


def _here(name: str, who: str) -> bool:
    """Whether a model's weights or a tokenizer are in their folder or in the hub's cache."""
    try:
        with configs_only():
            found = fetch(name, who)
    except UserError:
        return False
    return found.has("tokenizer.json") or any(any(found.folder.rglob(pattern)) for pattern in WEIGHTS)
