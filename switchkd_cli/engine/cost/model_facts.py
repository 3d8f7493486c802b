"""A recipe's models for a plan: what is on this machine is read, what is not is taken from published figures."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, LlavaConfig, PretrainedConfig

from switchkd_cli.engine.build import check_model
from switchkd_cli.engine.hub import configs_only, fetch
from switchkd_cli.engine.models.from_parts import PROJECTORS, fresh_config, part_config
from switchkd_cli.engine.models.llava import Blueprint
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Checkpoint, Fresh, Model, Parts

HERE = "read on this machine"
PUBLISHED = "published figures: not on this machine"
INSTRUCT = "-Instruct"
TINYLLAVA = {"feature_layer": -2, "feature_select": "default"}


@dataclass(frozen=True)
class Known:
    """A model's config and tokens of its tokenizer (`<image>` among them); `blueprint` only if it is all here."""

    config: LlavaConfig
    tokens: int
    source: str
    blueprint: Blueprint | None = None


@dataclass(frozen=True)
class Unknown:
    """A model that can't be planned for, and why."""

    source: str


@cache
def published() -> Mapping[str, Any]:
    """published.yaml: towers, readers, checkpoints and files by name."""
    return yaml.safe_load(files(__package__).joinpath("published.yaml").read_text(encoding="utf-8"))


def known(spec: Model, who: str, made: Mapping[Path, Run], *, speaks: bool = True) -> Known | Unknown:
    """What is known of a model. `made` holds, by their model folders, runs whose students a checkpoint may be.

    `speaks`: see `contract.check_alone`.
    """
    if isinstance(spec, Checkpoint) and (run := _maker(spec.checkpoint, made)):
        source = f"not there yet: row {run.row} of this recipe makes it"
        maker = known(run.config.student, who, {}, speaks=run.config.needs_template)
        return Known(maker.config, maker.tokens, source) if isinstance(maker, Known) else maker
    try:
        with configs_only():
            blueprint = check_model(spec, who, speaks=speaks)
        return Known(blueprint.config, len(blueprint.processor.tokenizer), HERE, blueprint)
    except UserError as error:
        absent = error.code == MACHINE
        told = "unknown, download it first" if absent else f"unknown: {error.problems[0]}"
    parts = _as_parts(spec) if absent else None
    return (_of_parts(parts, who) if parts else None) or Unknown(told)


def reader_facts(name: str) -> Mapping[str, Any] | None:
    readers = published()["readers"]
    return readers.get(name) or readers.get(name.removesuffix(INSTRUCT))


def _maker(checkpoint: str, made: Mapping[Path, Run]) -> Run | None:
    folder = Path(checkpoint).absolute()
    return None if folder.exists() else made.get(folder)


def _as_parts(spec: Model) -> Parts | None:
    """The parts of a recipe's model; of a checkpoint, those that it is known to be built of."""
    if isinstance(spec, Parts):
        return spec
    built_of = published()["checkpoints"].get(spec.checkpoint)
    return Parts(family=spec.family, **built_of, **TINYLLAVA) if built_of else None


def _of_parts(spec: Parts, who: str) -> Known | None:
    """The model of parts of which some are not here; None where one is not known either."""
    seeing, reading = _part(spec, "vision", who), _part(spec, "language", who)
    if seeing is None or reading is None:
        return None
    facts = reader_facts(spec.language) if isinstance(spec.language, str) else None
    tokens = facts["tokens"] + 1 if facts else reading.vocab_size
    reading.vocab_size = max(reading.vocab_size, tokens)
    config = PROJECTORS[spec.projector][0](
        vision_config=seeing,
        text_config=reading,
        image_token_index=tokens - 1,
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        tie_word_embeddings=reading.tie_word_embeddings,
    )
    return Known(config, tokens, PUBLISHED)


def _part(spec: Parts, part: str, who: str) -> PretrainedConfig | None:
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return fresh_config(part, source, who)
    try:
        with configs_only():
            return part_config(fetch(source, f"{who}.{part}"))
    except UserError:
        return _published_part(source, part)


def _published_part(name: str, part: str) -> PretrainedConfig | None:
    if part == "language":
        facts = reader_facts(name)
    else:
        tower = published()["checkpoints"].get(name, {}).get("vision", name)  # a whole model's tower serves
        facts = published()["towers"].get(tower)
    if facts is None:
        return None
    told = copy.deepcopy(facts["config"])
    headless = {"vision_use_head": False} if told["model_type"] == "siglip_vision_model" else {}
    return AutoConfig.for_model(told.pop("model_type"), **told, **headless)
