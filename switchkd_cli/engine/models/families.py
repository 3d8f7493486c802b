"""Families of transformers' own vision-language models: a seam each, and everything else in common.

A family needs an entry in registry.yaml and one here; `seams.py` explains the fields. Whole checkpoints are read, of the
layout in which transformers saves them, with the processor that lies beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any, NoReturn

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig

from switchkd_cli.engine.hub import CheckpointFolder
from switchkd_cli.engine.models.checkpoint_files import notes_and_ends, read_config
from switchkd_cli.engine.models.family import Published
from switchkd_cli.engine.models.processors import ProcessorInputs, read_processor
from switchkd_cli.engine.models.seams import Merged, Seam, Tower
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.models.split_model import SplitModel
from switchkd_cli.engine.models.stock_blueprint import StockBlueprint
from switchkd_cli.engine.models.stock_shape import shape
from switchkd_cli.engine.weights import check_weights, load_weights
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Parts


@dataclass(frozen=True)
class StockFamily:
    """The models of one `model_type` of transformers; see `family.Family`."""

    model_type: str
    seam: Seam

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.model_type

    def read(self, checkpoint: CheckpointFolder) -> StockBlueprint:
        config = read_config(checkpoint)
        if config.model_type != self.model_type:
            raise UserError(f"{checkpoint} is a {config.model_type} checkpoint, not {self.model_type}")
        inputs = ProcessorInputs(read_processor(checkpoint, self.model_type), config, self.seam)
        check_weights(checkpoint)
        weights = partial(load_weights, AutoModelForImageTextToText, checkpoint)
        return StockBlueprint(config, inputs, weights, *notes_and_ends(checkpoint, config))

    def from_parts(self, spec: Parts, who: str) -> NoReturn:
        raise UserError(
            f"{who}: a model of family {self.model_type} can't be put together from parts",
            hint=f"name a whole model: {who}.checkpoint=..., or use family: llava",
        )

    def published_config(self, spec: Parts, who: str, published: Published) -> None:
        return None

    def usage(self, config: Mapping[str, Any]) -> str:
        folder = files(__package__)
        file = folder.joinpath(f"{config['model_type']}_usage.md")
        return (file if file.is_file() else folder.joinpath("stock_usage.md")).read_text(encoding="utf-8")

    def skeleton(self, config: PretrainedConfig) -> SplitModel:
        with torch.device("meta"):
            return SplitModel(AutoModelForImageTextToText.from_config(config), None, self.seam)

    def shape(self, config: PretrainedConfig) -> ModelShape:
        return shape(config)


TILES = Tower(at_layer=True, connects=("multi_modal_projector", "image_newline"))
LLAVA_NEXT = StockFamily("llava_next", TILES)
LLAVA_ONEVISION = StockFamily("llava_onevision", replace(TILES, of_row="batch_num_images"))
INTERNVL = StockFamily("internvl", Tower(layers="encoder.layer", stacks=True))
GEMMA3 = StockFamily("gemma3", Tower(types="token_type_ids", stacks=True))
CONNECTED = Tower("vision_model", language="text_model", connects=("connector",))
SMOLVLM, IDEFICS3 = (StockFamily(name, CONNECTED) for name in ("smolvlm", "idefics3"))
QWEN2_VL, QWEN2_5_VL, QWEN3_5 = (StockFamily(name, Merged()) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_5"))
QWEN3_VL = StockFamily("qwen3_vl", Merged(connects=("visual.merger", "visual.deepstack_merger_list")))
