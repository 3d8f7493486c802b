"""What a run needs and this machine lacks: where it comes from and where it goes."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from switchkd_cli.benchmarks import BENCHMARKS, ROW_METRICS
from switchkd_cli.engine.cost.model_facts import published, published_part
from switchkd_cli.engine.hub import configs_only, fetch
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import Download, ModelEstimate
from switchkd_cli.recipe.named_files import data_files, is_hub_id
from switchkd_cli.recipe.run import DATASET, model_names
from switchkd_cli.recipe.schema import Model, Recipe

PUBLISHED_BYTES = 2  # of a parameter: language models are published in half precision
WEIGHTS = ("*.safetensors", "*.bin")


def downloads(config: Recipe, models: Iterable[ModelEstimate]) -> Iterator[Download]:
    """Yield what is to be downloaded, in the order in which a run needs it."""
    for model in models:
        yield from _of_model(model, config.teachers.get(model.who) or getattr(config, model.who))
    for name in dict.fromkeys(name for stage in config.stages for name in stage.data_sets):
        parameters = config.data[name].parameters
        if DATASET in parameters and not Path(parameters[DATASET]).exists():
            note = "fetched by datasets unless it is there"
            yield Download(parameters[DATASET], None, f"{constants.HF_HOME}/datasets", note)
        for path in (*data_files(parameters.get("file")), parameters.get("images")):
            if isinstance(path, str) and not Path(path).exists():
                facts = published()["files"].get(Path(str(parameters.get("file"))).name)
                origin = f", from {facts['from']}" if facts else ""
                yield Download(Path(path).name, None, path, f"by hand{origin}")
    if config.evaluation is not None and config.evaluation.world == "hub":
        named = [name for name in config.evaluation.benchmarks if name not in ROW_METRICS]
        data_sets = {BENCHMARKS[name].data.partition("/")[0] or name for name in named}
        where, note = f"{constants.HF_HOME}/datasets", "fetched by lmms-eval unless they are there"
        yield Download(f"{len(data_sets)} benchmarks", None, where, note)


def _of_model(model: ModelEstimate, spec: Model) -> Iterator[Download]:
    counts = {f"{model.who}.checkpoint": sum(model.parameters.values())}
    counts[f"{model.who}.language"] = model.parameters.get("language", 0)
    for field, name in model_names(model.who, spec):
        if is_hub_id(name) and not _is_here(name, model.who):
            facts = published_part("vision", name)
            size = facts["gigabytes"] * 1e9 if "gigabytes" in facts else PUBLISHED_BYTES * counts.get(field, 0)
            yield Download(name, size or None, constants.HF_HUB_CACHE, facts.get("note", ""))


def _is_here(name: str, who: str) -> bool:
    """Whether a model's weights or a tokenizer are in the hub's cache."""
    with suppress(UserError), configs_only():
        found = fetch(name, who)
        return found.has("tokenizer.json") or any(any(found.folder.rglob(pattern)) for pattern in WEIGHTS)
    return False
