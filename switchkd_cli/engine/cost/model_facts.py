"""What a plan knows of a recipe's models: read from this machine, or else taken from published figures.

This file, shape.py and parameters.py are the ones in this folder that know how a LLaVA config is laid out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, LlavaConfig

from switchkd_cli.engine.batch import Batch, Example, collate
from switchkd_cli.engine.build import check_model
from switchkd_cli.engine.hub import configs_only, fetch
from switchkd_cli.engine.models.from_parts import PROJECTORS, fresh_config, part_config
from switchkd_cli.engine.models.llava import Blueprint, image_tokens_of
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Checkpoint, Fresh, Model, Parts

HERE = "read on this machine"
PUBLISHED = "published figures: not on this machine"


@dataclass(frozen=True)
class KnownModel:
    """A model's config and how many tokens its tokenizer has, `<image>` included.

    `blueprint` is there only if all files except the weights are on this machine.
    """

    config: LlavaConfig
    tokens: int
    source: str
    blueprint: Blueprint | None = None

    @property
    def image_tokens(self) -> int:
        """Tokens that one image takes in the language model's sequence."""
        return image_tokens_of(self.config)

    @property
    def vocabulary(self) -> int:
        """Columns of the language model's head."""
        text: Any = self.config.text_config
        return text.vocab_size

    def batch(self, example: Example) -> Batch:
        """Return one example as a batch; the tokenizer must be on this machine."""
        assert self.blueprint is not None
        padding = self.blueprint.processor.tokenizer.pad_token_id
        return collate([example], image_token=self.config.image_token_id, pad_token=padding)


@dataclass(frozen=True)
class UnknownModel:
    """A model that can't be planned for, and why."""

    source: str


@cache
def published() -> Mapping[str, Any]:
    """Return what published.yaml says of vision towers, language models, checkpoints and files, by name."""
    return yaml.safe_load(files(__package__).joinpath("published.yaml").read_text(encoding="utf-8"))


def describe_model(
    spec: Model, who: str, planned: Mapping[Path, Run], *, speaks: bool = True
) -> KnownModel | UnknownModel:
    """Return what is known of a model without reading its weights.

    `planned`: by the model folders that they will write, runs whose students a checkpoint may be. `speaks`: see
    `compatibility.check_alone`.
    """
    folder = Path(spec.checkpoint).absolute() if isinstance(spec, Checkpoint) else None
    if folder is not None and folder in planned and not folder.exists():
        run = planned[folder]
        student = describe_model(run.config.student, who, {}, speaks=run.config.needs_template)
        source = f"not there yet: row {run.row} of this recipe makes it"
        return replace(student, source=source, blueprint=None) if isinstance(student, KnownModel) else student
    try:
        with configs_only():
            blueprint = check_model(spec, who, speaks=speaks)
        return KnownModel(blueprint.config, len(blueprint.processor.tokenizer), HERE, blueprint)
    except UserError as error:
        if error.code != MACHINE:
            return UnknownModel(f"unknown: {error.problems[0]}")
    return _published_model(spec, who) or UnknownModel("unknown, download it first")


def _published_model(spec: Model, who: str) -> KnownModel | None:
    """Return the model that is built of these parts, some of which are not here; None where one is not known."""
    if isinstance(spec, Checkpoint):
        parts = published()["checkpoints"].get(spec.checkpoint)
        if parts is None:
            return None
        spec = Parts(family=spec.family, feature_layer=-2, feature_select="default", **parts)
    vision, text = _part(spec, "vision", who), _part(spec, "language", who)
    if vision is None or text is None:
        return None
    facts = published_part("language", spec.language) if isinstance(spec.language, str) else {}
    tokens = facts["tokens"] + 1 if "tokens" in facts else text.vocab_size
    text.vocab_size = max(text.vocab_size, tokens)
    config = PROJECTORS[spec.projector][0](
        vision_config=vision,
        text_config=text,
        image_token_index=tokens - 1,
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return KnownModel(config, tokens, PUBLISHED)


def published_part(part: str, name: str) -> Mapping[str, Any]:
    """Return the published facts of a part, `vision` or `language`; none for a name that published.yaml lacks."""
    return published()[part].get(name.removesuffix("-Instruct"), {})


def _part(spec: Parts, part: str, who: str) -> Any:
    """Return a part's config: fresh, read, or published; None where it is not known."""
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return fresh_config(part, source, who)
    try:
        with configs_only():
            return part_config(fetch(source, f"{who}.{part}"))
    except UserError:
        checkpoint = published()["checkpoints"].get(source, {}) if part == "vision" else {}
        facts = published_part(part, checkpoint.get(part, source))  # a whole model's tower serves as a tower
        return AutoConfig.for_model(**copy.deepcopy(facts["config"])) if facts else None
