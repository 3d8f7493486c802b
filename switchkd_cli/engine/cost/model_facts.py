"""What a plan knows of a recipe's models: read from this machine, or else taken from published figures."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from switchkd_cli import registry
from switchkd_cli.engine.build import check_model, family_of
from switchkd_cli.engine.hub import configs_only
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.family import Family
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.package_data import read_yaml
from switchkd_cli.planning.estimate import UNKNOWN, ModelEstimate
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Checkpoint, Model

HERE = "read on this machine"
PUBLISHED = "published figures: not on this machine"


@dataclass(frozen=True)
class KnownModel:
    """A model's config and how many tokens its tokenizer has, `<image>` included.

    `blueprint` is there only if all files except the weights are on this machine.
    """

    family: Family
    config: PretrainedConfig
    tokens: int
    source: str
    blueprint: Blueprint | None = None

    @property
    def image_tokens(self) -> int:
        """Tokens that one image takes in the language model's sequence."""
        return round(self.shape.projector.tokens)

    @cached_property
    def shape(self) -> ModelShape:
        """The sizes of its parts and the counts of its parameters. Raises what transformers raises."""
        return self.family.shape(self.config)

    def estimate(self, who: str) -> ModelEstimate:
        return ModelEstimate(who, self.source, self.shape.total, self.image_tokens)


@cache
def published() -> Mapping[str, Any]:
    """Return what published.yaml says of vision towers, language models, checkpoints and files, by name."""
    return read_yaml(__file__, "published.yaml")


def describe_model(
    spec: Model, who: str, planned: Mapping[Path, Run], *, needs_template: bool = True
) -> KnownModel | ModelEstimate:
    """Return what is known of a model without reading its weights; if it can't be planned for, only why.

    `planned`: by the model folders that they will write, runs whose students a checkpoint may be. `needs_template`: see
    `compatibility.check_alone`.
    """
    folder = Path(spec.checkpoint).absolute() if isinstance(spec, Checkpoint) else None
    if folder is not None and folder in planned and not folder.exists():
        run = planned[folder]
        student = describe_model(run.config.student, who, {}, needs_template=run.config.needs_template)
        source = f"not there yet: row {run.row} of this recipe makes it"
        return replace(student, source=source, blueprint=None) if isinstance(student, KnownModel) else student
    try:
        with configs_only():
            blueprint = check_model(spec, who, needs_template=needs_template)
        family = family_of(blueprint.config.to_dict())
        return KnownModel(family, blueprint.config, len(blueprint.inputs.tokenizer), HERE, blueprint)
    except UserError as error:
        if error.code != MACHINE:
            return ModelEstimate(who, f"unknown: {error.problems[0]}")
    return _published_model(spec, who) or ModelEstimate(who, UNKNOWN)


def _published_model(spec: Model, who: str) -> KnownModel | None:
    """Return the model that is built of these parts, some of which are not here; None where one is not known."""
    if isinstance(spec, Checkpoint):
        if (fields := published()["models"].get(spec.checkpoint)) is None:
            return None
        config = AutoConfig.for_model(**copy.deepcopy(fields))
        tokens = fields.get("tokens", config.get_text_config().vocab_size)
        return KnownModel(family_of(fields), config, tokens, PUBLISHED)
    family = registry.resolve("family", spec.family)
    found = family.published_config(spec, who, published_part)
    return KnownModel(family, found[0], found[1], PUBLISHED) if found is not None else None


def published_part(part: str, name: str) -> Mapping[str, Any]:
    """Return the published facts of a part, `vision` (also a whole model's) or `language`; none for an unknown name.

    Those of a `frozen_projector` are its whole model's.
    """
    if part != "language" and (whole := published()["models"].get(name)):
        return {"config": whole["vision_config"] if part == "vision" else whole}
    return published().get(part, {}).get(name.removesuffix("-Instruct"), {})
