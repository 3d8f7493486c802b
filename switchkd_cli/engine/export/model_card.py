"""The model card of a finished run: README.md of its model folder. Every number in it was measured by that run."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.repocard import metadata_load
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from yaml import YAMLError

from switchkd_cli.benchmarks import ACCURACY, BENCHMARKS, ROW_METRICS, with_accuracies
from switchkd_cli.engine.build import family_of
from switchkd_cli.files.atomic import read_json, write_text
from switchkd_cli.recipe.named_files import SHIPPED, is_hub_id, locate
from switchkd_cli.recipe.run import Run, model_names
from switchkd_cli.report.formats.markup import environment_of, plain
from switchkd_cli.report.tables.footnotes import faults
from switchkd_cli.runs.run_folder import RunFolder

TEMPLATE = "model_card.md.jinja"
NAME = "README.md"


def write(run: Run, folder: RunFolder, model: Path | None = None) -> None:
    """Write the model card of a run, with scores if there are any. `model`: the folder of the model until it is moved."""
    model = model or folder.model
    environment = environment_of(Path(__file__).parent)
    # JSON escapes an emoji as two halves, which YAML does not join
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    text = environment.get_template(TEMPLATE).render(_card_fields(run, folder, model))
    write_text(model / NAME, text + "\n")


def _card_fields(run: Run, folder: RunFolder, where: Path) -> dict[str, Any]:
    """Return the values that the card's template needs."""
    config, info, results = run.config, folder.info(), read_json(folder.results)
    model = read_json(where / "config.json")
    bases = list(_bases(run))
    return {
        "run": run,
        "bases": [{"role": role, "name": name, "licence": licence(name)} for role, name in bases],
        "hub_ids": [name for role, name in bases if not role.startswith("teacher") and is_hub_id(name)],
        "teachers": [name for role, name in bases if role.startswith("teacher")],
        "family": config.student.family or model["model_type"],
        "usage": family_of(model).usage(model).rstrip(),
        "library": "transformers" if model["model_type"] in CONFIG_MAPPING_NAMES else "switchkd-cli",
        "tokens": model.get("image_seq_length"),
        "info": info,
        "command": shlex.join(info["command"]),
        "results": results,
        "scores": [
            _score(name, score, results) for name, score in with_accuracies((results or {}).get("scores", {})).items()
        ],
        "faults": [plain(note) for note in faults({"this model": [results]})] if results else [],
        "skipped": folder.skipped.read_bytes().count(b"\n") if folder.skipped.exists() else 0,
    }


def _score(name: str, score: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a score as the template needs it; `kind` says what it is of, whatever else the run was asked."""
    task = name.removesuffix(ACCURACY)
    benchmark = BENCHMARKS[task]
    kind = "rows" if task in ROW_METRICS else "playground" if results["world"] == "playground" else "published"
    split = results["split"] if kind == "playground" else score.get("split", benchmark.split)
    own = "" if benchmark.in_points else " (lmms-eval's own)" if kind == "published" else " (its own scale)"
    own += "" if score.get("higher_is_better", True) else ", lower is better"
    shown = f"{score['score']:.{benchmark.digits}f}{own}"
    return {**score, "task": task, "benchmark": benchmark, "kind": kind, "split": split, "shown": shown}


def _bases(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (role, name) of every model that the run read."""
    for field, name in model_names("student", run.config.student):
        if (role := field.removeprefix("student.")) != "image_processor":
            yield "student" if role == "checkpoint" else role, name
    if run.config.teacher and any(stage.needs_teacher for stage in run.config.stages):
        yield "teacher", run.config.teacher.checkpoint
    for name, teacher in run.config.further_teachers.items():
        yield f"teacher {name}", teacher.checkpoint


def licence(name: str) -> str:
    """Return the licence stated in the model's own card, if that is on this machine."""
    if name.startswith(SHIPPED):
        return "shipped with switchkd: its LICENSE, and its NOTICE for the drawings"
    card = try_to_load_from_cache(name, NAME) if is_hub_id(name) else Path(locate(name), NAME)
    try:
        metadata = metadata_load(card) or {} if card and Path(card).is_file() else {}
    except (ValueError, YAMLError):  # a model's card may be damaged
        metadata = {}
    stated = metadata.get("license_name") or metadata.get("license")
    return f"{stated} (by its own card)" if stated else "not stated where it was read from: see its page"
