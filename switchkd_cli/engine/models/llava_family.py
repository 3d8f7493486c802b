"""The LLaVA family: Hugging Face and TinyLLaVA checkpoints, LDPNetV2's projector, and models from parts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from switchkd_cli.engine.models import llava_folder, llava_parts
from switchkd_cli.engine.models.llava import Llava, LlavaInputs
from switchkd_cli.engine.models.llava_config import image_tokens_of, shape


class LlavaFamily:
    """The LLaVA family; see `family.Family`."""

    recognises = staticmethod(llava_folder.recognises)
    read = staticmethod(llava_folder.read)
    from_parts = staticmethod(llava_parts.design)
    published_config = staticmethod(llava_parts.published_config)
    shape = staticmethod(shape)

    def usage(self, config: Mapping[str, Any]) -> str:
        return files(__package__).joinpath(f"{config['model_type']}_usage.md").read_text(encoding="utf-8")

    def skeleton(self, config: LlavaConfig) -> Llava:
        with torch.device("meta"):
            return Llava(AutoModelForImageTextToText.from_config(config), LlavaInputs(None, image_tokens_of(config)))


LLAVA = LlavaFamily()
