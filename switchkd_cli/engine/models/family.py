"""A family of models: how its checkpoints are recognised and read, and what a plan and a model card need of it.

A family is a `Family` below, with a seam each (`seams.py`), or a subclass in a file of its own, a line of the registry, and a
test class that inherits tests/support/family.py's. No code outside `engine/models` depends on a particular family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig

from switchkd_cli.engine.hub import CheckpointFolder
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.checkpoint_files import notes_and_ends, read_config
from switchkd_cli.engine.models.processors import read_processor
from switchkd_cli.engine.models.seams import Merged, Seam, Tower
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.weights import check_weights, load_weights
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Parts

Published = Callable[[str, str], Mapping[str, Any]]
"""Maps a part (`vision`, `language`) and a model's name to its published `config` and `tokens`; empty: not known."""


WHOLE_HINT = "name a whole vision-language model of such a family, for example a run's model/"


@dataclass(frozen=True)
class Family:
    """The models of one `model_type` of transformers; each line of the registry's FAMILIES names a family.

    `others`: more types that it reads. `towers`: the types of vision tower that it knows; none named: all.
    """

    model_type: str
    seam: Seam
    others: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json describes a complete model of this family."""
        return config.get("model_type") in (self.model_type, *self.others)

    def read(self, checkpoint: CheckpointFolder) -> Blueprint:
        """Read a complete checkpoint, of its weights only the headers. Raises UserError for any other folder."""
        config = read_config(checkpoint)
        tower = config.vision_config.model_type if self.recognises(config.to_dict()) else None
        if tower is None or self.towers and tower not in self.towers:
            kind = f"{config.model_type} checkpoint" + (f" with a {tower}" if tower else "")
            known = self.model_type + (f" with {' or '.join(self.towers)}" if self.towers else "")
            raise UserError(f"{checkpoint} is a {kind}, not {known}", hint=WHOLE_HINT)
        processor = read_processor(checkpoint, self.model_type)
        check_weights(checkpoint)
        weights = partial(load_weights, AutoModelForImageTextToText, checkpoint)
        return self.blueprint(config, processor, weights, *notes_and_ends(checkpoint, config))

    def blueprint(self, config: Any, processor: Any, *rest: Any) -> Blueprint:
        """Return the model of this config and transformers' processor; `rest` as in `Blueprint`."""
        return Blueprint(config, InputProcessor(processor, config, self.seam), *rest)

    def from_parts(self, spec: Parts, who: str) -> Blueprint:
        """Put a model together from parts. Raises UserError where they don't fit."""
        problem = f"{who}: a model of family {self.model_type} can't be put together from parts"
        raise UserError(problem, hint=f"name a whole model: {who}.checkpoint=..., or use family: llava")

    def published_config(self, spec: Parts, who: str, published: Published) -> tuple[PretrainedConfig, int] | None:
        """For a plan: the config of a model whose parts are not all on this machine, and its tokenizer's number of tokens.

        None where a part's config is not known.
        """
        return None

    def usage(self, config: Mapping[str, Any]) -> str:
        """Return Markdown for a model card: how to load and use a saved model with this config.json."""
        folder = files(__package__)
        file = folder.joinpath(f"{config['model_type']}_usage.md")
        return (file if file.is_file() else folder.joinpath("stock_usage.md")).read_text(encoding="utf-8")

    def skeleton(self, config: PretrainedConfig) -> VisionLanguageModel:
        """Return a model without memory for its weights, to count its parameters."""
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
            return VisionLanguageModel(model, SimpleNamespace(seam=self.seam))  # type: ignore[arg-type]

    def shape(self, config: PretrainedConfig) -> ModelShape:
        return ModelShape(self.skeleton(config))


TILES = Tower(at_layer=True, connects=("multi_modal_projector", "image_newline"), whole=0, square=False)
LLAVA_NEXT = Family("llava_next", TILES)
LLAVA_ONEVISION = Family("llava_onevision", replace(TILES, of_row="batch_num_images"))
INTERNVL = Family("internvl", Tower(layers="encoder.layer", stacks=True))
GEMMA3 = Family("gemma3", Tower(types="token_type_ids", stacks=True))
GEMMA4 = Family(
    "gemma4", Tower(connects=("embed_vision",), types="mm_token_type_ids", places="image_position_ids", square=False)
)
CONNECTED = Tower("vision_model", language="text_model", connects=("connector",))
SMOLVLM, IDEFICS3 = (Family(name, CONNECTED) for name in ("smolvlm", "idefics3"))
QWEN2_VL, QWEN2_5_VL, QWEN3_5 = (Family(name, Merged()) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_5"))
QWEN3_VL = Family("qwen3_vl", Merged(connects=("visual.merger", "visual.deepstack_merger_list")))
